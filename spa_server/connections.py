"""Connections as the gate logs them: permitted, severed or denied, with a name where there is one.

The first packet of a permitted connection is logged to group 622, that of a denied (source,
protocol, port) to group 623, also where the gate observes and lets it in: docs/architecture.md,
"In the kernel".
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from spa_protocol.access import Protocol
from spa_protocol.layout import Address
from spa_server.audit.record import Event, Record
from spa_server.capture.nflog import NflogPacket
from spa_server.grants import Grant
from spa_server.hole import Hole
from spa_server.policy.model import Sessions
from spa_server.tally import Tally

PERMIT_GROUP: Final = 622
DENY_GROUP: Final = 623
MAX_REMEMBERED: Final = 65_536

_IPV4 = struct.Struct(">B8xB2x4s4s")
_IPV6 = struct.Struct(">6xBx16s16s")
_PORTS = struct.Struct(">HH")
_DENIALS: Final = {"deny": Event.CONNECTION_DENIED, "would-deny": Event.CONNECTION_WOULD_DENY}
_OTHERS: Final = {33: "dccp", 136: "udplite"}


@dataclass(frozen=True, slots=True)
class Flow:
    """The five-tuple of a logged packet. `protocol` is its IANA number."""

    source: Address
    source_port: int
    target: Address
    protocol: int
    port: int

    @property
    def access(self) -> str:
        """tcp/22, as the record writes it."""
        label = _OTHERS.get(self.protocol) or Protocol(self.protocol).label
        return f"{label}/{self.port}"


def parse_flow(packet: bytes) -> Flow | None:
    """The flow that a packet belongs to, from its first bytes: the log cuts a packet short."""
    try:
        if packet[0] >> 4 == 4:
            first, protocol, source, target = _IPV4.unpack_from(packet)
            ends: tuple[Address, Address] = IPv4Address(source), IPv4Address(target)
            ports_at = (first & 0x0F) * 4
        else:
            protocol, source6, target6 = _IPV6.unpack_from(packet)
            ends, ports_at = (IPv6Address(source6), IPv6Address(target6)), 40
        source_port, port = _PORTS.unpack_from(packet, ports_at)
    except (IndexError, struct.error):
        return None
    known = protocol in set(Protocol) or protocol in _OTHERS
    return Flow(ends[0], source_port, ends[1], protocol, port) if known else None


class Denials:
    """What was denied, and what would have been: two tallies, so that neither crowds the other out.

    A kind is the source, the target and the access.
    """

    def __init__(self) -> None:
        self.of: dict[Event, Tally[tuple[str, str, str]]] = {
            Event.CONNECTION_DENIED: Tally(),
            Event.CONNECTION_WOULD_DENY: Tally(),
        }

    def due_at_us(self) -> int | None:
        """When the interval of either is over; None while nothing was counted."""
        dues = (tally.due_at_us() for tally in self.of.values())
        return min((due_us for due_us in dues if due_us is not None), default=None)

    def is_due(self, now_us: int) -> bool:
        """Whether the interval of either is over."""
        return any(tally.is_due(now_us) for tally in self.of.values())


class ConnectionLog:
    """Turns logged packets into records. `holders` gives the grants that hold a hole open.

    When a session is severed nobody holds its hole any more, so whose it is has to be remembered:
    for the latest `MAX_REMEMBERED` flows of cut services, and not over a restart.
    """

    def __init__(self, holders: Callable[[Hole], list[Grant]]) -> None:
        self._holders = holders
        self._remembered: dict[Flow, list[Grant]] = {}
        self.denials = Denials()

    def permitted(self, packets: Sequence[NflogPacket], now_us: int) -> list[Record]:
        """A record for each connection let through, or severed."""
        flows = [(parse_flow(logged.packet), logged.prefix) for logged in packets]
        return [self._through(flow, prefix == "severed", now_us) for flow, prefix in flows if flow]

    def denied(self, packets: Sequence[NflogPacket], now_us: int) -> list[Record]:
        """Records of denied connections: the first of a kind at once, the others counted."""
        records = []
        for logged in packets:
            flow = parse_flow(logged.packet)
            if flow is None:
                continue
            event = _DENIALS.get(logged.prefix, Event.CONNECTION_DENIED)
            kind = (str(flow.source), str(flow.target), flow.access)
            if self.denials.of[event].is_first(kind, now_us):
                records.append(_denied(event, kind, now_us, {"source_port": flow.source_port}))
        return records

    def further_denied(self, now_us: int) -> list[Record]:
        """How many more were denied than were written one by one."""
        records = []
        for event, tally in self.denials.of.items():
            further, beyond = tally.take()
            records += [_denied(event, kind, now_us, {"further": n}) for kind, n in further.items()]
            if beyond:
                records.append(Record(event, now_us, detail={"further": beyond}))
        return records

    def _through(self, flow: Flow, severed: bool, now_us: int) -> Record:
        remembered = self._remembered.get(flow, []) if severed else []
        grants = remembered or self._grants(flow)
        if not severed:
            self._remember(flow, grants)
        last = grants[-1] if grants else None
        identities = sorted({grant.identity for grant in grants})
        detail: dict[str, object] = {"source_port": flow.source_port}
        if len(identities) > 1:
            detail["ambiguous"] = identities
        return Record(
            Event.CONNECTION_SEVERED if severed else Event.CONNECTION_PERMITTED,
            now_us,
            identity=", ".join(identities) or None,
            key_id=last.key_id if last else None,
            source=str(flow.source),
            target=str(flow.target),
            access=flow.access,
            rule=last.rule if last else None,
            grant_id=last.grant_id if last else None,
            detail=detail,
        )

    def _remember(self, flow: Flow, grants: list[Grant]) -> None:
        self._remembered.pop(flow, None)
        if any(grant.sessions is Sessions.CUT for grant in grants):
            self._remembered[flow] = grants
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def _grants(self, flow: Flow) -> list[Grant]:
        if flow.protocol not in set(Protocol):
            return []
        protocol = Protocol(flow.protocol)
        hole = Hole(flow.source, flow.target, protocol, flow.port)
        once = Hole(flow.source, flow.target, protocol, flow.port, once=True)
        return self._holders(hole) or self._holders(once)


def _denied(
    event: Event, kind: tuple[str, str, str], now_us: int, detail: dict[str, object]
) -> Record:
    source, target, access = kind
    return Record(event, now_us, source=source, target=target, access=access, detail=detail)
