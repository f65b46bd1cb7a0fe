"""Room that is kept for the ledger on a disk that may fill up.

The room is inside the database: some thousand pages that belong to the file and hold nothing
(SQLite's freelist). New lines go there first, so that on a full disk the ledger goes on for that
long. A file beside the database, to be deleted in need, would not do: whoever fills the disk takes
what it leaves, faster than the ledger can. Likewise SQLite's log (WAL) is stretched once at the
start, since it is written over in place from then on.

What holds: while nobody else's reading keeps the log from starting over, and on a file system that
overwrites in place (ext4 and XFS do, btrfs and ZFS do not). Pages are made by filling the file with
rows of zeros, each committed by itself, and taking them out again when there are enough.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from typing import Final

TARGET_BYTES: Final = 16 * 1024 * 1024
_STEP_BYTES: Final = 256 * 1024
_LOG_STEPS: Final = 16
_ROOM_STEPS: Final = 8


class _Phase(Enum):
    """What the next step is."""

    LAID = auto()
    FILLING = auto()
    EMPTYING = auto()


class Reserve:
    """The reserve of one database, of `target_bytes`; it is laid anew when half of it is used.

    `is_short` says that the disk has no room for it. Raises sqlite3.Error.
    """

    def __init__(
        self, connection: sqlite3.Connection, path: Path, target_bytes: int = TARGET_BYTES
    ) -> None:
        self.is_short = False
        self._connection = connection
        self._path = path
        self._page_bytes: int = self._number("pragma page_size")
        self._target_pages = target_bytes // self._page_bytes
        self._phase = _Phase.EMPTYING if self._fillers() else _Phase.LAID

    @property
    def is_filling(self) -> bool:
        """Whether the next `step` is due at once."""
        return self._phase is not _Phase.LAID

    @property
    def free_bytes(self) -> int:
        """How much room the ledger has inside its file."""
        return self._free_pages() * self._page_bytes

    def lay(self) -> None:
        """At the start: the log is stretched, and the reserve laid, as far as there is room.

        Raises sqlite3.Error for anything but a full disk.
        """
        if self._has_room(_LOG_STEPS + _ROOM_STEPS):
            with self._noticing():
                self._connection.execute("begin immediate")
                for _ in range(_LOG_STEPS):
                    self._fill()
                self._connection.execute("commit")
                self._phase = _Phase.EMPTYING
        while self.step():
            pass

    def step(self) -> bool:
        """Some milliseconds of work; whether there is more. Raises sqlite3.Error, as `lay`."""
        match self._phase:
            case _Phase.LAID:
                if self._free_pages() < self._target_pages // 2:
                    self._phase = _Phase.FILLING
            case _Phase.FILLING:
                self._grow()
                if self.is_short or self._free_pages() >= self._target_pages:
                    self._phase = _Phase.EMPTYING
            case _Phase.EMPTYING:
                self._connection.execute(
                    "delete from reserve where id = (select max(id) from reserve)"
                )
                if not self._fillers():
                    self._phase = _Phase.LAID
                    return not self.is_short and self.step()
        return self.is_filling

    def try_again(self) -> None:
        """The disk may have room again."""
        self.is_short = False
        self._phase = _Phase.FILLING

    def _grow(self) -> None:
        """One filler more. The file is then as long as it says, before others fill the disk."""
        self.is_short = not self._has_room(_ROOM_STEPS)
        if not self.is_short:
            with self._noticing():
                self._fill()
                self._connection.execute("pragma wal_checkpoint(passive)").fetchone()

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """A disk that is full in spite of the look at its room: nothing is changed."""
        try:
            yield
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    self._connection.execute("rollback")
            if getattr(error, "sqlite_errorname", "") != "SQLITE_FULL":
                raise
            self.is_short = True

    def _fill(self) -> None:
        zeros = f"zeroblob({_STEP_BYTES - self._page_bytes})"
        self._connection.execute(f"insert into reserve (filler) values ({zeros})")  # noqa: S608 - a number

    def _free_pages(self) -> int:
        """Those that are free, and those of fillers, which will be."""
        fillers = self._fillers() * (_STEP_BYTES // self._page_bytes - 1)
        return self._number("pragma freelist_count") + fillers

    def _fillers(self) -> int:
        return self._number("select count(*) from reserve")

    def _number(self, statement: str) -> int:
        value: int = self._connection.execute(statement).fetchone()[0]
        return value

    def _has_room(self, steps: int) -> bool:
        try:
            disk = os.statvfs(self._path.parent)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= steps * _STEP_BYTES
