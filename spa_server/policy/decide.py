"""The decision: may this identity, in these roles, reach this from there?

The rules, in words:

1.  A source that many share (server.toml, `shared_sources`) is given no hole.
2.  An access is allowed when one allow of one of the identity's roles covers all of its ports and
    its source. Nothing else allows it, and nothing takes back what an allow gives.
3.  Of several that do, the one that gives the longest lifetime counts, and before that one that
    is not for a single connection; the first in the file wins a tie.
4.  A hole lives for what was asked, but at most the rule's max_lifetime; for the rule's lifetime
    where nothing was asked; and never past the end of the key.
5.  `once` counts when the rule or the request says so. It cannot be had where sessions are cut.
"""

from collections.abc import Iterable, Iterator

import msgspec

from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_protocol.reason import Code
from spa_server.policy.model import Allow, Network, Policy, Sessions


class Question(msgspec.Struct, frozen=True):
    """One access of one knock. `key_lives_s` is None for a key that does not expire."""

    roles: frozenset[str]
    source: Address
    access: Access
    lifetime_s: int = 0
    once: bool = False
    key_lives_s: float | None = None


class NearMiss(msgspec.Struct, frozen=True):
    """A rule that came near, and the one condition that failed."""

    rule: Allow
    code: Code
    condition: str


class Decision(msgspec.Struct, frozen=True):
    """Granted by `rule` for `lifetime_s` seconds, or refused with the code and what came near."""

    code: Code
    rule: Allow | None = None
    lifetime_s: int = 0
    once: bool = False
    near: tuple[NearMiss, ...] = ()

    @property
    def granted(self) -> bool:
        """Whether the access is allowed."""
        return self.code is Code.GRANTED

    @property
    def sentence(self) -> str:
        """The decision for a person, in one sentence without a full stop."""
        if self.rule is not None:
            once = ", for one connection" if self.once else ""
            return f"allowed by {self.rule.path} for {self.lifetime_s} s{once}"
        return "; ".join(f"{m.rule.path}: {m.condition}" for m in self.near) or self.code.sentence


def decide(policy: Policy, shared: Iterable[Network], question: Question) -> Decision:
    """Rules 1 to 5 above. `shared` are the networks behind which many stand."""
    if any(question.source in network for network in shared):
        return Decision(Code.SHARED_SOURCE)
    if question.key_lives_s is not None and question.key_lives_s < 1:
        return Decision(Code.EXPIRED)
    near: list[NearMiss] = []
    best = Decision(Code.NO_ROLE)
    for allow in _candidates(policy, question):
        miss = _near_miss(allow, question)
        if miss is not None:
            near.append(miss)
            continue
        once = allow.once or question.once
        found = Decision(Code.GRANTED, allow, _lifetime(allow, question), once)
        if _rank(found) > _rank(best):
            best = found
    if best.granted or not near:
        return best
    return Decision(near[0].code, near=tuple(near))


def _candidates(policy: Policy, question: Question) -> Iterator[Allow]:
    """The rules of the identity's roles that are about what is asked for."""
    for name in sorted(question.roles):
        role = policy.roles.get(name)
        for allow in role.allows if role else ():
            if allow.covers(question.access):
                yield allow


def _rank(decision: Decision) -> tuple[bool, bool, int]:
    """Rule 3, and before it that one was found at all."""
    rule = decision.rule
    return rule is not None, rule is not None and not rule.once, decision.lifetime_s


def _near_miss(allow: Allow, question: Question) -> NearMiss | None:
    if question.source not in allow.sources:
        condition = f"only from {allow.sources}, not from {question.source}"
        return NearMiss(allow, Code.NOT_FROM_HERE, condition)
    if question.once and allow.sessions is Sessions.CUT:
        condition = "once cannot be had where sessions are cut with their hole"
        return NearMiss(allow, Code.NO_ROLE, condition)
    return None


def _lifetime(allow: Allow, question: Question) -> int:
    asked = question.lifetime_s or allow.lifetime_s
    lifetime_s = min(asked, allow.max_lifetime_s)
    if question.key_lives_s is not None:
        lifetime_s = min(lifetime_s, int(question.key_lives_s))
    return lifetime_s
