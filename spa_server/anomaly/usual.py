"""The usual range of a count: how it is spread, on a scale of logarithms.

Counts of knocks are skewed: a quiet day has 3, a busy one 40. Their logarithms are near enough to
normal that a mean and a variance tell what is usual. Old values fade: the last `MEMORY` ones count.
"""

import math
from typing import Final

import msgspec

MEMORY: Final = 60
_FIRST_VARIANCE: Final = 0.5
_LEAST_VARIANCE: Final = 0.04


class Usual(msgspec.Struct, array_like=True, gc=False):
    """The range of a count. `seen` counts what was learnt, up to `MEMORY`."""

    seen: int = 0
    mean: float = 0.0
    variance: float = _FIRST_VARIANCE

    def learn(self, count: int) -> None:
        """One more value."""
        value = math.log1p(count)
        self.seen = min(self.seen + 1, MEMORY)
        share = 1 / (self.seen + 1)
        off = value - self.mean
        if self.seen == 1:
            self.mean = value
            return
        self.mean += share * off
        self.variance = max(_LEAST_VARIANCE, (1 - share) * (self.variance + share * off * off))

    def up_to(self, deviations: float) -> float:
        """The count so many standard deviations above the mean."""
        return math.expm1(self.mean + deviations * math.sqrt(self.variance))
