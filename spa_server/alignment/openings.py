"""What a policy opens, by port: for finding in a moment which rules lead to one."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import TypeAlias

from spa_protocol.access import Access, Protocol
from spa_server.firewall.plan import PortRange, merged_ports
from spa_server.policy.model import Policy

Paths: TypeAlias = tuple[str, ...]


class Openings:
    """The accesses of every rule of a policy, each with the key paths of the rules that have it.

    `allowed` are those of allows, `always` those that are always open.
    """

    def __init__(self, policy: Policy) -> None:
        self.allowed = _paths((a.path, a.accesses) for a in policy.allows)
        self.always = _paths((rule.path, rule.accesses) for rule in policy.always_open)
        self._all = PortSet([*self.allowed, *self.always])

    def reach(self, access: Access) -> bool:
        """Whether any rule opens one of its ports to anybody at any time."""
        return self._all.meets(access)

    def rules_for(self, access: Access) -> Paths:
        """The rules that open any of its ports."""
        if not self.reach(access):
            return ()
        both = (self.allowed, self.always)
        found = (paths for each in both for other, paths in each.items() if other.overlaps(access))
        return tuple(dict.fromkeys(path for paths in found for path in paths))


class PortSet:
    """Ports of each protocol, to be asked whether a range has one of them."""

    def __init__(self, accesses: Iterable[Access]) -> None:
        some = tuple(accesses)
        self._ranges: dict[Protocol, tuple[PortRange, ...]] = {
            protocol: merged_ports(some, protocol) for protocol in Protocol
        }

    def meets(self, access: Access) -> bool:
        """Whether one port at least is in both."""
        ranges = self._ranges[access.protocol]
        found = bisect_right(ranges, (access.last, 65_535)) - 1
        return found >= 0 and ranges[found][1] >= access.first


def _paths(rules: Iterable[tuple[str, tuple[Access, ...]]]) -> dict[Access, Paths]:
    found: dict[Access, list[str]] = {}
    for path, accesses in rules:
        for access in accesses:
            found.setdefault(access, []).append(path)
    return {access: tuple(dict.fromkeys(paths)) for access, paths in found.items()}
