"""A tally: the first of many alike is recorded at once, the others are counted.

Whoever holds a stolen tag, or sprays closed ports, must neither be able to fill the record nor to
crowd others out of it. Within an interval:

1.  One line a kind is written; later ones of the kind become a count at the interval's end.
2.  Each *party* (who causes them: a source's network, a key) has a budget of `OF_ONE` kinds.
3.  Parties that have had 1, 2 to 3, 4 to 7, ... kinds share a budget of `OF_ALL` with the like of
    them. So whoever forges a source for each packet leaves the lines of those who go on untouched.
4.  What has no budget left is counted for its party. Of too many, the party that was quiet for
    longest makes room, and shares one count with others like it.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

Kind = TypeVar("Kind")
Party = TypeVar("Party", bound=Hashable)

INTERVAL_US: Final = 10_000_000
OF_ONE: Final = 128
OF_ALL: Final = 400
PARTIES: Final = 4096


@dataclass(slots=True)
class _Share:
    """How many kinds of a party have come, and how many packets were counted for it alone."""

    kinds: int = 0
    further: int = 0


@dataclass(slots=True)
class Tally(Generic[Kind, Party]):
    """Counts by kind over an interval; `party_of` says who causes one. Times are microseconds."""

    party_of: Callable[[Kind], Party]
    interval_us: int = INTERVAL_US
    _counts: dict[Kind, int] = field(default_factory=dict)
    _parties: OrderedDict[Party, _Share] = field(default_factory=OrderedDict)
    _written: list[int] = field(default_factory=lambda: [0] * OF_ONE.bit_length())
    _beyond: int = 0
    _began_us: int = 0

    def is_first(self, kind: Kind, now_us: int, count: int = 1) -> bool:
        """Counts one, or so many at once, and says whether to record them by themselves."""
        if not self._parties and not self._beyond:
            self._began_us = now_us
        name = self.party_of(kind)
        party = self._parties.get(name) or self._begin(name)
        self._parties.move_to_end(name)
        if kind in self._counts:
            self._counts[kind] += count
            return False
        standing = min(party.kinds + 1, OF_ONE).bit_length() - 1
        if party.kinds >= OF_ONE or self._written[standing] >= OF_ALL:
            party.further += count
            # It goes on to the next standing: that it tries again is what sets it apart.
            party.kinds = min(party.kinds + 1, OF_ONE)
            return False
        self._written[standing] += 1
        party.kinds += 1
        self._counts[kind] = 0
        return True

    def _begin(self, name: Party) -> _Share:
        if len(self._parties) >= PARTIES:
            _, gone = self._parties.popitem(last=False)
            self._beyond += gone.further
        party = self._parties[name] = _Share()
        return party

    def due_at_us(self) -> int | None:
        """When the interval is over; None while nothing was counted."""
        return self._began_us + self.interval_us if self._parties or self._beyond else None

    def is_due(self, now_us: int) -> bool:
        """Whether the interval is over (or the clock was set back) and something was counted."""
        due_us = self.due_at_us()
        return due_us is not None and not due_us - self.interval_us <= now_us < due_us

    def take(self) -> tuple[dict[Kind, int], dict[Party, int], int]:
        """The further ones by kind, those that had no line by party, and those of parties that are
        forgotten; a new interval begins."""
        further = {kind: count for kind, count in self._counts.items() if count}
        by_party = {name: party.further for name, party in self._parties.items() if party.further}
        beyond = self._beyond
        self._counts, self._parties, self._beyond = {}, OrderedDict(), 0
        self._written = [0] * len(self._written)
        return further, by_party, beyond
