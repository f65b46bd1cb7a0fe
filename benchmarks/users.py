"""Goal 2: the same with one user, a thousand and a hundred thousand."""

import time
from dataclasses import dataclass, field
from typing import Final

from benchmarks.bench import Bench, Curve, Goal, Row
from benchmarks.crowd import Order
from benchmarks.measure import Figure, Latencies
from benchmarks.opening import opened_at_rest, serve_for
from benchmarks.peers import FIRST_PORT, Fwknop, Ours
from benchmarks.probe import Openings, volley
from benchmarks.process import memory_mb, peak_memory_mb
from spa_protocol.layout import EPOCH_S

TITLE = "Flat in users"
_MANY: Final = 100_000
_EPOCH_RATE: Final = 100
_EPOCH_BEFORE_S: Final = 2.0
_EPOCH_LASTS_S: Final = 12.0


@dataclass
class _Grown:
    """One system with so many users."""

    users: int
    start_s: float
    memory_mb: float
    runs: list[Openings]
    peak_mb: float = 0.0
    medians: Figure = field(init=False)

    def __post_init__(self) -> None:
        self.medians = Figure(tuple(run.opened.median_ms for run in self.runs))


def measure(bench: Bench) -> Goal:
    """Both systems with more and more users; ours also while the next epoch's tags are loaded."""
    goal = Goal(2, TITLE)
    sizes = bench.pick((1, 1000, 10_000, _MANY), (1, 1000))
    ours = []
    for users in sizes:
        bench.say(f"spaknock with {users:,} users")
        with bench.scene() as scene:
            serve_for(bench, scene, 100)
            peer = Ours(scene, users)
            start_s = peer.start()
            memory = memory_mb(peer.pid)
            runs = opened_at_rest(bench, peer, bench.pick(100, 15))
            grown = _Grown(users, start_s, memory, runs)
            if users == _MANY:
                goal.rows.append(_over_an_epoch(bench, peer))
            grown.peak_mb = peak_memory_mb(peer.pid)
            ours.append(grown)
    theirs = [_fwknopd(bench, users) for users in sizes]
    goal.rows[:0] = _rows(ours, theirs)
    goal.curves["users"] = [
        _curve("spaknock, median", ours, 0.5),
        _curve("spaknock, 99th percentile", ours, 0.99),
        _curve("fwknopd, median", theirs, 0.5),
        _curve("fwknopd, 99th percentile", theirs, 0.99),
    ]
    return goal


def _fwknopd(bench: Bench, users: int) -> _Grown:
    bench.say(f"fwknopd with {users:,} users")
    with bench.scene() as scene:
        serve_for(bench, scene, 100)
        peer = Fwknop(scene, users)
        start_s = peer.start()
        memory = memory_mb(peer.pid)
        return _Grown(
            users,
            start_s,
            memory,
            opened_at_rest(bench, peer, bench.pick(40 if users < _MANY else 10, 10)),
        )


def _curve(label: str, grown: list[_Grown], share: float) -> Curve:
    points = []
    for each in grown:
        figure = Figure(tuple(run.opened.percentile_ms(share) for run in each.runs))
        points.append((float(each.users), figure.value))
    return Curve(label, tuple(points))


def _rows(ours: list[_Grown], theirs: list[_Grown]) -> list[Row]:
    rows = []
    fewest, most = ours[0], ours[-1]
    for mine, their in zip(ours, theirs, strict=True):
        ratio = mine.medians.value / fewest.medians.value
        is_first = mine is fewest
        rows.append(
            Row(
                f"packet to open port with {mine.users:,} users, median",
                "ms",
                "lower",
                mine.medians,
                their.medians,
                aim="" if is_first else "within 1.5 times that of one user",
                needed=None if is_first else 1.5 * fewest.medians.value,
                note="" if is_first else f"{ratio:.2f} times that of one user",
            )
        )
    users = f"{most.users:,} users"
    is_many = most.users == _MANY
    rows.append(
        Row(
            f"start with {users}",
            "s",
            "lower",
            Figure((most.start_s,)),
            Figure((theirs[-1].start_s,)),
            aim="under 20 s with 100,000",
            needed=20 if is_many else None,
        )
    )
    rows.append(
        Row(
            f"memory with {users}",
            "MB",
            "lower",
            Figure((most.memory_mb,)),
            Figure((theirs[-1].memory_mb,)),
            aim="under 400 MB with 100,000",
            needed=400 if is_many else None,
            holds=most.peak_mb <= 400,
            note=f"{most.peak_mb:.0f} MB at most",
        )
    )
    return rows


def _over_an_epoch(bench: Bench, peer: Ours) -> Row:
    """Knocks at a steady rate while a tag epoch begins, and the next one's tags are loaded."""
    now_s = time.time()
    starts_s = (now_s // EPOCH_S + 1) * EPOCH_S
    if starts_s - now_s < _EPOCH_BEFORE_S + 8:
        starts_s += EPOCH_S
    begin_s = starts_s - _EPOCH_BEFORE_S
    bench.say(f"spaknock at the next tag epoch, in {starts_s - now_s:.0f} s")
    time.sleep(max(0.0, begin_s - time.time() - 6))
    waits = _steady(bench, peer, begin_s)
    worst_ms = max(waits.heard_ms, default=float("inf"))
    return Row(
        "longest wait of a knock while an epoch's tags are loaded",
        "ms",
        "lower",
        Figure((worst_ms,)),
        aim="10 ms, none lost",
        needed=10,
        holds=not waits.lost,
        note=f"{_EPOCH_RATE} knocks a second over {_EPOCH_LASTS_S:.0f} s, {peer.people:,} users; "
        f"median {waits.median_ms:.2f} ms, lost {waits.lost}",
    )


def _steady(bench: Bench, peer: Ours, begin_s: float) -> Latencies:
    """Sealed replies to knocks of many people, at a steady rate from a moment on."""
    count = round(_EPOCH_RATE * _EPOCH_LASTS_S)
    step_us = 1_000_000 // _EPOCH_RATE
    orders = [
        Order(n % 50, (f"tcp/{FIRST_PORT + n}",), round(begin_s * 1e6) + n * step_us)
        for n in range(count)
    ]
    knocks = bench.writers.write(orders, peer.server_key)
    time.sleep(max(0.0, begin_s - time.time()))
    return volley(peer.scene, [knock.payload for knock in knocks], _EPOCH_RATE).waits(
        [knock.answer for knock in knocks]
    )
