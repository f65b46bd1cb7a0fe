"""What a policy says, once it has been read and found sound: spa-policy(5).

Union of allows, no deny rules, default deny. Nothing here reads a file or a clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from spa_protocol.access import Access
from spa_protocol.layout import Address

Network: TypeAlias = IPv4Network | IPv6Network


class Sessions(StrEnum):
    """What becomes of a connection when the hole that it came through ends."""

    KEEP = "keep"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Sources:
    """The networks a rule is for; none named means anywhere."""

    networks: tuple[Network, ...] = ()

    def __contains__(self, address: Address) -> bool:
        return not self.networks or any(address in network for network in self.networks)

    def __str__(self) -> str:
        return ", ".join(map(str, self.networks)) or "anywhere"


@dataclass(frozen=True, slots=True)
class Allow:
    """One `[[roles.NAME.allow]]`: these services, from these sources, for so many seconds."""

    path: str
    role: str
    services: tuple[str, ...]
    accesses: tuple[Access, ...]
    sources: Sources
    lifetime_s: int
    max_lifetime_s: int
    sessions: Sessions
    once: bool

    def covers(self, access: Access) -> bool:
        """Whether every port asked for belongs to one of the rule's services."""
        for allowed in self.accesses:  # noqa: SIM110 - twice as fast as any(), and asked of every rule
            if access in allowed:
                return True
        return False


@dataclass(frozen=True, slots=True)
class Role:
    """A name that identities are given, and what it allows."""

    name: str
    description: str
    allows: tuple[Allow, ...]


@dataclass(frozen=True, slots=True)
class AlwaysOpenRule:
    """One `[[always_open]]`: services for those who cannot knock."""

    path: str
    services: tuple[str, ...]
    accesses: tuple[Access, ...]
    sources: Sources


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that policy.toml says. An empty one allows nothing."""

    services: Mapping[str, tuple[Access, ...]] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    always_open: tuple[AlwaysOpenRule, ...] = ()

    @property
    def allows(self) -> tuple[Allow, ...]:
        """Every allow of every role, in the order of the file."""
        return tuple(allow for role in self.roles.values() for allow in role.allows)

    @property
    def cut(self) -> tuple[Access, ...]:
        """The accesses whose sessions end with their hole."""
        cut = (allow.accesses for allow in self.allows if allow.sessions is Sessions.CUT)
        return tuple(dict.fromkeys(access for accesses in cut for access in accesses))
