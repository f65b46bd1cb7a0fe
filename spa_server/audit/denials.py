"""Denials are kept apart from the record: anybody can cause them, in any number.

They have a file of their own beside the database, with a cap on its lines and on its bytes. It is
outside the chain, and the first to be shed: its oldest lines at the cap, all of it when the ledger
finds no room on the disk. Totals for each event are kept for good, so that no packet that was
counted is lost sight of.

A denial is written at once, in a line of its own, while there are few. What comes in numbers is
folded (spa_server/audit/folding.py): `BURST` lines, then `LINES_AN_HOUR`, and one line a minute for
the rest.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Final

import sqlite_utils
from sqlite_utils.migrations import Migrations

from keys import schema
from keys.owner import as_owner
from keys.trouble import Trouble
from spa_server.audit import aside, chain, sidefile
from spa_server.audit.folding import Counted, Folding, Kind, Level, Line
from spa_server.audit.record import Event, Record

MAX_LINES: Final = 100_000
BURST: Final = 2000
LINES_AN_HOUR: Final = 2000
_BYTES_A_LINE: Final = 400
_HOUR_US: Final = 3_600_000_000
_SECOND_US: Final = 1_000_000
_BUSY_US: Final = 10 * _SECOND_US
_FLOOD_US: Final = 60 * _SECOND_US
_MANY: Final = "many kinds"
_DENIED: Final = frozenset({Event.CONNECTION_DENIED, Event.CONNECTION_WOULD_DENY})
_UNPROVEN: Final = frozenset({"malformed", "unknown-key", "not-authentic", "bad-signature", _MANY})

migrations: Final = Migrations("denials")


@migrations()
def create_denials(db: sqlite_utils.Database) -> None:
    """Lines as in the record, without a rule or a grant, and with a count of packets."""
    db.executescript("""
        create table denial (
            id integer primary key, at_us integer not null, event text not null,
            identity text, key_id text, source text, target text, access text, reason text,
            count integer not null, detail text not null
        ) strict;
        create table total (
            event text primary key, count integer not null,
            shed_count integer not null, shed_lines integer not null
        ) strict, without rowid;
        pragma user_version = 2;
    """)


def beside(database: Path) -> Path:
    """Where the denials of a host are."""
    return database.with_name("denials.db")


def is_denial(record: Record) -> bool:
    """Whether a record is kept apart: a denied connection, or a knock by who proved no key."""
    event = record.event
    return event in _DENIED or (event is Event.KNOCK_REFUSED and record.reason in _UNPROVEN)


class Denials:
    """The denials of a host, in the file `path`. Nothing here raises.

    `is_paused`: the disk is short, nothing is written; what comes is counted on in memory.
    """

    def __init__(self, path: Path, *, max_lines: int = MAX_LINES) -> None:
        self.is_paused = False
        self._path = path
        self._max_lines = max_lines
        self._folding = Folding()
        self._connection: sqlite3.Connection | None = None
        self._tokens = float(BURST)
        self._written_at_us = 0
        self._try_again_at_us = 0
        self._is_failing = False
        self._dropped: dict[str, tuple[int, int, int]] = {}

    @property
    def is_failing(self) -> bool:
        """Whether the last try to write went wrong; what waits is in memory."""
        return self._is_failing

    # What comes

    def add(self, records: Sequence[Record], now_us: int) -> None:
        """Enters denials, each of one packet or of `further` or `count` of them."""
        for record in records:
            detail = record.detail
            count = detail.get("further") or detail.get("count")
            kind = Kind(
                record.event.value,
                record.source,
                record.target,
                record.access,
                record.reason,
                record.key_id,
                record.identity,
            )
            self._folding.add(kind, count or 1, None if count else (record.at_us, detail))
        self._write_if_due(now_us)

    def add_counts(self, event: Event, counts: Iterable[Counted], now_us: int) -> None:
        """Enters packets counted elsewhere: source, target, access and how many.

        Some microseconds for each of them: hand them over in slices of about a thousand.
        """
        self._folding.add_counts(event.value, counts)
        self._write_if_due(now_us)

    # Time

    def due_at_us(self) -> int | None:
        """When `flush` has something to do; None while nothing waits."""
        if not self._folding or self.is_paused:
            return None
        return max(self._written_at_us + self._pause_us(), self._try_again_at_us)

    def _pause_us(self) -> int:
        if self._tokens >= BURST / 2:
            return 0
        return _BUSY_US if self._tokens >= 1 else _FLOOD_US

    def is_due(self, now_us: int) -> bool:
        """Whether it is time (or the clock was set back) and something waits."""
        due_us = self.due_at_us()
        return due_us is not None and (now_us >= due_us or now_us < self._written_at_us)

    def _write_if_due(self, now_us: int) -> None:
        if self.is_due(now_us):
            self.flush(now_us)

    # The file

    def flush(self, now_us: int) -> None:
        """Writes what waits. What cannot be written waits on, and takes no more room for it."""
        if not self._folding or self.is_paused:
            return
        self._refill(now_us)
        lines = self._folding.lines(int(self._tokens))
        try:
            self._write(lines, now_us)
        except (sqlite3.Error, Trouble, OSError) as error:
            self._recover(error, now_us)
            return
        self._folding.clear(Level.NETWORK if self._folding.overflows else Level.KIND)
        self._tokens = max(0.0, self._tokens - len(lines))
        self._is_failing = False

    def _refill(self, now_us: int) -> None:
        passed_us = max(0, now_us - self._written_at_us)
        self._tokens = min(BURST, self._tokens + passed_us / _HOUR_US * LINES_AN_HOUR)
        self._written_at_us = now_us

    def _write(self, lines: list[Line], now_us: int) -> None:
        connection = self._open()
        rows = [(min(line.at_us or now_us, now_us), *_columns(line)) for line in lines]
        rows.sort(key=itemgetter(0))
        totals: dict[str, int] = {}
        for line in lines:
            totals[line.kind.event] = totals.get(line.kind.event, 0) + line.packets
        with schema.transaction(connection):
            connection.executemany(
                "insert into denial (at_us, event, identity, key_id, source, target, access,"
                " reason, count, detail) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            _add_totals(connection, [(event, n, 0, 0) for event, n in totals.items()])
            _add_totals(connection, [(event, *n) for event, n in self._dropped.items()])
            last_id: int = connection.execute("select max(id) from denial").fetchone()[0]
            _shed(connection, last_id - self._max_lines)
        self._dropped = {}

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            if not self._path.exists():
                sidefile.make_whole(self._path, migrations)
            max_bytes = self._max_lines * _BYTES_A_LINE
            self._connection = sidefile.connect(self._path, migrations, max_bytes=max_bytes)
        return self._connection

    def _recover(self, error: Exception, now_us: int) -> None:
        """A full file sheds a tenth of its lines, a broken one is set aside; then a new try."""
        self._is_failing = True
        self._try_again_at_us = now_us + _BUSY_US
        is_full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        if is_full and self._connection is not None:
            with suppress(sqlite3.Error):
                first_id = self._connection.execute("select min(id) from denial").fetchone()[0]
                _shed(self._connection, (first_id or 0) + self._max_lines // 10)
            return
        self._disconnect()
        sidefile.set_aside(self._path, error, now_us)

    def drop(self) -> int:
        """Gives all room back to the disk, and pauses; how many lines are gone with it.

        The totals live on: they are written again when there is room.
        """
        if not self._path.exists():
            return 0
        lines = 0
        with suppress(sqlite3.Error, Trouble, OSError):
            connection = self._open()
            for event, count, shed, shed_lines in connection.execute("select * from total"):
                here, packets = connection.execute(
                    "select count(*), total(count) from denial where event = ?", (event,)
                ).fetchone()
                lines += here
                self._dropped[event] = (count, shed + int(packets), shed_lines + here)
        self._disconnect()
        self.is_paused = True
        for suffix in aside.SUFFIXES:
            with suppress(OSError), as_owner(self._path):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        return max(lines, 1)

    def close(self, now_us: int) -> None:
        """Writes what waits, and lets go of the file."""
        self.flush(now_us)
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            schema.close(self._connection)
        self._connection = None


def _columns(line: Line) -> tuple[str | int | None, ...]:
    kind = line.kind
    texts = (
        kind.event,
        kind.identity,
        kind.key_id,
        kind.source,
        kind.target,
        kind.access,
        kind.reason,
    )
    return (*map(chain.encodable, texts), line.packets, chain.detail_text(line.detail))


def _add_totals(connection: sqlite3.Connection, rows: list[tuple[str, int, int, int]]) -> None:
    connection.executemany(
        "insert into total values (?, ?, ?, ?) on conflict do update set"
        " count = count + excluded.count, shed_count = shed_count + excluded.shed_count,"
        " shed_lines = shed_lines + excluded.shed_lines",
        rows,
    )


def _shed(connection: sqlite3.Connection, until_id: int) -> None:
    """Removes the lines up to an id, and keeps count of them."""
    gone = connection.execute(
        "select event, 0, total(count), count(*) from denial where id <= ? group by event",
        (until_id,),
    ).fetchall()
    if gone:
        _add_totals(connection, [(event, 0, int(n), lines) for event, _, n, lines in gone])
        connection.execute("delete from denial where id <= ?", (until_id,))
