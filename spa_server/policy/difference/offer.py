"""What fitting rules give together, and in which way one gift is more than another.

The rules are those of decide.py, numbers 2, 3 and 5, before a lifetime is cut short by the end of
`when`, of `expires` or of the key: an offer is what a rule book says, not what is left of an hour.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import starmap
from typing import Final, TypeAlias

from spa_server.policy.decide import Question
from spa_server.policy.model import Requirement, Sessions


class Aspect(StrEnum):
    """In what one gift may differ from another."""

    ACCESS = "access"
    ONCE = "once"
    SESSIONS = "sessions"
    LIFETIME = "lifetime"
    MAX_LIFETIME = "max_lifetime"


Sign: TypeAlias = tuple[Aspect, bool]
"""An aspect, and whether it is more than it was."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How an access is given: `lifetime_s` to who asks for none, at most `max_lifetime_s`."""

    once: bool
    sessions: Sessions
    lifetime_s: int
    max_lifetime_s: int

    def given(self, question: Question) -> tuple[bool, Sessions, int] | None:
        """(once, sessions, seconds) for what a request asks; None where it is refused (rule 5)."""
        if question.once and self.sessions is Sessions.CUT:
            return None
        lifetime_s = min(question.lifetime_s or self.lifetime_s, self.max_lifetime_s)
        return self.once or question.once, self.sessions, lifetime_s


Offer: TypeAlias = tuple[Terms | None, ...]
"""Four terms, None for a refusal: to a knock that brings nothing, a declared source, a touch, both.
"""

DECLARED: Final = 1
TOUCHED: Final = 2
BROUGHT: Final = range(4)
NOTHING: Final[Offer] = (None,) * len(BROUGHT)
_BITS: Final = {Requirement.DECLARED_SOURCE: DECLARED, Requirement.TOUCH: TOUCHED}


def needs(require: Iterable[Requirement]) -> int:
    """Requirements as bits."""
    return sum(_BITS[requirement] for requirement in require)


def brought(question: Question) -> int:
    """What a request brings, as the index into an offer."""
    return DECLARED * question.declared + TOUCHED * question.touched


def together(rules: Iterable[tuple[int, Terms]]) -> Offer:
    """The offer of rules that fit, each with its needs.

    Rules about one port agree on `sessions`: a policy in which they do not is refused.
    """
    known = tuple(rules)
    return tuple(
        _best([terms for need, terms in known if not need & ~brings]) for brings in BROUGHT
    )


def _best(fitting: list[Terms]) -> Terms | None:
    """Rule 3: before the lifetime it counts that a rule is not for a single connection."""
    if not fitting:
        return None
    preferred = [terms for terms in fitting if not terms.once] or fitting
    return Terms(
        preferred[0].once,
        preferred[0].sessions,
        max(terms.lifetime_s for terms in preferred),
        max(terms.max_lifetime_s for terms in preferred),
    )


def signs(before: Terms | None, after: Terms | None) -> frozenset[Sign]:
    """In what `after` is more or less than `before`."""
    if before is None or after is None:
        return frozenset() if before is after else frozenset({(Aspect.ACCESS, before is None)})
    cut = Sessions.CUT
    pairs = (
        (Aspect.ONCE, not before.once, not after.once),
        (Aspect.SESSIONS, before.sessions is not cut, after.sessions is not cut),
        (Aspect.LIFETIME, before.lifetime_s, after.lifetime_s),
        (Aspect.MAX_LIFETIME, before.max_lifetime_s, after.max_lifetime_s),
    )
    return frozenset((aspect, new > old) for aspect, old, new in pairs if old != new)


def all_signs(before: Offer, after: Offer) -> frozenset[Sign]:
    """In what one offer is more or less than another, whatever a request brings."""
    return frozenset().union(*starmap(signs, zip(before, after, strict=True)))
