"""Makes Python say that it runs on another system, and takes away what is not there.

As a plugin of pytest (`PRETEND=win32 pytest -p tests.pretending`) for tests that run elsewhere, or
by `pretend` in a process of its own. The libraries are imported before: it is this project's code
that is to be shown another system, not theirs. What a kernel does stays Linux's.
"""

import getpass
import os
import signal
import socket
import sys
import time
from typing import Final

import click.shell_completion
import click.testing
import hypothesis
import msgspec
import nacl.bindings
import nacl.pwhash
import pytest

_LIBRARIES: Final = (getpass, click, hypothesis, msgspec, nacl)

# The standard library's documentation: "Availability".
_NOT_ON_WINDOWS: Final[dict[object, tuple[str, ...]]] = {
    os: (
        *("chown", "fchmod", "fchown", "fork", "getegid", "geteuid", "getgid", "getpgid"),
        *("getuid", "killpg", "lchown", "mkfifo", "mknod", "openpty", "setsid", "uname"),
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "WNOHANG"),
    ),
    signal: ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGTSTP", "sigwait"),
    socket: ("AF_UNIX", "AF_NETLINK", "AF_PACKET", "MSG_ERRQUEUE", "SO_BINDTODEVICE"),
    time: ("clock_gettime",),
}
_NOT_ON_MACOS: Final[dict[object, tuple[str, ...]]] = {
    os: ("O_PATH", "O_TMPFILE", "memfd_create", "eventfd", "setns", "unshare", "sched_setaffinity"),
    socket: ("AF_NETLINK", "AF_PACKET", "MSG_ERRQUEUE", "SO_BINDTODEVICE", "SO_MARK"),
    time: ("CLOCK_BOOTTIME",),
}
_MODULES_NOT_ON_WINDOWS: Final = (
    *("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"),
    *("pyroute2", "scapy", "rich"),
)
_MODULES_NOT_ON_MACOS: Final = ("spwd", "ossaudiodev", "pyroute2", "scapy", "rich")


def pretend(platform: str) -> None:
    """From now on this process runs on `darwin` or `win32`, as far as Python code can tell."""
    on_windows = platform == "win32"
    for module, names in (_NOT_ON_WINDOWS if on_windows else _NOT_ON_MACOS).items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in _MODULES_NOT_ON_WINDOWS if on_windows else _MODULES_NOT_ON_MACOS:
        sys.modules[name] = None  # type: ignore[assignment] - the way to make an import fail
    if on_windows:
        socket.socketpair = _socketpair  # type: ignore[assignment] - as the library does it there
    sys.platform = platform


def _socketpair(*_: object) -> tuple[socket.socket, socket.socket]:
    """Windows has none: two ends of a TCP connection take its place."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def pytest_collection(session: pytest.Session) -> None:  # noqa: ARG001 - pytest's own
    """Before the first test, and what it tests, is imported."""
    pretend(os.environ["PRETEND"])
