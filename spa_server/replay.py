"""The replay window: which requests have been seen. docs/protocol.md section 7.

The rules, in words:

1.  Every authentic, rightly signed request is burned, whatever comes of it.
2.  A burned (key, nonce) is remembered until 30 minutes after its `sent_at`.
3.  What is forgotten leaves a floor for its key: the latest `sent_at` forgotten so far. At or under
    it every request of that key counts as replayed, so a clock set back revives nothing.
4.  A floor for all keys guards what memory alone cannot: nothing stamped before this boot plus
    the window of freshness (30 s) is accepted, for a crash of the kernel may lose the last commits,
    and nothing stamped up to the latest request that could not be recorded.
5.  A request stamped further ahead than that could outlive such a crash; it is burned with a flush
    to the disk.

This module holds the window in memory and says what changed; the ledger keeps it on disk.
"""

import heapq
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

REMEMBER_US: Final = 30 * 60 * 1_000_000
AT_ONCE: Final = 500


class Burn(msgspec.Struct, frozen=True):
    """A request that must not be heard again."""

    key_id: str
    nonce: bytes
    sent_at_us: int


class Forgotten(msgspec.Struct, frozen=True):
    """Everything stamped before `until_us` is forgotten; `floors` are those that rise for it."""

    until_us: int
    floors: dict[str, int]


class ReplayWindow:
    """What has been burned. Times are microseconds since the Unix epoch."""

    def __init__(self, burned: Iterable[Burn] = (), floors: Iterable[tuple[str, int]] = ()) -> None:
        self._by_age = [(burn.sent_at_us, burn.key_id, burn.nonce) for burn in burned]
        self._burned = {(key_id, nonce) for _, key_id, nonce in self._by_age}
        self._floors = dict(floors)
        heapq.heapify(self._by_age)

    def __len__(self) -> int:
        return len(self._by_age)

    def is_burned(self, burn: Burn, floor_us: int = 0) -> bool:
        """Whether this request was seen, or is too old to tell. `floor_us` holds for all keys."""
        floor_us = max(floor_us, self._floors.get(burn.key_id, 0))
        return burn.sent_at_us <= floor_us or (burn.key_id, burn.nonce) in self._burned

    def add(self, burn: Burn) -> None:
        """Remembers a request."""
        self._burned.add((burn.key_id, burn.nonce))
        heapq.heappush(self._by_age, (burn.sent_at_us, burn.key_id, burn.nonce))

    def forget(self, now_us: int, at_once: int = AT_ONCE) -> Iterator[Forgotten]:
        """Lets go of what is over 30 minutes old, the oldest first, about so many at a time."""
        while self._by_age and self._by_age[0][0] < now_us - REMEMBER_US:
            yield self._forget_some(now_us - REMEMBER_US, at_once)

    def _forget_some(self, limit_us: int, at_once: int) -> Forgotten:
        """All of one stamp go together, for the ledger forgets by stamps."""
        floors: dict[str, int] = {}
        last_us = count = 0
        while self._by_age and self._by_age[0][0] < limit_us:
            if count >= at_once and self._by_age[0][0] > last_us:
                return Forgotten(self._by_age[0][0], floors)
            last_us, key_id, nonce = heapq.heappop(self._by_age)
            self._burned.discard((key_id, nonce))
            floors[key_id] = self._floors[key_id] = max(last_us, self._floors.get(key_id, 0))
            count += 1
        return Forgotten(limit_us, floors)
