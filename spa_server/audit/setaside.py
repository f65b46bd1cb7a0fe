"""Setting a damaged database aside: it gets another name, and is never overwritten or deleted.

The record, the registry and the replay memory are in one file. Where it is damaged the daemon does
not start, and the gate stays closed. It is for the operator to restore a backup, or to begin anew:
then everything stamped before this moment counts as replayed, since what was burned is not known
any more. The registry can be read out of the damaged file as far as that goes.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keys import schema
from keys.actor import Actor
from keys.registry import Registry
from keys.schema import RegistryError
from spa_server import clock
from spa_server.audit import aside
from spa_server.audit.backlog import Batch, leave_note, read_note
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.audit.upkeep import note_in
from spa_server.config import Config

_TABLES: Final = ("identity", "key", "identity_role", "invite", "registry_change")


@dataclass(frozen=True, slots=True)
class Saved:
    """How many rows of a table were read out and kept; whether all of it could be read."""

    table: str
    rows: int
    is_whole: bool


def what_is_wrong(path: Path) -> str | None:
    """What SQLite finds wrong with a database; None where it finds nothing."""
    try:
        with closing(_read_only(path)) as connection:
            found: str = connection.execute("pragma quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return str(error)
    except RegistryError as error:
        return error.message
    return None if found == "ok" else found


def set_aside(config: Config, now_us: int, why: str) -> Path:
    """Moves the database away and begins a new one, whose record says so; the damaged one's name.

    Raises OSError, RegistryError, LedgerError and sqlite3.Error.
    """
    leave_floor(config.unrecorded, now_us + round(config.freshness_s * 1_000_000))
    noted = note_in(config.control.parent)
    if os.path.lexists(noted):
        aside.move(noted, now_us)
    damaged = aside.move(config.database, now_us)
    with closing(schema.connect(config.database)) as connection:
        registry = Registry(connection)
        boot_id = clock.boot_id()
        ledger = Ledger(connection, registry.seen, unrecorded=config.unrecorded, boot_id=boot_id)
        reason = f"the database was set aside as {damaged.name}: {why}"
        detail = Actor.here().detail
        record = Record(Event.RECORDS_LOST, now_us, reason=reason, detail=detail)
        ledger.commit(Batch(records=[record]), now_us)
    return damaged


def leave_floor(unrecorded: Path, latest_us: int) -> None:
    """Notes that nothing stamped up to a time is to be accepted (ledger.py). Raises OSError."""
    unrecorded.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    leave_note(unrecorded, max(latest_us, read_note(unrecorded)))


def save_registry(damaged: Path, path: Path) -> list[Saved]:
    """Makes a new registry of what can be read of a damaged one.

    A damaged file may have forgotten what was written last: a revocation, for one. Raises
    RegistryError and sqlite3.Error where the new one cannot be made.
    """
    try:
        opened = _read_only(damaged)
    except (
        RegistryError,
        sqlite3.Error,
    ):  # a directory, a pipe, or one that holds what is not ours
        return [Saved(table, 0, is_whole=False) for table in _TABLES]
    with closing(opened) as old, closing(schema.connect(path)) as new:
        Registry(new)
        return [_copy(old, new, table) for table in _TABLES]


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> Saved:
    there = _columns(old, table)
    columns = [column for column in _columns(new, table) if column in there]
    if not columns:
        return Saved(table, 0, is_whole=False)
    names = ", ".join(f'"{column}"' for column in columns)
    insert = f'insert or ignore into "{table}" ({names}) values ({", ".join("?" * len(columns))})'  # noqa: S608 - our own names
    is_whole, kept = True, 0
    for row in _rows(old, table, names):
        if row is None:
            is_whole = False
            continue
        if table == "key":
            _name(new, dict(zip(columns, row, strict=True)))
        try:
            kept += new.execute(insert, row).rowcount
        except sqlite3.IntegrityError:
            is_whole = False
    return Saved(table, kept, is_whole)


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """Those that the table has; none where that cannot be read."""
    with suppress(sqlite3.Error):
        return [row[1] for row in connection.execute(f'pragma table_info("{table}")')]
    return []


def _name(new: sqlite3.Connection, key: dict[str, Any]) -> None:
    """A key that could be read names its identity, also where that could not."""
    with suppress(sqlite3.IntegrityError):
        new.execute(
            "insert or ignore into identity (name, created_at_us) values (?, ?)",
            (key["identity"], key["enrolled_at_us"]),
        )


def _rows(old: sqlite3.Connection, table: str, names: str) -> Iterator[tuple[Any, ...] | None]:
    """Rows from the beginning and, behind what cannot be read, from the end; None for a gap.

    No index is used: it may be what is damaged.
    """
    own_order = "1 desc, 2 desc" if table == "identity_role" else "rowid desc"
    for order in ("", f" order by {own_order}"):
        try:
            yield from old.execute(f'select {names} from "{table}" not indexed{order}')  # noqa: S608 - our own names
        except sqlite3.Error:
            yield None
        else:
            return


def _read_only(path: Path) -> sqlite3.Connection:
    connection = schema.open_file(path, "ro")
    connection.text_factory = lambda value: value.decode(errors="replace")
    return connection
