"""What a baseline learns from a knock that was ruled on."""

from spa_server.anomaly import moves, signs
from spa_server.anomaly.profile import MAX_PLACES, MAX_PORTS, Profile, is_stray, note, note_hop
from spa_server.anomaly.sighting import Sighting, gap_of, is_far


def learn(profile: Profile, seen: Sighting) -> tuple[bytes, int] | None:
    """Takes a sighting in; the network that was forgotten to make room for its own.

    What was asked for in vain is no habit, but shows that its owner asks for this and that.
    """
    _learn_moves(profile, seen)
    if profile.knocks and seen.hour - profile.hour > profile.longest_gap_h:
        profile.longest_gap_h = max(profile.longest_gap_h, gap_of(profile, seen))
    profile.turn(seen.hour)
    gone = _learn_place(profile, seen)
    if seen.granted:
        for port in seen.ports:
            note(profile.ports, port, profile.day, MAX_PORTS)
        profile.access = seen.access
    else:
        profile.in_vain += any(port not in profile.ports for port in seen.ports)
    if profile.in_day == 0:
        profile.loud_hour, profile.loud_day = signs.limits(profile)
        profile.ask_day = profile.loud_day
    if profile.in_hour == 0:
        profile.ask_hour = profile.loud_hour
    profile.source = seen.source
    profile.last_us = seen.at_us
    profile.silence_us = seen.silence_us
    profile.knocks += 1
    profile.in_hour += 1
    profile.in_day += 1
    return gone


def _learn_place(profile: Profile, seen: Sighting) -> tuple[bytes, int] | None:
    places, place = profile.places, seen.place
    known = places.get(place, 0)
    stray = not known and profile.days > 1 and is_far(profile, seen)
    gone = note(places, place, profile.day, MAX_PLACES, stray=stray)
    if places[place] != known:
        profile.strays += is_stray(places[place]) - is_stray(known)
    return gone


def _learn_moves(profile: Profile, seen: Sighting) -> None:
    if seen.place == profile.place:
        return
    move, day = moves.move_of(profile, seen), seen.hour // 24
    if move is not None:
        note_hop(profile.places, profile.place)
        note_hop(profile.places, seen.place)
    if seen.is_tunnel:
        return
    if move is not None:
        if profile.moved_on != day:
            _close_day(profile, day)
        profile.moved |= not move.is_stray
        profile.strayed |= move.is_stray
        profile.returns += move.is_return
    profile.previous, profile.left_us = profile.place, profile.last_us
    profile.place, profile.arrived_us = seen.place, seen.at_us


def _close_day(profile: Profile, day: int) -> None:
    """The moves of a day count from the next one on: those of an intruder excuse none of his."""
    profile.roaming_days += profile.moved
    profile.straying_days += profile.strayed
    profile.moved_on, profile.returns = day, 0
    profile.moved = profile.strayed = False
