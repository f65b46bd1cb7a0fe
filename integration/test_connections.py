"""Every permitted connection has one beginning and one end in the record, with a name on both.

A real daemon, real conntrack. What conntrack counts is held against a capture at the server's own
interface. Entries outlive their connections by minutes; here by a second.
"""

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final, Self

import pytest

from integration.lab import Address, Host, Lab, Reach, echoes, reached, wait_until
from integration.site import PROGRAMS, Person, RecordSince, Site
from keys.when import rfc3339
from spa_server import control
from spa_server.netlink import NETLINK_NETFILTER, NFGENMSG, NetlinkSocket

CT_DELETE: Final = 1 << 8 | 2  # without a tuple: all there are
SSH: Final = 22
POSTGRES: Final = 5432
VOTE: Final = 7000
LATE: Final = 7100
WEB: Final = 80
SCRAPED: Final = 9100
OBSERVED: Final = 8080
SHORT: Final = {
    "netfilter__nf_conntrack_tcp_timeout_time_wait": 1,
    "netfilter__nf_conntrack_tcp_timeout_close": 1,
    "netfilter__nf_conntrack_tcp_timeout_last_ack": 1,
    "netfilter__nf_conntrack_udp_timeout": 1,
    "netfilter__nf_conntrack_udp_timeout_stream": 1,
}
POLICY: Final = """
[services]
ssh = "tcp/22"
web = ["tcp/80", "udp/80"]
postgres = "tcp/5432"
vote = "tcp/7000"
late = "tcp/7100"
scraped = "tcp/9100"
dashboard = "tcp/8080"

[[always_open]]
services = ["scraped"]
from = "anywhere"

[roles.ops]
[[roles.ops.allow]]
services = ["ssh", "web", "vote", "late"]
lifetime = "30s"
max_lifetime = "1h"

[roles.voter]
[[roles.voter.allow]]
services = ["vote"]
lifetime = "30s"
once = true

[roles.dba]
[[roles.dba.allow]]
services = ["postgres"]
lifetime = "30s"
max_lifetime = "1h"
sessions = "cut"
"""
MASQUERADE: Final = """
table inet nat {
  chain leaving {
    type nat hook postrouting priority srcnat
    oifname "lan" masquerade
  }
}
"""

Of = Callable[[Host], Address]
both_families = pytest.mark.parametrize(
    "of", [lambda host: host.v4, lambda host: host.v6], ids=["ipv4", "ipv6"]
)


@dataclass
class Scene:
    """A guarded host, two people beside it, and two behind one address."""

    site: Site
    server: Host
    client: Host
    router: Host
    inner: Host
    alice: Person
    bob: Person
    sources: Iterator[int] = field(default_factory=lambda: iter(range(20_000, 60_000)))

    def settle(self) -> None:
        """The kernel's housekeeping comes by when it likes, and at once when somebody looks."""
        self.server.run(["conntrack", "-L"])

    def is_quiet(self) -> bool:
        self.settle()
        return bool(self.site.status()["connections"] == 0)

    def beginnings(self) -> Counter[tuple[object, ...]]:
        """Everything that was ever permitted here."""
        lines = self.site.events("connection.permitted")
        return Counter((line["at"], *facts(line)) for line in lines)

    def ends(self) -> Counter[tuple[object, ...]]:
        """The same as the ends tell it: each of them once."""
        lines = self.site.events("connection.ended")
        return Counter((rfc3339(line["detail"]["permitted_at_us"]), *facts(line)) for line in lines)

    def ended(self, record: RecordSince, count: int, **fields: object) -> list[dict[str, Any]]:
        """So many ends, and no more."""

        def there() -> bool:
            self.settle()
            return len(record.lines("connection.ended", **fields)) >= count

        wait_until(there, within_s=20, what=f"{count} ends")
        lines = record.lines("connection.ended", **fields)
        assert len(lines) == count
        return lines

    def ask(self, **request: object) -> dict[str, Any]:
        return control.ask(self.site.directory / "control.sock", dict(request))

    def sessions(self) -> list[dict[str, Any]]:
        """What the command lists."""
        return list(json.loads(self.site.server("sessions", "--json").stdout)["sessions"])

    def whois(self, end: socket.socket, *options: str) -> list[dict[str, Any]]:
        """What the command says of a connection, by its own end's name."""
        told = self.site.server("whois", name_of(end), "--json", *options, check=False)
        assert told.stdout, told.stderr
        return list(json.loads(told.stdout)["connections"])


def name_of(end: socket.socket) -> str:
    address, port, *_ = end.getsockname()
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def port_of(end: socket.socket) -> int:
    return int(end.getsockname()[1])


class Tap:
    """Counts the packets and bytes of IP at a host's interface, by flow and direction."""

    def __init__(self, host: Host) -> None:
        with host.inside():
            self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        self._tap.bind((next(iter(host.places)), 0x0003))
        self._tap.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        self._tap.settimeout(0.1)
        self.packets: Counter[tuple[object, ...]] = Counter()
        self.bytes: Counter[tuple[object, ...]] = Counter()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()
        self._tap.close()

    def _run(self) -> None:
        while True:
            try:
                packet, (_, kind, *_) = self._tap.recvfrom(65536)
            except TimeoutError:
                if self._stopping:
                    return
                continue
            if kind in (0x0800, 0x86DD):
                self._count(packet)

    def _count(self, packet: bytes) -> None:
        if packet[0] >> 4 == 4:
            size, protocol = int.from_bytes(packet[2:4]), packet[9]
            ends: list[Address] = [IPv4Address(packet[12:16]), IPv4Address(packet[16:20])]
            at = (packet[0] & 15) * 4
        else:
            size, protocol = int.from_bytes(packet[4:6]) + 40, packet[6]
            ends, at = [IPv6Address(packet[8:24]), IPv6Address(packet[24:40])], 40
        if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            flow = (protocol, *ends, *struct.unpack_from(">HH", packet, at))
            self.packets[flow] += 1
            self.bytes[flow] += size

    def figures(self, protocol: int, end: Address, port: int, other: Address, to: int) -> Any:
        """Packets and bytes from one end of a connection, and back."""
        there, back = (protocol, end, other, port, to), (protocol, other, end, to, port)
        return {
            "packets_in": self.packets[there],
            "bytes_in": self.bytes[there],
            "packets_out": self.packets[back],
            "bytes_out": self.bytes[back],
        }


@pytest.fixture(scope="module")
def made() -> Iterator[Scene]:
    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        router, inner = lab.host("router", "lan", "far"), lab.host("inner", "far")
        router.forward()
        inner.default_route(router, "far")
        router.run(["nft", "-f", "-"], text=MASQUERADE)
        for port in (SSH, POSTGRES, VOTE, WEB, SCRAPED, OBSERVED):
            server.serve(port)
        site = Site(lab, server, policy=POLICY)
        with site.config.open("a") as file:
            file.write('\nobserve = ["dashboard"]\n')
        alice, bob = site.enrol("alice", "ops", "dba"), site.enrol("bob", "ops", "dba")
        site.enrol("victor", "voter")
        site.apply_gate()
        server.sysctl(**SHORT)
        site.start()
        yield Scene(site, server, client, router, inner, alice, bob)


@pytest.fixture
def scene(made: Scene) -> Iterator[Scene]:
    """The same host, with no hole and no connection left over from the test before."""
    yield made
    made.site.close_everything()
    wait_until(made.is_quiet, within_s=20, what="every connection to end")
    assert made.beginnings() == made.ends()


@pytest.fixture
def record(scene: Scene) -> RecordSince:
    time.sleep(0.01)
    return scene.site.record_from_now()


def figures_in(line: dict[str, Any]) -> dict[str, int]:
    return {
        name: line["detail"][name]
        for name in ("packets_in", "bytes_in", "packets_out", "bytes_out")
    }


def facts(line: dict[str, Any]) -> tuple[object, ...]:
    """What an end says as the beginning did."""
    names = ("identity", "key_id", "source", "target", "access", "rule", "grant_id")
    return (*(line[name] for name in names), line["detail"]["source_port"])


# One connection


@both_families
def test_tcp_from_first_packet_to_last(scene: Scene, record: RecordSince, of: Of) -> None:
    client, target = scene.client, of(scene.server)
    scene.alice.knock_at(client, target, f"tcp/{SSH}")
    with Tap(scene.server) as tap:
        began_s = time.monotonic()
        with client.connection(target, SSH) as session:
            port = port_of(session)
            for _ in range(5):
                assert echoes(session, b"x" * 300)
            time.sleep(0.5)
            assert echoes(session)
        took_s = time.monotonic() - began_s
        time.sleep(0.2)
    [permitted] = record.lines("connection.permitted")
    [ended] = scene.ended(record, 1)
    assert facts(permitted) == facts(ended)
    assert ended["identity"] == "alice"
    assert ended["detail"]["source_port"] == permitted["detail"]["source_port"] == port
    counted = tap.figures(socket.IPPROTO_TCP, of(client), port, target, SSH)
    assert figures_in(ended) == counted
    assert counted["bytes_in"] > 1500
    assert 0.5 <= ended["detail"]["duration_s"] < took_s + 1
    assert ended["detail"]["state"] in {"time-wait", "close"}
    [used] = record.lines("hole.used")
    assert used["grant_id"] == permitted["grant_id"]


@both_families
def test_one_that_conntrack_forgot_is_another_once_the_host_has_spoken(
    scene: Scene, record: RecordSince, of: Of
) -> None:
    """For conntrack the host began the second one: what came in is still what the client sent."""
    client, target = scene.client, of(scene.server)
    scene.alice.knock_at(client, target, f"tcp/{LATE}")
    with scene.server.new_socket(_family(target), socket.SOCK_STREAM) as listening:
        listening.bind(("", LATE))
        listening.listen()
        listening.settimeout(1)
        with client.connection(target, LATE) as session:
            accepted, _ = listening.accept()
            accepted.settimeout(5)
            session.send(b"x" * 100)
            assert accepted.recv(200)
            for kind in ("ipv4", "ipv6"):
                forget = ["conntrack", "-D", "-f", kind, "-p", "tcp", "--dport", str(LATE)]
                scene.server.run(forget, check=False)
            scene.ended(record, 1)
            accepted.send(b"y")
            time.sleep(0.1)
            session.send(b"x" * 1000)
            assert len(accepted.recv(2000)) == 1000
            port = port_of(session)
            wait_until(lambda: port in {each["source_port"] for each in scene.sessions()})
            accepted.close()
        first, second = scene.ended(record, 2)
    assert facts(first) == facts(second)
    assert second["detail"]["source_port"] == port
    assert len(record.lines("connection.permitted")) == 2
    assert second["detail"]["bytes_in"] > 1000 > second["detail"]["bytes_out"]


def _family(target: Address) -> socket.AddressFamily:
    return socket.AF_INET if target.version == 4 else socket.AF_INET6


@both_families
def test_udp_from_first_packet_to_last(scene: Scene, record: RecordSince, of: Of) -> None:
    client, target = scene.client, of(scene.server)
    scene.alice.knock_at(client, target, f"udp/{WEB}")
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    with Tap(scene.server) as tap, client.new_socket(family, socket.SOCK_DGRAM) as session:
        session.connect((str(target), WEB))
        port = port_of(session)
        began_s = time.monotonic()
        for _ in range(7):
            assert echoes(session, b"y" * 200)
            time.sleep(0.05)
        took_s = time.monotonic() - began_s
        time.sleep(0.2)
    [permitted] = record.lines("connection.permitted")
    [ended] = scene.ended(record, 1)
    assert facts(permitted) == facts(ended)
    assert figures_in(ended) == tap.figures(socket.IPPROTO_UDP, of(client), port, target, WEB)
    assert 0.3 <= ended["detail"]["duration_s"] < took_s + 0.6


def test_a_port_that_is_published(scene: Scene, record: RecordSince) -> None:
    """As a container's: the connection goes by the port that was knocked for, wherever it leads."""
    chain = (
        f"chain in {{ type nat hook prerouting priority dstnat; tcp dport 80 redirect to :{SSH}; }}"
    )
    scene.server.run(["nft", "-f", "-"], text=f"table inet published {{ {chain}; }}")
    try:
        scene.alice.knock(scene.client, f"tcp/{WEB}")
        with scene.client.connection(scene.server.v4, WEB) as session:
            assert echoes(session)
            [found] = scene.whois(session)
            assert (found["identity"], found["access"]) == ("alice", f"tcp/{WEB}")
        [ended] = scene.ended(record, 1)
    finally:
        scene.server.run(["nft", "delete", "table", "inet", "published"])
    assert (ended["access"], ended["detail"]["packets_in"] > 3) == (f"tcp/{WEB}", True)


def test_a_port_at_which_nobody_serves(scene: Scene, record: RecordSince) -> None:
    """Nothing was connected, so nothing is recorded. It is counted."""
    begun = scene.site.status()["handshakes_begun"]
    scene.site.write_policy(POLICY.replace('ssh = "tcp/22"', 'ssh = ["tcp/22", "tcp/23"]'))
    scene.site.server("reload")
    scene.alice.knock(scene.client, "tcp/23")
    assert scene.client.reach_tcp(scene.server.v4, 23) is Reach.REFUSED
    assert scene.site.status()["handshakes_begun"] == begun + 1
    assert record.lines("connection.permitted", access="tcp/23") == []
    assert record.lines("hole.used") == []


def test_what_another_firewall_drops_ends_too(scene: Scene, record: RecordSince) -> None:
    rule = f"udp dport {WEB} ip saddr {scene.client.v4} drop"
    chain = f"chain in {{ type filter hook input priority 10; {rule}; }}"
    scene.server.run(["nft", "-f", "-"], text=f"table inet other {{ {chain}; }}")
    try:
        scene.alice.knock(scene.client, f"udp/{WEB}")
        assert scene.client.reach_udp(scene.server.v4, WEB) is Reach.SILENT
    finally:
        scene.server.run(["nft", "delete", "table", "inet", "other"])
    [ended] = scene.ended(record, 1)
    assert "another firewall dropped it" in ended["reason"]
    assert ended["detail"]["bytes_in"] is None


def test_the_same_ports_again_are_another_connection(scene: Scene, record: RecordSince) -> None:
    scene.alice.knock(scene.client, f"tcp/{SSH}")
    source_port = next(scene.sources)
    for _ in range(10):
        with scene.client.connection(scene.server.v4, SSH, source_port=source_port) as session:
            assert echoes(session)
            # Reset, so that the port is free at once.
            session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: len(record.lines("connection.permitted")) == 10)
    ended = scene.ended(record, 10)
    assert {line["detail"]["source_port"] for line in ended} == {source_port}
    assert all(line["detail"]["bytes_in"] for line in ended)
    began = Counter(line["at"] for line in record.lines("connection.permitted"))
    assert Counter(rfc3339(line["detail"]["permitted_at_us"]) for line in ended) == began


def test_renewed_meanwhile(scene: Scene, record: RecordSince) -> None:
    """The grant at the time of the first packet counts."""
    scene.alice.knock(scene.client, f"tcp/{SSH}")
    [opened] = record.lines("hole.opened")
    with scene.client.connection(scene.server.v4, SSH) as session:
        assert echoes(session)
        scene.alice.knock(scene.client, f"tcp/{SSH}", "--lifetime", "10m")
        [renewed] = record.lines("hole.renewed")
        assert renewed["grant_id"] > opened["grant_id"]
        [found] = scene.whois(session)
        assert found["grant"] == opened["grant_id"]
        assert found["open_until"] > renewed["at"]
        assert echoes(session)
    with scene.client.connection(scene.server.v4, SSH) as another:
        assert echoes(another)
    ended = scene.ended(record, 2)
    assert {line["grant_id"] for line in ended} == {opened["grant_id"], renewed["grant_id"]}
    used = [line["grant_id"] for line in record.lines("hole.used")]
    assert used == [opened["grant_id"], renewed["grant_id"]]
    assert len(record.lines("hole.opened")) == 1


def test_a_once_hole_is_used_before_an_ordinary_one(scene: Scene, record: RecordSince) -> None:
    scene.alice.knock(scene.client, f"tcp/{VOTE}", "--once")
    scene.alice.knock(scene.client, f"tcp/{VOTE}")
    once, ordinary = (line["grant_id"] for line in record.lines("hole.opened"))
    for _ in range(2):
        assert scene.client.reach_tcp(scene.server.v4, VOTE) is Reach.OPEN
    wait_until(lambda: len(record.lines("hole.used")) == 2)
    assert [line["grant_id"] for line in record.lines("connection.permitted")] == [once, ordinary]
    assert [line["grant_id"] for line in record.lines("hole.used")] == [once, ordinary]


# Severed


@both_families
def test_cut_by_the_end_of_its_hole(scene: Scene, record: RecordSince, of: Of) -> None:
    target = of(scene.server)
    scene.alice.knock_at(scene.client, target, f"tcp/{POSTGRES}")
    with scene.client.connection(target, POSTGRES) as session:
        assert echoes(session, b"z" * 500)
        scene.site.close_everything()
        assert not echoes(session)
        record.line("connection.severed", identity="alice")
    [ended] = scene.ended(record, 1)
    assert (ended["identity"], ended["access"]) == ("alice", f"tcp/{POSTGRES}")
    assert ended["detail"]["bytes_in"] >= 500
    assert len(record.lines("connection.permitted")) == 1


# Two behind one address


@both_families
def test_two_people_behind_one_address(scene: Scene, record: RecordSince, of: Of) -> None:
    """Nobody can tell them apart: both are named, and nobody else."""
    target, address = of(scene.server), of(scene.router)
    for person in (scene.alice, scene.bob):
        person.knock_at(scene.inner, target, f"tcp/{SSH}", "--source", str(address))
    with scene.inner.connection(target, SSH) as session:
        assert echoes(session)
        permitted = record.line("connection.permitted")
        assert permitted["source"] == str(address)
        assert permitted["detail"]["ambiguous"] == ["alice", "bob"]
        source = f"[{address}]" if address.version == 6 else str(address)
        end = f"{source}:{permitted['detail']['source_port']}"
        told = scene.site.server("whois", end).stdout
        assert "one of alice, bob: they share the address" in told
    [ended] = scene.ended(record, 1)
    assert facts(permitted) == facts(ended)
    assert ended["detail"]["ambiguous"] == ["alice", "bob"]
    assert len(ended["detail"]["grants"]) == 2
    used = record.lines("hole.used")
    assert sorted(line["identity"] for line in used) == ["alice", "bob"]
    assert all(line["detail"]["ambiguous"] == ["alice", "bob"] for line in used)


# The daemon goes and comes


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_between_beginning_and_end(
    scene: Scene, record: RecordSince, by: signal.Signals
) -> None:
    client, target = scene.client, scene.server.v4
    scene.alice.knock(client, f"tcp/{SSH}", "--lifetime", "10m")
    with Tap(scene.server) as tap:
        with client.connection(target, SSH) as lives, client.connection(target, SSH) as ends:
            assert echoes(lives)
            assert echoes(ends, b"x" * 100)
            wait_until(lambda: len(record.lines("connection.permitted")) == 2)
            scene.site.stop(by)
            ends.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone, port = port_of(ends), port_of(lives)
            ends.close()
            time.sleep(1.2)
            scene.settle()
            scene.site.start()
            [while_down] = scene.ended(record, 1)
            assert while_down["reason"] == "ended while the daemon was down"
            assert while_down["detail"]["source_port"] == gone
            assert while_down["detail"]["bytes_in"] is None
            assert while_down["identity"] == "alice"
            [found] = scene.whois(lives)
            assert (found["identity"], found["source_port"]) == ("alice", port)
            assert echoes(lives)
            assert client.reach_tcp(target, SSH) is Reach.OPEN
        time.sleep(0.2)
    ended = scene.ended(record, 3)
    [line] = [each for each in ended if each["detail"]["source_port"] == port]
    assert figures_in(line) == tap.figures(socket.IPPROTO_TCP, client.v4, port, target, SSH)
    assert len(record.lines("connection.permitted")) == 3
    assert len(record.lines("hole.used")) == 1
    scene.site.restart(by)
    time.sleep(0.5)
    assert len(record.lines("connection.ended")) == 3


def test_three_hundred_short_connections(scene: Scene, record: RecordSince) -> None:
    """Each has one line of either kind; a daemon is killed in the middle and doubles nothing."""
    client, target = scene.client, scene.server.v4
    scene.alice.knock(client, f"tcp/{SSH}", "--lifetime", "10m")
    ports = short_connections(client, target, 150)
    wait_until(lambda: len(record.lines("connection.permitted")) == 150)
    scene.settle()
    scene.site.restart(signal.SIGKILL)
    ports += short_connections(client, target, 150)
    wait_until(lambda: len(record.lines("connection.permitted")) == 300)
    ended = scene.ended(record, 300)
    for lines in (record.lines("connection.permitted"), ended):
        assert Counter(line["detail"]["source_port"] for line in lines) == Counter(ports)
        assert {line["identity"] for line in lines} == {"alice"}
    known = [line for line in ended if line["detail"]["bytes_in"] is not None]
    assert len(known) >= 150
    assert all(
        line["reason"] == "ended while the daemon was down" for line in ended if line not in known
    )
    assert len(record.lines("records.lost")) == 0


def short_connections(client: Host, target: Address, count: int) -> list[int]:
    ports = []
    for _ in range(count):
        with client.connection(target, SSH) as session:
            assert reached(session) is Reach.OPEN
            ports.append(port_of(session))
    return ports


# Many ends of others


def test_ends_that_the_kernel_had_to_throw_away(scene: Scene, record: RecordSince) -> None:
    """The daemon sleeps while thousands of others' connections end: it says so, and misses none."""
    client, target = scene.client, scene.server.v4
    scene.alice.knock(client, f"tcp/{SSH}", f"tcp/{WEB}", "--lifetime", "10m")
    assert scene.site.daemon is not None
    with client.connection(target, WEB) as lives:
        assert echoes(lives)
        ports = short_connections(client, target, 20)
        wait_until(lambda: len(record.lines("connection.permitted")) == 21)
        time.sleep(2.5)  # they have been looked up once
        daemon = scene.site.daemon.pid
        scene.server.run(["kill", "-STOP", str(daemon)])
        try:
            foreign_ends(scene.server, 50_000)
            time.sleep(1.2)
            scene.settle()
        finally:
            scene.server.run(["kill", "-CONT", str(daemon)])
        lost = record.line("records.lost")
        assert (lost["detail"]["of"], lost["detail"]["at_least"]) == ("end", True)
        assert lost["detail"]["count"] >= 1
        ended = scene.ended(record, 20)
        assert [found["identity"] for found in scene.whois(lives)] == ["alice"]
    assert Counter(line["detail"]["source_port"] for line in ended) == Counter(ports)
    missed = [line for line in ended if line["reason"]]
    assert all(line["reason"].startswith("its end was missed") for line in missed)


@pytest.mark.alone
def test_ends_of_others_cost_little(scene: Scene) -> None:
    """20,000 a second, for some seconds; as a share of one processor."""
    assert scene.site.daemon is not None
    daemon = scene.site.daemon.pid
    with (
        scene.server.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sending,
        scene.server.inside(),
        NetlinkSocket(NETLINK_NETFILTER) as asking,
    ):
        lost = scene.site.status()["lost"]
        before, began, ended = processor_s(daemon), time.monotonic(), 0
        while (took_s := time.monotonic() - began) < 4.0:
            if ended / 20_000 > took_s:
                time.sleep(0.005)
                continue
            for port in range(1024, 3024):
                sending.sendto(struct.pack(">HHHH", port, 9, 8, 0), ("10.77.1.200", 0))
            assert asking.request(CT_DELETE, 0, NFGENMSG.pack(socket.AF_INET, 0, 0)) == 0
            ended += 2000
        time.sleep(0.3)
        share = (processor_s(daemon) - before) / took_s
    print(f"{ended / took_s:.0f} ends a second: {share:.1%} of a processor")
    assert ended / took_s > 5000
    assert share < 0.1
    assert scene.site.status()["lost"] == lost


def processor_s(process: int) -> float:
    """What it has used of a processor, in seconds."""
    stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def foreign_ends(server: Host, count: int) -> None:
    """Entries of connections that are nobody's, made and deleted: their ends are told."""
    with server.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sending:
        for first in range(0, count, 10_000):
            for port in range(1024, 11_024):
                header = struct.pack(">HHHH", port, 1 + first // 10_000, 8, 0)
                sending.sendto(header, ("10.77.1.200", 0))
    # Some are over before it comes to them, which it calls a failure.
    deletion = "conntrack -D -p udp -d 10.77.1.200 > /dev/null 2>&1"
    server.run(["sh", "-c", deletion], check=False, timeout=60)


# Who is it


def test_whois_names_the_person(scene: Scene, record: RecordSince) -> None:
    scene.alice.knock(scene.client, f"tcp/{SSH}", f"tcp/{POSTGRES}")
    source_port = next(scene.sources)

    def connect(port: int) -> socket.socket:
        return scene.client.connection(
            scene.server.v4, port, source=scene.client.v4, source_port=source_port
        )

    with connect(SSH) as session, connect(POSTGRES) as other:
        assert echoes(session, b"x" * 700)
        assert echoes(other)
        both = scene.whois(session)
        assert sorted(found["access"] for found in both) == ["tcp/22", "tcp/5432"]
        [found] = scene.whois(session, "--to", "tcp/22")
        permitted = record.line("connection.permitted", access="tcp/22")
        assert found["identity"] == "alice"
        assert found["key_id"] == scene.alice.key_id() == permitted["key_id"]
        assert (found["rule"], found["grant"]) == (permitted["rule"], permitted["grant_id"])
        assert found["since"] == permitted["at"]
        assert found["state"] == "established"
        assert found["bytes_in"] > 700
        told = scene.site.server("whois", name_of(session), "--to", "tcp/22").stdout
        assert "identity    alice\n" in told
        assert "hole        open until " in told
        assert scene.whois(session, "--to", "tcp/23") == []


def test_whois_of_what_no_knock_opened(scene: Scene) -> None:
    cases = [
        (SCRAPED, "no knock is needed: always_open[0] lets tcp/9100 in from"),
        (OBSERVED, "tcp/8080 is observed: whoever has no hole is let in and recorded"),
    ]
    for port, why in cases:
        with scene.client.connection(scene.server.v4, port) as session:
            assert echoes(session)
            told = scene.site.server("whois", name_of(session), check=False)
            assert told.returncode == 1
            assert why in told.stderr
            name = name_of(session)
    told = scene.site.server("whois", "10.77.1.99:4000", check=False)
    assert (told.returncode, told.stdout) == (1, "")
    assert "no connection from 10.77.1.99 port 4000 is open" in told.stderr
    assert scene.site.server("whois", name, "--to", "tcp/22", check=False).returncode == 1


def test_whois_of_what_was_there_before_the_gate(lab: Lab) -> None:
    server, client = lab.host("server"), lab.host("client")
    server.serve(SSH)
    site = Site(lab, server, policy=POLICY)
    with (
        client.connection(server.v4, SSH) as before,
        client.new_socket(socket.AF_INET, socket.SOCK_STREAM) as listening,
    ):
        assert echoes(before)
        listening.bind(("", 4444))
        listening.listen()
        site.apply_gate()
        site.start()
        told = site.server("whois", name_of(before), check=False)
        assert told.returncode == 1
        assert "it was there before the gate" in told.stderr
        with server.connection(client.v4, 4444) as ours:
            assert reached(ours) is Reach.OPEN
            told = site.server("whois", f"{client.v4}:4444", check=False)
        assert f"this host itself began the connection to {client.v4} port 4444" in told.stderr


@pytest.mark.alone
def test_whois_takes_less_than_five_milliseconds(scene: Scene) -> None:
    """Among a thousand live connections, and against `status` in the same run."""
    client, target = scene.client, scene.server.v4
    scene.alice.knock(client, f"tcp/{SSH}", "--lifetime", "10m")
    streams = [client.connection(target, SSH) for _ in range(1000)]
    try:
        assert all(reached(stream, 5.0) is Reach.OPEN for stream in streams)
        wait_until(lambda: scene.site.status()["connections"] >= 1000)
        took: dict[str, list[float]] = {"whois": [], "status": []}
        for stream in streams[:300]:
            for do, took_s in took.items():
                started = time.perf_counter()
                answer = scene.ask(do=do, source=str(client.v4), port=port_of(stream))
                took_s.append(time.perf_counter() - started)
                assert do == "status" or answer["connections"][0]["identity"] == "alice"
        median = {do: sorted(took_s)[len(took_s) // 2] for do, took_s in took.items()}
        print({do: f"{took_s * 1e3:.2f} ms" for do, took_s in median.items()})
        assert median["whois"] < 0.005
        assert median["whois"] < 2 * median["status"]
    finally:
        for stream in streams:
            stream.close()


# What is switched on


def test_the_gate_makes_conntrack_count(lab: Lab) -> None:
    server = lab.host("server")
    site = Site(lab, server)
    names = ("nf_conntrack_acct", "nf_conntrack_timestamp")
    keys = [f"net.netfilter.{name}" for name in names]
    assert server.run(["sysctl", "-n", *keys]).stdout.split() == ["0", "0"]
    site.apply_gate()
    assert server.run(["sysctl", "-n", *keys]).stdout.split() == ["1", "1"]


def test_where_it_cannot_be_switched_on_that_is_said(lab: Lab) -> None:
    """As in a sandbox with a read-only /proc/sys: packets are counted, times are not known."""
    server, client = lab.host("server"), lab.host("client")
    service = server.serve(SSH)
    site = Site(lab, server, policy=POLICY)
    alice = site.enrol("alice", "ops")
    read_only = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -o bind,ro /proc/sys /proc/sys && exec "$@"',
        "-",
    ]
    program = [*read_only, *spa_server(site)]
    said = server.run([*program, "gate", "apply"]).stderr
    assert "net.netfilter.nf_conntrack_timestamp is not 1 and cannot be set (read-only" in said
    assert "nf_conntrack_acct" not in said
    site.start(prefix=tuple(read_only))
    [applied] = site.events("gate.applied")[-1:]
    assert "nf_conntrack_timestamp" in applied["detail"]["not_counted"]
    server.sysctl(**SHORT)
    alice.knock(client, f"tcp/{SSH}")
    record = site.record_from_now()
    with client.connection(server.v4, SSH) as session:
        assert echoes(session, b"x" * 400)
    assert service.connections == 1

    def ended() -> list[dict[str, Any]]:
        server.run(["conntrack", "-L"])
        return record.lines("connection.ended")

    wait_until(ended, within_s=10)
    [line] = ended()
    assert line["detail"]["bytes_in"] > 400
    assert 0 <= line["detail"]["duration_s"] < 10


def test_who_may_not_hear_ends_is_told_so(lab: Lab) -> None:
    code = "from spa_server.conntrack import Conntrack; Conntrack()"
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code]
    done = lab.host("server").run(bare, check=False)
    assert "the ends of connections cannot be heard: Operation not permitted" in done.stderr


def spa_server(site: Site) -> list[str]:
    return [str(PROGRAMS / "spa-server"), "--config", str(site.config)]
