"""Two places at once: moves between networks that one person can hardly have made.

From one network to another within minutes may be somebody who leaves the office. There and back
again, several times, or for an hour of the night, is two people; or one who is known for it. A
*stray* is a network that is nobody's neighbourhood, seen for the first days. A *tunnel* (a VPN) is
no place: moves to it and back count for nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from spa_server.anomaly import week
from spa_server.anomaly.finding import Kind, Sign
from spa_server.anomaly.odds import odds
from spa_server.anomaly.places import region_of, text_of
from spa_server.anomaly.profile import HOUR_US, SETTLED_DAYS, Profile, days_of, is_stray
from spa_server.anomaly.sighting import Sighting, is_far

MINUTE_US: Final = 60_000_000
QUICK_US: Final = 30 * MINUTE_US
BACK_US: Final = 2 * HOUR_US
SHORT_STAY_US: Final = 14 * HOUR_US
_STRAY_DAYS: Final = 2
# What share of the odds counts: for going; for coming back soon (lunch in a cafe), later, and from
# a visit at an hour at which the owner hardly ever comes.
_GOING: Final = 0.1
_BACK: Final = 0.5
_LATE_BACK: Final = 0.7
_ODD_BACK: Final = 1.3
_ODD_HOUR: Final = 1.0
# What is added: for each further return of the same day, and for a move that no feet can make.
_AGAIN: Final = 1.8
_MOST_AGAIN: Final = 3
_WELL_KNOWN: Final = 20
_TOO_SOON: Final = 1.5
_TOO_SOON_MIN: Final = 5


@dataclass(frozen=True, slots=True)
class Move:
    """A quick move to another network; `is_return`: to where it had been before, or settled.

    `is_stray`: one of the two is a stray. `away_us` is how long it was not where it had been.
    """

    is_return: bool
    is_stray: bool
    away_us: int = 0


def move_of(profile: Profile, seen: Sighting) -> Move | None:
    """The move that brought a knock to another network than the last one's, if it was a quick one.

    To go is quick within minutes. To come back is within hours, where the other one was a stray.
    """
    here, there = profile.places.get(seen.place), profile.places.get(profile.place, 0)
    if not profile.place or region_of(profile.place) == region_of(seen.place):
        return None
    was_astray = _is_new_stray(there)
    stray = was_astray or (is_far(profile, seen) if here is None else _is_new_stray(here))
    away_us, stay_us = seen.at_us - profile.left_us, seen.at_us - profile.arrived_us
    is_same = seen.place == profile.previous
    if was_astray and (is_same or _is_settled(here or 0)) and 0 <= stay_us < SHORT_STAY_US:
        return Move(True, stray, away_us)
    if is_same and 0 <= away_us < BACK_US:
        return Move(True, stray, away_us)
    quick = 0 <= seen.at_us - profile.last_us < QUICK_US
    return Move(False, stray) if quick else None


def _is_new_stray(seen: int) -> bool:
    return is_stray(seen) and days_of(seen) <= _STRAY_DAYS


def _is_settled(seen: int) -> bool:
    return days_of(seen) >= SETTLED_DAYS and not is_stray(seen)


def two_places(profile: Profile, seen: Sighting) -> Iterator[Sign]:
    """The sign that a move is, held against how often its owner moves like that."""
    move = None if seen.is_tunnel else move_of(profile, seen)
    if move is None:
        return
    before = profile.straying_days if move.is_stray else profile.roaming_days
    returns = profile.returns if profile.moved_on == seen.hour // 24 else 0
    minutes = (seen.at_us - profile.last_us) // MINUTE_US
    weight = _weight(profile, move, before, returns)
    if move.is_stray and minutes < _TOO_SOON_MIN:
        weight += _TOO_SOON
    here, there = text_of(seen.place), text_of(profile.place)
    words = f"from {here} {minutes} min after {there}"
    if move.is_return:
        words += ", and back again" + (f" for the {returns + 1}. time today" if returns else "")
    words += f"; on {before:.0f} of {profile.days} days it moved like that"
    yield Sign(Kind.TWO_PLACES, weight, words, {"minutes": minutes, "networks": [here, there]})


def _weight(profile: Profile, move: Move, before: float, returns: int) -> float:
    weight = odds(Kind.TWO_PLACES, before, profile.exposure)
    if not move.is_return:
        return weight * _GOING
    if returns and move.is_stray:
        known = min(1.0, profile.exposure / _WELL_KNOWN)
        return weight + _AGAIN * min(returns, _MOST_AGAIN) * known
    if move.is_stray and _came_at_an_odd_hour(profile):
        return weight * _ODD_BACK
    return weight * (_BACK if move.away_us < BACK_US else _LATE_BACK)


def _came_at_an_odd_hour(profile: Profile) -> bool:
    slot = week.slot_of(profile.arrived_us // HOUR_US)
    is_known = profile.active_hours >= week.LEAST_HOURS
    return is_known and week.surprise(profile.week, slot) >= _ODD_HOUR
