"""Denials: kept apart, folded when there are many, shed first; and no packet is ever miscounted."""

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import schema
from spa_server.audit.asking import Filter, ask
from spa_server.audit.backlog import Batch
from spa_server.audit.denials import BURST, LINES_AN_HOUR, Denials, beside, is_denial
from spa_server.audit.folding import MAX_SEEN, Folding, Kind, Level, Line, network_of
from spa_server.audit.ledger import Ledger, LedgerError
from spa_server.audit.record import Event, Record
from tests.test_ledger import BURN, GRANT, Book, big
from tests.world import NOW_US, SECOND

DENIED = Event.CONNECTION_DENIED
MINUTE = 60 * SECOND


def denied(source: str, access: str = "tcp/22", **detail: Any) -> Record:
    return Record(DENIED, NOW_US, source=source, target="10.0.0.1", access=access, detail=detail)


def spoofed(seed: int, count: int) -> list[str]:
    chosen = random.Random(seed)
    return [".".join(str(chosen.randrange(1, 255)) for _ in range(4)) for _ in range(count)]


# Which records are denials


@pytest.mark.parametrize(
    ("record", "is_one"),
    [
        (denied("10.0.0.9"), True),
        (Record(Event.CONNECTION_WOULD_DENY, NOW_US), True),
        (Record(Event.KNOCK_REFUSED, NOW_US, reason="unknown-key"), True),
        (Record(Event.KNOCK_REFUSED, NOW_US, reason="not-authentic", key_id="k"), True),
        (Record(Event.KNOCK_REFUSED, NOW_US, reason="bad-signature", key_id="k"), True),
        (Record(Event.KNOCK_REFUSED, NOW_US, reason="malformed"), True),
        (Record(Event.KNOCK_REFUSED, NOW_US, reason="many kinds"), True),
        (Record(Event.KNOCK_REFUSED, NOW_US, reason="replayed", key_id="k"), False),
        (Record(Event.KNOCK_REFUSED, NOW_US, reason="stale", key_id="k"), False),
        (Record(Event.KNOCK_REFUSED, NOW_US, reason="no role allows it", key_id="k"), False),
        (Record(Event.JOIN_REFUSED, NOW_US, reason="malformed"), False),
        (Record(Event.CONNECTION_PERMITTED, NOW_US), False),
    ],
)
def test_what_anybody_can_cause_is_kept_apart(record: Record, is_one: bool) -> None:
    assert is_denial(record) is is_one


# Folding

sources = st.sampled_from([f"10.{a}.{b}.{c}" for a in range(3) for b in range(3) for c in range(9)])
kinds = st.builds(
    Kind,
    st.sampled_from(["connection.denied", "knock.refused"]),
    sources | st.just("2001:db8::1") | st.none(),
    st.sampled_from(["10.0.0.1", None]),
    st.sampled_from(["tcp/22", "tcp/23", "udp/53", None]),
    st.sampled_from([None, "malformed"]),
)
seen = st.lists(st.tuples(kinds, st.integers(1, 9)), max_size=60)


@given(seen, st.integers(1, 12), st.integers(0, 12))
def test_no_packet_is_lost_or_made_up_however_much_is_folded(
    packets: list[tuple[Kind, int]], max_groups: int, at_most: int
) -> None:
    folding = Folding(max_groups)
    expected: Counter[str] = Counter()
    for kind, count in packets:
        folding.add(kind, count)
        expected[kind.event] += count
    lines = folding.lines(at_most)
    told: Counter[str] = Counter()
    for line in lines:
        told[line.kind.event] += line.packets
    assert told == expected
    shared = {(kind.event, kind.reason) for kind, _ in packets}
    assert len(lines) <= at_most + len(shared)
    assert folding.lines(at_most) == lines


@given(st.lists(st.tuples(sources, st.integers(1, 9)), max_size=60), st.integers(1, 12))
def test_counting_in_bulk_is_the_same_as_one_by_one(
    packets: list[tuple[str, int]], max_groups: int
) -> None:
    one, many = Folding(max_groups), Folding(max_groups)
    for source, count in packets:
        one.add(Kind("e", source), count)
    many.add_counts("e", [(source, None, None, count) for source, count in packets])
    assert one.lines(5) == many.lines(5)


def test_few_are_told_one_by_one() -> None:
    folding = Folding()
    folding.add(Kind("e", "10.0.0.9", access="tcp/22"), 1, (NOW_US, {"source_port": 40000}))
    folding.add(Kind("e", "10.0.0.9", access="tcp/22"), 4)
    folding.add(Kind("e", "10.0.0.8", access="tcp/22"), 1, (NOW_US, {"source_port": 40000}))
    folding.add(Kind("e", "10.0.0.7", access="tcp/22"), 3)
    assert [(line.kind.source, line.packets, line.detail) for line in folding.lines(9)] == [
        ("10.0.0.9", 5, {"source_port": 40000, "further": 4}),
        ("10.0.0.8", 1, {"source_port": 40000}),
        ("10.0.0.7", 3, {"further": 3}),
    ]


def test_a_scan_is_one_line_that_says_how_many_ports() -> None:
    folding = Folding()
    for port in range(1000):
        folding.add(Kind("e", "10.9.9.9", "10.0.0.1", f"tcp/{port}"), 2)
    folding.add(Kind("e", "10.9.8.8", "10.0.0.1", "tcp/22"), 1)
    kind = Kind("e", "10.9.8.8", "10.0.0.1", "tcp/22")
    scanner = Line(Kind("e", "10.9.9.9"), 2000, {"count": 2000, "ports": 1000})
    assert folding.lines(10) == [scanner, Line(kind, 1, {"count": 1})]


def test_many_sources_of_a_network_are_one_line() -> None:
    folding = Folding()
    folding.add_counts("e", [(f"10.9.9.{n}", None, "tcp/22", 2) for n in range(200)])
    folding.add_counts("e", [(f"2001:db8::{n:x}", None, "tcp/22", 1) for n in range(200)])
    told = [(line.kind.source, line.detail) for line in folding.lines(10)]
    assert told == [
        ("10.9.9.0/24", {"count": 400, "sources": 200}),
        ("2001:db8::/64", {"count": 200, "sources": 200}),
    ]


def test_of_many_networks_those_with_the_most_packets_keep_their_line() -> None:
    folding = Folding()
    folding.add_counts("e", [(source, None, "tcp/22", 80) for source in spoofed(1, 20_000)])
    folding.add_counts("e", [("198.18.5.5", None, "tcp/22", 100_000)])
    folding.add_counts("e", [(source, None, "tcp/22", 80) for source in spoofed(2, 20_000)])
    *own, shared = folding.lines(3)
    assert len(own) == 3
    assert ("198.18.5.5", 100_000) in [(line.kind.source, line.packets) for line in own]
    assert shared.kind == Kind("e")
    assert 39_000 < shared.detail["sources"] < 40_000


def test_more_sources_than_can_be_remembered_are_told_as_at_least() -> None:
    folding = Folding()
    folding.add_counts("e", [(source, None, None, 1) for source in spoofed(3, MAX_SEEN + 30_000)])
    [line] = folding.lines(0)
    assert line.packets == MAX_SEEN + 30_000
    assert MAX_SEEN - 4096 < line.detail["sources"] <= MAX_SEEN
    assert folding.level is Level.NETWORK


@pytest.mark.parametrize(
    ("source", "network"),
    [
        ("10.1.2.3", "10.1.2.0/24"),
        ("2001:db8:1:2:3::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("10.1.2.0/24", "10.1.2.0/24"),
        (None, None),
    ],
)
def test_the_network_of_a_source(source: str | None, network: str | None) -> None:
    assert network_of(source) == network


# The file


@pytest.fixture
def denials(tmp_path: Path) -> Iterator[Denials]:
    made = Denials(tmp_path / "denials.db", max_lines=1000)
    yield made
    made.close(NOW_US)


def rows(path: Path, sql: str = "select event, source, count, detail from denial") -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def totals(path: Path) -> dict[str, tuple[int, int, int]]:
    return {event: (n, shed, lines) for event, n, shed, lines in rows(path, "select * from total")}


def test_the_first_denial_is_written_at_once(denials: Denials, tmp_path: Path) -> None:
    denials.add([denied("10.0.0.9", source_port=40000)], NOW_US)
    assert rows(tmp_path / "denials.db") == [
        ("connection.denied", "10.0.0.9", 1, '{"source_port":40000}')
    ]
    assert denials.due_at_us() is None


def test_when_there_have_been_many_it_is_every_ten_seconds_then_every_minute(
    denials: Denials, tmp_path: Path
) -> None:
    path = tmp_path / "denials.db"
    denials.add([denied(f"10.0.{n // 250}.{n % 250}") for n in range(BURST // 2 + 1)], NOW_US)
    denials.add([denied("10.9.0.1", further=2)], NOW_US)
    assert denials.due_at_us() == NOW_US + 10 * SECOND
    denials.add([denied("10.9.0.1", further=3)], NOW_US + 10 * SECOND - 1)
    assert not rows(path, "select * from denial where source = '10.9.0.1'")
    denials.flush(NOW_US + 10 * SECOND)
    assert rows(path)[-1] == ("connection.denied", "10.9.0.1", 5, '{"further":5}')
    many = [denied(f"{n // 250 + 20}.{n % 250}.1.1") for n in range(BURST)]
    denials.add(many, NOW_US + 30 * SECOND)
    denials.add([denied("10.9.0.1")], NOW_US + 31 * SECOND)
    assert denials.due_at_us() == NOW_US + 90 * SECOND
    assert totals(path)["connection.denied"][0] == BURST // 2 + 1 + 5 + BURST


def test_a_denial_bears_the_time_at_which_it_came(denials: Denials, tmp_path: Path) -> None:
    denials.is_paused = True
    for n in (3, 1, 2):
        at_us = NOW_US + n * 1000
        record = Record(DENIED, at_us, source=f"10.0.0.{n}")
        denials.add([record, record], at_us)
    denials.is_paused = False
    denials.flush(NOW_US + SECOND)
    assert rows(tmp_path / "denials.db", "select at_us, source, count from denial") == [
        (NOW_US + n * 1000, f"10.0.0.{n}", 2) for n in (1, 2, 3)
    ]


def test_a_clock_set_back_holds_nothing_up(denials: Denials, tmp_path: Path) -> None:
    denials.add([denied("10.0.0.9")], NOW_US)
    denials.add([denied("10.0.0.8")], NOW_US - 3600 * SECOND)
    assert len(rows(tmp_path / "denials.db")) == 2


def test_the_oldest_lines_are_shed_and_the_totals_stay(denials: Denials, tmp_path: Path) -> None:
    for hour in range(5):
        at_us = NOW_US + hour * 3600 * SECOND
        denials.add([denied(f"10.0.{hour}.{n}") for n in range(250)], at_us)
    path = tmp_path / "denials.db"
    assert rows(path, "select count(*), min(source) from denial") == [(1000, "10.0.1.0")]
    assert totals(path) == {"connection.denied": (1250, 250, 250)}


def test_a_line_a_minute_is_what_a_flood_gets_in_the_end(denials: Denials, tmp_path: Path) -> None:
    denials._max_lines = 100_000
    written = 0
    for second in range(1800):
        sources = spoofed(second, 60)
        denials.add([denied(source) for source in sources], NOW_US + second * SECOND)
        written += len(sources)
    denials.flush(NOW_US + 1800 * SECOND)
    path = tmp_path / "denials.db"
    assert rows(path, "select sum(count) from denial") == [(written,)]
    [(count,)] = rows(path, "select count(*) from denial")
    assert BURST < count < BURST + LINES_AN_HOUR / 2 + 60


def test_calm_after_a_flood_is_told_one_by_one_again(denials: Denials, tmp_path: Path) -> None:
    denials.add_counts(DENIED, [(s, None, "tcp/22", 9) for s in spoofed(1, 30_000)], NOW_US)
    denials.flush(NOW_US + MINUTE)
    for hour in (1, 2):
        denials.add([denied("10.0.0.9", source_port=1)], NOW_US + hour * 3600 * SECOND)
        denials.flush(NOW_US + hour * 3600 * SECOND)
    assert rows(tmp_path / "denials.db")[-1][1:] == ("10.0.0.9", 1, '{"source_port":1}')


def test_nothing_is_written_while_it_is_paused_and_nothing_is_lost(
    denials: Denials, tmp_path: Path
) -> None:
    denials.is_paused = True
    for n in range(20):
        denials.add([denied(source) for source in spoofed(n, 500)], NOW_US + n * MINUTE)
    assert denials.due_at_us() is None
    assert not (tmp_path / "denials.db").exists()
    denials.is_paused = False
    denials.flush(NOW_US + 3600 * SECOND)
    assert totals(tmp_path / "denials.db")["connection.denied"][0] == 10_000


def test_what_cannot_be_written_is_counted_on_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "not there" / "denials.db"
    path.parent.touch()
    denials = Denials(path)
    denials.add([denied("10.0.0.9")], NOW_US)
    assert denials.is_failing
    denials.add([denied("10.0.0.9")], NOW_US + SECOND)
    assert denials.due_at_us() == NOW_US + 10 * SECOND
    path.parent.unlink()
    denials.flush(NOW_US + 10 * SECOND)
    assert not denials.is_failing
    assert rows(path, "select sum(count) from denial") == [(2,)]
    denials.close(NOW_US)


def test_a_broken_file_is_set_aside_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "denials.db"
    path.write_bytes(b"no database at all" * 100)
    denials = Denials(path)
    denials.add([denied("10.0.0.9")], NOW_US)
    denials.flush(NOW_US + MINUTE)
    denials.close(NOW_US + MINUTE)
    assert rows(path, "select sum(count) from denial") == [(1,)]
    [aside] = tmp_path.glob("denials.db.damaged-*")
    assert aside.read_bytes() == b"no database at all" * 100


def test_an_empty_file_is_set_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "denials.db"
    path.touch()
    denials = Denials(path)
    denials.add([denied("10.0.0.9")], NOW_US)
    denials.flush(NOW_US + MINUTE)
    denials.close(NOW_US + MINUTE)
    assert rows(path, "select sum(count) from denial") == [(1,)]
    assert len(list(tmp_path.glob("denials.db.damaged-*"))) == 1


def test_a_file_that_may_not_grow_sheds_its_oldest(denials: Denials, tmp_path: Path) -> None:
    denials.add([denied(f"10.0.0.{n}") for n in range(200)], NOW_US)
    assert denials._connection is not None
    denials._connection.execute("pragma max_page_count = 1")
    for minute in range(1, 30):
        many = [denied(f"10.{minute}.{n}.1", access="tcp/" + "1" * 300) for n in range(40)]
        denials.add(many, NOW_US + minute * MINUTE)
        denials.flush(NOW_US + minute * MINUTE)
    [(_, shed, lines)] = totals(tmp_path / "denials.db").values()
    assert shed == lines > 0


def test_when_the_ledger_needs_the_room_the_denials_go_and_the_totals_stay(
    denials: Denials, tmp_path: Path
) -> None:
    path = tmp_path / "denials.db"
    denials.add([denied(f"10.0.0.{n}", further=3) for n in range(200)], NOW_US)
    assert denials.drop() == 200
    assert not list(tmp_path.iterdir())
    assert denials.drop() == 0
    assert denials.is_paused
    denials.is_paused = False
    denials.add([denied("10.0.0.9")], NOW_US + MINUTE)
    assert rows(path) == [("connection.denied", "10.0.0.9", 1, "{}")]
    assert totals(path) == {"connection.denied": (601, 600, 200)}


# Beside the ledger


class TwoBooks(Book):
    """A ledger with its denials beside it."""

    def open(self, boot_id: str = "this boot") -> Ledger:
        self.denials = Denials(beside(self.path / "spa.db"))
        return Ledger(
            self.connection,
            self.registry.seen,
            unrecorded=self.path / "unrecorded",
            boot_id=boot_id,
            denials=self.denials,
        )

    def asked(self, **wanted: Any) -> list[dict[str, Any]]:
        with closing(schema.connect(self.path / "denials.db", read_only=True)) as apart:
            return ask(self.connection, Filter(**wanted), limit=1000, denials=apart)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TwoBooks]:
    made = TwoBooks(tmp_path)
    yield made
    made.denials.close(NOW_US)
    made.connection.close()


def test_denials_are_not_in_the_chain_and_are_found_among_the_rest(books: TwoBooks) -> None:
    books.ledger.note([Record(Event.DAEMON_STARTED, NOW_US)], NOW_US)
    books.ledger.note([denied("10.0.0.9", source_port=4)], NOW_US + 1)
    books.ledger.note([Record(Event.DAEMON_STOPPED, NOW_US + 2)], NOW_US + 2)
    assert books.ledger.head.event_id == 2
    assert books.events() == ["daemon.started", "daemon.stopped"]
    asked = books.asked()
    assert [line["event"] for line in asked] == [
        "daemon.started",
        "connection.denied",
        "daemon.stopped",
    ]
    assert asked[1]["detail"] == {"source_port": 4}
    assert asked[1]["rule"] is asked[1]["grant_id"] is None
    assert [line["source"] for line in books.asked(denied=True)] == ["10.0.0.9"]
    assert books.asked(source="10.0.0.8") == []


def test_a_full_ledger_takes_the_room_of_the_denials_and_says_so(books: TwoBooks) -> None:
    books.ledger.note([denied("10.0.0.9")], NOW_US)
    books.fill_the_disk()

    def make_room() -> int:
        books.make_room()
        return drop()

    drop, books.denials.drop = books.denials.drop, make_room  # type: ignore[method-assign]
    books.ledger.commit(Batch([BURN], [GRANT], records=big()), NOW_US)
    assert books.ledger.live_grants() == [GRANT]
    assert books.events()[-1] == "disk.full"
    assert not beside(books.path / "spa.db").exists()


def test_where_there_is_no_room_to_be_had_it_fails_as_ever(books: TwoBooks) -> None:
    books.ledger.note([denied("10.0.0.9")], NOW_US)
    books.fill_the_disk()
    with pytest.raises(LedgerError, match="full"):
        books.ledger.commit(Batch([BURN], [GRANT], records=big()), NOW_US)
    assert books.ledger.is_behind


@pytest.mark.timeout(300)
def test_an_hour_of_a_flood_is_bounded_and_costs_no_permit(books: TwoBooks) -> None:
    """400,000 packets a second from 50,000 sources; counters are read every ten seconds.

    Meanwhile people work: each interval a permit is recorded, and the first packets of new sources.
    """
    sources = spoofed(1, 50_000)
    chosen = random.Random(2)
    packets = permits = 0
    largest = 0
    path = beside(books.path / "spa.db")
    for interval in range(360):
        now_us = NOW_US + interval * 10 * SECOND
        counts = [
            (source, None, "tcp/22", 70 + (n + interval) % 21) for n, source in enumerate(sources)
        ]
        packets += sum(count for *_, count in counts)
        for start in range(0, len(counts), 1000):
            books.denials.add_counts(DENIED, counts[start : start + 1000], now_us)
        first = [denied(chosen.choice(sources), source_port=7) for _ in range(200)]
        packets += len(first)
        permit = Record(Event.CONNECTION_PERMITTED, now_us, identity="alice", grant_id=interval)
        books.ledger.note([*first, permit], now_us)
        permits += 1
        due_us = books.denials.due_at_us()
        if due_us is not None and due_us <= now_us:
            books.denials.flush(now_us)
        size = sum(file.stat().st_size for file in books.path.glob("denials.db*"))
        largest = max(largest, size)
    books.denials.flush(NOW_US + 3600 * SECOND)
    assert abs(packets / 3600 - 400_000) < 4000
    lines = books.connection.execute("select grant_id from event order by id").fetchall()
    assert [grant for (grant,) in lines] == list(range(permits))
    assert not books.ledger.is_behind
    [(count, told)] = rows(path, "select count(*), sum(count) from denial")
    assert told == packets
    assert totals(path) == {"connection.denied": (packets, 0, 0)}
    assert count < BURST + LINES_AN_HOUR + 360
    assert largest < 6_000_000
    shared = json.loads(rows(path, "select detail from denial where source is null")[0][0])
    assert shared["sources"] > 45_000
