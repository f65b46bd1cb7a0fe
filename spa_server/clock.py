"""The daemon's one clock: wall time, monotonic time, and this boot's name.

Everything else is handed a time. Python's monotonic clock is CLOCK_MONOTONIC, which the kernel's
set timeouts follow too; the wall clock may be set at any moment, forwards or backwards.
"""

import ctypes
import errno
import os
import time
import uuid
from pathlib import Path
from typing import Final

_TFD_TIMER_ABSTIME: Final = 1
_TFD_TIMER_CANCEL_ON_SET: Final = 2
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BOOT_ID_OF_UNIT: Final = "SPA_BOOT_ID"


def now_us() -> int:
    """Wall time in microseconds since the Unix epoch."""
    return time.time_ns() // 1000


def monotonic_s() -> float:
    """Seconds since some point of this boot; never set, the same for every process."""
    return time.monotonic()


def boot_floor_us(freshness_s: float) -> int:
    """The latest stamp that could have been fresh before this boot, by the clock as it is now.

    `freshness_s` is how far ahead of this clock a fresh request may be stamped.
    """
    since_boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return (time.time_ns() - since_boot_ns) // 1000 + round(freshness_s * 1_000_000)


def offset_us() -> int:
    """Wall time less monotonic time: it moves only when the wall clock is set (or slewed)."""
    return (time.time_ns() - time.monotonic_ns()) // 1000


def boot_id() -> str:
    """The random name of this boot: the kernel's, or in a system container the container's.

    What runs a container puts a file of its own over the kernel's. A unit that is kept from /proc
    sees the kernel's again, and not what root sees: systemd tells it the name (spa-server.service).
    """
    if told := os.environ.get(_BOOT_ID_OF_UNIT):
        return str(uuid.UUID(told))
    return _BOOT_ID.read_text(encoding="ascii").strip()


class ClockWatch:
    """Becomes readable when somebody sets the wall clock (timerfd_create(2), CANCEL_ON_SET)."""

    _FAR_S = 10**10

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._arm()

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._fd

    def drain(self) -> None:
        """Takes note, and waits for the next time."""
        try:
            os.read(self._fd, 8)
        except OSError as error:
            if error.errno not in (errno.ECANCELED, errno.EAGAIN):
                raise
        self._arm()

    def close(self) -> None:
        """Stops watching."""
        os.close(self._fd)

    def _arm(self) -> None:
        """A timer that is never due, on the wall clock: setting the clock cancels it.

        Where it was set again since the last reading, that is what the kernel says, and the timer
        is armed all the same: whoever drains looks at the clock afterwards.
        """
        spec = (ctypes.c_long * 4)(0, 0, self._FAR_S, 0)
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        if self._libc.timerfd_settime(self._fd, flags, ctypes.byref(spec), None) < 0:
            number = ctypes.get_errno()
            if number != errno.ECANCELED:
                raise OSError(number, "timerfd_settime")
