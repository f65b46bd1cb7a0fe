"""An explanation told to a person, in sentences."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from keys.when import rfc3339
from spa_protocol.reason import Code
from spa_server.policy.decide import Decision
from spa_server.policy.difference.words import conditions, lasting
from spa_server.policy.explaining.explain import Bound, Explanation
from spa_server.policy.model import Allow, AlwaysOpenRule, Limits, Sessions

_ROLES_TOLD: Final = 8
_SECOND_US: Final = 1_000_000


def tell(explained: Explanation, who: str, path: Path) -> list[str]:
    """The decision in one sentence, then what there is to say about it, a sentence each.

    No sentence has a full stop. `path` is the policy's file.
    """
    return list(_Telling(explained, who, path).lines())


class _Telling:
    def __init__(self, explained: Explanation, who: str, path: Path) -> None:
        self._told = explained
        self._who = who
        self._path = path

    def lines(self) -> Iterable[str]:
        yield self._headline()
        if self._told.always_open and not self._told.granted:
            yield f"a knock would be refused: {self._outcome()}"
        rule = self._told.decision.rule
        yield from self._why_granted(rule) if rule else self._why_refused()
        yield from self._about_the_source()
        yield from self._about_the_rules()

    def _headline(self) -> str:
        question = self._told.question
        roles = ", ".join(sorted(question.roles))
        who = f"{self._who} ({f'roles: {roles}' if roles else 'has no role'})"
        may = "may" if self._told.granted else "may not"
        at = rfc3339(question.at_us // _SECOND_US * _SECOND_US)
        what = f"reach {question.access} from {question.source} at {at}"
        rule = self._told.always_open
        if rule and not self._told.granted:
            return f"{who} needs no knock to {what}: {self._open(rule)}"
        return f"{who} {may} {what}: {self._outcome()}"

    def _outcome(self) -> str:
        decision = self._told.decision
        if not self._told.has_key:
            return "none of its keys is active, so no knock is heard"
        if decision.rule is None:
            return self._told.decision.why or decision.code.sentence
        once = ", for one connection" if decision.once else ""
        return f"allowed by {self._at(decision.rule)} for {lasting(decision.lifetime_s)}{once}"

    def _open(self, rule: AlwaysOpenRule) -> str:
        return f"{self._where(rule.path, rule.line)} is always open to {rule.sources}"

    def _at(self, rule: Allow) -> str:
        return self._where(rule.path, rule.line)

    def _where(self, key_path: str, line: int) -> str:
        return f"{key_path} ({self._path}:{line})" if line else f"{key_path} ({self._path})"

    def _why_granted(self, rule: Allow) -> Iterable[str]:
        if not self._told.has_key:
            yield f"with a key: allowed by {self._at(rule)}"
        yield f"the rule: {', '.join(rule.services)} {', '.join(conditions(rule))}"
        yield f"why {lasting(self._told.decision.lifetime_s)}: {self._bound(rule)}"
        yield from self._end(rule)
        yield from self._reply()
        for other in self._told.others:
            if other.rule is not None:
                yield f"{self._at(other.rule)} would allow it too, {self._lesser(other)}"

    def _bound(self, rule: Allow) -> str:
        question = self._told.question
        most = f"at most {lasting(rule.max_lifetime_s)}"
        match self._told.because:
            case Bound.ASKED:
                return f"that is what is asked for ({most})"
            case Bound.LIFETIME:
                return f"that is what the rule gives to who asks for none ({most})"
            case Bound.MAX_LIFETIME:
                asked = lasting(question.lifetime_s)
                return f"that is the most that the rule gives; {asked} is asked for"
            case Bound.KEY:
                ends_us = question.at_us + round((question.key_lives_s or 0) * _SECOND_US)
                return f"the key expires at {rfc3339(ends_us)}"
            case Bound.EXPIRES:
                return f"the rule expires at {rfc3339(rule.expires_at_us or 0)}"
        closes_us = rule.when.changes_at_us(question.at_us) if rule.when else None
        ends = rule.when.told(closes_us) if rule.when and closes_us else ""
        return f"the rule's time ends {ends}"

    def _end(self, rule: Allow) -> Iterable[str]:
        until_us = self._told.until_us
        if until_us is None:
            return
        until = rfc3339(until_us // _SECOND_US * _SECOND_US)
        if rule.sessions is Sessions.CUT:
            yield f"at {until} the hole closes, and the sessions that came through it are cut"
        elif self._told.decision.once:
            yield f"the hole closes behind the first connection, at the latest at {until}"
        else:
            yield f"at {until} the hole closes; sessions that came through it live on"

    def _lesser(self, other: Decision) -> str:
        chosen = self._told.decision
        if other.rule and chosen.rule and other.rule.once and not chosen.rule.once:
            return "but for one connection only"
        if other.lifetime_s < chosen.lifetime_s:
            return f"but for {lasting(other.lifetime_s)} only"
        return "for as long; of equals the first counts"

    def _why_refused(self) -> Iterable[str]:
        for miss in self._told.decision.near:
            yield f"{self._at(miss.rule)}: {miss.condition}"
        question = self._told.question
        for rule in self._told.partly:
            accesses = ", ".join(map(str, rule.accesses))
            yield f"{self._at(rule)} is about {accesses}, which is not all of {question.access}"
        yield from self._reply()
        if self._told.decision.near or self._told.decision.code is Code.NO_ROLE:
            yield from self._who_may()

    def _reply(self) -> Iterable[str]:
        if self._told.reply:
            yield f'the client is told: "{self._told.reply}"'

    def _who_may(self) -> Iterable[str]:
        """What an operator could grant."""
        elsewhere = self._told.elsewhere
        if not (elsewhere or self._told.decision.near):
            yield f"no rule of any role covers {self._told.question.access}"
        allowing = [(role, decision) for role, decision in elsewhere if decision.rule]
        for role, decision in allowing[:_ROLES_TOLD]:
            if decision.rule:
                yield (
                    f"the role {role.name} would allow it, by {self._at(decision.rule)}: "
                    f"spa-keys grant {self._who} {role.name}"
                )
        refusing = [(role, decision) for role, decision in elsewhere if not decision.rule]
        for role, decision in refusing[:_ROLES_TOLD]:
            yield f"the role {role.name} would not: {self._nearest(decision)}"
        further = len(allowing[_ROLES_TOLD:]) + len(refusing[_ROLES_TOLD:])
        if further:
            yield f"{further} more roles are about it: --json has them all"

    def _nearest(self, decision: Decision) -> str:
        if not decision.near:
            return decision.short
        miss = decision.near[0]
        return f"{self._at(miss.rule)}: {miss.condition}"

    def _about_the_source(self) -> Iterable[str]:
        source = self._told.question.source
        if self._told.shared:
            yield (
                f"{source} is in {self._told.shared}, behind which many stand (shared_sources in "
                "server.toml): no hole is opened for them all"
            )
        if self._told.observed and not self._told.granted:
            yield (
                f"the gate only observes {self._told.question.access}: what would be denied is let "
                "in all the same, and recorded as would-deny"
            )
        rule = self._told.always_open
        if rule and self._told.granted:
            yield f"no knock is needed from there: {self._open(rule)}"

    def _about_the_rules(self) -> Iterable[str]:
        for review in self._told.overdue:
            where = self._where(review.path, review.line)
            yield f"{where} should have been reviewed by {review.due}"
        limits = _limits(self._told.limits.said)
        if limits and self._told.decision.code is not Code.NO_ROLE:
            yield f"limits: {limits}; what is open already is not counted here"
        for role in self._told.unknown:
            yield f"the role {role} is not defined in {self._path}"


def _limits(limits: Limits) -> str:
    parts = [
        f"at most {limits.max_open} holes at once" if limits.max_open is not None else "",
        f"{limits.knocks_per_minute} knocks a minute" if limits.knocks_per_minute else "",
        f"keys of {limits.max_key_age_s // 86_400} days" if limits.max_key_age_s else "",
    ]
    return " and ".join(filter(None, parts))
