"""Admission: which tags are heard, and which key each one names. docs/protocol.md section 5.2.

A tag is valid in its own epoch of 300 s and admitted in the two before and after it, so that a
client whose clock is wrong by minutes is still heard, and can be told. The kernel holds the tags;
this table holds what each one means, for the same epochs.

A key has one tag an epoch, and 63 spare ones that are admitted while its tags are flooded: whoever
saw a tag can use up what the kernel lets through under it, but has not seen those.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from spa_protocol.layout import EPOCH_S, TAGS, epoch_of
from spa_protocol.publickey import Sender

EPOCHS_AROUND: Final = 2
EPOCHS_AHEAD: Final = 1
"""How many more are laid before their time comes."""
EPOCHS_LAID: Final = 2 * EPOCHS_AROUND + 1 + EPOCHS_AHEAD
SPARED_AT_ONCE: Final = 256
"""How many keys have spare tags at a time: a thief of all tags must not fill the set with them."""
_EPOCH_US: Final = EPOCH_S * 1_000_000
_SPARED_FOR_US: Final = 2 * _EPOCH_US
_LAID_FOR_US: Final = EPOCHS_LAID * _EPOCH_US
_TABLES: Final = 64


class Tag(msgspec.Struct, frozen=True):
    """A tag and the time until which it is admitted, in microseconds since the Unix epoch."""

    value: bytes
    until_us: int


class _Names:
    """The tags of one epoch, and the key that each one names.

    In many small tables: one of 100,000 takes milliseconds to grow or to be let go, and a knock
    would have to wait.
    """

    def __init__(self) -> None:
        self._tables: list[dict[bytes, Sender]] = [{} for _ in range(_TABLES)]

    def __iter__(self) -> Iterator[bytes]:
        return (tag for table in self._tables for tag in tuple(table))

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    def find(self, tag: bytes) -> Sender | None:
        return self._tables[tag[0] % _TABLES].get(tag) if tag else None

    def enter(self, tag: bytes, sender: Sender) -> None:
        self._tables[tag[0] % _TABLES][tag] = sender

    def remove(self, tag: bytes) -> bool:
        return self._tables[tag[0] % _TABLES].pop(tag, None) is not None

    def let_go(self) -> Iterator[None]:
        """Table by table, so that the caller can breathe."""
        while self._tables:
            self._tables.pop().clear()
            yield


def window(now_us: int) -> range:
    """The epochs whose tags are admitted now."""
    epoch = epoch_of(now_us)
    return range(epoch - EPOCHS_AROUND, epoch + EPOCHS_AROUND + 1)


def admitted_until_us(epoch: int) -> int:
    """When the tags of an epoch stop being admitted."""
    return (epoch + EPOCHS_AROUND + 1) * _EPOCH_US


def room_for(keys: int) -> int:
    """How large a set of tags must be where so many keys and invites are heard.

    Of each an epoch too many is there for a moment, when the next is laid before the last is over,
    and some tags twice, while they are renewed.
    """
    return (keys + SPARED_AT_ONCE * (TAGS - 1)) * EPOCHS_LAID * 21 // 20


class Admission:
    """The keys that are heard, found by the tag of a datagram.

    `spares_all`: every key has its spare tags in whatever epoch is loaded from then on.
    """

    def __init__(self) -> None:
        self.spares_all = False
        self._senders: dict[str, Sender] = {}
        self._spared_until_us: dict[str, int] = {}
        self._by_tag: dict[int, _Names] = {}

    def __len__(self) -> int:
        return len(self._senders)

    @property
    def tag_count(self) -> int:
        """How many tags are known, over all epochs."""
        return sum(map(len, self._by_tag.values()))

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._senders

    def find(self, tag: bytes) -> Sender | None:
        """The key that bears this tag in an admitted epoch."""
        for names in self._by_tag.values():
            sender = names.find(tag)
            if sender is not None:
                return sender
        return None

    def add(self, key_id: str, sender: Sender) -> list[Tag]:
        """Hears a key from now on; its tags of the epochs that are loaded."""
        self._senders[key_id] = sender
        return [tag for epoch in self._by_tag for tag in self._name(sender, epoch)]

    def spare(self, key_id: str, now_us: int) -> list[Tag]:
        """Hears the key's spare tags too, in the epochs of the next ten minutes and before.

        Returns those that were not heard yet: none where the key is not heard, or where as many
        keys have theirs as may. One that had them is remembered until all of them are over.
        """
        spared, sender = self._spared_until_us, self._senders.get(key_id)
        for other in [o for o, until_us in spared.items() if until_us + _LAID_FOR_US <= now_us]:
            del spared[other]
        if sender is None or (key_id not in spared and len(spared) >= SPARED_AT_ONCE):
            return []
        spared[key_id] = now_us + _SPARED_FOR_US
        return [
            tag
            for epoch, names in self._by_tag.items()
            if self._spares(key_id, epoch) and names.find(sender.pair.tag_at(epoch, 1)) is None
            for tag in self._name(sender, epoch)
        ]

    def _spares(self, key_id: str, epoch: int) -> bool:
        return self.spares_all or epoch * _EPOCH_US < self._spared_until_us.get(key_id, 0)

    def remove(self, key_id: str) -> list[bytes]:
        """Hears a key no longer; the tags to withdraw."""
        sender = self._senders.pop(key_id, None)
        if sender is None:
            return []
        had_spare = self._spared_until_us.pop(key_id, None) is not None
        return [
            tag
            for epoch, names in self._by_tag.items()
            for tag in (sender.pair.tag_at(epoch, n) for n in range(TAGS if had_spare else 1))
            if names.remove(tag)
        ]

    def missing_epochs(self, now_us: int, ahead: int = 0) -> list[int]:
        """The epochs of the window, and `ahead` more, that are not loaded yet."""
        epochs = window(now_us)
        wanted = range(epochs.start, epochs.stop + ahead)
        return [epoch for epoch in wanted if epoch not in self._by_tag]

    def load(self, epoch: int) -> Iterator[Tag]:
        """Names every key for one more epoch, one tag at a time so that the caller can breathe.

        It ends early when the epoch is dropped meanwhile.
        """
        self._by_tag.setdefault(epoch, _Names())
        for key_id in tuple(self._senders):
            if epoch not in self._by_tag:
                return
            sender = self._senders.get(key_id)
            if sender is not None:
                yield from self._name(sender, epoch)

    def drop_outside(self, now_us: int, ahead: int = 0) -> Iterator[None]:
        """Forgets the tags of epochs that are over, or that a clock set back has put far ahead.

        At once; then lets go of the memory, a little at a time so that the caller can breathe.
        """
        epochs = window(now_us)
        keep = range(epochs.start, epochs.stop + ahead)
        over = [self._by_tag.pop(epoch) for epoch in tuple(self._by_tag) if epoch not in keep]
        return (None for names in over for _ in names.let_go())

    def drop_all(self) -> None:
        """Forgets every tag, though not the keys: they are to be named anew."""
        self._by_tag.clear()
        self._spared_until_us.clear()

    def tags(self) -> Iterator[Tag]:
        """Every tag that is loaded, for a set that has been lost."""
        for epoch, names in self._by_tag.items():
            until_us = admitted_until_us(epoch)
            yield from (Tag(value, until_us) for value in names)

    def _name(self, sender: Sender, epoch: int) -> list[Tag]:
        """All at once, so that no key is let go with half of its tags named."""
        count = TAGS if self._spares(sender.key_id, epoch) else 1
        values = [sender.pair.tag_at(epoch, number) for number in range(count)]
        for value in values:
            self._by_tag[epoch].enter(value, sender)
        return [Tag(value, admitted_until_us(epoch)) for value in values]


def load_all(admission: Admission, epochs: Iterable[int]) -> list[Tag]:
    """The tags of several epochs at once, for a table that is small or offline."""
    return [tag for epoch in epochs for tag in admission.load(epoch)]
