"""Live outputs: each line is sent on as it is written, by a thread of its own for each output.

Whoever writes the record never waits for them: a line is put in a queue, and where the queue is
full it is dropped and counted. A receiver that is gone is tried again, and gets what waited. The
record itself is what counts; this is a copy of it for other programs.
"""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

from spa_server.audit import journal, syslog
from spa_server.audit.record import Event, Record

_JOURNALS: Final = "/run/systemd/journal/"
MAX_WAITING: Final = 10_000
TELL_EVERY_US: Final = 60_000_000
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_AT_THE_END_S: Final = 1.0


class Sender(Protocol):
    """Sends one line to one receiver."""

    def send(self, line_id: int, record: Record) -> None:
        """Raises OSError where nobody takes it. Waits a second at most.

        `line_id` is the number of the line in the record; 0 for a denial, which is kept apart.
        """

    def close(self) -> None:
        """Lets go of the receiver; the next `send` looks for it again."""


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """An output as the configuration names it. Where `address` is None it is the journal."""

    name: str
    address: syslog.SyslogAddress | None = None

    def make(self) -> Sender:
        """What sends to it."""
        return journal.Journal() if self.address is None else syslog.Syslog(self.address)

    @property
    def is_the_journals(self) -> bool:
        """Whether it is a socket at which journald listens, as /dev/log is on most hosts."""
        target = None if self.address is None else self.address.target
        return isinstance(target, str) and os.path.realpath(target).startswith(_JOURNALS)

    @classmethod
    def parse(cls, text: str) -> "OutputSpec":
        """`journald`, `syslog:udp://ADDRESS:PORT` or `syslog:unix://PATH`. Raises ValueError."""
        if text == "journald":
            return cls("journald")
        kind, _, where = text.partition(":")
        if kind != "syslog":
            raise ValueError(
                f'{text!r} is no output; expected "journald", "syslog:udp://127.0.0.1:514" or'
                ' "syslog:unix:///dev/log"'
            )
        return cls("syslog", syslog.parse_address(where))


def usual() -> tuple[OutputSpec, ...]:
    """The journal, where it is that of this program: where systemd has connected stderr to it.

    systemd.exec(5), JOURNAL_STREAM; a program that was started from such a one may have it too.
    """
    status = os.fstat(sys.stderr.fileno())
    is_journal = os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return (OutputSpec("journald"),) if is_journal else ()


class Output:
    """One output. `put` and `lost` are the daemon's thread's, the rest is in its own."""

    def __init__(self, name: str, sender: Sender, *, max_waiting: int = MAX_WAITING) -> None:
        self.name = name
        self._sender = sender
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[tuple[int, Sequence[Record]] | None] = SimpleQueue()
        self._stopping = threading.Event()
        # Each of these has one thread that changes it.
        self._taken = 0
        self._overflowed = 0
        self._sent = 0
        self._passed = 0
        self._failed = 0
        self._thread = threading.Thread(target=self._run, name=f"output-{name}", daemon=True)
        self._thread.start()

    @property
    def sent(self) -> int:
        """How many lines were handed to the receiver."""
        return self._sent

    @property
    def lost(self) -> int:
        """How many were dropped, but for those that only tell of it."""
        return self._overflowed + self._failed

    def put(self, first_id: int, records: Sequence[Record]) -> None:
        """Lines that were just written, numbered from `first_id`; 0: they have no numbers.

        Never waits, never raises.
        """
        room = self._max_waiting - (self._taken - self._passed)
        if len(records) > room:
            self._overflowed += sum(not _tells_of_loss(one) for one in records[max(room, 0) :])
            records = records[: max(room, 0)]
        if records:
            self._taken += len(records)
            self._queue.put((first_id, tuple(records)))

    def close(self) -> None:
        """Sends what waits, for a second at most, and ends."""
        self._queue.put(None)
        self._thread.join(_AT_THE_END_S)
        self._stopping.set()
        self._thread.join(_AT_THE_END_S)

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            first_id, records = batch
            for offset, record in enumerate(records):
                self._send(first_id + offset if first_id else 0, record)
                self._passed += 1
        self._sender.close()

    def _send(self, line_id: int, record: Record) -> None:
        """Until somebody takes it, or the daemon ends."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                self._sender.send(line_id, record)
            except OSError:
                self._sender.close()
            except Exception:  # a line that cannot be written that way must not end the output
                break
            else:
                self._sent += 1
                return
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._failed += not _tells_of_loss(record)


def _tells_of_loss(record: Record) -> bool:
    """What says that an output loses lines is not counted when it is lost itself: that would make
    one more such line each minute, for ever."""
    return record.event is Event.RECORDS_LOST and record.detail.get("of") in {"journald", "syslog"}


def _distinct(specs: Sequence[OutputSpec]) -> Iterator[OutputSpec]:
    """Each receiver once: the journal need not be sent by syslog what it gets with all fields."""
    to_journal = any(spec.address is None for spec in specs)
    for spec in dict.fromkeys(specs):
        if not (to_journal and spec.is_the_journals):
            yield spec


class Outputs:
    """All outputs of a daemon. Nothing here waits or raises, but for `close`.

    `reach_the_journal`: what is recorded need not be said on stderr for it.
    """

    def __init__(self, specs: Sequence[OutputSpec]) -> None:
        self._outputs = [Output(spec.name, spec.make()) for spec in _distinct(specs)]
        self.reach_the_journal = any(spec.address is None or spec.is_the_journals for spec in specs)
        self._told = [0] * len(self._outputs)
        self._told_at_us = 0

    def written(self, records: Sequence[Record], first_id: int) -> None:
        """What has just been written; `first_id` is 0 for denials."""
        for output in self._outputs:
            output.put(first_id, records)

    def losses(self, now_us: int) -> list[Record]:
        """What was lost since it was last asked for and told; once a minute at most."""
        if 0 <= now_us - self._told_at_us < TELL_EVERY_US:
            return []
        records = []
        for number, output in enumerate(self._outputs):
            lost = output.lost
            if count := lost - self._told[number]:
                self._told[number] = lost
                detail = {"count": count, "of": output.name}
                records.append(Record(Event.RECORDS_LOST, now_us, detail=detail))
        if records:
            self._told_at_us = now_us
        return records

    def figures(self) -> dict[str, tuple[int, int]]:
        """By name, how many lines were sent and dropped."""
        figures: dict[str, tuple[int, int]] = {}
        for output in self._outputs:
            sent, lost = figures.get(output.name, (0, 0))
            figures[output.name] = (sent + output.sent, lost + output.lost)
        return figures

    def close(self) -> None:
        """Sends what waits, for a few seconds at most."""
        for output in self._outputs:
            output.close()
