"""Putting a backup in place, so that nothing that was over begins again.

In words, in this order:

1.  The daemon does not run. The archive's databases are unpacked in `.spa-restore` beside the one
    that is there, and looked through; nothing is touched before all is known to be whole. The key
    stays in memory. What a killed restore left in that directory, the next one takes away.
2.  Nothing stamped before now (and as far ahead as a fresh request may be) is heard any more: what
    was burned after the backup was made is not in it. That is said on tmpfs, for this boot; a later
    boot has its own floor (spa_server/replay.py, rule 4).
3.  From the database that is there, as far as it can be read, goes over into the restored one what
    must not be undone: burned requests, floors, keys and invites that were revoked.
4.  The databases that are there get another name; none is overwritten or deleted. Then the restored
    ones get their names, and the record says what happened.
5.  Configuration, policy and key are put in place only where they are missing: what is there may be
    newer, and whoever wants the older one moves it away first. With the key comes the word on which
    machine it was made, so a daemon on another one does not start before `spa-server adopt-key`.

From step 2 on nothing interrupts it but SIGKILL and a power cut: step 4 would have to be repeated.

The gate is left as it is: whether it is in force on this host is no matter of a backup.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from keys import privatefile, schema
from keys.actor import Actor
from keys.owner import as_owner, stranger
from keys.registry import Registry
from keys.schema import RegistryError
from keys.trouble import Trouble
from keys.when import rfc3339
from spa_server import backup, clock
from spa_server.audit import aside, lastrun, setaside
from spa_server.audit.backlog import Batch
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.audit.upkeep import note_in
from spa_server.backup import Manifest, NoBackup
from spa_server.cleanup import uninterrupted, working_directory
from spa_server.config import Config
from spa_server.machine import Mark, Origin
from spa_server.setup import give_to_daemon

_STAGING: Final = ".spa-restore"
_CARRIED: Final = (
    "insert or ignore into burned select * from old.burned",
    "insert into burned_floor select key_id, sent_at_us from old.burned_floor where true"
    " on conflict do update set sent_at_us = max(sent_at_us, excluded.sent_at_us)",
    'update "key" set revoked_at_us = (select revoked_at_us from old."key" o'
    ' where o.key_id = "key".key_id) where revoked_at_us is null and key_id in'
    ' (select key_id from old."key" where revoked_at_us is not null)',
    "delete from replacement where old_key_id in"
    ' (select key_id from "key" where revoked_at_us is not null)',
    "update invite set revoked_at_us = (select revoked_at_us from old.invite o"
    " where o.key_id = invite.key_id) where revoked_at_us is null and key_id in"
    " (select key_id from old.invite where revoked_at_us is not null)",
)


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of it: what was put in place, what was there and differs, and what was moved.

    Nobody is heard before `deaf_until_us` (microseconds since the Unix epoch).
    """

    manifest: Manifest
    placed: tuple[Path, ...]
    kept: tuple[Path, ...]
    aside: tuple[Path, ...]
    is_carried: bool
    deaf_until_us: int
    is_of_another_machine: bool


def restore(config: Config, file: Path, now_us: int) -> Restored:
    """Does it. The daemon must not run. Raises Trouble, LedgerError, OSError and sqlite3.Error."""
    home = config.database.absolute().parent
    if not home.exists():  # a new machine: as `init` makes it, so that what comes is the daemon's
        home.mkdir(mode=0o750, parents=True)
        give_to_daemon(home)
    _make_runtime_directory(config.unrecorded.parent, home)
    with _opened(file) as content, working_directory(home / _STAGING) as staging:
        manifest, settings = backup.unpack(file, content, staging)
        _must_be_sound(staging / backup.DATABASE, file)
        is_carried = _carry_over(config.database, staging / backup.DATABASE)
        _enter(config, staging / backup.DATABASE, manifest, now_us)
        latest_us = now_us + round(config.freshness_s * 1_000_000)
        with uninterrupted():
            setaside.leave_floor(config.unrecorded, latest_us)
            moved = tuple(_move_away(config, now_us))
            placed = list(_place_databases(config, staging))
            kept = []
            for name, path in backup.settings(config).items():
                if name not in settings:
                    continue
                if name == backup.MACHINE and config.key.exists():
                    continue  # it belongs to the key of the backup
                if not path.exists():
                    _place(path, settings[name], is_key=name == backup.KEY, home=home)
                    placed.append(path)
                elif path.read_bytes() != settings[name]:
                    kept.append(path)
    return Restored(
        manifest,
        tuple(placed),
        tuple(kept),
        moved,
        is_carried,
        deaf_until_us=latest_us,
        is_of_another_machine=_is_of_another_machine(config),
    )


def _is_of_another_machine(config: Config) -> bool:
    with contextlib.suppress(Trouble):
        return Mark(config.key).origin() is Origin.ELSEWHERE
    return False


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """The archive, which is root's, mostly: opened before its reader becomes somebody else."""
    try:
        if not file.is_file():
            raise NoBackup(f"{file} is no file", "name a backup")
        content = file.open("rb")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise NoBackup(f"{file} cannot be read: {why}", "name a backup") from None
    with content:
        yield content


def _make_runtime_directory(runtime: Path, home: Path) -> None:
    """As systemd makes it: on a host where the daemon has not run since the boot, it is missing."""
    if runtime.exists():
        return
    runtime.mkdir(mode=0o755, parents=True)
    if os.geteuid() == 0:
        owner = home.stat()
        os.chown(runtime, owner.st_uid, owner.st_gid)


def _must_be_sound(database: Path, file: Path) -> None:
    wrong = setaside.what_is_wrong(database)
    if wrong is not None:
        raise NoBackup(f"the database in {file} is damaged: {wrong}", "use another backup")
    with closing(schema.open_file(database, "ro")) as connection:
        try:
            schema.must_be_ours(connection, database)
        except schema.Damaged:
            what = f"the database in {file} has a view or a trigger in it, which is not ours"
            raise NoBackup(what, "use another backup") from None
        tables = {name for (name,) in connection.execute("select name from sqlite_master")}
    if not tables.issuperset(schema.TABLES[:3]):
        raise NoBackup(f"the database in {file} is no registry", "use another backup")


def _carry_over(there: Path, restored: Path) -> bool:
    """Whether all of it could be: the one that is there may be damaged, missing or older."""
    if not there.exists():
        return False
    copy = restored.with_name("replaced.db")
    try:
        backup.copy_database(there, copy)
    except (sqlite3.Error, RegistryError):
        return False
    with closing(schema.connect(restored)) as connection:
        Registry(connection)
        try:
            connection.execute("attach ? as old", (str(copy),))
            with schema.transaction(connection):
                for statement in _CARRIED:
                    connection.execute(statement)
        except sqlite3.Error:
            return False
    return True


def _enter(config: Config, database: Path, manifest: Manifest, now_us: int) -> None:
    """The line that the record begins again with, and the log made part of the file."""
    made_at = rfc3339(manifest.made_at_us)
    reason = f"the database was restored from a backup of {made_at}, made on {manifest.host}"
    with closing(schema.connect(database)) as connection:
        registry = Registry(connection)
        ledger = Ledger(
            connection, registry.seen, unrecorded=config.unrecorded, boot_id=clock.boot_id()
        )
        detail = {**Actor.here().detail, "of": lastrun.RESTORE}
        record = Record(Event.RECORDS_LOST, now_us, reason=reason, detail=detail)
        ledger.commit(Batch(records=[record]), now_us)
        connection.execute(
            "update hole_grant set ended_at_us = ?, ended_why = 'restored'"
            " where ended_at_us is null",
            (now_us,),
        )


def _move_away(config: Config, now_us: int) -> Iterator[Path]:
    """The databases that are there, each with its log, which would be played into another."""
    noted = note_in(config.control.parent)
    if noted.exists():
        with contextlib.suppress(OSError):
            aside.move(noted, now_us, "replaced")
    for path in backup.databases(config).values():
        if any(Path(f"{path}{suffix}").exists() for suffix in aside.SUFFIXES):
            yield aside.move(path, now_us, "replaced")


def _place_databases(config: Config, staging: Path) -> Iterator[Path]:
    for name, path in backup.databases(config).items():
        if (staging / name).exists():
            _put(staging / name, path)
            yield path


def _put(source: Path, path: Path) -> None:
    """Gives a file of the working directory its name: both are in directories of one owner.

    Root made it as itself where that owner cannot get there, nor meddle.
    """
    with as_owner(path):
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            owner = path.parent.stat()
            if os.geteuid() == 0 and os.fstat(descriptor).st_uid != owner.st_uid:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fchmod(descriptor, 0o600)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        source.rename(path)
        home = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(home)
        finally:
            os.close(home)


def _place(path: Path, content: bytes, *, is_key: bool, home: Path) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    privatefile.write(path, content)
    with as_owner(path):  # where the directory is another's, the file is already theirs
        if is_key and stranger(path.parent) is None and os.geteuid() == 0:
            owner = home.stat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        elif not is_key:
            path.chmod(0o644)
