"""What the kernel counts of denials is in the record: at least, and never more than was sent."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from integration.lab import Host, Lab, wait_until
from integration.site import Person, Site
from spa_server import clock
from spa_server.audit.denials import Denials
from spa_server.denialcounts import DenialCounts, Reading, read
from spa_server.firewall.kernel import Gate
from spa_server.firewall.plan import GatePlan
from spa_server.meter import Meter

CLOSED: Final = 2222
SPOOFED: Final = 30_000
FULL: Final = 65_000
# Sources as IPv4 headers from a program on the host: 198.18.0.0/15 is for tests of networks.
FLOOD: Final = """
import socket, struct, sys
target, port, first, count, copies = sys.argv[1], *map(int, sys.argv[2:])
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for _ in range(copies):
    for number in range(first, first + count):
        source = struct.pack(">I", (198 << 24 | 18 << 16) + number)
        head = struct.pack(">BBHHHBBH4s4s", 69, 0, 28, 0, 0, 64, 17, 0, source,
                           socket.inet_aton(target))
        out.sendto(head + struct.pack(">HHHH", 4000, port, 8, 0), (target, 0))
"""


@dataclass
class Scene:
    site: Site
    server: Host
    client: Host
    alice: Person

    def syns(self, count: int, port: int = CLOSED) -> None:
        """So many SYNs of the client's address to one port, each from another source port."""
        with self.client.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as out:
            for number in range(count):
                syn = struct.pack(">HHIIBBHHH", 20_000 + number, port, 1, 0, 0x50, 2, 1000, 0, 0)
                out.sendto(syn, (str(self.server.v4), 0))

    def flood(self, count: int, port: int, first: int = 0, copies: int = 1) -> None:
        """UDP packets of so many sources, each so many times."""
        arguments = [str(self.server.v4), *map(str, (port, first, count, copies))]
        self.client.run_python(FLOOD, *arguments, timeout=60)

    def denied(self, **fields: str) -> int:
        """For how many packets the lines stand that `audit --denied` shows."""
        told = self.site.audit("--denied", "--event", "connection.denied", "--limit", "100000")
        lines = [one for one in told if all(one[name] == fields[name] for name in fields)]
        return sum(stands_for(line) for line in lines)

    def total(self) -> int:
        """Of all denials that were entered, also in lines that were shed."""
        activity = json.loads(self.site.server("top", "--json").stdout)
        return int(activity["denied"])


def stands_for(line: Mapping[str, Any]) -> int:
    """How many packets a line of the denials tells of."""
    detail = line["detail"]
    return int(detail.get("count", detail.get("further", 0) + ("source_port" in detail)))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        # Nobody answers to a source that is not there.
        server.sysctl(ipv4__conf__all__rp_filter=0, ipv4__conf__lan__rp_filter=0)
        site = Site(lab, server)
        alice = site.enrol("alice", "ops")
        site.apply_gate()
        site.start()
        yield Scene(site, server, client, alice)


def test_500_syns_to_one_port_are_a_first_one_and_a_count(scene: Scene) -> None:
    """Within half a minute; and a later one is counted too, though it is not logged."""
    source = str(scene.client.v4)
    scene.syns(500)
    wanted = {"source": source, "access": f"tcp/{CLOSED}"}
    wait_until(lambda: scene.denied(**wanted) >= 500, within_s=30, what="the counts")
    assert scene.denied(**wanted) == 500
    [seen] = [
        one
        for one in json.loads(scene.site.server("top", "--json").stdout)["sources"]
        if (one["source"], one["access"]) == (source, f"tcp/{CLOSED}")
    ]
    assert seen["packets"] == 500
    scene.syns(7)
    wait_until(lambda: scene.denied(**wanted) > 500, within_s=30, what="the later ones")
    assert scene.denied(**wanted) == 507


def test_a_stop_enters_what_was_counted_and_a_start_nothing_twice(scene: Scene) -> None:
    wanted = {"source": str(scene.client.v4), "access": "tcp/2300"}
    scene.syns(100, 2300)
    wait_until(lambda: scene.denied(**wanted) > 0, what="the first")
    scene.site.restart()
    assert scene.denied(**wanted) == 100
    scene.syns(5, 2300)
    scene.syns(1, 2301)
    wait_until(lambda: scene.denied(**wanted) > 100, within_s=30, what="the later ones")
    assert scene.denied(**wanted) == 105


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
    lines = scene.site.audit("--denied", "--event", "connection.denied", "--limit", "100000")
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
    before = switches(scene.site.daemon.pid)
    time.sleep(12)
    assert switches(scene.site.daemon.pid) - before <= 2


def switches(process: int) -> int:
    """How often its threads have waited for something."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{process}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


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
    arguments = [str(server.v4), "2222", "0", str(FULL), "2"]
    client.run_python(FLOOD, *arguments, timeout=120)
    longest_s, took_s = asyncio.run(entered(server, counts))
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
