"""A database beside the ledger's that may be lost: the denials, the baselines.

One that is broken is set aside under another name, and a new one is begun.
"""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import sqlite_utils
from sqlite_utils.migrations import Migrations

from keys import schema
from keys.owner import as_owner
from spa_server.audit import aside

_BUSY_MS: Final = 50
_SPARE_PAGES: Final = 64
_BROKEN: Final = ("SQLITE_NOTADB", "SQLITE_CORRUPT")


def connect(
    path: Path, migrations: Migrations, *, max_bytes: int | None = None
) -> sqlite3.Connection:
    """Opens it, makes it where it is missing, and brings its tables up to date.

    It waits 50 ms for another writer, and grows to about `max_bytes`. Raises sqlite3.Error, Trouble
    and OSError: hand them to `set_aside`.
    """
    connection = schema.connect(path)
    try:
        connection.execute(f"pragma busy_timeout = {_BUSY_MS}")
        if max_bytes is not None:
            page_bytes = connection.execute("pragma page_size").fetchone()[0]
            connection.execute(f"pragma max_page_count = {max_bytes // page_bytes + _SPARE_PAGES}")
        db = sqlite_utils.Database(connection, execute_plugins=False)
        if migrations.pending(db):
            migrations.apply(db)
    except BaseException:
        connection.close()
        raise
    return connection


def set_aside(path: Path, error: Exception, now_us: int) -> Path | None:
    """Gives a broken file, which is closed, another name, and returns it.

    None where the error says something else, or where it is no file: that is somebody's mistake.
    """
    name = getattr(error, "sqlite_errorname", "")
    is_broken = isinstance(error, schema.Damaged) or name.startswith(_BROKEN)
    if is_broken and path.is_file():
        with suppress(OSError):
            return aside.move(path, now_us)
    return None


def make_whole(path: Path, migrations: Migrations) -> None:
    """Makes one that has its tables before it has its name, where others may read it at any time.

    Raises what `connect` raises.
    """
    new = path.with_name(f".{path.name}.new")
    with as_owner(new):
        new.unlink(missing_ok=True)
    with closing(schema.connect(new)) as connection:
        migrations.apply(sqlite_utils.Database(connection, execute_plugins=False))
    with as_owner(new):
        new.rename(path)
