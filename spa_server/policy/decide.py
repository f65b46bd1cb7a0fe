"""The decision: may this identity, in these roles, reach this from there, now?

The rules, in words:

1.  A source that many share (server.toml, `shared_sources`) is given no hole.
2.  An access is allowed when one allow of one of the identity's roles covers all of its ports, its
    source and the time, has not expired, and is given what it requires. Nothing else allows it,
    and nothing takes back what an allow gives.
3.  Of several that do, the one that gives the longest lifetime counts, and before that one that
    is not for a single connection; of equals, the first in the file of the first role by name.
4.  A hole lives for what was asked, but at most the rule's max_lifetime; for the rule's lifetime
    where nothing was asked; and never past the end of the key, of `when` or of `expires`.
5.  `once` counts when the rule or the request says so. It cannot be had where sessions are cut.
6.  What an allow gives is still refused to who has, or asks for, more than the limits.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from keys.when import rfc3339
from spa_protocol.access import Access
from spa_protocol.layout import MAX_MESSAGE, Address
from spa_protocol.reason import Code
from spa_server.policy.model import Allow, Network, Policy, Requirement, Sessions, Sources

_SECOND_US: Final = 1_000_000
_CUT: Final = "connections are cut when it closes; hold it open"


class Question(msgspec.Struct, frozen=True):
    """One access of one knock.

    `at_us` is when it is asked, `declared` whether the source was declared and signed, `touched`
    whether a security key was. `holes` is how many holes the identity would have with this one,
    `knocks` how many times it has knocked within a minute, this time included; both are 0 where
    nobody counts. `key_lives_s` is None for a key that does not expire.
    """

    roles: frozenset[str]
    source: Address
    access: Access
    at_us: int
    lifetime_s: int = 0
    once: bool = False
    key_lives_s: float | None = None
    declared: bool = False
    touched: bool = False
    holes: int = 0
    knocks: int = 0


class Failed(msgspec.Struct, frozen=True):
    """One condition that does not hold: its code, and what would be needed, in words.

    `few` is the same in at most 67 bytes, for a reply; empty where `condition` is that short.
    """

    code: Code
    condition: str
    few: str = ""

    @property
    def short(self) -> str:
        """What would be needed, in words that fit into a reply."""
        return self.few or self.condition


class NearMiss(msgspec.Struct, frozen=True):
    """A rule about what was asked for, and the conditions of it that failed, at least one."""

    rule: Allow
    failed: tuple[Failed, ...]

    @property
    def code(self) -> Code:
        """That of the first condition."""
        return self.failed[0].code

    @property
    def condition(self) -> str:
        """All of them in words."""
        return ", and ".join(each.condition for each in self.failed)


class Decision(msgspec.Struct, frozen=True):
    """Granted by `rule` for `lifetime_s` seconds, or refused: with the code and what came near, the
    nearest first, or with `why` where rules have nothing to do with it."""

    code: Code
    rule: Allow | None = None
    lifetime_s: int = 0
    once: bool = False
    near: tuple[NearMiss, ...] = ()
    why: str = ""

    @property
    def granted(self) -> bool:
        """Whether the access is allowed."""
        return self.code is Code.GRANTED

    @property
    def short(self) -> str:
        """Why it was refused, as it is told to who asked; empty where it was granted."""
        if self.granted:
            return ""
        if self.near:
            return self.near[0].failed[0].short
        return self.why or self.code.sentence

    @property
    def sentence(self) -> str:
        """The decision for a person, in one sentence without a full stop."""
        if self.granted and self.rule is not None:
            once = ", for one connection" if self.once else ""
            return f"allowed by {self.rule.path} for {self.lifetime_s} s{once}"
        near = "; ".join(f"{miss.rule.path}: {miss.condition}" for miss in self.near)
        return near or self.short


def message_of(decisions: Sequence[tuple[Access, Decision]], warning: str = "") -> str:
    """What a reply says about a knock's accesses, in at most 67 bytes where `warning` is no longer:
    why the first was refused, else the warning, else which sessions end with their hole."""
    refused = next((decision.short for _, decision in decisions if not decision.granted), "")
    return refused or warning or _cut_notice(decisions)


def _cut_notice(decisions: Sequence[tuple[Access, Decision]]) -> str:
    """For whoever is about to begin one."""
    cut = [
        str(access)
        for access, decision in decisions
        if decision.rule is not None and decision.rule.sessions is Sessions.CUT
    ]
    if not cut:
        return ""
    text = f"{', '.join(cut)}: {_CUT}"
    return text if len(text) <= MAX_MESSAGE else f"{len(cut)} of these: {_CUT}"


def decide(policy: Policy, shared: Iterable[Network], question: Question) -> Decision:
    """Rules 1 to 6 above. `shared` are the networks behind which many stand."""
    if any(question.source in network for network in shared):
        return Decision(Code.SHARED_SOURCE)
    if question.key_lives_s is not None and question.key_lives_s < 1:
        return Decision(Code.EXPIRED, why="the key expires within a second")
    best = Decision(Code.NO_ROLE)
    candidates = _candidates(policy, question)
    for allow in candidates:
        if not _fits(allow, question):
            continue
        once = allow.once or question.once
        found = Decision(Code.GRANTED, allow, _lifetime_s(allow, question), once)
        if _rank(found) > _rank(best):
            best = found
    if best.granted:
        return _limited(policy, question) or best
    near = [NearMiss(allow, tuple(_failures(allow, question))) for allow in candidates]
    near.sort(key=lambda miss: len(miss.failed))
    return Decision(near[0].code, near=tuple(near)) if near else best


def _candidates(policy: Policy, question: Question) -> list[Allow]:
    """The rules of the identity's roles that are about what is asked for."""
    roles = (policy.roles.get(name) for name in sorted(question.roles))
    return [allow for role in roles if role is not None for allow in role.about(question.access)]


def _rank(decision: Decision) -> tuple[bool, bool, int]:
    """Rule 3, and before it that one was found at all."""
    rule = decision.rule
    return rule is not None, rule is not None and not rule.once, decision.lifetime_s


def _fits(allow: Allow, question: Question) -> bool:
    """Rules 2 and 5: the same conditions as in `_failures`, without the words."""
    return (
        question.source in allow.sources
        and (allow.when is None or allow.when.is_open(question.at_us))
        and (allow.expires_at_us is None or question.at_us < allow.expires_at_us)
        and not (question.once and allow.sessions is Sessions.CUT)
        and (not allow.require or not any(_missing(allow, question)))
        and _lifetime_s(allow, question) >= 1
    )


def _failures(allow: Allow, question: Question) -> Iterable[Failed]:
    """Every condition of a rule that does not hold."""
    if question.source not in allow.sources:
        yield _not_from_here(allow.sources, question.source)
    if allow.expires_at_us is not None and question.at_us >= allow.expires_at_us:
        yield Failed(Code.EXPIRED, f"expired on {rfc3339(allow.expires_at_us)[:10]}")
    elif allow.when is not None and not allow.when.is_open(question.at_us):
        yield Failed(Code.NOT_NOW, allow.when.opens_again(question.at_us))
    elif _lifetime_s(allow, question) < 1:
        yield Failed(Code.NOT_NOW, "its time ends within a second")
    if question.once and allow.sessions is Sessions.CUT:
        yield Failed(Code.NO_ROLE, "once cannot be had where sessions are cut with their hole")
    yield from _missing(allow, question)


def _not_from_here(sources: Sources, source: Address) -> Failed:
    """A network or an address cut in two would be another one, so the words are chosen to fit."""
    condition = f"only from {sources}, not {source}"
    first, *others = sources.networks
    shorter = (
        condition,
        f"only from {first} and {len(others)} more, not {source}",
        f"not from {source}",
    )
    few = next(words for words in shorter if len(words) <= MAX_MESSAGE)
    return Failed(Code.NOT_FROM_HERE, condition, few)


def _missing(allow: Allow, question: Question) -> Iterable[Failed]:
    if Requirement.DECLARED_SOURCE in allow.require and not question.declared:
        yield Failed(Code.DECLARE_SOURCE, f"declare your source: {question.source}")
    if Requirement.TOUCH in allow.require and not question.touched:
        yield Failed(Code.TOUCH, "touch your security key")


def _lifetime_s(allow: Allow, question: Question) -> int:
    """Rule 4, for a rule whose time it is; under 1 where nothing is left."""
    lifetime_s = min(question.lifetime_s or allow.lifetime_s, allow.max_lifetime_s)
    if question.key_lives_s is not None:
        lifetime_s = min(lifetime_s, int(question.key_lives_s))
    if allow.expires_at_us is not None:
        lifetime_s = min(lifetime_s, (allow.expires_at_us - question.at_us) // _SECOND_US)
    if allow.when is not None:
        closes_us = allow.when.changes_at_us(question.at_us)
        if closes_us is not None:
            lifetime_s = min(lifetime_s, (closes_us - question.at_us) // _SECOND_US)
    return lifetime_s


def _limited(policy: Policy, question: Question) -> Decision | None:
    """Rule 6."""
    if not policy.has_limits:
        return None
    limits = policy.limits_of(question.roles)
    if limits.max_open is not None and question.holes > limits.max_open:
        why = f"at most {limits.max_open} holes at once; close one"
        return Decision(Code.TOO_MANY, why=why)
    if limits.knocks_per_minute is not None and question.knocks > limits.knocks_per_minute:
        why = f"at most {limits.knocks_per_minute} knocks a minute; wait"
        return Decision(Code.TOO_MANY, why=why)
    return None
