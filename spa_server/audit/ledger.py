"""The ledger: what must not be lost when the daemon is killed, in one SQLite file.

One commit makes a batch of requests true before anything is opened or answered: the burned
requests, the grants and the record, together or not at all. WAL with synchronous=NORMAL survives a
killed process; for a crash of the kernel see spa_server/replay.py, rule 4.

Where it cannot be written, nothing is granted, unless the operator wished otherwise. What could not
be written waits in memory and goes first into the next commit (spa_server/audit/backlog.py).

The record is chained (spa_server/audit/chain.py). What anybody can cause in any number, denials
above all, is kept apart (spa_server/audit/sorting.py), in a file that is shed first
(spa_server/audit/denials.py).
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from keys import schema
from spa_server.audit import acts, chain, grantrows, policytexts, tables
from spa_server.audit.backlog import Backlog, Batch, to_stderr
from spa_server.audit.chain import Head
from spa_server.audit.denials import Denials
from spa_server.audit.record import Event, Record
from spa_server.audit.sorting import Sorting
from spa_server.grants import Grant
from spa_server.replay import Burn

Observer = Callable[[Sequence[Record], int], None]
"""Is told of lines that were just written, and the number of the first; 0 for denials."""

_SEEN_AGAIN_US: Final = 60_000_000


class LedgerError(Exception):
    """The ledger cannot be read or written: a full disk, a lock, a file that is no database."""

    @property
    def is_full(self) -> bool:
        """Whether it is room that is wanting."""
        return schema.is_full(self.__cause__)

    @property
    def is_foreign(self) -> bool:
        """Whether a line is there already that this ledger did not write."""
        return _is(self.__cause__, "SQLITE_CONSTRAINT_PRIMARYKEY") and "event.id" in str(self)


def _is(cause: BaseException | None, name: str) -> bool:
    return isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorname", "") == name


class Ledger:
    """The ledger of one host.

    `seen` notes in the registry, which shares the connection, when keys were heard. `unrecorded` is
    a file on tmpfs; `boot_id` is this boot's name. Without `denials` all is in the record.
    `serves_when_full`: what cannot be recorded for want of room is granted all the same.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        seen: Callable[[Iterable[tuple[str, int]]], None],
        *,
        unrecorded: Path,
        boot_id: str,
        denials: Denials | None = None,
        serves_when_full: bool = False,
        say: Callable[[str], None] = to_stderr,
    ) -> None:
        self._connection = connection
        self._seen = seen
        self._backlog = Backlog(unrecorded, serves=serves_when_full, say=say)
        self._boot_id = boot_id
        self._denials = denials
        self._sorting = Sorting()
        self.observers: list[Observer] = []
        self._distrusted = ""
        self._seen_at_us: dict[str, int] = {}
        with _ledger_errors():
            tables.prepare(connection)
            self._head = tables.head_of(connection)
            row = connection.execute("select max(grant_id) from hole_grant").fetchone()
        self._last_grant_id: int = row[0] or 0

    @property
    def is_behind(self) -> bool:
        """Whether something waits that could not be written yet."""
        return not self._backlog.is_empty

    @property
    def trouble(self) -> str:
        """Why nothing can be written; empty while it can."""
        return self._backlog.trouble

    @property
    def head(self) -> Head:
        """Where the chain ends. This is what the daemon wrote, whatever the file says by now."""
        return self._head

    def distrust(self, why: str) -> None:
        """Nothing is written while the registry beside it cannot be read; empty: it can be.

        It may say that a key is revoked.
        """
        self._distrusted = why

    def next_grant_id(self) -> int:
        """A new grant's number."""
        self._last_grant_id += 1
        return self._last_grant_id

    def commit(self, batch: Batch, now_us: int) -> None:
        """Makes the batch true, and before it whatever waits. Raises LedgerError.

        When it raises, no grant of the batch was entered and none may be acted upon; its burned
        requests and its records wait for the next commit. Where the disk is full and the operator
        wished it, the grants wait too, and it does not raise.
        """
        if self._denials is not None:
            batch.records = self._kept(batch.records, self._denials, now_us)
        if batch.is_empty and not self.is_behind:
            return
        whole = self._backlog.before(batch, now_us)
        try:
            self._make_true(whole, now_us)
        except LedgerError as error:
            if not self._backlog.keep(batch, str(error), now_us, is_full=error.is_full):
                raise
            return
        self._backlog.written()
        self._tell(whole.records, self._head.event_id - len(whole.records) + 1)

    def close(self) -> None:
        """At the daemon's end: what waits is lost, and the operator is told."""
        self._backlog.close()

    def note(
        self,
        records: Sequence[Record],
        now_us: int,
        ended: Sequence[tuple[Grant, str]] = (),
    ) -> None:
        """Records what has happened already. What cannot be written now waits; never raises."""
        with suppress(LedgerError):
            self.commit(Batch(records=list(records), ended=list(ended)), now_us)

    def enter_acts(self, now_us: int) -> None:
        """Enters what operators did beside the daemon, each once. Raises LedgerError."""
        if self.is_behind:
            return  # it is among what waits, or comes when that is written
        with _ledger_errors():
            last, records = acts.unread(self._connection)
        if last:
            self.commit(Batch(records=records, acts_until=last), now_us)

    def keep_policy(self, digest: str, text: str | None, now_us: int) -> None:
        """Keeps the text of a policy that comes into force; where it cannot, it is not kept."""
        with suppress(LedgerError), self.writing() as connection:
            policytexts.keep(connection, digest, text, now_us)

    def _kept(self, records: list[Record], denials: Denials, now_us: int) -> list[Record]:
        """What belongs into the chain; the rest goes to the denials."""
        apart: list[Record] = []
        kept: list[Record] = []
        for record in records:
            (apart if self._sorting.is_apart(record, now_us) else kept).append(record)
        if apart:
            denials.add(apart, now_us)
            self._tell(apart, 0)
        return kept

    def _tell(self, records: Sequence[Record], first_id: int) -> None:
        if records:
            for observer in self.observers:
                observer(records, first_id)

    def _make_true(self, whole: Batch, now_us: int) -> None:
        """Where what went wrong has a remedy, it is tried again, and the record says so."""
        while True:
            try:
                with _ledger_errors(), self._flushing(whole.flushed), self.writing():
                    head = self._write(whole, now_us)
            except LedgerError as error:
                remedy = self._remedy(error, now_us)
                if remedy is None:
                    raise
                whole.records.append(remedy)
            else:
                self._head = head
                return

    def _remedy(self, error: LedgerError, now_us: int) -> Record | None:
        if error.is_full and self._denials is not None and (shed := self._denials.drop()):
            detail = {"denials_shed": shed}
            return Record(Event.DISK_FULL, now_us, reason=str(error), detail=detail)
        if error.is_foreign:
            return self._step_over(now_us)
        return None

    def _step_over(self, now_us: int) -> Record | None:
        """Lines that this ledger did not write are left alone, and the chain is not theirs.

        The next line follows the last one of our own: where the others stand the chain is broken.
        """
        with suppress(sqlite3.Error):
            last = self._connection.execute("select max(id) from event").fetchone()[0]
            count = last - self._head.event_id
            if count > 0:
                self._head = Head(last, self._head.digest)
                detail = {"count": count}
                reason = "another program wrote to the record"
                return Record(Event.RECORDS_FOREIGN, now_us, reason=reason, detail=detail)
        return None

    def unrecorded_floor_us(self) -> int:
        """The latest stamp of a request that an earlier run heard but could not record.

        No later commit makes up for it, so the file stays until the reboot that empties its place.
        """
        return self._backlog.floor_us()

    def lost_up_to(self, latest_us: int) -> None:
        """What was burned up to this stamp is not in the ledger, which is an older copy of itself.

        So nothing up to it is heard, by this run or by another before the next reboot.
        """
        self._backlog.raise_floor(latest_us)

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
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, all of it or nothing. Raises LedgerError."""
        if self._distrusted:
            raise LedgerError(self._distrusted)
        with _ledger_errors(), schema.transaction(self._connection):
            yield self._connection

    def _write(self, batch: Batch, now_us: int) -> Head:
        execute_many = self._connection.executemany
        execute_many(
            "insert or ignore into burned values (?, ?, ?)",
            [(b.sent_at_us, b.key_id, b.nonce) for b in batch.burned],
        )
        execute_many(
            grantrows.INSERT_GRANT,
            [grantrows.row_of(grant, self._boot_id) for grant in batch.grants],
        )
        execute_many(
            "update hole_grant set ended_at_us = ?, ended_why = ? where grant_id = ?",
            [(now_us, why, grant.grant_id) for grant, why in batch.ended],
        )
        self._note_seen(batch.seen)
        if batch.acts_until:
            self._connection.execute("delete from operator_act where id <= ?", (batch.acts_until,))
        rows, head = chain.link(self._head, batch.records)
        execute_many(tables.INSERT_EVENT, rows)
        return head

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
        with self.writing() as connection:
            connection.executemany(
                "insert into burned_floor values (?, ?)"
                " on conflict do update set sent_at_us = max(sent_at_us, excluded.sent_at_us)",
                floors.items(),
            )
            connection.execute("delete from burned where sent_at_us < ?", (until_us,))

    def live_grants(self) -> list[Grant]:
        """The grants of this boot that have not ended."""
        with _ledger_errors():
            rows = self._connection.execute(grantrows.SELECT_LIVE, (self._boot_id,)).fetchall()
        return [grantrows.grant_of(row) for row in rows]

    def end_other_boots(self, now_us: int) -> int:
        """Closes the books on grants that a reboot has ended; how many there were."""
        with self.writing() as connection:
            return connection.execute(
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
