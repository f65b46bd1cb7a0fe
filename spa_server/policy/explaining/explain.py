"""One decision with all that led to it: the facts. `words` tells them.

Nothing is decided here: each fact is a decision of `decide`, about the policy, about one rule of it
alone, or as if somebody had another role.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from operator import itemgetter
from typing import Final

import msgspec

from spa_protocol.reply import clip
from spa_server.policy.decide import Decision, Question, decide, message_of
from spa_server.policy.model import Allow, AlwaysOpenRule, Limits, Network, Policy, Role

_SECOND_US: Final = 1_000_000


class Bound(StrEnum):
    """What a lifetime is as long as."""

    ASKED = "asked"
    LIFETIME = "lifetime"
    MAX_LIFETIME = "max_lifetime"
    KEY = "key"
    EXPIRES = "expires"
    WHEN = "when"


@dataclass(frozen=True, slots=True)
class Review:
    """Something that should have been reviewed by a day that is past: its key path and line."""

    path: str
    line: int
    due: date


@dataclass(frozen=True, slots=True)
class Explanation:
    """A question, its decision, and:

    `has_key`      whether a key is there to knock with; without one nothing is heard
    `observed`     whether the gate lets it in all the same, and only records it
    `because`      what the lifetime is as long as; None where nothing is granted
    `others`       the other rules that would have granted it, with what each gives
    `partly`       where no rule is about all of it, those about some of the ports
    `elsewhere`    where it is refused, the roles not had that are about it, and what each decides
    `always_open`  the rule by which no knock is needed
    `shared`       the network behind which many stand that the source is in
    `overdue`      reviews of the rules above and of their roles
    `unknown`      roles that the policy does not define
    """

    question: Question
    decision: Decision
    has_key: bool
    observed: bool
    because: Bound | None
    others: tuple[Decision, ...]
    partly: tuple[Allow, ...]
    elsewhere: tuple[tuple[Role, Decision], ...]
    always_open: AlwaysOpenRule | None
    shared: Network | None
    overdue: tuple[Review, ...]
    limits: Limits
    unknown: tuple[str, ...]

    @property
    def granted(self) -> bool:
        """Whether a knock would open a hole."""
        return self.has_key and self.decision.granted

    @property
    def gets_in(self) -> bool:
        """Whether a connection would be let in, be it without a knock."""
        return self.granted or self.observed or self.always_open is not None

    @property
    def reply(self) -> str:
        """What the reply to the knock says, as it is sent; empty where it says nothing, or where
        there is none."""
        message = message_of([(self.question.access, self.decision)])
        return clip(message) if self.has_key else ""

    @property
    def until_us(self) -> int | None:
        """When the hole would close, in microseconds since the Unix epoch."""
        if not self.granted:
            return None
        return self.question.at_us + self.decision.lifetime_s * _SECOND_US


def explain(
    policy: Policy,
    shared: Sequence[Network],
    question: Question,
    *,
    has_key: bool = True,
    observed: bool = False,
) -> Explanation:
    """What `decide` says, and why."""
    decision = decide(policy, shared, question)
    held = [policy.roles[name] for name in sorted(question.roles) if name in policy.roles]
    rules = [miss.rule for miss in decision.near] or ([decision.rule] if decision.rule else [])
    return Explanation(
        question,
        decision,
        has_key,
        observed,
        because=_because(decision, question),
        others=tuple(_others(held, decision, question)),
        partly=() if rules else tuple(_partly(held, question)),
        elsewhere=() if decision.granted else tuple(_elsewhere(policy, shared, question)),
        always_open=_always_open(policy, question),
        shared=next((network for network in shared if question.source in network), None),
        overdue=tuple(_overdue(policy, rules, question)),
        limits=policy.limits_of(question.roles),
        unknown=tuple(sorted(question.roles - set(policy.roles))),
    )


def _because(decision: Decision, question: Question) -> Bound | None:
    """Rule 4 of `decide`, taken apart. Of equal ends the one that was wanted counts."""
    if decision.rule is None:
        return None
    return min(_bounds(decision.rule, question), key=itemgetter(1))[0]


def _bounds(rule: Allow, question: Question) -> Iterable[tuple[Bound, float]]:
    """Everything that a lifetime may be as long as, in seconds."""
    if question.lifetime_s:
        yield Bound.ASKED, question.lifetime_s
        yield Bound.MAX_LIFETIME, rule.max_lifetime_s
    else:
        yield Bound.LIFETIME, rule.lifetime_s
    if question.key_lives_s is not None:
        yield Bound.KEY, int(question.key_lives_s)
    if rule.expires_at_us is not None:
        yield Bound.EXPIRES, (rule.expires_at_us - question.at_us) // _SECOND_US
    closes_us = rule.when.changes_at_us(question.at_us) if rule.when else None
    if closes_us is not None:
        yield Bound.WHEN, (closes_us - question.at_us) // _SECOND_US


def _others(held: Iterable[Role], best: Decision, question: Question) -> Iterable[Decision]:
    """What each other fitting rule gives: the decision of a policy in which it stands alone."""
    if best.rule is None:
        return
    for role in held:
        for rule in role.about(question.access):
            alone = Policy(roles={role.name: Role(role.name, "", (rule,))})
            decision = decide(alone, (), question)
            if decision.granted and rule.path != best.rule.path:
                yield decision


def _partly(held: Iterable[Role], question: Question) -> Iterable[Allow]:
    for role in held:
        for rule in role.allows:
            if any(access.overlaps(question.access) for access in rule.accesses):
                yield rule


def _elsewhere(
    policy: Policy, shared: Sequence[Network], question: Question
) -> Iterable[tuple[Role, Decision]]:
    for name in sorted(set(policy.roles) - question.roles):
        if policy.roles[name].about(question.access):
            asked = msgspec.structs.replace(question, roles=frozenset({name}))
            yield policy.roles[name], decide(policy, shared, asked)


def _always_open(policy: Policy, question: Question) -> AlwaysOpenRule | None:
    for rule in policy.always_open:
        covers = any(question.access in access for access in rule.accesses)
        if covers and question.source in rule.sources:
            return rule
    return None


def _overdue(policy: Policy, rules: Iterable[Allow], question: Question) -> Iterable[Review]:
    told = {path for rule in rules for path in (rule.path, _role_path(rule))}
    today = datetime.fromtimestamp(question.at_us / _SECOND_US, UTC).date()
    for path, line, due in policy.reviews_due(today):
        if path in told:
            yield Review(path, line, due)


def _role_path(rule: Allow) -> str:
    """The key path of a rule's role: all but its own last part."""
    return rule.path.rpartition(".allow[")[0]
