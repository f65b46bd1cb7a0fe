"""Tags, holes and denials as elements of the gate's sets, to netlink and back.

The key of a concatenated set is its fields in order, each padded to a multiple of 4 bytes at its
end. Timeouts are milliseconds, u64.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeAlias

import msgspec

from spa_protocol.access import Access, Protocol
from spa_protocol.layout import TAG_SIZE, Address
from spa_server import netlink
from spa_server.firewall import nftables
from spa_server.firewall.gate import TABLE
from spa_server.firewall.nftables import Count, Request, decode_count
from spa_server.flow import Flow
from spa_server.hole import Hole
from spa_server.link import on_link
from spa_server.netlink import NFGENMSG, NLM_F_CREATE, NLM_F_EXCL, Message

ADMITTED: Final = "admitted"
FLOODED: Final = "flooded"
HOLE_SETS: Final = ("holes4", "holes6", "once4", "once6", "link_holes6", "link_once6")
DENIED_SETS: Final = ("denied4", "denied6", "denied_sources4", "denied_sources6")
OBSERVED_SETS: Final = ("observed4", "observed6", "observed_sources4", "observed_sources6")
STOPPED_SETS: Final = ("stopped4", "stopped6")
STOPPED_MS: Final = 7 * 86_400_000  # as in gate.nft

# The elements of one message are one attribute, whose length is 16 bits wide.
MAX_ELEMENTS: Final = 900

_LIST_SET: Final = 2
_LIST_ELEMENTS: Final = 3
_LIST_ELEM: Final = 1
_ELEM_KEY: Final = 1
_ELEM_TIMEOUT: Final = 4
_ELEM_EXPIRATION: Final = 5
_ELEM_EXPR: Final = 7
_ELEM_EXPRESSIONS: Final = 11
_DATA_VALUE: Final = 1
_EXPR_NAME: Final = 1
_EXPR_DATA: Final = 2

_PROTOCOL_AND_PORT: Final = struct.Struct(">B3xH2x")
_INDEX: Final = struct.Struct("=I")  # of an interface, as the machine has it
_PORT: Final = struct.Struct(">H2x")

Lease: TypeAlias = tuple[bytes, int]


class TagLease(msgspec.Struct, frozen=True):
    """A tag, 8 bytes, whose knocks are heard for so many milliseconds."""

    tag: bytes
    timeout_ms: int

    def __post_init__(self) -> None:
        if len(self.tag) != TAG_SIZE:
            raise ValueError(f"a tag has {TAG_SIZE} bytes, not {len(self.tag)}")
        _require_end(self.timeout_ms)


class HoleLease(msgspec.Struct, frozen=True):
    """A hole and the milliseconds that it stays open from now.

    `is_new`: it should not be open yet, and then opens in a third of the time. It may be wrong.
    """

    hole: Hole
    timeout_ms: int
    is_new: bool = False

    def __post_init__(self) -> None:
        if self.hole.source.version != self.hole.target.version:
            raise ValueError(f"{self.hole} has addresses of two families")
        _require_end(self.timeout_ms)


class LiveHole(msgspec.Struct, frozen=True):
    """A hole as the kernel holds it, and what has come in through it.

    `packets` and `bytes` count the first packets of flows and those that complete a handshake, and
    all packets to a `cut` port. A `once` hole counts nothing.
    """

    hole: Hole
    remaining_ms: int
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Denial:
    """Packets that were dropped: from whom, to which protocol number and port, how many.

    Where the gate observes, the first packets of connections that it would have denied. Of a source
    that began too many kinds: what it tried beyond them, under protocol and port 0; in IPv6 for its
    network (/64), of which `source` is then the first address.
    """

    source: Address
    protocol: int
    port: int
    packets: int

    @property
    def source_text(self) -> str:
        """The source as the record writes it: an address, or a network of IPv6."""
        return (
            f"{self.source}/64"
            if not self.protocol and self.source.version == 6
            else str(self.source)
        )

    @property
    def access(self) -> Access | None:
        """What a knock would have asked for; None for a port or protocol that none can ask for."""
        if self.port == 0 or self.protocol not in set(Protocol):
            return None
        return Access(Protocol(self.protocol), self.port, self.port)


class Element(msgspec.Struct, frozen=True):
    """One element of a set; `remaining_ms` is None where it never expires."""

    key: bytes
    timeout_ms: int | None
    remaining_ms: int | None
    count: Count


def _require_end(timeout_ms: int) -> None:
    # To the kernel 0 means for ever.
    if timeout_ms < 1:
        raise ValueError(f"{timeout_ms} ms are no time to live; it must be at least 1")


def hole_set(hole: Hole) -> str:
    """The name of the set that holds it."""
    return _set_for("once" if hole.once else "holes", hole)


def tries_set(hole: Hole) -> str:
    """The name of the set that says that a handshake may be tried at a `once` hole."""
    return _set_for("tries", hole)


def begun_set(hole: Hole) -> str:
    """The name of the set that limits what may begin at a hole."""
    return _set_for("begun", hole)


def _set_for(what: str, hole: Hole) -> str:
    link = "link_" if hole.interface else ""
    return f"{link}{what}{hole.source.version}"


def sets_of(hole: Hole) -> tuple[str, ...]:
    """The names of the sets in which it is while it is open."""
    return (hole_set(hole), tries_set(hole)) if hole.once else (hole_set(hole),)


def hole_key(hole: Hole) -> bytes:
    """Source, target, protocol, port: 16 bytes for IPv4, 40 for IPv6, 44 with a link's index."""
    place = _PROTOCOL_AND_PORT.pack(hole.protocol, hole.port)
    link = _INDEX.pack(hole.interface) if hole.interface else b""
    return hole.source.packed + hole.target.packed + place + link


def decode_hole(set_name: str, key: bytes) -> Hole:
    """The inverse of `hole_key`."""
    size = _address_size(set_name)
    protocol, port = _PROTOCOL_AND_PORT.unpack_from(key, 2 * size)
    is_on_link = set_name.startswith("link_")
    link = _INDEX.unpack_from(key, 2 * size + _PROTOCOL_AND_PORT.size)[0] if is_on_link else 0
    return Hole(
        source=on_link(ip_address(key[:size]), link),
        target=on_link(ip_address(key[size : 2 * size]), link),
        protocol=Protocol(protocol),
        port=port,
        once="once" in set_name,
    )


def stopped_set(flow: Flow) -> str:
    """The name of the set that holds it where it is stopped."""
    return f"stopped{flow.source.version}"


def flow_key(flow: Flow) -> bytes:
    """20 bytes for IPv4, 44 for IPv6: source, its port, target, protocol, port."""
    return (
        flow.source.packed
        + _PORT.pack(flow.source_port)
        + flow.target.packed
        + _PROTOCOL_AND_PORT.pack(flow.protocol, flow.port)
    )


def decode_flow(set_name: str, key: bytes) -> Flow:
    """The inverse of `flow_key`."""
    size = _address_size(set_name)
    (source_port,) = _PORT.unpack_from(key, size)
    protocol, port = _PROTOCOL_AND_PORT.unpack_from(key, 2 * size + _PORT.size)
    target = ip_address(key[size + _PORT.size : 2 * size + _PORT.size])
    return Flow(ip_address(key[:size]), source_port, target, protocol, port)


def decode_denial(set_name: str, element: Element) -> Denial:
    """An element of one of the `denied` or `observed` sets."""
    size = _address_size(set_name)
    place = element.key[size:]
    protocol, port = _PROTOCOL_AND_PORT.unpack(place) if place else (0, 0)
    return Denial(ip_address(element.key[:size]), protocol, port, element.count.packets)


def _address_size(set_name: str) -> int:
    return 16 if set_name.endswith("6") else 4


def add(set_name: str, leases: Sequence[Lease], *, only_new: bool = False) -> list[Request]:
    """Requests to add keys with their timeouts in milliseconds.

    A key that is there already stays as it is; with `only_new` it fails the transaction (EEXIST).
    """
    flags = NLM_F_CREATE | (NLM_F_EXCL if only_new else 0)
    encoded = [_encode(key, timeout_ms) for key, timeout_ms in leases]
    return [
        Request(nftables.NEWSETELEM, flags, _list(set_name, encoded[at : at + MAX_ELEMENTS]))
        for at in range(0, len(encoded), MAX_ELEMENTS)
    ]


def delete(set_name: str, keys: Iterable[bytes]) -> list[Request]:
    """Requests to delete keys; one that is not there fails the transaction (ENOENT)."""
    encoded = [_encode(key) for key in keys]
    return [
        Request(nftables.DELSETELEM, 0, _list(set_name, encoded[at : at + MAX_ELEMENTS]))
        for at in range(0, len(encoded), MAX_ELEMENTS)
    ]


def renew(set_name: str, leases: Sequence[Lease]) -> list[Request]:
    """Requests after which the keys are there with these timeouts, whether they were or not.

    Before Linux 6.12 the timeout of an element cannot be changed, and a missing one cannot be
    deleted; so add what may be missing, delete, add. At no moment is there none. The keys must be
    distinct.
    """
    fresh = add(set_name, leases)
    return [*fresh, *delete(set_name, (key for key, _ in leases)), *fresh]


def put_all(set_name: str, leases: Sequence[Lease], *, are_new: bool) -> list[Request]:
    """Requests to add keys that are not there, or to renew them where some may be.

    The transaction fails with EEXIST where one of the new is there.
    """
    return add(set_name, leases, only_new=True) if are_new else renew(set_name, leases)


def put_one(set_name: str, key: bytes, timeout_ms: int, *, are_new: bool) -> list[Request]:
    """Requests to add one key that is not there, or to put another element in its place.

    The transaction fails with EEXIST or ENOENT where the caller was wrong about it.
    """
    added = add(set_name, [(key, timeout_ms)], only_new=True)
    return added if are_new else [*delete(set_name, [key]), *added]


def put_tries(lease: HoleLease, *, are_new: bool) -> list[Request]:
    """Requests after which a handshake may be tried at a `once` hole, as long as it is open."""
    leases = [(hole_key(lease.hole), lease.timeout_ms)]
    return put_all(tries_set(lease.hole), leases, are_new=are_new)


def take_out(set_name: str, keys: Sequence[bytes], *, are_new: bool) -> list[Request]:
    """Requests after which the keys are not there; `are_new`: they may not have been before.

    What is missing cannot be deleted, so it is added first. No packet meets it.
    """
    added = add(set_name, [(key, 1) for key in keys]) if are_new else []
    return [*added, *delete(set_name, keys)]


def dump_request(set_name: str) -> bytes:
    """The payload of a GETSETELEM request for all elements of a set."""
    return nftables.of_table(nftables.text(_LIST_SET, set_name))


def _list(set_name: str, encoded: Sequence[bytes]) -> bytes:
    """The attributes of NEWSETELEM and DELSETELEM."""
    table = nftables.text(nftables.TABLE_ATTRIBUTE, TABLE)
    name = nftables.text(_LIST_SET, set_name)
    return table + name + netlink.nested(_LIST_ELEMENTS, b"".join(encoded))


def _encode(key: bytes, timeout_ms: int | None = None) -> bytes:
    value = netlink.nested(_ELEM_KEY, netlink.attribute(_DATA_VALUE, key))
    if timeout_ms is not None:
        value += netlink.attribute(_ELEM_TIMEOUT, timeout_ms.to_bytes(8))
    return netlink.nested(_LIST_ELEM, value)


def decode_elements(answers: Iterable[Message]) -> Iterator[Element]:
    """The elements of a dump."""
    for answer in answers:
        found = dict(netlink.attributes(answer.payload, NFGENMSG.size))
        for _, value in netlink.attributes(found.get(_LIST_ELEMENTS, b"")):
            yield _decode(value)


def _decode(value: bytes) -> Element:
    found = dict(netlink.attributes(value))
    return Element(
        key=dict(netlink.attributes(found[_ELEM_KEY]))[_DATA_VALUE],
        timeout_ms=_milliseconds(found.get(_ELEM_TIMEOUT)),
        remaining_ms=_milliseconds(found.get(_ELEM_EXPIRATION)),
        count=_count_in(found),
    )


def _milliseconds(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value)


def _count_in(element: dict[int, bytes]) -> Count:
    """The element's counter: its one expression, or one of several (since Linux 5.11)."""
    several = [value for _, value in netlink.attributes(element.get(_ELEM_EXPRESSIONS, b""))]
    for expression in (element.get(_ELEM_EXPR, b""), *several):
        found = dict(netlink.attributes(expression))
        if found.get(_EXPR_NAME) == b"counter\0":
            return decode_count(found.get(_EXPR_DATA, b""))
    return Count(0, 0)
