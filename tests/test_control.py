"""The control socket: whatever is asked of it, it answers in one line, and the daemon lives."""

import asyncio
import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from keys.poke import poke
from keys.trouble import Trouble
from spa_server import control
from spa_server.control import MAX_LINE, ControlServer, ask
from spa_server.places import OF_ROOT


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"heard": request}


def fail(_request: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError("it is broken\nin two places")


LARGE = 4_000_000


def large(_request: dict[str, Any]) -> dict[str, Any]:
    return {"x": "x" * LARGE}


HANDLERS = {"echo": echo, "fail": fail, "large": large}
WHAT_TO_ASK = {"ok": False, "error": "ask one of: echo, fail, large"}


@contextmanager
def serving(path: Path) -> Iterator[None]:
    """A server on an event loop in a thread of its own, as the daemon runs it."""
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: problems.append(context))

    async def serve() -> None:
        server = ControlServer(path, HANDLERS)
        await server.start()
        started.set()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert started.wait(5)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
    assert problems == []


def start(path: Path) -> None:
    """Starts a server and stops it again, for what it says when it cannot."""

    async def run() -> None:
        server = ControlServer(path, HANDLERS)
        await server.start()
        await server.stop()

    asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def exchange(path: Path, line: bytes) -> bytes:
    """The answer to a line as it is."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        answer = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(line)
            with connection.makefile("rb") as answers:
                answer = answers.read()
        return answer


def test_a_request_and_its_answer(path: Path) -> None:
    with serving(path):
        asked = {"do": "echo", "grants": [1, 2], "who": "Ω"}
        assert ask(path, asked) == {"heard": asked}
        answer = exchange(path, b'{"do": "echo"}\n')
        assert answer.endswith(b"}\n")
        assert json.loads(answer) == {"ok": True, "heard": {"do": "echo"}}


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"hello\n",
        b"{\n",
        b"\xff\xfe\n",
        b"null\n",
        b"7\n",
        b'"echo"\n',
        b"[]\n",
        b"{}\n",
        b'{"do": null}\n',
        b'{"do": ["echo"]}\n',
        b'{"do": "frob"}\n',
        b'{"DO": "echo"}\n',
        b"[" * 30_000 + b"\n",
    ],
    ids=lambda line: line[:20].decode(errors="replace").strip() or "empty",
)
def test_what_is_no_request_is_told_what_one_is(path: Path, line: bytes) -> None:
    with serving(path):
        assert json.loads(exchange(path, line)) == WHAT_TO_ASK
        assert ask(path, {"do": "echo"})


def test_a_line_without_end_is_not_waited_for(path: Path) -> None:
    """Nor kept in memory: past 64 KiB the connection is closed."""
    with serving(path):
        assert exchange(path, b"x" * (4 * MAX_LINE)) == b""
        assert ask(path, {"do": "echo"})


def test_whoever_says_nothing_holds_nobody_up(path: Path) -> None:
    with serving(path), closing(socket.socket(socket.AF_UNIX)) as silent:
        silent.connect(str(path))
        assert ask(path, {"do": "echo"})
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):  # it was not hung up on first
            silent.recv(1)


def test_whoever_hangs_up_is_no_matter(path: Path) -> None:
    with serving(path):
        for line in (b"", b"{", b'{"do": "echo"}\n'):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendall(line)
        assert ask(path, {"do": "echo"})


def test_what_goes_wrong_in_a_handler_is_said_and_no_more(path: Path) -> None:
    with serving(path):
        with pytest.raises(Trouble, match="the daemon says: it is broken"):
            ask(path, {"do": "fail"})
        assert ask(path, {"do": "echo"})


def test_the_socket_is_for_its_owner_and_group(path: Path) -> None:
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.is_socket()
    assert not path.exists()


def test_its_directory_is_made(tmp_path: Path) -> None:
    path = tmp_path / "run" / "spa" / "control.sock"
    with serving(path):
        assert ask(path, {"do": "echo"})


def test_the_socket_of_a_daemon_that_was_killed_is_replaced(path: Path) -> None:
    """Nobody took it away; what counts is whether somebody answers there."""
    with closing(socket.socket(socket.AF_UNIX)) as killed:
        killed.bind(str(path))
    assert path.is_socket()
    with serving(path):
        assert ask(path, {"do": "echo"})


def test_the_socket_of_a_daemon_that_runs_is_left_alone(path: Path) -> None:
    with serving(path):
        with pytest.raises(Trouble, match=f"a daemon answers at {path} already; stop it first"):
            start(path)
        assert ask(path, {"do": "echo"})


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(Trouble, match=f"{path} is no socket; move it away"):
        start(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("way", ["file/control.sock", "x" * 200])
def test_where_no_socket_can_be_made(tmp_path: Path, way: str) -> None:
    """Below a file; and 107 bytes are all that an address of a socket can hold."""
    (tmp_path / "file").touch()
    with pytest.raises(Trouble, match=r"the control socket .* cannot be made: .*; run as root, or"):
        start(tmp_path / way)


# Asking


def test_nobody_answers(path: Path) -> None:
    with pytest.raises(Trouble, match=f"no daemon answers at {path}; start it: systemctl start"):
        ask(path, {"do": "echo"})
    assert not poke(path).is_running
    with closing(socket.socket(socket.AF_UNIX)) as killed:
        killed.bind(str(path))
    with pytest.raises(Trouble, match="no daemon answers"):
        ask(path, {"do": "echo"})


@pytest.mark.parametrize("answer", [b"", b"\n"])
def test_an_answer_that_is_none(path: Path, answer: bytes) -> None:
    with answering(path, answer), pytest.raises(Trouble, match=r"at .* gave no answer; ask again"):
        ask(path, {"do": "echo"})


@pytest.mark.parametrize(
    "answer",
    [
        *(b"hello\n", b"[7]\n", b"7\n", b'{"ok": true', b"\xff\xfe\n", b"[" * 60_000 + b"\n"),
        *(b"{}\n", b'{"ok": 1}\n', b'{"ok": false}\n', b'{"ok": false, "error": [1]}\n'),
        b'{"ok": true, "n": ' + b"9" * 5000 + b"}\n",
    ],
    ids=lambda answer: answer[:24].decode(errors="replace").strip(),
)
def test_an_answer_that_cannot_be_read(path: Path, answer: bytes) -> None:
    unreadable = r"cannot be read; is it of another version\? systemctl restart spa-server"
    with answering(path, answer), pytest.raises(Trouble, match=unreadable):
        ask(path, {"do": "echo"})


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Something else at the daemon's place, that gives one answer."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(MAX_LINE)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_the_registry_s_tool_speaks_the_same(path: Path) -> None:
    """keys/poke.py asks by itself, for the keys know nothing of the server."""
    with serving(path):
        poked = poke(path)
    assert poked.is_running
    assert poked.problem == "ask one of: echo, fail, large"


def test_root_always_finds_a_place(path: Path) -> None:
    """Its oldest makes way for its newest. (The tests run as the daemon's user.)"""
    with serving(path), ExitStack() as held:
        waiting = [held.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(OF_ROOT + 8)]
        for each in waiting:
            each.connect(str(path))
            each.send(b'{"do"')
            each.settimeout(5)
        assert ask(path, {"do": "echo"}) == {"heard": {"do": "echo"}}
        assert [each.recv(1) for each in waiting[:8]] == [b""] * 8


def test_an_answer_that_is_not_read_keeps_no_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_STALLS_AFTER_S", 0.2)
    with serving(path), closing(socket.socket(socket.AF_UNIX)) as unread:
        unread.connect(str(path))
        unread.sendall(b'{"do": "large"}\n')
        time.sleep(0.6)
        unread.settimeout(5)
        got = 0
        while part := unread.recv(1 << 20):
            got += len(part)
        assert 0 < got < LARGE


def test_a_large_answer_is_whole_however_slowly_it_is_read(path: Path) -> None:
    with serving(path), closing(socket.socket(socket.AF_UNIX)) as slow:
        slow.connect(str(path))
        slow.sendall(b'{"do": "large"}\n')
        slow.settimeout(5)
        got = b""
        while part := slow.recv(1 << 18):
            got += part
            time.sleep(0.02)
        assert len(json.loads(got)["x"]) == LARGE


def test_whoever_connects_waits_while_others_are_before_them(tmp_path: Path) -> None:
    """connect(2) of a socket that does not block would fail at once: the queue is full."""
    path = tmp_path / "control.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener, ExitStack() as held:
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(2):
            before = held.enter_context(socket.socket(socket.AF_UNIX))
            before.setblocking(False)
            with suppress(BlockingIOError):
                before.connect(str(path))

        def serve() -> None:
            time.sleep(0.3)
            listener.accept()[0].close()
            with listener.accept()[0] as connection:
                connection.recv(MAX_LINE)
                connection.sendall(b'{"ok": true, "heard": 1}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        assert ask(path, {"do": "echo"}) == {"heard": 1}
        thread.join()
