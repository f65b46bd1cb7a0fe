"""Checking a host: does what is configured, enrolled and in force fit together?

Each finding has a name that does not change, a severity, and what to do about it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from keys.registry import Registry
from spa_protocol.access import Access, Protocol
from spa_server.config import Config
from spa_server.policy.model import Policy

_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
SSH = Access(Protocol.TCP, 22, 22)


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not fit."""

    name: str
    severity: Severity
    what: str
    advice: str


def check_people(policy: Policy, registry: Registry, now_us: int) -> Iterator[Finding]:
    """Who could get in, and who holds a role that means nothing."""
    enrolled = registry.keys()
    active = [key for key in enrolled if key.is_active(now_us)]
    roles = registry.identities()
    if not active:
        yield Finding(
            "nobody-enrolled",
            Severity.ERROR,
            "no key is enrolled: with the gate in force nobody can get in",
            "spa-keys enroll IDENTITY --key '...' --role ROLE",
        )
    elif not any(_reaches_ssh(policy, roles.get(key.identity, frozenset())) for key in active):
        yield Finding(
            "nobody-reaches-ssh",
            Severity.ERROR,
            "nobody who is enrolled could reach tcp/22: the gate may lock you out",
            "give somebody a role that allows ssh: spa-keys grant IDENTITY ROLE",
        )
    yield from _unknown_roles(policy, roles)
    for broken in registry.broken():
        yield Finding(
            "broken-key",
            Severity.WARNING,
            f"the {broken.table} {broken.key_id} cannot be used: {broken.what}",
            "revoke it and enrol the key anew",
        )


def _reaches_ssh(policy: Policy, roles: frozenset[str]) -> bool:
    open_to_all = any(SSH in access for rule in policy.always_open for access in rule.accesses)
    allows = (a for name in roles if name in policy.roles for a in policy.roles[name].allows)
    return open_to_all or any(allow.covers(SSH) for allow in allows)


def _unknown_roles(policy: Policy, roles: Mapping[str, frozenset[str]]) -> Iterator[Finding]:
    for identity, names in roles.items():
        for name in sorted(names - set(policy.roles)):
            yield Finding(
                "unknown-role",
                Severity.WARNING,
                f"{identity} has the role {name}, which the policy does not define",
                f"define it, or: spa-keys ungrant {identity} {name}",
            )


def check_cut(policy: Policy, own_ports: range) -> Iterator[Finding]:
    """Whether a `cut` port may be one of this host's own: `own_ports` are those that the kernel
    gives to outgoing connections, whose answers a cut port would not let in."""
    own = Access(Protocol.TCP, own_ports.start, own_ports.stop - 1)
    for access in policy.cut:
        if Access(Protocol.TCP, access.first, access.last).overlaps(own):
            yield Finding(
                "cut-among-own-ports",
                Severity.WARNING,
                f"{access} is cut, and the kernel may give its port to an outgoing connection",
                f"sysctl net.ipv4.ip_local_reserved_ports={access.first}-{access.last}",
            )


def own_ports() -> range:
    """The ports that the kernel gives to outgoing connections (ip-sysctl, ip_local_port_range)."""
    first, last = _PORT_RANGE.read_text(encoding="ascii").split()
    return range(int(first), int(last) + 1)


def check_gate(config: Config, *, is_loaded: bool) -> Iterator[Finding]:
    """Whether the gate is in force, and for good."""
    if not is_loaded:
        yield Finding(
            "gate-not-loaded",
            Severity.ERROR,
            "the gate is not loaded: every port is as open as it was before",
            "spa-server gate apply --confirm-within 60s",
        )
    elif config.gate_pending.exists() or not config.gate_wanted.exists():
        yield Finding(
            "gate-not-confirmed",
            Severity.WARNING,
            "the gate is loaded, but not confirmed: it goes when its time is over, or at a restart",
            "spa-server gate confirm",
        )
