"""Durations and moments as people write them, and as these programs show them.

    duration   30s  15m  8h  90d  2w  1h30m  1.5h  500ms
    moment     a duration from now, 2027-01-31 (its first instant here), 2027-01-31T18:00 (here),
               2027-01-31T18:00:00+01:00 or ...Z (RFC 3339)

Moments are whole microseconds since the Unix epoch. No function reads a clock.
"""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

MAX_DURATION_S: Final = 200 * 365 * 86_400

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_S: Final = {"w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER: Final = r"([0-9]{1,12}(?:\.[0-9]{1,6})?)"
_DURATION: Final = re.compile("".join(rf"(?:{_NUMBER}{unit})?" for unit in _UNITS_S), re.ASCII)
_MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?",
    re.ASCII,
)


class BadTime(ValueError):
    """A text that is no duration or moment. The message says what was expected."""


def parse_duration(text: str) -> float:
    """Seconds, from `30s`, `15m`, `8h`, `90d`, `2w`, `1h30m`. Raises BadTime.

    A number needs its unit. Larger units stand first, each once. Zero is a duration.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        raise BadTime(f"{text!r} is no duration; write it like 30s, 15m, 8h, 90d or 1h30m")
    numbers = zip(match.groups(), _UNITS_S.values(), strict=True)
    seconds = sum(float(number) * unit_s for number, unit_s in numbers if number)
    if seconds > MAX_DURATION_S:
        raise BadTime(f"{text!r} is longer than two centuries")
    return seconds


def parse_moment(text: str, now_us: int, zone: tzinfo | None = None) -> int:
    """Microseconds since 1970, from a date, a date and time, or a duration from now on.

    What names no zone is meant in `zone`, by default the system's. Raises BadTime.
    """
    written = text.strip().upper()
    if _MOMENT.fullmatch(written):
        return _to_us(_civil(text, written), zone)
    try:
        return now_us + round(parse_duration(text) * 1_000_000)
    except BadTime:
        expected = "write it like 90d, 2027-01-31 or 2027-01-31T18:00:00+01:00"
        raise BadTime(f"{text!r} is no moment; {expected}") from None


def parse_expiry(text: str, now_us: int, zone: tzinfo | None = None) -> int:
    """A moment that is still to come. Raises BadTime."""
    moment_us = parse_moment(text, now_us, zone)
    if moment_us <= now_us:
        raise BadTime(f"{text!r} is past; an expiry lies ahead")
    return moment_us


def _civil(text: str, written: str) -> datetime:
    try:
        return datetime.fromisoformat(written)
    except ValueError as error:
        raise BadTime(f"{text!r} is in no calendar: {error}") from None


def _to_us(moment: datetime, zone: tzinfo | None) -> int:
    try:
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone) if zone else moment.astimezone()
        return (moment - _EPOCH) // timedelta(microseconds=1)
    except (OverflowError, ValueError, OSError):
        raise BadTime(f"{moment.isoformat()} is out of range") from None


def rfc3339(at_us: int) -> str:
    """A moment in UTC: `2027-01-31T17:00:00Z`, with six decimals where the second is not whole."""
    return _from_us(at_us).isoformat().removesuffix("+00:00") + "Z"


def local_minute(at_us: int) -> str:
    """A moment to the minute in the system's zone: `2027-01-31T18:00`."""
    return _from_us(at_us).astimezone().replace(tzinfo=None).isoformat(timespec="minutes")


def _from_us(at_us: int) -> datetime:
    """Raises OverflowError for what no calendar has; databases hold only what was parsed here."""
    return _EPOCH + timedelta(microseconds=at_us)
