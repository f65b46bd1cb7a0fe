"""Connections as the gate logs them: permitted, severed or denied, with a name where there is one.

What completes the handshake of a permitted connection, or its first datagram, is logged to group
622, the first packet of a denied (source, protocol, port) to group 623, also where the gate
observes and lets it in: docs/architecture.md, "In the kernel". How they end, conntrack tells:
spa_server/ends.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from spa_server import attribution
from spa_server.attribution import Permitted
from spa_server.audit.folding import network_of
from spa_server.audit.record import Event, Record
from spa_server.capture.nflog import NflogPacket
from spa_server.ctentry import key_of
from spa_server.ends import Ends
from spa_server.flow import Flow, parse_flow
from spa_server.grants import Grant
from spa_server.hole import Hole
from spa_server.liveconnections import LiveConnections
from spa_server.tally import Tally

PERMIT_GROUP: Final = 622
DENY_GROUP: Final = 623

_DENIALS: Final = {"deny": Event.CONNECTION_DENIED, "would-deny": Event.CONNECTION_WOULD_DENY}
_MANY_USED: Final = 4096
_CLOCK_SLACK_US: Final = 86_400_000_000  # a grant ends by another clock

_Kind: TypeAlias = tuple[str, str, str]


def _party(kind: _Kind) -> str:
    return network_of(kind[0]) or "" if ":" in kind[0] else kind[0]


class Denials:
    """What was denied, and what would have been: two tallies, so that neither crowds the other out.

    A kind is the source, the target and the access. In IPv6 one party has 2**64 sources.
    """

    def __init__(self) -> None:
        self.of: dict[Event, Tally[_Kind, str]] = {
            Event.CONNECTION_DENIED: Tally(_party),
            Event.CONNECTION_WOULD_DENY: Tally(_party),
        }

    def due_at_us(self) -> int | None:
        """When the interval of either is over; None while nothing was counted."""
        dues = (tally.due_at_us() for tally in self.of.values())
        return min((due_us for due_us in dues if due_us is not None), default=None)

    def is_due(self, now_us: int) -> bool:
        """Whether the interval of either is over."""
        return any(tally.is_due(now_us) for tally in self.of.values())


class ConnectionLog:
    """Turns logged packets into records. `holders` gives the grants that hold a hole open."""

    def __init__(self, holders: Callable[[Hole], list[Grant]]) -> None:
        self._holders = holders
        self._used: dict[int, int] = {}  # until when a grant that was used is in force
        self._forget_at = _MANY_USED
        self.live = LiveConnections()
        self.ends = Ends(self.live)
        self.denials = Denials()

    def recall(self, used: Iterable[Grant]) -> None:
        """Grants that were used before this daemon began."""
        self._used.update((grant.grant_id, grant.expires_at_us) for grant in used)

    def permitted(self, packets: Sequence[NflogPacket], now_us: int) -> list[Record]:
        """Records of connections let through, or severed."""
        refused_before = self.live.refused
        flows = [(parse_flow(logged.packet, logged.interface), logged.prefix) for logged in packets]
        records = [
            record
            for flow, prefix in flows
            if flow is not None
            for record in self._through(flow, prefix == "severed", now_us)
        ]
        if refused := self.live.refused - refused_before:
            records.append(_not_remembered(refused, now_us))
        return records

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
            further, by_party, beyond = tally.take()
            records += [_denied(event, kind, now_us, {"further": n}) for kind, n in further.items()]
            records += [
                Record(event, now_us, source=party, detail={"further": n})
                for party, n in by_party.items()
            ]
            if beyond:
                records.append(Record(event, now_us, detail={"further": beyond}))
        return records

    def _through(self, flow: Flow, severed: bool, now_us: int) -> Iterator[Record]:
        if severed:
            yield attribution.line(Event.CONNECTION_SEVERED, self._severed(flow, now_us), now_us)
            return
        grants = self._grants(flow)
        chosen = attribution.candidates(grants)
        permitted = attribution.permitted(flow, grants, now_us)
        yield attribution.line(Event.CONNECTION_PERMITTED, permitted, now_us)
        yield from self.ends.expect(permitted, now_us)
        yield from self._uses(chosen, grants, permitted)

    def _severed(self, flow: Flow, now_us: int) -> Permitted:
        """When a session is severed nobody holds its hole any more: whose it was is remembered."""
        known = self.live.at(key_of(flow))
        if known:
            return known[-1]
        return attribution.permitted(flow, self._grants(flow), now_us)

    def _uses(
        self, chosen: Sequence[Grant], holders: Sequence[Grant], permitted: Permitted
    ) -> Iterator[Record]:
        """Of each grant at most one. What holds a `once` hole is spent with it, chosen or not."""
        for grant in chosen:
            if grant.grant_id not in self._used:
                yield attribution.used(grant, permitted)
        self.recall(grant for grant in holders if grant.once or grant in chosen)
        if len(self._used) >= self._forget_at:
            limit_us = permitted.at_us - _CLOCK_SLACK_US
            self._used = {number: us for number, us in self._used.items() if us > limit_us}
            self._forget_at = max(_MANY_USED, 2 * len(self._used))

    def _grants(self, flow: Flow) -> list[Grant]:
        """The grants by which the gate lets a flow in (attribution, rule 2)."""
        for hole in attribution.holes_of(flow):
            holders = self._holders(hole)
            if hole.once:
                holders = [grant for grant in holders if grant.grant_id not in self._used]
            if holders:
                return holders
        return []


def _not_remembered(count: int, now_us: int) -> Record:
    """Their ends are entered when the daemon is started again, without figures."""
    reason = "more connections are live than can be remembered"
    detail = {"count": count, "of": "end"}
    return Record(Event.RECORDS_LOST, now_us, reason=reason, detail=detail)


def _denied(event: Event, kind: _Kind, now_us: int, detail: dict[str, object]) -> Record:
    source, target, access = kind
    return Record(event, now_us, source=source, target=target, access=access, detail=detail)
