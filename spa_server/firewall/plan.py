"""What the gate is to be, in values: which ports are open to whom, and which are cut.

nftables refuses a set whose elements overlap, and a policy may well name the same port twice. So
overlapping networks and ranges are merged here, before a rule is written.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from itertools import pairwise
from typing import Final, TypeAlias

from spa_protocol.access import Access, Protocol
from spa_protocol.carrier import UDP, Carrier
from spa_protocol.layout import DEFAULT_PORT

Network: TypeAlias = IPv4Network | IPv6Network
PortRange: TypeAlias = tuple[int, int]

_MAX_RATE: Final = 2**32 - 1
# What a kernel accepts (dev_valid_name) less what means something inside an nft string.
_INTERFACE_NAME: Final = re.compile(r"[A-Za-z0-9_.,@#%+=~^-]{1,15}")


class BadPlan(ValueError):
    """A plan that cannot be a gate. The message says what was expected."""


@dataclass(frozen=True, slots=True)
class AlwaysOpen:
    """Ports that need no knock from the addresses of one network."""

    network: Network
    access: Access


@dataclass(frozen=True, slots=True)
class Observed:
    """Ports to which nothing is denied: what would be is let in, counted and recorded.

    None by default, `accesses` where some are named, all of them with `everything`.
    """

    everything: bool = False
    accesses: tuple[Access, ...] = ()

    def __bool__(self) -> bool:
        return self.everything or bool(self.accesses)

    def __contains__(self, access: Access) -> bool:
        return self.everything or any(access in observed for observed in self.accesses)

    def __or__(self, other: "Observed") -> "Observed":
        accesses = dict.fromkeys((*self.accesses, *other.accesses))
        return Observed(self.everything or other.everything, tuple(accesses))

    def beyond(self, other: "Observed") -> "Observed":
        """What is observed here, and not there."""
        if other.everything or (self.everything and not other.everything):
            return Observed(everything=not other.everything)
        return Observed(accesses=tuple(a for a in self.accesses if a not in other))

    def __str__(self) -> str:
        return "every port" if self.everything else ", ".join(map(str, sorted(self.accesses)))


@dataclass(frozen=True, slots=True)
class GatePlan:
    """Everything the gate's rules depend on.

    Where a `cut` port is observed, it is not cut.

    `outer` names the interfaces by which forwarded traffic is judged when it enters: None means
    whichever it enters by (fail closed, for when no default route is known), an empty tuple means
    that no forwarded traffic is judged.

    `carriers` are those by which knocks are heard; UDP to the knock port always is.

    The limits are for knocks that carry an admitted tag, in packets: for each source with each
    tag, for each tag from all sources together, for each flooded tag, for all flooded tags
    together, and for all tags.
    `tags` is how many can be admitted. Raises BadPlan.
    """

    knock_port: int = DEFAULT_PORT
    always_open: tuple[AlwaysOpen, ...] = ()
    cut: tuple[Access, ...] = ()
    outer: tuple[str, ...] | None = None
    observed: Observed = Observed()
    carriers: tuple[Carrier, ...] = (UDP,)
    source_rate_per_s: int = 20
    source_burst: int = 20
    tag_rate_per_s: int = 1000
    tag_burst: int = 1000
    flooded_tag_rate_per_s: int = 250
    flooded_tag_burst: int = 125
    flooded_rate_per_s: int = 1000
    flooded_burst: int = 500
    total_rate_per_s: int = 10_000
    total_burst: int = 2000
    tags: int = 1_048_576

    def __post_init__(self) -> None:
        if not 1 <= self.knock_port <= 65535:
            raise BadPlan(f"knock port {self.knock_port} is not a port from 1 to 65535")
        limits = (
            *(self.source_rate_per_s, self.source_burst, self.tag_rate_per_s, self.tag_burst),
            *(self.flooded_tag_rate_per_s, self.flooded_tag_burst),
            *(self.flooded_rate_per_s, self.flooded_burst),
            *(self.total_rate_per_s, self.total_burst),
        )
        if not all(1 <= limit <= _MAX_RATE for limit in limits):
            raise BadPlan("a limit on knocks must be at least 1 packet")
        for name in self.outer or ():
            if not is_interface_name(name):
                raise BadPlan(f"{name!r} is not the name of a network interface")


def is_interface_name(text: str) -> bool:
    """Whether an interface can have this name, and nft be told of it."""
    return bool(_INTERFACE_NAME.fullmatch(text)) and text not in {".", ".."}


@dataclass(frozen=True, slots=True)
class OpenPorts:
    """One rule of `always_open`: networks of one family that reach ports of one protocol."""

    protocol: Protocol
    ports: tuple[PortRange, ...]
    networks: tuple[Network, ...]

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.networks[0].version

    @property
    def is_from_anywhere(self) -> bool:
        """Whether the networks are every address of their family."""
        return self.networks[0].prefixlen == 0


def merged_ports(accesses: Iterable[Access], protocol: Protocol) -> tuple[PortRange, ...]:
    """The ranges of one protocol in order, overlapping and adjacent ones made one."""
    merged: list[PortRange] = []
    for first, last in sorted((a.first, a.last) for a in accesses if a.protocol is protocol):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def ports_without(
    ranges: Iterable[PortRange], others: Iterable[PortRange]
) -> tuple[PortRange, ...]:
    """The ports of some ranges that are in none of the others; both are as `merged_ports` gives."""
    removed = tuple(others)
    return tuple(left for within in ranges for left in _without(within, removed))


def _without(within: PortRange, removed: tuple[PortRange, ...]) -> Iterator[PortRange]:
    first, last = within
    for gone_first, gone_last in removed:
        if gone_last < first or last < gone_first:
            continue
        if first < gone_first:
            yield first, gone_first - 1
        first = gone_last + 1
    if first <= last:
        yield first, last


def open_ports(entries: Iterable[AlwaysOpen]) -> tuple[OpenPorts, ...]:
    """The same permissions as rules in which no two networks and no two ranges overlap.

    Each port of a protocol stands in one rule of each family at most.
    """
    kept = tuple(entries)
    return tuple(
        rule
        for version in (4, 6)
        for protocol in Protocol
        for rule in _rules_of(
            [e for e in kept if e.network.version == version and e.access.protocol is protocol],
            protocol,
        )
    )


def _rules_of(entries: list[AlwaysOpen], protocol: Protocol) -> Iterator[OpenPorts]:
    """One rule for each distinct set of networks among entries of one family and protocol."""
    ports_of: dict[tuple[Network, ...], list[Access]] = {}
    for first, last in _segments([e.access for e in entries]):
        segment = Access(protocol, first, last)
        networks = _collapsed([e.network for e in entries if segment in e.access])
        ports_of.setdefault(networks, []).append(segment)
    for networks, segments in ports_of.items():
        yield OpenPorts(protocol, merged_ports(segments, protocol), networks)


def _segments(accesses: list[Access]) -> Iterator[PortRange]:
    """The covered ports, cut wherever an access begins or ends."""
    edges = sorted({a.first for a in accesses} | {a.last + 1 for a in accesses})
    for first, after in pairwise(edges):
        if any(a.first <= first and after - 1 <= a.last for a in accesses):
            yield first, after - 1


def _collapsed(networks: list[Network]) -> tuple[Network, ...]:
    four = [n for n in networks if isinstance(n, IPv4Network)]
    six = [n for n in networks if isinstance(n, IPv6Network)]
    return (*collapse_addresses(four), *collapse_addresses(six))
