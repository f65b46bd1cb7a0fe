"""Sessions through the gate: let in once, remembered, kept or cut."""

import os
import socket
import struct
import sys
import time
from ipaddress import IPv4Network

from integration.gate import Log, address, af, both_families, drain, hole, lease, ports
from integration.lab import Host, Reach, Service, echoes, reached, wait_until
from spa_protocol.access import Access, Protocol
from spa_server.firewall.kernel import Gate
from spa_server.firewall.plan import AlwaysOpen, GatePlan
from spa_server.flow import Flow


@both_families
def test_once_admits_one_of_many_that_race_and_it_lives(
    gate: Gate, server: Host, client: Host, service: Service, family: int
) -> None:
    source, target = address(client, family), address(server, family)
    for _ in range(5):
        gate.open([lease(hole(source, target, service.port, once=True))])
        racing = [client.connection(target, service.port) for _ in range(60)]
        time.sleep(0.2)
        winners = [stream for stream in racing if reached(stream, 0) is Reach.OPEN]
        assert len(winners) == 1
        assert gate.live_holes() == []
        assert echoes(winners[0])
        for stream in racing:
            stream.close()


def test_a_once_hole_that_is_renewed_still_admits_one(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    own = hole(client.v4, server.v4, service.port, once=True)
    other = hole(client.v6, server.v6, service.port, once=True)
    gate.open([lease(own), lease(other, 100)])
    time.sleep(0.15)
    gate.open([lease(own, 5000), lease(other, 7000)])
    remaining = {live.hole: live.remaining_ms for live in gate.live_holes()}
    assert 4000 < remaining[own] <= 5000
    assert 6000 < remaining[other] <= 7000
    streams = [client.connection(server.v4, service.port) for _ in range(3)]
    assert [reached(stream) for stream in streams].count(Reach.OPEN) == 1
    for stream in streams:
        stream.close()


RACE = """
import os, socket, sys
processor, target, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
os.sched_setaffinity(0, {processor})
print("racing", flush=True)
while True:
    made = socket.socket()
    made.setblocking(False)
    made.connect_ex((target, port))
    made.close()
"""


def test_once_is_once_while_all_processors_race_for_it(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """Each processor completes one handshake after another. The hole is opened in their midst."""
    own = hole(client.v4, server.v4, service.port, once=True)
    arguments = (str(server.v4), str(service.port))
    racers = [
        client.start([sys.executable, "-c", RACE, str(processor), *arguments])
        for processor in os.sched_getaffinity(0)
    ]
    for racer in racers:
        racer.wait_for("racing")
    rounds, permits = 0, 0
    began = time.monotonic()
    with Log(622) as log:
        while time.monotonic() - began < 3:
            gate.open([lease(own)])
            wait_until(lambda: not gate.live_holes())
            permits += len(log.prefixes(0.003))
            rounds += 1
    for racer in racers:
        racer.stop()
    assert rounds > 10
    assert permits == rounds


def test_once_admits_a_whole_burst_of_one_udp_flow_and_no_other_flow(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    gate.open([lease(hole(client.v4, server.v4, service.port, Protocol.UDP, once=True))])
    with (
        client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as first,
        client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as second,
    ):
        for each in (first, second):
            each.connect((str(server.v4), service.port))
        for _ in range(20):
            first.send(b"first")
        for _ in range(20):
            second.send(b"second")
        time.sleep(0.2)
    assert service.received == [b"first"] * 20


def test_a_permitted_connection_is_recorded_once(
    gate: Gate, server: Host, client: Host, port: int
) -> None:
    """One-way UDP belongs to the flow that was let in. A SYN that nobody answers is none."""
    gate.open([lease(hole(client.v4, server.v4, port, p)) for p in (Protocol.TCP, Protocol.UDP)])
    silent = server.new_socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("", port))
    # A full backlog: the first SYN fills it, those after it are dropped and repeated.
    full = server.new_socket(socket.AF_INET, socket.SOCK_STREAM)
    full.bind(("", port))
    full.listen(0)
    with Log(622) as log, client.connection(server.v4, port) as filling:
        assert reached(filling) is Reach.OPEN
        assert log.prefixes() == ["permit"]
        with client.connection(server.v4, port) as repeating:
            assert reached(repeating, 1.3) is Reach.SILENT
            assert log.prefixes() == []
        with client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as one_way:
            for _ in range(10):
                one_way.sendto(b"x", (str(server.v4), port))
                time.sleep(0.005)
        assert log.prefixes() == ["permit"]
    silent.close()
    full.close()


def test_a_connection_from_the_same_port_needs_a_hole_again(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    own = hole(client.v4, server.v4, service.port, once=True)
    gate.open([lease(own)])
    source_port = next(ports)
    with client.connection(server.v4, service.port, source_port=source_port) as first:
        assert reached(first) is Reach.OPEN
        assert echoes(first)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with client.connection(server.v4, service.port, source_port=source_port) as second:
        assert reached(second) is Reach.SILENT
    gate.open([lease(own)])
    with client.connection(server.v4, service.port, source_port=source_port) as third:
        assert reached(third) is Reach.OPEN


def test_a_syn_does_not_ride_on_what_conntrack_remembers(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """An entry of a session whose socket is long gone: made by hand here."""
    source_port = next(ports)
    ends = f"-s {client.v4} -d {server.v4} --sport {source_port} --dport {service.port}"
    state = "--state ESTABLISHED --status ASSURED,SEEN_REPLY --timeout 60"
    server.run(f"conntrack -I -p tcp {ends} {state}".split())
    assert gate.is_loaded()
    with client.connection(server.v4, service.port, source_port=source_port) as stream:
        assert reached(stream) is Reach.SILENT


@both_families
def test_a_syn_that_nothing_answered_may_be_repeated_while_its_hole_is_open(
    gate: Gate, server: Host, client: Host, port: int, family: int
) -> None:
    """The host answers nothing: its backlog is full. No hole, no repetition."""
    source, target = address(client, family), address(server, family)
    full = server.new_socket(af(family), socket.SOCK_STREAM)
    full.bind(("", port))
    full.listen(0)
    own = hole(source, target, port)
    gate.open([lease(own)])
    with client.connection(target, port) as filling, client.connection(target, port) as waiting:
        assert reached(filling) is Reach.OPEN
        assert reached(waiting) is Reach.SILENT
        gate.close([own])
        accepted, _ = full.accept()
        assert reached(waiting, 2.2) is Reach.SILENT
        gate.open([lease(own)])
        wait_until(lambda: reached(waiting) is Reach.OPEN, what="the repeated SYN")
        accepted.close()
    full.close()


def test_two_hosts_that_open_to_each_other_find_together(
    gate: Gate, server: Host, client: Host, port: int
) -> None:
    """Both SYNs are on their way when the other comes; what the host asks for needs no hole."""
    assert gate.is_loaded()
    client_port = next(ports)
    loss = "add table ip lossy\nadd chain ip lossy in { type filter hook input priority 0; }\n"
    loss += f"add rule ip lossy in tcp sport {port} tcp dport {client_port} drop\n"
    client.run(["nft", "-f", "-"], text=loss)
    with (
        server.connection(client.v4, client_port, source_port=port) as ours,
        client.connection(server.v4, port, source_port=client_port) as theirs,
    ):
        crossed = f"ss -Htn state syn-recv sport = :{port}".split()
        wait_until(lambda: server.run(crossed).stdout, what="their SYN to meet ours")
        client.run(["nft", "delete", "table", "ip", "lossy"])
        assert reached(ours, 3) is Reach.OPEN
        assert reached(theirs, 3) is Reach.OPEN


def test_udp_that_goes_on_is_the_session_that_was_let_in_and_ends_when_it_pauses(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """What `keep` promises for UDP: the flow, not the port. `cut` ends it with its hole. A service
    that speaks unasked begins a flow of its own, which may be answered."""
    own = hole(client.v4, server.v4, service.port, Protocol.UDP)
    gate.open([lease(own)])
    with client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
        flow.settimeout(0.3)
        flow.connect((str(server.v4), service.port))
        flow.send(b"first")
        assert flow.recv(64) == b"first"
        gate.close([own])
        flow.send(b"second")
        assert flow.recv(64) == b"second"
        assert client.reach_udp(server.v4, service.port) is Reach.SILENT
        server.run(["conntrack", "-D", "-p", "udp", "--dport", str(service.port)])
        server.run(["nft", "flush", "set", "inet", "spa", "flows4"])
        flow.send(b"third")
        assert drain(flow) == 0
        client_port = flow.getsockname()[1]
        service.udp.sendto(b"the service speaks", (f"::ffff:{client.v4}", client_port))
        assert flow.recv(64) == b"the service speaks"
        flow.send(b"fourth")
        assert flow.recv(64) == b"fourth"


@both_families
def test_a_cut_session_ends_with_its_hole_and_a_kept_one_lives(
    gate: Gate, server: Host, client: Host, service: Service, family: int
) -> None:
    source, target = address(client, family), address(server, family)
    kept = server.serve(next(ports))
    plan = GatePlan(outer=(), cut=(Access(Protocol.TCP, service.port - 5, service.port),))
    gate.apply(plan)
    holes = [hole(source, target, p) for p in (service.port, kept.port)]
    gate.open([lease(each) for each in holes])
    with (
        Log(622) as log,
        client.connection(target, service.port) as cut_session,
        client.connection(target, kept.port) as kept_session,
    ):
        assert echoes(cut_session)
        assert echoes(kept_session)
        assert log.prefixes() == ["permit", "permit"]
        service.received.clear()
        gate.close(holes)
        for _ in range(2):
            assert not echoes(cut_session)
        assert service.received == []
        assert echoes(kept_session)
        assert log.prefixes() == ["severed"]
        gate.open([lease(holes[0])])
        wait_until(lambda: service.received, what="the repeated segment, once there is a hole")
    kept.stop()


def test_cut_leaves_alone_what_is_always_open_and_what_goes_out(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service
) -> None:
    access = Access(Protocol.TCP, service.port, service.port)
    peers = AlwaysOpen(IPv4Network(client.v4), access)
    gate.apply(GatePlan(outer=(), cut=(access,), always_open=(peers,)))
    elsewhere = client.serve(service.port)
    with client.connection(server.v4, service.port) as peer:
        assert echoes(peer)
        assert echoes(peer)
    assert stranger.reach_tcp(server.v4, service.port) is Reach.SILENT
    with server.connection(client.v4, service.port) as outgoing:
        assert echoes(outgoing)
    elsewhere.stop()


@both_families
def test_a_stopped_flow_is_dropped_though_its_hole_is_open_and_no_other_is(
    gate: Gate, server: Host, client: Host, service: Service, family: int
) -> None:
    source, target = address(client, family), address(server, family)
    gate.apply(GatePlan(outer=()))
    gate.open([lease(hole(source, target, service.port))])
    source_port = next(ports)
    flow = Flow(source, source_port, target, Protocol.TCP, service.port)
    with (
        client.connection(target, service.port, source_port=source_port) as stopped,
        client.connection(target, service.port) as other,
    ):
        assert echoes(stopped)
        gate.stop_flows([flow])
        assert gate.stopped_flows() == [flow]
        assert not echoes(stopped)
        assert echoes(other)
        gate.apply(GatePlan(outer=()))
        gate.stop_flows([flow])
        assert not echoes(stopped)
        gate.release_flows([flow, flow])
        assert gate.stopped_flows() == []
        service.received.clear()
        wait_until(lambda: service.received, what="what was sent, once it is released")
    gate.stop_flows([flow])
    with client.connection(target, service.port, source_port=source_port) as again:
        assert reached(again) is Reach.SILENT
