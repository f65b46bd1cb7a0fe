"""Which tags are flooded: told by the datagrams under them that opened no box.

A tag is on the wire in the open, so anybody may send under it what is not its key's. What is none
of the key's (not authentic, not signed, seen before) is counted against the tag: ten may come at
once, and one in ten seconds after that, which no network does by itself. A tag that has more is
flooded: the gate puts it into the lane of all flooded tags, and its key has spare ones.
"""

from typing import Final

import msgspec

LEASE_S: Final = 60.0
"""For how long a tag is treated as flooded after it was found to be."""
_RENEWED_AFTER_S: Final = LEASE_S / 2
_AT_ONCE: Final = 10.0
_FORGIVEN_PER_S: Final = 0.1
_REMEMBERED: Final = 2 * _AT_ONCE
_TAGS_REMEMBERED: Final = 65_536


class _Account(msgspec.Struct):
    """`level` is what of the junk is not forgiven yet, as it was at `at_s`."""

    level: float
    at_s: float
    told_at_s: float | None = None


class Floods:
    """The junk of each tag. Times are seconds of a clock that only goes forwards."""

    def __init__(self) -> None:
        self._accounts: dict[bytes, _Account] = {}

    def junk(self, tag: bytes, now_s: float) -> bool:
        """One more datagram under this tag that was not its key's: whether to act against it.

        Not each time, but when its flood is noticed, and before its lease ends.
        """
        account = self._accounts.get(tag)
        if account is None:
            if len(self._accounts) >= _TAGS_REMEMBERED:
                self._accounts.clear()
            account = self._accounts[tag] = _Account(0.0, now_s)
        forgiven = (now_s - account.at_s) * _FORGIVEN_PER_S
        account.level = min(max(0.0, account.level - forgiven) + 1.0, _REMEMBERED)
        account.at_s = now_s
        told_s = account.told_at_s
        if account.level <= _AT_ONCE or (told_s is not None and now_s < told_s + _RENEWED_AFTER_S):
            return False
        account.told_at_s = now_s
        return True
