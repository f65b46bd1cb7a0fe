"""Which rule of a policy a use came by.

The record names the rule by its place in the file as it was then. Where the rule that stands there
now would not allow the use, the policy has been changed since, and the rule is looked for by what
it allows. What a knock had to bring is not in the record: it is taken to have been brought.
"""

from collections.abc import Mapping

from spa_server.policy.decide import Question, decide
from spa_server.policy.model import Allow, Policy
from spa_server.policy.suggest.usage import Use


class Attribution:
    """Of uses to the rules of one policy. `identities` are those of the registry, with roles."""

    def __init__(self, policy: Policy, identities: Mapping[str, frozenset[str]]) -> None:
        self._policy = policy
        self._identities = identities
        self._by_path = {allow.path: allow for allow in policy.allows}

    def rule_of(self, use: Use) -> Allow | None:
        """The rule that the use came by; None where the policy would not allow it."""
        recorded = self._by_path.get(use.rule)
        if recorded is not None and fits(recorded, use):
            return recorded
        return decide(self._policy, (), question_of(use, self._roles(use))).rule

    def rules_of(self, use: Use) -> list[Allow]:
        """That rule, or where it is not certain every rule that it can have been."""
        recorded = self._by_path.get(use.rule)
        if recorded is not None and fits(recorded, use):
            return [recorded]
        roles = (self._policy.roles.get(name) for name in sorted(self._roles(use)))
        about = (allow for role in roles if role for allow in role.about(use.access))
        return [allow for allow in about if fits(allow, use)]

    def _roles(self, use: Use) -> frozenset[str]:
        return self._identities.get(use.identity, frozenset()) | {role_named(use.rule)}


def fits(allow: Allow, use: Use) -> bool:
    """Whether the rule allows the use, at the time of its latest knock."""
    return (
        allow.covers(use.access)
        and use.source in allow.sources
        and (allow.expires_at_us is None or use.decided_us < allow.expires_at_us)
        and (allow.when is None or allow.when.is_open(use.decided_us))
    )


def question_of(use: Use, roles: frozenset[str]) -> Question:
    """The use as it was asked for, by somebody with these roles."""
    return Question(roles, use.source, use.access, use.decided_us, declared=True, touched=True)


def role_named(rule: str) -> str:
    """The role in the key path of a rule, `roles.dba.allow[0]`; empty where there is none."""
    role, _, _ = rule.removeprefix("roles.").rpartition(".allow[")
    return role
