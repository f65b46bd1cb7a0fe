"""The hook: told on stdin, in time, in numbers, and harmless whatever it does."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spa_server.anomaly import hook
from spa_server.anomaly.hook import Hook
from spa_server.audit.record import Event, Record

RECORD = Record(
    Event.CONNECTION_DENIED, 1_800_000_000_000_000, source="192.0.2.7", detail={"kind": "scan"}
)


class Reports:
    """What a hook reports, and a way to wait for it."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._came = threading.Condition()

    def __call__(self, words: str, is_failing: bool) -> None:
        with self._came:
            assert is_failing == ("works again" not in words)
            self.words.append(words)
            self._came.notify_all()

    def wait_for(self, count: int) -> list[str]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.words) >= count, 20)
        return self.words


Maker = Callable[..., Hook]


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def make(tmp_path: Path, reports: Reports) -> Iterator[Maker]:
    """A hook whose program is the given shell script; {dir} is a directory to write to."""
    made: list[Hook] = []

    def maker(script: str, **options: float) -> Hook:
        program = tmp_path / f"hook-{len(made)}"
        program.write_text(f"#!/bin/sh\n{script.format(dir=tmp_path)}\n", encoding="utf-8")
        program.chmod(0o700)
        made.append(Hook(program, reports, **options))  # type: ignore[arg-type]  # at_once is an int
        return made[-1]

    yield maker
    for one in made:
        one.close()


def eventually(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline_s, "it never came about"
        time.sleep(0.01)


def test_the_event_comes_as_json_on_stdin(make: Maker, tmp_path: Path) -> None:
    make("cat > {dir}/.new && mv {dir}/.new {dir}/told").tell(RECORD)
    told = tmp_path / "told"
    eventually(told.exists)
    event = json.loads(told.read_text(encoding="utf-8"))
    assert event["event"] == "connection.denied"
    assert event["source"] == "192.0.2.7"
    assert event["detail"] == {"kind": "scan"}


def test_it_inherits_nothing(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "1")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        script = "env > {dir}/env; pwd > {dir}/cwd; ls /proc/self/fd > {dir}/.fds"
        make(script + "; mv {dir}/.fds {dir}/fds").tell(RECORD)
        eventually((tmp_path / "fds").exists)
    finally:
        os.close(read)
        os.close(write)
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}
    assert (tmp_path / "cwd").read_text() == "/\n"
    assert str(write) not in (tmp_path / "fds").read_text().split()


def test_one_that_hangs_is_killed_with_all_that_it_started(
    make: Maker, reports: Reports, tmp_path: Path
) -> None:
    script = "sleep 600 & echo $! > {dir}/.child; mv {dir}/.child {dir}/child; wait"
    make(script, timeout_s=1.0).tell(RECORD)
    assert "did not end within 1 s" in reports.wait_for(1)[0]
    child = (tmp_path / "child").read_text().strip()
    eventually(lambda: _is_gone(child))


def _is_gone(pid: str) -> bool:
    """Gone, or dead and waiting for whoever collects it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def test_one_that_fails_is_told_once_and_again_when_it_works(
    make: Maker, reports: Reports, tmp_path: Path
) -> None:
    failing = make("test -e {dir}/fixed", at_once=1)
    for _ in range(3):
        failing.tell(RECORD)
    eventually(lambda: failing._waiting == 0)
    assert len(reports.words) == 1
    assert "exit status 1" in reports.words[0]
    (tmp_path / "fixed").touch()
    failing.tell(RECORD)
    assert "works again" in reports.wait_for(2)[1]


@pytest.mark.parametrize(
    ("script", "words"), [("kill -9 $$", "signal 9"), ("exec 0<&-; exit 7", "exit status 7")]
)
def test_however_it_ends_it_is_told(make: Maker, reports: Reports, script: str, words: str) -> None:
    make(script).tell(RECORD)
    assert words in reports.wait_for(1)[0]


def test_one_that_is_missing_or_no_program(reports: Reports, tmp_path: Path) -> None:
    missing = Hook(tmp_path / "nothing", reports)
    missing.tell(RECORD)
    assert "no such file" in reports.wait_for(1)[0]
    missing.close()
    plain = tmp_path / "plain"
    plain.write_text("echo", encoding="utf-8")
    hooked = Hook(plain, reports)
    hooked.tell(RECORD)
    assert "permission denied" in reports.wait_for(2)[1]
    hooked.close()


def test_so_many_run_at_once_so_many_wait_and_the_others_are_counted(
    make: Maker, reports: Reports, tmp_path: Path
) -> None:
    script = "echo x >> {dir}/begun; while ! test -e {dir}/go; do sleep 0.05; done; rm -f /none"
    slow = make(script, at_once=2)
    for _ in range(hook.MAX_WAITING + 2 + 5):
        slow.tell(RECORD)  # which waits for nothing: what runs ends only below
    begun = tmp_path / "begun"
    eventually(lambda: begun.exists() and begun.read_text() == "x\n" * 2)
    time.sleep(0.3)
    assert begun.read_text() == "x\n" * 2
    (tmp_path / "go").touch()
    assert "5 events were not told" in reports.wait_for(1)[0]
    eventually(lambda: begun.read_text() == "x\n" * (hook.MAX_WAITING + 2))


def test_closing_ends_what_runs_and_starts_nothing_more(
    make: Maker, reports: Reports, tmp_path: Path
) -> None:
    script = "echo $$ > {dir}/.pid; mv {dir}/.pid {dir}/pid; sleep 600"
    endless = make(script, at_once=1)
    endless.tell(RECORD)
    endless.tell(RECORD)
    eventually((tmp_path / "pid").exists)
    pid = (tmp_path / "pid").read_text().strip()
    endless.close()
    endless.tell(RECORD)
    assert _is_gone(pid)
    assert (tmp_path / "pid").read_text().strip() == pid
    assert reports.words == []
