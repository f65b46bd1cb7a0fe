"""Drift: where policy, registry, gate and host no longer fit together, found by one survey.

found = find_drift(config, policy)                 # in a thread: it blocks for some 100 ms
for finding in changes(before, found).new: ...     # finding.py
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from keys.registry import Registry
from keys.trouble import Trouble
from spa_server import clock
from spa_server.alignment import memory
from spa_server.alignment.bypass import check_bypass
from spa_server.alignment.finding import Finding, in_order
from spa_server.alignment.matches import always_open_packets
from spa_server.alignment.memory import Memory
from spa_server.alignment.openings import Openings
from spa_server.alignment.people import (
    People,
    check_expiry,
    check_people,
    check_reviews,
    check_roles,
    check_room,
    check_schedules,
    people_in,
)
from spa_server.alignment.ports import (
    check_owners,
    check_rules,
    check_unreachable,
    check_unused,
    owners_now,
)
from spa_server.alignment.published import check_published, published_in
from spa_server.alignment.standing import (
    Daemon,
    check_cut,
    check_daemon,
    check_doubts,
    check_files,
    check_gate,
    check_held_back,
    check_key,
    check_listing,
    check_observed,
    config_is_current,
)
from spa_server.alignment.surroundings import check_surroundings
from spa_server.alignment.survey import Facts, survey
from spa_server.config import Config
from spa_server.policy.model import Policy

_ABOUT: Final = {
    "gate": "whether the gate is as planned",
    "registry": "who is enrolled",
    "daemon": "whether the daemon runs",
    "ruleset": "what other firewalls do",
    "listeners": "who listens",
    "programs": "which programs listen",
    "interfaces": "XDP and tc at the interfaces",
}


def find_drift(
    config: Config,
    policy: Policy,
    *,
    planned: str | None = None,
) -> list[Finding]:
    """What a running daemon finds, with CAP_NET_ADMIN alone, and remembers for the next time.

    `config` and `policy` are those in force, `planned` what nft listed right after they were
    applied. Blocks; changes nothing that another thread may be using. Broken keys are left to
    `spa-server check`. Raises what `survey` does.
    """

    def people() -> People:
        registry = Registry(config.database, read_only=True)
        try:
            return people_in(registry, clock.now_us(), broken_too=False)
        finally:
            registry.close()

    def daemon() -> Daemon:
        return Daemon(is_running=True, config_is_current=config_is_current(config))

    facts = survey(config, policy, people, daemon, planned=planned)
    findings = judge(config, policy, facts)
    remember(config, policy, facts)
    return findings


def judge(config: Config, policy: Policy | None, facts: Facts) -> list[Finding]:
    """Everything that these facts show, in order. Reads nothing but a few marks and the key.

    Without a policy, what hangs on none.
    """
    found = [
        *_about_the_gate(config, policy, facts),
        *check_key(config),
        *_about_the_policy(config, policy, facts),
        *_about_the_host(policy, facts),
        *_unread(facts),
    ]
    first = {finding.key: finding for finding in reversed(found)}
    return in_order(first.values())


def _about_the_gate(config: Config, policy: Policy | None, facts: Facts) -> Iterator[Finding]:
    yield from check_gate(config, is_loaded=facts.is_loaded)
    if facts.listed is not None and facts.planned is not None:
        yield from check_listing(facts.listed, facts.planned)
    if facts.daemon is not None:
        yield from check_daemon(facts.daemon, is_loaded=facts.is_loaded)
        yield from check_doubts(facts.daemon)
        yield from check_files(facts.daemon, facts.policy_texts)
    yield from check_observed(facts.observed)
    yield from check_held_back(config, facts.held_back)
    if policy is not None:
        yield from check_cut(policy, facts.own_ports)


def _about_the_policy(config: Config, policy: Policy | None, facts: Facts) -> Iterator[Finding]:
    if facts.people is not None:
        yield from check_people(policy, facts.people)
        yield from check_room(facts.people, config.max_keys)
    if policy is None:
        return
    if facts.people is not None:
        yield from check_roles(policy, facts.people)
    yield from check_reviews(policy, facts.now_us)
    yield from check_expiry(policy, facts.now_us)
    yield from check_schedules(policy, facts.now_us)


def _about_the_host(policy: Policy | None, facts: Facts) -> Iterator[Finding]:
    yield from check_surroundings(facts.surroundings, facts.outer)
    if facts.ruleset is not None:
        yield from check_bypass(facts.ruleset)
    if policy is not None:
        yield from _about_what_listens(Openings(policy), facts)


def _about_what_listens(openings: Openings, facts: Facts) -> Iterator[Finding]:
    published = []
    if facts.ruleset is not None:
        published = published_in(facts.ruleset)
        yield from check_published(published, openings)
    if facts.listening is None:
        return
    yield from check_unreachable(facts.listening, openings, facts.observed)
    if facts.ruleset is not None:
        yield from check_rules(openings, facts.listening, [one.access for one in published])
    if facts.memory is not None:
        owners = owners_now(facts.listening, openings)
        yield from check_owners(memory.compare(facts.memory.owners, owners))
        yield from check_unused(_unused(facts), facts.now_us)


def _unused(facts: Facts) -> dict[str, int]:
    """Since when no packet came to a port that is always open, for those that count packets."""
    known = {} if facts.memory is None else facts.memory.unused_since_us
    packets = {} if facts.ruleset is None else always_open_packets(facts.ruleset)
    return memory.still_unused(known, packets, facts.now_us)


def _unread(facts: Facts) -> Iterator[Finding]:
    for what, why in facts.unread.items():
        yield Finding(
            "not-checked",
            what,
            f"{_ABOUT.get(what, what)} was not looked at: {why}",
            "run as root: spa-server check",
        )


def remember(
    config: Config, policy: Policy | None, facts: Facts, accepted: Iterable[str] = ()
) -> None:
    """Keeps for the next run what this one saw, where it may and where that is anything new.

    `accepted` are the accesses whose present owners are right.
    """
    if policy is None or facts.memory is None or facts.listening is None:
        return
    owners = owners_now(facts.listening, Openings(policy))
    kept = Memory(memory.learn(facts.memory.owners, owners, accepted), _unused(facts))
    if kept != facts.memory:
        with suppress(OSError, Trouble):
            memory.save(memory.place(config), kept)
