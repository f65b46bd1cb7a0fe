"""The simulator and the scoring: what makes the figures in benchmarks/anomaly.md."""

import random
from collections import Counter
from dataclasses import replace

from benchmarks.anomaly_days import Changes, Life, noise
from benchmarks.anomaly_intrusions import Intrusion, intrusions
from benchmarks.anomaly_people import ORDINARY, RESTLESS, Person, land, population
from benchmarks.anomaly_scoring import FALSE, MISSED, Score, once_an_hour, score
from benchmarks.anomaly_world import World
from spa_server.anomaly.finding import Anomaly, Kind
from spa_server.anomaly.places import place_of
from spa_server.audit.record import Event, Record
from tests.anomaly_life import HOUR_US, MINUTE_US, at, knock

STOLEN = Intrusion("stolen", "alice", frozenset(), at(20, 2), at(20, 3))
SCAN = Intrusion("scan", None, frozenset({"198.51.100.7"}), at(30), at(31))
WORLD = World([knock(at(day, 9)) for day in range(40)], [STOLEN, SCAN])


def alarm(at_us: int, identity: str | None = "alice", source: str = "10.1.1.7") -> Anomaly:
    return Anomaly(Kind.NEW_NETWORK, 0.9, at_us, (), identity=identity, source=source)


class TestScoring:
    def test_an_alarm_belongs_until_a_day_after(self) -> None:
        for at_us, is_its in (
            (at(20, 2) - 1, False),
            (at(20, 2), True),
            (at(21, 3), True),
            (at(21, 3) + 1, False),
        ):
            found = score(WORLD, [alarm(at_us)])
            assert (found.missed, found.false) == ((1, 0) if is_its else (2, 1))

    def test_it_belongs_by_identity_or_by_source(self) -> None:
        assert score(WORLD, [alarm(at(20, 2), "bob")]).false == 1
        scan = replace(alarm(at(30, 5), None, "198.51.100.7"), name=Kind.SCAN)
        found = score(WORLD, [scan])
        assert found.confusion == {("stolen", MISSED): 1, ("scan", "scan"): 1}

    def test_many_alarms_of_one_intrusion_make_nobody_more_precise(self) -> None:
        many = [alarm(at(20, 2) + n * 2 * HOUR_US) for n in range(10)]
        found = score(WORLD, [*many, alarm(at(5))])
        assert (found.recall, found.precision) == (0.5, 0.5)

    def test_alarms_of_a_subject_within_an_hour_count_once(self) -> None:
        burst = [alarm(at(5) + n * 10 * MINUTE_US) for n in range(7)]
        assert [one.at_us for one in once_an_hour(burst)] == [at(5), at(5) + HOUR_US]
        assert len(once_an_hour([alarm(at(5)), alarm(at(5), "bob")])) == 2

    def test_runs_add_up(self) -> None:
        whole = Score()
        whole += score(WORLD, [alarm(at(20, 2))])
        whole += score(WORLD, [alarm(at(5)), alarm(at(6), "bob")])
        assert (whole.runs, whole.intrusions, whole.missed, whole.false) == (2, 4, 3, 2)
        assert whole.false_a_day == 2 / 120
        assert whole.confusion[FALSE, "new-network"] == 2
        assert whole.of_kind("stolen") == (1, 2)


def some_people(seed: int) -> list[Person]:
    people = population(seed, land(random.Random(f"{seed}/land")), ORDINARY)
    return [*people[:12], *people[-4:]]


def lives(seed: int) -> tuple[list[Person], list[Record]]:
    people, changes = some_people(seed), Changes.drawn(seed)
    where = land(random.Random(f"{seed}/land"))
    records = [one for person in people for one in Life(person, where, changes).records()]
    return people, sorted(records, key=lambda one: one.at_us)


class TestSimulator:
    def test_a_seed_makes_the_same_world(self) -> None:
        assert lives(3)[1] == lives(3)[1]
        assert lives(3)[1] != lives(4)[1]
        where = land(random.Random("3/land"))
        assert list(noise(3, where)) == list(noise(3, where))

    def test_nobody_is_in_two_places_at_once_but_through_the_tunnel(self) -> None:
        """Between knocks of one laptop from different networks there is time to walk."""
        _, records = lives(5)
        last: dict[str, Record] = {}
        hurried = Counter[str]()
        for one in records:
            key = one.key_id or ""
            if one.event is not Event.KNOCK_ACCEPTED or "phone" in key or "job" in key:
                continue
            before = last.get(key)
            last[key] = one
            ends = [one.source or "", before.source or ""] if before else ["", ""]
            is_tunnel = any(end.startswith("10.200.") for end in ends)
            if before and place_of(ends[0]) != place_of(ends[1]) and not is_tunnel:
                hurried[key] += one.at_us - before.at_us < 5 * MINUTE_US
        assert sum(hurried.values()) <= 2

    def test_intrusions_are_in_their_windows_and_nobody_is_a_victim_twice(self) -> None:
        people, records = lives(6)
        where = land(random.Random("6/land"))
        made = intrusions(6, where, people, records)
        assert len(made) >= 10
        for those, one in made:
            assert min(r.at_us for r in those) == one.begins_us
            assert max(r.at_us for r in those) == one.ends_us
            assert all(r.identity in (one.identity, None) for r in those)
        victims = Counter(one.identity for _, one in made if one.identity)
        assert max(victims.values()) == 1

    def test_the_restless_company_is_more_restless(self) -> None:
        trips = []
        for company in (ORDINARY, RESTLESS):
            people = population(7, land(random.Random("7/land")), company)
            trips.append(sum(len(person.trips) for person in people))
        assert trips[1] > 1.5 * trips[0]
