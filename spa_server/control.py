"""The control socket: one line of JSON asks, one line answers.

    {"do": "holes"}                      -> {"ok": true, "holes": [...]}
    {"do": "close", "grants": [3, 4]}    -> {"ok": true, "closed": 2}
    anything that cannot be done         -> {"ok": false, "error": "what went wrong"}

It is a UNIX socket of mode 0660: whoever may open it may ask, except for what decides about the
gate itself, which only root may and the daemon's own user. What a request carries under `by` is
what its program says of who runs it; whose it is, the kernel says (keys/actor.py). Requests that
only look cost the daemon one line; none of them waits for anything, but for those that read
files: these are answered in a thread, one at a time. A member of the group who floods it takes
neither the daemon's descriptors, nor root's place (spa_server/places.py), nor the time in which
knocks are judged (spa_server/turns.py).
"""

import asyncio
import json
import os
import shutil
import socket
import stat
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from keys.actor import Actor
from keys.answerline import connect, read_line
from keys.text import printable
from keys.trouble import Trouble
from spa_server import answers
from spa_server.places import Place, Places
from spa_server.turns import Turns

MAX_LINE: Final = 64 * 1024
TIMEOUT_S: Final = 5.0
_MAX_ANSWER: Final = 64 << 20  # 100,000 grants take half of it
_ANSWER_WITHIN_S: Final = 60.0
_GROUP: Final = "spa"
# What goes out in one piece, and for how long whoever asked may leave it lying.
_PIECE: Final = 64 * 1024
_STALLS_AFTER_S: Final = 10.0
# How many the kernel lets wait, how many are accepted at one go, and the pause after that many:
# whoever connects as fast as they can takes a small part of the daemon's time.
_BACKLOG: Final = 32
_PAUSE_S: Final = 0.01
_NO_DESCRIPTORS_S: Final = 0.2
_MEMBERS_REST: Final = 4.0  # so members have a fifth of the daemon's time, all together
_PEER = struct.Struct("=iII")  # struct ucred: process, user, group
_BUSY: Final = b'{"ok": false, "error": "too many ask at once; try again in a moment"}\n'


class Request(dict[str, Any]):
    """What was asked, and by whom."""

    def __init__(self, asked: dict[str, Any], uid: int) -> None:
        super().__init__(asked)
        self.by = Actor.of_request(self.pop("by", None), uid)


Handler = Callable[[Request], dict[str, Any]]


class ControlServer:
    """Answers requests on a UNIX socket, each by the handler that its `do` names."""

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        readers: Mapping[str, Handler] | None = None,
        is_roots: Callable[[dict[str, Any]], bool] = lambda _request: False,
    ) -> None:
        """`readers` touch nothing of the daemon's, and are called in a thread. `is_roots` tells
        whether a request is for root, and the daemon's own user, alone to make."""
        self._path = path
        self._handlers = handlers
        self._readers = readers or {}
        self._thread = ThreadPoolExecutor(1, "control")
        self._is_roots = is_roots
        self._trusted = frozenset({0, os.geteuid()})
        self._places = Places(self._trusted)
        self._reads, self._acts = Turns(rests=0), Turns(rests=_MEMBERS_REST)
        self._listener: socket.socket | None = None
        self._is_silent = False
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises Trouble when another daemon answers there already, or the path cannot be had."""
        self._make_way()
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            old = os.umask(0o117)
            try:
                self._listen()
            finally:
                os.umask(old)
        except OSError as error:
            what = (error.strerror or str(error)).lower()
            raise Trouble(
                f"the control socket {self._path} cannot be made: {what}",
                "run as root, or set `control` in server.toml",
            ) from None
        self._give_to_group()

    def _listen(self) -> None:
        with ExitStack() as on_error:
            listener = on_error.enter_context(socket.socket(socket.AF_UNIX))
            listener.setblocking(False)
            listener.bind(str(self._path))
            listener.listen(_BACKLOG)
            on_error.pop_all()
        self._listener = listener
        self._accept_again()

    def _make_way(self) -> None:
        """A socket that nobody answers is what a killed daemon left behind."""
        if not self._path.exists():
            return
        if not stat.S_ISSOCK(self._path.lstat().st_mode):
            raise Trouble(f"{self._path} is no socket", "move it away, or set `control`")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._path))
            except OSError:
                self._path.unlink(missing_ok=True)
                return
        raise Trouble(f"a daemon answers at {self._path} already", "stop it first")

    def _give_to_group(self) -> None:
        if os.geteuid() == 0:
            with suppress(LookupError, OSError):
                shutil.chown(self._path, group=_GROUP)

    async def fall_silent(self) -> None:
        """Nobody is answered any more, nor let go: that something is here still shows."""
        self._is_silent = True
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def stop(self) -> None:
        """Closes the socket and takes it away. Whoever waits for an answer gets none."""
        await self.fall_silent()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _accept_again(self) -> None:
        if self._listener is not None and not self._is_silent:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        pause_s = _PAUSE_S
        for _ in range(_BACKLOG):
            try:
                connection, _address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError:  # no descriptor is left: it waits, and there may be one soon
                pause_s = _NO_DESCRIPTORS_S
                break
            self._begin(connection)
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(pause_s, self._accept_again)

    def _begin(self, connection: socket.socket) -> None:
        """Answers it in a task of its own, or says at once that there is no place for it."""
        connection.setblocking(False)
        user = _user_of(connection)
        task: asyncio.Task[None] | None = None
        place = self._places.take(user, lambda: task is not None and task.cancel())
        if place is None:
            with connection, suppress(OSError):
                connection.send(_BUSY)
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection, user))
        self._answering.add(task)
        task.add_done_callback(lambda over: self._over(over, connection, place))

    def _over(self, task: asyncio.Task[None], connection: socket.socket, place: Place) -> None:
        self._answering.discard(task)
        self._places.leave(place)
        connection.close()

    async def _serve(self, connection: socket.socket, user: int) -> None:
        with suppress(OSError, ValueError, asyncio.TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                line = await _read_question(connection)
            async with asyncio.timeout(_ANSWER_WITHIN_S):  # while knocks have the loop
                answer = json.dumps(await self._answer(line, user)).encode() + b"\n"
                await _send(connection, answer)

    async def _answer(self, line: bytes, user: int) -> dict[str, Any]:
        known = {**self._handlers, **self._readers}
        try:
            request = Request(json.loads(line), user)
            handler = known[request["do"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"ok": False, "error": f"ask one of: {', '.join(known)}"}
        try:
            if user not in self._trusted and self._is_roots(request):
                return {"ok": False, "error": "that is root's alone to ask; run this as root"}
            return {"ok": True, **await self._do(handler, request, user)}
        except Exception as error:  # whatever a request brings up, the daemon lives
            return {"ok": False, "error": str(error)}

    async def _do(self, handler: Handler, request: Request, user: int) -> dict[str, Any]:
        if request["do"] in self._readers:
            async with self._reads.turn(user):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._thread, handler, request)
        if user in self._trusted:
            return handler(request)
        async with self._acts.turn(user):
            return handler(request)


async def _read_question(connection: socket.socket) -> bytes:
    """Up to the first line end, or all there is. Raises ValueError for one that is too long."""
    loop = asyncio.get_running_loop()
    line = bytearray()
    while b"\n" not in line:
        if len(line) > MAX_LINE:
            raise ValueError("the question is longer than any")
        part = await loop.sock_recv(connection, MAX_LINE)
        if not part:
            if not line:
                raise ValueError("nothing was asked")
            break
        line += part
    return bytes(line.partition(b"\n")[0])


async def _send(connection: socket.socket, answer: bytes) -> None:
    """In pieces, each of which has its own time: whoever does not read one keeps no place."""
    loop = asyncio.get_running_loop()
    for start in range(0, len(answer), _PIECE):
        async with asyncio.timeout(_STALLS_AFTER_S):
            await loop.sock_sendall(connection, memoryview(answer)[start : start + _PIECE])


def _user_of(peer: socket.socket) -> int:
    """Who is at the other end (SO_PEERCRED, unix(7))."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    user: int = _PEER.unpack(credentials)[1]
    return user


class NoDaemon(Trouble):
    """Nobody answers at the control socket."""


class Unreadable(Trouble):
    """Whoever answered is no daemon of this version."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the answer of the daemon at {path} cannot be read",
            "is it of another version? systemctl restart spa-server",
        )


class DaemonRefused(Trouble):
    """The daemon was asked, and did not do it."""


def ask(path: Path, request: dict[str, Any], *, within_s: float | None = None) -> dict[str, Any]:
    """The daemon's answer to one request. Raises NoDaemon, or Trouble when it says no.

    `within_s` is for the whole answer, however it drips.
    """
    asked = {**request, "by": Actor.here().detail}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connect(connection, path, TIMEOUT_S)
            with suppress(BrokenPipeError):  # it was refused unread, and the answer says why
                connection.sendall(json.dumps(asked).encode() + b"\n")
            line = read_line(connection, _MAX_ANSWER, within_s or _ANSWER_WITHIN_S)
    except (FileNotFoundError, ConnectionRefusedError):
        hint = "start it: systemctl start spa-server"
        raise NoDaemon(f"no daemon answers at {path}", hint) from None
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise Trouble(
            f"the daemon cannot be asked at {path}: {what}", "run as root or in the group spa"
        ) from None
    if not line:
        hint = "ask again, or see its record: spa-server audit"
        raise Trouble(f"the daemon at {path} gave no answer", hint)
    return _read_answer(path, str(request.get("do")), line)


def _read_answer(path: Path, do: str, line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise TypeError
        is_done = answer.pop("ok")
        if not isinstance(is_done, bool):
            raise TypeError
        error = "" if is_done else answer["error"]
        if not isinstance(error, str):
            raise TypeError
        if is_done:
            answers.must_fit(do, answer)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Unreadable(path) from None
    if not is_done:
        raise DaemonRefused(f"the daemon says: {printable(error)}")
    return answer
