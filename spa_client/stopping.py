"""Ctrl-C, and the system's wish that this program ends, as something to be waited for.

    with Stopping() as stopping:
        while not stopping.wait(1.0):
            ...

Inside the block neither ends the program by itself: what is open can be closed first. It works from
the main thread alone, as Python's signals do, on Windows too. Behind the block a second Ctrl-C ends
the program as ever.
"""

import contextlib
import select
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, Self

_NAMES: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class Stopping:
    """Waits for the end. It can be given to a selector, which it wakes for every signal."""

    def __init__(self) -> None:
        self.asked = False
        self._raises = False
        self._restore: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> Self:
        self._heard, self._waker = socket.socketpair()
        self._heard.setblocking(False)
        self._waker.setblocking(False)
        self._before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for each in signals():
            self._restore.append((each, signal.signal(each, self._hear)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._restore:
            signal.signal(*self._restore.pop())
        signal.set_wakeup_fd(self._before)
        self._heard.close()
        self._waker.close()

    def fileno(self) -> int:
        """For a selector."""
        return self._heard.fileno()

    def wait(self, seconds: float | None) -> bool:
        """Whether the end was asked for, at the latest after so many seconds (None: no limit)."""
        if not self.asked:
            select.select([self._heard], [], [], seconds)
            with contextlib.suppress(BlockingIOError):
                self._heard.recv(4096)  # also of a signal that is somebody else's
        return self.asked

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, KeyboardInterrupt is raised for both, at once where the end was asked before."""
        self._raises = True
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def _hear(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's own
        self.asked = True
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt


def signals() -> list[signal.Signals]:
    """Those that ask for the end, unless whoever started this program had it ignore them."""
    there = (getattr(signal, name, None) for name in _NAMES)
    return [each for each in there if each and signal.getsignal(each) is not signal.SIG_IGN]
