"""The baseline of one key, or of one identity over all its keys: small, and of a bounded size.

It is learnt from knocks that were ruled on: authentic, fresh and the first of their kind. Nobody
but the holder of a key can teach it anything. What is remembered of a network or a service is the
last day and on how many days it was seen.
"""

from typing import Final, TypeVar

import msgspec

from spa_server.anomaly import week
from spa_server.anomaly.usual import Usual

MAX_PLACES: Final = 24
MAX_PORTS: Final = 40
MAX_EXPOSURE: Final = 120
HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
SETTLED_DAYS: Final = 3
_STRAY_DAYS: Final = 6
_MANY_DAYS: Final = (1 << 10) - 1
_STRAY: Final = 1 << 10
_HOP: Final = 1 << 11
_MANY_HOPS: Final = 15
_HOPPED_TODAY: Final = 1 << 15
_DAY: Final = 16

Name = TypeVar("Name", str, bytes)


class Profile(msgspec.Struct, array_like=True, gc=False):
    """Habits. Times are microseconds, hours and days are counted from the Unix epoch, in UTC.

    source, access        of the last knock, so that one like it costs next to nothing
    place, arrived_us     the network that it is in, tunnels left out, and since when
    previous, left_us     the network before, and when it was last heard from there
    places, ports         networks and services, with what `days_of` and its like read
    strays                networks of a few days, in nobody's neighbourhood
    in_vain               how often it asked for a service that it never got
    roaming_days, straying_days    days with quick moves between known networks, and with strays
    moved_on, moved, strayed, returns    the moves of the last such day, which count when it is over
    silence_us            how long the watcher had been deaf in all, at the last knock
    loud_hour, loud_day   more knocks are out of the usual range
    ask_hour, ask_day     with so many knocks the range is worth another look
    is_alone              the identity has no other key
    """

    identity: str
    first_us: int
    last_us: int
    hour: int
    week: bytearray
    source: str = ""
    access: str = ""
    place: bytes = b""
    previous: bytes = b""
    left_us: int = 0
    arrived_us: int = 0
    knocks: int = 0
    days: int = 0
    active_hours: int = 0
    places: dict[bytes, int] = {}
    ports: dict[str, int] = {}
    strays: float = 0.0
    in_vain: float = 0.0
    roaming_days: float = 0.0
    straying_days: float = 0.0
    moved_on: int = 0
    moved: bool = False
    strayed: bool = False
    returns: int = 0
    longest_gap_h: int = 0
    silence_us: int = 0
    in_hour: int = 0
    in_day: int = 0
    is_alone: bool = True
    loud_hour: float = 0.0
    loud_day: float = 0.0
    ask_hour: float = 0.0
    ask_day: float = 0.0
    by_hour: Usual = msgspec.field(default_factory=Usual)
    by_day: Usual = msgspec.field(default_factory=Usual)

    @property
    def day(self) -> int:
        """The day of the last knock."""
        return self.hour // 24

    @property
    def exposure(self) -> float:
        """How long it was watched, in active days; who knocks around the clock shows more."""
        return min(MAX_EXPOSURE, max(self.days, self.active_hours / 8))

    @property
    def span_days(self) -> int:
        """Days from the first knock to the last."""
        return max(1, (self.last_us - self.first_us) // DAY_US)

    def turn(self, hour: int) -> None:
        """A knock comes in this hour: what is over is learnt."""
        if hour == self.hour and self.knocks:
            return
        if hour < self.hour:  # the clock was set back
            self.hour, self.in_hour, self.in_day = hour, 0, 0
            return
        if self.knocks:
            self.by_hour.learn(self.in_hour)
        if hour // 24 != self.day or not self.knocks:
            self._turn_day()
        self.hour, self.in_hour = hour, 0
        self.active_hours += 1
        week.add(self.week, week.slot_of(hour))

    def _turn_day(self) -> None:
        if self.knocks:
            self.by_day.learn(self.in_day)
        self.in_day = 0
        self.days += 1
        if self.days > MAX_EXPOSURE:
            share = 1 - 1 / MAX_EXPOSURE
            self.strays *= share
            self.in_vain *= share
            self.roaming_days *= share
            self.straying_days *= share
        if self.days % MAX_EXPOSURE == 0:
            week.fade(self.week)
            self.longest_gap_h //= 2


def is_of_today(profile: Profile, access: str | None) -> bool:
    """Whether a service was used on the day of the last knock already."""
    return profile.ports.get(access or "", 0) >> _DAY == profile.hour // 24


def new_profile(identity: str, at_us: int) -> Profile:
    """Of whom nothing is known yet."""
    return Profile(identity, at_us, at_us, at_us // HOUR_US, bytearray(week.HOURS))


def day_of(seen: int) -> int:
    """The last day on which it was seen."""
    return seen >> _DAY


def days_of(seen: int) -> int:
    """On how many days it was seen."""
    return seen & _MANY_DAYS


def is_stray(seen: int) -> bool:
    """Whether it is a network to itself, of a few days, that nobody else uses."""
    return bool(seen & _STRAY)


def is_hopped(seen: int) -> bool:
    """Whether on two days, and on one in three, it was one end of a move within minutes."""
    hops = hops_of(seen)
    return hops >= 2 and hops * 3 >= min(days_of(seen), 3 * _MANY_HOPS)


def hops_of(seen: int) -> int:
    """On how many days it was one end of a move within minutes, 15 at most."""
    return seen // _HOP & _MANY_HOPS


def note_hop(seen: dict[bytes, int], name: bytes) -> None:
    """It was one end of a move within minutes on the last day on which it was seen."""
    known = seen.get(name)
    if known is not None and not known & _HOPPED_TODAY and hops_of(known) < _MANY_HOPS:
        seen[name] = (known | _HOPPED_TODAY) + _HOP


def note(
    seen: dict[Name, int], name: Name, day: int, most: int, *, stray: bool = False
) -> tuple[Name, int] | None:
    """Notes that it was seen on a day. The one seen longest ago makes room."""
    known = seen.get(name)
    if known is None:
        gone = None
        if len(seen) >= most:
            oldest = min(seen, key=seen.__getitem__)
            gone = oldest, seen.pop(oldest)
        seen[name] = day << _DAY | stray * _STRAY | 1
        return gone
    if day > day_of(known):
        days = min(days_of(known) + 1, _MANY_DAYS)
        kept = known & (_MANY_HOPS * _HOP | (_STRAY if days < _STRAY_DAYS else 0))
        seen[name] = day << _DAY | kept | days
    return None
