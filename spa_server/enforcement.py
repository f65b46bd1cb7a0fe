"""The gate in force: put in place, put back when somebody took it away, tried again when it failed.

Closed first, then those who are in, then those who come: the gate, the holes, the tags.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from spa_server import clock
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.gatehouse import Gatehouse
from spa_server.holekeeper import HoleKeeper
from spa_server.policy.model import Policy
from spa_server.tags import TagKeeper


class FirewallFaults:
    """What the kernel would not do. While there is one, the gate is in doubt."""

    def __init__(self, ledger: Ledger) -> None:
        self.in_doubt = False
        self._ledger = ledger

    @contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """A failure is recorded once, and tried again at each tick until it is gone."""
        try:
            yield
        except FirewallError as error:
            if not self.in_doubt:
                now_us = clock.now_us()
                record = Record(Event.GATE_FAILED, now_us, reason=f"{what}: {error}")
                self._ledger.note([record], now_us)
            self.in_doubt = True


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

    @property
    def in_doubt(self) -> bool:
        """Whether something that should be in the kernel may not be: `recover` tries again."""
        return self._faults.in_doubt or self._keeper.in_doubt

    @property
    def gate_in_doubt(self) -> bool:
        """Whether it is the gate or the tags."""
        return self._faults.in_doubt

    def apply(self, policy: Policy, now_us: int, why: str | None = None) -> None:
        """Loads the gate, holes and tags; `why` they were restored, where that is what happened."""
        with self._faults.tolerate("the gate"):
            self._gatehouse.apply(policy)
            opened, closed = self._keeper.sync()
            self._faults.in_doubt = False
            event = Event.GATE_APPLIED if why is None else Event.GATE_RESTORED
            detail: dict[str, object] = {
                "holes_opened": len(opened),
                "holes_closed": len(closed),
                "observed": str(self._gatehouse.observed),
            }
            if self._gatehouse.not_counted:
                detail["not_counted"] = "; ".join(self._gatehouse.not_counted)
            self._ledger.note([Record(event, now_us, reason=why, detail=detail)], now_us)
        self._tags.admit_all(now_us)

    def restore(self, policy: Policy, now_us: int, why: str | None) -> None:
        """`apply`, where the gate is wanted on this host."""
        if self._gatehouse.is_wanted:
            self.apply(policy, now_us, why)
        else:
            self._faults.in_doubt = False

    def removed(self, now_us: int) -> None:
        """The gate is no longer wanted: recorded, once it is away."""
        self._faults.in_doubt = False
        if not self._gate.is_loaded():
            record = Record(Event.GATE_REMOVED, now_us, reason="as the operator asked")
            self._ledger.note([record], now_us)

    def recover(self, policy: Policy, now_us: int) -> None:
        """What failed is tried again, until the fault is gone."""
        if self._faults.in_doubt:
            self.restore(policy, now_us, "it could not be loaded before")
        elif self._keeper.in_doubt:
            with self._faults.tolerate("the holes"):
                self._keeper.sync()
