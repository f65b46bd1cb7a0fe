"""Findings: what does not fit together on a host, under names that never change.

An error says that the host is not guarded as it should be, or that people are locked out; a
warning that something is not as somebody believes; a note is worth a look and may well be meant.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """How bad it is, the worst first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


# Every name, in the order in which findings of one severity are told.
SEVERITIES: Final = {
    "nobody-enrolled": Severity.ERROR,
    "nobody-reaches-ssh": Severity.ERROR,
    "server-key-unusable": Severity.ERROR,
    "policy-unusable": Severity.ERROR,
    "gate-not-loaded": Severity.ERROR,
    "gate-differs": Severity.ERROR,
    "gate-in-doubt": Severity.ERROR,
    "daemon-not-running": Severity.ERROR,
    "key-of-another-machine": Severity.ERROR,
    "carrier-unanswered": Severity.ERROR,
    "ingress-redirect": Severity.ERROR,
    "gate-not-confirmed": Severity.WARNING,
    "nobody-heard": Severity.WARNING,
    "config-held-back": Severity.WARNING,
    "backstop-failed": Severity.WARNING,
    "config-changed": Severity.WARNING,
    "answers-hindered": Severity.WARNING,
    "policy-not-in-force": Severity.WARNING,
    "unknown-role": Severity.WARNING,
    "broken-key": Severity.WARNING,
    "registry-nearly-full": Severity.WARNING,
    "review-due": Severity.WARNING,
    "rule-expired": Severity.WARNING,
    "rule-expiring": Severity.WARNING,
    "schedule-over": Severity.WARNING,
    "cut-among-own-ports": Severity.WARNING,
    "rule-without-listener": Severity.WARNING,
    "always-open-unused": Severity.WARNING,
    "listener-changed": Severity.WARNING,
    "earlier-queue": Severity.WARNING,
    "earlier-notrack": Severity.WARNING,
    "earlier-rewrite": Severity.WARNING,
    "flowtable": Severity.WARNING,
    "xdp-program": Severity.WARNING,
    "tc-ingress": Severity.WARNING,
    "another-firewall": Severity.WARNING,
    "iptables-legacy": Severity.WARNING,
    "key-of-no-machine": Severity.NOTE,
    "gate-observes": Severity.NOTE,
    "no-backstop": Severity.NOTE,
    "role-unused": Severity.NOTE,
    "listening-unreachable": Severity.NOTE,
    "docker-published": Severity.NOTE,
    "earlier-hook": Severity.NOTE,
    "other-drops": Severity.NOTE,
    "bridge-unjudged": Severity.NOTE,
    "not-checked": Severity.NOTE,
}
_SEVERITY_RANK: Final = {severity: rank for rank, severity in enumerate(Severity)}
_NAME_RANK: Final = {name: rank for rank, name in enumerate(SEVERITIES)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not fit: `subject` is what it is about, `advice` what to do.

    Name and subject together tell it from every other, and stay the same for as long as it lasts;
    the words in `what` may change meanwhile.
    """

    name: str
    subject: str
    what: str
    advice: str

    @property
    def severity(self) -> Severity:
        """How bad it is: a name has one severity."""
        return SEVERITIES[self.name]

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from every other finding."""
        return self.name, self.subject


@dataclass(frozen=True, slots=True)
class Changes:
    """What a run found that the one before did not, and what is gone since."""

    new: tuple[Finding, ...]
    gone: tuple[Finding, ...]


def changes(before: Iterable[Finding], now: Iterable[Finding]) -> Changes:
    """The difference of two runs. A finding that is told in other words is the same."""
    was = {finding.key: finding for finding in before}
    known = {finding.key: finding for finding in now}
    return Changes(
        new=tuple(finding for key, finding in known.items() if key not in was),
        gone=tuple(finding for key, finding in was.items() if key not in known),
    )


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; of one severity, those of a kind together."""
    return sorted(
        findings, key=lambda f: (_SEVERITY_RANK[f.severity], _NAME_RANK[f.name], f.subject)
    )


def selected(
    findings: Iterable[Finding], only: Collection[str], ignored: Collection[str]
) -> list[Finding]:
    """Those whose name is among `only`, where it names any, and not among `ignored`."""
    return [f for f in findings if (not only or f.name in only) and f.name not in ignored]


def are_notes(findings: Iterable[Finding]) -> bool:
    """Whether there is nothing worse than notes."""
    return all(finding.severity is Severity.NOTE for finding in findings)
