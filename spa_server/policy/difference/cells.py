"""Two policies cut into cells: stretches in which the set of fitting rules does not change.

A rule is a bundle of slots, one for each of its accesses; two rules that mean the same, in
whichever policy, share their slots. A set of slots is an int with one bit for each, so that what
fits a request is an intersection: slots for its ports & slots for its source & slots of its time.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, summarize_address_range
from typing import Final, TypeAlias

from spa_protocol.access import Access, Protocol
from spa_protocol.layout import Address
from spa_server.policy.difference.offer import Offer, Terms, needs, together
from spa_server.policy.difference.spans import Spans, Stretch, bits_of, elementary, merged
from spa_server.policy.difference.timeline import Clock
from spa_server.policy.model import (
    Allow,
    AlwaysOpenRule,
    Network,
    Policy,
    Sessions,
)

Rule: TypeAlias = Allow | AlwaysOpenRule

# The always_open rules, as a role that everybody has. No role of a policy has this name.
_OPEN: Final = ""
EVERYBODY: Final = frozenset({_OPEN})
_AT_ONCE: Final = Terms(once=False, sessions=Sessions.KEEP, lifetime_s=0, max_lifetime_s=0)
# Both families on one line of numbers, IPv6 behind IPv4 with a gap that keeps them apart.
_IPV6: Final = 1 << 40
ANYWHERE: Final[Spans] = ((0, 1 << 32), (_IPV6, _IPV6 + (1 << 128)))


@dataclass(frozen=True, slots=True)
class Slot:
    """One access of a rule, with all that decides whether it fits and what it then gives."""

    access: Access
    sources: Spans
    clock: Clock
    needs: int
    terms: Terms


def clock_of(rule: Rule) -> Clock:
    """When a rule holds."""
    return Clock(rule.when, rule.expires_at_us) if isinstance(rule, Allow) else Clock()


def position(address: Address) -> int:
    """An address on the one line of both families."""
    return int(address) + (_IPV6 if address.version == 6 else 0)


def networks_of(sources: Spans) -> Iterator[Network]:
    """The fewest networks that these are."""
    for begin, end in sources:
        if begin >= _IPV6:
            last6 = IPv6Address(end - 1 - _IPV6)
            yield from summarize_address_range(IPv6Address(begin - _IPV6), last6)
        else:
            yield from summarize_address_range(IPv4Address(begin), IPv4Address(end - 1))


@lru_cache(maxsize=4096)
def stretches_of(networks: tuple[Network, ...]) -> Spans:
    """Networks on the one line; none is anywhere."""
    return merged(map(_stretch, networks)) if networks else ANYWHERE


def _stretch(network: IPv4Network | IPv6Network) -> Stretch:
    begin = position(network.network_address)
    return begin, begin + network.num_addresses


class Side:
    """One policy as slots: those of each role, and the rules that each is of."""

    def __init__(self) -> None:
        self.masks: dict[str, int] = {}
        self._rules: dict[int, list[tuple[str, Rule]]] = {}

    def add(self, role: str, slot: int, rule: Rule) -> None:
        """A rule of a role that has this slot."""
        self.masks[role] = self.masks.get(role, 0) | 1 << slot
        self._rules.setdefault(slot, []).append((role, rule))

    def mask(self, roles: Iterable[str]) -> int:
        """The slots of whoever has these roles."""
        found = 0
        for role in roles:
            found |= self.masks.get(role, 0)
        return found

    def rules(self, slots: int, roles: frozenset[str]) -> tuple[Rule, ...]:
        """The rules of these roles that have one of the slots, in the order of the file."""
        rules = {
            rule.path: rule
            for slot in bits_of(slots)
            for role, rule in self._rules.get(slot, ())
            if role in roles
        }
        return tuple(sorted(rules.values(), key=lambda rule: (rule.line, rule.path)))


class Space:
    """Two policies in the same slots."""

    def __init__(self, old: Policy, new: Policy) -> None:
        self.slots: list[Slot] = []
        self._numbers: dict[Slot, int] = {}
        self._offers: dict[int, Offer] = {}
        self.old = self._side(old)
        self.new = self._side(new)

    def _side(self, policy: Policy) -> Side:
        side = Side()
        for allow in policy.allows:
            terms = Terms(allow.once, allow.sessions, allow.lifetime_s, allow.max_lifetime_s)
            clock, need = clock_of(allow), needs(allow.require)
            sources = stretches_of(allow.sources.networks)
            for access in allow.accesses:
                number = self._number(Slot(access, sources, clock, need, terms))
                side.add(allow.role, number, allow)
        for rule in policy.always_open:
            sources = stretches_of(rule.sources.networks)
            for access in rule.accesses:
                number = self._number(Slot(access, sources, clock_of(rule), 0, _AT_ONCE))
                side.add(_OPEN, number, rule)
        return side

    def _number(self, slot: Slot) -> int:
        number = self._numbers.setdefault(slot, len(self.slots))
        if number == len(self.slots):
            self.slots.append(slot)
        return number

    def offer(self, slots: int) -> Offer:
        """What the rules of these slots give where they all fit."""
        found = self._offers.get(slots)
        if found is None:
            fitting = (self.slots[number] for number in bits_of(slots))
            found = together((slot.needs, slot.terms) for slot in fitting)
            self._offers[slots] = found
        return found

    def touching(self, slots: int, among: int) -> int:
        """Those of `among` that have a port in common with some of `slots`, a part of it."""
        touched = 0
        for stretches in self.cut_ports(among).values():
            for _, _, mask in stretches:
                if mask & slots:
                    touched |= mask
        return touched

    def cut_ports(self, slots: int) -> Mapping[Protocol, list[tuple[int, int, int]]]:
        """For each protocol the elementary stretches of ports, each with its slots."""
        pieces: dict[Protocol, list[tuple[int, int, int]]] = {}
        for number in bits_of(slots):
            access = self.slots[number].access
            piece = (access.first, access.last + 1, 1 << number)
            pieces.setdefault(access.protocol, []).append(piece)
        return {protocol: elementary(of_one) for protocol, of_one in pieces.items()}

    def cut_sources(self, slots: int) -> Mapping[int, Spans]:
        """The elementary ranges of addresses, those with the same slots put together."""
        pieces = (
            (begin, end, 1 << number)
            for number in bits_of(slots)
            for begin, end in self.slots[number].sources
        )
        ranges: dict[int, list[Stretch]] = {}
        for begin, end, mask in elementary(pieces):
            ranges.setdefault(mask, []).append((begin, end))
        return {mask: merged(stretches) for mask, stretches in ranges.items()}
