"""The survey: every fact that alignment is judged by, read once, at one time.

Needs CAP_NET_ADMIN. What takes more than that (root, to see whose sockets are whose, to load the
planned gate in a namespace of its own, to see tables of iptables-legacy) is left out where it
cannot be had, and noted in `unread`.
"""

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from keys import tomlfile
from keys.owner import as_owner
from keys.readfile import read_plain
from keys.trouble import Trouble
from spa_server import clock, marks
from spa_server.alignment import memory
from spa_server.alignment.listeners import read_listeners
from spa_server.alignment.listing import list_planned
from spa_server.alignment.memory import Memory
from spa_server.alignment.people import People
from spa_server.alignment.ports import Listening
from spa_server.alignment.processes import holders
from spa_server.alignment.ruleset import Ruleset, read_ruleset
from spa_server.alignment.standing import Daemon, PolicyTexts
from spa_server.alignment.surroundings import (
    Surroundings,
    bridges_are_judged,
    legacy_tables,
    read_links,
)
from spa_server.config import Config
from spa_server.firewall.gate import observed_in
from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.firewall.plan import Observed
from spa_server.firewall.routes import outer_interfaces
from spa_server.gatehouse import plan_as_kept, plan_observed
from spa_server.policy.model import Policy

_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_IN_FORCE: Final = "policy.good.toml"  # beside the database; see rulebook.py
_READING_FAILS: Final = (FirewallError, OSError, ValueError, sqlite3.Error, Trouble)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a survey found. None stands for what could not be read; `unread` says why, by what it
    was about. `planned` is how nft would list the gate that the policy asks for, `held_back`
    what is observed although server.toml no longer says so."""

    now_us: int
    is_loaded: bool
    people: People | None = None
    daemon: Daemon | None = None
    listed: str | None = None
    planned: str | None = None
    observed: Observed = field(default_factory=Observed)
    held_back: Observed = field(default_factory=Observed)
    policy_texts: PolicyTexts = field(default_factory=PolicyTexts)
    ruleset: Ruleset | None = None
    listening: Listening | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    outer: tuple[str, ...] | None = None
    own_ports: range = range(0)
    memory: Memory | None = None
    unread: dict[str, str] = field(default_factory=dict)


class _Reading:
    """Reads one thing after another, and notes what cannot be read."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}

    def of(self, what: str, read: Callable[[], _T]) -> _T | None:
        """What `read` returns, None where it fails."""
        try:
            return read()
        except _READING_FAILS as error:
            self.unread[what] = _reason(error)
            return None


def _reason(error: BaseException) -> str:
    if isinstance(error, Trouble):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


def survey(
    config: Config,
    policy: Policy | None,
    people: Callable[[], People],
    daemon: Callable[[], Daemon],
    *,
    planned: str | None = None,
) -> Facts:
    """Reads everything, for the caller's network namespace.

    `planned` is given by who knows it; else the gate is loaded in a namespace of its own to be
    listed. Without a policy, what the gate should be is not known, and it is observed what the
    gate in the kernel observes. Raises FirewallError where not even the gate can be looked at,
    FileProblem where the configuration names what the policy has not got.
    """
    reading = _Reading()
    asked = Observed() if policy is None else plan_observed(config, policy)
    open_still = marks.kept_open(config)
    observed = asked | open_still
    with Gate() as gate:
        is_loaded = gate.is_loaded()
        listed = reading.of("gate", gate.ruleset) if is_loaded else None
    if listed is not None and policy is None:
        observed = observed_in(listed)
    if listed is not None and planned is None and policy is not None:
        plan = partial(plan_as_kept, config, policy)
        planned = reading.of("gate", lambda: list_planned(plan()))
    kept = memory.place(config)
    outer = reading.of("routes", outer_interfaces) if config.outer is None else config.outer
    return Facts(
        now_us=clock.now_us(),
        is_loaded=is_loaded,
        people=reading.of("registry", people),
        daemon=reading.of("daemon", daemon),
        listed=listed,
        planned=planned,
        observed=observed,
        held_back=Observed() if policy is None else open_still.beyond(asked),
        policy_texts=_policy_texts(config, reading),
        ruleset=reading.of("ruleset", read_ruleset),
        listening=_listening(config, reading),
        surroundings=Surroundings(
            links=reading.of("interfaces", read_links) or (),
            bridges_are_judged=reading.of("bridges", bridges_are_judged) is not False,
            legacy=reading.of("iptables-legacy", legacy_tables) or (),
        ),
        outer=outer,
        own_ports=own_ports(),
        memory=reading.of(kept.name, lambda: memory.load(kept)),
        unread=reading.unread,
    )


def own_ports() -> range:
    """The ports that the kernel gives to outgoing connections (ip-sysctl, ip_local_port_range)."""
    first, last = _PORT_RANGE.read_text(encoding="ascii").split()
    return range(int(first), int(last) + 1)


def _listening(config: Config, reading: _Reading) -> Listening | None:
    listeners = reading.of("listeners", read_listeners)
    if listeners is None:
        return None
    inodes = {listener.inode for listener in listeners} - {0}
    processes = reading.of("programs", lambda: holders(inodes)) or {}
    if inodes - set(processes) and os.geteuid() != 0:
        reading.unread["programs"] = "only root sees other users' programs"
    return Listening(tuple(listeners), processes, own_ports(), config.knock_port)


def _kept(path: Path) -> str | None:
    with as_owner(path):
        return tomlfile.read_text(path, how=read_plain)


def _policy_texts(config: Config, reading: _Reading) -> PolicyTexts:
    in_force = config.database.parent / _IN_FORCE
    return PolicyTexts(
        on_disk=reading.of("policy.toml", lambda: tomlfile.read_text(config.policy)),
        in_force=reading.of(_IN_FORCE, lambda: _kept(in_force)),
    )
