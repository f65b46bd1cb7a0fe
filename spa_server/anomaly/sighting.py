"""A knock that was ruled on, as the detectors see it."""

import msgspec

from spa_server.anomaly.places import region_of
from spa_server.anomaly.profile import HOUR_US, Profile

OTHERS = 3
"""So many other keys make a network, or a region, everybody's."""


class Sighting(msgspec.Struct, frozen=True, gc=False):
    """One knock, and what the baselines of all others have to say about it.

    hour                       counted from the Unix epoch
    ports                      what it asked for, one by one
    others_here, others_near   other keys that know its network; its region
    is_tunnel                  its network is no place: people hop to it and back within minutes
    rolled_out                 those of its services that many others began to use this week
    silence_us                 how long the watcher itself was deaf, in all
    sure                       the clock was not set lately
    """

    at_us: int
    place: bytes
    hour: int
    source: str
    access: str
    ports: list[str]
    granted: bool = True
    others_here: int = 0
    others_near: int = 0
    is_tunnel: bool = False
    rolled_out: frozenset[str] = frozenset()
    silence_us: int = 0
    sure: bool = True


def is_far(profile: Profile, seen: Sighting) -> bool:
    """Whether a network is in nobody's neighbourhood: not the profile's own, not that of others."""
    if seen.others_here >= OTHERS or seen.others_near >= OTHERS:
        return False
    region = region_of(seen.place)
    return all(region_of(place) != region for place in profile.places)


def gap_of(profile: Profile, seen: Sighting) -> int:
    """Hours since the last knock, without those in which nobody at all was heard."""
    deaf_us = max(0, seen.silence_us - profile.silence_us)
    return int(max(0, seen.at_us - profile.last_us - deaf_us)) // HOUR_US
