"""Goal 6: what an idle daemon costs."""

import math
import subprocess
import sys
import time
from typing import Final

from benchmarks.bench import Bench, Goal, Row
from benchmarks.measure import Figure
from benchmarks.peers import Fwknop, Ours, Peer
from benchmarks.process import cpu_s, memory_mb, wakeups

TITLE = "Cost at rest"
_SETTLE_S: Final = 1.0
_LOADED = "import sys, spa_server.daemon; print('scapy' in sys.modules)"
_BARE = "import sys, time; print(1, flush=True); time.sleep(600)"


def measure(bench: Bench) -> Goal:
    """Both daemons, one after the other, while nothing happens."""
    with bench.scene() as scene:
        ours = Ours(scene)
        ours.start()
        here = _at_rest(bench, ours)
        bare = scene.other.start([sys.executable, "-c", _BARE])
        bare.wait_for("1")
        floor = Figure((memory_mb(bare.pid),))
    with bench.scene() as scene:
        theirs = Fwknop(scene)
        theirs.start()
        there = _at_rest(bench, theirs)
    loads_scapy = subprocess.run(
        [sys.executable, "-c", _LOADED], check=True, capture_output=True, text=True
    ).stdout.strip()
    (wakes, cpu, memory), (their_wakes, their_cpu, their_memory) = here, there
    return Goal(
        6,
        TITLE,
        [
            Row(
                "wake-ups a second",
                "/s",
                "lower",
                wakes,
                their_wakes,
                aim="under 1",
                needed=1,
            ),
            Row("processor time at rest, share of one", "%", "lower", cpu, their_cpu),
            Row(
                "memory of an idle daemon",
                "MB",
                "lower",
                memory,
                their_memory,
                floor,
                aim="lean: scapy not imported",
                needed=math.inf,
                holds=loads_scapy == "False",
                note="resident; limit: a Python that does nothing",
            ),
        ],
    )


def _at_rest(bench: Bench, peer: Peer) -> tuple[Figure, Figure, Figure]:
    """Wake-ups a second, percent of a processor, resident megabytes."""
    lasts_s = bench.pick(20.0, 3.0)
    bench.say(f"{peer.name} at rest for {lasts_s:.0f} s")
    time.sleep(_SETTLE_S)
    woken, spent_s = wakeups(peer.pid), cpu_s(peer.pid)
    time.sleep(lasts_s)
    woken, spent_s = wakeups(peer.pid) - woken, cpu_s(peer.pid) - spent_s
    return (
        Figure((woken / lasts_s,)),
        Figure((100 * spent_s / lasts_s,)),
        Figure((memory_mb(peer.pid),)),
    )
