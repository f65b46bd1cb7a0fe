"""One line from a socket, of a size and in a time that are bounded, whoever is at the other end."""

import socket
import time

_AT_ONCE = 1 << 16


class TooLong(OSError):
    """The line is longer than any answer."""


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
