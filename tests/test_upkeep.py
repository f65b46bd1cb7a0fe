"""The upkeep of the record: what is due when, and that an idle daemon sleeps."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from spa_server.audit.checkpoint import record_key
from spa_server.audit.denials import BURST, Denials
from spa_server.audit.record import Event, Record
from spa_server.audit.reserve import Reserve
from spa_server.audit.retention import Retention
from spa_server.audit.upkeep import (
    CHECKPOINT_AFTER_US,
    CHECKPOINT_EVERY,
    RETRY_US,
    Upkeep,
    note_in,
    read_note,
)
from spa_server.audit.verify import verify
from tests.test_ledger import Book
from tests.world import NOW_US, SECOND

KEY = record_key(bytes(32))


class Kept(Book):
    """A ledger and its upkeep."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.denials = Denials(path / "denials.db")
        self.reserve = Reserve(self.connection, path / "spa.db", 1024 * 1024)
        self.upkeep = Upkeep(
            self.ledger,
            KEY,
            keep=Retention(days=30),
            denials=self.denials,
            reserve=self.reserve,
            note=note_in(path),
        )

    def write(self, count: int = 1) -> None:
        self.ledger.note([Record(Event.HOLE_OPENED, NOW_US)] * count, NOW_US)

    def rest(self, now_us: int) -> int | None:
        """Tends as the daemon does, until nothing is due; when it next would be."""
        for _ in range(1000):
            due_us = self.upkeep.due_at_us(now_us)
            if due_us is None or due_us > now_us:
                return due_us
            self.upkeep.tend(now_us)
        raise AssertionError("it never rests")

    def signed(self) -> list[int]:
        rows = self.connection.execute("select event_id from checkpoint order by event_id")
        return [event_id for (event_id,) in rows]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    made.write()
    made.upkeep.start(NOW_US)
    made.upkeep.tend(NOW_US)
    yield made
    made.denials.close(NOW_US)
    made.connection.close()


def test_the_start_is_signed_and_then_nothing_is_due(kept: Kept) -> None:
    assert kept.signed() == [1]
    assert kept.rest(NOW_US) is None
    assert kept.reserve.free_bytes >= 1024 * 1024


def test_a_minute_after_the_first_unsigned_line_there_is_one_checkpoint_and_then_rest(
    kept: Kept,
) -> None:
    kept.rest(NOW_US)
    kept.write()
    assert kept.rest(NOW_US + SECOND) == NOW_US + SECOND + CHECKPOINT_AFTER_US
    kept.write()
    assert kept.rest(NOW_US + 2 * SECOND) == NOW_US + SECOND + CHECKPOINT_AFTER_US
    assert kept.rest(NOW_US + SECOND + CHECKPOINT_AFTER_US) is None
    assert kept.signed() == [1, 3]
    assert kept.rest(NOW_US + 86_400 * SECOND) is None


def test_many_lines_are_signed_at_once(kept: Kept) -> None:
    kept.rest(NOW_US)
    kept.write(CHECKPOINT_EVERY)
    assert kept.upkeep.due_at_us(NOW_US) == NOW_US
    assert kept.rest(NOW_US) is None
    assert kept.signed() == [1, 1 + CHECKPOINT_EVERY]


def test_a_clock_set_back_delays_no_checkpoint_by_more_than_a_minute(kept: Kept) -> None:
    kept.rest(NOW_US)
    kept.write()
    kept.rest(NOW_US)
    earlier_us = NOW_US - 86_400 * SECOND
    kept.rest(earlier_us)
    assert kept.rest(earlier_us) == earlier_us + CHECKPOINT_AFTER_US


def test_the_end_is_signed_and_noted(kept: Kept) -> None:
    kept.write()
    kept.upkeep.close(NOW_US + SECOND)
    assert kept.signed() == [1, 2]
    noted = read_note(note_in(kept.path))
    assert noted is not None
    assert (noted.event_id, noted.at_us, noted.digest) == (
        2,
        NOW_US + SECOND,
        kept.ledger.head.digest,
    )
    report = verify(kept.connection, [KEY.signer])
    assert (report.findings, report.unsigned) == ([], 0)


def test_what_fails_is_tried_again_half_a_minute_later(kept: Kept) -> None:
    kept.rest(NOW_US)
    kept.write()
    other = sqlite3.connect(kept.path / "spa.db", isolation_level=None)
    kept.connection.execute("pragma busy_timeout = 0")
    other.execute("begin immediate")
    kept.rest(NOW_US)
    assert kept.rest(NOW_US + CHECKPOINT_AFTER_US) == NOW_US + CHECKPOINT_AFTER_US + RETRY_US
    assert kept.signed() == [1]
    other.execute("rollback")
    other.close()
    assert kept.rest(NOW_US + CHECKPOINT_AFTER_US + RETRY_US) is None
    assert kept.signed() == [1, 2]


def test_denials_that_wait_are_due(kept: Kept) -> None:
    kept.rest(NOW_US)
    for n in range(BURST):
        kept.denials.add([Record(Event.CONNECTION_DENIED, NOW_US, source=f"10.0.{n}.1")], NOW_US)
    assert kept.rest(NOW_US) == NOW_US + 10 * SECOND
    assert kept.rest(NOW_US + 10 * SECOND) is None


def test_a_short_disk_pauses_the_denials_and_wakes_the_daemon_twice_a_minute(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.rest(NOW_US)
    monkeypatch.setattr(Reserve, "_has_room", lambda _self, _steps: False)
    used = kept.reserve.free_bytes - 200_000
    kept.connection.execute(f"create table used as select zeroblob({used})")
    kept.upkeep.tend(NOW_US)
    assert kept.rest(NOW_US) == NOW_US + RETRY_US
    assert kept.denials.is_paused
    assert kept.events()[-1] == "disk.full"
    for n in range(1, 5):
        assert kept.rest(NOW_US + n * RETRY_US) == NOW_US + (n + 1) * RETRY_US
    assert kept.events().count("disk.full") == 1
    monkeypatch.undo()
    later_us = NOW_US + 10 * RETRY_US
    assert kept.rest(later_us) == later_us + CHECKPOINT_AFTER_US
    assert not kept.denials.is_paused
    assert kept.events()[-1] == "disk.free"


def test_without_a_reserve_and_denials_there_is_nothing_to_fail(tmp_path: Path) -> None:
    book = Book(tmp_path)
    upkeep = Upkeep(book.ledger, KEY)
    upkeep.start(NOW_US)
    upkeep.tend(NOW_US)
    upkeep.close(NOW_US)
    assert upkeep.due_at_us(NOW_US) is None
    book.connection.close()
