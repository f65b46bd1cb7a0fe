"""One run of the simulator: a record of 60 days, and the intrusions that are in it."""

import random
from dataclasses import dataclass

from benchmarks.anomaly_days import Changes, Life, noise
from benchmarks.anomaly_intrusions import Intrusion, intrusions
from benchmarks.anomaly_people import ORDINARY, Company, land, population
from spa_server.audit.record import Record


@dataclass(frozen=True, slots=True)
class World:
    """The records in the order of time, and the truth about them."""

    records: list[Record]
    intrusions: list[Intrusion]


def world(seed: int, company: Company = ORDINARY) -> World:
    """The same for the same seed."""
    where = land(random.Random(f"{seed}/land"))
    people, changes = population(seed, where, company), Changes.drawn(seed)
    records = [one for person in people for one in Life(person, where, changes).records()]
    records.sort(key=lambda one: one.at_us)
    made = intrusions(seed, where, people, records)
    records += [one for those, _ in made for one in those]
    records += noise(seed, where)
    records.sort(key=lambda one: one.at_us)
    return World(records, [intrusion for _, intrusion in made])
