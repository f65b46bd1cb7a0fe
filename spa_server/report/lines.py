"""The record and the denials beside it, summed up by SQLite.

Each question reads the record once; what comes back is a few thousand rows at most, whatever the
record's size. Times are microseconds since the Unix epoch. Everything raises sqlite3.Error.
"""

import json
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from spa_server.audit.asking import sentences
from spa_server.report.buckets import Buckets
from spa_server.report.facts import Denials, Denied, Found, Line, Listing, Refusal

_ACTIVITY: Final = """
    select event, (at_us - :begins) / :step, count(*) from event where at_us >= :since
    group by 1, 2"""
# Whoever has altered a line may have left no JSON in it: the report is still to be made.
_READ: Final = "case when json_valid(detail) then json_extract(detail, '$.{}') end"
_FURTHER, _COUNT, _PORTS = (_READ.format(name) for name in ("further", "count", "ports"))
_REFUSALS: Final = f"""
    select coalesce(reason, ''), sum(1 + coalesce({_FURTHER}, 0)), count(distinct identity),
        max(at_us)
    from event where event = 'knock.refused' and at_us >= :since group by 1"""  # noqa: S608 - ours
_UNPROVEN: Final = """
    select coalesce(reason, ''), sum(count), count(distinct identity), max(at_us)
    from denial where event = 'knock.refused' and at_us >= :since group by 1"""
_IN_RECORD: Final = f"""
    select source, access, (at_us - :begins) / :step, sum(coalesce({_FURTHER}, {_COUNT}, 1)),
        min(at_us), max(at_us), max({_PORTS})
    from event where event = :event and at_us >= :since group by 1, 2, 3"""  # noqa: S608 - ours
_APART: Final = f"""
    select source, access, (at_us - :begins) / :step, sum(count), min(at_us), max(at_us),
        max({_PORTS})
    from denial where event = :event and at_us >= :since group by 1, 2, 3"""  # noqa: S608 - ours
_TOLD: Final = """
    select at_us, event, identity, key_id, source, target, access, reason, rule, detail
    from event where at_us >= :since and event not glob 'knock.*' and event not glob 'hole.*'
        and event not glob 'connection.*' and event not in ('keys.changed', 'close.asked')
    order by id"""
_PORTS_TOLD: Final = 8


def activity(
    connection: sqlite3.Connection, since_us: int, buckets: Buckets
) -> Mapping[str, tuple[int, ...]]:
    """How many lines of each event there are in each step."""
    values = {"since": since_us, "begins": buckets.begins_us, "step": buckets.step_us}
    found: dict[str, list[tuple[int, int]]] = {}
    for event, index, count in connection.execute(_ACTIVITY, values):
        found.setdefault(event, []).append((index, count))
    return {event: buckets.spread(counts) for event, counts in found.items()}


def refusals(
    record: sqlite3.Connection, denials: sqlite3.Connection | None, since_us: int
) -> list[Refusal]:
    """Refused knocks by reason, the most frequent first; those of strangers are among them."""
    rows = record.execute(_REFUSALS, {"since": since_us}).fetchall()
    if denials is not None:
        rows += denials.execute(_UNPROVEN, {"since": since_us}).fetchall()
    found: dict[str, Refusal] = {}
    for row in rows:
        new, known = Refusal(*row), found.get(row[0])
        if known is not None:
            knocks, people = known.knocks + new.knocks, max(known.people, new.people)
            new = Refusal(new.reason, knocks, people, max(known.last_at_us, new.last_at_us))
        found[new.reason] = new
    return sorted(found.values(), key=lambda each: (-each.knocks, each.reason))


# Denials


@dataclass(slots=True)
class _Source:
    first_us: int
    last_us: int
    packets: int = 0
    ports: dict[str, int] = field(default_factory=dict)
    folded: int = 0
    steps: list[tuple[int, int]] = field(default_factory=list)

    def add(self, access: str | None, row: tuple[int, int, int, int, int | None]) -> None:
        index, count, first_us, last_us, folded = row
        self.packets += count
        self.first_us, self.last_us = min(self.first_us, first_us), max(self.last_us, last_us)
        self.steps.append((index, count))
        self.folded = max(self.folded, folded or 0)
        if access is not None:
            self.ports[access] = self.ports.get(access, 0) + count


def denied(
    record: sqlite3.Connection,
    denials: sqlite3.Connection | None,
    event: str,
    *,
    since_us: int,
    buckets: Buckets,
    most: int,
) -> Denials:
    """The sources of an event, `most` of them by name."""
    begins, step = buckets.begins_us, buckets.step_us
    values = {"event": event, "since": since_us, "begins": begins, "step": step}
    rows = record.execute(_IN_RECORD, values).fetchall()
    if denials is not None:
        rows += denials.execute(_APART, values).fetchall()
    found: dict[str | None, _Source] = {}
    for source, access, *rest in rows:
        known = found.setdefault(source, _Source(rest[2], rest[3]))
        known.add(access, (rest[0], rest[1], rest[2], rest[3], rest[4]))
    ordered = sorted(found.items(), key=lambda item: (-item[1].packets, item[0] or ""))
    ever, shed = _total(denials, event)
    return Denials(
        sources=tuple(_denied(source, known, buckets) for source, known in ordered[:most]),
        left_out=max(0, len(ordered) - most),
        packets=sum(known.packets for known in found.values()),
        ever=ever,
        shed=shed,
        over_time=buckets.spread(step for known in found.values() for step in known.steps),
    )


def _denied(source: str | None, known: _Source, buckets: Buckets) -> Denied:
    ports = sorted(known.ports, key=lambda port: (-known.ports[port], port))
    return Denied(
        source=source,
        packets=known.packets,
        ports=tuple(ports[:_PORTS_TOLD]),
        port_count=max(len(ports), known.folded),
        first_at_us=known.first_us,
        last_at_us=known.last_us,
        over_time=buckets.spread(known.steps),
    )


def _total(denials: sqlite3.Connection | None, event: str) -> tuple[int | None, int]:
    if denials is None:
        return None, 0
    sql = "select count, shed_count from total where event = ?"
    row = denials.execute(sql, (event,)).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


# What is told line by line


@dataclass(slots=True)
class _Latest:
    """The latest of a kind, and how many there were."""

    most: int
    count: int = 0
    kept: deque[tuple[Any, ...]] = field(default_factory=deque)

    def add(self, row: tuple[Any, ...]) -> None:
        self.count += 1
        self.kept.append(row)
        if len(self.kept) > self.most:
            self.kept.popleft()

    @property
    def left_out(self) -> int:
        return self.count - len(self.kept)


@dataclass(frozen=True, slots=True)
class Told:
    """What is neither a knock nor a hole nor a connection: by itself, and in full."""

    policy: Listing
    host: Listing
    anomalies: tuple[Found, ...]
    anomalies_left_out: int


def told(connection: sqlite3.Connection, since_us: int, most: int) -> Told:
    """The latest of each kind, `most` of them."""
    kinds = {"policy": _Latest(most), "anomaly": _Latest(most), "host": _Latest(most)}
    for row in connection.execute(_TOLD, {"since": since_us}):
        kinds.get(row[1].partition(".")[0], kinds["host"]).add(row)
    anomalies = kinds["anomaly"]
    return Told(
        policy=_listing(kinds["policy"]),
        host=_listing(kinds["host"]),
        anomalies=tuple(_newest(anomalies, _found)),
        anomalies_left_out=anomalies.left_out,
    )


def _newest(latest: _Latest, make: Callable[[tuple[Any, ...]], Any]) -> Iterator[Any]:
    return map(make, reversed(latest.kept))


def _listing(latest: _Latest) -> Listing:
    return Listing(tuple(_newest(latest, _line)), latest.left_out)


def _line(row: tuple[Any, ...]) -> Line:
    at_us, event, identity, key_id, source, target, access, reason, rule, detail = row
    line = {
        "event": event,
        "identity": None,  # stands in a column of its own, as does the key
        "key_id": None,
        "source": source,
        "target": target,
        "access": access,
        "reason": reason,
        "rule": rule,
        "detail": detail_of(detail),
    }
    return Line(at_us, event, _joined([identity, key_id], " "), _told(line))


def _told(line: dict[str, Any]) -> str:
    """A detail that no version of ours has written cannot be put into words."""
    try:
        return _joined(sentences(line), "; ")
    except (ValueError, LookupError, AttributeError, TypeError):
        return line["reason"] or ""


def _found(row: tuple[Any, ...]) -> Found:
    at_us, event, identity, key_id, source, _, access, reason, _, detail = row
    known = detail_of(detail)
    score = known.get("score")
    return Found(
        at_us=at_us,
        name=str(known.get("name") or known.get("kind") or event),
        subject=_joined([identity or key_id, source, access], ", "),
        score=float(score) if isinstance(score, int | float) else None,
        reason=reason or "",
    )


def detail_of(text: str) -> dict[str, Any]:
    """The object in a column; empty where somebody made something else of it."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _joined(parts: Iterable[str | None], between: str) -> str:
    return between.join(part for part in parts if part)
