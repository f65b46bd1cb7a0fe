"""The time over which two policies are compared, and when rules hold within it.

Looked at are the five years after a moment: a 29 February and a 53rd week are among them. What
comes later is taken to go on as it did, except where a rule says otherwise: the year after each
later `expires`, and the years that a schedule names, are looked at as well.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from spa_server.policy.difference.spans import Spans, Stretch, elementary, merged
from spa_server.policy.schedule import Schedule

_MINUTE_US: Final = 60_000_000
_DAY_US: Final = 86_400_000_000
_YEAR_US: Final = 366 * _DAY_US
HORIZON_US: Final = 5 * _YEAR_US
_YEAR: Final = re.compile(r"(?<![\d:])(\d{4})(?![\d:])")
_LAST_YEAR: Final = 9000  # no calendar goes much further


@dataclass(frozen=True, slots=True)
class Clock:
    """When a rule holds: while its schedule is open (None: always), until it expires (None: never).

    `expires_at_us` is in microseconds since the Unix epoch.
    """

    schedule: Schedule | None = None
    expires_at_us: int | None = None


class Timeline:
    """The time from `begin_us` on, as far as these clocks make a difference.

    `whole` is all of the time that is looked at.
    """

    def __init__(self, begin_us: int, clocks: Iterable[Clock]) -> None:
        self.begin_us = begin_us - begin_us % _MINUTE_US
        self.end_us = self.begin_us + HORIZON_US
        self.whole = self._whole(set(clocks))
        self._spans: dict[Clock, Spans] = {}
        self._patterns: dict[tuple[Clock, ...], tuple[tuple[int, Spans], ...]] = {}

    def spans(self, clock: Clock) -> Spans:
        """When a rule with this clock holds."""
        found = self._spans.get(clock)
        if found is None:
            found = self.whole if clock.schedule is None else _open(clock.schedule, self.whole)
            if clock.expires_at_us is not None:
                found = _until(found, clock.expires_at_us)
            self._spans[clock] = found
        return found

    def patterns(self, clocks: tuple[Clock, ...]) -> tuple[tuple[int, Spans], ...]:
        """Which of these clocks hold together, and when: bit k for the clock at k.

        Times at which none holds are left out.
        """
        found = self._patterns.get(clocks)
        if found is None:
            pieces = (
                (begin, end, 1 << k)
                for k, clock in enumerate(clocks)
                for begin, end in self.spans(clock)
            )
            times: dict[int, list[Stretch]] = {}
            for begin, end, mask in elementary(pieces):
                times.setdefault(mask, []).append((begin, end))
            found = tuple((mask, merged(stretches)) for mask, stretches in times.items())
            self._patterns[clocks] = found
        return found

    def _whole(self, clocks: set[Clock]) -> Spans:
        last_us = _year_begins_us(_LAST_YEAR)
        windows = [(self.begin_us, self.end_us)]
        for clock in clocks:
            expires_us = clock.expires_at_us
            if expires_us is not None and self.end_us <= expires_us < last_us:
                windows.append((expires_us - _DAY_US, expires_us + _YEAR_US))
            for year in _years_named(clock.schedule):
                # With the year after it, in which what it says has come to an end.
                begins_us = _year_begins_us(year) - _DAY_US
                windows.append((max(begins_us, self.end_us), begins_us + 2 * _YEAR_US))
        return merged((begin, end) for begin, end in windows if begin < end)


@lru_cache(maxsize=256)
def _open(schedule: Schedule, whole: Spans) -> Spans:
    """Kept for the next comparison too: a year takes milliseconds."""
    return merged(
        (max(opens, begin), min(closes, end))
        for begin, end in whole
        for opens, closes in schedule.spans(begin, end)
    )


def _until(spans: Spans, end_us: int) -> Spans:
    return tuple((begin, min(end, end_us)) for begin, end in spans if begin < end_us)


def _years_named(schedule: Schedule | None) -> Iterable[int]:
    years = _YEAR.findall(schedule.text) if schedule else ()
    return (year for year in map(int, years) if year < _LAST_YEAR)


def _year_begins_us(year: int) -> int:
    return int(datetime(max(year, 1970), 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
