"""The control socket: one line of JSON asks, one line answers.

    {"do": "holes"}                      -> {"ok": true, "holes": [...]}
    {"do": "close", "grants": [3, 4]}    -> {"ok": true, "closed": 2}
    anything that cannot be done         -> {"ok": false, "error": "what went wrong"}

It is a UNIX socket of mode 0660: whoever may open it may ask, except for what decides about the
gate itself, which only root may and the daemon's own user. What a request carries under `by` is
what its program says of who runs it; whose it is, the kernel says (keys/actor.py). Requests that
only look cost the daemon one line; none of them waits for anything, but for those that read
files: these are answered in a thread, one at a time. Of one user so many are answered at once,
and the next is told to come again: a member of the group who floods it takes neither the daemon's
descriptors nor root's place.
"""

import asyncio
import json
import os
import shutil
import socket
import stat
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from keys.actor import Actor
from keys.answerline import read_line
from keys.text import printable
from keys.trouble import Trouble

MAX_LINE: Final = 64 * 1024
TIMEOUT_S: Final = 5.0
_MAX_ANSWER: Final = 64 << 20  # 100,000 grants take half of it
_ANSWER_WITHIN_S: Final = 60.0
_GROUP: Final = "spa"
_CLIENTS_OF_A_USER: Final = 16
_CLIENTS: Final = 64
# How many the kernel lets wait, and so how many are accepted at one go.
_BACKLOG: Final = 32
_PEER = struct.Struct("=iII")  # struct ucred: process, user, group
_BUSY: Final = {"ok": False, "error": "too many ask at once; try again in a moment"}


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
        self._server: asyncio.Server | None = None
        self._clients: Counter[int] = Counter()

    async def start(self) -> None:
        """Raises Trouble when another daemon answers there already, or the path cannot be had."""
        self._make_way()
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            old = os.umask(0o117)
            try:
                self._server = await asyncio.start_unix_server(
                    self._serve, str(self._path), limit=MAX_LINE, backlog=_BACKLOG
                )
            finally:
                os.umask(old)
        except OSError as error:
            what = (error.strerror or str(error)).lower()
            raise Trouble(
                f"the control socket {self._path} cannot be made: {what}",
                "run as root, or set `control` in server.toml",
            ) from None
        self._give_to_group()

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

    async def stop(self) -> None:
        """Closes the socket and takes it away."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = _user_of(writer)
        if self._clients[user] >= _CLIENTS_OF_A_USER or self._clients.total() >= _CLIENTS:
            writer.write(json.dumps(_BUSY).encode() + b"\n")
            writer.close()
            return
        self._clients[user] += 1
        writer.transport.set_write_buffer_limits(0)  # `drain` waits until all of it is written
        try:
            with suppress(OSError, ValueError, asyncio.TimeoutError):
                async with asyncio.timeout(TIMEOUT_S):
                    line = await reader.readline()
                async with asyncio.timeout(_ANSWER_WITHIN_S):  # while knocks have the loop
                    writer.write(json.dumps(await self._answer(line, user)).encode() + b"\n")
                    await writer.drain()
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()  # it did not read its answer, and would never be gone
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        finally:
            self._clients[user] -= 1

    async def _answer(self, line: bytes, user: int) -> dict[str, Any]:
        known = {**self._handlers, **self._readers}
        try:
            request = Request(json.loads(line), user)
            handler = known[request["do"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"ok": False, "error": f"ask one of: {', '.join(known)}"}
        try:
            if user not in {0, os.geteuid()} and self._is_roots(request):
                return {"ok": False, "error": "that is root's alone to ask; run this as root"}
            if request["do"] in self._readers:
                loop = asyncio.get_running_loop()
                return {"ok": True, **await loop.run_in_executor(self._thread, handler, request)}
            return {"ok": True, **handler(request)}
        except Exception as error:  # whatever a request brings up, the daemon lives
            return {"ok": False, "error": str(error)}


def _user_of(writer: asyncio.StreamWriter) -> int:
    """Who is at the other end (SO_PEERCRED, unix(7))."""
    peer = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    user: int = _PEER.unpack(credentials)[1]
    return user


class NoDaemon(Trouble):
    """Nobody answers at the control socket."""


class Answer(dict[str, Any]):
    """What a daemon answered. What it lacks is trouble with that daemon, and no bug in here."""

    def __missing__(self, key: str) -> Any:
        raise Trouble(
            f"the daemon's answer lacks {printable(key)!r}",
            "is it another version? systemctl restart spa-server",
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
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
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
    try:
        answer = json.loads(line, object_hook=Answer)
        if not isinstance(answer, Answer):
            raise TypeError
    except (ValueError, TypeError, RecursionError):
        raise Trouble(
            f"the daemon at {path} gave no answer", "see its record: spa-server audit"
        ) from None
    if not answer.pop("ok", False):
        raise DaemonRefused(f"the daemon says: {answer.get('error', 'no')}")
    return answer
