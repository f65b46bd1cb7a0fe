"""The upkeep of the record: checkpoints, retention, the reserve, and the denials' own writing.

Nothing here is urgent, and nothing raises: what fails is tried again half a minute later. Each
`tend` takes a few milliseconds at most; what is more is due again at once, after the knocks that
wait. When nothing has been recorded since the last checkpoint, nothing is ever due.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from keys.owner import as_owner
from keys.privatefile import new_file
from keys.readfile import read_plain
from keys.trouble import Trouble
from keys.when import rfc3339
from spa_server.audit import retention
from spa_server.audit.checkpoint import Checkpoint, RecordKey
from spa_server.audit.denials import Denials
from spa_server.audit.ledger import Ledger, LedgerError
from spa_server.audit.record import Event, Record
from spa_server.audit.reserve import Reserve
from spa_server.audit.retention import Retention

CHECKPOINT_EVERY: Final = 4096
CHECKPOINT_AFTER_US: Final = 60_000_000
TRIM_EVERY_US: Final = 3_600_000_000
RETRY_US: Final = 30_000_000


class Upkeep:
    """The upkeep of one ledger. `note` is a file on another file system for the last checkpoint.

    Making one, before anything is recorded, looks at what was signed; it raises LedgerError.
    """

    def __init__(
        self,
        ledger: Ledger,
        key: RecordKey,
        *,
        keep: Retention | None = None,
        denials: Denials | None = None,
        reserve: Reserve | None = None,
        note: Path | None = None,
    ) -> None:
        self._ledger = ledger
        self._key = key
        self._keep = keep or Retention()
        self._denials = denials
        self._reserve = reserve
        self._note = note
        self._signed_id, self._tampered = self._look_back()
        self._unsigned_since_us: int | None = None
        self._try_again_at_us = 0
        self._trimmed_at_us = 0
        self._trimmed = retention.Trimmed()
        self._grants_after: int | None = None
        self._has_more_to_trim = False
        self._is_short = False

    def _look_back(self) -> tuple[int, Record | None]:
        """Up to which line the record is signed, and what is to be recorded where it is not so.

        One that ends before has been cut off, or put back from a copy.
        """
        with self._ledger.writing() as connection:
            row = connection.execute(
                "select event_id, at_us, digest, signer, signature from checkpoint"
                " order by event_id desc limit 1"
            ).fetchone()
            signed = [Checkpoint(*row)] if row else []
            noted = read_note(self._note) if self._note is not None else None
            signed += [noted] if noted is not None else []
            signed = [each for each in signed if self._key.signer.verifies(each)]
            if not signed:
                return 0, None
            last = max(signed, key=lambda each: each.event_id)
            missing = last.event_id - self._ledger.head.event_id
            if missing > 0:
                reason = f"the record was cut off: line {last.event_id} had been signed"
                return 0, Record(Event.RECORDS_LOST, 0, reason=reason, detail={"count": missing})
            found = connection.execute(
                "select digest from event where id = ?", (last.event_id,)
            ).fetchone()
            if found is not None and found[0] != last.digest:
                reason = f"the record was changed: line {last.event_id} is not what was signed"
                return 0, Record(Event.RECORDS_LOST, 0, reason=reason)
        return last.event_id, None

    @property
    def is_record_short(self) -> bool:
        """Whether the record is not what was signed: cut off, changed, or an older copy."""
        return self._tampered is not None

    def start(self, now_us: int) -> None:
        """At the daemon's start, once it is in the record: signs, and lays the reserve."""
        with suppress(LedgerError):
            if self._tampered is not None:
                self._ledger.note([msgspec.structs.replace(self._tampered, at_us=now_us)], now_us)
            with self._ledger.writing() as connection:
                signer = self._key.signer
                row = (signer.name, signer.public, now_us)
                connection.execute("insert or ignore into signer values (?, ?, ?)", row)
            self.checkpoint(now_us)
        if self._reserve is not None:
            with suppress(sqlite3.Error):
                self._reserve.lay()
            self._tell_of_the_disk(now_us)

    # Time

    def due_at_us(self, now_us: int) -> int | None:
        """When `tend` has something to do; None while it has not."""
        moments = [self._checkpoint_due_us(now_us)]
        if self._denials is not None:
            moments.append(self._denials.due_at_us())
        if self._has_more_to_trim or self._is_laying:
            moments.append(now_us)
        due = [moment for moment in moments if moment is not None]
        if self._is_short:
            due.append(self._try_again_at_us)
        return max(min(due), self._try_again_at_us) if due else None

    @property
    def _is_laying(self) -> bool:
        return self._reserve is not None and self._reserve.is_filling

    def _checkpoint_due_us(self, now_us: int) -> int | None:
        unsigned = self._ledger.head.event_id - self._signed_id
        if unsigned <= 0:
            self._unsigned_since_us = None
            return None
        since_us = self._unsigned_since_us
        if since_us is None or since_us > now_us:
            since_us = self._unsigned_since_us = now_us
        return now_us if unsigned >= CHECKPOINT_EVERY else since_us + CHECKPOINT_AFTER_US

    def tend(self, now_us: int) -> None:
        """Does what is due."""
        if self._denials is not None and self._denials.is_due(now_us):
            self._denials.flush(now_us)
        if self._try_again_at_us - RETRY_US <= now_us < self._try_again_at_us:
            return
        try:
            due_us = self._checkpoint_due_us(now_us)
            if due_us is not None and due_us <= now_us:
                self.checkpoint(now_us)
            self._trim(now_us)
            self._lay(now_us)
        except (LedgerError, sqlite3.Error):
            self._try_again_at_us = now_us + RETRY_US

    def close(self, now_us: int) -> None:
        """At the daemon's end, once it is in the record."""
        with suppress(LedgerError):
            self.checkpoint(now_us)
        if self._denials is not None:
            self._denials.close(now_us)

    # Checkpoints

    def checkpoint(self, now_us: int) -> Checkpoint | None:
        """Signs the head of the chain, unless it is signed already. Raises LedgerError."""
        head = self._ledger.head
        if head.event_id <= self._signed_id:
            return None
        made = self._key.checkpoint(head.event_id, head.digest, now_us)
        row = (made.event_id, made.at_us, made.digest, made.signer, made.signature)
        with self._ledger.writing() as connection:
            connection.execute("insert or ignore into checkpoint values (?, ?, ?, ?, ?)", row)
        self._signed_id, self._unsigned_since_us = head.event_id, None
        if self._note is not None:
            write_note(self._note, made)
        return made

    # Retention

    def _trim(self, now_us: int) -> None:
        if self._has_more_to_trim:
            self._trim_slice(now_us)
        elif not self._trimmed_at_us <= now_us < self._trimmed_at_us + TRIM_EVERY_US:
            self._trimmed_at_us = now_us
            self._has_more_to_trim = self._keep != Retention()

    def _trim_slice(self, now_us: int) -> None:
        with self._ledger.writing() as connection:
            if self._grants_after is not None:
                self._grants_after = retention.trim_grants(connection, self._grants_after)
                self._has_more_to_trim = self._grants_after is not None
                return
            slice_ = retention.trim(connection, self._keep, self._key, now_us)
        if slice_.count:
            count = self._trimmed.count + slice_.count
            self._trimmed = retention.Trimmed(count, slice_.until_us)
            return
        self._grants_after = 0
        if self._trimmed.count:
            detail = {"count": self._trimmed.count, "until": rfc3339(self._trimmed.until_us)}
            self._trimmed = retention.Trimmed()
            record = Record(Event.RECORDS_TRIMMED, now_us, reason=self._keep.words, detail=detail)
            self._ledger.note([record], now_us)

    # The disk

    def _lay(self, now_us: int) -> None:
        if self._reserve is None:
            return
        if self._reserve.is_short:
            self._reserve.try_again()
        self._reserve.step()
        if self._reserve.is_short or not self._reserve.is_filling:
            self._tell_of_the_disk(now_us)

    def _tell_of_the_disk(self, now_us: int) -> None:
        """While there is no room for the ledger's reserve, the denials get none either."""
        if self._reserve is None:
            return
        was_short, self._is_short = self._is_short, self._reserve.is_short
        if self._is_short:
            self._try_again_at_us = now_us + RETRY_US
        if self._denials is not None:
            was_short |= self._denials.is_paused
            self._denials.is_paused = self._is_short
        if self._is_short != was_short:
            event = Event.DISK_FULL if self._is_short else Event.DISK_FREE
            detail = {"reserve_kb": self._reserve.free_bytes // 1024}
            self._ledger.note([Record(event, now_us, detail=detail)], now_us)


_MAX_NOTE: Final = 4096


def note_in(runtime: Path) -> Path:
    """Where the last checkpoint is noted: beside the control socket, on tmpfs."""
    return runtime / "record.checkpoint"


def write_note(path: Path, checkpoint: Checkpoint) -> None:
    """Leaves the checkpoint in a file, whole or not at all; where it cannot, an older one stays."""
    with suppress(OSError, Trouble), new_file(path, overwrite=True) as unnamed:
        unnamed.write_bytes(f"{checkpoint}\n".encode())


def read_note(path: Path) -> Checkpoint | None:
    """The checkpoint in such a file, None where there is none."""
    try:
        with as_owner(path):
            content = read_plain(path, _MAX_NOTE)
        return Checkpoint.parse(content.decode("ascii"))
    except (OSError, ValueError, Trouble):
        return None
