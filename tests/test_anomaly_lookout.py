"""The lookout: what is found becomes a line, what was learnt is kept, and nobody waits for it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from spa_server.anomaly import lookout as module
from spa_server.anomaly.finding import Kind
from spa_server.anomaly.lookout import SAVE_AFTER_US, Lookout
from spa_server.anomaly.settings import Watching
from spa_server.anomaly.store import Store, beside
from spa_server.audit.record import Event, Record
from spa_server.meter import Meter
from tests.anomaly_life import AWAY, at, denial, knock, refusal

NOW = at(42, 9)
SCAN = [denial(NOW + n, AWAY, f"tcp/{n}") for n in range(1, 30)]


class Host:
    """A daemon in little: a ledger that tells its observers, and a clock that is turned by hand."""

    def __init__(self, database: Path, watching: Watching | None = None) -> None:
        self.now_us = NOW
        self.records: list[Record] = []
        self.lookout = Lookout(watching or Watching(), Store(beside(database)), self.note)

    def note(self, records: Sequence[Record], now_us: int) -> None:
        assert now_us == self.now_us
        self.records += records
        self.lookout.written(records, len(self.records))

    def until_idle(self, later_us: int = 0) -> int:
        """Tends until nothing is due; how often."""
        self.now_us += later_us
        for times in range(1000):
            due_us = self.lookout.due_at_us(self.now_us)
            if due_us is None or due_us > self.now_us:
                return times
            self.lookout.tend(self.now_us)
        raise AssertionError("it never comes to rest")

    def named(self, event: Event) -> list[Record]:
        return [record for record in self.records if record.event is event]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "spa.db"


@pytest.fixture
def host(database: Path) -> Iterator[Host]:
    host = Host(database)
    host.until_idle()
    yield host
    host.lookout.close(host.now_us)


def test_a_scan_becomes_one_line_with_score_and_reason(host: Host) -> None:
    host.note(SCAN, NOW)
    assert host.named(Event.ANOMALY) == [], "the observer finds nothing by itself"
    assert host.lookout.due_at_us(NOW) == NOW
    host.until_idle()
    (line,) = host.named(Event.ANOMALY)
    assert line.source == AWAY
    assert line.detail["kind"] == Kind.SCAN
    assert 0.5 <= line.detail["score"] <= 1
    assert "12 closed ports" in (line.reason or "")
    meter = Meter()
    meter.written([line], 1)
    assert meter.anomalies == {"scan": 1}


def test_nothing_is_due_while_nothing_is_learnt(host: Host) -> None:
    assert host.lookout.due_at_us(NOW) is None
    host.note([Record(Event.GATE_APPLIED, NOW)], NOW)
    assert host.lookout.due_at_us(NOW) is None
    host.note([knock(NOW)], NOW)
    host.until_idle()
    assert host.lookout.due_at_us(NOW) == NOW + SAVE_AFTER_US
    assert host.until_idle(SAVE_AFTER_US) > 0
    assert host.lookout.due_at_us(host.now_us) is None


def test_saving_is_not_put_off_by_a_clock_that_is_set_back(host: Host) -> None:
    host.note([knock(NOW)], NOW)
    host.until_idle()
    before_us = NOW - 10 * SAVE_AFTER_US
    assert host.lookout.due_at_us(before_us) == before_us


def test_what_was_saved_outlives_a_daemon_that_was_killed(host: Host, database: Path) -> None:
    host.note([refusal(NOW, "replayed", AWAY) for _ in range(2)], NOW)
    host.until_idle(SAVE_AFTER_US)
    host.until_idle(SAVE_AFTER_US)
    other = Host(database)
    other.note([refusal(NOW + 1, "replayed", AWAY) for _ in range(1)], NOW)
    other.until_idle()
    assert "3 refused within an hour" in str(
        other.lookout._watcher._cases.get("alice").signs()  # type: ignore[union-attr]
    )
    other.lookout.close(NOW)


def test_what_was_learnt_last_is_saved_at_the_end(host: Host, database: Path) -> None:
    host.note([knock(NOW, who=f"person-{n}") for n in range(250)], NOW)
    host.lookout.close(NOW)
    with contextlib.closing(Store(beside(database))) as store:
        names = [name for name, _ in store.after("key/key-person-1", NOW)]
    assert len(names) > 90


def test_lines_that_come_while_it_loads_wait(database: Path) -> None:
    host = Host(database)
    host.note(SCAN, NOW)
    assert host.named(Event.ANOMALY) == []
    host.until_idle()
    assert len(host.named(Event.ANOMALY)) == 1
    host.lookout.close(NOW)


def test_a_damaged_file_is_set_aside_with_a_line_and_learnt_anew(database: Path) -> None:
    beside(database).write_bytes(b"no database at all " * 500)
    host = Host(database)
    host.note(SCAN, NOW)
    host.until_idle()
    (lost,) = host.named(Event.BASELINES_LOST)
    assert "set aside as anomalies.db.damaged-" in (lost.reason or "")
    assert len(host.named(Event.ANOMALY)) == 1
    host.until_idle(SAVE_AFTER_US)
    host.lookout.close(host.now_us)
    with contextlib.closing(Store(beside(database))) as store:
        assert store.after("", NOW) != []


def test_where_it_cannot_be_written_that_is_told_once_and_tried_again(database: Path) -> None:
    beside(database).mkdir()
    host = Host(database)
    for _ in range(3):
        host.until_idle(SAVE_AFTER_US)
    assert len(host.named(Event.BASELINES_LOST)) == 1
    beside(database).rmdir()
    host.note(SCAN, host.now_us)
    host.until_idle(SAVE_AFTER_US)
    assert len(host.named(Event.ANOMALY)) == 1
    host.lookout.close(host.now_us)


def test_more_than_it_can_look_at_is_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 100)
    for _ in range(3):
        host.note([knock(NOW)] * 60, NOW)
    host.until_idle()
    (lost,) = host.named(Event.BASELINES_LOST)
    assert lost.detail == {"count": 80}


def test_a_hook_that_is_no_program_is_told_at_the_start(database: Path, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\n", encoding="utf-8")
    host = Host(database, Watching(hook=hook))
    host.until_idle()
    (failed,) = host.named(Event.HOOK_FAILED)
    assert failed.reason == f"the hook {hook} is no program that the daemon may execute"
    host.lookout.close(NOW)
