"""Where two sets of rules give something different: the regions of the space of requests.

1.  Ports, sources and times are cut into cells (portcells.py, cells.py, timeline.py). In a cell
    both sides give one offer each, and cells in which the two differ are found.
2.  Cells with the same two offers are put together again: for each cell of ports the times of each
    source, then sources with the same times (patches.py), and here ports with the same of both. So
    a region does not depend on how the rules were written, only on what they give.
3.  A request for a range is granted where one rule covers all of it, so requests for ranges are
    cells of their own. Most of them differ because one of their ports does; the others
    are `across`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from spa_protocol.access import Access
from spa_server.policy.decide import Question
from spa_server.policy.difference.cells import Space, position
from spa_server.policy.difference.offer import BROUGHT, Offer, Sign, all_signs, brought, signs
from spa_server.policy.difference.patches import Patch, Patches, Place, is_covered
from spa_server.policy.difference.portcells import (
    PortCell,
    longest_ranges,
    port_cells,
    put_together,
)
from spa_server.policy.difference.spans import Spans, holds
from spa_server.policy.difference.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Region:
    """Requests to which one side offers `before`, and the other `after`.

    They are for ports within one of `ranges` or in one of the wide cells `across` and `implied`,
    from one of `sources`, at one of `times`. What holds of `implied` shows in single ports already.
    """

    before: Offer
    after: Offer
    times: Spans
    sources: Spans
    ranges: tuple[Access, ...]
    across: tuple[PortCell, ...] = ()
    implied: tuple[PortCell, ...] = ()

    @property
    def signs(self) -> frozenset[Sign]:
        """In what `after` is more or less."""
        return all_signs(self.before, self.after)

    def reversed(self) -> "Region":
        """The same, seen from the other side."""
        return replace(self, before=self.after, after=self.before)

    def covers(self, question: Question) -> bool:
        """Whether the two sides answer this question differently, and the region tells so."""
        access = question.access
        if not (
            holds(self.times, question.at_us)
            and holds(self.sources, position(question.source))
            and (
                any(access in each for each in self.ranges)
                or any(access in cell for cell in (*self.across, *self.implied))
            )
        ):
            return False
        before, after = self.before[brought(question)], self.after[brought(question)]
        return (before and before.given(question)) != (after and after.given(question))


@dataclass(frozen=True, slots=True)
class Found:
    """A region, and slots of either side.

    `fitting` are those that fit in it, `about` those that would at another time as well. What is
    in one side alone makes the difference.
    """

    region: Region
    fitting: int
    about: int


@dataclass(slots=True)
class _Draft:
    """A region in the making: the cells of ports for which a place is found, and slots."""

    cells: set[PortCell] = field(default_factory=set)
    fitting: int = 0
    about: int = 0


class Surveyor:
    """Finds the regions for pairs of slot sets, and remembers what it has found."""

    def __init__(self, space: Space, timeline: Timeline) -> None:
        self._space = space
        self._patches = Patches(space, timeline)
        self._found: dict[tuple[int, int], tuple[Found, ...]] = {}

    def find(self, old: int, new: int, *, asks_for_ranges: bool = True) -> tuple[Found, ...]:
        """The regions in which the slots `old` of the one side give other than `new` of the other.

        Where nobody asks (`always_open`), there are no requests for ranges.
        """
        changed = old ^ new
        if not changed:
            return ()
        relevant = self._space.touching(changed, old | new)
        key = old & relevant, new & relevant
        if key not in self._found:
            survey = _Survey(self._space, self._patches, *key, asks_for_ranges=asks_for_ranges)
            self._found[key] = tuple(survey.found())
        return self._found[key]


class _Survey:
    """One search: the slots of two sides, cell by cell."""

    def __init__(
        self, space: Space, patches: Patches, old: int, new: int, *, asks_for_ranges: bool
    ) -> None:
        self._all_patches = patches
        self._old, self._new = old, new
        self._asks_for_ranges = asks_for_ranges
        self._ports = space.cut_ports(old | new)

    def found(self) -> Iterator[Found]:
        """Every region."""
        drafts: dict[Place, _Draft] = {}
        for cell, slots in self._cells():
            for patch in self._patches(slots):
                draft = drafts.setdefault(patch.place, _Draft())
                draft.cells.add(cell)
                draft.fitting |= patch.fitting
                draft.about |= patch.about
        for place, draft in drafts.items():
            yield Found(self._region(place, draft.cells), draft.fitting, draft.about)

    def _cells(self) -> Iterator[tuple[PortCell, int]]:
        for protocol, cut in self._ports.items():
            for cell, slots in port_cells(protocol, cut):
                if self._asks_for_ranges or not cell.is_wide:
                    yield cell, slots

    def _patches(self, slots: int) -> tuple[Patch, ...]:
        """The differences where these slots cover the ports."""
        return self._all_patches.of(slots & self._old, slots & self._new)

    def _region(self, place: Place, cells: set[PortCell]) -> Region:
        ranges = sorted(longest_ranges(cells, with_wide=self._asks_for_ranges))
        across: list[PortCell] = []
        implied: list[PortCell] = []
        for cell in cells:
            if cell.is_wide and not any(cell.hull in each for each in ranges):
                (implied if self._shows(cell, place, cells) else across).append(cell)
        return Region(
            place.before,
            place.after,
            place.times,
            place.sources,
            tuple(ranges),
            put_together(across),
            put_together(implied),
        )

    def _shows(self, cell: PortCell, place: Place, cells: set[PortCell]) -> bool:
        """Whether single ports of the cell differ in the same ways, wherever the cell does."""
        singles = {
            (begin, end): slots
            for begin, end, slots in self._ports[cell.protocol]
            if cell.first[0] <= begin < cell.last[1]
        }
        if any(PortCell(cell.protocol, ports, ports) in cells for ports in singles):
            return True
        places = dict.fromkeys(p.place for slots in singles.values() for p in self._patches(slots))
        return all(
            is_covered(place, [p for p in places if sign in signs(p.before[k], p.after[k])])
            for k in BROUGHT
            for sign in signs(place.before[k], place.after[k])
        )
