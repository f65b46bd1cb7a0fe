"""Other programs that root or the daemon runs: where they are found, and what they are told."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from keys.owner import owner_of
from keys.trouble import Trouble

_USUAL: Final = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
ENVIRONMENT: Final = {"PATH": ":".join(_USUAL), "LC_ALL": "C"}  # and nothing of the caller's


def find(name: str) -> str:
    """The program of this name, by PATH.

    Root leaves out the current directory, and each where somebody else could put a program. Raises
    FileNotFoundError.
    """
    for directory in _trusted():
        program = directory / name
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _trusted() -> Iterator[Path]:
    for text in os.get_exec_path():
        directory = Path(text)
        if directory.is_absolute() and (os.geteuid() != 0 or _is_roots(directory)):
            yield directory


def _is_roots(directory: Path) -> bool:
    try:
        return owner_of(directory) is None and directory.is_dir()
    except (OSError, Trouble):
        return False
