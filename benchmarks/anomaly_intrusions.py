"""Intrusions, each with a label: whose, from where, from when until when.

An intruder rarely comes in a shape that is easy to see: most use a service that the victim uses,
some come at the victim's own hours or from the victim's own provider.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from benchmarks.anomaly_days import at, denied, knock, refused
from benchmarks.anomaly_people import CATALOGUE, Land, Person, address_in, public_network
from spa_server.audit.record import Event, Record

FIRST_INTRUSION_DAY: Final = 14
LAST_INTRUSION_DAY: Final = 58
_FAMILIAR: Final = 0.6
_MINUTE_US: Final = 60_000_000
_HOUR_US: Final = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Intrusion:
    """What happened from `begins_us` to `ends_us`, to an identity or from some sources."""

    kind: str
    identity: str | None
    sources: frozenset[str]
    begins_us: int
    ends_us: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What an intrusion is made from. `past` has the victim's accepted knocks, in order."""

    rng: random.Random
    where: Land
    people: list[Person]
    past: dict[str, list[Record]]

    def day_of_work(self, victim: Person) -> list[Record]:
        """The knocks of one day on which the victim worked, empty where there is none."""
        knocks = [one for one in self.past[victim.name] if one.event is Event.KNOCK_ACCEPTED]
        days: dict[int, list[Record]] = {}
        for one in knocks:
            days.setdefault(one.at_us // (24 * _HOUR_US), []).append(one)
        first = min(days, default=0)
        begin = min((one.at_us for one in self.past["*"]), default=0) // (24 * _HOUR_US)
        fit = [
            day
            for day, those in days.items()
            if day - begin in range(FIRST_INTRUSION_DAY, LAST_INTRUSION_DAY)
            and day > first + 2
            and len(those) >= 2
        ]
        return days[self.rng.choice(fit)] if fit else []

    def own_knock(self, victim: Person) -> Record | None:
        """One of such a day, if there is any."""
        those = self.day_of_work(victim)
        return self.rng.choice(those) if those else None

    def from_elsewhere(self, victim: Person) -> str:
        """Where an intruder comes from: mostly anywhere, at times the victim's own provider."""
        pool = victim.provider if self.rng.random() < 0.15 else None
        network = pool.network(self.rng) if pool else public_network(self.rng)
        return address_in(self.rng, network)

    def port(self, victim: Person) -> str:
        """What an intruder asks for."""
        if self.rng.random() < _FAMILIAR:
            return self.rng.choice(list(victim.services))
        return self.rng.choice(victim.allowed)


Made = tuple[list[Record], Intrusion]


def _label(kind: str, records: list[Record], victim: Person | None) -> Made:
    sources = (
        frozenset(one.source for one in records if one.source) if victim is None else frozenset()
    )
    moments = [one.at_us for one in records]
    name = victim.name if victim else None
    return records, Intrusion(kind, name, sources, min(moments), max(moments))


def _visit(scene: Scene, victim: Person, source: str, at_us: int, count: int) -> Iterator[Record]:
    """Some knocks by an intruder, now and then for what the victim may not reach."""
    rng = scene.rng
    key = victim.keys[0][2]
    for _ in range(count):
        if rng.random() < 0.15:
            port = rng.choice(CATALOGUE)
            yield refused(victim, key, source, port, at_us, reason="no role allows it")
        else:
            yield from knock(victim, key, source, scene.port(victim), at_us)
        at_us += int(rng.uniform(1, 25) * _MINUTE_US)


def stolen_key_at_night(scene: Scene, victim: Person) -> Made | None:
    """A stolen key, from a network never seen, between 0 and 5 o'clock."""
    rng = scene.rng
    day = rng.randrange(FIRST_INTRUSION_DAY, LAST_INTRUSION_DAY)
    moment = at(victim, day, rng.uniform(0, 5))
    source = scene.from_elsewhere(victim)
    return _label(
        "stolen key, at night",
        [*_visit(scene, victim, source, moment, rng.randrange(1, 7))],
        victim,
    )


def stolen_key_by_day(scene: Scene, victim: Person) -> Made | None:
    """A stolen key, from a network never seen, on a day and in the hours of the victim's work."""
    those = scene.day_of_work(victim)
    if not those:
        return None
    moment = scene.rng.randrange(those[0].at_us, those[-1].at_us + 1)
    source = scene.from_elsewhere(victim)
    records = [*_visit(scene, victim, source, moment, scene.rng.randrange(2, 9))]
    return _label("stolen key, by day", records, victim)


def two_places(scene: Scene, victim: Person) -> Made | None:
    """Minutes after the victim's own knocks, for the same service, from elsewhere; some times."""
    those = scene.day_of_work(victim)
    if len(those) < 3:
        return None
    rng = scene.rng
    source = scene.from_elsewhere(victim)
    records: list[Record] = []
    for own in rng.sample(those, min(len(those), rng.randrange(2, 5))):
        moment = own.at_us + int(rng.uniform(1, 12) * _MINUTE_US)
        records += knock(victim, victim.keys[0][2], source, own.access or "", moment)
    return _label("two places at once", records, victim)


def lateral(scene: Scene, victim: Person) -> Made | None:
    """From the victim's own network and in its hours: services that the victim never used."""
    rng, own = scene.rng, scene.own_knock(victim)
    if own is None:
        return None
    moment, records = own.at_us, []
    others = [port for port in CATALOGUE if port not in victim.services]
    for port in rng.sample(others, rng.randrange(3, 8)):
        moment += int(rng.uniform(1, 35) * _MINUTE_US)
        if port in victim.allowed or rng.random() < 0.4:
            records += knock(victim, own.key_id or "", own.source or "", port, moment)
        else:
            reason = "no role allows it"
            records.append(
                refused(victim, own.key_id or "", own.source or "", port, moment, reason=reason)
            )
    return _label("lateral movement", records, victim)


def mass_use(scene: Scene, victim: Person) -> Made | None:
    """From the victim's own network, for a usual service: many times in a few hours."""
    rng, own = scene.rng, scene.own_knock(victim)
    if own is None:
        return None
    spread_us = int(rng.uniform(0.5, 3) * _HOUR_US)
    moments = sorted(own.at_us + rng.randrange(spread_us) for _ in range(rng.randrange(60, 200)))
    records: list[Record] = []
    for moment in moments:
        records += knock(victim, own.key_id or "", own.source or "", own.access or "", moment)
    return _label("mass use", records, victim)


def replays(scene: Scene, victim: Person) -> Made | None:
    """A recorded knock, sent again and again."""
    rng, own = scene.rng, scene.own_knock(victim)
    if own is None:
        return None
    source = own.source if rng.random() < 0.5 else scene.from_elsewhere(victim)
    moment, records = own.at_us + int(rng.uniform(1, 600) * 1e6), []
    for _ in range(rng.randrange(5, 40)):
        records.append(
            refused(
                victim, own.key_id or "", source or "", own.access or "", moment, reason="replayed"
            )
        )
        moment += int(rng.uniform(0.2, 60) * 1e6)
    return _label("replays", records, victim)


def forged(scene: Scene, victim: Person) -> Made | None:
    """Someone who saw the victim's tag sends what is not authentic; the tally counts it."""
    rng, own = scene.rng, scene.own_knock(victim)
    if own is None:
        return None
    moment, records = own.at_us, []
    for _ in range(rng.randrange(1, 8)):
        source = scene.from_elsewhere(victim)
        key = victim.keys[0][2]
        one = refused(victim, key, source, "", moment, reason="not-authentic")
        records.append(one)
        detail = {"further": rng.randrange(8, 200)}
        more = Record(
            one.event,
            moment + 10_000_000,
            key_id=key,
            source=source,
            reason=one.reason,
            detail=detail,
        )
        records.append(more)
        moment += int(rng.uniform(10, 300) * 1e6)
    return _label("forged knocks", records, victim)


def woken(scene: Scene, victim: Person) -> Made | None:
    """The key of someone who left, or is on a long leave, is used."""
    knocks = [one for one in scene.past[victim.name] if one.event is Event.KNOCK_ACCEPTED]
    begin_us = scene.past["*"][0].at_us
    last_us = begin_us + LAST_INTRUSION_DAY * 24 * _HOUR_US
    moments = [one.at_us for one in knocks] + [last_us]
    gaps = [
        (before, after)
        for before, after in pairwise(moments)
        if after - before > 20 * 24 * _HOUR_US
    ]
    if len(knocks) < 12 or not gaps:
        return None
    rng = scene.rng
    before, after = gaps[0]
    moment = rng.randrange(before + 15 * 24 * _HOUR_US, after - 12 * _HOUR_US)
    source = knocks[-1].source or ""
    if rng.random() < 0.7:
        source = scene.from_elsewhere(victim)
    records = [*_visit(scene, victim, source, moment, rng.randrange(1, 6))]
    return _label("sleeping key woken", records, victim)


def stolen_from_a_job(scene: Scene, victim: Person) -> Made | None:
    """A service account's key, used from elsewhere: half the time from inside."""
    rng = scene.rng
    day = rng.randrange(FIRST_INTRUSION_DAY, LAST_INTRUSION_DAY)
    moment = at(victim, day, rng.uniform(0, 24))
    inside = rng.choice((*scene.where.offices, *scene.where.vpn, "10.11.4."))
    source = scene.from_elsewhere(victim) if rng.random() < 0.5 else address_in(rng, inside)
    records: list[Record] = []
    for _ in range(rng.randrange(1, 9)):
        port = next(iter(victim.services)) if rng.random() < 0.6 else rng.choice(CATALOGUE)
        is_granted = port in victim.services
        key = victim.keys[0][2]
        if is_granted:
            records += knock(victim, key, source, port, moment)
        else:
            records.append(refused(victim, key, source, port, moment, reason="no role allows it"))
        moment += int(rng.uniform(0.3, 20) * _MINUTE_US)
    return _label("stolen from a job", records, victim)


def _scan(scene: Scene, kind: str, count: int, pause_s: tuple[float, float]) -> Made:
    """Closed ports, or one port of many targets, from inside or from the Internet."""
    rng = scene.rng
    is_inside = rng.random() < 0.6
    source = address_in(rng, rng.choice(scene.where.offices) if is_inside else public_network(rng))
    day = rng.randrange(FIRST_INTRUSION_DAY, LAST_INTRUSION_DAY)
    moment = scene.past["*"][0].at_us + day * 24 * _HOUR_US + rng.randrange(24 * _HOUR_US)
    wide = rng.random() < 0.2
    port = rng.choice(CATALOGUE)
    records = []
    for number in range(count):
        target = f"192.0.2.{10 + number % 200}" if wide else "192.0.2.10"
        access = port if wide else f"tcp/{rng.randrange(1, 10000)}"
        records.append(denied(source, access, moment, target))
        moment += int(rng.uniform(*pause_s) * 1e6)
    return _label(kind, records, None)


def slow_scan(scene: Scene, _: Person) -> Made | None:
    """One port every few minutes."""
    return _scan(scene, "slow scan", scene.rng.randrange(25, 80), (300, 2400))


def fast_scan(scene: Scene, _: Person) -> Made | None:
    """Hundreds of ports within a minute."""
    return _scan(scene, "fast scan", scene.rng.randrange(50, 300), (0.01, 0.5))


Maker = Callable[[Scene, Person], Made | None]
_PLAN: Final[tuple[tuple[Maker, int], ...]] = (
    (stolen_key_at_night, 10),
    (stolen_key_by_day, 8),
    (two_places, 6),
    (lateral, 8),
    (mass_use, 5),
    (replays, 5),
    (forged, 4),
    (woken, 6),
    (stolen_from_a_job, 5),
    (slow_scan, 6),
    (fast_scan, 4),
)


def intrusions(seed: int, where: Land, people: list[Person], past: list[Record]) -> list[Made]:
    """Those of one run: nobody is a victim twice."""
    own: dict[str, list[Record]] = {person.name: [] for person in people}
    for one in past:
        if one.identity:
            own[one.identity].append(one)
    own["*"] = past[:1]
    scene = Scene(random.Random(f"{seed}/intrusions"), where, people, own)
    jobs = [person for person in people if person.is_job]
    others = [person for person in people if not person.is_job]
    made: list[Made] = []
    for maker, count in _PLAN:
        candidates = jobs if maker is stolen_from_a_job else others
        scene.rng.shuffle(candidates)
        for _ in range(count):
            found = _first(maker, scene, candidates)
            if found is not None:
                made.append(found)
    return made


def _first(maker: Maker, scene: Scene, candidates: list[Person]) -> Made | None:
    """An intrusion on the first of the candidates on whom it can be made, who then is none."""
    for victim in candidates:
        made = maker(scene, victim)
        if made is not None:
            candidates.remove(victim)
            return made
    return None
