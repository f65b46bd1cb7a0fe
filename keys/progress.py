"""How far a command has come, on a terminal: one line on stderr, which is gone at the end.

    with underway("enrolled", total=len(entries)) as progress:
        for entry in entries:
            enroll(entry)
            progress.count += 1

Nothing is shown in the first second, nor where stderr is no terminal: what goes to files and other
programs is the same with it and without. Nothing else may be written meanwhile.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

_FIRST_AFTER_S: Final = 1.0
_EVERY_S: Final = 0.25
_CLEAR: Final = "\r\x1b[K"

T = TypeVar("T")


class Progress:
    """`count` of what is done, raised by whoever does it; `total` None: nobody knows."""

    def __init__(self, what: str, total: int | None) -> None:
        self.count = 0
        self._what = what
        self._total = total
        self._begun_s = time.monotonic()

    def counted(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, each counted when the next is asked for."""
        for item in items:
            yield item
            self.count += 1

    def __str__(self) -> str:
        """How far it is, in one line."""
        taken = f"{time.monotonic() - self._begun_s:.0f} s"
        if self._total:
            return f"{self._what}: {self.count:,} of {self._total:,}, {taken}"
        return f"{self._what}: {self.count:,}, {taken}" if self.count else f"{self._what}: {taken}"


@contextmanager
def underway(what: str, total: int | None = None, *, shows: bool = True) -> Iterator[Progress]:
    """Shows what is under way, until the end of the block; it counts also where nothing `shows`."""
    progress = Progress(what, total)
    if not (shows and sys.stderr.isatty()):
        yield progress
        return
    over = threading.Event()
    shower = threading.Thread(target=_show, args=(progress, over), daemon=True)
    shower.start()
    try:
        yield progress
    finally:
        over.set()
        shower.join()


def _show(progress: Progress, over: threading.Event) -> None:
    if over.wait(_FIRST_AFTER_S):
        return
    while True:
        sys.stderr.write(f"{_CLEAR}{progress}")
        sys.stderr.flush()
        if over.wait(_EVERY_S):
            break
    sys.stderr.write(_CLEAR)
    sys.stderr.flush()
