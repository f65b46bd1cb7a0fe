"""The drift watch: what the last look found, and what is new or gone since the one before.

What finds drift is spa_server/alignment/drift.py. It blocks, so it is run in a thread. What was
found is kept in the ledger, so that a daemon that starts says only what has changed meanwhile.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from spa_server.alignment.drift import find_drift
from spa_server.alignment.finding import SEVERITIES, Finding, changes
from spa_server.audit.ledger import Ledger, LedgerError
from spa_server.audit.record import Event, Record
from spa_server.gatehouse import Gatehouse
from spa_server.policy.model import Policy

_RECORDED: Final = 100


class Drift(NamedTuple):
    """What was found, by which policy and which listing of the gate."""

    policy: Policy
    planned: str | None
    findings: list[Finding]


class DriftWatch:
    """Remembers the findings of the last look, be it of an earlier run. Raises LedgerError."""

    def __init__(self, gatehouse: Gatehouse, ledger: Ledger) -> None:
        self._gatehouse = gatehouse
        self._ledger = ledger
        with ledger.writing() as connection:
            told = connection.execute("select name, subject, what, advice from drift_told")
            # A name may be of another version.
            self.findings = [Finding(*row) for row in told if row[0] in SEVERITIES]

    def look(self, policy: Policy) -> Callable[[], Drift]:
        """What finds it: to be run in a thread, where it touches nothing of the daemon's."""
        config, planned = self._gatehouse.config, self._gatehouse.listed
        return lambda: Drift(policy, planned, find_drift(config, policy, planned=planned))

    def changed(self, drift: Drift, policy: Policy, now_us: int) -> list[Record]:
        """Records of what is new, and of what is gone.

        What was looked for by a policy or a gate that is in force no longer says nothing about now.
        """
        if drift.policy is not policy or drift.planned != self._gatehouse.listed:
            return []
        changed = changes(self.findings, drift.findings)
        self.findings = drift.findings
        if changed.new or changed.gone:
            self._keep()
        told = [(Event.DRIFT_FOUND, one) for one in changed.new]
        told += [(Event.DRIFT_GONE, one) for one in changed.gone]
        records = [
            Record(
                event,
                now_us,
                reason=one.what,
                detail={"name": one.name, "subject": one.subject, "severity": one.severity},
            )
            for event, one in told[:_RECORDED]
        ]
        if len(told) > _RECORDED:
            detail = {"further": len(told) - _RECORDED}
            records.append(Record(Event.DRIFT_FOUND, now_us, detail=detail))
        return records

    def _keep(self) -> None:
        """Where it cannot be kept, a later run says it again."""
        rows = {one.key: (one.name, one.subject, one.what, one.advice) for one in self.findings}
        with suppress(LedgerError), self._ledger.writing() as connection:
            connection.execute("delete from drift_told")
            connection.executemany("insert into drift_told values (?, ?, ?, ?)", rows.values())
