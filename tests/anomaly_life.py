"""Somebody's weeks, for the tests of the watcher: an office, a home, two services, office hours."""

from collections.abc import Iterable, Iterator

from spa_server.anomaly.finding import Anomaly
from spa_server.anomaly.watcher import Watcher
from spa_server.audit.record import Event, Record

MONDAY_US = 1_772_409_600_000_000  # 2026-03-02, 00:00 UTC
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
OFFICE, HOME, AWAY = "10.1.1.7", "203.0.113.9", "198.51.100.23"
NIGHT = 2.5


def at(day: float, hour: float = 0.0) -> int:
    """Microseconds, of an hour (UTC) of a day; day 0 is a Monday."""
    return MONDAY_US + round((day * 24 + hour) * HOUR_US)


def knock(
    at_us: int,
    source: str = OFFICE,
    access: str = "tcp/22",
    *,
    who: str = "alice",
    key: str | None = None,
) -> Record:
    """A granted knock."""
    return Record(
        Event.KNOCK_ACCEPTED,
        at_us,
        identity=who,
        key_id=key or f"key-{who}",
        source=source,
        target="192.0.2.1",
        access=access,
    )


def refusal(
    at_us: int, reason: str, source: str = OFFICE, access: str = "tcp/22", *, who: str = "alice"
) -> Record:
    """A refused knock of a known key."""
    return Record(
        Event.KNOCK_REFUSED,
        at_us,
        identity=who,
        key_id=f"key-{who}",
        source=source,
        access=access,
        reason=reason,
    )


def denial(at_us: int, source: str, access: str, target: str = "192.0.2.1") -> Record:
    """A denied connection."""
    return Record(Event.CONNECTION_DENIED, at_us, source=source, target=target, access=access)


def working_day(day: int, *, who: str = "alice", key: str | None = None) -> Iterator[Record]:
    """Six knocks at the office for ssh, two for the database; on Fridays from home."""
    source = HOME if day % 7 == 4 else OFFICE
    for hour in (8.1, 8.9, 10.2, 11.5, 13.4, 15.8):
        yield knock(at(day, hour), source, who=who, key=key)
    for hour in (9.3, 14.6):
        yield knock(at(day, hour), source, "tcp/5432", who=who, key=key)


def weeks(first: int, until: int, *, who: str = "alice", key: str | None = None) -> list[Record]:
    """The working days from one day up to, not including, another; in the order of time."""
    days = (day for day in range(first, until) if day % 7 < 5)
    records = [one for day in days for one in working_day(day, who=who, key=key)]
    return sorted(records, key=lambda one: one.at_us)


def see(watcher: Watcher, records: Iterable[Record]) -> list[Anomaly]:
    """What a watcher says to all of them."""
    return [anomaly for record in records for anomaly in watcher.see(record)]


def familiar(until: int = 42, **options: int) -> Watcher:
    """A watcher that knows alice, bob and a job since day 0."""
    watcher = Watcher(**options)  # type: ignore[arg-type]  # at_hand is an int
    records = weeks(0, until) + weeks(0, until, who="bob")
    records += [
        knock(at(day, hour), "10.9.0.4", "tcp/443", who="job")
        for day in range(until)
        for hour in range(24)
    ]
    said = see(watcher, sorted(records, key=lambda one: one.at_us))
    assert said == [], "an ordinary life is nothing to tell of"
    return watcher
