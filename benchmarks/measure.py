"""What is made of measurements: medians, percentiles, and which of them are not to be trusted.

A figure is the median of several runs. It is *noisy* where its runs lie apart by more than a fifth
of it: the largest less the smallest, over the median. A goal's figures were taken on a *busy
machine* where just before them its processors were in use for more than a twentieth of the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

NOISY_SPREAD: Final = 0.2
BUSY_SHARE: Final = 0.05


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share (0 to 1) of the values do not exceed.

    Raises ValueError where there are none.
    """
    if not values:
        raise ValueError("no values")
    rank = math.ceil(share * len(values))
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity as each run measured it."""

    runs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("a figure needs a run")

    @property
    def value(self) -> float:
        """The median of the runs."""
        return median(self.runs)

    @property
    def spread(self) -> float:
        """How far the runs lie apart, as a share of their median."""
        apart = max(self.runs) - min(self.runs)
        return apart / abs(self.value) if self.value else float(apart > 0)

    @property
    def is_noisy(self) -> bool:
        """By the rule at the head of this file."""
        return self.spread > NOISY_SPREAD

    @property
    def is_single(self) -> bool:
        """Whether there was one run only, so that nobody can tell."""
        return len(self.runs) == 1


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long each of several knocks took, in milliseconds; None for one that was never heard."""

    each_ms: tuple[float | None, ...]

    @property
    def heard_ms(self) -> list[float]:
        """Those that were heard."""
        return [ms for ms in self.each_ms if ms is not None]

    @property
    def lost(self) -> int:
        """How many were not."""
        return len(self.each_ms) - len(self.heard_ms)

    def percentile_ms(self, share: float) -> float:
        """Of those that were heard; infinite where none was."""
        return percentile(self.heard_ms, share) if self.heard_ms else math.inf

    @property
    def median_ms(self) -> float:
        """Half of them were heard by then."""
        return self.percentile_ms(0.5)
