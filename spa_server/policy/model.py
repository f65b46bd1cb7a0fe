"""What a policy says, once it has been read and found sound: spa-policy(5).

Union of allows, no deny rules, default deny. Nothing here reads a file or a clock. Times are
microseconds since the Unix epoch.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

from keys.tomlfile import quoted
from spa_protocol.access import Access, Protocol
from spa_protocol.layout import Address
from spa_server.policy.schedule import Schedule

Network: TypeAlias = IPv4Network | IPv6Network


class Sessions(StrEnum):
    """What becomes of a connection when the hole that it came through ends."""

    KEEP = "keep"
    CUT = "cut"


class Requirement(StrEnum):
    """What a knock must bring besides its signature."""

    DECLARED_SOURCE = "declared-source"
    TOUCH = "touch"


@dataclass(frozen=True)
class Sources:
    """The networks a rule is for; none named means anywhere."""

    networks: tuple[Network, ...] = ()

    def __contains__(self, address: Address) -> bool:
        if not self.networks:
            return True
        number, version = int(address), address.version
        for of_version, mask, network in self._masks:
            if of_version == version and number & mask == network:
                return True
        return False

    @cached_property
    def _masks(self) -> tuple[tuple[int, int, int], ...]:
        """As numbers: `ipaddress` takes a microsecond for each network."""
        return tuple(
            (network.version, int(network.netmask), int(network.network_address))
            for network in self.networks
        )

    def __str__(self) -> str:
        return ", ".join(map(str, self.networks)) or "anywhere"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one identity may have; None is no limit.

    `max_open` counts holes that are open at once, `knocks_per_minute` knocks and closes
    for this host, `max_key_age_s` seconds since a key was enrolled.
    """

    max_open: int | None = None
    knocks_per_minute: int | None = None
    max_key_age_s: int | None = None

    def __bool__(self) -> bool:
        return self.counts or self.max_key_age_s is not None

    @property
    def counts(self) -> bool:
        """Whether somebody has to count what an identity has and does."""
        return self.max_open is not None or self.knocks_per_minute is not None

    @property
    def said(self) -> "Limits":
        """Without what is the default anyhow."""
        default = DEFAULT_LIMITS
        return Limits(
            None if self.max_open == default.max_open else self.max_open,
            None if self.knocks_per_minute == default.knocks_per_minute else self.knocks_per_minute,
            self.max_key_age_s,
        )


DEFAULT_LIMITS: Final = Limits(max_open=4096, knocks_per_minute=300)
"""Those of everybody where policy.toml sets none: docs/decisions/0029-default-limits.md."""


@dataclass(frozen=True, slots=True)
class Allow:
    """One `[[roles.NAME.allow]]`: these services, from these sources, then, for so many seconds.

    `path` is its key path, `line` the line of the file that it begins in (0 where it has none).
    `expires_at_us` is its role's too, where that is earlier.
    """

    path: str
    role: str
    services: tuple[str, ...]
    accesses: tuple[Access, ...]
    sources: Sources
    lifetime_s: int
    max_lifetime_s: int
    sessions: Sessions
    once: bool
    when: Schedule | None = None
    require: frozenset[Requirement] = frozenset()
    expires_at_us: int | None = None
    review_by: date | None = None
    line: int = 0

    def covers(self, access: Access) -> bool:
        """Whether every port asked for belongs to one of the rule's services."""
        for allowed in self.accesses:  # noqa: SIM110 - any() takes twice as long, for every rule
            if access in allowed:
                return True
        return False


@dataclass(frozen=True)
class Role:
    """A name that identities are given, and what it allows."""

    name: str
    description: str
    allows: tuple[Allow, ...]
    limits: Limits = Limits()
    expires_at_us: int | None = None
    review_by: date | None = None
    line: int = 0

    def about(self, access: Access) -> Iterable[Allow]:
        """Its allows that cover an access, in the order of the file."""
        edges, allows = self._by_port[access.protocol]
        found = allows[bisect_right(edges, access.first)]
        return [allow for allow in found if allow.covers(access)]

    @cached_property
    def _by_port(self) -> dict[Protocol, tuple[list[int], list[tuple[Allow, ...]]]]:
        """For each protocol the ports at which something changes, and what covers each stretch."""
        return {protocol: self._stretches(protocol) for protocol in Protocol}

    def _stretches(self, protocol: Protocol) -> tuple[list[int], list[tuple[Allow, ...]]]:
        spans = [
            (access.first, access.last, allow)
            for allow in self.allows
            for access in allow.accesses
            if access.protocol is protocol
        ]
        edges = sorted({edge for first, last, _ in spans for edge in (first, last + 1)})
        stretches: list[tuple[Allow, ...]] = [()]
        for edge in edges:
            covering = {allow.path: allow for first, last, allow in spans if first <= edge <= last}
            stretches.append(tuple(covering.values()))
        return edges, stretches


@dataclass(frozen=True, slots=True)
class AlwaysOpenRule:
    """One `[[always_open]]`: services for those who cannot knock."""

    path: str
    services: tuple[str, ...]
    accesses: tuple[Access, ...]
    sources: Sources
    line: int = 0


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """One `[[tests]]`: a request, and what is to come of it.

    For an identity, or for whoever has one role; the other is None. `at_us` None: at any time.
    """

    path: str
    name: str
    identity: str | None
    role: str | None
    access: Access
    source: Address
    at_us: int | None
    declared: bool
    touched: bool
    is_allowed: bool
    line: int = 0


@dataclass(frozen=True)
class Policy:
    """Everything that policy.toml says. An empty one allows nothing.

    `digest` names the text that it was read from: BLAKE2b-256 in hex.
    """

    services: Mapping[str, tuple[Access, ...]] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    always_open: tuple[AlwaysOpenRule, ...] = ()
    limits: Limits = Limits()
    tests: tuple[PolicyTest, ...] = ()
    digest: str = field(default="", compare=False)

    @cached_property
    def allows(self) -> tuple[Allow, ...]:
        """Every allow of every role, in the order of the file."""
        return tuple(allow for role in self.roles.values() for allow in role.allows)

    @cached_property
    def cut(self) -> tuple[Access, ...]:
        """The accesses whose sessions end with their hole."""
        cut = (allow.accesses for allow in self.allows if allow.sessions is Sessions.CUT)
        return tuple(dict.fromkeys(access for accesses in cut for access in accesses))

    @cached_property
    def has_limits(self) -> bool:
        """Whether anybody's use is limited at all."""
        return self.limits.counts or any(role.limits.counts for role in self.roles.values())

    @cached_property
    def says_limits(self) -> bool:
        """Whether it limits anybody's use otherwise than by default."""
        return self.limits.said.counts or any(role.limits.counts for role in self.roles.values())

    @cached_property
    def ages_keys(self) -> bool:
        """Whether anybody's keys end by their age."""
        limits = (self.limits, *(role.limits for role in self.roles.values()))
        return any(each.max_key_age_s is not None for each in limits)

    def reviews_due(self, today: date) -> list[tuple[str, int, date]]:
        """What should have been reviewed by now: key path, line, and the day that was set."""
        roles = [
            (f"roles.{quoted(role.name)}", role.line, role.review_by)
            for role in self.roles.values()
        ]
        allows = [(allow.path, allow.line, allow.review_by) for allow in self.allows]
        return [(path, line, day) for path, line, day in roles + allows if day and day <= today]

    def limits_of(self, roles: Iterable[str]) -> Limits:
        """The limits of whoever has these roles: the widest that one of them sets, else those of
        everybody."""
        own = [self.roles[name].limits for name in roles if name in self.roles]
        max_open = [each.max_open for each in own if each.max_open is not None]
        knocks = [each.knocks_per_minute for each in own if each.knocks_per_minute is not None]
        ages = [each.max_key_age_s for each in own if each.max_key_age_s is not None]
        return Limits(
            max(max_open, default=self.limits.max_open),
            max(knocks, default=self.limits.knocks_per_minute),
            max(ages, default=self.limits.max_key_age_s),
        )
