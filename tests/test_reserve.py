"""The ledger's reserve: on a disk that is full, the record goes on for a good while."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keys import schema
from spa_server.audit import tables
from spa_server.audit.reserve import TARGET_BYTES, Reserve

ROOT = Path(__file__).parent.parent
_MOUNT = 'mount -t tmpfs -o size=48m spa "$1" && exec "$2" -m tests.full_disk "$1"'


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = schema.connect(tmp_path / "spa.db")
    tables.prepare(made)
    yield made
    made.close()


def size(path: Path) -> int:
    """What the file takes on the disk."""
    return path.stat().st_blocks * 512


def test_the_room_is_in_the_file_and_the_log_is_as_long_as_it_gets(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    reserve = Reserve(connection, tmp_path / "spa.db")
    reserve.lay()
    assert TARGET_BYTES <= reserve.free_bytes < TARGET_BYTES + 1024 * 1024
    assert not reserve.is_filling
    assert not reserve.is_short
    assert connection.execute("select count(*) from reserve").fetchone() == (0,)
    connection.execute("pragma wal_checkpoint(passive)")
    assert size(tmp_path / "spa.db") >= TARGET_BYTES
    assert size(tmp_path / "spa.db-wal") >= 4 * 1024 * 1024


def test_it_is_laid_anew_when_half_of_it_is_used_and_not_before(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    reserve = Reserve(connection, tmp_path / "spa.db")
    reserve.lay()
    connection.execute("create table used (filler)")
    connection.execute("insert into used values (zeroblob(?))", (TARGET_BYTES // 3,))
    assert not reserve.step()
    connection.execute("insert into used values (zeroblob(?))", (TARGET_BYTES // 3,))
    steps = 1
    while reserve.step():
        steps += 1
    assert 50 < steps < 200
    assert reserve.free_bytes >= TARGET_BYTES


def test_a_start_in_the_middle_goes_on(connection: sqlite3.Connection, tmp_path: Path) -> None:
    reserve = Reserve(connection, tmp_path / "spa.db")
    for _ in range(10):
        reserve.step()
    again = Reserve(connection, tmp_path / "spa.db")
    assert again.is_filling
    again.lay()
    assert again.free_bytes >= TARGET_BYTES
    assert connection.execute("select count(*) from reserve").fetchone() == (0,)


def test_a_disk_without_room_for_it_is_told(
    connection: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made that would have to be given back."""
    real = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result((*real[:4], 10, *real[5:])))
    reserve = Reserve(connection, tmp_path / "spa.db")
    reserve.lay()
    assert reserve.is_short
    assert not reserve.is_filling
    monkeypatch.undo()
    reserve.try_again()
    reserve.lay()
    assert not reserve.is_short
    assert reserve.free_bytes >= TARGET_BYTES


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened on a disk of 48 MB, in a mount namespace (tests/full_disk.py)."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    directory = tmp_path_factory.mktemp("disk") / "mounted"
    directory.mkdir()
    argv = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT]
    done = subprocess.run(
        [*argv, "sh", directory, sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "ermitted" in done.stderr or "denied" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_on_a_full_disk_the_record_goes_on_for_tens_of_thousands_of_lines(
    told: dict[str, Any],
) -> None:
    assert told["reserve"] >= TARGET_BYTES
    assert told["written"] > 50_000
    assert "full" in told["error"]


def test_the_record_says_that_the_disk_was_full_and_that_it_is_not_any_more(
    told: dict[str, Any],
) -> None:
    events = [event for event, _ in told["disk"]]
    assert events[0] == "disk.full"
    assert events[-1] == "disk.free"
    assert told["paused"]
    assert not told["paused_again"]


def test_afterwards_everything_is_as_before(told: dict[str, Any]) -> None:
    assert not told["behind"]
    assert told["permits"] >= told["written"]
    assert told["reserve_again"] >= TARGET_BYTES
    assert told["findings"] == []
    assert [total[:2] for total in told["denials"]] == [["connection.denied", 1]]
