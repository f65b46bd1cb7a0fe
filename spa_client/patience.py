"""Knocks that wait for a person: somebody touches a security key, or confirms in ssh-agent.

1.  A knock must be fresh when it arrives, 30 seconds at most after its time. One that was signed
    more than 20 seconds after its time is thrown away, and another is made in its place; three
    times at most, since somebody who is that slow is not there.
2.  The time of the new one follows the monotonic clock from where the caller's began.
3.  The nonce is the same again: nothing has been sealed with it that left this machine.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from keys.trouble import Trouble
from spa_client.compose import Composer, Datagram
from spa_protocol.layout import Address

TOO_LATE_S: Final = 20.0
TRIES: Final = 3


class TooLate(Trouble):
    """Nobody signed in time, as often as it was tried."""


@dataclass(frozen=True, slots=True)
class PatientComposer(Composer):
    """Makes datagrams whose signature may take a person's time; `tell` is told to try again."""

    tell: Callable[[str], None] = field(kw_only=True)
    monotonic_s: Callable[[], float] = field(default=time.monotonic, kw_only=True)

    def compose(
        self, own: Address, to: Address, *, nonce: bytes, now_us: int, tag_number: int = 0
    ) -> Datagram:
        """One datagram that is fresh. Raises Trouble, TooLate among it."""
        begun_s = self.monotonic_s()
        for tries_left in reversed(range(TRIES)):
            made_s = self.monotonic_s()
            made_at_us = now_us + round((made_s - begun_s) * 1_000_000)
            datagram = Composer.compose(
                self, own, to, nonce=nonce, now_us=made_at_us, tag_number=tag_number
            )
            took_s = self.monotonic_s() - made_s
            if took_s <= TOO_LATE_S:
                return datagram
            if tries_left:
                self.tell(f"that came after {took_s:.0f} s, and the knock is stale; again, sooner")
        sooner = f"touch the key, or confirm its use, within {TOO_LATE_S:.0f} s"
        raise TooLate(f"the knock was signed too late {TRIES} times", sooner)
