"""Whether a policy makes sense as a whole: each check tells what misleads whoever reads it.

A rule that never decides anything, a name that looks like another one, a test whose outcome hangs
on the hour: each alone is well-formed, and none is what somebody meant.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from keys.tomlfile import FileProblem
from spa_protocol.access import Access
from spa_server.policy.model import (
    Allow,
    AlwaysOpenRule,
    Network,
    Policy,
    PolicyTest,
    Requirement,
    Sessions,
    Sources,
)

_Finding: TypeAlias = tuple[str, str]


def check_sound(policy: Policy, path: Path) -> None:
    """Raises FileProblem for the first thing that cannot be meant. `path` is for the message."""
    for check in (
        _same_names,
        _empty_roles,
        _needless_entries,
        _cut_and_kept,
        _open_and_cut,
        _unreachable,
        _never_needed,
        _tests_by_the_clock,
    ):
        for where, problem in check(policy):
            raise FileProblem(path, where, problem)


def _same_names(policy: Policy) -> Iterator[_Finding]:
    """Two names that differ in upper and lower case alone are taken for one by a reader."""
    for kind, names in (("services", policy.services), ("roles", policy.roles)):
        seen: dict[str, str] = {}
        for name in names:
            earlier = seen.setdefault(name.lower(), name)
            if earlier != name:
                problem = f"too like {kind}.{earlier}; give it another name"
                yield f"{kind}.{name}", problem
    tests: dict[str, PolicyTest] = {}
    for test in policy.tests:
        first = tests.setdefault(test.name, test)
        if first is not test:
            yield f"{test.path}.name", f"{first.path} has it too; give it another name"


def _empty_roles(policy: Policy) -> Iterator[_Finding]:
    """What a role says of allows that it has not: the header of either has another name in it."""
    for role in policy.roles.values():
        said = {"expires": role.expires_at_us, "review_by": role.review_by, "limits": role.limits}
        for key, value in said.items():
            if value and not role.allows:
                problem = "means nothing without an allow; is the role spelt the same there?"
                yield f"roles.{role.name}.{key}", problem


def _needless_entries(policy: Policy) -> Iterator[_Finding]:
    rules: tuple[Allow | AlwaysOpenRule, ...] = (*policy.allows, *policy.always_open)
    for rule in rules:
        for twice in _repeated(rule.services):
            yield f"{rule.path}.services", f"{twice!r} is named twice"
        for inner, outer in _nested(rule.sources.networks):
            which = "is named twice" if inner == outer else f"is in {outer} already; take it out"
            yield f"{rule.path}.from", f"{inner} {which}"


def _repeated(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def _nested(networks: Iterable[Network]) -> Iterator[tuple[Network, Network]]:
    """Networks within another one: in order of their addresses one such stands right after it."""
    ordered = sorted(networks, key=lambda n: (n.version, int(n.network_address), n.prefixlen))
    for outer, inner in pairwise(ordered):
        if inner.network_address in outer:
            yield inner, outer


def _cut_and_kept(policy: Policy) -> Iterator[_Finding]:
    """One port cannot be cut for some and kept for others: the kernel cuts by port."""
    kept: dict[Access, Allow] = {}
    cut: dict[Access, Allow] = {}
    for allow in policy.allows:
        for access in allow.accesses:
            (cut if allow.sessions is Sessions.CUT else kept).setdefault(access, allow)
    for access, cutting in cut.items():
        for other, keeping in kept.items():
            if access.overlaps(other):
                problem = f"cuts the sessions of {access}, which {keeping.path} keeps"
                yield f"{cutting.path}.sessions", f"{problem}; say the same in both"


def _open_and_cut(policy: Policy) -> Iterator[_Finding]:
    for rule in policy.always_open:
        for access in rule.accesses:
            if any(access.overlaps(cut) for cut in policy.cut):
                problem = f"{access} cannot be always open: its sessions end with their hole"
                yield rule.path, problem


def _unreachable(policy: Policy) -> Iterator[_Finding]:
    """An allow of which another one of its role gives all. Of two that are the same, the later."""
    for role in policy.roles.values():
        by_network: dict[Network | None, list[int]] = {}
        for index, allow in enumerate(role.allows):
            for network in allow.sources.networks or (None,):
                by_network.setdefault(network, []).append(index)
        for index, allow in enumerate(role.allows):
            for other_index in _wider(allow.sources, by_network):
                other = role.allows[other_index]
                if other is allow or not _gives_all(other, allow):
                    continue
                if other_index < index or not _gives_all(allow, other):
                    problem = f"unreachable: {other.path} gives all of it already; take it out"
                    yield allow.path, problem


def _wider(sources: Sources, by_network: Mapping[Network | None, list[int]]) -> Iterator[int]:
    """The only rules that can contain these sources: those for anywhere, and those that have the
    first of the networks or one around it. There may be thousands of others."""
    yield from by_network.get(None, ())
    around: Network | None = sources.networks[0] if sources.networks else None
    while around is not None:
        yield from by_network.get(around, ())
        around = around.supernet() if around.prefixlen else None


def _gives_all(other: Allow, allow: Allow) -> bool:
    """Whether `other` gives all that `allow` gives, as long and under no more conditions."""
    return (
        all(other.covers(access) for access in allow.accesses)
        and _contains(other.sources, allow.sources)
        and other.when in (None, allow.when)
        and other.require <= allow.require
        and _ends_no_sooner(other.expires_at_us, allow.expires_at_us)
        and other.sessions is allow.sessions
        and not (other.once and not allow.once)
        and other.lifetime_s >= allow.lifetime_s
        and other.max_lifetime_s >= allow.max_lifetime_s
    )


def _ends_no_sooner(one_us: int | None, other_us: int | None) -> bool:
    return one_us is None or (other_us is not None and one_us >= other_us)


def _contains(outer: Sources, inner: Sources) -> bool:
    """Whether every network of the one lies in one of the other's."""
    if not outer.networks:
        return True
    return bool(inner.networks) and all(
        any(
            network.network_address in wider and network.prefixlen >= wider.prefixlen
            for wider in outer.networks
        )
        for network in inner.networks
    )


def _never_needed(policy: Policy) -> Iterator[_Finding]:
    """A rule all of whose ports stand open to its sources anyway."""
    for index, rule in enumerate(policy.always_open):
        others = policy.always_open[:index] + policy.always_open[index + 1 :]
        if _stands_open(rule, others):
            yield rule.path, "unreachable: its ports are always open without it; take it out"
    for allow in policy.allows:
        if _stands_open(allow, policy.always_open):
            problem = "has no port left: always_open opens all of them to its sources; take it out"
            yield allow.path, problem


def _stands_open(rule: Allow | AlwaysOpenRule, always_open: Iterable[AlwaysOpenRule]) -> bool:
    opened = [other for other in always_open if _contains(other.sources, rule.sources)]
    return bool(opened) and all(
        any(access in stands_open for other in opened for stands_open in other.accesses)
        for access in rule.accesses
    )


def _tests_by_the_clock(policy: Policy) -> Iterator[_Finding]:
    for test in policy.tests:
        timed = _decided_by_time(policy, test) if test.at_us is None else None
        if timed is not None:
            problem = f"needed, since {timed.path} has a time"
            yield f"{test.path}.at", f"{problem}; write it like 2026-11-24T09:00:00+01:00"


def _decided_by_time(policy: Policy, test: PolicyTest) -> Allow | None:
    """An allow that lets the test's access in at some times, where none does at all times.

    What roles an identity has is not known here: it may have any, and none.
    """
    roles = policy.roles.values() if test.role is None else (policy.roles[test.role],)
    timed: Allow | None = None
    for allow in (allow for role in roles for allow in role.about(test.access)):
        if test.source not in allow.sources or not allow.require <= _brought(test):
            continue
        if allow.when is not None or allow.expires_at_us is not None:
            timed = timed or allow
        elif test.role is not None:
            return None
    return timed


def _brought(test: PolicyTest) -> set[Requirement]:
    brings = {Requirement.DECLARED_SOURCE: test.declared, Requirement.TOUCH: test.touched}
    return {requirement for requirement, is_there in brings.items() if is_there}
