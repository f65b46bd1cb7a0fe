"""What happens between two hosts, and programs as a person at a terminal runs them.

Loss, blocked ports and address translation are rules of nftables on the host where they happen, as
the kernels of the tests have no netem.
"""

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from integration.lab import Host

_FIRST: Final = "type filter hook prerouting priority -400;"
_FORWARD: Final = "type filter hook forward priority 0;"
_TABLE: Final = "inet wayside"


@contextmanager
def losing(percent: int, *hosts: Host) -> Iterator[None]:
    """So many of a hundred TCP and UDP packets that arrive at each of these hosts are lost."""
    rule = f"iifname != lo meta l4proto {{ tcp, udp }} numgen random mod 100 < {percent} drop"
    with _rules(_FIRST, rule, *hosts):
        yield


@contextmanager
def dropping(what: str, *hosts: Host) -> Iterator[None]:
    """What arrives at each of these hosts and matches is lost: `udp dport 62201`."""
    with _rules(_FIRST, f"iifname != lo {what} drop", *hosts):
        yield


@contextmanager
def firewall(rule: str, router: Host) -> Iterator[None]:
    """A rule for what the router forwards: `udp dport 62201 drop`."""
    with _rules(_FORWARD, rule, router):
        yield


@contextmanager
def translating(rules: str, router: Host) -> Iterator[None]:
    """Rules for the source of what leaves the router: `udp snat ip to 10.77.2.9`."""
    with _rules("type nat hook postrouting priority srcnat;", rules, router):
        yield


@contextmanager
def _rules(hook: str, rules: str, *hosts: Host) -> Iterator[None]:
    for host in hosts:
        host.run(["nft", f"table {_TABLE} {{ chain wayside {{ {hook} {rules}; }}; }}"])
    try:
        yield
    finally:
        for host in hosts:
            host.run(["nft", f"delete table {_TABLE}"])


class Terminal:
    """A program on a host with a terminal of its own, on which Ctrl-C can be typed."""

    def __init__(self, host: Host, argv: Sequence[str | Path], env: Mapping[str, str]) -> None:
        ours, theirs = pty.openpty()
        self._ours = ours
        self.output = ""
        # setsid --ctty: the terminal is the controlling one, so that it sends signals.
        command = ["ip", "netns", "exec", host.namespace, "setsid", "--wait", "--ctty"]
        self.process = subprocess.Popen(
            [*command, *map(str, argv)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **env, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(theirs)
        host.lab.at_end(self.close)

    def type(self, text: str) -> None:
        """As a person does; Ctrl-C is `\\x03`."""
        os.write(self._ours, text.encode())

    def wait_for(self, text: str, *, within_s: float = 15.0) -> str:
        """Everything shown so far, once the text is there. Raises TimeoutError."""
        deadline = time.monotonic() + within_s
        while text not in self.output:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {text!r} in {self.output!r}")
            self._read(0.1)
        return self.output

    def end(self, within_s: float = 15.0) -> int:
        """Its exit code, once it has ended by itself."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"it runs still: {self.output!r}")
            self._read(0.1)
        self._read(0.0)
        return self.process.returncode

    def hang_up(self) -> None:
        """The window is closed: the system sends SIGHUP. Twice is no error."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def close(self) -> None:
        """Ends it, if it runs still. Twice is no error."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.hang_up()

    def _read(self, seconds: float) -> None:
        while select.select([self._ours], [], [], seconds)[0]:
            data = b""
            with suppress(OSError):  # EIO: nobody has the other end open
                data = os.read(self._ours, 65536)
            if not data:
                return
            self.output += data.decode(errors="replace")
            seconds = 0.0
