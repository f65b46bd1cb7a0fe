"""Ending in good order: what a program keeps while it works goes, also when it is told to stop."""

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from keys.owner import as_owner
from keys.trouble import Trouble

_ENDS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@contextmanager
def ends_in_order() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP end it as Ctrl-C does, so that it cleans up behind it."""
    before = {each: signal.signal(each, _interrupt) for each in _ENDS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Whatever of these comes within the block waits until it is over."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def working_directory(path: Path) -> Iterator[Path]:
    """A directory of this name, mode 0700, for the block. What was left there by one that was
    killed goes first.

    It is held by whoever works in it: another raises Trouble. Root makes it as the owner of the
    directory that it is in (keys/owner.py), and so has to work in it. Raises OSError.
    """
    with as_owner(path):
        if path.is_symlink() or path.is_file():
            path.unlink()
        path.mkdir(mode=0o700, exist_ok=True)
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _hold(held, path)
            _empty(path)
            path.chmod(0o700)
        except BaseException:
            os.close(held)
            raise
    try:
        yield path
    finally:
        with as_owner(path), suppress(FileNotFoundError):
            shutil.rmtree(path)
        os.close(held)


def _hold(directory: int, path: Path) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Trouble(f"another works in {path}", "wait until it is done") from None


def _empty(directory: Path) -> None:
    for each in directory.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
