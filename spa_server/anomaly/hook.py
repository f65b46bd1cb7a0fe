"""The hook: a program of the operator's that is told of each anomaly, as JSON on its stdin.

It is started by its path, never through a shell, with nothing of the daemon's environment, without
the daemon's capability, in a session of its own; what it writes is discarded. It has a time limit,
after which it and what it started are killed. At most `at_once` run at a time and `MAX_WAITING`
events wait; further ones are dropped and counted. Whatever it does, the daemon goes on.
"""

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from spa_server.audit.record import Record

TIMEOUT_S: Final = 10.0
AT_ONCE: Final = 2
MAX_WAITING: Final = 32
_LOOK_UP_S: Final = 0.2
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


class Hook:
    """A program to be told.

    `report` is called with words and whether it fails, when it begins to and when it works again,
    once each, from another thread.
    """

    def __init__(
        self,
        program: Path,
        report: Callable[[str, bool], None],
        *,
        timeout_s: float = TIMEOUT_S,
        at_once: int = AT_ONCE,
    ) -> None:
        self._program = program
        self._report = report
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._waiting = 0
        self._room = MAX_WAITING + at_once
        self._dropped = 0
        self._is_failing = False
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(at_once, "hook")

    def tell(self, record: Record) -> None:
        """Tells of an event, soon; returns at once and raises nothing."""
        if self._closing.is_set():
            return
        with self._lock:
            if self._waiting >= self._room:
                self._dropped += 1
                return
            self._waiting += 1
        self._pool.submit(self._tell, record)

    def close(self) -> None:
        """Nobody is told any more; what runs is killed. Takes a fraction of a second."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _tell(self, record: Record) -> None:
        try:
            problem = self._run(msgspec.json.encode(record) + b"\n")
        except UnicodeEncodeError:
            problem = "was not told of an event whose text is none"
        except OSError as error:
            problem = f"cannot be started: {(error.strerror or str(error)).lower()}"
        with self._lock:
            self._waiting -= 1
            dropped, self._dropped = self._dropped, 0
            is_failing = problem is not None or dropped > 0
            has_changed = is_failing != self._is_failing
            self._is_failing = is_failing
        if has_changed and not self._closing.is_set():
            self._report(self._words(problem, dropped), is_failing)

    def _run(self, event: bytes) -> str | None:
        """Runs the program for one event; what went wrong. Raises OSError."""
        _drop_capabilities()
        process = subprocess.Popen(
            [self._program],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        ends_at_s = time.monotonic() + self._timeout_s
        unsent: bytes | None = event
        while not self._closing.is_set() and time.monotonic() < ends_at_s:
            try:
                process.communicate(unsent, timeout=_LOOK_UP_S)
            except subprocess.TimeoutExpired:
                unsent = None  # it goes on with what it was given
                continue
            return _what_went_wrong(process.returncode)
        _kill(process)
        return f"did not end within {self._timeout_s:g} s and was killed"

    def _words(self, problem: str | None, dropped: int) -> str:
        words = [f"the hook {self._program} {problem}"] if problem else []
        words += [f"{dropped} events were not told to the hook: it is too slow"] if dropped else []
        return "; ".join(words) or f"the hook {self._program} works again"


def _what_went_wrong(status: int) -> str | None:
    if status < 0:
        return f"was ended by signal {-status}"
    return f"ended with exit status {status}" if status else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a program that has not been waited for, and what it started, where that stayed with it.

    Its number is nobody else's before it is waited for.
    """
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_LOOK_UP_S)


def _drop_capabilities() -> None:
    """What this thread starts cannot do what the daemon can: capabilities are a thread's own.

    As root there is nothing to drop: the program runs as root, too. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "its capabilities cannot be dropped")
