"""Verifying the record: is the chain whole, and is it the one that the server signed?

The record is read once, in order. Each line is held against the digest of the line before it as it
is kept, so that one altered line is one finding and not a million. What is found is named:

    altered        a line does not fit behind the one before it
    removed        lines are missing; also where those after them were given new numbers
    inserted       lines were put in, and those after them given new numbers
    reordered      two lines have changed places
    rewritten      a chain that fits, but not to a digest that was signed or kept elsewhere
    cut-off        the record ends before a line that was signed or kept elsewhere
    bad-signature  a checkpoint, or the base, that its signer did not sign
    unknown-signer a signature by a key that is not trusted, and no trusted one after it
    unreadable     the database is damaged, or its tables are not as they were made

What was written after the last checkpoint, and cut off again before the next, leaves no trace but
what others keep of it: docs/record.md, "What it cannot show".
"""

import heapq
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from spa_server.audit import chain
from spa_server.audit.checkpoint import Base, Checkpoint, Signer
from spa_server.audit.walk import Finding, Walk, lines_named

_AT_ONCE: Final = 2000


class Claim(NamedTuple):
    """Somebody says that a line had this digest. `signed_at_us`: a trusted key says so."""

    event_id: int
    digest: bytes
    who: str
    signed_at_us: int | None = None


@dataclass(slots=True)
class Report:
    """What was found. Times are microseconds since the Unix epoch; ids are the record's."""

    lines: int = 0
    first_id: int = 0
    last_id: int = 0
    digest: bytes = chain.GENESIS
    base: Base | None = None
    checkpoints: int = 0
    signed_id: int = 0
    signed_at_us: int | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def unsigned(self) -> int:
        """How many lines came after the last checkpoint that fits."""
        return max(0, self.last_id - max(self.signed_id, self.first_id - 1))


def verify(
    connection: sqlite3.Connection,
    trusted: Sequence[Signer],
    claims: Iterable[Claim] = (),
    progress: Callable[[int], None] = lambda _lines: None,
) -> Report:
    """Reads the whole record.

    `claims` are what others kept of it; `progress` is told how many lines more were read. Raises
    sqlite3.Error where there is no record to be read at all.
    """
    report = Report()
    signers = {signer.name: signer for signer in trusted}
    connection.execute("begin")
    try:
        walk = Walk(report.findings)
        walk.begin(_base(connection, signers, report))
        if not _is_strict(connection):
            report.findings.append(Finding("unreadable", "the table `event` is not as it was made"))
        stamped = _Checkpoints(connection, signers, report)
        kept = sorted(claims, key=_by_id)
        said = _Said(heapq.merge(stamped, kept, key=_by_id), report)
        for row in _rows(connection, report):
            orig_id = walk.step(row)
            if said.next_id <= orig_id:
                said.hold_against(orig_id, row[-1], is_misfit=walk.misfit_id == orig_id)
            if not walk.lines % _AT_ONCE:
                progress(_AT_ONCE)
        progress(walk.lines % _AT_ONCE)
        walk.end()
        report.lines, report.first_id = walk.lines, walk.first_id
        report.last_id, report.digest = walk.row_id, walk.digest
        said.end(walk.last_id)
        stamped.end()
    finally:
        connection.execute("rollback")
    report.findings.sort(key=lambda finding: finding.first_id or 2**64)
    return report


def _by_id(claim: Claim) -> int:
    return claim.event_id


def _is_strict(connection: sqlite3.Connection) -> bool:
    row = connection.execute("select strict from pragma_table_list where name = 'event'").fetchone()
    return row is not None and bool(row[0])


def _base(
    connection: sqlite3.Connection, signers: dict[str, Signer], report: Report
) -> Base | None:
    rows = connection.execute(
        "select first_id, at_us, until_us, digest, signer, signature from base"
    ).fetchall()
    if not rows:
        return None
    base = Base(*rows[-1])
    if base.signer not in signers:
        what = f"that lines before {base.first_id} were removed is signed by {base.signer}"
        report.findings.append(Finding("unknown-signer", f"{what}, which is not trusted"))
    elif len(rows) > 1 or not signers[base.signer].verifies(base):
        what = f"the base, by which lines before {base.first_id} were removed, was not signed so"
        report.findings.append(Finding("bad-signature", what))
    report.base = base
    return base


def _rows(connection: sqlite3.Connection, report: Report) -> Iterator[tuple[Any, ...]]:
    """Every line. Text that is no UTF-8 is read as far as it goes: its digest will not fit."""
    columns = ", ".join(chain.COLUMNS)
    statement = f"select {columns}, digest from event where id > ? order by id"  # noqa: S608 - our own
    last_id = -(2**63)
    while True:
        try:
            for row in connection.execute(statement, (last_id,)):
                last_id = row[0]
                yield row
        except sqlite3.OperationalError as error:
            if "UTF-8" not in str(error) or connection.text_factory is not str:
                raise
            connection.text_factory = lambda value: value.decode(errors="replace")
        except sqlite3.DatabaseError as error:
            what = f"the database is damaged behind line {last_id}: {error}"
            report.findings.append(Finding("unreadable", what, last_id))
            return
        else:
            return


class _Checkpoints:
    """The checkpoints in the database, as claims in order; those that are not signed are found."""

    def __init__(
        self, connection: sqlite3.Connection, signers: dict[str, Signer], report: Report
    ) -> None:
        self._connection = connection
        self._signers = signers
        self._report = report
        self._unknown: Checkpoint | None = None

    def __iter__(self) -> Iterator[Claim]:
        rows = self._connection.execute(
            "select event_id, at_us, digest, signer, signature from checkpoint order by event_id"
        )
        for row in rows:
            made = Checkpoint(*row)
            signer = self._signers.get(made.signer)
            if signer is None:
                self._unknown = made
            elif signer.verifies(made):
                self._report.checkpoints += 1
                yield Claim(made.event_id, made.digest, "a checkpoint", made.at_us)
            else:
                what = f"the checkpoint at line {made.event_id} was not signed by {made.signer}"
                finding = Finding("bad-signature", what, made.event_id, made.event_id)
                self._report.findings.append(finding)

    def end(self) -> None:
        """A signer that is not trusted matters only where none that is has signed later."""
        unknown = self._unknown
        if unknown is not None and unknown.event_id > self._report.signed_id:
            what = f"line {unknown.event_id} is signed by {unknown.signer}, which is not trusted"
            finding = Finding("unknown-signer", what, unknown.event_id, unknown.event_id)
            self._report.findings.append(finding)


class _Said:
    """What was signed or kept elsewhere, held against the lines as they come."""

    _NEVER: Final = 2**64

    def __init__(self, claims: Iterable[Claim], report: Report) -> None:
        self._claims = iter(claims)
        self._report = report
        self._good_ids = (0, 0)
        self._broken: list[tuple[int, Claim]] = []
        self._next: Claim | None = None
        self.next_id = 0
        self._take()

    def _take(self) -> None:
        self._next = next(self._claims, None)
        self.next_id = self._NEVER if self._next is None else self._next.event_id

    def hold_against(self, event_id: int, digest: bytes, *, is_misfit: bool) -> None:
        """The line of this number has this digest. Claims about lines that are gone are passed.

        That a line which does not fit is not what it was is told already.
        """
        while self._next is not None and self.next_id <= event_id:
            claim = self._next
            if claim.event_id == event_id and not (is_misfit and claim.digest != digest):
                self._judge(claim, digest)
            self._take()

    def _judge(self, claim: Claim, digest: bytes) -> None:
        before, latest = self._good_ids
        if claim.digest != digest:
            good_id = latest if latest < claim.event_id else before
            self._broken = [*self._broken[:1], (good_id + 1, claim)]
            return
        self._find_broken()
        if claim.event_id > latest:
            self._good_ids = (latest, claim.event_id)
        if claim.signed_at_us is not None:
            self._report.signed_id = claim.event_id
            self._report.signed_at_us = claim.signed_at_us

    def _find_broken(self) -> None:
        """Of claims that do not fit, one after the other, the first and the last are told."""
        if self._broken:
            first, nearest = self._broken[0]
            last = self._broken[-1][1].event_id
            what = f"{nearest.who} at line {nearest.event_id} was made of others than"
            what = f"{what} {lines_named(first, nearest.event_id)} as they are"
            self._report.findings.append(Finding("rewritten", what, first, last))
        self._broken = []

    def end(self, last_id: int) -> None:
        """Claims about lines that should follow the last one."""
        self._find_broken()
        furthest: Claim | None = None
        while self._next is not None:
            furthest = self._next
            self._take()
        if furthest is not None:
            first, last = last_id + 1, furthest.event_id
            what = f"the record ends with line {last_id}; there was {furthest.who} at line {last}"
            self._report.findings.append(Finding("cut-off", what, first, last))
