"""The meter: what has happened since the daemon began, in numbers, and the latest of it by name.

Pure: no clock, no socket, no file. It is handed every record as it is written, and told how long a
batch of knocks took; a knock that opens a hole costs it less than a microsecond. What it holds is
bounded, whoever sends what. spa_server/metrics.py and `spa-server top` show it.
"""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from spa_server.audit.folding import Counted
from spa_server.audit.record import Event, Record

BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)
"""The upper bounds of the histograms, in seconds; what took longer has a bucket of its own."""

OTHER: Final = "other"
_MAX_REASONS: Final = 64
_MAX_LABEL: Final = 64
_RECENT: Final = 100
_MAX_DENIED: Final = 1000


@dataclass(slots=True)
class Histogram:
    """How often something took how long; one count for each bound, and one beyond them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def observe(self, took_s: float, times: int = 1) -> None:
        """Counts what took so many seconds, so many times."""
        self.counts[bisect_left(BOUNDS_S, took_s)] += times
        self.sum_s += took_s * times

    def copy(self) -> "Histogram":
        """One that does not change any more."""
        return Histogram(list(self.counts), self.sum_s)


@dataclass(slots=True)
class Denied:
    """Packets of one source to one port: how many at least, and when the last was heard of."""

    packets: int
    last_us: int


class Meter:
    """Counts and latencies since the daemon began. Not for several threads: `copy` is."""

    def __init__(self) -> None:
        self.events: defaultdict[str, int] = defaultdict(int)
        self.refused: dict[str, int] = {}
        self.denied: defaultdict[str, int] = defaultdict(int)
        self.lost: dict[str, int] = {}
        self.anomalies: dict[str, int] = {}
        self.decision = Histogram()
        self.opening = Histogram()
        self.recent: deque[Record] = deque(maxlen=_RECENT)
        self.sources: dict[tuple[str, str], Denied] = {}
        self._heard_s = 0.0

    # Records

    def written(self, records: Sequence[Record], _first_id: int = 0) -> None:
        """What has just been written, to the record or to the denials."""
        events = self.events
        for record in records:
            event = record.event
            events[event] += 1
            look = _LOOKS.get(event)
            if look is not None:
                look(self, record)

    def _knocked(self, record: Record) -> None:
        self.recent.append(record)

    def _refused(self, record: Record) -> None:
        self.recent.append(record)
        _add(self.refused, record.reason or OTHER, _count(record, "further"))

    def _denied(self, record: Record) -> None:
        count = _count(record, "further", "count")
        self.denied[record.event] += count
        self._came_from((record.source or "", record.access or ""), count, record.at_us)

    def counted(self, event: Event, counts: Iterable[Counted], now_us: int) -> None:
        """Denials that the kernel has counted, of which there are no records."""
        for source, _, access, count in counts:
            self.denied[event] += count
            self._came_from((source or "", access or ""), count, now_us)

    def _came_from(self, kind: tuple[str, str], count: int, at_us: int) -> None:
        known = self.sources.pop(kind, None)
        if known is None:
            known = Denied(0, at_us)
            if len(self.sources) >= _MAX_DENIED:
                del self.sources[next(iter(self.sources))]
        known.packets += count
        known.last_us = at_us
        self.sources[kind] = known

    def _lost(self, record: Record) -> None:
        _add(self.lost, str(record.detail.get("of", "record")), _count(record, "count"))

    def _anomaly(self, record: Record) -> None:
        _add(self.anomalies, str(record.detail.get("kind", OTHER)), 1)

    # Time

    def heard(self) -> None:
        """A batch of datagrams is about to be judged."""
        self._heard_s = perf_counter()

    def decided(self, knocks: int) -> None:
        """So many of the batch have been judged and ruled on."""
        self.decision.observe(perf_counter() - self._heard_s, knocks)

    def opened(self, knocks: int) -> None:
        """The holes of so many are open, after they were written down."""
        self.opening.observe(perf_counter() - self._heard_s, knocks)

    # Telling

    def copy(self) -> "Meter":
        """The numbers as they are now, for another thread; without `recent` and `sources`."""
        copied = Meter()
        copied.events |= self.events
        copied.refused = dict(self.refused)
        copied.denied |= self.denied
        copied.lost = dict(self.lost)
        copied.anomalies = dict(self.anomalies)
        copied.decision = self.decision.copy()
        copied.opening = self.opening.copy()
        return copied

    def told(self, limit: int) -> dict[str, Any]:
        """Counts, the latest knocks and the denials heard of last, in JSON's types."""
        refused = sum(self.refused.values())
        return {
            "accepted": self.events.get(Event.KNOCK_ACCEPTED, 0),
            "refused": refused,
            "denied": sum(self.denied.values()),
            "recent": [_line(record) for record in list(self.recent)[-limit:][::-1]],
            "sources": [
                {
                    "source": source,
                    "access": access,
                    "packets": denied.packets,
                    "last_us": denied.last_us,
                }
                for (source, access), denied in list(self.sources.items())[-limit:][::-1]
            ],
        }


def _count(record: Record, *names: str) -> int:
    """How many packets or lines a record stands for."""
    for name in names:
        count = record.detail.get(name)
        if isinstance(count, int):
            return count
    return 1


def _add(counts: dict[str, int], label: str, count: int) -> None:
    """Labels are few by nature; should they not be, the rest share one."""
    label = label[:_MAX_LABEL]
    if label not in counts and len(counts) >= _MAX_REASONS:
        label = OTHER
    counts[label] = counts.get(label, 0) + count


def _line(record: Record) -> dict[str, Any]:
    return {
        "at_us": record.at_us,
        "event": record.event.value,
        "identity": record.identity,
        "source": record.source,
        "access": record.access,
        "reason": record.reason,
    }


def _look_at(event: Event) -> Callable[[Meter, Record], None] | None:
    looks: Mapping[Event, Callable[[Meter, Record], None]] = {
        Event.KNOCK_ACCEPTED: Meter._knocked,
        Event.KNOCK_REFUSED: Meter._refused,
        Event.JOIN_ACCEPTED: Meter._knocked,
        Event.JOIN_REFUSED: Meter._knocked,
        Event.CONNECTION_DENIED: Meter._denied,
        Event.CONNECTION_WOULD_DENY: Meter._denied,
        Event.RECORDS_LOST: Meter._lost,
    }
    return Meter._anomaly if event.startswith("anomaly") else looks.get(event)


_LOOKS: Final = {event: look for event in Event if (look := _look_at(event)) is not None}
