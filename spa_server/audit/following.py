"""Following the record: lines as they come, whoever writes them.

SQLite counts changes that others make to a file (`data_version`): to look at that number takes
microseconds, so it is looked at four times a second, and the lines only when it has changed.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from keys import schema
from keys.when import rfc3339
from spa_server.audit.asking import Filter
from spa_server.audit.export import Line, Table, by_time

EVERY_S: Final = 0.25


class _Followed:
    """One database, which may not be there yet, or be replaced: denials are, when room is short."""

    def __init__(self, path: Path, table: Callable[[sqlite3.Connection], Table]) -> None:
        self._path = path
        self._make = table
        self._table: Table | None = None
        self._inode = 0
        self._version = -1
        self._open()
        if self._table is not None:
            self._table.read_until_id = self._table.last_id()

    def _open(self) -> None:
        """The file as it is now; one that is new is read from its first line."""
        inode = self._path.stat().st_ino if self._path.exists() else 0
        if inode == self._inode:
            return
        self.close()
        if inode:
            self._table = self._make(schema.connect(self._path, read_only=True))
        self._inode = inode

    def unread(self, wanted: Filter) -> Iterator[Line]:
        self._open()
        if self._table is None:
            return
        execute = self._table.connection.execute
        version: int = execute("pragma data_version").fetchone()[0]
        if version != self._version:
            self._version = version
            yield from self._table.unread(wanted)

    def close(self) -> None:
        if self._table is not None:
            self._table.connection.close()
        self._table, self._version = None, -1


def follow(
    record: Path,
    denials: Path,
    wanted: Filter,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """Every line that fits and is written from this call on, as `asking.ask` gives them; without
    end. Raises sqlite3.Error, or RegistryError where a database cannot be opened.
    """
    followed = [_Followed(record, Table.of_record), _Followed(denials, Table.of_denials)]
    return _follow(followed, wanted, pause)


def _follow(
    followed: list[_Followed], wanted: Filter, pause: Callable[[float], None]
) -> Iterator[dict[str, Any]]:
    try:
        while True:
            for line in by_time(*(each.unread(wanted) for each in followed)):
                yield _told(line)
            pause(EVERY_S)
    finally:
        for each in followed:
            each.close()


def _told(line: Line) -> dict[str, Any]:
    columns = {name: value for name, value in line.items() if name not in {"at_us", "digest"}}
    return {
        **columns,
        "rule": line.get("rule"),
        "grant_id": line.get("grant_id"),
        "at": rfc3339(line["at_us"]),
        "detail": json.loads(line["detail"]),
    }
