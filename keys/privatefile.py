"""Files that hold a secret: written whole or not at all, and read only while they are private.

A file is made under another name in its own directory, mode 0600 from its first moment, flushed to
the disk and only then given its name. Where it must not replace another, the name is given by
link(2), which fails if somebody was faster. Windows knows no modes: there it is the directory of a
user's profile that keeps others out, and only the way of writing is the same.
"""

import contextlib
import errno
import os
import secrets
import shlex
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from keys.owner import as_owner, stranger
from keys.trouble import Trouble

MAX_SIZE: Final = 65_536
_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700
_FOR_OTHERS: Final = 0o077
_NAME_A_FILE: Final = "name the file that you mean"
_WINDOWS: Final = sys.platform == "win32"


class KeyFileError(Trouble):
    """A private file that cannot be written, read or used, and why."""


class Missing(KeyFileError):
    """There is no file of this name."""


class NotRegular(OSError):
    """What is there is not to be replaced: a device, a pipe, a directory, a link to one."""


def write(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Creates the file, and the directories it needs (mode 0700). Raises KeyFileError.

    With `overwrite` it takes the place of a regular file of this name, or of a link to one.
    """
    try:
        with new_file(path, overwrite=overwrite) as unnamed, unnamed.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise KeyFileError(f"{path} exists already", "choose another name") from None
    except NotRegular as other:
        raise KeyFileError(str(other), "choose another name, or move that away") from None
    except OSError as error:
        hint = f"see whether you may write to {path.parent}, and whether its disk has room"
        raise KeyFileError(f"{path} cannot be written: {_reason(error)}", hint) from None


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty file, mode 0600, under another name; `path` becomes its name when the block is done.

    Makes the directories that are missing (mode 0700). Where the block fails, nothing is left. In
    the block root acts as the owner of the directory (keys/owner.py), whose the file will be.
    Raises OSError; FileExistsError where the name is taken and not to be overwritten, NotRegular
    where it is not a file's. Raises Trouble for a directory of root's that others may write.
    """
    with as_owner(path):
        make_directory(path.parent)
        _check_replaceable(path, overwrite=overwrite)
        unnamed = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(unnamed, flags, _FILE_MODE)
        try:
            _give_to_owner(descriptor, path.parent)
        finally:
            os.close(descriptor)
        try:
            yield unnamed
            _name(unnamed, path, overwrite=overwrite)
        finally:
            unnamed.unlink(missing_ok=True)
        _sync_directory(path.parent)


def read(path: Path, *, service: int | None = None) -> bytes:
    """The content, 64 KiB at most. Raises KeyFileError, also for a file that others can reach.

    A pipe is read like a file, so that a secret can come from a password manager. `service` is the
    id of a user whose files root may use as well: that of the service which root operates.
    """
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()), service)
            content = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        raise Missing(f"{path} does not exist") from None
    except OSError as error:
        hint = (
            "run this as its owner or as root"
            if isinstance(error, PermissionError)
            else _NAME_A_FILE
        )
        raise KeyFileError(f"{path} cannot be read: {_reason(error)}", hint) from None
    if len(content) > MAX_SIZE:
        raise KeyFileError(f"{path} is too large for a file of this kind", _NAME_A_FILE)
    return content


def make_directory(directory: Path) -> None:
    """Makes the directory and those above it that are missing, mode 0700. Raises OSError."""
    missing = [d for d in (directory, *directory.parents) if not d.exists()]
    for each in reversed(missing):
        each.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)


def _give_to_owner(descriptor: int, directory: Path) -> None:
    """Whose the file is not yet where root had to make it, since its owner does not get there."""
    owner = stranger(directory)
    if owner is not None:
        os.fchown(descriptor, owner.uid, owner.gid)


def _check_replaceable(path: Path, *, overwrite: bool) -> None:
    """So that nobody loses /dev/null, or has a file where a pipe was, by a word in a command."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if not stat.S_ISREG(mode) and not _is_link_to_file(path):
        raise NotRegular(f"{path} is no regular file and is not replaced")


def _is_link_to_file(path: Path) -> bool:
    """A link may give way to a file, unless it stands for a device, as /dev/stdout does."""
    return path.is_symlink() and (path.is_file() or not path.exists())


def _name(unnamed: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        unnamed.replace(path)
    elif _WINDOWS:
        unnamed.rename(path)
    else:
        path.hardlink_to(unnamed)


def _sync_directory(directory: Path) -> None:
    """Without it a power cut may forget the name; not every file system can do it."""
    if _WINDOWS:
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_private(path: Path, status: os.stat_result, service: int | None) -> None:
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        raise KeyFileError(f"{path} is no file", _NAME_A_FILE)
    if sys.platform == "win32":
        return
    quoted = shlex.quote(str(path))
    own = service if service is not None and os.geteuid() == 0 else os.geteuid()
    if status.st_uid not in (own, os.geteuid(), 0):
        hint = f"run: chown {own} {quoted} && chmod 600 {quoted}"
        raise KeyFileError(f"{path} belongs to another user", hint)
    if status.st_mode & _FOR_OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        hint = f"run: chmod 600 {quoted}"
        raise KeyFileError(f"{path} is open to other users (mode {mode:04o})", hint)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
