"""The kernel's counts of denials beside all else: two sources, a new gate, knocks, rest."""

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from integration.lab import Host, Lab, wait_until
from integration.site import Person, Site
from integration.test_denialcounts import FLOOD, stands_for, switches

FIRST_PORT: Final = 3000
SPOOFED: Final = 20_000
_REST_S: Final = 12.0


@dataclass
class Scene:
    site: Site
    server: Host
    client: Host
    other: Host
    alice: Person

    def syns(self, source: Host, count: int, port: int) -> None:
        """So many SYNs of one host to one port, each from another source port."""
        with source.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as out:
            for number in range(count):
                syn = struct.pack(">HHIIBBHHH", 20_000 + number, port, 1, 0, 0x50, 2, 1000, 0, 0)
                out.sendto(syn, (str(self.server.v4), 0))

    def counted(self, source: Host, port: int) -> int:
        """For how many packets the denials' lines stand, of one source and port."""
        told = self.site.audit("--denied", "--limit", "100000")
        wanted = (str(source.v4), f"tcp/{port}")
        return sum(stands_for(one) for one in told if (one["source"], one["access"]) == wanted)

    def wait_for(self, source: Host, port: int, count: int) -> None:
        """Until all are counted, and fails where one too many is."""
        what = f"{count} of {source.name} to {port}"
        wait_until(lambda: self.counted(source, port) >= count, within_s=30, what=what)
        assert self.counted(source, port) == count


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, other = map(lab.host, ("server", "client", "other"))
        # Nobody answers to a source that is not there.
        server.sysctl(ipv4__conf__all__rp_filter=0, ipv4__conf__lan__rp_filter=0)
        site = Site(lab, server)
        alice = site.enrol("alice", "ops")
        site.apply_gate()
        site.start()
        yield Scene(site, server, client, other, alice)


def test_two_sources_are_counted_each_for_itself(scene: Scene) -> None:
    scene.syns(scene.client, 300, FIRST_PORT)
    scene.syns(scene.other, 120, FIRST_PORT)
    scene.wait_for(scene.client, FIRST_PORT, 300)
    scene.wait_for(scene.other, FIRST_PORT, 120)


def test_a_reload_of_the_policy_counts_nothing_twice(scene: Scene) -> None:
    """The sets keep what they hold: what comes after a reload is further packets."""
    port = FIRST_PORT + 1
    scene.syns(scene.client, 100, port)
    scene.site.server("reload")
    scene.syns(scene.client, 50, port)
    scene.wait_for(scene.client, port, 150)


@pytest.mark.parametrize("further", [20, 200], ids=["fewer", "more"])
def test_after_the_table_is_deleted_counts_begin_anew(scene: Scene, further: int) -> None:
    """Whether the new count is smaller than the one before or larger."""
    port = FIRST_PORT + 2 + further
    scene.syns(scene.client, 100, port)
    scene.wait_for(scene.client, port, 100)
    time.sleep(6)  # an element that ends when the old one would have ended is taken for that one
    scene.server.run(["nft", "delete", "table", "inet", "spa"])
    wait_until(lambda: scene.site.status()["gate"] == "loaded", what="the gate to be put back")
    scene.syns(scene.client, further, port)
    scene.wait_for(scene.client, port, 100 + further)


@pytest.mark.alone
def test_some_time_after_the_last_denial_nobody_wakes(scene: Scene) -> None:
    """Its readings end as soon as no element is left, and begin again with the next denial."""
    scene.syns(scene.client, 10, FIRST_PORT + 500)
    scene.wait_for(scene.client, FIRST_PORT + 500, 10)
    for name in ("denied4", "denied6", "observed4", "observed6"):
        scene.server.run(["nft", "flush", "set", "inet", "spa", name])
    assert scene.site.daemon is not None
    process = scene.site.daemon.pid
    until_s = time.monotonic() + 90
    while woken(process) > 2:
        assert time.monotonic() < until_s, "the daemon goes on reading"
    scene.syns(scene.client, 30, FIRST_PORT + 501)
    scene.wait_for(scene.client, FIRST_PORT + 501, 30)


@pytest.mark.alone
def test_knocks_are_served_while_20000_sources_flood(scene: Scene) -> None:
    """Each source is listed, and what comes a second time is counted: no more than was sent.

    It comes last: its lines are folded, and written once a minute.
    """
    target, port = str(scene.server.v4), "3400"
    before = int(json.loads(scene.site.server("top", "--json").stdout)["denied"])
    arguments = [target, port, "0", str(SPOOFED), "2"]
    knocks = 0
    flood = threading.Thread(target=scene.client.run_python, args=(FLOOD, *arguments))
    flood.start()
    while flood.is_alive() or knocks < 3:
        assert scene.alice.knock(scene.other, "tcp/22").returncode == 0
        knocks += 1
    flood.join()

    def told() -> int:
        return int(json.loads(scene.site.server("top", "--json").stdout)["denied"]) - before

    wait_until(lambda: told() >= 1.5 * SPOOFED, within_s=40, what="the counts")
    scene.alice.knock(scene.other, "tcp/80")
    lines = scene.site.audit("--denied", "--event", "connection.denied", "--limit", "100000")
    assert len(lines) < 5000
    assert told() <= 2 * SPOOFED


def woken(process: int) -> int:
    """How often its threads have waited, over more than the pause between two readings."""
    os.kill(process, 0)
    before = switches(process)
    time.sleep(_REST_S)
    return switches(process) - before
