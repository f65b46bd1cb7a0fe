"""Observe mode: a gate on a living host lets in what it would deny, and says what that is.

The gate remembers for five minutes whom it has recorded at which port, so each test has ports of
its own. Docker is played by DNAT, as in test_containers.py.
"""

import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import count
from typing import Final

import pytest

from integration.conftest import Neighbours
from integration.gate import ONLY_THIS_HOST, Log, fill, hole, lease
from integration.lab import Address, Host, Lab, Reach, Service, echoes, reached, wait_until
from integration.site import Person, RecordSince, Site
from spa_protocol.access import Access, Protocol
from spa_server.firewall.elements import Denial
from spa_server.firewall.kernel import Gate
from spa_server.firewall.plan import GatePlan, Observed

SSH, POSTGRES, PUBLISHED, INSIDE = 22, 5432, 8080, 80
WOULD_DENY: Final = "connection.would-deny"
DENIED: Final = "connection.denied"
EVERYTHING: Final = GatePlan(outer=(), observed=Observed(everything=True))
INTERVAL_S: Final = 10
POLICY: Final = """
[services]
ssh = "tcp/22"
postgres = "tcp/5432"
syslog = ["udp/5140", "tcp/5140"]
[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
lifetime = "30s"
[[roles.ops.allow]]
services = ["postgres"]
lifetime = "30s"
sessions = "cut"
"""
DOCKER: Final = """
table {family} docker {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    fib daddr type local meta l4proto {{ tcp, udp }} th dport 8080 dnat to {to}
  }}
}}
"""
ports = count(30_001)

Of = Callable[[Host], Address]
both_families = pytest.mark.parametrize("of", [lambda h: h.v4, lambda h: h.v6], ids=["v4", "v6"])


def observing(mode: str, *services: str) -> str:
    """The lines of server.toml."""
    return f"mode = {mode!r}\nobserve = {list(services)}\n"


@dataclass
class Scene:
    """A guarded host that observes, with a container behind it, and two who come from outside."""

    site: Site
    server: Host
    container: Host
    client: Host
    stranger: Host
    alice: Person
    settings: str

    def configure(self, mode: str, *services: str) -> None:
        """Changes server.toml; nobody is told."""
        self.site.config.write_text(self.settings + observing(mode, *services))

    def apply(self, mode: str, *services: str) -> str:
        """Changes server.toml and puts the gate in force; what is said to the operator."""
        self.configure(mode, *services)
        return self.site.server("gate", "apply").stderr

    def observed(self, source: Address, port: int) -> list[Denial]:
        """What the kernel has counted."""
        with self.server.inside(), Gate() as gate:
            return [each for each in gate.observed() if (each.source, each.port) == (source, port)]


@pytest.fixture(scope="module")
def made() -> Iterator[Scene]:
    with Lab() as lab:
        server = lab.host("server", "lan", "docker")
        container = lab.host("container", "docker")
        client, stranger = lab.host("client"), lab.host("stranger")
        server.forward()
        server.default_route(stranger)
        container.default_route(server, "docker")
        for family, to in (("ip", f"{container.v4}:80"), ("ip6", f"[{container.v6}]:80")):
            server.run(["nft", "-f", "-"], text=DOCKER.format(family=family, to=to))
        for address, prefix in ((server.v4, "10.77.2.0/24"), (server.v6, "fd77:2::/64")):
            client.add_route(prefix, address)
        container.serve(INSIDE)
        server.serve(SSH)
        server.serve(POSTGRES)
        site = Site(lab, server, policy=POLICY)
        settings = site.config.read_text()
        alice = site.enrol("alice", "ops")
        scene = Scene(site, server, container, client, stranger, alice, settings)
        scene.apply("observe")
        site.start()
        yield scene


@pytest.fixture
def scene(made: Scene) -> Iterator[Scene]:
    """The same host, observing everything and with no hole, whatever the test before has left."""
    yield made
    made.site.close_everything()
    made.apply("observe")


@pytest.fixture
def record(scene: Scene) -> RecordSince:
    return scene.site.record_from_now()


@pytest.fixture
def service(made: Scene) -> Iterator[Service]:
    """An echo service at a port that no policy knows."""
    running = made.server.serve(next(ports))
    yield running
    running.stop()


def total(lines: list[dict[str, object]]) -> int:
    """How many connections lines of the record stand for."""
    further = [line["detail"].get("further") for line in lines if isinstance(line["detail"], dict)]
    return sum(1 if n is None else n for n in further)


# What is let in


@both_families
def test_a_connection_without_a_hole_works_and_is_recorded_once(
    scene: Scene, record: RecordSince, service: Service, of: Of
) -> None:
    source, target, port = of(scene.client), of(scene.server), service.port
    with scene.client.connection(target, port) as session:
        assert all(echoes(session) for _ in range(5))
    with scene.client.new_socket(
        socket.AF_INET if target.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM
    ) as datagrams:
        datagrams.connect((str(target), port))
        assert all(echoes(datagrams) for _ in range(5))
    for access in (f"tcp/{port}", f"udp/{port}"):
        record.line(WOULD_DENY, source=source, target=target, access=access)
        assert len(record.lines(WOULD_DENY, access=access)) == 1
    counted = {each.protocol: each.packets for each in scene.observed(source, port)}
    assert counted == {Protocol.TCP: 1, Protocol.UDP: 1}
    assert record.lines(DENIED) == []


@both_families
def test_udp_that_is_never_answered_is_one_connection(
    scene: Scene, record: RecordSince, of: Of
) -> None:
    target, port = of(scene.server), next(ports)
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    listening = scene.server.new_socket(family, socket.SOCK_DGRAM)
    listening.bind(("", port))
    listening.settimeout(2)
    with scene.client.new_socket(family, socket.SOCK_DGRAM) as one_way:
        for _ in range(20):
            one_way.sendto(b"x", (str(target), port))
            assert listening.recv(10) == b"x"
    record.line(WOULD_DENY, access=f"udp/{port}")
    [counted] = scene.observed(of(scene.client), port)
    assert counted.packets == 1


@both_families
def test_a_closed_port_refuses_as_without_a_gate(scene: Scene, record: RecordSince, of: Of) -> None:
    port = next(ports)
    for reach in (scene.client.reach_tcp, scene.client.reach_udp):
        assert reach(of(scene.server), port) is Reach.REFUSED
    record.line(WOULD_DENY, source=of(scene.client), access=f"tcp/{port}")
    record.line(WOULD_DENY, source=of(scene.client), access=f"udp/{port}")


@both_families
def test_what_is_forwarded_is_let_in_too(scene: Scene, record: RecordSince, of: Of) -> None:
    """By the port that is published, and by the container's own address."""
    client = scene.client
    for target, port in ((of(scene.server), PUBLISHED), (of(scene.container), INSIDE)):
        for reach in (client.reach_tcp, client.reach_udp):
            assert reach(target, port) is Reach.OPEN
        for label in ("tcp", "udp"):
            record.line(WOULD_DENY, source=of(client), target=target, access=f"{label}/{port}")


@both_families
def test_a_connection_with_a_hole_is_a_permit(scene: Scene, record: RecordSince, of: Of) -> None:
    target, client = of(scene.server), scene.client
    scene.alice.knock_at(client, target, f"tcp/{SSH}")
    assert client.reach_tcp(target, SSH) is Reach.OPEN
    record.line("connection.permitted", identity="alice", target=target, access=f"tcp/{SSH}")
    assert scene.stranger.reach_tcp(target, SSH) is Reach.OPEN
    line = record.line(WOULD_DENY, target=target, access=f"tcp/{SSH}")
    assert line["source"] == str(of(scene.stranger))
    assert line["identity"] is None


def test_knocks_still_vanish(scene: Scene, record: RecordSince) -> None:
    """The knock port is the gate's own, in every mode."""
    assert scene.stranger.reach_udp(scene.server.v4, 62201) is Reach.SILENT
    assert record.lines(WOULD_DENY, access="udp/62201") == []


@both_families
def test_the_session_of_a_cut_service_is_not_cut(scene: Scene, record: RecordSince, of: Of) -> None:
    target = of(scene.server)
    scene.alice.knock_at(scene.client, target, f"tcp/{POSTGRES}")
    with scene.client.connection(target, POSTGRES) as session:
        assert echoes(session)
        scene.site.close_everything()
        time.sleep(0.2)
        assert all(echoes(session) for _ in range(3))
    assert record.lines("connection.severed") == []


# How much is written


def test_a_thousand_connections_are_few_lines_and_a_right_count(
    scene: Scene, record: RecordSince
) -> None:
    first = 40_000
    for port in range(first, first + 1000):
        with scene.client.connection(scene.server.v4, port) as attempt:
            assert reached(attempt) is Reach.REFUSED
    wait_until(
        lambda: total(record.lines(WOULD_DENY)) >= 1000,
        within_s=INTERVAL_S + 10,
        what="the count at the end of the interval",
    )
    lines = record.lines(WOULD_DENY)
    assert total(lines) == 1000
    assert len(lines) < 500
    assert scene.site.status()["lost"] == 0


def test_a_thousand_connections_to_one_port_are_one_line(
    scene: Scene, record: RecordSince, service: Service
) -> None:
    for _ in range(1000):
        with scene.client.connection(scene.server.v4, service.port) as attempt:
            assert reached(attempt) is Reach.OPEN
    record.line(WOULD_DENY, access=f"tcp/{service.port}")
    assert len(record.lines(WOULD_DENY)) == 1
    [counted] = scene.observed(scene.client.v4, service.port)
    assert counted.packets == 1000
    assert service.connections == 1000


# From observing to enforcing, and back


def test_the_operator_is_told(scene: Scene) -> None:
    loud = "OBSERVE MODE: THIS HOST IS OPEN"
    assert loud in scene.apply("observe")
    assert loud in scene.site.server("gate", "show").stderr
    shown = scene.site.server("status")
    assert loud in shown.stderr
    assert f"{'mode':<20}  observe\n" in shown.stdout
    assert (scene.site.status()["mode"], scene.site.status()["observed"]) == ("observe", [])
    assert scene.site.events("gate.applied")[-1]["detail"]["observed"] == "every port"

    some = "OBSERVED, AND OPEN: tcp/22, tcp/5432."
    assert some in scene.apply("enforce", "postgres", "ssh")
    assert some in scene.site.server("gate", "show").stderr
    assert some in scene.site.server("status").stderr
    assert scene.site.status()["mode"] == "enforce"
    assert scene.site.status()["observed"] == ["tcp/22", "tcp/5432"]

    for said in (scene.apply("enforce"), scene.site.server("status").stderr):
        assert "OBSERVE" not in said
    assert scene.site.status()["observed"] == []


@both_families
def test_enforcing_closes_at_once_and_keeps_sessions(
    scene: Scene, record: RecordSince, service: Service, of: Of
) -> None:
    client, target, port = scene.client, of(scene.server), service.port
    scene.alice.knock_at(client, target, f"tcp/{SSH}", f"tcp/{POSTGRES}")
    with (
        client.connection(target, SSH) as permitted,
        client.connection(target, POSTGRES) as held,
        client.connection(target, port) as let_in,
        scene.stranger.connection(target, POSTGRES) as cut,
    ):
        sessions = (permitted, held, let_in, cut)
        assert all(map(echoes, sessions))
        scene.apply("enforce")
        assert [echoes(session) for session in sessions] == [True, True, True, False]
        for reach in (client.reach_tcp, client.reach_udp):
            assert reach(target, port) is Reach.SILENT
        record.line(DENIED, source=of(client), access=f"tcp/{port}")
        record.line(DENIED, source=of(client), access=f"udp/{port}")

        scene.apply("observe")
        assert [echoes(session) for session in (permitted, held, let_in)] == [True, True, True]
        assert client.reach_tcp(target, port) is Reach.OPEN
        assert client.reach_udp(target, port) is Reach.OPEN


def test_a_trial_of_enforcing_goes_back_to_observing(scene: Scene, service: Service) -> None:
    scene.configure("enforce")
    scene.site.apply_gate("--confirm-within", "2s")
    assert scene.stranger.reach_tcp(scene.server.v4, service.port) is Reach.SILENT
    assert scene.site.status()["mode"] == "enforce"
    wait_until(lambda: scene.site.status()["mode"] == "observe", within_s=10)
    assert scene.stranger.reach_tcp(scene.server.v4, service.port) is Reach.OPEN
    refused = scene.site.server("reload", check=False)
    assert refused.returncode == 4
    assert "mode: what is only observed now would be closed" in refused.stderr
    assert "spa-server gate apply --confirm-within 60s" in refused.stderr
    status = scene.site.status()
    assert status["mode"] == "observe"
    assert re.search(r"the last good one, since \S+Z, for .*: mode: ", status["policy"])
    scene.site.apply_gate()
    assert scene.site.status()["mode"] == "enforce"


def test_a_changed_file_does_nothing_before_it_is_applied(scene: Scene, service: Service) -> None:
    """Not even when the daemon has to put the gate back meanwhile."""
    scene.configure("enforce")
    scene.server.run(["nft", "flush", "ruleset"])
    with scene.server.inside(), Gate() as gate:
        wait_until(gate.is_loaded)
    assert scene.stranger.reach_tcp(scene.server.v4, service.port) is Reach.OPEN


def findings(scene: Scene) -> set[str]:
    done = scene.site.server("check", "--json", check=False)
    return {one["name"] for one in json.loads(done.stdout)}


def test_a_restart_and_a_boot_close_nothing_that_was_not_tried(
    scene: Scene, record: RecordSince, service: Service
) -> None:
    """Whoever writes `enforce` and restarts is told, and not locked out."""
    scene.configure("enforce")
    scene.site.restart()
    assert scene.stranger.reach_tcp(scene.server.v4, service.port) is Reach.OPEN
    status = scene.site.server("status")
    assert "mode: every port is observed until a gate is applied that closes it" in status.stderr
    assert "THIS HOST IS OPEN" in status.stderr
    assert scene.site.status()["mode"] == "observe"
    assert "config-held-back" in findings(scene)
    assert "gate-differs" not in findings(scene)
    assert "gate apply --confirm-within" in str(record.line("policy.refused")["reason"])
    assert scene.site.daemon is not None
    assert "every port is observed until" in scene.site.daemon.output
    # A reload closes it no more than a restart, nor does the boot, nor a gate that was taken away.
    scene.site.server("reload", check=False)
    scene.site.stop()
    scene.server.run(["nft", "flush", "ruleset"])
    scene.site.server("gate", "apply", "--closed-on-error")
    assert scene.stranger.reach_tcp(scene.server.v4, service.port) is Reach.OPEN
    scene.site.start()
    scene.server.run(["nft", "flush", "ruleset"])
    with scene.server.inside(), Gate() as gate:
        wait_until(gate.is_loaded)
    assert scene.stranger.reach_tcp(scene.server.v4, service.port) is Reach.OPEN
    # On trial it is closed, whoever restarts meanwhile; and open again after it.
    scene.site.apply_gate("--confirm-within", "6s")
    scene.site.restart()
    assert scene.stranger.reach_tcp(scene.server.v4, service.port) is Reach.SILENT
    wait_until(lambda: scene.site.status()["mode"] == "observe", within_s=15)
    scene.site.restart()
    assert scene.stranger.reach_tcp(scene.server.v4, service.port) is Reach.OPEN
    # Kept, it is closed for good.
    scene.site.apply_gate("--confirm-within", "60s")
    scene.site.server("gate", "confirm")
    for _ in range(2):
        assert scene.stranger.reach_tcp(scene.server.v4, service.port) is Reach.SILENT
        assert scene.site.status()["held_back"] is None
        assert "config-held-back" not in findings(scene)
        scene.site.restart()


def test_a_restart_closes_no_single_service_either(scene: Scene) -> None:
    scene.apply("enforce", "postgres")
    scene.configure("enforce")
    scene.site.restart()
    assert scene.stranger.reach_tcp(scene.server.v4, POSTGRES) is Reach.OPEN
    assert scene.stranger.reach_tcp(scene.server.v4, SSH) is Reach.SILENT
    assert "observe: tcp/5432 is observed until" in str(scene.site.status()["held_back"])
    scene.configure("observe")  # opening needs no trial
    scene.site.restart()
    assert scene.stranger.reach_tcp(scene.server.v4, SSH) is Reach.OPEN
    assert scene.site.status()["held_back"] is None
    scene.apply("enforce")
    assert scene.stranger.reach_tcp(scene.server.v4, POSTGRES) is Reach.SILENT


# Some services


@both_families
def test_one_service_is_observed_and_the_others_are_not(
    scene: Scene, record: RecordSince, of: Of
) -> None:
    scene.apply("enforce", "syslog", "postgres")
    syslog = scene.server.serve(5140)
    client, target = scene.client, of(scene.server)
    for reach, label in ((client.reach_tcp, "tcp"), (client.reach_udp, "udp")):
        assert reach(target, 5140) is Reach.OPEN
        record.line(WOULD_DENY, source=of(client), target=target, access=f"{label}/5140")
        other = next(ports)
        assert reach(target, other) is Reach.SILENT
        record.line(DENIED, source=of(client), access=f"{label}/{other}")
    assert scene.stranger.reach_tcp(target, SSH) is Reach.SILENT
    assert record.lines(WOULD_DENY, access=f"tcp/{SSH}") == []

    scene.alice.knock_at(client, target, f"tcp/{POSTGRES}")
    with client.connection(target, POSTGRES) as session:
        assert echoes(session)
        scene.site.close_everything()
        time.sleep(0.2)
        assert echoes(session)
        scene.apply("enforce", "syslog")
        assert not echoes(session)
    assert client.reach_tcp(target, 5140) is Reach.OPEN
    syslog.stop()


def test_a_service_that_is_not_in_the_policy_changes_nothing(scene: Scene) -> None:
    scene.configure("enforce", "postgers")
    wrong = f"{scene.site.config}: observe: no service 'postgers' in"
    for command in (("gate", "apply"), ("gate", "apply", "--confirm-within", "60s"), ("reload",)):
        done = scene.site.server(*command, check=False)
        assert (done.returncode, wrong in done.stderr) == (4, True), done.stderr
    assert not (scene.site.directory / "gate.pending").exists()
    assert scene.site.status()["mode"] == "observe"
    assert wrong in scene.site.events("policy.refused")[-1]["reason"]

    closed = scene.site.server("gate", "apply", "--closed-on-error", check=False)
    assert closed.returncode == 4


def test_a_policy_without_an_observed_service_is_not_taken(scene: Scene) -> None:
    scene.apply("enforce", "syslog")
    scene.site.write_policy(POLICY.replace("syslog", "logs"))
    done = scene.site.server("reload", check=False)
    assert done.returncode == 4
    assert "observe: no service 'syslog'" in done.stderr
    assert scene.site.status()["observed"] == ["tcp/5140", "udp/5140"]
    scene.site.write_policy(POLICY)


def test_at_the_boot_an_unknown_service_is_not_observed(scene: Scene) -> None:
    """With no daemon yet: what can be read is in force, and nothing else is open."""
    scene.site.stop()
    scene.configure("enforce", "ssh", "postgers")
    done = scene.site.server("gate", "apply", "--closed-on-error", check=False)
    assert done.returncode == 4
    assert "no service 'postgers'" in done.stderr
    assert "OBSERVED" not in done.stderr
    assert scene.stranger.reach_tcp(scene.server.v4, SSH) is Reach.SILENT
    scene.configure("observe")
    scene.site.start()


# The kernel alone


@pytest.fixture
def gate(neighbours: Neighbours) -> Iterator[Gate]:
    """The gate of a server that observes everything. The test itself runs there."""
    with neighbours.server.inside(), Gate() as made:
        made.apply(EVERYTHING)
        yield made
        made.remove()


def test_the_first_packet_alone_is_logged(gate: Gate, neighbours: Neighbours) -> None:
    server, client = neighbours.server, neighbours.client
    running = server.serve(next(ports))
    with Log(623) as log, Log(622) as permits:
        for _ in range(3):
            assert client.reach_tcp(server.v4, running.port) is Reach.OPEN
        assert log.prefixes(1.2) == ["would-deny"]
        gate.open([lease(hole(client.v4, server.v4, running.port))])
        assert client.reach_tcp(server.v4, running.port) is Reach.OPEN
        assert (log.prefixes(1.2), permits.prefixes()) == ([], ["permit"])
    assert [each.packets for each in gate.observed() if each.port == running.port] == [3]
    assert [each for each in gate.denials() if each.port == running.port] == []
    running.stop()


def test_a_flow_that_was_let_in_is_permitted_once_it_has_a_hole(
    gate: Gate, neighbours: Neighbours
) -> None:
    server, client = neighbours.server, neighbours.client
    port = next(ports)
    with (
        Log(622) as permits,
        client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as one_way,
        server.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as listening,
    ):
        listening.bind(("", port))
        for _ in range(3):
            one_way.sendto(b"x", (str(server.v4), port))
        assert permits.prefixes() == []
        gate.open([lease(hole(client.v4, server.v4, port, Protocol.UDP))])
        for _ in range(3):
            one_way.sendto(b"x", (str(server.v4), port))
        assert permits.prefixes() == ["permit"]


def test_a_connection_from_the_same_port_is_another(gate: Gate, neighbours: Neighbours) -> None:
    server, client = neighbours.server, neighbours.client
    running, source_port = server.serve(next(ports)), next(ports)
    for _ in range(3):
        with client.connection(server.v4, running.port, source_port=source_port) as stream:
            assert reached(stream) is Reach.OPEN
            assert echoes(stream)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert [each.packets for each in gate.observed() if each.port == running.port] == [3]
    running.stop()


def test_one_way_udp_that_was_let_in_ends_when_the_gate_enforces(
    gate: Gate, neighbours: Neighbours
) -> None:
    server, client = neighbours.server, neighbours.client
    port = next(ports)
    with (
        client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as one_way,
        server.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as listening,
    ):
        listening.bind(("", port))
        listening.settimeout(0.3)
        one_way.sendto(b"observed", (str(server.v4), port))
        assert listening.recv(10) == b"observed"
        gate.apply(ONLY_THIS_HOST)
        one_way.sendto(b"denied", (str(server.v4), port))
        with pytest.raises(TimeoutError):
            listening.recv(10)


def test_full_sets_let_in_and_count(gate: Gate, neighbours: Neighbours) -> None:
    """Whoever floods an observed port from forged addresses fills them."""
    server, client = neighbours.server, neighbours.client
    running = server.serve(next(ports))
    fill("observed4", (IPv4Address(n).packed + bytes(8) for n in range(1, 65_536)))
    fill("observed_sources4", (IPv4Address(n).packed for n in range(1, 65_536)))
    flow = bytes(16)
    fill("observed_flows4", (IPv4Address(n).packed + flow for n in range(1, 65_536)))
    before = gate.counters()["observed_unlisted"].packets
    for reach in (client.reach_tcp, client.reach_udp):
        assert reach(server.v4, running.port) is Reach.OPEN
    assert gate.counters()["observed_unlisted"].packets == before + 2
    assert len(list(gate.observed())) == 2 * 65_535
    gate.open([lease(hole(client.v4, server.v4, running.port, once=True))])
    with Log(622) as permits:
        assert client.reach_tcp(server.v4, running.port) is Reach.OPEN
        assert permits.prefixes() == ["permit"]
    running.stop()


def test_the_mode_changes_in_place(gate: Gate, neighbours: Neighbours) -> None:
    """No session that has a hole is lost, and nobody slips in after the last change to enforce."""
    server, client, stranger = neighbours.server, neighbours.client, neighbours.stranger
    running = server.serve(next(ports))
    own = hole(client.v4, server.v4, running.port)
    access = Access(Protocol.TCP, running.port, running.port)
    plans = (
        GatePlan(outer=(), cut=(access,)),
        GatePlan(outer=(), cut=(access,), observed=Observed(accesses=(access,))),
        GatePlan(outer=(), cut=(access,), observed=Observed(everything=True)),
    )
    gate.open([lease(own)])
    with client.connection(server.v4, running.port) as session:
        for turn in range(60):
            plan = plans[turn % len(plans)]
            gate.apply(plan)
            assert echoes(session)
            wanted = Reach.OPEN if plan.observed else Reach.SILENT
            if turn < len(plans):
                assert stranger.reach_tcp(server.v4, running.port) is wanted
    assert [live.hole for live in gate.live_holes()] == [own]
    listed = gate.ruleset()
    gate.apply(ONLY_THIS_HOST)
    gate.restore(listed)
    assert stranger.reach_tcp(server.v4, running.port) is Reach.OPEN
    running.stop()
