"""The ledger, on real SQLite files: what is committed, what waits, what survives."""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from keys import schema
from keys.registry import Registry
from keys.when import rfc3339
from spa_server.audit import lastrun
from spa_server.audit.asking import Filter, ask
from spa_server.audit.backlog import MAX_WAITING, Batch
from spa_server.audit.ledger import Ledger, LedgerError
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
        self.said: list[str] = []
        self.ledger = self.open()

    def open(self, boot_id: str = "this boot", *, serves_when_full: bool = False) -> Ledger:
        """As another run of the daemon would."""
        return Ledger(
            self.connection,
            self.registry.seen,
            unrecorded=self.path / "unrecorded",
            boot_id=boot_id,
            serves_when_full=serves_when_full,
            say=self.said.append,
        )

    def fill_the_disk(self) -> None:
        """SQLite itself then says that the database or disk is full."""
        self.connection.execute("pragma max_page_count = 1")

    def make_room(self) -> None:
        self.connection.execute("pragma max_page_count = 1000000")

    def commits(self) -> list[str]:
        """From now on: how each commit is synchronous, `full` where it is on the disk at once."""
        made: list[str] = []
        level = "normal"

        def follow(statement: str) -> None:
            nonlocal level
            what = statement.lower().removeprefix("pragma synchronous")
            if what != statement.lower():
                level = what.strip(" =")
            elif what == "commit":
                made.append(level)

        self.connection.set_trace_callback(follow)
        return made

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


def test_what_was_to_be_flushed_is_flushed_also_when_it_had_to_wait(book: Book) -> None:
    """A request that is ahead outlives a crash of the kernel, be the disk full when it comes."""
    book.fill_the_disk()
    with pytest.raises(LedgerError):
        book.ledger.commit(Batch([BURN], [], [], big(), flushed=True), NOW_US)
    book.make_room()
    commits = book.commits()
    book.ledger.commit(Batch(), NOW_US)
    book.ledger.commit(Batch([replace(BURN, nonce=bytes(23) + b"1")]), NOW_US)
    assert commits == ["full", "normal"]


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
    book.ledger.note([], NOW_US + SECOND)
    assert not book.ledger.is_behind
    assert book.ledger.live_grants() == []
    assert list(book.ledger.burned()) == [BURN]
    assert book.events() == ["records.late"] + ["knock.refused"] * 300 + ["gate.failed"]


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
    assert [line["event"] for line in lines] == ["records.late", "records.lost"]
    assert lines[1]["detail"] == {"count": MAX_WAITING // 2}


def test_a_time_in_which_nothing_could_be_written_is_named(book: Book) -> None:
    """Once to the operator as it begins and ends, and in the record with both its ends."""
    book.fill_the_disk()
    for second in range(3):
        book.ledger.note(big(), NOW_US + second * SECOND)
    assert book.ledger.trouble == "database or disk is full"
    assert book.said == [
        "the record cannot be written: database or disk is full; until it can, nothing is granted"
    ]
    book.make_room()
    book.ledger.note([], NOW_US + 9 * SECOND)
    assert book.said[1:] == ["the record is written again; 900 lines had waited"]
    assert book.ledger.trouble == ""
    [line] = ask(book.connection, Filter(event="records"), limit=10)
    assert (line["event"], line["at"]) == ("records.late", rfc3339(NOW_US))
    until = rfc3339(NOW_US + 9 * SECOND)
    assert line["detail"] == {"until": until, "count": 900, "granted": 0}


def served(book: Book) -> Ledger:
    """A ledger that serves, on a disk that is full."""
    ledger = book.open(serves_when_full=True)
    book.fill_the_disk()
    return ledger


def test_where_the_operator_wished_it_grants_wait_and_are_given(book: Book) -> None:
    ledger = served(book)
    opened = Record(Event.HOLE_OPENED, NOW_US)
    ledger.commit(Batch([BURN], [GRANT], [], [opened, *big()]), NOW_US)
    assert "kept in memory" in book.said[0]
    assert book.open().unrecorded_floor_us() == BURN.sent_at_us
    ledger.note([], NOW_US + SECOND, [(GRANT, "closed")])
    book.make_room()
    ledger.note([], NOW_US + 2 * SECOND)
    assert not ledger.is_behind
    assert list(ledger.burned()) == [BURN]
    assert book.events() == ["records.late", "hole.opened"] + ["knock.refused"] * 300
    [ended] = book.connection.execute("select ended_why from hole_grant").fetchall()
    assert ended == ("closed",)
    assert book.open().unrecorded_floor_us() == 0


def test_what_cannot_be_noted_elsewhere_either_is_not_served(book: Book) -> None:
    """Else a daemon that is started meanwhile would hear it again."""
    (book.path / "unrecorded").symlink_to("/dev/null")
    ledger = served(book)
    with pytest.raises(LedgerError, match="full"):
        ledger.commit(Batch([BURN], [GRANT], [], big()), NOW_US)
    book.make_room()
    ledger.note([], NOW_US)
    assert ledger.live_grants() == []


def test_past_what_the_memory_takes_nothing_is_served(book: Book) -> None:
    ledger = served(book)
    ledger.commit(Batch([BURN], records=big(MAX_WAITING - 5)), NOW_US)
    with pytest.raises(LedgerError, match="full"):
        ledger.commit(Batch([BURN], [GRANT], [], big(6)), NOW_US)
    with pytest.raises(LedgerError, match="full"):
        ledger.commit(Batch([BURN], [GRANT], [], big(1)), NOW_US)
    book.make_room()
    ledger.note([], NOW_US)
    assert ledger.live_grants() == []
    assert book.events().count("knock.refused") == MAX_WAITING
    assert ask(book.connection, Filter(event="records.lost"), limit=10)[0]["detail"] == {"count": 2}


def test_only_for_want_of_room_is_anything_served(book: Book) -> None:
    """Whoever cannot read the registry cannot know whose key is revoked."""
    ledger = book.open(serves_when_full=True)
    ledger.distrust("the registry cannot be read")
    with pytest.raises(LedgerError, match="registry"):
        ledger.commit(Batch([BURN], [GRANT]), NOW_US)
    ledger.distrust("")
    ledger.note([], NOW_US)
    assert ledger.live_grants() == []
    assert list(ledger.burned()) == [BURN]


def test_a_note_is_whole_or_the_one_before(book: Book) -> None:
    """A daemon may be killed while it writes."""
    book.fill_the_disk()
    book.ledger.note(big(), NOW_US)
    with suppress(LedgerError):
        book.ledger.commit(Batch([BURN]), NOW_US)
    before = (book.path / "unrecorded").stat().st_ino
    later = replace(BURN, sent_at_us=NOW_US + SECOND)
    with suppress(LedgerError):
        book.ledger.commit(Batch([later]), NOW_US)
    assert (book.path / "unrecorded").stat().st_ino != before
    assert book.open().unrecorded_floor_us() == later.sent_at_us


def test_what_waits_when_the_daemon_ends_is_said_to_be_lost(book: Book) -> None:
    book.ledger.close()
    book.fill_the_disk()
    book.ledger.note(big(), NOW_US)
    book.ledger.close()
    assert book.said[1:] == ["the record could not be written: 300 lines are lost"]


@pytest.mark.parametrize(
    ("events", "at_us"),
    [
        ((), None),
        ((Event.DAEMON_STARTED, Event.HOLE_OPENED, Event.DAEMON_STOPPED), None),
        ((Event.DAEMON_STARTED, Event.HOLE_OPENED), NOW_US + SECOND),
        ((Event.DAEMON_STARTED,), NOW_US),
        ((Event.DAEMON_STOPPED, Event.DAEMON_STARTED, Event.CLOCK_SET), NOW_US + 2 * SECOND),
        ((Event.RECORDS_LOST,), None),  # set aside: nothing has run with this one
    ],
)
def test_how_the_last_run_ended(book: Book, events: tuple[Event, ...], at_us: int | None) -> None:
    lines = [Record(event, NOW_US + n * SECOND) for n, event in enumerate(events)]
    book.ledger.note(lines, NOW_US)
    since_us = lastrun.broken_off_at_us(book.connection)
    assert since_us == at_us
    started = lastrun.started(NOW_US, since_us)
    assert started.detail == ({} if at_us is None else {"since": rfc3339(at_us)})
    assert (started.reason is None) == (at_us is None)


def test_a_line_with_an_impossible_time_keeps_no_daemon_from_starting() -> None:
    assert lastrun.started(NOW_US, 2**62).detail == {"since": str(2**62)}


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


def test_a_floor_for_what_an_older_copy_does_not_know_outlives_later_commits(book: Book) -> None:
    book.ledger.lost_up_to(NOW_US + 30 * SECOND)
    book.ledger.commit(Batch(records=[Record(Event.DAEMON_STARTED, NOW_US)]), NOW_US)
    assert book.ledger.unrecorded_floor_us() == NOW_US + 30 * SECOND
    assert book.open().unrecorded_floor_us() == NOW_US + 30 * SECOND
