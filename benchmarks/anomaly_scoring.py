"""How good alarms are, held against the truth.

An intrusion is found when an alarm about its identity, or one of its sources, comes from its first
packet to a day after its last. An alarm that belongs to no intrusion is false. Alarms about one
subject within an hour count once, and so do all alarms of one intrusion: many alarms about the same
thing make nobody more precise.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from benchmarks.anomaly_intrusions import Intrusion
from benchmarks.anomaly_people import DAYS
from benchmarks.anomaly_world import World
from spa_server.anomaly.finding import Anomaly
from spa_server.anomaly.settings import Settings
from spa_server.anomaly.watcher import Watcher

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
MISSED: Final = "missed"
FALSE: Final = "no intrusion"


@dataclass(slots=True)
class Score:
    """Counts over one run or several. `confusion` has (kind of intrusion, name of the alarm).

    `delays_h` has hours from the first packet of an intrusion to its first alarm, `during` how many
    came before its last packet. `person_days` has (is an intrusion's, has an alarm).
    """

    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)
    person_days: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    delays_h: list[float] = field(default_factory=list)
    during: int = 0
    runs: int = 0

    def __iadd__(self, other: "Score") -> "Score":
        self.confusion += other.confusion
        self.person_days += other.person_days
        self.delays_h += other.delays_h
        self.during += other.during
        self.runs += other.runs
        return self

    @property
    def intrusions(self) -> int:
        """How many there were."""
        return sum(count for (kind, _), count in self.confusion.items() if kind != FALSE)

    @property
    def missed(self) -> int:
        """How many of them nobody was told of."""
        return sum(count for (_, name), count in self.confusion.items() if name == MISSED)

    @property
    def false(self) -> int:
        """How many alarms belong to no intrusion."""
        return sum(count for (kind, _), count in self.confusion.items() if kind == FALSE)

    @property
    def recall(self) -> float:
        """What share of the intrusions was found."""
        return 1 - self.missed / max(1, self.intrusions)

    @property
    def precision(self) -> float:
        """What share of what was told is an intrusion, each told once."""
        found = self.intrusions - self.missed
        return found / max(1, found + self.false)

    @property
    def false_a_day(self) -> float:
        """False alarms on one day."""
        return self.false / max(1, self.runs * DAYS)

    def of_kind(self, kind: str) -> tuple[int, int]:
        """How many intrusions of a kind were found, and how many there were."""
        total = sum(count for (one, _), count in self.confusion.items() if one == kind)
        return total - self.confusion[kind, MISSED], total


def watch(world: World, settings: Settings | None = None) -> list[Anomaly]:
    """What a watcher that begins with the world says."""
    watcher = Watcher(settings)
    return [anomaly for record in world.records for anomaly in watcher.see(record)]


def once_an_hour(anomalies: Iterable[Anomaly]) -> list[Anomaly]:
    """Those of one subject within an hour count once."""
    last_us: dict[str | None, int] = {}
    kept = []
    for anomaly in sorted(anomalies, key=lambda one: one.at_us):
        subject = anomaly.identity or anomaly.source
        if anomaly.at_us - last_us.get(subject, -HOUR_US) >= HOUR_US:
            last_us[subject] = anomaly.at_us
            kept.append(anomaly)
    return kept


def score(world: World, anomalies: Iterable[Anomaly]) -> Score:
    """Holds the alarms of one run against its intrusions."""
    result = Score(runs=1)
    first: dict[int, Anomaly] = {}
    alarms = once_an_hour(anomalies)
    for alarm in alarms:
        mine = [n for n, one in enumerate(world.intrusions) if _belongs(alarm, one)]
        for number in mine:
            first.setdefault(number, alarm)
        if not mine:
            result.confusion[FALSE, alarm.name.value] += 1
    for number, intrusion in enumerate(world.intrusions):
        found = first.get(number)
        result.confusion[intrusion.kind, found.name.value if found else MISSED] += 1
        if found is not None:
            result.delays_h.append((found.at_us - intrusion.begins_us) / HOUR_US)
            result.during += found.at_us <= intrusion.ends_us
    result.person_days = _person_days(world, alarms)
    return result


def _belongs(alarm: Anomaly, intrusion: Intrusion) -> bool:
    if not intrusion.begins_us <= alarm.at_us <= intrusion.ends_us + DAY_US:
        return False
    is_its = intrusion.identity is not None and intrusion.identity == alarm.identity
    return is_its or alarm.source in intrusion.sources


def _person_days(world: World, alarms: Iterable[Anomaly]) -> Counter[tuple[bool, bool]]:
    """Days on which somebody knocked, with or without an intrusion, with or without an alarm."""
    active = {(one.identity, one.at_us // DAY_US) for one in world.records if one.identity}
    alarmed = {(one.identity, one.at_us // DAY_US) for one in alarms if one.identity}
    intruded = {
        (one.identity, day)
        for one in world.intrusions
        if one.identity
        for day in range(one.begins_us // DAY_US, (one.ends_us + DAY_US) // DAY_US + 1)
    }
    return Counter((day in intruded, day in alarmed) for day in active)
