"""The ledger, on real SQLite files: what is committed, what waits, what survives."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from keys import schema
from keys.registry import Registry
from spa_server.audit.asking import Filter, ask
from spa_server.audit.ledger import MAX_WAITING, Batch, Ledger, LedgerError
from spa_server.audit.record import Event, Record
from spa_server.replay import Burn
from tests.test_grants import BASE
from tests.world import NOW_US, SECOND

GRANT = replace(BASE, opened_at_us=NOW_US, expires_at_us=NOW_US + 30 * SECOND)
BURN = Burn("key", bytes(24), NOW_US)


class Book:
    """A database file that can be opened again, and made to fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = schema.connect(path / "spa.db")
        self.registry = Registry(self.connection)
        self.ledger = self.open()

    def open(self, boot_id: str = "this boot") -> Ledger:
        """As another run of the daemon would."""
        return Ledger(
            self.connection,
            self.registry.seen,
            unrecorded=self.path / "unrecorded",
            boot_id=boot_id,
        )

    def fill_the_disk(self) -> None:
        """SQLite itself then says that the database or disk is full."""
        self.connection.execute("pragma max_page_count = 1")

    def make_room(self) -> None:
        self.connection.execute("pragma max_page_count = 1000000")

    def events(self) -> list[str]:
        return [line["event"] for line in ask(self.connection, Filter(), limit=10**6)]


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made
    made.connection.close()


def big(count: int = 300) -> list[Record]:
    """Records that do not fit into the page that is there."""
    text = "x" * 500
    return [Record(Event.KNOCK_REFUSED, NOW_US, reason=text) for _ in range(count)]


def test_a_batch_is_there_after_the_process_has_ended(book: Book) -> None:
    book.ledger.commit(Batch([BURN], [GRANT], [], [Record(Event.HOLE_OPENED, NOW_US)]), NOW_US)
    again = book.open()
    assert list(again.burned()) == [BURN]
    assert again.live_grants() == [GRANT]
    assert again.next_grant_id() == GRANT.grant_id + 1
    assert book.events() == ["hole.opened"]


def test_a_grant_that_has_ended_is_live_no_more(book: Book) -> None:
    book.ledger.commit(Batch(grants=[GRANT]), NOW_US)
    book.ledger.note([], NOW_US, [(GRANT, "closed")])
    assert book.ledger.live_grants() == []


def test_grants_of_another_boot_are_not_taken_over(book: Book) -> None:
    book.ledger.commit(Batch(grants=[GRANT]), NOW_US)
    rebooted = book.open("another boot")
    assert rebooted.live_grants() == []
    assert rebooted.end_other_boots(NOW_US) == 1
    assert book.ledger.live_grants() == []


def test_what_cannot_be_written_grants_nothing_and_is_not_lost(book: Book) -> None:
    book.fill_the_disk()
    opened = Record(Event.HOLE_OPENED, NOW_US)
    with pytest.raises(LedgerError, match="full"):
        book.ledger.commit(Batch([BURN], [GRANT], [], [opened, *big()]), NOW_US)
    assert book.ledger.is_behind
    assert book.ledger.live_grants() == []
    book.ledger.note([Record(Event.GATE_FAILED, NOW_US)], NOW_US)
    book.make_room()
    book.ledger.note([], NOW_US)
    assert not book.ledger.is_behind
    assert book.ledger.live_grants() == []
    assert list(book.ledger.burned()) == [BURN]
    assert book.events() == ["knock.refused"] * 300 + ["gate.failed"]


def test_a_restart_meanwhile_leaves_a_floor(book: Book) -> None:
    book.fill_the_disk()
    with pytest.raises(LedgerError):
        book.ledger.commit(Batch([BURN], records=big()), NOW_US)
    assert book.open().unrecorded_floor_us() == BURN.sent_at_us
    book.make_room()
    book.ledger.note([], NOW_US)
    assert book.open().unrecorded_floor_us() == 0


def test_what_waits_is_bounded_and_what_is_lost_is_counted(book: Book) -> None:
    book.fill_the_disk()
    for _ in range(3):
        book.ledger.note(big(MAX_WAITING // 2), NOW_US)
    book.make_room()
    book.ledger.note([], NOW_US)
    lines = ask(book.connection, Filter(event="records"), limit=10)
    assert [line["detail"] for line in lines] == [{"count": MAX_WAITING // 2}]


def test_forgetting_raises_the_floor_in_the_same_transaction(book: Book) -> None:
    later = replace(BURN, sent_at_us=NOW_US + SECOND)
    book.ledger.commit(Batch([BURN, later]), NOW_US)
    book.ledger.forget(NOW_US + 1, {"key": NOW_US})
    book.ledger.forget(NOW_US + 1, {"key": NOW_US - SECOND})
    assert book.open().floors() == [("key", NOW_US)]
    assert list(book.ledger.burned()) == [later]


def test_another_process_is_noticed(book: Book) -> None:
    before = book.ledger.data_version()
    book.ledger.note([Record(Event.GATE_APPLIED, NOW_US)], NOW_US)
    assert book.ledger.data_version() == before
    other = sqlite3.connect(book.path / "spa.db")
    other.execute("insert into identity (name, created_at_us) values ('eve', 1)")
    other.commit()
    other.close()
    assert book.ledger.data_version() != before


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Filter(), 4),
        (Filter(event="hole"), 2),
        (Filter(event="hole.opened"), 1),
        (Filter(event="hol"), 0),
        (Filter(identity="alice"), 2),
        (Filter(since_us=NOW_US + 2), 2),
        (Filter(denied=True), 1),
        (Filter(source="10.0.0.9", access="tcp/22"), 1),
        (Filter(identity="' or 1=1 --"), 0),
    ],
)
def test_asking(book: Book, wanted: Filter, count: int) -> None:
    records = [
        Record(Event.HOLE_OPENED, NOW_US, "alice", source="10.0.0.9", access="tcp/22"),
        Record(Event.HOLE_CLOSED, NOW_US + 1, "alice"),
        Record(Event.KNOCK_REFUSED, NOW_US + 2, "bob"),
        Record(Event.DAEMON_STOPPED, NOW_US + 3),
    ]
    book.ledger.note(records, NOW_US)
    assert len(ask(book.connection, wanted, limit=10)) == count
