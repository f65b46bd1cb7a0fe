"""Goal 1: how long from a packet to an open port, and from a command to the first byte."""

import secrets
import statistics
import sys

from benchmarks import commands
from benchmarks.bench import Bench, Curve, Goal, Row
from benchmarks.measure import Figure
from benchmarks.peers import FIRST_PORT, Fwknop, Ours, Peer, Scene
from benchmarks.plots import distribution
from benchmarks.probe import Openings, openings, volley

TITLE = "A knock opens a port in a millisecond"
_ECHO_PORT = 7
_ECHO = f"""
import socket
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("", {_ECHO_PORT}))
print("listening", flush=True)
while True:
    echo.sendto(*echo.recvfrom(2048))
"""


def measure(bench: Bench) -> Goal:
    """Both systems at rest, with one user each."""
    ports = bench.pick(200, 20)
    with bench.scene() as scene:
        serve_for(bench, scene, ports)
        ours = Ours(scene)
        ours.start()
        bench.say("spaknock: packet to open port")
        here = opened_at_rest(bench, ours, ports)
        floor = _round_trips(bench, scene)
        bench.say("spaknock: command to first byte")
        our_commands = commands.of_ours(bench, ours)
    with bench.scene() as scene:
        serve_for(bench, scene, ports)
        fwknop = Fwknop(scene)
        fwknop.start()
        bench.say("fwknopd: packet to open port")
        there = opened_at_rest(bench, fwknop, bench.pick(100, 10))
        bench.say("fwknopd: command to first byte")
        fwknop_commands = commands.of_fwknop(bench, fwknop)
    goal = Goal(1, TITLE)
    goal.rows += _rows(here, there, floor)
    goal.rows += commands.rows(our_commands, fwknop_commands, commands.python_start(bench))
    goal.curves["distribution"] = [
        Curve(label, distribution([ms for run in runs for ms in run.opened.each_ms]))
        for label, runs in (("spaknock", here), ("fwknopd", there))
    ]
    return goal


def opened_at_rest(bench: Bench, peer: Peer, count: int) -> list[Openings]:
    """Several runs of so many knocks, each knock for a port of its own."""
    runs = []
    for run in range(bench.runs):
        first_port = FIRST_PORT + run * count
        runs.append(openings(peer, peer.knocks(count, first_port), first_port=first_port))
    return runs


def serve_for(bench: Bench, scene: Scene, count: int) -> None:
    """Services on all the ports that so many knocks a run are for."""
    scene.serve(FIRST_PORT, FIRST_PORT + bench.runs * count)


def _rows(here: list[Openings], there: list[Openings], floor: Figure) -> list[Row]:
    ours = Figure(tuple(run.opened.median_ms for run in here))
    theirs = Figure(tuple(run.opened.median_ms for run in there))
    tail = Figure(tuple(run.opened.percentile_ms(0.99) for run in here))
    their_tail = Figure(tuple(run.opened.percentile_ms(0.99) for run in there))
    reply = Figure(tuple(run.answered.median_ms for run in here))
    lost = sum(run.opened.lost for run in here)
    return [
        Row(
            "packet to open port, median",
            "ms",
            "lower",
            ours,
            theirs,
            floor,
            aim="50 times shorter than fwknopd's",
            needed=theirs.value / 50,
            note="limit: a UDP round trip between two of the hosts",
        ),
        Row(
            "packet to open port, 99th percentile",
            "ms",
            "lower",
            tail,
            their_tail,
            aim="under 5 ms, none lost",
            needed=5,
            holds=not lost,
        ),
        Row(
            "packet to sealed reply, median",
            "ms",
            "lower",
            reply,
            limit=floor,
            note="fwknopd does not reply",
        ),
    ]


def _round_trips(bench: Bench, scene: Scene) -> Figure:
    """The least that there is: somebody who answers at once."""
    scene.other.start([sys.executable, "-c", _ECHO]).wait_for("listening")
    runs = []
    for _ in range(bench.runs):
        payloads = [secrets.token_bytes(240) for _ in range(200)]
        found = volley(scene, payloads, 500, to=(scene.other.v4, _ECHO_PORT))
        sent_s = dict(zip(payloads, found.sent_s, strict=True))
        runs.append(statistics.median((at_s - sent_s[echo]) * 1e3 for at_s, echo in found.heard))
    return Figure(tuple(runs))
