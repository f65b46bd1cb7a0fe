"""Goal 4: how many valid knocks a second, each with its hole, its replay mark and its record.

First more is sent than can be borne, and the rate of the answers taken for what the daemon can do;
then knocks come at a little less than that, and every one has to be answered in time. The daemon
has one processor to itself, the sender the other. Each knock declares another source, so each opens
a hole of its own. Twice: with holes that outlast the stream, and with holes that end within it,
each end being a line of the record too.
"""

import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from benchmarks.bench import Bench, Goal, Row
from benchmarks.crowd import Order, address
from benchmarks.measure import Figure, Latencies
from benchmarks.peers import FIRST_PORT, MEASURED, Fwknop, Ours, pinned
from benchmarks.probe import volley
from benchmarks.process import cpu_s
from keys.schema import connect
from spa_server.firewall.kernel import Gate

TITLE = "Sustained valid knocks"
_USERS: Final = 1000
_SHORT_LIFETIME_S: Final = 1
_TOO_MUCH_PER_S: Final = 25_000
_IN_TIME_MS: Final = 250
_FIRST_SHARE: Final = 0.8
_LESS: Final = 0.9
_LONG_S: Final = 5.0
_SHORT_S: Final = 1.0
_AIM_PER_S: Final = 5_000
_AIM_OF_LIMIT: Final = 0.4
_THEIR_LIFETIME_S: Final = 120
_THEIR_PATIENCE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Stream:
    """What became of a stream of knocks; `cpu_us` is the daemon's processor time for each."""

    answers_per_s: float
    waits: Latencies
    cpu_us: float

    @property
    def is_borne(self) -> bool:
        """Whether all were answered, and 99 of 100 in time."""
        return not self.waits.lost and self.waits.percentile_ms(0.99) <= _IN_TIME_MS


def measure(bench: Bench) -> Goal:
    """Ours at its highest rate, with what it leaves behind; fwknopd's; and the limit."""
    limit = _verifications(bench)
    with bench.scene() as scene:
        ours = Ours(scene, _USERS)
        ours.start()
        lasting = _Sender(bench, ours, lifetime_s=round(bench.pick(_LONG_S, _SHORT_S)) + 3)
        best = _highest(bench, lasting, _capacity(bench, lasting))
        rows = _rows(best, _fwknopd(bench), limit)
        if not bench.quick:
            ending = _Sender(bench, ours, lifetime_s=_SHORT_LIFETIME_S, sent=lasting.sent)
            rows.append(_row_with_ends(_highest(bench, ending, best.rate_per_s), limit))
    return Goal(4, TITLE, rows)


@dataclass(frozen=True, slots=True)
class _Best:
    """Streams at the highest rate that is borne, and what the first of them left behind."""

    rate_per_s: float
    streams: list[_Stream]
    left: str


class _Sender:
    """Sends streams of knocks whose holes live so long; number `sent` and those after it."""

    def __init__(self, bench: Bench, ours: Ours, *, lifetime_s: int, sent: int = 0) -> None:
        self.ours = ours
        self.sent = sent
        self._bench = bench
        self._lifetime_s = lifetime_s
        self._free_at_s = 0.0
        self._composed_per_s = 4000.0

    def stream(self, rate_per_s: float, count: int) -> _Stream:
        """So many knocks at a steady rate, once the holes of those before have ended."""
        ours = self.ours
        began_s = time.time()
        begin_s = max(began_s + 0.5 + count / self._composed_per_s, self._free_at_s)
        orders = [
            Order(
                n % _USERS,
                (f"tcp/{FIRST_PORT}",),
                round((begin_s + n / rate_per_s) * 1e6),
                source=address(self.sent + n),
                lifetime_s=self._lifetime_s,
            )
            for n in range(count)
        ]
        self.sent += count
        knocks = self._bench.writers.write(orders, ours.server_key)
        self._composed_per_s = count / (time.time() - began_s)
        time.sleep(max(0.0, begin_s - time.time()))
        before_s = cpu_s(ours.pid)
        found = volley(ours.scene, [knock.payload for knock in knocks], rate_per_s)
        spent_s = cpu_s(ours.pid) - before_s
        self._free_at_s = time.time() + self._lifetime_s + 0.5
        waits = found.waits([knock.answer for knock in knocks])
        return _Stream(found.answers_per_s, waits, spent_s / count * 1e6)


def _capacity(bench: Bench, sender: _Sender) -> float:
    """Answers a second while more comes than can be answered, up to what the kernel keeps."""
    bench.say("spaknock: more knocks than it can bear")
    return sender.stream(_TOO_MUCH_PER_S, bench.pick(12_000, 5_000)).answers_per_s


def _highest(bench: Bench, sender: _Sender, limit_per_s: float) -> _Best:
    """Halves the way between what is borne and what is not, then sends at that rate again."""
    borne, not_borne = 0.0, limit_per_s
    tried = limit_per_s * _FIRST_SHARE
    for _ in range(bench.pick(4, 1)):
        if _send(bench, sender, tried).is_borne:
            borne = tried
        else:
            not_borne = tried
        tried = (borne + not_borne) / 2
    while borne:
        before = _Traces.of(sender.ours)
        first = _send(bench, sender, borne)
        left = _Traces.of(sender.ours).since(before, len(first.waits.each_ms))
        streams = [first, *(_send(bench, sender, borne) for _ in range(bench.runs - 1))]
        if sum(stream.is_borne for stream in streams) > bench.runs / 2:
            return _Best(borne, streams, left)
        borne *= _LESS
    raise RuntimeError(f"of {limit_per_s:,.0f} knocks a second too few are borne")


def _send(bench: Bench, sender: _Sender, rate_per_s: float) -> _Stream:
    bench.say(f"spaknock: {rate_per_s:,.0f} knocks a second")
    return sender.stream(rate_per_s, round(rate_per_s * bench.pick(_LONG_S, _SHORT_S)))


@dataclass(frozen=True, slots=True)
class _Traces:
    """What knocks have left behind: in the ledger, and in the kernel."""

    burned: int
    opened: int
    holes: int

    @classmethod
    def of(cls, ours: Ours) -> "_Traces":
        """As they are now."""
        with closing(connect(ours.site.database, read_only=True)) as database:
            burned, opened = (
                database.execute(query).fetchone()[0]
                for query in (
                    "select count(*) from burned",
                    "select count(*) from event where event in ('hole.opened', 'hole.renewed')",
                )
            )
        with ours.scene.server.inside(), Gate() as gate:
            return cls(burned, opened, len(gate.live_holes()))

    def since(self, before: "_Traces", count: int) -> str:
        """What so many knocks have added, for a reader."""
        return (
            f"of {count:,} knocks {self.burned - before.burned:,} replay marks and "
            f"{self.opened - before.opened:,} holes are on record; {self.holes:,} holes are open"
        )


def _rows(best: _Best, theirs: Figure, limit: Figure) -> list[Row]:
    answered = Figure(tuple(stream.answers_per_s for stream in best.streams))
    cpu = Figure(tuple(stream.cpu_us for stream in best.streams))
    tail = Figure(tuple(stream.waits.percentile_ms(0.99) for stream in best.streams))
    return [
        Row(
            "valid knocks a second, all answered",
            "/s",
            "higher",
            answered,
            theirs,
            limit,
            aim=f"{_AIM_PER_S:,}, and {_AIM_OF_LIMIT} of the limit",
            needed=max(_AIM_PER_S, _AIM_OF_LIMIT * limit.value),
            note=f"limit: Ed25519 verification and nothing else; {best.left}",
        ),
        Row("the daemon's processor time for a knock", "us", "lower", cpu),
        Row("99th percentile of the sealed replies at that rate", "ms", "lower", tail),
    ]


def _row_with_ends(best: _Best, limit: Figure) -> Row:
    return Row(
        "the same while as many holes end",
        "/s",
        "higher",
        Figure(tuple(stream.answers_per_s for stream in best.streams)),
        limit=limit,
        note=f"each hole lives {_SHORT_LIFETIME_S} s; {best.left}",
    )


def _verifications(bench: Bench) -> Figure:
    """A second each, on the processor that the daemon will have."""
    bench.say("the limit: verifying signatures and nothing else")
    argv = pinned(MEASURED, sys.executable, "-m", "benchmarks.limits", "1")
    runs = (subprocess.run(argv, check=True, capture_output=True) for _ in range(bench.runs))
    return Figure(tuple(float(done.stdout) for done in runs))


def _fwknopd(bench: Bench) -> Figure:
    """How many ports a second it opens when more knocks come than it can bear."""
    count = bench.pick(200, 40)
    with bench.scene() as scene:
        peer = Fwknop(scene, lifetime_s=_THEIR_LIFETIME_S)
        peer.start()
        runs = []
        for run in range(bench.runs):
            bench.say(f"fwknopd: {count} knocks at once")
            knocks = peer.knocks(count, FIRST_PORT + run * count)
            runs.append(_opened_per_s(peer, knocks))
        return Figure(tuple(runs))


def _opened_per_s(peer: Fwknop, knocks: list[bytes]) -> float:
    """From the sending to the last port that opens: how many, over how long."""
    before = opened = peer.open_ports()
    began_s = last_s = time.monotonic()
    volley(peer.scene, knocks, _TOO_MUCH_PER_S, linger_ms=0)
    while opened < before + len(knocks) and time.monotonic() - last_s < _THEIR_PATIENCE_S:
        time.sleep(0.02)
        now_open = peer.open_ports()
        if now_open > opened:
            opened, last_s = now_open, time.monotonic()
    return (opened - before) / (last_s - began_s) if opened > before else 0.0
