"""Goal 3: knocks under flood.

The junk is sent as fast as the machine can unless a rate is named, and is of the kind that gets
furthest: for fwknopd base64 of the right length, which it holds against the HMAC key of every user.
The daemon and whoever knocks share one processor, the flood has the other to itself; so the knocker
sleeps between two SYNs.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from benchmarks.bench import Bench, Curve, Goal, Row
from benchmarks.measure import Figure, Latencies
from benchmarks.peers import FIRST_PORT, MEASURED, Fwknop, Ours, Peer
from benchmarks.plots import distribution
from benchmarks.probe import SLEEPING_US, Flood, flood, openings
from benchmarks.process import cpu_s

TITLE = "Under flood"
_Write: TypeAlias = Callable[[int, int], list[bytes]]
_USERS: Final = 1000
_SWELLS_S: Final = 0.5
_OWNER: Final = 0
_SOURCES: Final = 60_000
_SLOW_RATE: Final = 300
_JUNK_PER_S: Final = 400_000
_NOTHING_US: Final = 0.01
_P99_MS: Final = 20

_NAMES: Final = {
    "calm": "no flood",
    "slow": f"{_SLOW_RATE} junk packets a second",
    "fast": "junk at the highest rate",
    "others": "stolen tag, other keys",
    "owner": "stolen tag, its owner from another address",
    "others, forged": f"stolen tag from {_SOURCES:,} sources, other keys",
    "owner, forged": f"stolen tag from {_SOURCES:,} sources, its owner",
}


@dataclass(frozen=True, slots=True)
class _Under:
    """When ports opened under a flood, and what the flood was."""

    opened: Latencies
    junk: Flood

    @property
    def heard_percent(self) -> float:
        """How many of the knocks opened their port."""
        total = len(self.opened.each_ms)
        return 100 * (total - self.opened.lost) / total

    @property
    def told(self) -> str:
        """The counts behind the figures."""
        total = len(self.opened.each_ms)
        heard = f"{total - self.opened.lost} of {total} knocks"
        return f"{heard}, {self.junk.rate_per_s:,.0f} junk packets a second"


def measure(bench: Bench) -> Goal:
    """Both systems with a thousand users, under the same floods and under those of a stolen tag."""
    count, their_count = bench.pick((200, 40), (20, 5))
    with bench.scene() as scene:
        ours = Ours(scene, _USERS)
        trials = _Trials(bench, ours, count)
        cost = _cost_of_junk(bench, ours)
        here = _under_junk(trials)
        stolen = _under_a_stolen_tag(trials, ours)
    with bench.scene() as scene:
        theirs = Fwknop(scene, _USERS)
        their_trials = _Trials(bench, theirs, their_count)
        their_cost = _cost_of_junk(bench, theirs)
        there = _under_junk(their_trials)
    goal = Goal(3, TITLE, _rows_of_cost(cost, their_cost))
    for name, aim in (("slow", ""), ("fast", "all")):
        goal.rows += _rows(_NAMES[name], here[name], there[name], must_hear=bool(aim))
    for name, under in stolen.items():
        goal.rows += _rows(_NAMES[name], under, None, must_hear=name != "owner, forged")
    goal.curves["flood"] = [
        Curve(f"{label}, {_NAMES[name]}", distribution(found[name].opened.each_ms))
        for label, found in (("spaknock", here), ("fwknopd", there))
        for name in ("calm", "slow", "fast")
    ]
    return goal


class _Trials:
    """One system's knocks, so many each time, under one flood after another.

    Each time has ports of its own: those of the last may still be open. The daemon is begun anew,
    so that whatever junk still waits to be looked at is not in the next figure.
    """

    def __init__(self, bench: Bench, peer: Peer, count: int) -> None:
        self.bench = bench
        self.peer = peer
        self.count = count
        self._ports = iter(range(FIRST_PORT, FIRST_PORT + len(_NAMES) * count, count))
        peer.scene.serve(FIRST_PORT, FIRST_PORT + len(_NAMES) * count)
        peer.start()

    def calm(self) -> _Under:
        """Without a flood."""
        self._begin("calm")
        return _Under(self._opened(self.peer.knocks), Flood())

    def under(
        self,
        name: str,
        payload: str,
        *,
        write: _Write | None = None,
        count: int | None = None,
        rate_per_s: float = 0,
        sources: int = 1,
    ) -> _Under:
        """Under a flood. The knocks are the last user's unless `write` writes others."""
        self._begin(name)
        with flood(self.peer.scene, payload, rate_per_s=rate_per_s, sources=sources) as junk:
            time.sleep(_SWELLS_S)
            return _Under(self._opened(write or self.peer.knocks, count), junk)

    def _begin(self, name: str) -> None:
        self.bench.say(f"{self.peer.name}: {_NAMES[name]}")
        self.peer.stop(signal.SIGKILL)
        self.peer.start()

    def _opened(self, write: _Write, count: int | None = None) -> Latencies:
        first_port = next(self._ports)
        return openings(
            self.peer,
            write(count or self.count, first_port),
            first_port=first_port,
            step_us=SLEEPING_US,
            deadline_ms=self.bench.pick(2000, 1000),
            processor=MEASURED,
        ).opened


def _under_junk(trials: _Trials) -> dict[str, _Under]:
    junk = trials.peer.junk
    return {
        "calm": trials.calm(),
        "slow": trials.under("slow", junk, rate_per_s=_SLOW_RATE),
        "fast": trials.under("fast", junk),
    }


def _under_a_stolen_tag(trials: _Trials, ours: Ours) -> dict[str, _Under]:
    found = {}
    for name, people, sources in (
        ("others", range(1, _USERS), 1),
        ("owner", range(1), 1),
        ("others, forged", range(1, _USERS), _SOURCES),
        ("owner, forged", range(1), _SOURCES),
    ):
        tag = f"tag:{ours.tag_of(_OWNER).hex()}"
        write = partial(ours.knocks_of, people)
        # Those that are not heard are waited for.
        count = trials.count // 4 if name == "owner, forged" else trials.count
        found[name] = trials.under(name, tag, write=write, count=count, sources=sources)
    return found


@dataclass(frozen=True, slots=True)
class _Cost:
    """Processor time of the daemon for each junk packet, in microseconds, run by run."""

    each_us: Figure
    junk_per_s: Figure


def _cost_of_junk(bench: Bench, peer: Peer) -> _Cost:
    """Without knocks, and less what the daemon uses at rest."""
    bench.say(f"{peer.name}: what junk costs the daemon")
    lasts_s = bench.pick(3.0, 1.0)
    at_rest_s = _cpu_over(peer, lasts_s)
    costs, rates = [], []
    for _ in range(bench.runs):
        with flood(peer.scene, peer.junk) as junk:
            spent_s = _cpu_over(peer, lasts_s)
        costs.append(max(0.0, spent_s - at_rest_s) / (junk.rate_per_s * lasts_s) * 1e6)
        rates.append(junk.rate_per_s)
    return _Cost(Figure(tuple(costs)), Figure(tuple(rates)))


def _cpu_over(peer: Peer, seconds: float) -> float:
    before_s = cpu_s(peer.pid)
    time.sleep(seconds)
    return cpu_s(peer.pid) - before_s


def _rows_of_cost(ours: _Cost, theirs: _Cost) -> list[Row]:
    return [
        Row(
            "junk packets a second, as many as the machine can send",
            "/s",
            "higher",
            ours.junk_per_s,
            aim=f"{_JUNK_PER_S:,}",
            needed=_JUNK_PER_S,
            note=f"fwknopd was sent {theirs.junk_per_s.value:,.0f}, and heard as many as its "
            "processor had time for",
        ),
        Row(
            "the daemon's processor time for each of them",
            "us",
            "lower",
            ours.each_us,
            theirs.each_us,
            aim="none",
            needed=_NOTHING_US,
        ),
    ]


def _rows(name: str, ours: _Under, theirs: _Under | None, *, must_hear: bool) -> list[Row]:
    told = [f"spaknock: {ours.told}"] + ([f"fwknopd: {theirs.told}"] if theirs else [])
    fast = name == _NAMES["fast"]
    tail_ms = ours.opened.percentile_ms(0.99)
    return [
        Row(
            f"{name}: knocks heard",
            "%",
            "higher",
            Figure((ours.heard_percent,)),
            Figure((theirs.heard_percent,)) if theirs else None,
            aim="all" if must_hear else "",
            needed=100 if must_hear else None,
            note="; ".join(told),
        ),
        Row(
            f"{name}: 99th percentile",
            "ms",
            "lower",
            Figure((tail_ms,)),
            Figure((theirs.opened.percentile_ms(0.99),)) if theirs else None,
            aim=f"under {_P99_MS} ms" if fast else "",
            needed=_P99_MS if fast else None,
        ),
    ]
