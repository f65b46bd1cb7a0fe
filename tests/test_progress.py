"""What is under way is shown on a terminal: on one line, which is gone at the end."""

import os
import pty
import subprocess
import sys
from contextlib import suppress

from keys.progress import Progress, underway

CODE = """
import sys, time
from keys.progress import underway
with underway("enrolled", 100, shows=sys.argv[1] == "yes") as progress:
    for _ in progress.counted(range(100)):
        time.sleep(float(sys.argv[2]) / 100)
print(progress.count)
"""


def shown(*, shows: str = "yes", takes_s: float = 1.6) -> tuple[str, str]:
    """What a program prints on its terminal, and on its standard output."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-c", CODE, shows, str(takes_s)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=theirs, text=True) as running:
        os.close(theirs)
        out = running.communicate()[0]
    told = b""
    with suppress(OSError):  # EIO: nobody holds the other end any more
        while more := os.read(ours, 65_536):
            told += more
    os.close(ours)
    return told.decode(), out


def test_a_terminal_sees_how_far_it_is_and_then_nothing_of_it() -> None:
    told, out = shown()
    assert out == "100\n"
    assert " of 100, 1 s" in told
    assert told.endswith("\r\x1b[K")
    assert "\n" not in told


def test_what_is_soon_over_or_not_to_be_seen_is_not_shown() -> None:
    assert shown(takes_s=0) == ("", "100\n")
    assert shown(shows="no") == ("", "100\n")


def test_where_there_is_no_terminal_it_only_counts() -> None:
    with underway("read") as progress:
        assert list(progress.counted("abc")) == ["a", "b", "c"]
    assert progress.count == 3


def test_without_an_end_that_is_known_it_says_what_it_can() -> None:
    progress = Progress("reading", None)
    assert str(progress) == "reading: 0 s"
    progress.count = 1234
    assert str(progress) == "reading: 1,234, 0 s"
