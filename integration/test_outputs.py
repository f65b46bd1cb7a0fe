"""What a daemon tells other programs while it works: metrics, syslog, `top`, export, a follower."""

import json
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from integration.lab import Host, Lab, wait_until
from integration.site import PROGRAMS, Person, Site

SSH = 22
METRICS = "127.0.0.1:9062"
READER = (
    f"import urllib.request as u; print(u.urlopen('http://{METRICS}/', timeout=5).read().decode())"
)


@dataclass
class Receiver:
    """A syslog server of the test's own, at a socket in the site's directory."""

    listening: socket.socket
    got: list[str] = field(default_factory=list)

    def events(self) -> Counter[str]:
        """How many lines of each event came."""
        self.listening.setblocking(False)
        while True:
            try:
                self.got.append(self.listening.recv(65536).decode())
            except BlockingIOError:
                return Counter(line.split(" ")[5] for line in self.got)


@dataclass
class Scene:
    site: Site
    client: Host
    stranger: Host
    alice: Person
    receiver: Receiver

    def samples(self) -> dict[str, float]:
        """What a scrape on the host gives, by what is before the value."""
        text = self.site.host.run(["python3", "-c", READER]).stdout
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines if name}

    def record(self) -> list[dict[str, Any]]:
        """The record and the denials, as they are exported."""
        exported = self.site.server("audit", "export").stdout
        return [json.loads(line) for line in exported.splitlines()]

    def wait_for_every_line(self) -> None:
        """Until syslog has got what is in the record."""

        def exported() -> Counter[str]:
            return Counter(line["event"] for line in self.record() if "digest" in line)

        def received() -> Counter[str]:
            self.receiver.events()
            numbered = [line for line in self.receiver.got if re.search(r' id="\d+"', line)]
            return Counter(line.split(" ")[5] for line in numbered)

        wait_until(lambda: received() == exported(), within_s=10, what="every line to arrive")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        server, client, stranger = lab.host("server"), lab.host("client"), lab.host("stranger")
        server.serve(SSH)
        place = lab.new_file("syslog")
        listening.bind(str(place))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        settings = f'metrics = "{METRICS}"\noutputs = ["syslog:unix://{place}"]\n'
        site = Site(lab, server, settings=settings)
        alice = site.enrol("alice", "ops")
        site.apply_gate()
        site.start()
        yield Scene(site, client, stranger, alice, Receiver(listening))


def test_a_knock_and_a_connection_are_counted(scene: Scene) -> None:
    before = scene.samples()
    scene.alice.knock(scene.client, "tcp/22")
    scene.client.run(["python3", "-c", _connect(scene.site.host)])
    scene.stranger.run(["python3", "-c", _connect(scene.site.host)], check=False)
    wait_until(
        lambda: _grew(before, scene.samples(), 'spa_connections_total{what="denied"}') >= 1,
        within_s=15,
        what="the denial to be counted",
    )
    after = scene.samples()
    assert _grew(before, after, 'spa_knocks_total{reason="",result="accepted"}') == 1
    assert _grew(before, after, 'spa_connections_total{what="permitted"}') == 1
    assert _grew(before, after, "spa_decision_seconds_count") >= 1
    assert _grew(before, after, "spa_open_seconds_count") == 1
    assert after["spa_open_seconds_sum"] < 1
    assert _grew(before, after, 'spa_gate_packets_total{counter="denied_packets"}') >= 1
    assert after["spa_gate_loaded"] == after["spa_gate_wanted"] == 1
    assert after["spa_tags"] >= 5


def _connect(host: Host) -> str:
    return f"import socket; socket.create_connection(('{host.v4}', {SSH}), timeout=1.5)"


def _grew(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after.get(name, 0) - before.get(name, 0)


def test_nobody_else_can_read_the_metrics(scene: Scene) -> None:
    reader = READER.replace("127.0.0.1", str(scene.site.host.v4))
    assert scene.client.run(["python3", "-c", reader], check=False).returncode != 0


def test_syslog_gets_every_line_of_the_record_once(scene: Scene) -> None:
    scene.alice.knock(scene.client, "tcp/22")

    scene.wait_for_every_line()
    ids = [
        int(found[1]) for line in scene.receiver.got if (found := re.search(r' id="(\d+)"', line))
    ]
    assert ids == list(range(1, len(ids) + 1))


def test_top_shows_the_hole_and_who_was_turned_away(scene: Scene) -> None:
    scene.alice.knock(scene.client, "tcp/22")
    shown = scene.site.server("top", "--once").stdout
    assert re.search(rf"\d s +alice +{re.escape(str(scene.client.v4))} +tcp/22", shown)
    assert re.search(rf"packets +{re.escape(str(scene.stranger.v4))} +tcp/22", shown)
    told = json.loads(scene.site.server("top", "--json").stdout)
    assert told["status"]["gate"] == "loaded"
    assert told["holes"][0]["identity"] == "alice"


@pytest.mark.alone
def test_a_flood_of_scrapes_does_not_hold_up_a_knock(scene: Scene) -> None:
    loop = f"""
import threading, time, urllib.request as u
end = time.time() + 4
def scrape():
    while time.time() < end:
        try: u.urlopen('http://{METRICS}/', timeout=5).read()
        except OSError: pass
for _ in range(6): threading.Thread(target=scrape).start()
"""
    flood = scene.site.host.start(["python3", "-c", loop])
    time.sleep(0.5)
    took_s = []
    for _ in range(3):
        began_s = time.monotonic()
        scene.alice.knock(scene.client, "tcp/22")
        took_s.append(time.monotonic() - began_s)
    print("knocks with scrapes:", [f"{one:.2f} s" for one in took_s])
    assert max(took_s) < 3
    flood.stop()


def test_a_follower_sees_new_lines_as_they_come(scene: Scene) -> None:
    config = scene.site.config
    argv = [PROGRAMS / "spa-server", "--config", config, "audit", "--follow", "--json"]
    follower = scene.site.host.start([*argv, "--limit", "1", "--event", "knock"])
    wait_until(lambda: follower.output, within_s=10, what="the latest line")
    scene.alice.knock(scene.client, "tcp/22")
    wait_until(lambda: follower.output.count("\n") >= 2, within_s=5, what="the new line")
    line = json.loads(follower.output.splitlines()[1])
    assert (line["event"], line["identity"]) == ("knock.accepted", "alice")
    assert follower.stop(signal.SIGINT) == 0
    assert follower.output.count("\n") == len(follower.output.splitlines())


def test_the_last_lines_go_out_when_it_stops(scene: Scene) -> None:
    """The last of this module: the daemon is gone then."""
    scene.wait_for_every_line()
    scene.site.stop()
    assert scene.receiver.events()["daemon.stopped"] == 1
