"""Retention: what is old goes, in small slices, and the chain stays whole."""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from spa_server.audit import retention
from spa_server.audit.backlog import Batch
from spa_server.audit.checkpoint import record_key
from spa_server.audit.record import Event, Record
from spa_server.audit.retention import SLICE, Retention, size_of
from spa_server.audit.upkeep import TRIM_EVERY_US, Upkeep
from spa_server.audit.verify import verify
from tests.test_ledger import GRANT, Book
from tests.world import NOW_US, SECOND

KEY = record_key(bytes(32))
DAY = 86_400 * SECOND


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made
    made.connection.close()


def write(book: Book, count: int, *, every_us: int = SECOND, begun_us: int = NOW_US) -> None:
    """Records of usual size."""
    records = [
        Record(
            Event.CONNECTION_PERMITTED,
            begun_us + number * every_us,
            identity=f"user{number % 200}",
            key_id="abcdefghijklmnop",
            source=f"10.20.{number % 200}.9",
            target="10.20.0.1",
            access="tcp/5432",
            rule="roles.dba.allow[0]",
            grant_id=number,
            detail={"source_port": 40000 + number % 1000},
        )
        for number in range(count)
    ]
    book.ledger.note(records, NOW_US)


def tend(upkeep: Upkeep, now_us: int) -> int:
    """Tends until nothing more is due at once; how often that was."""
    for times in range(1, 10_000):
        upkeep.tend(now_us)
        due_us = upkeep.due_at_us(now_us)
        if due_us is None or due_us > now_us:
            return times
    raise AssertionError("it is never done")


def ids(book: Book) -> tuple[int, int, int]:
    return book.connection.execute("select min(id), max(id), count(*) from event").fetchone()


def findings(connection: sqlite3.Connection) -> list[str]:
    return [str(finding) for finding in verify(connection, [KEY.signer]).findings]


def test_what_is_too_old_goes_and_the_record_says_so(book: Book) -> None:
    write(book, 2000, every_us=DAY // 100)
    upkeep = Upkeep(book.ledger, KEY, keep=Retention(days=15))
    upkeep.start(NOW_US)
    now_us = NOW_US + 20 * DAY
    tend(upkeep, now_us)
    assert ids(book) == (501, 2001, 1501)
    line = book.connection.execute("select event, reason, detail from event where id = 2001")
    assert line.fetchone() == (
        "records.trimmed",
        "kept for 15 days",
        '{"count":500,"until":"2026-11-29T05:45:36Z"}',
    )
    report = verify(book.connection, [KEY.signer])
    assert report.findings == []
    assert report.base is not None
    assert (report.base.first_id, report.base.at_us) == (501, now_us)


def test_it_is_done_in_small_slices(book: Book) -> None:
    write(book, 20_000)
    upkeep = Upkeep(book.ledger, KEY, keep=Retention(days=1))
    upkeep.start(NOW_US)
    removed: list[int] = []
    now_us = NOW_US + 3 * DAY
    while (due_us := upkeep.due_at_us(now_us)) is None or due_us <= now_us or not removed:
        before = ids(book)[2]
        upkeep.tend(now_us)
        removed.append(before - ids(book)[2])
    assert len(removed) > 20_000 // SLICE
    assert max(removed) <= SLICE
    assert ids(book)[2] <= 2
    assert findings(book.connection) == []


def test_what_is_too_much_goes(book: Book) -> None:
    write(book, 20_000)
    count, size = size_of(book.connection)
    assert count == 20_000
    upkeep = Upkeep(book.ledger, KEY, keep=Retention(mb=2))
    upkeep.start(NOW_US)
    tend(upkeep, NOW_US)
    left, size_left = size_of(book.connection)
    assert 1_900_000 < size_left <= 2_000_000 < size
    assert abs(left - 20_000 * 2_000_000 / size) < 200
    assert findings(book.connection) == []


@pytest.mark.once
def test_the_size_is_what_it_takes_on_the_disk(book: Book) -> None:
    before = pages(book.connection)
    write(book, 50_000)
    _, estimated = size_of(book.connection)
    assert estimated == pytest.approx((pages(book.connection) - before) * 4096, rel=0.1)


def pages(connection: sqlite3.Connection) -> int:
    total: int = connection.execute("pragma page_count").fetchone()[0]
    free: int = connection.execute("pragma freelist_count").fetchone()[0]
    return total - free


def test_without_a_limit_everything_stays(book: Book) -> None:
    write(book, 600)
    upkeep = Upkeep(book.ledger, KEY)
    upkeep.start(NOW_US)
    tend(upkeep, NOW_US + 3650 * DAY)
    assert ids(book) == (1, 600, 600)


def test_the_latest_line_stays_however_old(book: Book) -> None:
    write(book, 700)
    upkeep = Upkeep(book.ledger, KEY, keep=Retention(days=0, mb=0))
    upkeep.start(NOW_US)
    tend(upkeep, NOW_US + DAY)
    assert ids(book)[2] == 2
    write(book, 5)
    assert ids(book)[2] == 7
    assert findings(book.connection) == []


def test_it_is_looked_at_once_an_hour(book: Book) -> None:
    upkeep = Upkeep(book.ledger, KEY, keep=Retention(days=1))
    upkeep.start(NOW_US)
    tend(upkeep, NOW_US)
    write(book, 300, begun_us=NOW_US - 5 * DAY)
    tend(upkeep, NOW_US + TRIM_EVERY_US - 1)
    assert ids(book)[2] == 300
    tend(upkeep, NOW_US + TRIM_EVERY_US)
    assert ids(book)[2] == 2


def test_a_restart_in_the_middle_goes_on_where_it_was(book: Book) -> None:
    write(book, 2000)
    for _ in range(4):
        upkeep = Upkeep(book.ledger, KEY, keep=Retention(days=1))
        upkeep.start(NOW_US)
        upkeep.tend(NOW_US + 3 * DAY)
        upkeep.tend(NOW_US + 3 * DAY)
        assert findings(book.connection) == []
        assert book.open().head == book.ledger.head
    assert ids(book)[0] == 4 * SLICE + 1


def test_where_all_lines_are_gone_the_chain_goes_on_from_the_base(book: Book) -> None:
    """Retention never goes that far, but somebody may; it is found all the same."""
    write(book, 300)
    upkeep = Upkeep(book.ledger, KEY, keep=Retention(days=1))
    upkeep.start(NOW_US)
    tend(upkeep, NOW_US + 3 * DAY)
    last_id, count = ids(book)[1:]
    assert count == 2
    book.connection.execute("delete from event")
    again = book.open()
    assert again.head.event_id == last_id - count
    again.note([Record(Event.DAEMON_STARTED, NOW_US)], NOW_US)
    assert [line.split(":")[0] for line in findings(book.connection)] == ["rewritten"]


def test_ended_grants_go_with_their_lines_and_live_ones_stay(book: Book) -> None:
    """The latest stays too: its number must not be given again."""
    grants = [replace(GRANT, grant_id=number) for number in range(1, 1001)]
    book.ledger.commit(Batch(grants=grants), NOW_US)
    ended = [(grant, "expired") for grant in grants if grant.grant_id != 300]
    book.ledger.note([], NOW_US, ended)
    write(book, 10)
    write(book, 10, begun_us=NOW_US + 5 * DAY)
    upkeep = Upkeep(book.ledger, KEY, keep=Retention(days=3))
    upkeep.start(NOW_US)
    tend(upkeep, NOW_US + 6 * DAY)
    left = book.connection.execute("select grant_id from hole_grant").fetchall()
    assert left == [(300,), (1000,)]
    assert book.open().next_grant_id() == 1001


@given(st.lists(st.sampled_from(["write", "trim", "sign", "restart"]), max_size=12))
@settings(max_examples=30, deadline=None)
@pytest.mark.once
def test_whatever_comes_in_whatever_order_the_chain_is_sound(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    book = Book(tmp_path_factory.mktemp("steps"))
    keep = Retention(days=1)
    upkeep, now_us = Upkeep(book.ledger, KEY, keep=keep), NOW_US
    upkeep.start(now_us)
    for step in steps:
        now_us += DAY
        match step:
            case "write":
                write(book, 150, begun_us=now_us)
            case "trim":
                tend(upkeep, now_us)
            case "sign":
                upkeep.checkpoint(now_us)
            case "restart":
                book.ledger = book.open()
                upkeep = Upkeep(book.ledger, KEY, keep=keep)
                upkeep.start(now_us)
        assert findings(book.connection) == []
    book.connection.close()


def test_a_slice_is_one_transaction(book: Book) -> None:
    """Killed in between, either the lines and the old base are there, or the new base."""
    write(book, 600)
    with suppress(ZeroDivisionError), book.ledger.writing() as connection:
        assert retention.trim(connection, Retention(days=0), KEY, NOW_US + DAY).count == SLICE
        raise ZeroDivisionError
    assert ids(book) == (1, 600, 600)
    assert book.connection.execute("select count(*) from base").fetchone() == (0,)
