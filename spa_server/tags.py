"""The tag keeper: the tags of the epochs around now, in the admission table and in the kernel."""

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Final

from spa_server.admission import EPOCHS_AHEAD, Admission, Tag
from spa_server.firewall.elements import TagLease
from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.floods import LEASE_S

_TAGS_AT_ONCE: Final = 250  # about a millisecond, for which a knock may have to wait


class TagKeeper:
    """`tolerate` takes what is done with the firewall and may fail; it sees to trying again."""

    def __init__(
        self,
        admission: Admission,
        gate: Gate,
        tolerate: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._admission = admission
        self._gate = gate
        self._tolerate = tolerate
        self._leaving: set[bytes] = set()  # those that the kernel is to let go, until it has

    def is_behind(self, now_us: int) -> bool:
        """Whether a tag epoch has begun whose successors are not loaded."""
        return bool(self._admission.missing_epochs(now_us, EPOCHS_AHEAD))

    def load(self, now_us: Callable[[], int], has_stepped: Callable[[], bool]) -> Iterator[bool]:
        """Loads what is missing, a few tags at a time, and forgets what is over.

        Yields at each pause whether there is more to do. It ends early when the clock is set in a
        pause: by the new one, other tags are missing.
        """
        begun_us = now_us()
        for _ in self._admission.drop_outside(begun_us, EPOCHS_AHEAD):
            yield True
        if has_stepped():
            return
        for epoch in self._admission.missing_epochs(begun_us, EPOCHS_AHEAD):
            tags = self._admission.load(epoch)
            while chunk := list(islice(tags, _TAGS_AT_ONCE)):
                self.admit(chunk, now_us())
                yield True
                if has_stepped():
                    return
        yield False

    def admit(self, tags: Iterable[Tag], now_us: int) -> None:
        """Lets the knocks with these tags be heard until their time is over."""
        with self._tolerate("the tags"):
            self._gate.admit(self._leases(self._staying(tags), now_us))

    def _staying(self, tags: Iterable[Tag]) -> Iterator[Tag]:
        for tag in tags:
            self._leaving.discard(tag.value)
            yield tag

    @staticmethod
    def _leases(tags: Iterable[Tag], now_us: int) -> Iterator[TagLease]:
        return (TagLease(tag.value, max(1, (tag.until_us - now_us) // 1000)) for tag in tags)

    def admit_all(self, now_us: int) -> None:
        """The same for every tag that is loaded, and what could not be let go, goes: nobody knows
        what the kernel's set holds."""
        self.withdraw(())
        self.admit(self._admission.tags(), now_us)

    def flooded(self, tag: bytes, key_id: str, now_us: int) -> bool:
        """Junk comes under a tag of this key: it is held back, and others are admitted besides.

        Whether they are new.
        """
        spare = self._admission.spare(key_id, now_us)
        with self._tolerate("the tags"):
            try:
                self._gate.admit(self._leases(spare, now_us))
                self._gate.hold_back(TagLease(tag, round(LEASE_S * 1000)))
            except FirewallError as error:
                # A full set is no fault that loading the gate again would mend.
                if error.errno != errno.ENFILE:
                    raise
        return bool(spare)

    def withdraw(self, values: Iterable[bytes]) -> None:
        """Lets knocks with these tags be heard no more, and with those that were not let go yet."""
        self._leaving.update(values)
        with self._tolerate("the tags"):
            self._gate.withdraw(tuple(self._leaving))
            self._leaving.clear()

    def withdraw_all(self) -> None:
        """Every tag's timeout is by a clock that was wrong: they are to be laid anew."""
        old = [tag.value for tag in self._admission.tags()]
        self._admission.drop_all()
        self.withdraw(old)
