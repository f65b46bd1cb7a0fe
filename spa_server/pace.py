"""How often each identity and each invite asks, for the limits on requests a minute."""

from collections import deque
from typing import Final

MINUTE_US: Final = 60_000_000
_IDENTITIES: Final = 100_000


class Pace:
    """Counts requests within the last minute. Times are microseconds since the Unix epoch."""

    def __init__(self) -> None:
        self._knocks: dict[str, deque[int]] = {}

    def count(self, identity: str, now_us: int) -> int:
        """Enters a knock; how many there were within a minute, with this one."""
        if len(self._knocks) >= _IDENTITIES:
            self._forget(now_us)
        knocks = self._knocks.setdefault(identity, deque())
        # After a step of the clock to the past, what lies ahead is no sign of haste.
        while knocks and not now_us - MINUTE_US < knocks[0] <= now_us:
            knocks.popleft()
        knocks.append(now_us)
        return len(knocks)

    def _forget(self, now_us: int) -> None:
        recent = {name: at for name, at in self._knocks.items() if at[-1] > now_us - MINUTE_US}
        self._knocks = recent
