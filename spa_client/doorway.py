"""One TCP port behind a gate, and connections to it.

Each connection knocks first. Those that come at once share a knock: whoever comes while one is
under way waits for its answer, and an answer serves for a second. So a program that opens fifty
connections at once stays within what a server hears. A hole for a single connection is shared by
nobody: there one connection is made after the other.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from keys.trouble import Trouble
from spa_client.carriers import Answer, Result
from spa_client.connect import Connected, Race, dial, grants, lifetime_of, reach
from spa_client.knocking import Knocking
from spa_client.resolve import Target
from spa_protocol.access import Access
from spa_protocol.layout import Address

_SERVES_S: Final = 1.0
_OF_ITS_LIFETIME: Final = 0.25


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of it, and by which knock."""

    knocking: Knocking
    race: Race


@dataclass(frozen=True, slots=True)
class _Failed:
    """An attempt that came to nothing, and when; what it raised, where it raised."""

    outcome: Attempt | Trouble
    at_s: float


@dataclass(frozen=True, slots=True)
class _Open:
    """An answer that serves others too, until a moment of the monotonic clock."""

    knocking: Knocking
    answer: Answer
    until_s: float


class Doorway:
    """Connects to one port, from many threads; `aim` finds its host's addresses as they are now.

    `opened` is what the server has opened, by address, and `knocking` what it was asked by.
    """

    def __init__(self, aim: Callable[[], Knocking], access: Access, *, once: bool = False) -> None:
        self.access = access
        self.opened: dict[Target, Answer] = {}
        self.knocking: Knocking | None = None
        self._aim = aim
        self._once = once
        self._in_turn = threading.Lock()
        self._changed = threading.Condition()
        self._leader: object | None = None
        self._open: _Open | None = None
        self._failed: _Failed | None = None

    def connect(self) -> Attempt:
        """A connection, or why there is none. Raises Trouble."""
        mine = object()
        if self._once:
            with self._in_turn:
                return self._knock(mine)
        came_s = time.monotonic()
        while True:
            shared = self._wait_or_lead(mine, came_s)
            if shared is None:
                return self._lead(mine)
            if isinstance(shared, _Open):
                attempt = self._enter(shared)
                if attempt is not None:
                    return attempt
                came_s = time.monotonic()
            elif isinstance(shared.outcome, Trouble):
                raise shared.outcome
            else:
                return shared.outcome

    def _wait_or_lead(self, mine: object, came_s: float) -> _Open | _Failed | None:
        """Another connection's knock, once it has come to something; None makes this one knock."""
        with self._changed:
            while True:
                if self._open is not None and time.monotonic() < self._open.until_s:
                    return self._open
                if self._failed is not None and self._failed.at_s > came_s:
                    return self._failed
                if self._leader is None:
                    self._leader = mine
                    return None
                self._changed.wait()

    def _enter(self, shared: _Open) -> Attempt | None:
        """Connects without a knock; None where that fails, and nobody tries it after this one."""
        target, at = shared.answer.target, shared.knocking.composer.elsewhere
        with contextlib.suppress(OSError):
            connection = dial(_at(target, at), self.access.first)
            return Attempt(shared.knocking, Race(Connected(connection, shared.answer)))
        with self._changed:
            if self._open is shared:
                self._open = None
        return None

    def _lead(self, mine: object) -> Attempt:
        outcome: Attempt | Trouble | None = None
        try:
            outcome = self._knock(mine)
        except Trouble as trouble:
            outcome = trouble
            raise
        finally:
            with self._changed:
                if isinstance(outcome, Trouble) or (outcome and not outcome.race.winner):
                    self._failed = _Failed(outcome, time.monotonic())
                self._step_down(mine)
        return outcome

    def _step_down(self, mine: object) -> None:
        if self._leader is mine:
            self._leader = None
        self._changed.notify_all()

    def _knock(self, mine: object) -> Attempt:
        knocking = self._aim()
        results = partial(self._sharing, knocking, mine)
        return Attempt(knocking, reach(results, self.access, at=knocking.composer.elsewhere))

    def _sharing(self, knocking: Knocking, mine: object) -> Iterator[Result]:
        """The results; whoever waits is shown what opens the port as soon as it comes."""
        for result in knocking.results():
            if isinstance(result, Answer) and grants(result, self.access):
                self._share(knocking, result, mine)
            yield result

    def _share(self, knocking: Knocking, answer: Answer, mine: object) -> None:
        serves_s = min(_SERVES_S, _OF_ITS_LIFETIME * lifetime_of(answer, self.access))
        with self._changed:
            self.knocking = knocking
            self.opened[answer.target] = answer
            if not self._once:
                self._open = _Open(knocking, answer, time.monotonic() + serves_s)
            self._step_down(mine)


def _at(target: Target, address: Address | None) -> Target:
    return target if address is None else replace(target, address=address)
