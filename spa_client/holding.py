"""Keeping open what a knock has opened, until somebody asks for the end.

1.  A hole is renewed when half of its time is over, and every ten minutes at least.
2.  It is renewed at once when this machine's own address changes, or when the machine has slept:
    the wall clock then ran on while the monotonic one stood still.
3.  A knock that nobody answers is sent again, afresh; that is told once, and once more when the
    hole has ended meanwhile. It goes on for as long as the person lets it.
4.  A refusal ends it, since asking again would not help; "too many" and "unavailable" pass by
    themselves, and are borne while the hole is still open.
5.  What was opened for an address that this machine has left is closed, where it was declared.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Protocol

from keys.trouble import ExitCode, Trouble
from spa_client import closing
from spa_client.carriers import Answer, Result, own_address
from spa_client.closing import granted
from spa_client.compose import Wish
from spa_client.knocking import Knocking
from spa_client.outcome import Story, fulfils
from spa_client.resolve import Target
from spa_protocol.layout import Address
from spa_protocol.reason import Code, Status

TICK_S: Final = 1.0
_RENEW_AT: Final = 0.5
_AT_LEAST_EVERY_S: Final = 600.0
_RENEWAL_TIMEOUT_S: Final = 2.5
_AGAIN_S: Final = 1.0
_AGAIN_WHEN_LOST_S: Final = 5.0
_SLEPT_S: Final = 3.0
_PASSING: Final = {Code.TOO_MANY, Code.UNAVAILABLE}


class Stop(Protocol):
    """What asks for the end: `stopping.Stopping`, or an event of another thread."""

    def wait(self, seconds: float | None) -> bool:
        """Whether the end was asked for, at the latest after so many seconds."""

    def interruptible(self) -> AbstractContextManager[None]:
        """A block that raises KeyboardInterrupt when the end is asked for."""


class Display(Protocol):
    """What a person sees of it."""

    def tell(self, line: str) -> None:
        """Something has happened."""

    def show(self, left_s: float, renewals: int) -> None:
        """Once a second: how much time the hole has."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """The monotonic clock, and the wall clock to see that the machine has slept."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class _Told(Enum):
    """What the person knows of a hole that is not renewed."""

    NOTHING = 0
    DOUBT = 1
    LOST = 2


class Holder:
    """Knocks by `aim`, which finds the host's addresses as they are now, again and again."""

    def __init__(
        self, aim: Callable[[], Knocking], display: Display, clocks: Clocks | None = None
    ) -> None:
        self._aim = aim
        self._display = display
        self._clocks = clocks or Clocks()
        self._knocking: Knocking | None = None
        self._answers: dict[Target, Answer] = {}
        self._own: dict[Target, Address | None] = {}
        self._seen: set[Address] = set()
        self._until_s = 0.0
        self._due_s = 0.0
        self._wall_ahead_s = 0.0
        self._told = _Told.NOTHING
        self._renewals = 0

    def open(self) -> Story:
        """The first knock. Raises Trouble; holds nothing unless its exit code is 0."""
        self._knocking = self._aim()
        story = self._knocking.run()
        self._take(story)
        return story

    def keep(self, stop: Stop) -> Story | None:
        """Returns None when the end was asked for, and what was refused when that ended it."""
        while True:
            self._display.show(max(0.0, self._until_s - self._now_s()), self._renewals)
            if stop.wait(self._pause_s()):
                return None
            if self._is_due():
                try:
                    with stop.interruptible():
                        refused = self._renew()
                except KeyboardInterrupt:
                    return None
                if refused is not None:
                    return refused

    def give_back(self) -> Story | None:
        """Closes what was opened, if anything was."""
        if self._knocking is None:
            return None
        return closing.close(self._knocking, list(self._answers.values()))

    def _now_s(self) -> float:
        return self._clocks.monotonic()

    def _pause_s(self) -> float:
        return min(TICK_S, max(0.0, self._due_s - self._now_s()))

    def _is_due(self) -> bool:
        if self._now_s() >= self._due_s:
            return True
        ahead_s = self._ahead_s()
        self._wall_ahead_s = min(self._wall_ahead_s, ahead_s)
        if ahead_s - self._wall_ahead_s > _SLEPT_S:
            self._display.tell("this machine has slept, or its clock was set; knocking again")
            self._until_s = min(self._until_s, self._now_s())
            return True
        return self._has_moved()

    def _ahead_s(self) -> float:
        return self._clocks.wall() - self._clocks.monotonic()

    def _has_moved(self) -> bool:
        """Whether the own address is another one; none at all is only the way to another."""
        found = _own_addresses(list(self._own))
        moved = {t: a for t, a in found.items() if a is not None and a != self._own[t]}
        for target, address in moved.items():
            was = self._own[target]
            before = f" ({was} before)" if was else ""
            self._display.tell(f"this machine's address is {address} now{before}; knocking again")
        if moved:
            self._own |= moved
            self._until_s = min(self._until_s, self._now_s())
        return bool(moved)

    def _renew(self) -> Story | None:
        """Knocks again; a story that is returned is the end."""
        before = list(self._answers.values())
        try:
            aimed = self._aim()
            timeout_s = min(aimed.timeout_s, _RENEWAL_TIMEOUT_S)
            self._knocking = replace(aimed, timeout_s=timeout_s)
            story = self._knocking.run()
        except Trouble as trouble:
            self._doubt(str(trouble))
            return None
        if story.exit_code is ExitCode.FINE:
            self._renewals += 1
            self._take(story)
            self._leave_behind(before)
        elif story.exit_code is not ExitCode.REFUSED:
            self._doubt(_why_silent(story.results))
        elif self._now_s() < self._until_s and _passes(story.results):
            self._doubt("; ".join(line.text for line in story.lines()))
        else:
            return story
        return None

    def _take(self, story: Story) -> None:
        """Remembers what is open by it, and until when; tells what has changed."""
        answers = [r for r in story.results if isinstance(r, Answer)]
        self._answers |= {answer.target: answer for answer in answers if granted([answer])}
        fulfilled = [answer for answer in answers if fulfils(answer, story.wish)]
        if not fulfilled:
            return
        lifetime_s = min(_lifetime_s(answer, story.wish) for answer in fulfilled)
        now_s = self._now_s()
        if self._told is not _Told.NOTHING:
            self._display.tell("answered again; it is open")
        self._told = _Told.NOTHING
        self._until_s = now_s + lifetime_s
        self._due_s = now_s + min(lifetime_s * _RENEW_AT, _AT_LEAST_EVERY_S)
        self._wall_ahead_s = self._ahead_s()
        self._own = _own_addresses([answer.target for answer in fulfilled])
        self._tell_seen({seen for answer in fulfilled if (seen := answer.reply.source)})

    def _tell_seen(self, seen: set[Address]) -> None:
        if self._seen and seen != self._seen:
            now, before = _written(seen), _written(self._seen)
            self._display.tell(f"the server sees this machine at {now} now ({before} before)")
        self._seen = seen

    def _leave_behind(self, before: Sequence[Answer]) -> None:
        """Rule 5. Whether the close is answered changes nothing: the hole ends by itself."""
        left = [a for a in before if self._answers[a.target].datagram.source != a.datagram.source]
        declared = [answer for answer in left if answer.datagram.source]
        if declared and self._knocking is not None:
            with contextlib.suppress(Trouble):
                closing.close(self._knocking, declared)

    def _doubt(self, why: str) -> None:
        """No renewal for now, and why; told once while it is open, and once when it is not."""
        now_s = self._now_s()
        is_open = now_s < self._until_s
        if is_open and self._told is _Told.NOTHING:
            left = f"open for {self._until_s - now_s:.0f} s more"
            self._display.tell(f"not renewed: {why}; {left}, and knocking goes on")
            self._told = _Told.DOUBT
        elif not is_open and self._told is not _Told.LOST:
            self._display.tell(f"not open any more: {why}; knocking goes on")
            self._told = _Told.LOST
        self._due_s = now_s + (_AGAIN_S if is_open else _AGAIN_WHEN_LOST_S)
        self._wall_ahead_s = self._ahead_s()


def _lifetime_s(answer: Answer, wish: Wish) -> int:
    """The shortest of what was asked for."""
    outcomes = (o for o in answer.reply.outcomes if o.access in wish.accesses)
    return max(1, min(outcome.lifetime_s for outcome in outcomes))


def _written(addresses: set[Address]) -> str:
    return ", ".join(sorted(map(str, addresses)))


def _own_addresses(targets: Sequence[Target]) -> dict[Target, Address | None]:
    found: dict[Target, Address | None] = {}
    for target in targets:
        try:
            found[target] = own_address(target)
        except OSError:
            found[target] = None
    return found


def _passes(results: Sequence[Result]) -> bool:
    """Whether all that stands in the way passes by itself."""
    replies = [r.reply for r in results if isinstance(r, Answer)]
    codes = {o.code for reply in replies for o in reply.outcomes} - {Code.GRANTED}
    statuses = {reply.status for reply in replies}
    return codes <= _PASSING and statuses <= {Status.GRANTED, Status.REFUSED, Status.UNAVAILABLE}


def _why_silent(results: Sequence[Result]) -> str:
    errors = dict.fromkeys(r.error for r in results if not isinstance(r, Answer) and r.error)
    return f"no answer ({'; '.join(errors)})" if errors else "no answer"
