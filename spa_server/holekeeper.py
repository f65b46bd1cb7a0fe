"""The hole keeper: makes the kernel's holes what the grants say, and ends sessions that must end.

The kernel closes a hole on time by itself. What is left to do here is to open, to close early, to
cut the sessions of `cut` services, to enter each end in the record, and after any doubt (a restart,
a flushed ruleset, a failure) to make the kernel equal to the book again.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from keys.actor import Actor
from spa_server.audit import wording
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.firewall.elements import HoleLease, LiveHole
from spa_server.grants import Grant, GrantBook
from spa_server.hole import Hole

_SLACK_MS: Final = 1500


class HoleGate(Protocol):
    """What the keeper needs of the firewall. Each method raises FirewallError."""

    def open(self, leases: Iterable[HoleLease]) -> None:
        """Opens holes, or gives open ones a new timeout; all or none."""

    def close(self, holes: Iterable[Hole]) -> None:
        """Closes holes; one that is gone already is no error."""

    def live_holes(self) -> list[LiveHole]:
        """The holes that are open."""


class Severing(Protocol):
    """What ends the connections that may not outlive their grants: spa_server/severance.py."""

    in_doubt: bool

    def before_end(self) -> None:
        """Grants are about to end."""

    def ended(self, grants: Sequence[Grant], now_us: int, why: str | None = None) -> list[Record]:
        """These have; what is to be recorded."""

    def opened(self, grants: Sequence[Grant]) -> None:
        """These are new in the book. Raises FirewallError."""

    def restore(self) -> None:
        """The kernel may have forgotten what it was told. Raises FirewallError."""


class HoleKeeper:
    """The book of grants, kept true in the kernel and in the record.

    `clock_s` reads CLOCK_MONOTONIC. While the kernel may not hold what the book says, it is
    `in_doubt`: the daemon then tries `sync` until it succeeds. `severing` is set before anything is
    granted: it needs the book.
    """

    severing: Severing

    def __init__(
        self,
        gate: HoleGate,
        ledger: Ledger,
        clock_s: Callable[[], float],
    ) -> None:
        self.book = GrantBook()
        self._in_doubt = False
        self._gate = gate
        self._ledger = ledger
        self._clock_s = clock_s

    @property
    def in_doubt(self) -> bool:
        """Whether the kernel may not hold what the book says."""
        return self._in_doubt or self.severing.in_doubt

    def open(self, grants: Sequence[Grant]) -> None:
        """Opens the holes of new grants. When it raises FirewallError, none of them is in force."""
        change = self.book.add(grants)
        try:
            new = frozenset() if self._in_doubt else change.new
            self._gate.open(self._leases(change.open_until_s, new))
            self.severing.opened(grants)
        except Exception:  # whatever it was: who knows what the kernel holds now
            self.book.end(grants)
            self._in_doubt = True
            raise

    def adopt(self, grants: Sequence[Grant]) -> None:
        """Enters the grants of an earlier run; `sync` then sees to the kernel."""
        self.book.add(grants)
        self._in_doubt = True

    def end(
        self, grants: Sequence[Grant], why: str, now_us: int, actor: Actor | None = None
    ) -> None:
        """Ends grants before their time, and records it, with who did it.

        Raises FirewallError when the kernel could not be told; it will be, and the record says so.
        """
        if not grants:
            return
        self.severing.before_end()
        change = self.book.end(grants)
        ended = [(grant, why) for grant in grants]
        try:
            self._gate.open(self._leases(change.open_until_s))
            self._gate.close(change.close)
        except Exception as error:
            self._in_doubt = True
            records = [wording.granted(Event.HOLE_FAILED, g, now_us, str(error)) for g in grants]
            self._ledger.note(wording.by(actor, records), now_us, ended)
            raise
        records = [wording.granted(Event.HOLE_CLOSED, grant, now_us, why) for grant in grants]
        records += self.severing.ended(grants, now_us, why)
        self._ledger.note(wording.by(actor, records), now_us, ended)

    def expire(self, now_us: int) -> None:
        """Enters what the kernel has closed by itself, and cuts the sessions that end with it."""
        end_s, now_s = self.book.next_end_s(), self._clock_s()
        if end_s is None or end_s > now_s:
            return
        self.severing.before_end()
        over = self.book.expire(now_s)
        records = [wording.granted(Event.HOLE_EXPIRED, grant, now_us) for grant in over]
        records += self.severing.ended(over, now_us)
        self._ledger.note(records, now_us, [(grant, "expired") for grant in over])

    def sync(self) -> tuple[list[Hole], list[Hole]]:
        """Makes the kernel's holes those of the book; what had to be opened, and closed.

        A `once` hole that is gone has been used: it is not opened again. Raises FirewallError.
        """
        self._in_doubt = True
        live = {found.hole: found.remaining_ms for found in self._gate.live_holes()}
        wanted = self.book.holes()
        extra = [hole for hole in live if hole not in wanted]
        missing = {
            hole: until_s
            for hole, until_s in wanted.items()
            if not hole.once and not self._is_right(live.get(hole), until_s)
        }
        self._gate.close(extra)
        self._gate.open(self._leases(missing))
        self.severing.restore()
        self._in_doubt = False
        return list(missing), extra

    def _is_right(self, remaining_ms: int | None, until_s: float) -> bool:
        wanted_ms = (until_s - self._clock_s()) * 1000
        return remaining_ms is not None and abs(remaining_ms - wanted_ms) < _SLACK_MS

    def _leases(
        self, until_s: dict[Hole, float], new: frozenset[Hole] = frozenset()
    ) -> list[HoleLease]:
        now_s = self._clock_s()
        return [
            HoleLease(hole, max(1, round((end_s - now_s) * 1000)), hole in new)
            for hole, end_s in until_s.items()
        ]
