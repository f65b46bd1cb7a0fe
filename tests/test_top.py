"""`spa-server top`: a frame says what is going on, fits its terminal, and leaves it as it was."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from spa_server.topframe import frame
from tests.world import NOW_US, SECOND

STATUS: dict[str, Any] = {
    "version": "0.2.0", "gate": "loaded", "mode": "enforce", "record": "written", "lost": 0,
    "state": "serving", "observed": [],
}  # fmt: skip


def hole(number: int, **fields: Any) -> dict[str, Any]:
    usual = {"grant": number, "identity": f"person{number}", "source": "10.20.0.9",
             "access": "tcp/22", "remaining_s": 20.0 + number, "once": False}  # fmt: skip
    return {**usual, **fields}


def knock(number: int, **fields: Any) -> dict[str, Any]:
    usual = {"at_us": NOW_US - number * SECOND, "event": "knock.accepted", "access": "tcp/22",
             "identity": "alice", "source": "10.20.0.9", "reason": None}  # fmt: skip
    return {**usual, **fields}


def denial(number: int, **fields: Any) -> dict[str, Any]:
    usual = {"source": f"203.0.113.{number}", "access": "tcp/23", "packets": 1234,
             "last_us": NOW_US}  # fmt: skip
    return {**usual, **fields}


def activity(
    holes: int = 2, knocks: int = 2, denials: int = 2, ours: Any = None, **fields: Any
) -> dict[str, Any]:
    return {
        "now_us": NOW_US,
        "started_us": NOW_US - 7_500 * SECOND,
        "grants": holes,
        "accepted": 12,
        "refused": 3,
        "denied": 4567,
        "holes": [hole(number) for number in range(holes)] if ours is None else ours,
        "recent": [knock(number) for number in range(knocks)],
        "sources": [denial(number) for number in range(denials)],
        **fields,
    }


def texts(*args: Any, **sizes: int) -> list[str]:
    return [line.text for line in frame(*args, **sizes)]


# A frame


def test_a_frame_says_what_is_going_on() -> None:
    assert texts(STATUS, activity()) == [
        "spa-server 0.2.0: gate loaded, mode enforce, record written, up 2h05m, 06:00:00…",
        "2 grants, 12 knocks accepted, 3 refused, 4,567 packets denied",
        "",
        "HOLES, next to close first",
        "    20 s  person0               10.20.0.9                   tcp/22",
        "    21 s  person1               10.20.0.9                   tcp/22",
        "",
        "KNOCKS",
        "06:00:00  alice                 10.20.0.9                   tcp/22",
        "05:59:59  alice                 10.20.0.9                   tcp/22",
        "",
        "DENIED, by source and port",
        "06:00:00  1,234 packets         203.0.113.0                 tcp/23",
        "06:00:00  1,234 packets         203.0.113.1                 tcp/23",
    ]


def test_nothing_going_on_is_said_too() -> None:
    told = texts(STATUS, activity(0, 0, 0))
    assert [line for line in told if line.endswith("none")] == [
        "HOLES, next to close first: none",
        "KNOCKS: none",
        "DENIED, by source and port: none",
    ]


def test_a_refused_knock_says_why_and_a_join_is_named() -> None:
    recent = [
        knock(0, event="knock.refused", identity=None, reason="replayed"),
        knock(1, event="join.accepted", access=None),
    ]
    told = "\n".join(texts(STATUS, activity(recent=recent)))
    assert "?                     10.20.0.9                   no: replayed" in told
    assert "join" in told


@given(
    st.integers(0, 100), st.integers(0, 100), st.integers(0, 100),
    st.integers(40, 200), st.integers(10, 60),
)  # fmt: skip
def test_a_frame_fits_whatever_there_is(
    holes: int, knocks: int, denials: int, width: int, height: int
) -> None:
    lines = texts(STATUS, activity(holes, knocks, denials), width=width, height=height)
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    if height >= 14:
        for count, title in ((holes, "HOLES"), (knocks, "KNOCKS"), (denials, "DENIED")):
            at = next(n for n, line in enumerate(lines) if line.startswith(title))
            if count:
                assert lines[at + 1]


def test_no_section_crowds_the_others_out() -> None:
    lines = texts(STATUS, activity(100, 100, 100), height=24)
    assert len(lines) == 24
    hidden = [line for line in lines if "not shown" in line]
    assert len(hidden) == 3


@given(st.text())
def test_no_text_from_the_wire_steers_the_terminal(text: str) -> None:
    told = activity(
        ours=[hole(0, identity=text)],
        recent=[knock(0, reason=text, event="knock.refused", identity=text)],
        sources=[denial(0, source=text or None)],
    )
    for line in texts(STATUS, told):
        assert line.isprintable()
        assert cell_len(line) <= 80


def test_what_is_wrong_stands_out() -> None:
    (first, *_) = frame({**STATUS, "gate": "not loaded"}, activity())
    assert "red" in first.style
    assert "red" not in frame(STATUS, activity())[0].style


# At a terminal, against a daemon's socket


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """A socket that answers as a daemon does, in a thread of its own."""
    import asyncio  # noqa: PLC0415 - only the thread needs it

    from spa_server.control import ControlServer  # noqa: PLC0415 - only the thread needs it

    path = tmp_path / "control.sock"
    ready, loop = threading.Event(), asyncio.new_event_loop()
    server = ControlServer(
        path, {"status": lambda _: STATUS, "activity": lambda _: activity()}
    )  # fmt: skip

    async def serve() -> None:
        await server.start()
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(server.stop())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(5)
    (tmp_path / "server.toml").write_text('control = "control.sock"\n')
    yield tmp_path / "server.toml"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def argv(config: Path, *arguments: str) -> list[str]:
    program = "from spa_server.cli import main; main()"
    return [sys.executable, "-c", program, "--config", str(config), "top", *arguments]


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv(config, *arguments), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_once_prints_a_frame_that_a_pipe_can_take(config: Path) -> None:
    done = run(config, "--once")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == texts(STATUS, activity())
    assert "\x1b" not in done.stdout


def test_json_gives_what_the_daemon_said(config: Path) -> None:
    done = run(config, "--json")
    told = json.loads(done.stdout)
    assert told["status"] == STATUS
    assert told["holes"] == activity()["holes"]


def test_without_a_terminal_it_says_so(config: Path) -> None:
    done = run(config)
    assert done.returncode == 2
    assert done.stderr == "spa-server: this is no terminal; try: spa-server top --once, or --json\n"


def test_without_a_daemon_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('control = "none.sock"\n')
    done = run(tmp_path / "server.toml", "--once")
    assert done.returncode == 4
    assert "no daemon answers" in done.stderr


class Terminal:
    """A program at a terminal of 80 by 24, and what is to be seen there."""

    def __init__(self, config: Path) -> None:
        self.ours, self._its = pty.openpty()
        termios.tcsetwinsize(self._its, (24, 80))
        self.before = termios.tcgetattr(self._its)
        self.screen = pyte.Screen(80, 24)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        env = {**os.environ, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            argv(config), stdin=self._its, stdout=self._its, stderr=self._its, env=env,
            start_new_session=True,
        )  # fmt: skip

    def read(self, within_s: float = 0.1) -> None:
        while select.select([self.ours], [], [], within_s)[0]:
            got = os.read(self.ours, 65536)
            self.raw += got
            self._stream.feed(got)

    def wait_for(self, text: str) -> None:
        end_s = time.monotonic() + 15
        while not any(text in line for line in self.screen.display):
            assert time.monotonic() < end_s, self.screen.display
            self.read()

    def end(self) -> int:
        code = self.process.wait(10)
        self.read()
        return code

    def is_as_it_was(self) -> bool:
        left_alone = termios.tcgetattr(self._its) == self.before
        out = self.raw.rindex(b"\x1b[?1049l") > self.raw.rindex(b"\x1b[?1049h")
        return left_alone and out and self.raw.rindex(b"\x1b[?25h") > self.raw.rindex(b"\x1b[?25l")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self._its)


@pytest.fixture
def terminal(config: Path) -> Iterator[Terminal]:
    made = Terminal(config)
    yield made
    made.close()


def test_q_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.wait_for("person1")
    seen = [line.rstrip() for line in terminal.screen.display]
    assert [line for line in seen if line] == [line for line in texts(STATUS, activity()) if line]
    os.write(terminal.ours, b"xq")
    assert terminal.end() == 0
    assert terminal.is_as_it_was()


def test_a_daemon_that_ends_is_told_on_a_terminal_that_is_as_it_was(
    terminal: Terminal, config: Path
) -> None:
    terminal.wait_for("person1")
    (config.parent / "control.sock").rename(config.parent / "gone.sock")
    assert terminal.end() == 4
    assert terminal.is_as_it_was()
    assert b"no daemon answers" in terminal.raw
    (config.parent / "gone.sock").rename(config.parent / "control.sock")


def test_an_interrupt_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.wait_for("person1")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert terminal.is_as_it_was()
    assert b"Traceback" not in terminal.raw
