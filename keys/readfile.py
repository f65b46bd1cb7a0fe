"""Reading a file that somebody named: a regular file, or a pipe, and never more than it may be.

`/dev/zero` has no end, and another device may do more than be read.
"""

import os
import stat
from pathlib import Path
from typing import Final

MAX_SIZE: Final = 16 << 20


class Unreadable(OSError):
    """What is there is no file, or is larger than any file of its kind."""


def read_file(path: Path, most: int = MAX_SIZE) -> bytes:
    """Its bytes, `most` at most. A pipe is read to its end, so that `<(command)` works.

    Raises OSError; Unreadable for a device or a socket, and for what is too large.
    """
    _check_kind(path.stat().st_mode)  # before it is opened: that alone may have effects
    with path.open("rb") as file:
        _check_kind(os.fstat(file.fileno()).st_mode)
        content = file.read(most + 1)
    if len(content) > most:
        raise Unreadable(f"larger than {most >> 10} KiB")
    return content


def read_plain(path: Path, most: int = MAX_SIZE) -> bytes:
    """The same of a regular file only, for a directory where another may put things.

    Nobody waits there for whoever writes into a pipe, not even where it takes the place of a file
    just now. Raises OSError; Unreadable for anything else, a link among it.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable("is no file")
        content = file.read(most + 1)
    if len(content) > most:
        raise Unreadable(f"larger than {most >> 10} KiB")
    return content


def _check_kind(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise Unreadable("is a directory")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise Unreadable("is no file but a device or a socket")
