"""Root in a directory that another may write: it acts there as that other.

The daemon's user owns the places of the database and of the sockets, and whoever takes the daemon
over may put links there. Checking each name before its use would be a race; instead, whatever root
does in such a directory is done with the file system rights of the directory's owner (setfsuid(2),
for one thread, which also takes CAP_DAC_OVERRIDE and its like away): a link then leads nowhere that
its maker could not go, and what is made is the owner's from its first moment.

Only file system calls belong into such a block: what is imported there is read as the other too.
"""

import os
import shlex
import stat
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from keys.trouble import Trouble

_MOST_LINKS: Final = 40
_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_UNCHANGED: Final = -1


@dataclass(frozen=True, slots=True)
class Owner:
    """A user, and the group of their directory."""

    uid: int
    gid: int


def stranger(directory: Path) -> Owner | None:
    """Whose rights root is to take on there: `owner_of` it, if this process is root's on Linux."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return None
    return owner_of(directory)


def reaches(owner: Owner, directory: Path) -> bool:
    """Whether root's directories on the way let this user through.

    Where they do not, only root gets there, and puts anything there.
    """
    with acting_as(owner):
        try:
            directory.stat()
        except PermissionError:
            return False
        except OSError:
            return True
    return True


def owner_of(directory: Path) -> Owner | None:
    """Whoever may decide what is at this path, where that is not root alone.

    It is the first on the way there that is another's: what root owns in a directory of root's can
    be changed by nobody else, nor in one that is sticky (/tmp). Links of root's are followed. None
    also where the rest of the way is not there yet. Raises OSError, and Trouble for a directory of
    root's that others may write.
    """
    here, links = Path("/"), 0
    rest = deque(directory.absolute().parts[1:])
    while rest:
        step = here / rest.popleft()
        try:
            status = step.lstat()
        except FileNotFoundError:
            return None
        if status.st_uid != 0:
            return Owner(status.st_uid, status.st_gid)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise Trouble(f"{directory} leads through too many links")
            target = step.readlink()
            rest.extendleft(reversed(target.parts[target.is_absolute() :]))
            here = Path("/") if target.is_absolute() else here
            continue
        _check_mode(step, status)
        here = step.parent.parent if step.name == ".." else step
    return None


def _check_mode(directory: Path, status: os.stat_result) -> None:
    """What root's own group may write is root's."""
    others = status.st_mode & (stat.S_IWOTH if status.st_gid == 0 else _BY_OTHERS)
    if stat.S_ISDIR(status.st_mode) and others and not status.st_mode & stat.S_ISVTX:
        hint = f"run: chmod go-w {shlex.quote(str(directory))}"
        raise Trouble(f"{directory} may be written by others than root", hint)


@contextmanager
def as_owner(path: Path) -> Iterator[None]:
    """Within the block, this thread's access to files is that of `path`'s directory's owner.

    It does nothing where that is root, or a user who cannot get there; for whoever is not root; and
    where there is no setfsuid(2). Raises OSError and Trouble.
    """
    owner = stranger(path.parent)
    if owner is None or not reaches(owner, path.parent):
        yield
        return
    with acting_as(owner):
        yield


@contextmanager
def acting_as(owner: Owner) -> Iterator[None]:
    """The same for a user who is known. One block may be in another."""
    if os.getgroups():
        os.setgroups([])  # for good: what root may, it may not by these
    before = _acting()
    try:
        _act(owner)
        yield
    finally:
        _act(before)


@cache
def _libc() -> Any:
    """For setfsuid(2), which Python does not have; a client, who never asks, need not load it."""
    import ctypes  # noqa: PLC0415 - see above

    return ctypes.CDLL(None)


def _acting() -> Owner:
    return Owner(_libc().setfsuid(_UNCHANGED), _libc().setfsgid(_UNCHANGED))


def _act(owner: Owner) -> None:
    """Neither call tells whether it succeeded: the next one does."""
    _libc().setfsgid(owner.gid)
    _libc().setfsuid(owner.uid)
    if _acting() != owner:
        raise PermissionError("the rights of another user could not be taken on")
