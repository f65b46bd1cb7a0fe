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


def _check_kind(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise Unreadable("is a directory")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise Unreadable("is no file but a device or a socket")
