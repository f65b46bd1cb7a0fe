"""The time of a report in steps of equal length, for what is shown over time."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
WEEK_US: Final = 7 * DAY_US
_MOST: Final = 100
_MONDAY_US: Final = 4 * DAY_US  # 1970-01-05
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_STEPS: Final = ((HOUR_US, "hour"), (DAY_US, "day"), (WEEK_US, "week"), (4 * WEEK_US, "four weeks"))


@dataclass(frozen=True, slots=True)
class Buckets:
    """`count` steps of `step_us` from `begins_us` on; hours, days and weeks of UTC.

    Times are microseconds since the Unix epoch. `unit` is the step in words.
    """

    begins_us: int
    step_us: int
    count: int
    unit: str

    @classmethod
    def of(cls, since_us: int, until_us: int) -> "Buckets":
        """The smallest steps of which a hundred or fewer cover a time."""
        span_us = until_us - since_us
        weeks = -(-span_us // (WEEK_US * (_MOST - 1)))
        longest = (WEEK_US * weeks, f"{weeks} weeks")
        fitting = (step for step in _STEPS if span_us // step[0] < _MOST)
        step_us, unit = next(fitting, longest)
        offset_us = _MONDAY_US if step_us >= WEEK_US else 0
        begins_us = (since_us - offset_us) // step_us * step_us + offset_us
        return cls(begins_us, step_us, (until_us - begins_us) // step_us + 1, unit)

    def spread(self, counts: Iterable[tuple[int, int]]) -> tuple[int, ...]:
        """Pairs of a step's number and a count, as a count for each step; others are left out."""
        found = [0] * self.count
        for index, count in counts:
            if 0 <= index < self.count:
                found[index] += count
        return tuple(found)

    def label(self, index: int) -> str:
        """When a step begins: `2026-11-24`, or `2026-11-24 09:00` for an hour."""
        begins = _EPOCH + timedelta(microseconds=self.begins_us + index * self.step_us)
        return f"{begins:%Y-%m-%d %H:%M}" if self.step_us < DAY_US else f"{begins:%Y-%m-%d}"
