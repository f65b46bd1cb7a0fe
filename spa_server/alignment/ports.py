"""Findings about ports: who listens where, which rule leads there, and whether anybody comes."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from keys.when import rfc3339
from spa_protocol.access import Access, Protocol
from spa_server.alignment.finding import Finding
from spa_server.alignment.listeners import Listener
from spa_server.alignment.memory import Owner, OwnerChange, Owners
from spa_server.alignment.openings import Openings, PortSet
from spa_server.alignment.processes import Process
from spa_server.firewall.plan import Observed, merged_ports

KERNEL: Final = "the kernel"
_UNUSED_AFTER_US: Final = 7 * 86_400_000_000
# The gate lets the answers of DHCP servers in by itself.
_DHCP_CLIENTS: Final = frozenset({68, 546})


@dataclass(frozen=True)
class Listening:
    """Who listens, and by which process (by inode; those that could be seen).

    `own_ports` are those that the kernel gives to outgoing connections, `knock_port` is where the
    daemon answers from.
    """

    listeners: tuple[Listener, ...] = ()
    processes: Mapping[int, Process] = field(default_factory=dict)
    own_ports: range = range(0)
    knock_port: int = 0

    def is_own(self, listener: Listener) -> bool:
        """Whether the port serves this host's own questions, and no rule is to lead there."""
        port = listener.port
        return listener.protocol is Protocol.UDP and (
            port == self.knock_port or port in _DHCP_CLIENTS or port in self.own_ports
        )

    def named(self, listener: Listener) -> str:
        """The process for a person, and its user."""
        process = self.processes.get(listener.inode)
        if process is not None:
            return f"{process.name} (pid {process.pid}, user {listener.uid})"
        who = KERNEL if listener.inode == 0 else "a program"
        return f"{who} (user {listener.uid})"

    def owner(self, listener: Listener) -> Owner:
        """The same to be compared with."""
        process = self.processes.get(listener.inode)
        if process is not None:
            return Owner(listener.uid, process.program)
        return Owner(listener.uid, KERNEL if listener.inode == 0 else None)


def owners_now(listening: Listening, openings: Openings) -> Owners:
    """Whose the ports of the policy are."""
    found: dict[str, set[Owner]] = {}
    for listener in listening.listeners:
        if openings.reach(listener.access):
            found.setdefault(str(listener.access), set()).add(listening.owner(listener))
    return {access: frozenset(owners) for access, owners in found.items()}


def check_unreachable(
    listening: Listening, openings: Openings, observed: Observed
) -> Iterator[Finding]:
    """Ports that are listened on and that no rule opens to anybody."""
    closed: dict[tuple[Protocol, str], list[Access]] = {}
    for listener in listening.listeners:
        if not listening.is_own(listener) and not openings.reach(listener.access):
            key = listener.protocol, listening.named(listener)
            closed.setdefault(key, []).append(listener.access)
    for (protocol, who), accesses in closed.items():
        for first, last in merged_ports(accesses, protocol):
            access = Access(protocol, first, last)
            state = "observed only" if access in observed else "closed"
            yield Finding(
                "listening-unreachable",
                str(access),
                f"{who} listens on {access}, and no rule leads there: it is {state}",
                "nothing, if only this host needs it; else give a role an allow for it",
            )


def check_rules(
    openings: Openings, listening: Listening, elsewhere: Iterable[Access]
) -> Iterator[Finding]:
    """Rules that lead to ports on which nobody listens; `elsewhere` lead into containers."""
    served = PortSet([*(listener.access for listener in listening.listeners), *elsewhere])
    for access, paths in openings.allowed.items():
        if not served.meets(access):
            yield Finding(
                "rule-without-listener",
                str(access),
                f"nobody listens on {access}, which {_some(paths)} {_verb(paths, 'allow')}",
                "start the service, or take it out of the rule",
            )
    for access, paths in openings.always.items():
        if not served.meets(access):
            yield Finding(
                "always-open-unused",
                str(access),
                f"nobody listens on {access}, which {_some(paths)} {_verb(paths, 'leave')} open",
                "start the service, or take it out of always_open",
            )


def check_unused(unused_since_us: Mapping[str, int], now_us: int) -> Iterator[Finding]:
    """Ports that are always open and that no packet has come to for a week."""
    for ports, since_us in unused_since_us.items():
        if now_us - since_us >= _UNUSED_AFTER_US:
            yield Finding(
                "always-open-unused",
                ports,
                f"{ports} is always open, and nobody came since {rfc3339(since_us)[:10]}",
                "take it out of always_open, if nobody needs it",
            )


def check_owners(changes: Iterable[OwnerChange]) -> Iterator[Finding]:
    """Ports of the policy that somebody else listens on than before."""
    for change in changes:
        new, before = _all(change.new), _all(change.before)
        yield Finding(
            "listener-changed",
            change.access,
            f"{new} listens on {change.access}; before, it was {before}",
            f"if that is right: spa-server check --accept {change.access}",
        )


def _all(owners: Collection[Owner]) -> str:
    return ", ".join(sorted(map(str, owners)))


def _some(paths: tuple[str, ...]) -> str:
    """So many as fit on a line, and how many more."""
    more = len(paths) - 2
    return ", ".join(paths[:2]) + (f" and {more} more" if more > 0 else "")


def _verb(paths: tuple[str, ...], verb: str) -> str:
    return verb if len(paths) > 1 else f"{verb}s"
