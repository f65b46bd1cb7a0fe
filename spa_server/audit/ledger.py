"""The ledger: what must not be lost when the daemon is killed, in one SQLite file.

One commit makes a batch of requests true before anything is opened or answered: the burned
requests, the grants and the record, together or not at all. WAL with synchronous=NORMAL survives a
killed process; for a crash of the kernel see spa_server/replay.py, rule 4.

Where it cannot be written, nothing is granted. What could not be written stays in memory, in order,
and goes first into the next commit; the latest stamp among the burned requests is kept in a file
on another file system (`unrecorded`), so that a restart meanwhile forgets none of them either.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec
import sqlite_utils
from sqlite_utils.migrations import Migrations

from spa_protocol.access import Access
from spa_protocol.layout import text_of
from spa_server.audit.record import Event, Record
from spa_server.grants import Grant
from spa_server.policy.model import Sessions
from spa_server.replay import Burn

MAX_WAITING: Final = 10_000
_SEEN_AGAIN_US: Final = 60_000_000
_TRUE_ONLY_IF_COMMITTED: Final = {Event.KNOCK_ACCEPTED, Event.HOLE_OPENED, Event.JOIN_ACCEPTED}

migrations = Migrations("ledger")


@migrations()
def create_tables(db: sqlite_utils.Database) -> None:
    """The ledger's tables as of version 0.1.

    Every table and index grows at its end, in the order of time: a commit is then a few pages, and
    not a page for each key. What is asked by identity reads the record backwards.
    """
    db.executescript("""
        create table event (
            id integer primary key autoincrement, at_us integer not null, event text not null,
            identity text, key_id text, source text, target text, access text, reason text,
            rule text, grant_id integer, detail text not null default '{}'
        ) strict;
        create index event_at on event (at_us);
        create table hole_grant (
            grant_id integer primary key, key_id text not null, identity text not null,
            rule text not null, source text not null, target text not null, access text not null,
            once integer not null, sessions text not null, opened_at_us integer not null,
            expires_at_us integer not null, ends_at_s real not null, boot_id text not null,
            ended_at_us integer, ended_why text
        ) strict;
        create index hole_grant_live on hole_grant (boot_id) where ended_at_us is null;
        create table burned (
            sent_at_us integer not null, key_id text not null, nonce blob not null,
            primary key (sent_at_us, key_id, nonce)
        ) strict, without rowid;
        create table burned_floor (
            key_id text primary key, sent_at_us integer not null
        ) strict, without rowid;
    """)


class LedgerError(Exception):
    """The ledger cannot be read or written: a full disk, a lock, a file that is no database."""


@dataclass(slots=True)
class Batch:
    """What one commit makes true. `flushed`: even a crash of the kernel must not lose it."""

    burned: list[Burn] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    ended: list[tuple[Grant, str]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    seen: list[tuple[str, int]] = field(default_factory=list)
    flushed: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.burned or self.grants or self.ended or self.records or self.seen)


class Ledger:
    """The ledger of one host.

    `seen` notes in the registry, which shares the connection, when keys were heard. `unrecorded` is
    a file on tmpfs; `boot_id` is this boot's name.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        seen: Callable[[Iterable[tuple[str, int]]], None],
        *,
        unrecorded: Path,
        boot_id: str,
    ) -> None:
        self._connection = connection
        self._seen = seen
        self._unrecorded = unrecorded
        self._boot_id = boot_id
        self._waiting = Batch()
        self._lost = 0
        self._seen_at_us: dict[str, int] = {}
        self._inherited_us = self.unrecorded_floor_us()
        with _ledger_errors():
            migrations.apply(sqlite_utils.Database(connection))
            row = connection.execute("select max(grant_id) from hole_grant").fetchone()
        self._last_grant_id: int = row[0] or 0

    @property
    def is_behind(self) -> bool:
        """Whether something waits that could not be written yet."""
        return not self._waiting.is_empty or self._lost > 0

    def next_grant_id(self) -> int:
        """A new grant's number."""
        self._last_grant_id += 1
        return self._last_grant_id

    def commit(self, batch: Batch, now_us: int) -> None:
        """Makes the batch true, and before it whatever waits. Raises LedgerError.

        When it raises, no grant of the batch was entered and none may be acted upon; its burned
        requests and its records wait for the next commit.
        """
        whole = self._with_waiting(batch, now_us)
        try:
            with _ledger_errors(), self._flushing(batch.flushed), self._transaction():
                self._write(whole, now_us)
        except LedgerError:
            self._keep_waiting(batch)
            raise
        self._waiting, self._lost = Batch(), 0
        if not self._inherited_us:
            self._unrecorded.unlink(missing_ok=True)

    def note(
        self,
        records: Sequence[Record],
        now_us: int,
        ended: Sequence[tuple[Grant, str]] = (),
    ) -> None:
        """Records what has happened already. What cannot be written now waits; never raises."""
        with suppress(LedgerError):
            self.commit(Batch(records=list(records), ended=list(ended)), now_us)

    def _with_waiting(self, batch: Batch, now_us: int) -> Batch:
        waiting = self._waiting
        records = waiting.records + batch.records
        if self._lost:
            records.append(Record(Event.RECORDS_LOST, now_us, detail={"count": self._lost}))
        return Batch(
            burned=waiting.burned + batch.burned,
            grants=batch.grants,
            ended=waiting.ended + batch.ended,
            records=records,
            seen=batch.seen,
        )

    def _keep_waiting(self, batch: Batch) -> None:
        self._waiting.burned += batch.burned
        self._waiting.ended += batch.ended
        room = MAX_WAITING - len(self._waiting.records)
        true = [record for record in batch.records if record.event not in _TRUE_ONLY_IF_COMMITTED]
        kept = true[:room]
        self._lost += len(true) - len(kept)
        self._waiting.records += kept
        latest_us = max(self._inherited_us, *(b.sent_at_us for b in self._waiting.burned), 0)
        with suppress(OSError):
            self._unrecorded.write_text(f"{latest_us}\n", encoding="ascii")

    def unrecorded_floor_us(self) -> int:
        """The latest stamp of a request that an earlier run heard but could not record.

        No later commit makes up for it, so the file stays until the reboot that empties its place.
        """
        try:
            return int(self._unrecorded.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    @contextmanager
    def _flushing(self, flushed: bool) -> Iterator[None]:
        if not flushed:
            yield
            return
        self._connection.execute("pragma synchronous = full")
        try:
            yield
        finally:
            self._connection.execute("pragma synchronous = normal")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("begin immediate")
        try:
            yield
            self._connection.execute("commit")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("rollback")
            raise

    def _write(self, batch: Batch, now_us: int) -> None:
        execute_many = self._connection.executemany
        execute_many(
            "insert or ignore into burned values (?, ?, ?)",
            [(b.sent_at_us, b.key_id, b.nonce) for b in batch.burned],
        )
        execute_many(
            "insert into hole_grant values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, null, null)",
            [_grant_row(grant, self._boot_id) for grant in batch.grants],
        )
        execute_many(
            "update hole_grant set ended_at_us = ?, ended_why = ? where grant_id = ?",
            [(now_us, why, grant.grant_id) for grant, why in batch.ended],
        )
        self._note_seen(batch.seen)
        execute_many(
            "insert into event (at_us, event, identity, key_id, source, target, access, reason,"
            " rule, grant_id, detail) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [_event_row(record) for record in batch.records],
        )

    def _note_seen(self, seen: Iterable[tuple[str, int]]) -> None:
        """When a key was last heard is known to the minute."""
        worth_noting = {
            key_id: at_us
            for key_id, at_us in seen
            if abs(at_us - self._seen_at_us.get(key_id, 0)) >= _SEEN_AGAIN_US
        }
        if worth_noting:
            self._seen(worth_noting.items())
            self._seen_at_us |= worth_noting

    def burned(self) -> Iterator[Burn]:
        """Every burned request that is still remembered."""
        with _ledger_errors():
            for sent_at_us, key_id, nonce in self._connection.execute("select * from burned"):
                yield Burn(key_id, nonce, sent_at_us)

    def floors(self) -> list[tuple[str, int]]:
        """Each key's floor, in microseconds since the Unix epoch."""
        with _ledger_errors():
            return self._connection.execute("select * from burned_floor").fetchall()

    def forget(self, until_us: int, floors: dict[str, int]) -> None:
        """Drops burned requests stamped before a time; the floors that rise stand for them."""
        with _ledger_errors(), self._transaction():
            self._connection.executemany(
                "insert into burned_floor values (?, ?)"
                " on conflict do update set sent_at_us = max(sent_at_us, excluded.sent_at_us)",
                floors.items(),
            )
            self._connection.execute("delete from burned where sent_at_us < ?", (until_us,))

    def live_grants(self) -> list[Grant]:
        """The grants of this boot that have not ended."""
        with _ledger_errors():
            rows = self._connection.execute(
                "select grant_id, key_id, identity, rule, source, target, access, once, sessions,"
                " opened_at_us, expires_at_us, ends_at_s from hole_grant"
                " where ended_at_us is null and boot_id = ? order by grant_id",
                (self._boot_id,),
            ).fetchall()
        return [_grant(row) for row in rows]

    def end_other_boots(self, now_us: int) -> int:
        """Closes the books on grants that a reboot has ended; how many there were."""
        with _ledger_errors(), self._transaction():
            return self._connection.execute(
                "update hole_grant set ended_at_us = ?, ended_why = 'reboot'"
                " where ended_at_us is null and boot_id <> ?",
                (now_us, self._boot_id),
            ).rowcount

    def data_version(self) -> int:
        """A number that changes when another process has changed the file."""
        with _ledger_errors():
            version: int = self._connection.execute("pragma data_version").fetchone()[0]
        return version


@contextmanager
def _ledger_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerError(str(error)) from error


def _grant_row(grant: Grant, boot_id: str) -> tuple[object, ...]:
    return (
        grant.grant_id,
        grant.key_id,
        grant.identity,
        grant.rule,
        text_of(grant.source),
        text_of(grant.target),
        str(grant.access),
        int(grant.once),
        grant.sessions.value,
        grant.opened_at_us,
        grant.expires_at_us,
        grant.ends_at_s,
        boot_id,
    )


def _grant(row: tuple[int, str, str, str, str, str, str, int, str, int, int, float]) -> Grant:
    grant_id, key_id, identity, rule, source, target, access, once, sessions = row[:9]
    opened_at_us, expires_at_us, ends_at_s = row[9:]
    return Grant(
        grant_id,
        key_id,
        identity,
        rule,
        ip_address(source),
        ip_address(target),
        Access.parse(access),
        bool(once),
        Sessions(sessions),
        opened_at_us,
        expires_at_us,
        ends_at_s,
    )


def _event_row(record: Record) -> tuple[object, ...]:
    return (
        record.at_us,
        record.event.value,
        record.identity,
        record.key_id,
        record.source,
        record.target,
        record.access,
        record.reason,
        record.rule,
        record.grant_id,
        msgspec.json.encode(record.detail, order="sorted").decode(),
    )
