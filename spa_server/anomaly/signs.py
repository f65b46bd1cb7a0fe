"""What is out of the ordinary in one knock, held against one baseline. Pure.

The numbers in here were found with benchmarks/anomalies.py, on seeds that its report does not use.
"""

import math
from collections.abc import Iterator
from typing import Final

from spa_server.anomaly import week
from spa_server.anomaly.finding import Kind, Sign
from spa_server.anomaly.moves import two_places
from spa_server.anomaly.odds import odds
from spa_server.anomaly.places import region_of, text_of
from spa_server.anomaly.profile import HOUR_US, SETTLED_DAYS, Profile, days_of
from spa_server.anomaly.sighting import OTHERS, Sighting, gap_of
from spa_server.anomaly.usual import Usual

# What is left of a new network's weight: where the key knows its region; where others knock from
# it, or from its region; and the same for a key that hardly ever came from elsewhere.
_SAME_REGION: Final = 0.35
_SHARED_PLACE: Final = 0.3
_SHARED_REGION: Final = 0.5
_OF_SETTLED: Final = 0.8
_SETTLED_AFTER: Final = 20
_ROLLED_OUT: Final = 0.4
# An unusual hour alone is of little weight: everybody works late some day.
_HOUR_COUNTS: Final = 0.45
_MOST_HOURS: Final = 3.5
_WOKEN_AFTER_H: Final = 240
_LEAST_LOUD: Final = 15
_NEGLIGIBLE: Final = 0.3
ASK_AGAIN: Final = 1.1


def judge(profile: Profile, seen: Sighting) -> list[Sign]:
    """All signs in a sighting, before it is learnt."""
    found: list[Sign] = []
    if seen.place != profile.place:
        found += _new_network(profile, seen)
        found += two_places(profile, seen)
    for port in seen.ports:
        if port not in profile.ports:
            found += _new_service(profile, seen)
            break
    if seen.hour != profile.hour and seen.sure:
        found += _unusual_hour(profile, seen)
        found += _woken(profile, seen)
    return [sign for sign in found if sign.weight >= _NEGLIGIBLE] if found else found


def _new_network(profile: Profile, seen: Sighting) -> Iterator[Sign]:
    days = days_of(profile.places.get(seen.place, 0))
    if days >= SETTLED_DAYS or not profile.places:
        return
    weight = odds(Kind.NEW_NETWORK, profile.strays, profile.exposure) * 0.5**days
    others = [place for place in profile.places if place != seen.place]
    text, region = text_of(seen.place), region_of(seen.place)
    words = f"seen on {days} days only: {text}" if days else f"first knock from {text}"
    words += f"; {profile.knocks} knocks in {profile.span_days} days came from "
    words += f"{len(others)} other {'network' if len(others) == 1 else 'networks'}"
    if any(region_of(place) == region for place in others):
        weight *= _SAME_REGION
        words += f", some in {text_of(region)}"
    if seen.others_here >= OTHERS:
        weight *= _OF_SETTLED if _is_settled(profile) else _SHARED_PLACE
        words += f"; {seen.others_here} other keys knock from it"
    elif seen.others_near >= OTHERS:
        weight *= _OF_SETTLED if _is_settled(profile) else _SHARED_REGION
        words += f"; {seen.others_near} other keys knock from {text_of(region)}"
    values = {"network": text, "networks": len(others), "knocks": profile.knocks}
    yield Sign(Kind.NEW_NETWORK, weight, words, values)


def _is_settled(profile: Profile) -> bool:
    """Whether it was watched for long, and never came from more than two regions."""
    regions = {region_of(place) for place in profile.places}
    return len(regions) <= 2 and profile.exposure >= _SETTLED_AFTER


def _unusual_hour(profile: Profile, seen: Sighting) -> Iterator[Sign]:
    slot = week.slot_of(seen.hour)
    if profile.active_hours < week.LEAST_HOURS or profile.week[slot] > 1:
        return
    weight = _HOUR_COUNTS * min(_MOST_HOURS, week.surprise(profile.week, slot))
    near, hours = week.near(profile.week, slot), sum(profile.week)
    words = f"{week.words(slot)}; {near} of {hours} hours with knocks were within an hour of it"
    values = {"hour": week.words(slot), "near": near, "hours": hours}
    yield Sign(Kind.UNUSUAL_HOUR, weight, words, values)


def _new_service(profile: Profile, seen: Sighting) -> Iterator[Sign]:
    """What was used on one day only tells how likely another such day is."""
    new = [port for port in seen.ports if port not in profile.ports]
    if not profile.ports:
        return
    once = sum(days_of(port) == 1 for port in profile.ports.values())
    weight = odds(Kind.NEW_SERVICE, once + profile.in_vain, profile.exposure)
    rolled_out = seen.rolled_out.issuperset(new)
    weight *= _ROLLED_OUT if rolled_out else 1.0
    known = sorted(profile.ports, key=profile.ports.__getitem__, reverse=True)
    asked = "first use of" if seen.granted else "asked for the first time, in vain, for"
    words = f"{asked} {', '.join(new)}; {profile.knocks} knocks were for {len(known)} "
    words += f"{'other' if len(known) == 1 else 'others'}: {', '.join(known[:4])}"
    words += ", ..." if len(known) > 4 else ""
    words += "; others began to use it lately" if rolled_out else ""
    values = {"services": new, "known": len(known), "in_vain": not seen.granted}
    yield Sign(Kind.NEW_SERVICE, weight, words, values)


def _woken(profile: Profile, seen: Sighting) -> Iterator[Sign]:
    if seen.at_us - profile.last_us < _WOKEN_AFTER_H * HOUR_US:
        return
    gap_h = gap_of(profile, seen)
    usual_h = max(_WOKEN_AFTER_H, profile.longest_gap_h * 3 // 2)
    if gap_h <= usual_h:
        return
    weight = 0.8 + 3.8 * math.log(gap_h / usual_h)
    words = f"not heard for {gap_h // 24} days; the longest silence in {profile.days} active days"
    words += f" was {profile.longest_gap_h / 24:.0f}"
    values = {"silent_days": gap_h // 24, "longest_days": profile.longest_gap_h // 24}
    yield Sign(Kind.WOKEN, weight, words, values)


def rate(profile: Profile) -> list[Sign]:
    """Whether this hour, or this day, has more knocks than is usual by now.

    It is asked again when there is a tenth more of them.
    """
    if profile.in_hour <= profile.ask_hour and profile.in_day <= profile.ask_day:
        return []
    counts = (
        (profile.in_hour, profile.loud_hour, profile.by_hour, "hour"),
        (profile.in_day, profile.loud_day, profile.by_day, "day"),
    )
    profile.ask_hour = max(profile.ask_hour, profile.in_hour * ASK_AGAIN)
    profile.ask_day = max(profile.ask_day, profile.in_day * ASK_AGAIN)
    found = [_rate(*count) for count in counts if count[0] > count[1] and count[2].seen >= 5]
    return sorted(found, key=lambda sign: -sign.weight)[:1]


def _rate(count: int, limit: float, usual: Usual, name: str) -> Sign:
    most = max(1, round(usual.up_to(2)))
    words = f"{count} knocks within this {name}; usually up to {most}"
    weight = 1.6 + 4.4 * math.log(count / limit)
    return Sign(Kind.RATE, weight, words, {"count": count, "usual": most, "per": name})


def limits(profile: Profile) -> tuple[float, float]:
    """The knocks that an hour, and a day, may have before they are out of their usual range."""
    hour, day = (max(_LEAST_LOUD, usual.up_to(3)) for usual in (profile.by_hour, profile.by_day))
    return hour, day
