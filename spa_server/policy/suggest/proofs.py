"""The tests of a least policy: those in force that still hold, and a use of each rule."""

from collections.abc import Iterator, Sequence

from keys.tomlfile import string
from keys.when import rfc3339
from spa_server.policy.decide import Question, decide
from spa_server.policy.model import Network, Policy, PolicyTest, Requirement
from spa_server.policy.suggest.least import LeastAllow, LeastRole
from spa_server.policy.suggest.usage import Use


def tests_of(
    old: Policy, new: Policy, roles: Sequence[LeastRole], shared: Sequence[Network]
) -> Iterator[str]:
    """Lines of TOML. `shared` are sources for which no hole is opened: no test can ask from there.

    Of the old tests only those of roles: what an identity may do hangs on roles that it is still to
    be given.
    """
    names: set[str] = set()
    for test in old.tests:
        if _still_holds(test, new, shared):
            names.add(test.name)
            yield from _written(test)
    for role in roles:
        for allow in role.allows:
            test = _as_test(role, allow, max(allow.uses, key=lambda use: use.decided_us))
            if test.name not in names and _is_allowed(new, shared, test):
                names.add(test.name)
                yield from _written(test)


def _still_holds(test: PolicyTest, policy: Policy, shared: Sequence[Network]) -> bool:
    """One without a time only where no rule about it has one: else it would be refused."""
    role = policy.roles.get(test.role or "")
    if role is None:
        return False
    rules = [allow for allow in role.about(test.access) if test.source in allow.sources]
    is_timed = any(allow.when or allow.expires_at_us is not None for allow in rules)
    if test.at_us is None and is_timed:
        return False
    return _is_allowed(policy, shared, test) is test.is_allowed


def _is_allowed(policy: Policy, shared: Sequence[Network], test: PolicyTest) -> bool:
    question = Question(
        frozenset({test.role or ""}),
        test.source,
        test.access,
        test.at_us or 0,
        declared=test.declared,
        touched=test.touched,
    )
    return decide(policy, shared, question).granted


def _as_test(role: LeastRole, allow: LeastAllow, use: Use) -> PolicyTest:
    at_us = use.decided_us // 1_000_000 * 1_000_000
    require = allow.like.require if allow.like else frozenset()
    return PolicyTest(
        path="",
        name=f"{role.name}: {use.access} from {use.source}",
        identity=None,
        role=role.name,
        access=use.access,
        source=use.source,
        at_us=at_us,
        declared=Requirement.DECLARED_SOURCE in require,
        touched=Requirement.TOUCH in require,
        is_allowed=True,
    )


def _written(test: PolicyTest) -> list[str]:
    lines = ["[[tests]]", f"name = {string(test.name)}"]
    lines.append(f"role = {string(test.role or '')}")
    lines.append(f'access = "{test.access}"')
    lines.append(f'from = "{test.source}"')
    if test.at_us is not None:
        lines.append(f"at = {rfc3339(test.at_us)}")
    lines += ["declared = true"] if test.declared else []
    lines += ["touched = true"] if test.touched else []
    return [*lines, f'expect = "{"allow" if test.is_allowed else "deny"}"', ""]
