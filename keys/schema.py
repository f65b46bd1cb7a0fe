"""The tables of the registry, how they came to be, and how the database is opened.

The daemon keeps its own tables in the same file, with a migration set of its own.

    identity         who may knock: a person or a job
    identity_role    which roles an identity has; what a role allows is the policy's matter
    key              the public keys of identities, those included that were revoked or have expired
    invite           public halves of invites, which may only join
    replacement      keys that end when the one that replaces them is first used, or have so ended
    registry_change  what was changed, when and by whom; written together with each change

A change to this module's tables is a new migration, never an edit of an old one.
"""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlite_utils import Database, Migrations

from keys.owner import Owner, acting_as, as_owner, reaches, stranger
from keys.privatefile import new_file
from keys.trouble import Trouble

BUSY_TIMEOUT_S: Final = 5.0
_LONGEST_VALUE: Final = 64 << 20
_STEPS_BETWEEN_LOOKS: Final = 1_000_000
TABLES: Final = ("identity", "identity_role", "key", "invite", "replacement", "registry_change")

_AS_OWNER: Final = "run this as its owner or as root"
_FROM_BACKUP: Final = "restore it from a backup"
_EXPLAINED: Final = {
    "BUSY": ("is in use by another program", "try again"),
    "LOCKED": ("is in use by another program", "try again"),
    "READONLY": ("cannot be written", _AS_OWNER),
    "NOTADB": ("is not a database", "set --database to the registry's file"),
    "CORRUPT": ("is damaged", _FROM_BACKUP),
    "FULL": ("cannot grow: the disk is full", "make room and try again"),
    "IOERR": ("cannot be read or written: the disk reports an error", "look at the system's log"),
    "PERM": ("may not be opened", _AS_OWNER),
    "CANTOPEN": ("cannot be opened", _AS_OWNER),
}

_DAMAGED: Final = {"CORRUPT", "NOTADB"}

migrations: Final = Migrations("keys")


class RegistryError(Trouble):
    """The registry cannot be used, or refuses a change; and why."""


class Damaged(RegistryError):
    """What is there is no database, or one that is broken."""


@migrations(name="0001_registry")
def _registry(db: Database) -> None:
    for statement in (
        """CREATE TABLE identity (
            name TEXT PRIMARY KEY NOT NULL,
            created_at_us INTEGER NOT NULL
        )""",
        """CREATE TABLE identity_role (
            identity TEXT NOT NULL REFERENCES identity (name),
            role TEXT NOT NULL,
            PRIMARY KEY (identity, role)
        ) WITHOUT ROWID""",
        """CREATE TABLE "key" (
            key_id TEXT PRIMARY KEY NOT NULL,
            identity TEXT NOT NULL REFERENCES identity (name),
            key_type INTEGER NOT NULL,
            signing BLOB NOT NULL,
            agreement BLOB NOT NULL,
            comment TEXT NOT NULL,
            enrolled_at_us INTEGER NOT NULL,
            expires_at_us INTEGER,
            revoked_at_us INTEGER,
            last_seen_us INTEGER
        )""",
        'CREATE INDEX key_identity ON "key" (identity)',
        """CREATE TABLE invite (
            key_id TEXT PRIMARY KEY NOT NULL,
            identity TEXT NOT NULL,
            signing BLOB NOT NULL,
            agreement BLOB NOT NULL,
            roles TEXT NOT NULL,
            created_at_us INTEGER NOT NULL,
            expires_at_us INTEGER NOT NULL,
            revoked_at_us INTEGER,
            redeemed_by TEXT REFERENCES "key" (key_id),
            redeemed_at_us INTEGER
        )""",
        "CREATE INDEX invite_identity ON invite (identity)",
        """CREATE TABLE registry_change (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at_us INTEGER NOT NULL,
            actor TEXT NOT NULL,
            action TEXT NOT NULL,
            identity TEXT NOT NULL,
            key_id TEXT,
            detail TEXT NOT NULL
        )""",
    ):
        db.execute(statement)


@migrations(name="0002_approval")
def _approval(db: Database) -> None:
    """Keys that wait for an operator's approval, and the invites that make them wait."""
    for statement in (
        'ALTER TABLE "key" ADD COLUMN is_pending INTEGER NOT NULL DEFAULT 0',
        "ALTER TABLE invite ADD COLUMN needs_approval INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX invite_redeemed_by ON invite (redeemed_by)",
        'CREATE INDEX key_pending ON "key" (key_id) WHERE is_pending = 1',
    ):
        db.execute(statement)


@migrations(name="0003_replacement")
def _replacement(db: Database) -> None:
    """Keys that are being replaced, or were, and by which."""
    for statement in (
        """CREATE TABLE replacement (
            old_key_id TEXT PRIMARY KEY NOT NULL REFERENCES "key" (key_id),
            new_key_id TEXT NOT NULL REFERENCES "key" (key_id)
        ) WITHOUT ROWID""",
        "CREATE INDEX replacement_new ON replacement (new_key_id)",
    ):
        db.execute(statement)


class _AsOwner(sqlite3.Connection):
    """A connection of root's to the database of another user.

    SQLite opens the log and its index, and makes and deletes files, whenever a statement is run:
    each is run with the rights of the database's owner, so that no link leads root astray.
    """

    owner: Owner

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        with acting_as(self.owner):
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        with acting_as(self.owner):
            return super().executemany(*arguments)

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        with acting_as(self.owner):
            return super().executescript(*arguments)

    def backup(self, *arguments: Any, **options: Any) -> None:
        with acting_as(self.owner):
            super().backup(*arguments, **options)

    def commit(self) -> None:
        with acting_as(self.owner):
            super().commit()

    def close(self) -> None:
        with acting_as(self.owner):
            super().close()


def connect(path: Path, *, read_only: bool = False, create: bool = True) -> sqlite3.Connection:
    """Opens the database: WAL, synchronous=NORMAL, 5 s of patience with another writer.

    With `create` it is made where it is missing, mode 0600; `read_only` never makes it. Root acts
    as the owner of its directory (keys/owner.py), who then owns what is made. Raises RegistryError
    and sqlite3.Error.
    """
    try:
        with as_owner(path):
            _create(path) if create and not read_only else _find(path)
            if path.is_dir():
                raise Damaged(f"{path} is a directory", "set --database to a file in it")
            if not path.is_file():
                raise Damaged(f"{path} is no file", "set --database to the registry's file")
            if path.stat().st_size == 0:  # to SQLite that is a database without tables
                raise Damaged(f"{path} is empty", _FROM_BACKUP)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = _AS_OWNER if isinstance(error, PermissionError) else "set --database"
        raise RegistryError(f"{error.filename or path}: {reason}", hint) from error
    connection = open_file(path, "ro" if read_only else "rw")
    try:
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def open_file(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to an SQLite file that is there, as it is; `mode` is "ro" or "rw".

    Raises sqlite3.Error.
    """
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    owner = stranger(path.parent)
    if owner is not None:
        _must_be_a_file(path)
    if owner is None or not reaches(owner, path.parent):
        return sqlite3.connect(uri, timeout=BUSY_TIMEOUT_S, isolation_level=None, uri=True)
    with acting_as(owner):
        connection = sqlite3.connect(
            uri, timeout=BUSY_TIMEOUT_S, isolation_level=None, uri=True, factory=_AsOwner
        )
    connection.owner = owner
    try:
        _bound(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _must_be_a_file(path: Path) -> None:
    """Where it is another's, the database is a file of that directory, no link to one, no pipe.

    SQLite opens whatever has the name, and would wait for a pipe's other end; not even Ctrl-C
    ends that.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # SQLite says why
    hint = "set --database to the file that is meant"
    if stat.S_ISLNK(mode):
        raise RegistryError(f"{path} is a link in a directory that is not root's", hint)
    if not stat.S_ISREG(mode):
        raise Damaged(f"{path} is no file", hint)


def _bound(connection: sqlite3.Connection, path: Path) -> None:
    """Where it is another's, reading it comes to an end, and takes no more memory than ours does.

    A view may have rows without end: we have none, nor a trigger. Python looks for Ctrl-C when it
    is called, which SQLite does every so often.
    """
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
    connection.set_progress_handler(lambda: 0, _STEPS_BETWEEN_LOOKS)
    with contextlib.suppress(sqlite3.Error):  # what is broken is told by who reads more of it
        must_be_ours(connection, path)


def must_be_ours(connection: sqlite3.Connection, path: Path) -> None:
    """Whether there are tables only. Raises Damaged and sqlite3.Error."""
    foreign = "select name from sqlite_master where type in ('view', 'trigger') limit 1"
    if connection.execute(foreign).fetchone() is not None:
        raise Damaged(f"{path} has a view or a trigger in it, which is not ours", _FROM_BACKUP)


def close(connection: sqlite3.Connection) -> None:
    """Closes the database, whose log is then in its file: a copy of that alone is all of it.

    Where somebody else reads meanwhile the log stays beside it, empty or nearly so. Never raises.
    """
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    with contextlib.suppress(sqlite3.Error):
        connection.close()


def prepare(connection: sqlite3.Connection, *, read_only: bool = False) -> Database:
    """Brings the registry's tables up to date and returns the database. Raises RegistryError.

    Of several processes that find tables missing, one makes them and the others wait.
    """
    connection.execute("PRAGMA foreign_keys=ON")
    connection.text_factory = _text
    db = Database(connection, recursive_triggers=False, execute_plugins=False)
    applied = {migration.name for migration in migrations.applied(db)}
    if applied - _known():
        raise RegistryError("the registry was made by a newer version", "use that one")
    if migrations.pending(db):
        if read_only and applied:
            hint = "restart spa-server, or make a change, which brings it up to date"
            raise RegistryError("the registry was made by an older version", hint)
        if read_only:
            raise RegistryError("the registry is not set up yet", "enroll a key first")
        with writing(db):
            migrations.apply(db)
    return db


@contextlib.contextmanager
def writing(db: Database) -> Iterator[None]:
    """One transaction that holds the write lock from its start, or a part of the caller's own."""
    if db.conn.in_transaction:
        with db.atomic():
            yield
        return
    with transaction(db.conn):
        yield


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing, with the write lock from its start. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled it back by itself
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what SQLite raises about the database into a RegistryError."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        kind = "FULL" if is_full(error) else name.removeprefix("SQLITE_").partition("_")[0]
        what, hint = _EXPLAINED.get(kind, (f"cannot be used: {str(error).lower()}", ""))
        broken = Damaged if kind in _DAMAGED else RegistryError
        raise broken(f"{path} {what}", hint) from error


def is_full(error: BaseException | None) -> bool:
    """Whether it is room on the disk that SQLite wants, be it only for the index of its log."""
    return getattr(error, "sqlite_errorname", "") in {"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"}


def must_be_sound(path: Path, tables: Iterable[str]) -> None:
    """Looks through tables and their indexes, page by page; changes nothing, not even by a log.

    Reading them would find a page that is no page, but not one that belongs elsewhere. A file that
    is not there is sound. Raises RegistryError (Damaged) and sqlite3.Error.
    """
    if not os.path.lexists(path):
        return
    with contextlib.closing(connect(path, read_only=True)) as connection:
        there = {name for (name,) in connection.execute("select name from sqlite_master")}
        for table in there.intersection(tables):
            (found,) = connection.execute(f'pragma quick_check("{table}")').fetchone()
            if found != "ok":
                why = found.splitlines()[-1].lower()
                raise Damaged(f"{path} is damaged: {why}", _FROM_BACKUP)


def _known() -> set[str]:
    """The names of this version's migrations: all that an empty database lacks."""
    with Database(memory=True) as empty:
        return {migration.name for migration in migrations.pending(empty)}


def _find(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        hint = "spa-server init makes one on a host; your own keys: spa-keys mine"
        raise RegistryError(f"there is no registry at {path}", hint) from None


def _create(path: Path) -> None:
    """An empty database that is in WAL mode before it has its name.

    For SQLite does not wait for a lock while it changes the mode: of several processes that do so
    at once, some would fail.
    """
    if os.path.lexists(path):
        return
    with (
        contextlib.suppress(FileExistsError),
        new_file(path) as unnamed,
        contextlib.closing(sqlite3.connect(unnamed)) as connection,
    ):
        connection.execute("PRAGMA journal_mode=WAL")


def _text(value: bytes) -> str:
    """So that one torn text, which is no UTF-8, does not end the reading of all others."""
    return value.decode(errors="replace")
