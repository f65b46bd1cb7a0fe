"""One line from a socket, of a size and in a time that are bounded, whoever is at the other end."""

import socket
import struct
import time
from pathlib import Path

_AT_ONCE = 1 << 16
_TIMEVAL = struct.Struct("@ll")  # struct timeval, of SO_SNDTIMEO (socket(7))


class TooLong(OSError):
    """The line is longer than any answer."""


def connect(connection: socket.socket, path: Path, within_s: float) -> None:
    """Connects to a UNIX socket, and waits for as long as others are before it.

    A socket with a timeout of Python's does not: connect(2) fails at once for one that does not
    block, where the queue of those that wait is full. Raises OSError.
    """
    connection.settimeout(None)
    timeval = _TIMEVAL.pack(int(within_s), int(within_s % 1 * 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    try:
        connection.connect(str(path))
    except BlockingIOError:
        raise TimeoutError("timed out: too many ask at once") from None
    connection.settimeout(within_s)


def read_line(connection: socket.socket, most: int, within_s: float) -> bytes:
    """Up to the first line end, or all there is. Raises OSError: TimeoutError when the time is over
    in all, and not between two bytes only; TooLong for more than `most` bytes."""
    ends_at_s = time.monotonic() + within_s
    parts: list[bytes] = []
    size = 0
    while not (parts and b"\n" in parts[-1]):
        left_s = ends_at_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left_s)
        part = connection.recv(_AT_ONCE)
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > most:
            raise TooLong("its answer is longer than any answer")
    return b"".join(parts).partition(b"\n")[0]
