"""The gate in force: put in place, put back when somebody took it away, tried again when it failed.

Closed first, then those who are in, then those who come: the gate, the holes, the tags.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from keys.actor import Actor
from keys.tomlfile import FileProblem
from spa_server import clock
from spa_server.audit import wording
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.gatehouse import Gatehouse
from spa_server.holekeeper import HoleKeeper
from spa_server.policy.model import Policy
from spa_server.spare import SpareDescriptors
from spa_server.tags import TagKeeper

# What the kernel, nft or a file may answer. Anything else is a fault of ours, and said at length.
_EXPECTED: Final = (FirewallError, FileProblem, OSError)


class FirewallFaults:
    """What could not be done to the kernel. While there is such a thing, the gate is in doubt.

    `since_us` and `why` tell of the first; None while all is well.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.since_us: int | None = None
        self.why: str | None = None
        self._ledger = ledger

    @property
    def in_doubt(self) -> bool:
        """Whether there is one."""
        return self.since_us is not None

    @contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """A failure, whatever it is, is recorded once, and tried again at each tick until it is
        gone: who knows in which of the steps it happened, and what was not done then?"""
        try:
            yield
        except Exception as error:
            self.note(f"{what}: {_words(error)}")
            if not isinstance(error, _EXPECTED):
                traceback.print_exc()

    def note(self, why: str) -> None:
        """From now on, until `clear`, the gate is in doubt."""
        if self.in_doubt:
            return
        self.since_us, self.why = clock.now_us(), why
        self._ledger.note([Record(Event.GATE_FAILED, self.since_us, reason=why)], self.since_us)

    def clear(self) -> None:
        """Everything has been done anew."""
        self.since_us = self.why = None


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, _EXPECTED) else f"{type(error).__name__}: {error}"


class Enforcement:
    """Keeps the gate that the gatehouse wants in the kernel, with its holes and tags."""

    def __init__(
        self,
        gate: Gate,
        gatehouse: Gatehouse,
        keeper: HoleKeeper,
        tags: TagKeeper,
        *,
        ledger: Ledger,
        faults: FirewallFaults,
    ) -> None:
        self._gate = gate
        self._gatehouse = gatehouse
        self._keeper = keeper
        self._tags = tags
        self._ledger = ledger
        self._faults = faults
        self._spare = SpareDescriptors()
        self._backstop_trouble: str | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether something that should be in the kernel may not be: `recover` tries again."""
        return (
            self._faults.in_doubt
            or self._keeper.in_doubt
            or self._gate.backstop.trouble is not None
        )

    @property
    def gate_in_doubt(self) -> bool:
        """Whether it is the gate or the tags."""
        return self._faults.in_doubt

    def close(self) -> None:
        """Gives back the descriptors in reserve; the gate stays as it is."""
        self._spare.close()

    def apply(
        self, policy: Policy, now_us: int, why: str | None = None, *, actor: Actor | None = None
    ) -> None:
        """Loads the gate, holes and tags; `why` they were restored, where that is what happened.

        `actor` is who asked for it.
        """
        with self._faults.tolerate("the gate"), self._spare.lent():
            self._gatehouse.apply(policy)
            opened, closed = self._keeper.sync()
            self._faults.clear()
            event = Event.GATE_APPLIED if why is None else Event.GATE_RESTORED
            detail: dict[str, object] = {
                "holes_opened": len(opened),
                "holes_closed": len(closed),
                "observed": str(self._gatehouse.observed),
            }
            if self._gatehouse.not_counted:
                detail["not_counted"] = "; ".join(self._gatehouse.not_counted)
            if self._gate.backstop.absence:
                detail["no_backstop"] = self._gate.backstop.absence
            records = [Record(event, now_us, reason=why, detail=detail)]
            self._ledger.note(wording.by(actor, records), now_us)
        self._tags.admit_all(now_us)
        self._note_backstop(now_us)

    def restore(
        self, policy: Policy, now_us: int, why: str | None, *, actor: Actor | None = None
    ) -> None:
        """`apply`, where the gate is wanted on this host."""
        with self._faults.tolerate("the gate"):
            if self._gatehouse.is_wanted:
                self.apply(policy, now_us, why, actor=actor)
            else:
                self._give_up(now_us)

    def removed(self, now_us: int, actor: Actor | None = None) -> None:
        """The gate is no longer wanted: recorded, once it is away."""
        with self._faults.tolerate("the gate"):
            self._give_up(now_us)
            if not self._gate.is_loaded():
                record = Record(Event.GATE_REMOVED, now_us, reason="as the operator asked")
                self._ledger.note(wording.by(actor, [record]), now_us)

    def _give_up(self, now_us: int) -> None:
        self._faults.clear()
        self._gate.backstop.disarm("no gate is wanted on this host")
        self._note_backstop(now_us)

    def recover(self, policy: Policy, now_us: int) -> None:
        """What failed is tried again, until the fault is gone."""
        if self._faults.in_doubt:
            self.restore(policy, now_us, "it could not be loaded before")
        elif self._keeper.in_doubt:
            with self._faults.tolerate("the holes"), self._spare.lent():
                self._keeper.sync()
        if self._gate.backstop.trouble is not None:
            with self._faults.tolerate("the backstop"), self._spare.lent():
                self._gate.backstop.again()
            self._note_backstop(now_us)

    def _note_backstop(self, now_us: int) -> None:
        """Its trouble is no doubt about the gate, which stands; it is recorded once."""
        before, self._backstop_trouble = self._backstop_trouble, self._gate.backstop.trouble
        if self._backstop_trouble is not None and before is None:
            reason = f"the backstop: {self._backstop_trouble}"
            self._ledger.note([Record(Event.GATE_FAILED, now_us, reason=reason)], now_us)
