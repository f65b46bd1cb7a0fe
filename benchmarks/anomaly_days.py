"""Sixty days of work, as the daemon would have recorded them: everything that is no intrusion.

People go on trips, get new addresses at home, work late, try services, mistype, knock in vain with
a wrong clock, and come back from a leave. A detector has to live with all of that.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final

from benchmarks.anomaly_people import (
    CATALOGUE,
    DAYS,
    HOLIDAYS,
    Land,
    Person,
    Trip,
    address_in,
    date_of,
    public_network,
)
from spa_server.audit.record import Event, Record

TARGET: Final = "192.0.2.10"
_NIGHT_H: Final = 2.0


def poisson(rng: random.Random, mean: float) -> int:
    """A number of things that happen by chance."""
    count, left = 0, rng.expovariate(1.0)
    while left < mean:
        count, left = count + 1, left + rng.expovariate(1.0)
    return count


def at(person: Person, day: int, hour: float, trip: Trip | None = None) -> int:
    """Microseconds since the epoch, of an hour of the person's (or the place's) own clock."""
    zone = trip.zone if trip else person.zone
    begin = datetime.combine(date_of(day), time(0), zone)
    return int((begin + timedelta(hours=hour)).timestamp() * 1e6)


def knock(person: Person, key: str, source: str, access: str, at_us: int) -> Iterator[Record]:
    """What a granted knock leaves in the record."""
    who = {"identity": person.name, "key_id": key, "source": source, "target": TARGET}
    yield Record(Event.KNOCK_ACCEPTED, at_us, access=access, **who)
    yield Record(Event.HOLE_OPENED, at_us, access=access, rule="roles.x.allow[0]", **who)


def refused(
    person: Person, key: str, source: str, access: str, at_us: int, *, reason: str
) -> Record:
    """What a refused knock leaves in the record."""
    return Record(
        Event.KNOCK_REFUSED,
        at_us,
        identity=person.name,
        key_id=key,
        source=source,
        target=TARGET,
        access=access,
        reason=reason,
    )


def denied(source: str, access: str, at_us: int, target: str = TARGET) -> Record:
    """What the first packet to a closed port leaves in the record."""
    return Record(Event.CONNECTION_DENIED, at_us, source=source, target=target, access=access)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changes for many: services that a team begins to use, people who join another team."""

    rollouts: tuple[tuple[int, int, str], ...]  # day, team, service
    moves: dict[str, int]  # name, day

    @classmethod
    def drawn(cls, seed: int) -> "Changes":
        """Those of one run."""
        rng = random.Random(f"{seed}/changes")
        rollouts = [
            (rng.randrange(5, 55), rng.randrange(10), rng.choice(CATALOGUE)) for _ in range(5)
        ]
        moves = {f"person-{rng.randrange(200):03}": rng.randrange(10, 50) for _ in range(6)}
        return cls(tuple(rollouts), moves)


@dataclass(frozen=True, slots=True)
class _Stay:
    """From hour to hour at an address, None on the way to one.

    `sessions` are what there is in it besides the usual ones.
    """

    begin: float
    end: float
    source: str | None
    sessions: int


class Life:
    """What one person or job does."""

    def __init__(self, person: Person, where: Land, changes: Changes) -> None:
        self._person = person
        self._where = where
        self._changes = changes
        self._known = dict(person.services)

    def records(self) -> Iterator[Record]:
        """The records of 60 days, not in order."""
        person = self._person
        for day in range(DAYS):
            if person.is_job:
                yield from self._job_day(person, day)
            else:
                yield from self._change(person, day)
                yield from self._day(person, day)

    def _change(self, person: Person, day: int) -> Iterator[Record]:
        """New services of the team, another team, or something tried out."""
        rng = person.rng
        for first, team, port in self._changes.rollouts:
            if team == person.team and day == first + rng.randrange(6):
                self._known[port] = 0.5
        if self._changes.moves.get(person.name) == day:
            for port in rng.sample(CATALOGUE, 3):
                self._known[port] = 0.8
            detail = {"actor": "root", "detail": "another team"}
            begin_us = at(person, day, 0)
            yield Record(
                Event.KEYS_CHANGED,
                begin_us,
                identity=person.name,
                reason="role.granted",
                detail=detail,
            )
        if rng.random() < person.company.explores:
            self._known.setdefault(rng.choice(person.allowed), 0.1)

    def _day(self, person: Person, day: int) -> Iterator[Record]:
        rng = person.rng
        if not person.is_here(day):
            if person.joined <= day < person.left and rng.random() < 0.02:
                source = address_in(rng, public_network(rng))
                moment = at(person, day, rng.uniform(9, 22))
                yield from self._knocks(person, moment, source, person.key(day))
            return
        trip = next((one for one in person.trips if one.first <= day < one.until), None)
        if person.shape == "on-call" and (day // 7 + int(person.name[-3:])) % 4 == 0:
            yield from self._incidents(person, day, trip)
        if trip is not None and trip.first == day and trip.zone != person.zone:
            return  # on the plane
        if not self._works_on(person, day):
            if rng.random() < person.weekends:
                network = trip.network if trip else person.home(day)
                yield from self._some(day, rng.uniform(9, 20), 3, network, trip)
            return
        yield from self._work(person, day, trip)

    def _works_on(self, person: Person, day: int) -> bool:
        if person.shape == "shift":
            return (day + int(person.name[-3:])) % 7 < 5
        if person.shape == "seldom":
            return person.rng.random() < 0.2
        date = date_of(day)
        return date.weekday() < 5 and date not in HOLIDAYS and person.rng.random() < 0.97

    def _work(self, person: Person, day: int, trip: Trip | None) -> Iterator[Record]:
        rng = person.rng
        starts = person.starts
        if person.shape == "shift":
            starts = (6.0, 14.0, 22.0)[(day // 7 + int(person.name[-3:])) % 3]
        begin = starts + rng.gauss(0, 0.5)
        end = begin + max(3.0, person.works + rng.gauss(0, 0.8))
        is_home = rng.random() < person.at_home
        base = trip.network if trip else person.home(day) if is_home else person.office
        stays = self._stays(person, day, (begin, end), base, trip)
        hours = [rng.uniform(begin, end) for _ in range(self._sessions(person))]
        for stay in stays[:-1]:
            hours += [rng.uniform(stay.begin, stay.end) for _ in range(stay.sessions)]
        for hour in hours:
            yield from self._session(day, hour, stays, trip)
        if person.phone and rng.random() < 0.3:
            network = rng.choice((person.carrier.network(rng, 40), base))
            moment = at(person, day, rng.uniform(begin - 1, end + 3), trip)
            source = address_in(rng, network)
            yield from self._knocks(person, moment, source, person.phone)
        hour = rng.uniform(begin, end)
        here = next(one for one in stays if one.begin <= hour <= one.end)
        if here.source is not None:
            yield from self._mishaps(person, day, hour, here.source, trip)

    def _sessions(self, person: Person) -> int:
        is_busy = person.rng.random() < 0.01
        return poisson(person.rng, person.sessions * (4 if is_busy else 1))

    def _stays(
        self,
        person: Person,
        day: int,
        hours: tuple[float, float],
        base: str,
        trip: Trip | None,
    ) -> list["_Stay"]:
        """Where a person is when, the exceptions first: nobody is in two places at once."""
        rng = person.rng
        begin, end = hours
        stays = []
        if base == person.office and trip is None:
            if rng.random() < person.commutes:
                ride = rng.choice((begin - 0.8, end))
                network = person.carrier.network(rng, 40)
                stays.append(_Stay(ride, ride + 0.7, address_in(rng, network), 1))
                stays.append(_Stay(ride - 0.12, ride + 0.82, None, 0))
            if rng.random() < person.company.cafe:
                lunch = begin + rng.uniform(3, 4.5)
                network = public_network(rng)
                stays.append(_Stay(lunch, lunch + 0.8, address_in(rng, network), 2))
                stays.append(_Stay(lunch - 0.12, lunch + 0.92, None, 0))  # on the way
            if rng.random() < 0.12:
                source = address_in(rng, person.home(day))
                stays.append(_Stay(end + 1, end + 4, source, 2))
        if rng.random() < person.late:
            network = trip.network if trip else person.home(day)
            late = max(end + 1, 22.0)
            stays.append(_Stay(late, late + 4, address_in(rng, network), 4))
        return [*stays, _Stay(begin - 1, end + 1, address_in(rng, base), 0)]

    def _incidents(self, person: Person, day: int, trip: Trip | None) -> Iterator[Record]:
        rng = person.rng
        network = trip.network if trip else person.home(day)
        for _ in range(poisson(rng, 0.35)):
            hour = rng.uniform(20, 32)
            yield from self._some(day, hour, rng.randrange(3, 10), network, trip)

    def _some(
        self, day: int, hour: float, count: int, network: str, trip: Trip | None
    ) -> Iterator[Record]:
        """A few sessions within an hour or so, from one address."""
        rng = self._person.rng
        stay = _Stay(hour, hour + 3, address_in(rng, network), 0)
        for _ in range(count):
            yield from self._session(day, hour + rng.uniform(0, 0.3 * count), [stay], trip)

    def _session(
        self, day: int, hour: float, stays: list["_Stay"], trip: Trip | None
    ) -> Iterator[Record]:
        """A knock, and often some more that renew its hole, from wherever the person then is."""
        person = self._person
        rng = person.rng
        port = self._port(person)
        tunnel = address_in(rng, rng.choice(self._where.vpn)) if rng.random() < person.vpn else None
        for _ in range(_knocks_of(rng)):
            stay = next((one for one in stays if one.begin <= hour <= one.end), None)
            if stay is None or stay.source is None:
                return
            source = stay.source if stay.source.startswith("10.") else tunnel or stay.source
            yield from knock(person, person.key(day), source, port, at(person, day, hour, trip))
            hour += rng.uniform(1, 40) / 60

    def _knocks(self, person: Person, at_us: int, source: str, key: str) -> Iterator[Record]:
        """The same from one address, wherever its owner is: a phone."""
        rng = person.rng
        port = self._port(person)
        for _ in range(_knocks_of(rng)):
            yield from knock(person, key, source, port, at_us)
            at_us += int(rng.uniform(1, 40) * 60e6)

    def _port(self, person: Person) -> str:
        return person.rng.choices(list(self._known), list(self._known.values()))[0]

    def _mishaps(
        self, person: Person, day: int, hour: float, source: str, trip: Trip | None
    ) -> Iterator[Record]:
        rng = person.rng
        at_us = at(person, day, hour, trip)
        for chance, reason, at_least, at_most in (
            (person.company.mistypes, "no role allows it", 1, 3),
            (0.008, "stale", 2, 5),
            (0.01, "replayed", 1, 2),
            (0.003, "the permission has expired", 3, 11),
        ):
            if rng.random() >= chance:
                continue
            port = (
                rng.choice(CATALOGUE) if reason.startswith("no role") else next(iter(self._known))
            )
            for _ in range(rng.randint(at_least, at_most)):
                yield refused(person, person.key(day), source, port, at_us, reason=reason)
                at_us += int(rng.uniform(2, 300) * 1e6)
        if rng.random() < 0.15:
            for _ in range(rng.randrange(1, 4)):
                yield denied(source, rng.choice(list(self._known)), at_us)
                at_us += int(rng.uniform(11, 900) * 1e6)
        if rng.random() < 0.02:
            for _ in range(rng.randrange(1, 4)):
                yield denied(source, rng.choice(CATALOGUE), at_us)
                at_us += int(rng.uniform(3, 100) * 1e6)

    # Jobs

    def _job_day(self, job: Person, day: int) -> Iterator[Record]:
        rng = job.rng
        network = job.home(day)
        source = f"{network}{20 + int(job.name[-2:])}"
        if rng.random() < 0.01:
            source = f"{self._where.servers[-1]}{90 + int(job.name[-2:])}"  # the standby runs it
        hours = range(24) if job.shape == "job" else [_NIGHT_H]
        for hour in hours:
            moment = at(job, day, hour + job.starts / 6 + rng.gauss(0, 0.02))
            for port in job.services:
                yield from knock(job, job.key(day), source, port, moment)
        if rng.random() < 0.01:
            moment = at(job, day, rng.uniform(0, 23))
            for _ in range(rng.randrange(8, 40)):
                yield from knock(job, job.key(day), source, next(iter(job.services)), moment)
                moment += int(rng.uniform(5, 60) * 1e6)
        if rng.random() < 0.01:
            for _ in range(rng.randrange(1, 6)):
                reason, port = "not allowed at this hour", next(iter(job.services))
                moment = at(job, day, rng.uniform(0, 23))
                yield refused(job, job.key(day), source, port, moment, reason=reason)


def _knocks_of(rng: random.Random) -> int:
    return 1 + int(-math.log(1 - rng.random()) * 0.8)


def noise(seed: int, where: Land) -> Iterator[Record]:
    """Packets that are denied every day: monitoring, chatty hosts, the Internet's background."""
    rng = random.Random(f"{seed}/noise")
    begin_us = int(datetime.combine(date_of(0), time(0), UTC).timestamp() * 1e6)
    monitor = "10.9.0.5"
    for day in range(DAYS):
        for hour in range(24):
            moment = begin_us + (day * 24 + hour) * 3_600_000_000 + rng.randrange(10**9)
            for port in ("tcp/9100", "tcp/9273", "udp/161"):
                yield denied(monitor, port, moment)
        for _ in range(poisson(rng, 20)):
            source = address_in(rng, rng.choice(where.offices))
            port = rng.choice(("udp/5353", "udp/1900", "udp/137", "tcp/445"))
            yield denied(source, port, begin_us + int((day + rng.random()) * 86400e6))
        for _ in range(poisson(rng, 30)):
            source = address_in(rng, public_network(rng))
            moment = begin_us + int((day + rng.random()) * 86400e6)
            for _ in range(min(8, 1 + poisson(rng, 0.8))):
                port = (
                    f"tcp/{rng.choice((22, 23, 80, 443, 445, 3389, 8080, rng.randrange(1, 65536)))}"
                )
                yield denied(source, port, moment)
                moment += int(rng.uniform(1, 3000) * 1e6)
