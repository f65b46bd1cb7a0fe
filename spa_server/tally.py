"""A tally: the first of many alike is recorded at once, the others are counted.

Whoever holds a stolen tag, or sprays a closed port, must not be able to fill the record. One line a
kind and interval is written, later ones become a count at the interval's end; kinds past the cap
share one count.
"""

from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

Kind = TypeVar("Kind")

INTERVAL_US: Final = 10_000_000
CAP: Final = 200


@dataclass(slots=True)
class Tally(Generic[Kind]):
    """Counts by kind over an interval. Times are microseconds."""

    interval_us: int = INTERVAL_US
    cap: int = CAP
    _counts: dict[Kind, int] = field(default_factory=dict)
    _beyond: int = 0
    _began_us: int = 0

    def is_first(self, kind: Kind, now_us: int) -> bool:
        """Counts one, and says whether it is to be recorded by itself."""
        if not self._counts and not self._beyond:
            self._began_us = now_us
        if kind in self._counts:
            self._counts[kind] += 1
            return False
        if len(self._counts) >= self.cap:
            self._beyond += 1
            return False
        self._counts[kind] = 0
        return True

    def due_at_us(self) -> int | None:
        """When the interval is over; None while nothing was counted."""
        return self._began_us + self.interval_us if self._counts or self._beyond else None

    def is_due(self, now_us: int) -> bool:
        """Whether the interval is over (or the clock was set back) and something was counted."""
        due_us = self.due_at_us()
        return due_us is not None and not due_us - self.interval_us <= now_us < due_us

    def take(self) -> tuple[dict[Kind, int], int]:
        """The further ones by kind, and those beyond the cap; a new interval begins."""
        further = {kind: count for kind, count in self._counts.items() if count}
        beyond = self._beyond
        self._counts, self._beyond = {}, 0
        return further, beyond
