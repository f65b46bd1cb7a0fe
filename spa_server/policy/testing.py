"""A policy's own tests, `[[tests]]`: run at every load. spa-policy(5), "Tests".

1.  A test asks for one access by a plain knock: for no lifetime in particular, with a key that does
    not expire, by somebody who has nothing open and has not knocked before.
2.  Its `role` means whoever has that role alone; its `identity` has the roles that the registry
    gives, and none where the registry knows nobody of that name.
3.  It is asked at its `at`. Only a test whose outcome no rule's time changes may go without one:
    `soundness` refuses the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias

from keys.names import roles_in_words
from keys.text import printable
from keys.tomlfile import FileProblem
from spa_protocol.reason import Code
from spa_server.policy.decide import Decision, NearMiss, Question, decide
from spa_server.policy.model import Allow, Network, Policy, PolicyTest

RolesOf: TypeAlias = Callable[[str], frozenset[str]]
"""The roles of an identity. May raise RolesUnknown."""

_MISSES_TOLD: Final = 3
_ABOUT_TIME: Final = (Code.NOT_NOW, Code.EXPIRED)


class RolesUnknown(Exception):
    """It cannot be told which roles an identity has. The message says why."""


class Result(StrEnum):
    """What came of a test."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Tested:
    """A test, what came of it, and why, in a sentence without a full stop.

    `decision` is None where none could be made.
    """

    test: PolicyTest
    result: Result
    sentence: str
    decision: Decision | None = None


def run_tests(
    policy: Policy, path: Path, shared: Sequence[Network], roles_of: RolesOf | None
) -> list[Tested]:
    """Every test of a policy, in the order of the file.

    `path` is the policy's, for the sentences. Without `roles_of`, tests of identities are skipped.
    """
    bench = _Bench(policy, path, shared)
    return [bench.run(test, roles_of) for test in policy.tests]


def check(policy: Policy, path: Path, shared: Sequence[Network], roles_of: RolesOf) -> None:
    """Raises FileProblem for the first of its own tests that a policy fails."""
    tested = run_tests(policy, path, shared, roles_of)
    failed = [one for one in tested if one.result is Result.FAILED]
    if not failed:
        return
    first = failed[0].test
    name = "the test" if first.name == first.path else f'"{printable(first.name)}"'
    line = f" in line {first.line}" if first.line else ""
    more = f"; {len(failed) - 1} more failed" if failed[1:] else ""
    problem = f"{name}{line} failed: {failed[0].sentence}{more}"
    raise FileProblem(path, first.path, problem, "see: spa-server policy test")


class _Bench:
    """One policy, put to the test."""

    def __init__(self, policy: Policy, path: Path, shared: Sequence[Network]) -> None:
        self._policy = policy
        self._file = Path(path.name)
        self._shared = shared

    def run(self, test: PolicyTest, roles_of: RolesOf | None) -> Tested:
        try:
            roles = _roles(test, roles_of)
        except RolesUnknown as unknown:
            why = f"the roles of {test.identity} cannot be read: {unknown}"
            return Tested(test, Result.FAILED, why)
        if roles is None:
            return Tested(test, Result.SKIPPED, "the registry is not asked")
        question = Question(
            roles,
            test.source,
            test.access,
            test.at_us or 0,
            declared=test.declared,
            touched=test.touched,
            holes=test.access.size,
            knocks=1,
        )
        decision = decide(self._policy, self._shared, question)
        came = self._came(decision, test, roles)
        if decision.granted is test.is_allowed:
            return Tested(test, Result.PASSED, came, decision)
        expected = "allow" if test.is_allowed else "deny"
        return Tested(test, Result.FAILED, f"expected {expected}, but {came}", decision)

    def _came(self, decision: Decision, test: PolicyTest, roles: frozenset[str]) -> str:
        if decision.rule is None:
            return f"denied: {self._denied(decision, test, roles)}"
        once = ", for one connection" if decision.once else ""
        return f"allowed by {self._place(decision.rule)} for {decision.lifetime_s} s{once}"

    def _denied(self, decision: Decision, test: PolicyTest, roles: frozenset[str]) -> str:
        misses = [
            f"{self._place(miss.rule)}: {_condition(miss, test)}"
            for miss in decision.near[:_MISSES_TOLD]
        ]
        if len(decision.near) > _MISSES_TOLD:
            misses.append(f"and {len(decision.near) - _MISSES_TOLD} more rules")
        if misses or test.identity is None:
            return "; ".join(misses) or decision.short
        return f"{decision.short}; {test.identity} has {roles_in_words(roles, 'no role')}"

    def _place(self, rule: Allow) -> str:
        return f"{rule.path} ({self._file}:{rule.line})" if rule.line else rule.path


def _roles(test: PolicyTest, roles_of: RolesOf | None) -> frozenset[str] | None:
    """Rule 2; None where it is not to be asked."""
    if test.role is not None:
        return frozenset({test.role})
    if roles_of is None or test.identity is None:
        return None
    return roles_of(test.identity)


def _condition(miss: NearMiss, test: PolicyTest) -> str:
    """What failed; without an `at` the time is not what it hangs on."""
    told = [
        failed.condition
        for failed in miss.failed
        if test.at_us is not None or failed.code not in _ABOUT_TIME
    ]
    return ", and ".join(told) or miss.condition
