"""What every goal's measurement is given, and what it gives back."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from benchmarks.crowd import Writers
from benchmarks.measure import Figure
from benchmarks.peers import Scene
from benchmarks.process import Load
from integration.lab import Lab

Better: TypeAlias = Literal["lower", "higher"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the results.

    `limit` is what the machine itself could do at best. `aim` is the goal in words, `needed` the
    value that ours has to reach for it, and `holds` whether its other conditions are met; where
    nothing is needed, the figure is only reported.
    """

    what: str
    unit: str
    better: Better
    ours: Figure
    fwknopd: Figure | None = None
    limit: Figure | None = None
    aim: str = ""
    needed: float | None = None
    holds: bool = True
    note: str = ""

    @property
    def is_reached(self) -> bool | None:
        """None where nothing is needed."""
        if self.needed is None:
            return None
        value = self.ours.value
        enough = value <= self.needed if self.better == "lower" else value >= self.needed
        return enough and self.holds

    def times_better_than(self, other: Figure | None) -> float | None:
        """Ours over the other, or the reverse where less is better; None without another."""
        if other is None or (self.better == "lower" and not self.ours.value):
            return None
        if self.better == "lower":
            return other.value / self.ours.value
        return self.ours.value / other.value if other.value else None


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot: its label and its points."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(slots=True)
class Goal:
    """What came of one goal: rows for the table, curves for the plots by the plot's name."""

    number: int
    title: str
    rows: list[Row] = field(default_factory=list)
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """Where things are kept, how thorough to be, and who composes knocks."""

    cache: Path
    quick: bool
    writers: Writers
    began_s: float = field(default_factory=time.monotonic)

    def pick(self, full: _T, quick: _T) -> _T:
        """One of two sizes."""
        return quick if self.quick else full

    @property
    def runs(self) -> int:
        """How often each figure is measured."""
        return self.pick(5, 2)

    @contextmanager
    def scene(self) -> Iterator[Scene]:
        """Hosts of their own, gone when the block is left."""
        with Lab() as lab:
            yield Scene.in_lab(lab, self.cache)

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        print(f"{time.monotonic() - self.began_s:6.0f} s  {text}", file=sys.stderr, flush=True)
