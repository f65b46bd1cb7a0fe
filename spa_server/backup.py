"""A backup of a host: one archive of what it would take to build the host anew.

A tar file, as secret as the server's key, which is in it:

    spaknock-backup.json    version, when it was made, on which host
    spa.db                  registry, replay memory, grants and record, as of one moment
    denials.db, anomalies.db    where they are there
    server.toml, policy.toml, server.key, server.key.machine

It is taken while the daemon runs: SQLite copies one state of a database, and nobody waits for it.
Restoring is in spa_server/restore.py.
"""

import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from keys import privatefile, readfile, schema
from keys.owner import as_owner
from keys.schema import RegistryError
from keys.trouble import Trouble
from spa_protocol import __version__
from spa_server import clock, hostkey
from spa_server.anomaly import store
from spa_server.audit import denials
from spa_server.cleanup import working_directory
from spa_server.config import Config
from spa_server.machine import Mark

MANIFEST: Final = "spaknock-backup.json"
FORMAT: Final = 1
DATABASE: Final = "spa.db"
KEY: Final = "server.key"
MACHINE: Final = "server.key.machine"
CONFIGURATION: Final = "server.toml"
POLICY: Final = "policy.toml"
_MAX_SETTING: Final = readfile.MAX_SIZE
_LATEST_US: Final = 253_402_300_799_000_000


@dataclass(frozen=True, slots=True)
class Manifest:
    """What stands in a backup about itself. `made_at_us`: microseconds since the Unix epoch."""

    format: int
    version: str
    host: str
    made_at_us: int


def databases(config: Config) -> dict[str, Path]:
    """The databases of a host, by their names in a backup: the one that matters comes first."""
    return {
        DATABASE: config.database,
        "denials.db": denials.beside(config.database),
        "anomalies.db": store.beside(config.database),
    }


def settings(config: Config) -> dict[str, Path]:
    """What else a host is made of, by the names in a backup."""
    return {
        CONFIGURATION: config.path,
        POLICY: config.policy,
        MACHINE: Mark(config.key).path,
        KEY: config.key,
    }


def make(config: Config, file: Path, *, overwrite: bool = False) -> list[str]:
    """Writes a backup, mode 0600, whole or not at all; the names of what is in it.

    Raises Trouble and OSError; sqlite3.Error about the database.
    """
    hostkey.load(config)  # one that cannot be used would be no backup of it
    manifest = Manifest(FORMAT, __version__, os.uname().nodename, clock.now_us())
    staging = file.absolute().with_name(f".{file.name}.spa-backup")
    with (
        privatefile.new_file(file, overwrite=overwrite) as unnamed,
        working_directory(staging),
    ):
        whole = staging / "whole"
        with _private(whole) as content, tarfile.open(fileobj=content, mode="w") as archive:
            _add(archive, MANIFEST, json.dumps(asdict(manifest), indent=2).encode() + b"\n")
            for name, path in databases(config).items():
                if name == DATABASE or path.exists():
                    copy = staging / name
                    copy_database(path, copy)
                    archive.add(copy, name, filter=_anonymous)
            for name, path in settings(config).items():
                if path.exists():
                    _add(archive, name, path.read_bytes())
            names = archive.getnames()
        _flush(whole)
        owner = unnamed.stat()
        os.chown(whole, owner.st_uid, owner.st_gid)
        whole.replace(unnamed)
    return names[1:]


def copy_database(path: Path, copy: Path) -> None:
    """One state of it, without its log and without the room that it keeps in reserve.

    Root makes the copy as the owner of the directory that it is for (keys/owner.py).
    """
    if not path.exists():
        raise RegistryError(f"there is no registry at {path}", "make one: spa-server init")
    with (
        closing(schema.open_file(path, "ro")) as there,
        as_owner(copy),
        closing(sqlite3.connect(copy, isolation_level=None)) as made,
    ):
        made.execute("pragma journal_mode = off")  # opens the file, and makes no other beside it
        there.backup(made)
        made.execute("pragma journal_mode = delete")
        made.execute("vacuum")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    archive.addfile(member, io.BytesIO(content))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member


def _private(path: Path) -> BinaryIO:
    """A new file, mode 0600 from its first moment."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "w+b")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class NoBackup(Trouble):
    """A file that is no backup, or not a whole one."""


def unpack(file: Path, content: BinaryIO, into: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Takes out what a backup may hold, and nothing else: plain files of these names.

    The databases are written into a directory, for SQLite reads files; the settings, with the key
    among them, are returned by their names and written nowhere. `file` is for the message. Raises
    NoBackup and OSError.
    """
    taken: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=content, mode="r:") as archive:
            for member in _plain(archive, file):
                if member.name in (DATABASE, "denials.db", "anomalies.db"):
                    _write_out(archive, member, into / member.name)
                elif member.name in (MANIFEST, CONFIGURATION, POLICY, MACHINE, KEY):
                    if member.name in taken:
                        raise FileExistsError(member.name)
                    taken[member.name] = _read_out(archive, member)
        manifest = _read_manifest(taken.pop(MANIFEST))
    except (
        *(tarfile.TarError, EOFError, ValueError, RecursionError, KeyError),
        *(FileNotFoundError, FileExistsError),
    ):
        hint = "name a file that 'spa-server backup' made"
        raise NoBackup(f"{file} is no whole backup", hint) from None
    if manifest.format != FORMAT:
        hint = f"this program reads {FORMAT}: use the one that made it"
        raise NoBackup(f"{file} is a backup of format {manifest.format}", hint)
    if not (into / DATABASE).exists():
        raise NoBackup(f"{file} has no database in it", "use another backup")
    return manifest, taken


def _write_out(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    taken = archive.extractfile(member)
    assert taken is not None  # noqa: S101 - a plain file has content
    with taken, as_owner(path), _private(path) as file:
        shutil.copyfileobj(taken, file)


def _read_out(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    taken = archive.extractfile(member)
    assert taken is not None  # noqa: S101 - a plain file has content
    with taken:
        content = taken.read()
    if len(content) != member.size:
        raise EOFError(member.name)
    return content


def _read_manifest(content: bytes) -> Manifest:
    """Raises ValueError where it is another's, or says a time that is none."""
    manifest = msgspec.json.decode(content, type=Manifest)
    if not 0 <= manifest.made_at_us <= _LATEST_US:
        raise ValueError("no time at which a backup is made")
    return manifest


def _plain(archive: tarfile.TarFile, file: Path) -> Iterator[tarfile.TarInfo]:
    """Its members, none of which is larger than the archive: a sparse one has no such bound."""
    for member in archive:
        if not member.isreg() or member.issparse():
            raise NoBackup(f"{file} is no backup: {member.name!r} in it is no plain file")
        is_database = member.name.endswith(".db")
        if not is_database and member.size > _MAX_SETTING:
            raise NoBackup(f"{file} is no backup: {member.name!r} in it is too large")
        yield member
