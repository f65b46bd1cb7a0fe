"""Goal 7: what the gate itself costs a new connection.

One client connects, is accepted, resets and connects again, as fast as it can, through one hole;
against the same hosts with no ruleset at all, and behind an iptables rule set that does the same:
established connections pass, new ones from this source to this port pass and are logged (NFLOG),
all else is dropped. The daemon is dead meanwhile: what it does about a permitted connection is its
own affair, and a row of its own. The kinds take turns, so that what disturbs one disturbs all.
"""

from contextlib import ExitStack
from typing import Final

from benchmarks.bench import Bench, Goal, Row
from benchmarks.measure import Figure
from benchmarks.peers import FIRST_PORT, LOADING, Ours, Scene, pinned
from benchmarks.probe import openings

TITLE = "What the gate costs a connection"
_WITHIN: Final = 0.95
_LIFETIME_S: Final = 3600
_TABLES: Final = """
*filter
:INPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -s {source} -d {target} -p tcp -m tcp --dport {port} -j NFLOG --nflog-group 622
-A INPUT -s {source} -d {target} -p tcp -m tcp --dport {port} -j ACCEPT
COMMIT
"""

_TRACKED: Final = """
table inet tracked {
  chain input {
    type filter hook input priority filter
    ct state invalid accept
  }
}
"""


def measure(bench: Bench) -> Goal:
    """Connections a second, the kinds in turn."""
    with ExitStack() as stack:
        kinds = ("bare", "tracked", "tables", "gated", "whole")
        scenes = {kind: stack.enter_context(bench.scene()) for kind in kinds}
        for scene in scenes.values():
            scene.serve(FIRST_PORT, FIRST_PORT)
        scenes["tracked"].server.run(["nft", "-f", "-"], text=_TRACKED)
        _load_iptables(scenes["tables"])
        _open_hole(scenes["gated"], keep_daemon=False)
        with_daemon = _open_hole(scenes["whole"], keep_daemon=True)
        rates = _in_turn(bench, scenes)
        lost = with_daemon.site.status()["lost"]
    bare, tracked = rates["bare"].value, rates["tracked"].value
    return Goal(
        7,
        TITLE,
        [
            Row(
                "new connections a second through a hole, against iptables",
                "/s",
                "higher",
                rates["gated"],
                rates["tables"],
                aim="within 5 %",
                needed=_WITHIN * rates["tables"].value,
                note="the equal iptables rule set stands in fwknopd's column",
            ),
            Row(
                "new connections a second through a hole, against no ruleset",
                "/s",
                "higher",
                rates["gated"],
                limit=rates["bare"],
                aim="within 5 %",
                needed=_WITHIN * bare,
                note=f"conntrack alone, with one rule that switches it on: {tracked:,.0f}, "
                f"{tracked / bare:.2f} of no ruleset",
            ),
            Row(
                "the same while the daemon enters each in the record",
                "/s",
                "higher",
                rates["whole"],
                limit=rates["gated"],
                note=f"limit: with the daemon dead; {lost:,} were too many to enter, but counted",
            ),
        ],
    )


def _load_iptables(scene: Scene) -> None:
    rules = _TABLES.format(source=scene.client.v4, target=scene.server.v4, port=FIRST_PORT)
    scene.server.run(["iptables-restore"], text=rules)


def _open_hole(scene: Scene, *, keep_daemon: bool) -> Ours:
    ours = Ours(scene)
    ours.start()
    found = openings(ours, ours.knocks(1, lifetime_s=_LIFETIME_S))
    if found.opened.lost:
        raise RuntimeError("the hole did not open")
    if not keep_daemon:
        ours.stop()
    return ours


def _in_turn(bench: Bench, scenes: dict[str, Scene]) -> dict[str, Figure]:
    rates: dict[str, list[float]] = {kind: [] for kind in scenes}
    for turn in range(bench.pick(15, 3)):
        bench.say(f"connections, turn {turn + 1}")
        for kind, scene in scenes.items():
            rates[kind].append(_connections_per_s(scene, bench.pick(1.0, 0.4)))
    return {kind: Figure(tuple(found)) for kind, found in rates.items()}


def _connections_per_s(scene: Scene, seconds: float) -> float:
    where = (scene.server.v4, FIRST_PORT, seconds)
    argv = pinned(LOADING, scene.program("connections"), "count", *where)
    made, lasted = scene.client.run(argv).stdout.split()
    return int(made) / float(lasted)
