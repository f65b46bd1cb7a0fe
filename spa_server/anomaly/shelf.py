"""A shelf of baselines: the busy ones at hand, the others packed in a few hundred bytes each."""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

MAX_AT_HAND: Final = 4096
MAX_KEPT: Final = 250_000


class Shelf(Generic[T]):
    """Things of one type by their names. Whoever changes one adds its name to `unsaved`.

    Past `max_kept` the one that was put away longest ago is forgotten.
    """

    def __init__(
        self, kind: type[T], *, max_at_hand: int = MAX_AT_HAND, max_kept: int = MAX_KEPT
    ) -> None:
        self.at_hand: dict[str, T] = {}
        self._packed: dict[str, bytes] = {}
        self.unsaved: set[str] = set()
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._encode = msgspec.msgpack.Encoder().encode
        self._max_at_hand = max_at_hand
        self._max_kept = max_kept

    def __len__(self) -> int:
        """How many there are, at hand or packed."""
        return len(self.at_hand) + len(self._packed)

    def names(self) -> Iterator[str]:
        """Of all that there are."""
        yield from self.at_hand
        yield from self._packed

    def get(self, name: str) -> T | None:
        """The thing of a name, at hand from now on."""
        thing = self.at_hand.get(name)
        if thing is not None:
            return thing
        packed = self._packed.pop(name, None)
        if packed is None:
            return None
        thing = self._decoder.decode(packed)
        self._lay(name, thing)
        return thing

    def put(self, name: str, thing: T) -> None:
        """A new thing, or another one in its place."""
        self._packed.pop(name, None)
        self._lay(name, thing)
        self.unsaved.add(name)

    def drop(self, name: str) -> None:
        """Forgets a thing."""
        self.at_hand.pop(name, None)
        self._packed.pop(name, None)
        self.unsaved.add(name)

    def _lay(self, name: str, thing: T) -> None:
        self.at_hand[name] = thing
        if len(self.at_hand) > self._max_at_hand:
            oldest = next(iter(self.at_hand))
            self._packed[oldest] = self._encode(self.at_hand.pop(oldest))
        if len(self) > self._max_kept:
            self.drop(next(iter(self._packed or self.at_hand)))

    def state(self, name: str) -> bytes | None:
        """What to save of a name; None where it is to be forgotten."""
        thing = self.at_hand.get(name)
        return self._packed.get(name) if thing is None else self._encode(thing)

    def restore(self, name: str, state: bytes) -> T:
        """Puts away what was saved. Raises msgspec.DecodeError for what is not sound."""
        thing = self._decoder.decode(state)
        self._packed[name] = state
        return thing

    def take_unsaved(self, most: int) -> Iterator[tuple[str, bytes | None]]:
        """Some of what changed since it was saved, with its state."""
        for _ in range(min(most, len(self.unsaved))):
            name = self.unsaved.pop()
            yield name, self.state(name)
