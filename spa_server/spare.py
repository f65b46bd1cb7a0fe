"""Descriptors kept in reserve: what must be done can be done when a flood has used up the others.

To put the gate back takes a dozen: nft is a process with pipes, and the kernel is asked for routes
and sockets over sockets that are opened for it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_ENOUGH: Final = 24


class SpareDescriptors:
    """So many descriptors of this process that stand for nothing. Raises OSError."""

    def __init__(self, count: int = _ENOUGH) -> None:
        self._count = count
        self._held: list[int] = []
        self._fill()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Meanwhile they are free for whoever opens something first."""
        self.close()
        try:
            yield
        finally:
            with suppress(OSError):  # taken meanwhile: as many as there are
                self._fill()

    def close(self) -> None:
        """Twice is no error."""
        while self._held:
            os.close(self._held.pop())

    def _fill(self) -> None:
        while len(self._held) < self._count:
            self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
