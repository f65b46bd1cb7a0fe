"""Asking the record and the denials beside it: a filter, and the lines that fit it."""

import heapq
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from keys.when import rfc3339
from spa_server.audit.record import Event

_COLUMNS: Final = (
    "id, at_us, event, identity, key_id, source, target, access, reason, rule, grant_id, detail"
)
_OF_DENIALS: Final = _COLUMNS.replace("rule, grant_id", "null, null")

_KNOWN_BY: Final = (
    "select 1 from event where identity = ? limit 1",
    "select 1 from identity where name = ? limit 1",
    "select 1 from invite where identity = ? limit 1",
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which lines of the record; None asks for all. `event` may be a group, as in `knock`."""

    since_us: int | None = None
    identity: str | None = None
    event: str | None = None
    source: str | None = None
    access: str | None = None
    denied: bool = False

    @property
    def where(self) -> tuple[str, dict[str, object]]:
        """The condition in SQL, and its values."""
        conditions = {
            "at_us >= :since": self.since_us,
            "identity = :identity": self.identity,
            "(event = :event or event like :event || '.%')": self.event,
            "source = :source": self.source,
            "access = :access": self.access,
        }
        names = ("since", "identity", "event", "source", "access")
        used = [sql for sql, value in conditions.items() if value is not None]
        if self.denied:
            refused = "'knock.refused', 'connection.denied', 'join.refused', 'invite.alarm'"
            used.append(f"event in ({refused})")
        values: dict[str, object] = dict(zip(names, conditions.values(), strict=True))
        return " and ".join(used) or "true", values


def ask(
    connection: sqlite3.Connection,
    wanted: Filter,
    *,
    limit: int,
    after_id: int = 0,
    denials: sqlite3.Connection | None = None,
    after_denial: int = 0,
) -> list[dict[str, Any]]:
    """The latest lines that fit, oldest first, after the line of this id. Raises sqlite3.Error.

    Those of `denials`, which are numbered by themselves, stand among them by their time; of them,
    those after `after_denial`.
    """
    rows = _rows(connection, f"{_COLUMNS} from event", wanted, limit, after_id)
    if denials is not None:
        apart = _rows(denials, f"{_OF_DENIALS} from denial", wanted, limit, after_denial)
        rows = list(heapq.merge(rows, apart, key=lambda row: int(row[1])))[-limit:]
    return [_line(row) for row in rows]


def is_known(record: sqlite3.Connection, identity: str) -> bool:
    """Somebody who is in the registry may have no lines yet; who left it may still have some.

    Raises sqlite3.Error.
    """
    return any(record.execute(asked, [identity]).fetchone() for asked in _KNOWN_BY)


def _rows(
    connection: sqlite3.Connection, what: str, wanted: Filter, limit: int, after_id: int
) -> list[tuple[Any, ...]]:
    where, values = wanted.where
    sql = f"select {what} where id > :after and {where} order by id desc limit :limit"
    rows = connection.execute(sql, {**values, "after": after_id, "limit": limit}).fetchall()
    return rows[::-1]


def _line(row: tuple[Any, ...]) -> dict[str, Any]:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    values["at"] = rfc3339(values.pop("at_us"))
    values["detail"] = json.loads(values["detail"])
    return values


def sentences(line: dict[str, Any]) -> Iterator[str]:
    """The parts of a line for a person, in the order in which they are read."""
    if line["identity"]:
        yield line["identity"]
    if line["source"]:
        ends = f"{line['source']} -> {line['target']}" if line["target"] else line["source"]
        yield f"{ends} {line['access'] or ''}".rstrip()
    reason = line["reason"] or ""
    if reason:
        yield reason
    if line["key_id"] and line["event"] in _OF_A_KEY:
        yield f"{'invite' if reason.startswith('invite.') else 'key'} {line['key_id']}"
    if line["rule"]:
        yield f"by {line['rule']}"
    yield from _details(line["detail"])


_WORDS: Final = {
    "lifetime_s": "for {} s",
    "further": "and {} more",
    "count": "{} of them",
    "ambiguous": "one of {}",
    "by_s": "by {} s",
    "duration_s": "after {} s",
    "bytes_in": "{} bytes in",
    "bytes_out": "{} bytes out",
    "detail": "{}",
    "ended": "ended {}",
}
# Where the key is what the line is about; elsewhere the person is, and JSON has the key.
_OF_A_KEY: Final = {Event.KEYS_CHANGED, Event.TAG_FLOODED, Event.JOIN_ACCEPTED, Event.JOIN_PENDING}
_FOR_MACHINES: Final = {
    "source_port",
    "seen_from",
    "permitted_at_us",
    "packets_in",
    "packets_out",
    "port",
    "grants",
}


def _details(detail: dict[str, Any]) -> Iterator[str]:
    for name, value in detail.items():
        if value and name not in _FOR_MACHINES:
            words = _WORDS.get(name)
            yield words.format(value) if words else f"{name.replace('_', ' ')}: {value}"
