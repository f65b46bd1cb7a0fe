"""The record for other programs: every line that fits, streamed, however many there are.

    jsonl   a JSON object a line, with the columns of docs/record.md
    csv     RFC 4180, with what a spreadsheet would take for a formula made harmless
    ocsf    the lines that are Network Activity or Authentication, as OCSF events (ocsf.py)

Read in pages, so that a long export holds neither the lines in memory nor the database's log: the
daemon goes on writing meanwhile. What is written after the export began is left out.
"""

import csv
import heapq
import io
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

from keys.text import printable
from keys.when import rfc3339
from spa_server.audit import ocsf
from spa_server.audit.asking import Filter

Line = dict[str, Any]
"""One line by its columns. A line of the record has `digest`, bytes; a denial has `count` instead.

`detail` is JSON text.
"""

PAGE: Final = 5000
_COMMON: Final = "id, at_us, event, identity, key_id, source, target, access, reason"
_EVENT: Final = f"{_COMMON}, rule, grant_id, detail, digest"
_DENIAL: Final = f"{_COMMON}, count, detail"
COLUMNS: Final = (*_COMMON.split(", "), "rule", "grant_id", "count", "detail")
_FORMULA: Final = ("=", "+", "-", "@")


class Format(StrEnum):
    """How lines are written."""

    JSONL = "jsonl"
    CSV = "csv"
    OCSF = "ocsf"


@dataclass(slots=True)
class Table:
    """A table of lines, its database, and the line up to which it has been read."""

    connection: sqlite3.Connection
    name: str
    columns: str
    read_until_id: int = 0

    @classmethod
    def of_record(cls, connection: sqlite3.Connection) -> "Table":
        """The record."""
        return cls(connection, "event", _EVENT)

    @classmethod
    def of_denials(cls, connection: sqlite3.Connection) -> "Table":
        """The denials beside it."""
        return cls(connection, "denial", _DENIAL)

    def last_id(self) -> int:
        """The number of the latest line; 0 where there is none. Raises sqlite3.Error."""
        sql = f"select max(id) from {self.name}"  # noqa: S608 - our own names
        return self.connection.execute(sql).fetchone()[0] or 0

    def unread(self, wanted: Filter, until_us: int | None = None) -> Iterator[Line]:
        """The lines that fit and have not been read, up to what is there now. Raises sqlite3.Error.

        In pages: between them the database is not held.
        """
        where, values = wanted.where
        before = "" if until_us is None else " and at_us < :until"
        sql = (
            f"select {self.columns} from {self.name}"  # noqa: S608 - our own names
            f" where id > :after and id <= :last and {where}{before} order by id limit {PAGE}"
        )
        names = self.columns.split(", ")
        bounds = {"last": self.last_id(), "until": until_us}
        while True:
            asked = {**values, **bounds, "after": self.read_until_id}
            rows = self.connection.execute(sql, asked).fetchall()
            if len(rows) == PAGE:
                self.read_until_id = rows[-1][0]
            else:
                self.read_until_id = max(self.read_until_id, bounds["last"] or 0)
            for row in rows:
                yield dict(zip(names, row, strict=True))
            if len(rows) < PAGE:
                return


def lines(
    record: sqlite3.Connection,
    wanted: Filter,
    *,
    until_us: int | None = None,
    denials: sqlite3.Connection | None = None,
) -> Iterator[Line]:
    """The lines that fit, and were before a time, oldest first. Raises sqlite3.Error.

    Denials, which are numbered by themselves, stand among them by their time.
    """
    tables = [Table.of_record(record)]
    if denials is not None:
        tables.append(Table.of_denials(denials))
    return by_time(*(table.unread(wanted, until_us) for table in tables))


def by_time(*streams: Iterable[Line]) -> Iterator[Line]:
    """Several streams of lines as one."""
    return heapq.merge(*streams, key=lambda line: int(line["at_us"]))


def written(form: Format, found: Iterable[Line]) -> Iterator[str]:
    """The lines as text, each with its line end; for csv the names of the columns first."""
    return _WRITERS[form](found)


def _jsonl(found: Iterable[Line]) -> Iterator[str]:
    encode = msgspec.json.Encoder().encode
    for line in found:
        kept = {name: value for name, value in line.items() if value is not None}
        kept["detail"] = _object(line["detail"])
        if "digest" in kept:
            kept["digest"] = bytes(kept["digest"]).hex()
        yield _escaped(encode(kept).decode()) + "\n"


def _escaped(text: str) -> str:
    """JSON of the same meaning, without what could steer a terminal or mislead its reader.

    Outside of its strings JSON has none.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _object(detail: str) -> msgspec.Raw | str:
    """The detail byte for byte, since the digest is of those bytes; text where it is no JSON."""
    try:
        msgspec.json.decode(detail)
    except (msgspec.DecodeError, RecursionError):
        return detail
    return msgspec.Raw(detail.encode())


def _csv(found: Iterable[Line]) -> Iterator[str]:
    buffer = io.StringIO()
    row = csv.writer(buffer)

    def taken() -> str:
        text = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return text

    row.writerow(["at", *COLUMNS])
    yield taken()
    for line in found:
        row.writerow([rfc3339(line["at_us"]), *(cell(line.get(name)) for name in COLUMNS)])
        yield taken()


def cell(value: object) -> object:
    """A value as a spreadsheet may have it: one line, and no formula whatever it begins with."""
    if value is None or isinstance(value, int):
        return value
    text = printable(str(value))
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _ocsf(found: Iterable[Line]) -> Iterator[str]:
    encode = msgspec.json.Encoder().encode
    for line in found:
        event = ocsf.event_of(line)
        if event is not None:
            yield _escaped(encode(event).decode()) + "\n"


_WRITERS: Final[dict[Format, Callable[[Iterable[Line]], Iterator[str]]]] = {
    Format.JSONL: _jsonl,
    Format.CSV: _csv,
    Format.OCSF: _ocsf,
}
