"""Schedules: `when`, `timezone` and `country` of a rule. spa-policy(5), "Time".

A schedule is open when the clock on the wall, in its time zone, shows a time that its expression
names: 08:00 stays 08:00 when the clocks change, an hour that is left out is not there, and one
that comes twice counts twice. The expression is evaluated by opening-hours-py in wall time; what
the clocks do is added here, since the library takes the second of two equal times for the only one.
"""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from spa_server.policy.hours import HORIZON_DAYS, BadSchedule, read_hours

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DAY_US: Final = 86_400_000_000
_WEEK_US: Final = 7 * _DAY_US
_LAST_US: Final = (datetime(9998, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
# How long an answer holds that nothing changes: the library has looked further than that.
_UNCHANGED_US: Final = HORIZON_DAYS // 2 * _DAY_US
_ZONE: Final = re.compile(r"(?!Factory)[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
_MAX_TOLD: Final = 45


class Schedule:
    """When a rule holds. Times are microseconds since the Unix epoch, 1970 to 9997.

    Raises BadSchedule when made from text that is no schedule, or that is never open.
    """

    __slots__ = (
        "_changes",
        "_from_us",
        "_hours",
        "_is_open",
        "_until_us",
        "_zone",
        "country",
        "text",
        "timezone",
    )

    def __init__(self, text: str, timezone: str = "UTC", country: str | None = None) -> None:
        self.text = text
        self.timezone = timezone
        self.country = country
        self._zone = _zone(timezone)
        self._hours = read_hours(text, country)
        # The stretch that was asked about last: time runs forwards, so the next question is mostly
        # about it too. `_changes` is whether the end of it is a change, or as far as was looked.
        self._from_us = self._until_us = 0
        self._is_open = self._changes = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __str__(self) -> str:
        return f"{self.text} {self.timezone}" + (f" ({self.country})" if self.country else "")

    def __repr__(self) -> str:
        return f"Schedule({self.text!r}, {self.timezone!r}, {self.country!r})"

    @property
    def _identity(self) -> tuple[str, str, str | None]:
        return self.text, self.timezone, self.country

    def is_open(self, at_us: int) -> bool:
        """Whether the rule holds at this time."""
        if not self._from_us <= at_us < self._until_us:
            self._look(at_us)
        return self._is_open

    def changes_at_us(self, at_us: int) -> int | None:
        """When it next opens or closes after this time; None for never, or in decades."""
        if not self._from_us <= at_us < self._until_us:
            self._look(at_us)
        return self._until_us if self._changes else None

    def spans(self, from_us: int, until_us: int) -> list[tuple[int, int]]:
        """The spans within these bounds in which it is open, in order and apart."""
        found: list[tuple[int, int]] = []
        at_us = from_us
        while at_us < until_us:
            is_open = self.is_open(at_us)
            end_us = min(self._until_us, until_us)
            if is_open:
                found.append((at_us, end_us))
            at_us = end_us
        return found

    def told(self, at_us: int) -> str:
        """A moment in the schedule's own time, as in `Mon 08:00 Europe/Berlin`."""
        return f"{self._wall(at_us):%a %H:%M} {self.timezone}"

    def opens_again(self, at_us: int) -> str:
        """For a person who stands outside: when it opens, in at most 45 characters.

        A zone with a long name is told by its offset then.
        """
        opens_us = self.changes_at_us(at_us)
        if opens_us is None:
            return "does not open again"
        moment = _utc(opens_us).astimezone(self._zone)
        day = f"{moment:%a}" if opens_us - at_us < _WEEK_US else f"{moment:%Y-%m-%d}"
        told = f"opens again {day} {moment:%H:%M} {self.timezone}"
        offset = moment.isoformat(timespec="minutes")[-6:]
        return told if len(told) <= _MAX_TOLD else f"opens again {day} {moment:%H:%M} UTC{offset}"

    def _look(self, at_us: int) -> None:
        """Finds the stretch that begins at the latest at this time, and remembers it."""
        looked_us = min(max(at_us, 0), _LAST_US)
        self._is_open = self._hours.is_open(self._wall(looked_us))
        change_us = self._change_after(looked_us, self._is_open)
        self._from_us = at_us
        self._changes = change_us is not None
        self._until_us = at_us + _UNCHANGED_US if change_us is None else change_us

    def _change_after(self, at_us: int, is_open: bool) -> int | None:
        """The first moment after this one at which the wall clock shows the other state."""
        while at_us < _LAST_US:
            wall = self._wall(at_us)
            change = self._hours.next_change(wall)
            clocks_us = self._clocks_set(at_us, at_us + 2 * _DAY_US)
            if change is None and clocks_us is None:
                return None
            change_us = _LAST_US if change is None else at_us + (change - wall) // _MICROSECOND
            if clocks_us is not None and clocks_us < change_us:
                at_us = clocks_us
            elif change_us > at_us + 2 * _DAY_US:
                # The clocks may be set in between: that shifts the change, by less than a day.
                at_us = change_us - _DAY_US * 3 // 2
                continue
            else:
                at_us = change_us
            if self._hours.is_open(self._wall(at_us)) != is_open:
                return at_us
        return None

    def _clocks_set(self, from_us: int, until_us: int) -> int | None:
        """When the clocks are set forwards or back after the first time, up to the second."""
        before = self._offset(from_us)
        if self._offset(until_us) == before:
            return None
        while until_us - from_us > 1:
            middle_us = (from_us + until_us) // 2
            if self._offset(middle_us) == before:
                from_us = middle_us
            else:
                until_us = middle_us
        return until_us

    def _offset(self, at_us: int) -> timedelta | None:
        return _utc(at_us).astimezone(self._zone).utcoffset()

    def _wall(self, at_us: int) -> datetime:
        """What the clock on the wall shows."""
        return _utc(at_us).astimezone(self._zone).replace(tzinfo=None)


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        if _ZONE.fullmatch(name):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    problem = f"{name[:60]!r} is no time zone of this host; write it like Europe/Berlin"
    raise BadSchedule(problem, "timezone")


def _utc(at_us: int) -> datetime:
    return _EPOCH + at_us * _MICROSECOND
