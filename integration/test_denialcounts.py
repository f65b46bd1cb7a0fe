"""What the kernel counts of denials is in the record: at least, and never more than was sent."""

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from typing import Final

import pytest

from benchmarks.process import wakeups
from integration.denied import Scene, flood, stands_for
from integration.lab import Host, Lab, wait_until
from spa_server import clock
from spa_server.audit.denials import Denials
from spa_server.denialcounts import DenialCounts, Reading, read
from spa_server.firewall.kernel import Gate
from spa_server.firewall.plan import GatePlan
from spa_server.meter import Meter

CLOSED: Final = 2222
SPOOFED: Final = 30_000
FULL: Final = 65_000


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        yield Scene.new(lab)


def test_500_syns_to_one_port_are_a_first_one_and_a_count(scene: Scene) -> None:
    """Within half a minute; and a later one is counted too, though it is not logged."""
    client, source = scene.client, str(scene.client.v4)
    scene.syns(client, 500, CLOSED)
    wait_until(lambda: scene.denied(client, CLOSED) >= 500, within_s=30, what="the counts")
    assert scene.denied(client, CLOSED) == 500
    [seen] = [
        one
        for one in json.loads(scene.site.server("top", "--json").stdout)["sources"]
        if (one["source"], one["access"]) == (source, f"tcp/{CLOSED}")
    ]
    assert seen["packets"] == 500
    scene.syns(client, 7, CLOSED)
    wait_until(lambda: scene.denied(client, CLOSED) > 500, within_s=30, what="the later ones")
    assert scene.denied(client, CLOSED) == 507


def test_a_stop_enters_what_was_counted_and_a_start_nothing_twice(scene: Scene) -> None:
    client = scene.client
    scene.syns(client, 100, 2300)
    wait_until(lambda: scene.denied(client, 2300) > 0, what="the first")
    scene.site.restart()
    assert scene.denied(client, 2300) == 100
    scene.syns(client, 5, 2300)
    scene.syns(client, 1, 2301)
    wait_until(lambda: scene.denied(client, 2300) > 100, within_s=30, what="the later ones")
    assert scene.denied(client, 2300) == 105


@pytest.mark.alone
def test_a_flood_of_forged_sources_is_bounded_and_alice_is_heard(scene: Scene) -> None:
    """The kernel's own counter is the truth, and the record tells of most of it."""
    before, told_before = scene.site.status()["denied_packets"], scene.total()
    scene.flood(SPOOFED, 2400, copies=3)
    sent = scene.site.status()["denied_packets"] - before
    assert sent == 3 * SPOOFED
    scene.alice.knock(scene.client, "tcp/22")
    wait_until(lambda: scene.total() - told_before >= 2 * SPOOFED, within_s=40, what="the counts")
    scene.site.restart()
    lines = scene.lines()
    assert len(lines) < 5000
    told = sum(stands_for(line) for line in lines if line["access"] != f"tcp/{CLOSED}")
    assert 2 * SPOOFED <= told <= sent + 200
    size = sum(file.stat().st_size for file in scene.site.directory.glob("denials.db*"))
    assert size < 10_000_000


@pytest.mark.alone
def test_when_nothing_is_denied_nobody_wakes(scene: Scene) -> None:
    """A gate whose sets are empty: the daemon read them once, and sleeps."""
    scene.server.run(["nft", "flush set inet spa denied4; flush set inet spa denied6"])
    scene.site.restart()
    assert scene.site.daemon is not None
    time.sleep(3)  # the start, and the look for drift
    before = wakeups(scene.site.daemon.pid)
    time.sleep(12)
    assert wakeups(scene.site.daemon.pid) - before <= 2


@pytest.mark.alone
def test_full_sets_hold_nobody_up(lab: Lab) -> None:
    """65,000 elements, read and entered while an event loop goes on; as its processor time."""
    server = lab.host("server")
    with server.inside(), Gate() as gate:
        gate.apply(GatePlan())
        server.sysctl(ipv4__conf__all__rp_filter=0)
    client = lab.host("client")
    meter = Meter()
    counts = DenialCounts(Denials(lab.new_file("denials.db")), meter.counted)
    asyncio.run(entered(server, counts))
    flood(client, server, FULL, 2222, copies=2)
    gc.collect()
    gc.freeze()  # as the daemon does: a collection walks through what comes from now on alone
    try:
        longest_s, took_s = asyncio.run(entered(server, counts))
    finally:
        gc.unfreeze()
    print(f"{took_s:.2f} s in all, at most {longest_s * 1e3:.1f} ms at a time")
    assert meter.denied["connection.denied"] >= FULL - 1
    assert longest_s < 0.05


async def entered(server: Host, counts: DenialCounts) -> tuple[float, float]:
    """The longest slice, and all of them; in seconds of processor time of the loop's thread."""

    def reading() -> Reading | None:
        with server.inside():
            return read()

    found = await asyncio.to_thread(reading)
    longest_s, began_s = 0.0, time.thread_time()
    slices = counts.enter(found, clock.monotonic_s)
    while True:
        slice_s = time.thread_time()
        more = next(slices, 0)
        longest_s = max(longest_s, time.thread_time() - slice_s)
        if more == 0:
            return longest_s, time.thread_time() - began_s
        await asyncio.sleep(0)
