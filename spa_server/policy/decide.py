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

from collections.abc import Iterable
from dataclasses import dataclass

from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_protocol.reason import Code
from spa_server.policy.model import Allow, Network, Policy, Sessions


@dataclass(frozen=True, slots=True)
class Question:
    """One access of one knock. `key_lives_s` is None for a key that does not expire."""

    roles: frozenset[str]
    source: Address
    access: Access
    lifetime_s: int = 0
    once: bool = False
    key_lives_s: float | None = None


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A rule that came near, and the one condition that failed."""

    rule: Allow
    code: Code
    condition: str


@dataclass(frozen=True, slots=True)
class Decision:
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
    candidates = [
        allow
        for name in sorted(question.roles)
        if (role := policy.roles.get(name)) is not None
        for allow in role.allows
        if allow.covers(question.access)
    ]
    misses = {allow.path: miss for allow in candidates if (miss := _near_miss(allow, question))}
    fitting = [allow for allow in candidates if allow.path not in misses]
    if not fitting:
        near = tuple(misses.values())
        return Decision(near[0].code if near else Code.NO_ROLE, near=near)
    best = max(fitting, key=lambda allow: (not allow.once, _lifetime(allow, question)))
    once = best.once or question.once
    return Decision(Code.GRANTED, best, _lifetime(best, question), once)


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
