"""Where ports are settled: from which sources, and when, two sides give something different."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from spa_server.policy.difference.cells import Space
from spa_server.policy.difference.offer import Offer
from spa_server.policy.difference.spans import Spans, Stretch, bits_of, elementary, merged, within
from spa_server.policy.difference.timeline import Clock, Timeline


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Sources and times at which one side offers `before`, and the other `after`.

    `Patches` makes each once, so what is equal is identical.
    """

    before: Offer
    after: Offer
    times: Spans
    sources: Spans


@dataclass(frozen=True, slots=True)
class Patch:
    """A place, and the slots that fit there, or that would (`about`) at another time as well."""

    place: Place
    fitting: int
    about: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where source and ports are settled: two offers, when, and the slots that fit then."""

    before: Offer
    after: Offer
    times: Spans
    fitting: int


class Patches:
    """Finds them for pairs of slot sets, and remembers what it has found."""

    def __init__(self, space: Space, timeline: Timeline) -> None:
        self._space = space
        self._timeline = timeline
        self._entries: dict[tuple[int, int], tuple[_Entry, ...]] = {}
        self._patches: dict[tuple[int, int], tuple[Patch, ...]] = {}
        self._places: dict[tuple[Offer, Offer, Spans, Spans], Place] = {}
        self._times: dict[Spans, Spans] = {}

    def of(self, old: int, new: int) -> tuple[Patch, ...]:
        """The differences between the two sides, where these slots cover the ports asked for."""
        found = self._patches.get((old, new))
        if found is None:
            found = self._patches[old, new] = tuple(self._found(old, new))
        return found

    def _found(self, old: int, new: int) -> Iterator[Patch]:
        sources: dict[tuple[Offer, Offer, Spans], list[Stretch]] = {}
        slots: dict[tuple[Offer, Offer, Spans], tuple[int, int]] = {}
        for mask, stretches in self._space.cut_sources(old | new).items():
            if mask & (old ^ new):
                for entry in self._entries_of(mask & old, mask & new):
                    key = entry.before, entry.after, entry.times
                    sources.setdefault(key, []).extend(stretches)
                    fitting, about = slots.get(key, (0, 0))
                    slots[key] = fitting | entry.fitting, about | mask
        for key, of_key in sources.items():
            yield Patch(self._place(*key, merged(of_key)), *slots[key])

    def _place(self, before: Offer, after: Offer, times: Spans, sources: Spans) -> Place:
        key = before, after, times, sources
        return self._places.setdefault(key, Place(*key))

    def _entries_of(self, old: int, new: int) -> tuple[_Entry, ...]:
        found = self._entries.get((old, new))
        if found is None:
            found = self._entries[old, new] = tuple(self._differences(old, new))
        return found

    def _differences(self, old: int, new: int) -> Iterator[_Entry]:
        slots_of: dict[Clock, int] = {}
        for number in bits_of(old | new):
            clock = self._space.slots[number].clock
            slots_of[clock] = slots_of.get(clock, 0) | 1 << number
        clocks = tuple(slots_of)
        times: dict[tuple[Offer, Offer], list[Stretch]] = {}
        fitting: dict[tuple[Offer, Offer], int] = {}
        for pattern, spans in self._timeline.patterns(clocks):
            slots = sum(slots_of[clocks[k]] for k in bits_of(pattern))
            offers = self._space.offer(old & slots), self._space.offer(new & slots)
            if offers[0] != offers[1]:
                times.setdefault(offers, []).extend(spans)
                fitting[offers] = fitting.get(offers, 0) | slots
        for offers, stretches in times.items():
            spans = merged(stretches)
            yield _Entry(*offers, self._times.setdefault(spans, spans), fitting[offers])


def is_covered(place: Place, others: Iterable[Place]) -> bool:
    """Whether everything of a place, source by source and at all its times, is in another one."""
    by = list(others)
    own = 1 << len(by)
    pieces = [(*stretch, 1 << k) for k, other in enumerate(by) for stretch in other.sources]
    for _, _, mask in elementary([*pieces, *((*stretch, own) for stretch in place.sources)]):
        if mask & own:
            # Each once: the same times come with many ports.
            times = {by[k].times for k in bits_of(mask ^ own)}
            if place.times not in times and not within(place.times, merged(chain(*times))):
                return False
    return True
