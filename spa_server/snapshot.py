"""A snapshot of a daemon for other threads: taken in the daemon's own, and never changed."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from spa_server.meter import Meter

_GOOD_FOR_S: Final = 1.0
_WITHIN_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How a daemon is, and what it has counted.

    `drift` counts findings by severity, `outputs` gives for each live output how many records were
    sent and dropped. `taken_s` is by CLOCK_MONOTONIC, the other times are since the Unix epoch.
    """

    meter: Meter
    version: str = ""
    capture: str = ""
    mode: str = ""
    started_at_us: int = 0
    grants: int = 0
    holes: int = 0
    keys: int = 0
    tags: int = 0
    roles: int = 0
    requests_remembered: int = 0
    gate_wanted: bool = False
    gate_in_doubt: bool = False
    policy_is_current: bool = True
    ledger_behind: bool = False
    last_event_id: int = 0
    drift: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, tuple[int, int]] = field(default_factory=dict)
    taken_s: float = field(default_factory=time.monotonic)


def by_severity(severities: list[str]) -> dict[str, int]:
    """How many findings of each."""
    return dict(Counter(severities))


class Snapshots:
    """Snapshots for whichever thread asks; `take` runs in the event loop, at most once a second.

    Made in the loop's thread. A loop that does not answer within two seconds leaves the last one.
    """

    def __init__(self, take: Callable[[], Snapshot], loop: asyncio.AbstractEventLoop) -> None:
        self._take = take
        self._loop = loop
        self._one_asks = threading.Lock()
        self._latest = take()

    def __call__(self) -> Snapshot:
        """The latest; never raises, and never waits longer than two seconds."""
        with self._one_asks:
            if time.monotonic() - self._latest.taken_s >= _GOOD_FOR_S:
                future: Future[Snapshot] = Future()
                with suppress(RuntimeError, NoAnswer, asyncio.CancelledError):
                    self._loop.call_soon_threadsafe(self._fill, future)
                    self._latest = future.result(_WITHIN_S)
            return self._latest

    def _fill(self, future: "Future[Snapshot]") -> None:
        try:
            future.set_result(self._take())
        except Exception as error:  # told to the thread that waits, which keeps the last one
            future.set_exception(RuntimeError(str(error)))
