"""The backlog: what the ledger could not write yet, in memory and in order.

Where the disk is full the daemon denies, unless `when_disk_full = "serve"`. Then it lets in as
ever, while these rules can be kept:

1.  What is granted and what was burned waits here, all of it: past MAX_WAITING lines nothing is
    granted any more.
2.  Before a request is served, a note on another file system bears its stamp. A daemon that starts
    meanwhile takes that as a floor (spa_server/replay.py, rule 4): no request is served twice.
3.  Only room is wanting. A database that is damaged, or that a disk's error keeps from being read,
    is one whose registry cannot be trusted.

Holes whose grants were never written are closed by a daemon that starts meanwhile: nobody knows
whose they are. When the ledger can be written again, `records.late` says from when until when it
could not.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keys.owner import as_owner
from keys.privatefile import new_file
from keys.readfile import read_plain
from keys.text import printable
from keys.trouble import Trouble
from keys.when import rfc3339
from spa_server.audit.record import Event, Record
from spa_server.grants import Grant
from spa_server.replay import Burn

MAX_WAITING: Final = 10_000
_MAX_NOTE: Final = 64
_TRUE_ONLY_IF_COMMITTED: Final = {
    Event.KNOCK_ACCEPTED,
    Event.HOLE_OPENED,
    Event.HOLE_RENEWED,
    Event.JOIN_ACCEPTED,
}


@dataclass(slots=True)
class Batch:
    """What one commit makes true. `flushed`: even a crash of the kernel must not lose it.

    `acts_until`: the rows of `operator_act` up to there are among the records, and are done with.
    """

    burned: list[Burn] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    ended: list[tuple[Grant, str]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    seen: list[tuple[str, int]] = field(default_factory=list)
    flushed: bool = False
    acts_until: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        lists = (self.burned, self.grants, self.ended, self.records, self.seen)
        return not (any(lists) or self.acts_until)


def to_stderr(text: str) -> None:
    """For the journal. It may be on the same disk, so this never raises."""
    with suppress(OSError, ValueError):
        print(printable(f"spa-server: {text}"), file=sys.stderr, flush=True)


def read_note(path: Path) -> int:
    """The stamp in such a note; 0 where there is none."""
    try:
        with as_owner(path):
            return int(read_plain(path, _MAX_NOTE))
    except (OSError, ValueError, Trouble):
        return 0


def leave_note(path: Path, latest_us: int) -> None:
    """Writes one, whole or not at all. Raises OSError and Trouble."""
    with new_file(path, overwrite=True) as unnamed:
        unnamed.write_bytes(b"%d\n" % latest_us)


class Backlog:
    """`note` is a file on another file system; `say` tells the operator, once a fault.

    `serves`: the grants of what waits for room on the disk may be acted upon.
    """

    def __init__(self, note: Path, *, serves: bool, say: Callable[[str], None]) -> None:
        self._note = note
        self._serves = serves
        self._say = say
        self._waiting = Batch()
        self._lost = 0
        self._inherited_us = self.floor_us()
        self._since_us: int | None = None
        self._why = ""

    @property
    def trouble(self) -> str:
        """Why the ledger cannot be written; empty while it can."""
        return self._why

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be written, and nobody to be told that it waited."""
        return self._since_us is None

    def floor_us(self) -> int:
        """The latest stamp of a request that was heard but is not recorded; 0 for none."""
        return read_note(self._note)

    def raise_floor(self, latest_us: int) -> None:
        """Nothing up to this stamp is known to be unheard: no later commit makes up for that."""
        self._inherited_us = max(self._inherited_us, latest_us)
        self._write_note()

    def keep(self, batch: Batch, why: str, now_us: int, *, is_full: bool) -> bool:
        """Lets a batch wait; whether its grants may be acted upon. If not they are forgotten."""
        self._waiting.burned += batch.burned
        self._waiting.ended += batch.ended
        self._waiting.flushed |= batch.flushed
        is_noted = self._write_note()
        room = MAX_WAITING - len(self._waiting.records)
        serves = self._serves and is_full and is_noted and len(batch.records) <= room
        if serves:
            self._waiting.grants += batch.grants
            self._waiting.seen += batch.seen
            true = batch.records
        else:
            true = [each for each in batch.records if each.event not in _TRUE_ONLY_IF_COMMITTED]
        self._waiting.records += true[:room]
        self._waiting.acts_until = max(self._waiting.acts_until, batch.acts_until)
        self._lost += len(true[room:])
        self._begin(why, now_us, serves=serves)
        return serves

    def _begin(self, why: str, now_us: int, *, serves: bool) -> None:
        if self._since_us is None:
            self._since_us, self._why = now_us, why
            meanwhile = "what is granted is kept in memory" if serves else "nothing is granted"
            self._say(f"the record cannot be written: {why}; until it can, {meanwhile}")

    def before(self, batch: Batch, now_us: int) -> Batch:
        """A batch with everything that waits, which goes first."""
        waiting = self._waiting
        records = [*self._late(now_us), *waiting.records, *batch.records]
        if self._lost:
            records.append(Record(Event.RECORDS_LOST, now_us, detail={"count": self._lost}))
        return Batch(
            burned=waiting.burned + batch.burned,
            grants=waiting.grants + batch.grants,
            ended=waiting.ended + batch.ended,
            records=records,
            seen=waiting.seen + batch.seen,
            flushed=waiting.flushed or batch.flushed,
            acts_until=max(waiting.acts_until, batch.acts_until),
        )

    def _late(self, now_us: int) -> list[Record]:
        if self._since_us is None:
            return []
        detail = {
            "until": rfc3339(now_us),
            "count": len(self._waiting.records),
            "granted": len(self._waiting.grants),
        }
        return [Record(Event.RECORDS_LATE, self._since_us, reason=self._why, detail=detail)]

    def written(self) -> None:
        """All of it is in the ledger."""
        if self._since_us is not None:
            self._say(f"the record is written again; {self._count} had waited")
        self._waiting, self._lost, self._since_us, self._why = Batch(), 0, None, ""
        if not self._inherited_us:
            with as_owner(self._note):
                self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """The daemon ends: what waits is lost."""
        if self._since_us is not None:
            self._say(f"the record could not be written: {self._count} are lost")

    @property
    def _count(self) -> str:
        return f"{len(self._waiting.records)} lines"

    def _write_note(self) -> bool:
        """Whole or not at all, since a daemon that is killed may leave it in any state."""
        latest_us = max(self._inherited_us, *(b.sent_at_us for b in self._waiting.burned), 0)
        try:
            leave_note(self._note, latest_us)
        except (OSError, Trouble):
            return False
        return True
