"""What the watcher knows, in a file of its own: a row for each key, identity and source.

It is no part of the record: it may be deleted, and is learnt anew. A damaged file is set aside
under another name, and a new one begun.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import sqlite_utils
from sqlite_utils.migrations import Migrations

from keys import schema
from keys.trouble import Trouble
from spa_server.anomaly.watcher import State
from spa_server.audit import sidefile

SLICE: Final = 100
"""So many rows are read or written in about a millisecond."""

migrations: Final = Migrations("anomaly")


@migrations()
def create_baseline(db: sqlite_utils.Database) -> None:
    """`name` says of what or whom (key/ID, who/IDENTITY, case/SUBJECT, from/ADDRESS)."""
    db.executescript("""
        create table baseline (
            name text primary key, at_us integer not null, state blob not null
        ) strict, without rowid;
    """)


def beside(database: Path) -> Path:
    """Where the baselines of a host are."""
    return database.with_name("anomalies.db")


class StoreError(Exception):
    """It cannot be read or written now. `aside`: it was damaged, and is there now."""

    def __init__(self, why: str, aside: Path | None = None) -> None:
        super().__init__(why)
        self.aside = aside


class Store:
    """The baselines of a host in the file `path`, which is opened when it is first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def after(self, last: str, now_us: int) -> list[tuple[str, bytes]]:
        """The next slice of what was saved, behind a name: for `Watcher.restore`.

        Begin with the empty name, and end with the empty slice. Raises StoreError.
        """
        query = "select name, state from baseline where name > ? order by name limit ?"
        try:
            return self._open().execute(query, (last, SLICE)).fetchall()
        except (sqlite3.Error, Trouble, OSError) as error:
            raise self._recover(error, now_us) from error

    def save(self, states: Sequence[State], now_us: int) -> None:
        """Makes a slice of what changed true. Raises StoreError: then all of it is as before."""
        gone = [(name,) for name, state in states if state is None]
        kept = [(name, now_us, state) for name, state in states if state is not None]
        try:
            connection = self._open()
            with schema.transaction(connection):
                connection.executemany("insert or replace into baseline values (?, ?, ?)", kept)
                connection.executemany("delete from baseline where name = ?", gone)
        except (sqlite3.Error, Trouble, OSError) as error:
            raise self._recover(error, now_us) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sidefile.connect(self._path, migrations)
        return self._connection

    def _recover(self, error: Exception, now_us: int) -> StoreError:
        """Lets go of the file, and sets a broken one aside."""
        self.close()
        return StoreError(str(error), sidefile.set_aside(self._path, error, now_us))

    def close(self) -> None:
        """Lets go of the file."""
        if self._connection is not None:
            schema.close(self._connection)
        self._connection = None
