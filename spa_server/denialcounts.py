"""Denial counts: what the gate's sets and counters say of denials, entered among the denials.

The first packet of a source to a port is logged and recorded by itself, further ones the kernel
only counts: in an element of a set that lives for five minutes, of a source that tries too many in
one for all of them, or, where the sets are full, in one counter. The rules:

1.  A reading enters by how much each count has grown since the one before. An element that was not
    there before is entered without its first packet, which was logged.
2.  A count may begin anew: its element had timed out, or somebody made the set anew. That it is
    another element shows by when it ends, or by a count that is smaller. In doubt it is the same.
3.  What the kernel counted before the first reading, an earlier daemon has entered, or nobody.
4.  So no packet is entered twice. What was counted between the last reading and the end of an
    element is missing: all counts are "at least".
5.  There is a reading ten seconds after a logged denial, and then as long as counts grow. While
    they do not, each pause is twice the one before. Five minutes after the last denial no element
    is left, and nothing is read until a denial is logged.

A listing of full sets takes the kernel 0.1 s, in a thread that needs no interpreter for it; it is
decoded and entered a slice at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from spa_server import clock
from spa_server.audit.denials import Denials
from spa_server.audit.folding import Counted
from spa_server.audit.record import Event
from spa_server.firewall import elements
from spa_server.firewall.elements import Element
from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.flow import access_text

PAUSE_S: Final = 10.0
LIFE_S: Final = 300.0
_SLICE: Final = 200
_FORGET_SLICE: Final = 5000
_SAME_MS: Final = 5000
_LIFE_MS: Final = round(LIFE_S * 1000)
_SHIFT: Final = 64
_MASK: Final = (1 << _SHIFT) - 1
_SETS: Final = {
    Event.CONNECTION_DENIED: elements.DENIED_SETS,
    Event.CONNECTION_WOULD_DENY: elements.OBSERVED_SETS,
}
_UNLISTED: Final = {
    Event.CONNECTION_DENIED: "denied_unlisted",
    Event.CONNECTION_WOULD_DENY: "observed_unlisted",
}


@dataclass(slots=True)
class Reading:
    """The sets and counters at a moment of CLOCK_MONOTONIC. Its elements can be taken once."""

    at_ms: int
    sets: list[tuple[Event, str, Iterator[Element]]]
    unlisted: dict[Event, int]


class Told(Protocol):
    """Who is told of counts too: `Meter.counted`."""

    def __call__(self, event: Event, counts: list[Counted], now_us: int) -> None: ...


def read() -> Reading | None:
    """Reads the kernel, in the caller's network namespace; None where it has no gate.

    Touches nothing of another thread's.
    """
    at_ms = round(clock.monotonic_s() * 1000)
    try:
        with Gate() as gate:
            counters = gate.counters()
            sets = [
                (event, name, gate.listing(name))
                for event, names in _SETS.items()
                for name in names
            ]
    except FirewallError:
        return None
    unlisted = {event: counters[name].packets for event, name in _UNLISTED.items()}
    return Reading(at_ms, sets, unlisted)


class DenialCounts:
    """Enters counts in `denials`, and tells `told`. It is due at once, for what was before."""

    def __init__(self, denials: Denials, told: Told) -> None:
        self._denials = denials
        self._told = told
        self._due_at_s: float | None = 0.0
        self._pause_s = PAUSE_S
        self._is_reading = False
        self._is_first = True
        # By set and key: packets << 64 | when the element ends, in milliseconds. Not of elements
        # with one packet. Bytes and integers, because no garbage collection walks through them.
        self._known: dict[str, dict[bytes, int]] = {}
        self._unlisted: dict[Event, int] = {}

    # Time, in seconds of CLOCK_MONOTONIC

    def due_at_s(self) -> float | None:
        """When the next reading is due; None while nothing is denied, or one is on its way."""
        return None if self._is_reading else self._due_at_s

    def is_due(self, now_s: float) -> bool:
        """Whether it is."""
        due_at_s = self.due_at_s()
        return due_at_s is not None and due_at_s <= now_s

    def stir(self, now_s: float) -> None:
        """A denial was logged."""
        self._pause_s = PAUSE_S
        soon_s = now_s + PAUSE_S
        self._due_at_s = soon_s if self._due_at_s is None else min(self._due_at_s, soon_s)

    def begin(self) -> Callable[[], Reading | None]:
        """What reads, to be run in a thread; what it returns is to be handed to `enter`."""
        self._is_reading, self._due_at_s = True, None
        return read

    # Counts

    def enter(self, reading: Reading | None, now_s: Callable[[], float]) -> Iterator[None]:
        """Enters what has grown, with a pause after about two milliseconds."""
        grown, is_empty = False, reading is not None
        if reading is not None:
            for event, name, listed in reading.sets:
                while some := list(islice(listed, _SLICE)):
                    is_empty = False
                    grown |= self._enter(event, self._growth(name, some, reading.at_ms))
                    yield
            grown |= self._enter_unlisted(reading.unlisted)
            yield from self._forget(reading.at_ms - _SAME_MS)
            self._is_first = False
        self._is_reading = False
        self._plan(now_s(), grown=grown, is_empty=is_empty)

    def _plan(self, now_s: float, *, grown: bool, is_empty: bool) -> None:
        if grown:
            self.stir(now_s)
        elif self._due_at_s is None and not is_empty and self._pause_s < LIFE_S:
            self._due_at_s = now_s + self._pause_s
            self._pause_s *= 2

    def close(self) -> None:
        """Enters what has not been entered yet, all at once."""
        if self._due_at_s is not None or self._is_reading:
            for _ in self.enter(read(), clock.monotonic_s):
                pass

    def _growth(self, name: str, some: list[Element], at_ms: int) -> list[Counted]:
        known = self._known.setdefault(name, {})
        counts: list[Counted] = []
        for element in some:
            packets = element.count.packets
            if packets < 2:
                continue
            left_ms = element.remaining_ms
            ends_ms = at_ms + (_LIFE_MS if left_ms is None else left_ms)
            state = known.get(element.key, 1 << _SHIFT | ends_ms)
            before, ended_ms = state >> _SHIFT, state & _MASK
            if packets < before or ends_ms > ended_ms + _SAME_MS:
                before = 1
            known[element.key] = packets << _SHIFT | ends_ms
            if packets > before:
                denial = elements.decode_denial(name, element)
                access = access_text(denial.protocol, denial.port) if denial.protocol else None
                counts.append((denial.source_text, None, access, packets - before))
        return counts

    def _enter(self, event: Event, counts: list[Counted]) -> bool:
        """Whether there were any."""
        if not counts or self._is_first:
            return False
        now_us = clock.now_us()
        self._denials.add_counts(event, counts, now_us)
        self._told(event, counts, now_us)
        return True

    def _enter_unlisted(self, unlisted: dict[Event, int]) -> bool:
        grown = False
        for event, packets in unlisted.items():
            before = self._unlisted.get(event, 0)
            further = packets - before if packets >= before else packets
            if further:
                grown |= self._enter(event, [(None, None, None, further)])
        self._unlisted = unlisted
        return grown

    def _forget(self, before_ms: int) -> Iterator[None]:
        """Elements that have ended, and that a torn listing cannot show again."""
        for known in self._known.values():
            keys = iter(list(known))
            while some := list(islice(keys, _FORGET_SLICE)):
                for key in some:
                    if known[key] & _MASK < before_ms:
                        del known[key]
                yield
