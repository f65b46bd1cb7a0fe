"""The recorder: what the kernel tells of connections, entered in the record as it comes.

It keeps the count of what the kernel could not tell.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from spa_server import clock
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.capture.nflog import NflogPacket
from spa_server.connections import ConnectionLog
from spa_server.grants import Grant
from spa_server.tally import Tally
from spa_server.unended import recollect, used_grants

# An outsider causes them, and they are in the chain.
_LOSSES_EVERY_US: Final = 300_000_000


class ConnectionRecorder:
    """`connection` reads the database of the ledger."""

    def __init__(
        self, connections: ConnectionLog, ledger: Ledger, connection: sqlite3.Connection
    ) -> None:
        self._connections = connections
        self._ledger = ledger
        self._connection = connection
        self._recorded_until = ledger.head.event_id
        self._lost = 0
        self._losses: Tally[str, str] = Tally(str, _LOSSES_EVERY_US)

    @property
    def lost(self) -> int:
        """How many messages of the kernel's were lost."""
        return self._lost + self._connections.ends.lost

    def recall(self, grants: Iterable[Grant]) -> None:
        """Of grants that an earlier run gave: which were used. Raises sqlite3.Error."""
        self._connections.recall(used_grants(self._connection, list(grants)))

    def permitted(self, packets: Sequence[NflogPacket], lost: int) -> None:
        """Enters connections that the gate let through or severed."""
        now_us = clock.now_us()
        self.note_lost("permit", lost, now_us)
        self._ledger.note(self._connections.permitted(packets, now_us), now_us)

    def denied(self, packets: Sequence[NflogPacket], lost: int) -> None:
        """Enters connections that the gate turned away."""
        now_us = clock.now_us()
        self.note_lost("deny", lost, now_us)
        self._enter(self._connections.denied(packets, now_us), now_us)

    def ended(self) -> bool:
        """Enters connections that are over; whether more wait to be read."""
        now_us = clock.now_us()
        self._enter(self._connections.ends.read(now_us), now_us)
        return self._connections.ends.has_more

    def find_unended(self) -> Iterator[None]:
        """Finds what an earlier run let in and did not see end, with a pause after some lines."""
        ends, until = self._connections.ends, self._recorded_until
        for records in recollect(self._connection, until, ends, clock.now_us):
            self._enter(records, clock.now_us())
            yield

    def due_at_us(self, now_us: int) -> int | None:
        """When `tend` has something to do by itself; None while it has not."""
        dues = (
            self._connections.denials.due_at_us(),
            self._connections.ends.due_at_us(now_us),
            self._losses.due_at_us(),
        )
        return min((due_us for due_us in dues if due_us is not None), default=None)

    def tend(self, now_us: int) -> None:
        """Enters the counts and the ends that are due."""
        if self._connections.denials.is_due(now_us):
            self._ledger.note(self._connections.further_denied(now_us), now_us)
        if self._losses.is_due(now_us):
            self._enter(self._further_lost(now_us), now_us)
        self._enter(self._connections.ends.tend(now_us), now_us)

    def close(self, now_us: int) -> None:
        """Enters what is over and what was only counted."""
        self.ended()
        self._enter(self._connections.further_denied(now_us), now_us)
        self._enter(self._further_lost(now_us), now_us)

    def note_lost(self, what: str, count: int, now_us: int) -> None:
        """Enters that `count` messages about `what` found no room: at once, then in sums."""
        if count:
            self._lost += count
            if self._losses.is_first(what, now_us, count):
                self._ledger.note([_lost(what, count, now_us)], now_us)

    def _further_lost(self, now_us: int) -> list[Record]:
        further, _, _ = self._losses.take()
        return [_lost(what, count, now_us) for what, count in further.items()]

    def _enter(self, records: Sequence[Record], now_us: int) -> None:
        if records:
            self._ledger.note(records, now_us)


def _lost(what: str, count: int, now_us: int) -> Record:
    return Record(Event.RECORDS_LOST, now_us, detail={"count": count, "of": what})
