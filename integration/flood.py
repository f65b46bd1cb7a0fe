"""A flood of datagrams that somebody injects on the segment of a host, from forged addresses."""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Final, Self

from integration.lab import Address, Host
from integration.wire import Injector, datagram

SWELLS_S: Final = 0.5
"""How long it takes until what was added is on the wire."""
_AT_ONCE: Final = 64


def anywhere(number: int) -> IPv4Address:
    """One of 131,072 addresses that are for tests of networks (RFC 2544)."""
    return IPv4Address(int(IPv4Address("198.18.0.0")) + number)


class Flood:
    """Junk under the tags that are added, at a rate (0: what can be sent) until the block ends."""

    def __init__(
        self,
        thief: Host,
        server: Host,
        target: Address,
        sources: Callable[[int], Address],
        rate_per_s: int = 0,
    ) -> None:
        self._injector = Injector(thief, server)
        self._target = target
        self._sources = sources
        self._rate_per_s = rate_per_s
        self._packets: list[bytes] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def add(self, tag: bytes, count: int, *, own: Address) -> None:
        """Floods under one tag more, from `count` sources; each hundredth packet from `own`."""
        junk = secrets.token_bytes(232)
        made = [
            datagram(tag + junk, own if n % 100 == 0 else self._sources(n), self._target)
            for n in range(count)
        ]
        self.send(made)
        time.sleep(SWELLS_S)

    def send(self, packets: Sequence[bytes]) -> None:
        """Floods with these packets besides."""
        self._packets = _shuffled([*self._packets, *packets])

    def _run(self) -> None:
        at = 0
        while not self._stopped.is_set():
            packets, begun_s = self._packets, time.monotonic()
            some = packets[at : at + _AT_ONCE]
            at = at + _AT_ONCE if at + _AT_ONCE < len(packets) else 0
            self._injector.send(*some)
            lasts_s = len(some) / self._rate_per_s if self._rate_per_s else 0.0
            self._stopped.wait(max(0.0 if some else 0.01, begun_s + lasts_s - time.monotonic()))


def _shuffled(packets: Sequence[bytes]) -> list[bytes]:
    return secrets.SystemRandom().sample(packets, len(packets))
