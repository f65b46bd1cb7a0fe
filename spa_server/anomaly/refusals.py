"""Refusals of a key: some are everybody's, a burst is not.

Those of `proof` tell of somebody who records or forges knocks: whoever sent them did not show that
the key is theirs. Those of the policy come from the key's own holder, and the clock's from a laptop
that slept.
"""

import math
from typing import Final

from spa_server.anomaly.case import Case
from spa_server.anomaly.finding import Kind, Sign

_CLASSES: Final = {
    "replayed": "proof",
    "not-authentic": "proof",
    "bad-signature": "proof",
    "malformed": "proof",
    "stale": "clock",
    "ahead": "clock",
}
# For each class: the least that counts, the weight at that, and how it grows with the logarithm.
_WEIGHTS: Final = {"proof": (3, 3.2, 2.2), "policy": (3, 0.2, 0.6), "clock": (4, 0.0, 0.3)}
_WORDS: Final = {
    "proof": "whoever sent them did not prove the key",
    "policy": "the policy does not allow them",
    "clock": "a clock is wrong",
}


def class_of(reason: str | None) -> str | None:
    """proof, policy or clock; None for what is our own trouble."""
    if reason is None or reason in ("unavailable", "the gate is unavailable"):
        return None
    return _CLASSES.get(reason, "policy")


def count(case: Case, reason: str, group: str, number: int, hour: int) -> list[Sign]:
    """Counts refusals of one reason in an hour since the Unix epoch; what they are a sign of."""
    if hour != case.hour:
        if case.refused:
            case.usual_refused.learn(sum(case.refused.values()))
        case.hour, case.refused = hour, {}
    total = case.refused[group] = case.refused.get(group, 0) + number
    least, weight, growth = _WEIGHTS[group]
    usual = max(1.0, case.usual_refused.up_to(1)) if case.usual_refused.seen >= 3 else 1.0
    if total < least or total <= usual:
        return []
    weight += growth * math.log(total / usual)
    words = f"{total} refused within an hour, the last {reason}: {_WORDS[group]}"
    words += f"; usually up to {usual:.0f}"
    values = {"count": total, "reason": reason, "usual": round(usual, 1)}
    return [Sign(Kind.REFUSALS, weight, words, values)]
