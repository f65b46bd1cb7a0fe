"""Denial counts: however the kernel's counters come and go, no packet is entered twice."""

import socket
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import schema
from spa_server.audit.denials import Denials
from spa_server.audit.record import Event
from spa_server.denialcounts import LIFE_S, PAUSE_S, DenialCounts, Reading
from spa_server.firewall.elements import Element
from spa_server.firewall.nftables import Count
from spa_server.meter import Meter
from tests.world import NOW_US

LIFE_MS = round(LIFE_S * 1000)
SET = "denied4"
TCP = 6


def key(source: str, port: int = 22, protocol: int = TCP) -> bytes:
    return socket.inet_aton(source) + bytes([protocol, 0, 0, 0]) + port.to_bytes(2) + bytes(2)


@dataclass
class Kernel:
    """One set of the gate: the first packet makes an element and is logged, others count."""

    now_ms: int = 1_000_000
    elements: dict[bytes, list[int]] = field(default_factory=dict)
    unlisted: int = 0
    sent: Counter[bytes] = field(default_factory=Counter)
    logged: Counter[bytes] = field(default_factory=Counter)

    def packets(self, key: bytes, count: int = 1) -> None:
        """So many packets at once."""
        self.sent[key] += count
        element = self._living(key)
        if element is None:
            self.elements[key] = [count, self.now_ms + LIFE_MS]
            self.logged[key] += 1
        else:
            element[0] += count

    def _living(self, key: bytes) -> list[int] | None:
        element = self.elements.get(key)
        return element if element is not None and element[1] > self.now_ms else None

    def reading(self, without: frozenset[bytes] = frozenset(), name: str = SET) -> Reading:
        """As the kernel lists it; torn, where keys are left out."""
        listed = [
            Element(key, LIFE_MS, ends_ms - self.now_ms, Count(packets, 0))
            for key, (packets, ends_ms) in self.elements.items()
            if key not in without and ends_ms > self.now_ms
        ]
        event = Event.CONNECTION_DENIED
        return Reading(self.now_ms, [(event, name, iter(listed))], {event: self.unlisted})


class Counting:
    """A daemon's counts in a real file, from its first reading on."""

    def __init__(self, path: Path, kernel: Kernel) -> None:
        self.kernel = kernel
        self.path = path
        self.denials = Denials(path)
        self.meter = Meter()
        self.counts = DenialCounts(self.denials, self.meter.counted)
        self.enter(kernel.reading())

    def enter(self, reading: Reading | None) -> int:
        """Enters a reading; in how many slices."""
        self.counts.begin()
        return sum(1 for _ in self.counts.enter(reading, lambda: self.kernel.now_ms / 1000))

    def read(self, without: frozenset[bytes] = frozenset()) -> None:
        self.enter(self.kernel.reading(without))

    def entered(self) -> dict[tuple[str | None, str | None], int]:
        self.denials.flush(NOW_US + 3600 * 1_000_000)
        if not self.path.exists():
            return {}
        with closing(schema.connect(self.path, read_only=True)) as connection:
            rows = connection.execute(
                "select source, access, sum(count) from denial group by source, access"
            )
            return {(source, access): count for source, access, count in rows}

    def close(self) -> None:
        self.denials.close(NOW_US)


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    made = Counting(tmp_path / "denials.db", Kernel())
    yield made
    made.close()


def test_further_packets_are_entered_and_the_first_is_not(counting: Counting) -> None:
    kernel = counting.kernel
    kernel.packets(key("10.0.0.9"), 500)
    kernel.packets(key("10.0.0.8", 53, socket.IPPROTO_UDP), 3)
    kernel.packets(key("10.0.0.7", 5, 33), 2)
    kernel.packets(key("10.0.0.6"))
    counting.read()
    counting.read()
    kernel.packets(key("10.0.0.9"), 11)
    counting.read()
    assert counting.entered() == {
        ("10.0.0.9", "tcp/22"): 510,
        ("10.0.0.8", "udp/53"): 2,
        ("10.0.0.7", "dccp/5"): 1,
    }


def test_what_was_counted_before_the_first_reading_is_not_entered(tmp_path: Path) -> None:
    kernel = Kernel(unlisted=50)
    kernel.packets(key("10.0.0.9"), 500)
    kernel.packets(key("10.0.0.8"))
    counting = Counting(tmp_path / "denials.db", kernel)
    kernel.packets(key("10.0.0.9"), 2)
    kernel.packets(key("10.0.0.8"), 3)
    kernel.unlisted += 7
    counting.read()
    told = {("10.0.0.9", "tcp/22"): 2, ("10.0.0.8", "tcp/22"): 3, (None, None): 7}
    assert counting.entered() == told
    counting.close()


def test_an_element_that_timed_out_and_came_again_is_another(counting: Counting) -> None:
    kernel = counting.kernel
    for count in (9, 20):
        kernel.packets(key("10.0.0.9"), count)
        counting.read()
        kernel.now_ms += LIFE_MS + 1000
    assert counting.entered() == {("10.0.0.9", "tcp/22"): 8 + 19}


def test_after_the_gate_was_made_anew_counts_begin_anew(counting: Counting) -> None:
    kernel = counting.kernel
    kernel.packets(key("10.0.0.9"), 9)
    kernel.unlisted = 100
    counting.read()
    kernel.elements.clear()
    kernel.now_ms += 100
    kernel.packets(key("10.0.0.9"), 5)
    kernel.unlisted = 30
    counting.read()
    assert counting.entered() == {("10.0.0.9", "tcp/22"): 8 + 4, (None, None): 130}


def test_a_torn_listing_does_not_make_an_old_element_new(counting: Counting) -> None:
    kernel = counting.kernel
    kernel.packets(key("10.0.0.9"), 100)
    counting.read()
    counting.read(without=frozenset({key("10.0.0.9")}))
    kernel.packets(key("10.0.0.9"), 1)
    counting.read()
    assert counting.entered() == {("10.0.0.9", "tcp/22"): 100}


def test_where_there_is_no_gate_nothing_is_entered(counting: Counting) -> None:
    counting.kernel.packets(key("10.0.0.9"), 10)
    counting.read()
    counting.enter(None)
    assert counting.entered() == {("10.0.0.9", "tcp/22"): 9}
    pauses = 0
    while counting.counts.due_at_s() is not None:
        counting.enter(None)
        pauses += 1
    assert 2 < pauses < 10


moves = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 3), st.integers(1, 20)),
    st.tuples(st.just("wait"), st.integers(1, LIFE_MS), st.just(0)),
    st.tuples(st.just("flush"), st.just(0), st.just(0)),
    st.tuples(st.just("read"), st.integers(0, 15), st.just(0)),
)


@settings(deadline=None)
@given(st.lists(moves, max_size=60))
def test_whatever_happens_no_more_is_entered_than_was_sent(
    tmp_path_factory: pytest.TempPathFactory, happens: list[tuple[str, int, int]]
) -> None:
    kernel = Kernel()
    keys = [key(f"10.0.0.{n}") for n in range(4)]
    counting = Counting(tmp_path_factory.mktemp("counts") / "denials.db", kernel)
    for what, number, count in happens:
        match what:
            case "send":
                kernel.packets(keys[number], count)
            case "wait":
                kernel.now_ms += number
            case "flush":
                kernel.elements.clear()
            case "read":
                left_out = frozenset(one for n, one in enumerate(keys) if number >> n & 1)
                counting.read(left_out)
    entered = counting.entered()
    for one, sent in kernel.sent.items():
        source = socket.inet_ntoa(one[:4])
        assert entered.get((source, "tcp/22"), 0) + kernel.logged[one] <= sent
    counting.close()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=40))
def test_where_every_change_is_read_nothing_is_missing(
    tmp_path_factory: pytest.TempPathFactory, sends: list[tuple[int, int]]
) -> None:
    kernel = Kernel()
    keys = [key(f"10.0.0.{n}") for n in range(4)]
    counting = Counting(tmp_path_factory.mktemp("counts") / "denials.db", kernel)
    for number, count in sends:
        kernel.packets(keys[number], count)
        counting.read()
        kernel.now_ms += 50_000
    entered = counting.entered()
    for one, sent in kernel.sent.items():
        source = socket.inet_ntoa(one[:4])
        assert entered.get((source, "tcp/22"), 0) + kernel.logged[one] == sent
    counting.close()


# Who is told


def test_top_and_the_metrics_are_told(counting: Counting) -> None:
    counting.kernel.packets(key("10.0.0.9"), 500)
    counting.kernel.unlisted = 4
    counting.read()
    told = counting.meter.told(5)
    assert told["denied"] == 503
    assert {(one["source"], one["access"], one["packets"]) for one in told["sources"]} == {
        ("10.0.0.9", "tcp/22", 499),
        ("", "", 4),
    }


def test_what_would_be_denied_has_its_own_event(counting: Counting) -> None:
    counting.kernel.packets(key("10.0.0.9"), 3)
    reading = counting.kernel.reading(name="observed4")
    reading.sets = [(Event.CONNECTION_WOULD_DENY, "observed4", reading.sets[0][2])]
    counting.enter(reading)
    counting.denials.flush(NOW_US)
    with closing(sqlite3.connect(counting.path)) as connection:
        rows = connection.execute("select event, count from denial").fetchall()
    assert rows == [("connection.would-deny", 2)]


# When


def test_it_reads_while_counts_grow_and_then_ever_more_seldom(counting: Counting) -> None:
    counts, kernel = counting.counts, counting.kernel
    assert counts.due_at_s() is None
    kernel.packets(key("10.0.0.9"), 2)
    counts.stir(kernel.now_ms / 1000)
    pauses = []
    for grows in (True, True, False, False, False, False, False, False, False):
        due_at_s = counts.due_at_s()
        if due_at_s is None:
            break
        pauses.append(due_at_s - kernel.now_ms / 1000)
        kernel.now_ms = round(due_at_s * 1000)
        if grows:
            kernel.packets(key("10.0.0.9"))
        assert counts.is_due(due_at_s)
        assert not counts.is_due(due_at_s - 0.1)
        counting.read()
    assert pauses == [PAUSE_S, PAUSE_S, PAUSE_S, 10, 20, 40, 80, 160]
    assert counts.due_at_s() is None


def test_after_the_last_element_has_ended_nothing_is_read(counting: Counting) -> None:
    kernel = counting.kernel
    kernel.packets(key("10.0.0.9"))
    counting.counts.stir(kernel.now_ms / 1000)
    kernel.now_ms += LIFE_MS + 1
    counting.read()
    assert counting.counts.due_at_s() is None


def test_while_it_reads_nothing_is_due_and_what_comes_meanwhile_is(counting: Counting) -> None:
    counts = counting.counts
    counts.stir(1000.0)
    counts.begin()
    assert counts.due_at_s() is None
    counts.stir(1001.0)
    assert counts.due_at_s() is None
    for _ in counts.enter(counting.kernel.reading(), lambda: 1002.0):
        pass
    assert counts.due_at_s() == 1001.0 + PAUSE_S


def test_many_are_entered_in_slices(counting: Counting) -> None:
    for number in range(5000):
        counting.kernel.packets(key(f"10.1.{number // 250}.{number % 250}"), 3)
    assert counting.enter(counting.kernel.reading()) > 20
    counting.denials.flush(NOW_US + 3600 * 1_000_000)
    with closing(sqlite3.connect(counting.path)) as connection:
        [(total, lines)] = connection.execute("select sum(count), count(*) from denial")
    assert total == 10_000
    assert lines < 3000
