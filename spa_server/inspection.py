"""A dry run over a capture: what the doorkeeper and the policy would have said to each datagram.

Nothing is opened, answered or written. The registry is read as it is now, the clock is the file's,
and nothing counts as replayed but what the file itself repeats.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from spa_protocol.access import Access
from spa_protocol.knock import Knock
from spa_server.admission import Admission
from spa_server.capture.datagram import Datagram
from spa_server.directory import Directory
from spa_server.doorkeeper import Moment, Verdict, judge
from spa_server.policy.decide import Decision
from spa_server.replay import ReplayWindow
from spa_server.ruling import Terms, rule

_FEW_KEYS: Final = 1000


@dataclass(frozen=True, slots=True)
class Inspected:
    """One datagram and what would have become of it."""

    datagram: Datagram
    verdict: str
    identity: str | None = None
    key_id: str | None = None
    kind: str | None = None
    decisions: tuple[str, ...] = ()


def inspect(
    datagrams: Iterable[Datagram],
    directory: Directory,
    admission: Admission,
    terms: Terms,
    freshness_s: float,
) -> Iterator[Inspected]:
    """Each datagram's fate, in the order of the file.

    Where few keys are enrolled, all their spare tags are known: nobody can tell from a file which
    of them were admitted when.
    """
    admission.spares_all = len(admission) <= _FEW_KEYS
    window = ReplayWindow()
    for datagram in datagrams:
        _load_tags(admission, datagram.seen_at_us)
        moment = Moment(datagram.seen_at_us)
        verdict = judge(datagram, moment, admission.find, window, freshness_s)
        if verdict.burn is not None:
            window.add(verdict.burn)
        yield _inspected(datagram, verdict, directory, terms)


def _load_tags(admission: Admission, now_us: int) -> None:
    for _ in admission.drop_outside(now_us):
        pass
    for epoch in admission.missing_epochs(now_us):
        for _ in admission.load(epoch):
            pass


def _inspected(
    datagram: Datagram, verdict: Verdict, directory: Directory, terms: Terms
) -> Inspected:
    key_id = verdict.sender.key_id if verdict.sender else None
    owner = directory.owner(key_id) if key_id else None
    request = verdict.knock.request if verdict.knock else None
    decisions: tuple[tuple[Access, Decision], ...] = ()
    if verdict.reason is None and owner is not None and isinstance(request, Knock):
        touched = verdict.knock is not None and verdict.knock.touched
        now_us = datagram.seen_at_us
        decisions = rule(request, datagram, owner, terms, now_us, touched=touched).decisions
    refused = decisions and not any(decision.granted for _, decision in decisions)
    return Inspected(
        datagram=datagram,
        verdict=str(verdict.reason or ("refused" if refused else "accepted")),
        identity=owner.identity if owner else None,
        key_id=key_id,
        kind=type(request).__name__.lower() if request else None,
        decisions=tuple(f"{access}: {decision.sentence}" for access, decision in decisions),
    )
