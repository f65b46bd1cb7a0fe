"""The kernel's counts of denials beside all else: two sources, a new gate, knocks, rest."""

import os
import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest

from benchmarks.process import wakeups
from integration.denied import Scene
from integration.lab import Host, Lab, wait_until

FIRST_PORT: Final = 3000
SPOOFED: Final = 20_000
_REST_S: Final = 12.0


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        yield Scene.new(lab)


def wait_for(scene: Scene, source: Host, port: int, count: int) -> None:
    """Until all are counted, and fails where one too many is."""
    what = f"{count} of {source.name} to {port}"
    wait_until(lambda: scene.denied(source, port) >= count, within_s=30, what=what)
    assert scene.denied(source, port) == count


def test_two_sources_are_counted_each_for_itself(scene: Scene) -> None:
    scene.syns(scene.client, 300, FIRST_PORT)
    scene.syns(scene.other, 120, FIRST_PORT)
    wait_for(scene, scene.client, FIRST_PORT, 300)
    wait_for(scene, scene.other, FIRST_PORT, 120)


def test_a_reload_of_the_policy_counts_nothing_twice(scene: Scene) -> None:
    """The sets keep what they hold: what comes after a reload is further packets."""
    port = FIRST_PORT + 1
    scene.syns(scene.client, 100, port)
    scene.site.server("reload")
    scene.syns(scene.client, 50, port)
    wait_for(scene, scene.client, port, 150)


@pytest.mark.parametrize("further", [20, 200], ids=["fewer", "more"])
def test_after_the_table_is_deleted_counts_begin_anew(scene: Scene, further: int) -> None:
    """Whether the new count is smaller than the one before or larger."""
    port = FIRST_PORT + 2 + further
    scene.syns(scene.client, 100, port)
    wait_for(scene, scene.client, port, 100)
    time.sleep(6)  # an element that ends when the old one would have ended is taken for that one
    scene.server.run(["nft", "delete", "table", "inet", "spa"])
    wait_until(lambda: scene.site.status()["gate"] == "loaded", what="the gate to be put back")
    scene.syns(scene.client, further, port)
    wait_for(scene, scene.client, port, 100 + further)


@pytest.mark.alone
def test_some_time_after_the_last_denial_nobody_wakes(scene: Scene) -> None:
    """Its readings end as soon as no element is left, and begin again with the next denial."""
    scene.syns(scene.client, 10, FIRST_PORT + 500)
    wait_for(scene, scene.client, FIRST_PORT + 500, 10)
    for name in ("denied4", "denied6", "observed4", "observed6"):
        scene.server.run(["nft", "flush", "set", "inet", "spa", name])
    assert scene.site.daemon is not None
    process = scene.site.daemon.pid
    until_s = time.monotonic() + 90
    while woken(process) > 2:
        assert time.monotonic() < until_s, "the daemon goes on reading"
    scene.syns(scene.client, 30, FIRST_PORT + 501)
    wait_for(scene, scene.client, FIRST_PORT + 501, 30)


@pytest.mark.alone
def test_knocks_are_served_while_20000_sources_flood(scene: Scene) -> None:
    """Each source is listed, and what comes a second time is counted: no more than was sent.

    It comes last: its lines are folded, and written once a minute.
    """
    before = scene.total()
    knocks = 0
    flood = threading.Thread(target=scene.flood, args=(SPOOFED, 3400, 2))
    flood.start()
    while flood.is_alive() or knocks < 3:
        assert scene.alice.knock(scene.other, "tcp/22").returncode == 0
        knocks += 1
    flood.join()

    def told() -> int:
        return scene.total() - before

    wait_until(lambda: told() >= 1.5 * SPOOFED, within_s=40, what="the counts")
    scene.alice.knock(scene.other, "tcp/80")
    assert len(scene.lines()) < 5000
    assert told() <= 2 * SPOOFED


def woken(process: int) -> int:
    """How often its threads have waited, over more than the pause between two readings."""
    os.kill(process, 0)
    before = wakeups(process)
    time.sleep(_REST_S)
    return wakeups(process) - before
