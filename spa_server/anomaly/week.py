"""Habits of time: in which hours of the week somebody knocks. Hours are UTC's, Monday's first is 0.

168 counts, smoothed when they are asked: who knocks on Tuesdays at nine may well knock at ten, or
on a Thursday at nine. Smoothing over the neighbours also covers summer time.
"""

import math
from typing import Final

HOURS: Final = 168
LEAST_HOURS: Final = 20
"""Of fewer active hours nothing can be said."""
_EPOCH_SHIFT: Final = 72  # 1970-01-01 was a Thursday
_FULL: Final = 250
_SAME_DAY: Final = ((-2, 0.25), (-1, 0.6), (0, 1.0), (1, 0.6), (2, 0.25))
_OTHER_DAYS: Final = ((-1, 0.2), (0, 0.35), (1, 0.2))
_PRIOR: Final = 3.0
_NAMES: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def slot_of(hour: int) -> int:
    """The hour of the week, 0 to 167, of an hour counted from the Unix epoch."""
    return (hour + _EPOCH_SHIFT) % HOURS


def words(slot: int) -> str:
    """Tuesday 03 h UTC."""
    return f"{_NAMES[slot // 24]} {slot % 24:02} h UTC"


def add(week: bytearray, slot: int) -> None:
    """One more hour with knocks. A count that is full halves them all, so that old ones fade."""
    if week[slot] >= _FULL:
        fade(week)
    week[slot] += 1


def fade(week: bytearray) -> None:
    """Halves every count."""
    week[:] = bytes(count // 2 for count in week)


def near(week: bytearray, slot: int) -> int:
    """How many hours with knocks there were within an hour of this one, on this day of the week."""
    return sum(week[(slot + off) % HOURS] for off in (-1, 0, 1))


def surprise(week: bytearray, slot: int) -> float:
    """How much likelier this hour is of someone who comes at any hour, in nats; 0 and above."""
    total = sum(week)
    day = slot // 24
    others = [other for other in range(7) if other != day and (other > 4) == (day > 4)]
    mass = sum(weight * week[(slot + off) % HOURS] for off, weight in _SAME_DAY)
    for other in others:
        begin = slot + (other - day) * 24
        mass += sum(weight * week[(begin + off) % HOURS] for off, weight in _OTHER_DAYS)
    spread = sum(weight for _, weight in _SAME_DAY)
    spread += len(others) * sum(weight for _, weight in _OTHER_DAYS)
    density = (mass / spread * HOURS + _PRIOR) / (total + _PRIOR)
    return max(0.0, -math.log(density))
