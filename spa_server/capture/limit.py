"""A limit in user space, for captures that see every packet and not just those the gate admits.

The gate limits each pair of source and tag in the kernel (`heard4`, `heard6`); a capture from an
interface has only this. The pair and not the source alone, so that junk sent with somebody's
address in it does not use up what that somebody may send.
"""

from collections import OrderedDict
from typing import Final

PER_SECOND: Final = 20
BURST: Final = 20
REMEMBERED: Final = 65_536


class PairLimit:
    """A token bucket for each (source, tag): 20 packets at once, then 20 a second.

    Of more than 65,536 pairs, the one not heard for longest is forgotten, and so begins anew.
    """

    def __init__(
        self, per_second: int = PER_SECOND, burst: int = BURST, remembered: int = REMEMBERED
    ) -> None:
        self._us_each = 1_000_000 // per_second
        self._full_us = burst * self._us_each
        self._remembered = remembered
        self._empty_at: OrderedDict[tuple[bytes, bytes], int] = OrderedDict()

    def admits(self, source: bytes, tag: bytes, now_us: int) -> bool:
        """Whether one more packet of this pair may pass, and if so, counts it.

        A clock set back refills a bucket: nobody waits for the old time to come again.
        """
        pair = (source, tag)
        spent_until = self._empty_at.pop(pair, now_us)
        if not now_us <= spent_until <= now_us + self._full_us:
            spent_until = now_us
        admitted = spent_until + self._us_each <= now_us + self._full_us
        self._empty_at[pair] = spent_until + self._us_each if admitted else spent_until
        if len(self._empty_at) > self._remembered:
            self._empty_at.popitem(last=False)
        return admitted
