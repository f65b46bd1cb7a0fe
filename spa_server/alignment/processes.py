"""Whose a socket is: the processes that hold it, as /proc tells them.

A process without privileges sees its own sockets only; what it cannot see has no entry.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keys.text import printable

_PROC: Final = Path("/proc")
_SOCKET: Final = "socket:["
_DELETED: Final = " (deleted)"
_STARTED: Final = 19  # the 22nd field of /proc/PID/stat, counted behind the name


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its name, and the path of its program (None: it may not be read).

    `started` orders processes by their age, in ticks since the boot.
    """

    pid: int
    name: str
    program: str | None
    started: int = 0


def holders(inodes: Collection[int]) -> dict[int, Process]:
    """The process that has each socket, of several the one that began first.

    That is the one that made it, or took it over: systemd for a service that it activates by its
    socket, the master of workers that inherited it.
    """
    wanted = {f"{_SOCKET}{inode}]": inode for inode in inodes if inode}
    found: dict[int, Process] = {}
    for pid in _pids() if wanted else ():
        held = {wanted[name] for name in _sockets_of(pid) if name in wanted}
        process = _process(pid) if held else None
        if process is None:
            continue
        for inode in held:
            known = found.get(inode)
            if known is None or process.started < known.started:
                found[inode] = process
    return found


def _pids() -> Iterator[str]:
    with os.scandir(_PROC) as entries:
        yield from (entry.name for entry in entries if entry.name.isdecimal())


def _sockets_of(pid: str) -> Iterator[str]:
    """What its descriptors of sockets are called; none where it is gone or another user's."""
    directory = f"{_PROC}/{pid}/fd"
    with suppress(OSError):
        for descriptor in os.listdir(directory):  # noqa: PTH208 - a Path for each takes ten times as long
            with suppress(OSError):
                name = os.readlink(f"{directory}/{descriptor}")  # noqa: PTH115 - likewise
                if name.startswith(_SOCKET):
                    yield name


def _process(pid: str) -> Process | None:
    """None where it has just ended."""
    try:
        stat = (_PROC / pid / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    program = None
    with suppress(OSError):
        program = printable(str((_PROC / pid / "exe").readlink())).removesuffix(_DELETED)
    return Process(int(pid), printable(name), program, int(rest.split()[_STARTED]))
