"""Goal 5: tens of thousands of holes open at once.

Many people open eight ports each, from sources of their own; then somebody opens one more, the
holes are listed, and the daemon is killed with -9: the kernel alone has to close them, and in time.
"""

import math
import signal
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.bench import Bench, Goal, Row
from benchmarks.crowd import Order, address
from benchmarks.measure import Figure
from benchmarks.opening import opened_at_rest, serve_for
from benchmarks.peers import LIFETIME_S, Fwknop, Ours
from benchmarks.probe import openings, volley
from benchmarks.process import memory_mb
from spa_protocol.layout import MAX_ACCESSES
from spa_server.firewall.kernel import Gate

TITLE = "Scale of holes"
_USERS: Final = 1000
_RATE_PER_S: Final = 400
_SOON_TIMES: Final = 1.5
_LATE_S: Final = 1.0
_THEIR_LIFETIME_S: Final = 600
_WATCHED_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class _Many:
    """Holes that are open, and when the last of them has to be closed (CLOCK_MONOTONIC)."""

    count: int
    end_s: float


def measure(bench: Bench) -> Goal:
    """Ours with 50,000 holes, fwknopd with as many rules as it opens in a while."""
    with bench.scene() as scene:
        serve_for(bench, scene, 50)
        ours = Ours(scene, _USERS)
        ours.start()
        bench.say("spaknock: one hole more, with no other")
        alone = _opened(bench, ours)
        many = _open_many(bench, ours)
        bench.say(f"spaknock: one hole more, with {many.count:,} others")
        among = _opened(bench, ours)
        listing = _listing(bench, ours)
        memory = Figure((memory_mb(ours.pid),))
        late_s = _closed_late_s(bench, ours, many)
    theirs, rules = _fwknopd(bench)
    their_late_s = _fwknopd_killed(bench)
    holes = f"{many.count:,} holes"
    return Goal(
        5,
        TITLE,
        [
            Row(
                f"packet to open port with {holes} open, median",
                "ms",
                "lower",
                among,
                theirs,
                limit=alone,
                aim=f"within {_SOON_TIMES} times that with none open",
                needed=_SOON_TIMES * alone.value,
                note=f"limit: with none open; fwknopd has {rules} rules",
            ),
            Row(f"listing {holes}: spa-server holes --json", "s", "lower", listing),
            Row(f"memory with {holes} open", "MB", "lower", memory),
            Row(
                f"the last of {holes} to close, after its time, with the daemon dead",
                "s",
                "lower",
                Figure((late_s,)),
                Figure((their_late_s,)),
                aim=f"within {_LATE_S:.0f} s",
                needed=_LATE_S,
                note=f"as the kernel lists them; fwknopd was watched for {_WATCHED_S:.0f} s",
            ),
        ],
    )


def _opened(bench: Bench, peer: Ours | Fwknop) -> Figure:
    runs = opened_at_rest(bench, peer, bench.pick(50, 10))
    return Figure(tuple(run.opened.median_ms for run in runs))


def _open_many(bench: Bench, ours: Ours) -> _Many:
    """Each knock opens eight holes, from a source of its own."""
    knocks = bench.pick(50_000, 5_000) // MAX_ACCESSES
    lifetime_s = bench.pick(120, 9)
    bench.say(f"spaknock: opening {knocks * MAX_ACCESSES:,} holes")
    accesses = tuple(f"tcp/{1000 + n}" for n in range(MAX_ACCESSES))
    begin_s = time.time() + 2 + knocks / _RATE_PER_S
    orders = [
        Order(
            n % _USERS,
            accesses,
            round((begin_s + n / _RATE_PER_S) * 1e6),
            source=address(n),
            lifetime_s=lifetime_s,
        )
        for n in range(knocks)
    ]
    written = bench.writers.write(orders, ours.server_key)
    found = volley(ours.scene, [knock.payload for knock in written], _RATE_PER_S)
    lost = found.waits([knock.answer for knock in written]).lost
    if lost:
        raise RuntimeError(f"{lost} of {knocks} knocks were not answered")
    return _Many(_holes(ours), time.monotonic() + lifetime_s)


def _holes(ours: Ours) -> int:
    with ours.scene.server.inside(), Gate() as gate:
        return len(gate.live_holes())


def _listing(bench: Bench, ours: Ours) -> Figure:
    bench.say("spaknock: listing them")
    runs = []
    for _ in range(bench.runs):
        began_s = time.monotonic()
        ours.site.holes()
        runs.append(time.monotonic() - began_s)
    return Figure(tuple(runs))


def _closed_late_s(bench: Bench, ours: Ours, many: _Many) -> float:
    """How long after its time the last hole was gone; the daemon is dead all the while."""
    ours.stop(signal.SIGKILL)
    left_s = many.end_s - time.monotonic()
    bench.say(f"spaknock: the daemon is killed; the last hole ends in {left_s:.0f} s")
    time.sleep(max(0.0, left_s))
    while open_now := _holes(ours):
        if time.monotonic() > many.end_s + 30:
            raise RuntimeError(f"{open_now} holes are still open")
        time.sleep(0.05)
    return max(0.0, time.monotonic() - many.end_s)


def _fwknopd(bench: Bench) -> tuple[Figure, int]:
    """How long one more takes it, and how many rules it had when it began."""
    rules = bench.pick(1000, 100)
    with bench.scene() as scene:
        serve_for(bench, scene, 50)
        peer = Fwknop(scene, lifetime_s=_THEIR_LIFETIME_S)
        peer.start()
        bench.say(f"fwknopd: opening {rules} ports")
        volley(scene, peer.knocks(rules, 1000), 50, linger_ms=0)
        time.sleep(3)
        count = peer.open_ports()
        bench.say(f"fwknopd: one port more, with {count} others")
        return _opened(bench, peer), count


def _fwknopd_killed(bench: Bench) -> float:
    """How long after its time its only hole was gone; infinite where it never was."""
    bench.say("fwknopd: killed with a port open")
    with bench.scene() as scene:
        serve_for(bench, scene, 1)
        peer = Fwknop(scene)
        peer.start()
        if openings(peer, peer.knocks(1)).opened.lost:
            raise RuntimeError("the port did not open")
        end_s = time.monotonic() + LIFETIME_S
        peer.stop(signal.SIGKILL)
        while peer.open_ports():
            if time.monotonic() > end_s + _WATCHED_S:
                return math.inf
            time.sleep(0.1)
        return max(0.0, time.monotonic() - end_s)
