"""What the watcher knows outlives the daemon, in a file of its own."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from spa_server.anomaly.store import SLICE, Store, StoreError, beside
from spa_server.anomaly.watcher import Watcher
from tests.anomaly_life import at, familiar, knock, see, weeks

NOW = at(50)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return beside(tmp_path / "spa.db")


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(path)) as store:
        yield store


def save_all(watcher: Watcher, store: Store, most: int = 2) -> int:
    slices = 0
    while states := watcher.unsaved(most):
        store.save(states, NOW)
        slices += 1
    return slices


def load_all(store: Store) -> dict[str, bytes]:
    states: dict[str, bytes] = {}
    last = ""
    while some := store.after(last, NOW):
        states |= some
        last = some[-1][0]
    return states


def restored(store: Store) -> tuple[Watcher, int]:
    watcher = Watcher()
    return watcher, watcher.restore(load_all(store).items())


def execute(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def test_a_new_daemon_knows_what_the_old_one_knew(store: Store) -> None:
    watcher = familiar()
    assert save_all(watcher, store) > 1
    fresh, spoiled = restored(store)
    assert spoiled == 0
    stolen = [knock(at(42, 0.2), "198.51.100.7", "tcp/443", who="job")]
    stolen += [knock(at(42, 0.3), "10.9.0.4", "tcp/443", who="job")]
    assert see(fresh, stolen) == see(watcher, stolen) != []


def test_more_than_a_slice_is_read_to_its_end(store: Store) -> None:
    watcher = Watcher()
    see(watcher, [knock(at(1), who=f"person-{n}") for n in range(2 * SLICE + 7)])
    save_all(watcher, store, most=SLICE)
    assert len(store.after("", NOW)) == SLICE
    assert len(load_all(store)) == 2 * SLICE + 7 + 1


def test_only_what_changed_is_written(store: Store, path: Path) -> None:
    watcher = familiar()
    save_all(watcher, store)
    assert watcher.unsaved(1) == []
    execute(path, "update baseline set at_us = 0")
    see(watcher, weeks(42, 43))
    save_all(watcher, store)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        changed = connection.execute("select name from baseline where at_us > 0").fetchall()
    assert {name for (name,) in changed} == {"key/key-alice", "all/"}


def test_a_knock_like_the_last_one_is_saved_too() -> None:
    watcher = familiar()
    while watcher.unsaved(100):
        pass
    see(watcher, [knock(at(42, 9)), knock(at(42, 9.01))])
    while watcher.unsaved(100):
        pass
    see(watcher, [knock(at(42, 9.02))])
    assert [name for name, _ in watcher.unsaved(100)] == ["key/key-alice"]


def test_what_was_forgotten_is_deleted(store: Store) -> None:
    watcher = familiar()
    save_all(watcher, store)
    assert "key/key-bob" in load_all(store)
    watcher._baselines.forget("key-bob")
    save_all(watcher, store)
    assert "key/key-bob" not in load_all(store)


def test_while_another_holds_it_nothing_is_written_and_nothing_set_aside(
    store: Store, path: Path
) -> None:
    store.save([("key/a", b"a")], NOW)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(StoreError, match="locked") as raised:
            store.save([("key/b", b"b"), ("key/a", None)], NOW)
        assert raised.value.aside is None
        other.execute("rollback")
    assert load_all(store) == {"key/a": b"a"}
    store.save([("key/b", b"b"), ("key/a", None)], NOW)
    assert load_all(store) == {"key/b": b"b"}


def test_a_damaged_file_is_set_aside_and_a_new_one_begun(store: Store, path: Path) -> None:
    damaged = b"this is no database " * 500
    path.write_bytes(damaged)
    with pytest.raises(StoreError) as raised:
        store.after("", NOW)
    assert raised.value.aside is not None
    assert raised.value.aside.read_bytes() == damaged
    assert raised.value.aside.name.startswith("anomalies.db.damaged-")
    store.save([("key/a", b"a")], NOW)
    assert load_all(store) == {"key/a": b"a"}


def test_an_empty_file_is_set_aside_too(store: Store, path: Path) -> None:
    path.touch()
    with pytest.raises(StoreError) as raised:
        store.after("", NOW)
    assert raised.value.aside is not None
    store.save([("key/a", b"a")], NOW)
    assert load_all(store) == {"key/a": b"a"}


def test_a_spoiled_row_spoils_no_other(store: Store, path: Path) -> None:
    watcher = familiar()
    save_all(watcher, store)
    execute(path, "update baseline set state = x'c1ff' where name = 'key/key-bob'")
    execute(path, "insert into baseline values ('what/ever', 1, x'00')")
    fresh, spoiled = restored(store)
    assert spoiled == 2
    assert see(fresh, weeks(42, 49)) == []


def test_after_the_file_is_gone_everything_is_saved_anew(store: Store) -> None:
    watcher = familiar()
    save_all(watcher, store)
    before = load_all(store)
    watcher.put_back_all()
    assert {name for name, _ in watcher.unsaved(10_000)} == set(before)
