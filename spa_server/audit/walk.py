"""The walk along the chain: which lines do not fit where they are, and what was done to them.

A line is held against the digest of the line before it as it is kept, so that one altered line is
one finding and not a million. spa_server/audit/verify.py names the findings.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from spa_server.audit import chain
from spa_server.audit.chain import Columns, digest_of
from spa_server.audit.checkpoint import Base

_NEAR: Final = 65
_FAR: Final = 50_000
_SHIFTS: Final = tuple(sign * by for by in range(1, _NEAR) for sign in (1, -1))
_RECENT: Final = 64
_MAX_PAIRED: Final = 64
_MAX_TRIED: Final = 2000  # of more, only that they do not fit is told, and not why
_MAX_FINDINGS: Final = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and the lines that it is about."""

    name: str
    what: str
    first_id: int | None = None
    last_id: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


class _Misfit(NamedTuple):
    """A line, by its number when it was written, that does not fit behind `previous`."""

    event_id: int
    previous: bytes
    columns: Columns
    digest: bytes


class Walk:
    """The chain, line by line, by the numbers that the lines had when they were written.

    `last_id` is such a number, `row_id` the one that the same line has now, and `digest` what is
    kept of it; `misfit_id` is the last one that does not fit. What is found is added to `findings`.
    """

    def __init__(self, findings: list[Finding]) -> None:
        self.lines = 0
        self.first_id = 1
        self.last_id = 0
        self.row_id = 0
        self.digest = chain.GENESIS
        self.misfit_id = 0
        self._findings = findings
        self._shift = 0
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_RECENT)
        self._misfits: list[_Misfit] = []
        self._searched = False
        self._tried = 0
        self._altered: Finding | None = None

    def begin(self, base: Base | None) -> None:
        """Before the first line."""
        if base is not None:
            self.first_id, self.last_id, self.digest = base.first_id, base.first_id - 1, base.digest

    def step(self, row: tuple[Any, ...]) -> int:
        """Takes one line; returns the number that it had when it was written."""
        columns, digest = row[:-1], row[-1]
        event_id: int = row[0] + self._shift
        if event_id != self.last_id + 1:
            event_id = self._after_gap(columns, digest)
        elif _digest(self.digest, event_id, columns) != digest:
            event_id = self._misfit(event_id, columns, digest)
        self.last_id, self.row_id, self.digest = event_id, row[0], digest
        self._recent.append((event_id, digest))
        self.lines += 1
        return event_id

    def _after_gap(self, columns: Columns, digest: bytes) -> int:
        """A number that is not the next: it may be that those before it were changed."""
        expected = self.last_id + 1
        if _digest(self.digest, expected, columns) == digest:
            self._shift = expected - columns[0]
            if self._shift:
                what = f"the lines from {columns[0]} on were given other numbers"
                self._find(Finding("altered", what, columns[0]))
            return expected
        event_id: int = columns[0] + self._shift
        if event_id > expected:
            lines = lines_named(expected, event_id - 1)
            what = f"{lines} {_were(expected, event_id - 1)} removed; {_shown(columns)} follows"
            self._find(Finding("removed", what, expected, event_id - 1))
        return event_id

    def _misfit(self, event_id: int, columns: Columns, digest: bytes) -> int:
        self._tried += 1
        if self._tried <= _MAX_TRIED:
            for shift in self._shifts_to_try(event_id):
                if _digest(self.digest, event_id + shift, columns) == digest:
                    self._renumbered(event_id, shift)
                    self._shift += shift
                    return event_id + shift
            own_id = self._behind_which(event_id, columns, digest)
            if own_id is not None:
                self._inserted(own_id + 1, event_id - 1, "")
                return event_id
        self.misfit_id = event_id
        self._misfits.append(_Misfit(event_id, self.digest, columns, digest))
        if len(self._misfits) >= _MAX_PAIRED:
            self._settle()
        return event_id

    def _behind_which(self, event_id: int, columns: Columns, digest: bytes) -> int | None:
        """The line, of those that fit, that this one was written behind."""
        misfits = {misfit.event_id for misfit in self._misfits}
        for own_id, own_digest in self._recent:
            if own_id not in misfits and _digest(own_digest, event_id, columns) == digest:
                return own_id
        return None

    def _shifts_to_try(self, event_id: int) -> Iterable[int]:
        """Far ones are tried once, at the second line of a kind that does not fit."""
        is_second = bool(self._misfits) and self._misfits[-1].event_id == event_id - 1
        if is_second and not self._searched:
            self._searched = True
            return itertools.chain(
                _SHIFTS, range(_NEAR, _FAR), range(-_NEAR, -min(event_id, _FAR), -1)
            )
        self._searched &= is_second
        return _SHIFTS

    def _renumbered(self, event_id: int, shift: int) -> None:
        """From the line before this one on the numbers are others; that line was taken as altered,
        because what it followed is gone, or is not what it followed."""
        if shift < 0:
            self._inserted(event_id - 1 + shift, event_id - 2, ", and those after it renumbered")
            return
        self._misfits = [each for each in self._misfits if each.event_id != event_id - 1]
        first, last = event_id - 1, event_id - 2 + shift
        named = f"{lines_named(first, last)} {_were(first, last)}"
        what = f"{named} removed, and those after it renumbered"
        self._find(Finding("removed", what, first, last))

    def _inserted(self, first: int, last: int, and_so: str) -> None:
        self._misfits = [each for each in self._misfits if each.event_id < first]
        what = f"{lines_named(first, last)} {_were(first, last)} inserted{and_so}"
        self._find(Finding("inserted", what, first, last))

    def end(self) -> None:
        """After the last line."""
        self._settle()

    def _settle(self) -> None:
        """Lines that do not fit: have two of them changed places? Else they were altered."""
        left = {misfit.event_id: misfit for misfit in self._misfits}
        self._misfits = []
        if self._tried <= _MAX_TRIED:
            self._pair(left)
        for misfit in list(left.values()):
            if misfit.event_id in left:
                own = _digest(misfit.previous, misfit.event_id, misfit.columns)
                _forgive(left, misfit.event_id + 1, own or b"")
                self._alter(misfit)

    def _alter(self, misfit: _Misfit) -> None:
        """Altered lines in a row are one finding."""
        last = self._altered
        event_id = misfit.event_id
        if last is None or last.last_id != event_id - 1:
            before = event_id - 1
            what = f"{_shown(misfit.columns)} was altered, or line {before} with its digest"
            self._altered = Finding("altered", what, event_id, event_id)
            self._find(self._altered)
        elif last in self._findings:
            what = f"{lines_named(last.first_id or 0, event_id)} were altered"
            self._altered = Finding("altered", what, last.first_id, event_id)
            self._findings[self._findings.index(last)] = self._altered

    def _pair(self, left: dict[int, _Misfit]) -> None:
        for one, other in itertools.combinations(list(left.values()), 2):
            if one.event_id not in left or other.event_id not in left:
                continue
            if _belongs(other, one):
                what = f"lines {one.event_id} and {other.event_id} have changed places"
                self._find(Finding("reordered", what, one.event_id, other.event_id))
                for place, moved in ((one, other), (other, one)):
                    left.pop(place.event_id, None)
                    _forgive(left, place.event_id + 1, moved.digest)

    def _find(self, finding: Finding) -> None:
        findings = self._findings
        if len(findings) < _MAX_FINDINGS:
            findings.append(finding)
        elif len(findings) == _MAX_FINDINGS:
            findings.append(Finding("altered", "and more, which is not listed"))


def _digest(previous: bytes, event_id: int, columns: Columns) -> bytes | None:
    """None for a line that the ledger cannot have written."""
    try:
        return digest_of(previous, (event_id, *columns[1:]))
    except (TypeError, AttributeError, UnicodeEncodeError):
        return None


def _belongs(moved: _Misfit, place: _Misfit) -> bool:
    """Whether one line, with its digest or without, fits where the other is."""
    return _digest(place.previous, place.event_id, moved.columns) in (moved.digest, place.digest)


def _forgive(left: dict[int, _Misfit], event_id: int, previous: bytes) -> None:
    """A line that did not fit only because of the one before it."""
    misfit = left.get(event_id)
    if misfit is not None and _digest(previous, event_id, misfit.columns) == misfit.digest:
        del left[event_id]


def _shown(columns: Columns) -> str:
    """A line by its number, what it says and of whom."""
    said = ", ".join(str(value) for value in (columns[2], columns[3]) if value)
    return f"line {columns[0]} ({said})"


def lines_named(first: int, last: int) -> str:
    """A line, or lines, by number."""
    return f"line {first}" if first == last else f"lines {first} to {last}"


def _were(first: int, last: int) -> str:
    return "was" if first == last else "were"
