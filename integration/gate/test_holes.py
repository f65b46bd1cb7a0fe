"""Holes in the gate: whom they let in, and for how long."""

import socket
import threading
import time
from ipaddress import ip_address

import pytest

from integration.gate import MINUTE_MS, SECOND, address, both_families, hole, lease, ports, reach
from integration.lab import Host, Reach, Service, echoes, reached, wait_until
from spa_protocol.access import Protocol
from spa_server.firewall.elements import HoleLease
from spa_server.firewall.kernel import Gate


@pytest.mark.usefixtures("second_addresses")
@both_families
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_hole_is_for_its_source_target_protocol_and_port_alone(
    gate: Gate,
    server: Host,
    client: Host,
    stranger: Host,
    service: Service,
    family: int,
    protocol: Protocol,
) -> None:
    source, target = address(client, family), address(server, family)
    second_source, second_target = source + SECOND, target + SECOND
    other = Protocol.UDP if protocol is Protocol.TCP else Protocol.TCP
    neighbour = server.serve(next(ports))

    gate.open([lease(hole(source, target, service.port, protocol))])

    assert reach(client, target, service.port, protocol) is Reach.OPEN
    assert reach(client, target, service.port, protocol) is Reach.OPEN
    assert reach(client, target, service.port, other) is Reach.SILENT
    assert reach(client, target, neighbour.port, protocol) is Reach.SILENT
    assert reach(client, second_target, service.port, protocol) is Reach.SILENT
    assert reach(client, target, service.port, protocol, source=second_source) is Reach.SILENT
    assert reach(stranger, target, service.port, protocol) is Reach.SILENT
    neighbour.stop()


def test_closing_a_hole_keeps_the_session_and_the_other_holes(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service
) -> None:
    own, others = (hole(h.v4, server.v4, service.port) for h in (client, stranger))
    gate.open([lease(own), lease(others)])
    with client.connection(server.v4, service.port) as session:
        assert reached(session) is Reach.OPEN
        gone = hole(client.v6, server.v6, service.port)
        gate.close([gone, own, gone])
        assert client.reach_tcp(server.v4, service.port) is Reach.SILENT
        assert stranger.reach_tcp(server.v4, service.port) is Reach.OPEN
        assert echoes(session)
    gate.close([own])


@both_families
def test_a_hole_closes_by_itself_with_nobody_there(
    gate: Gate, server: Host, client: Host, service: Service, family: int
) -> None:
    target = address(server, family)
    with Gate() as short_lived:
        short_lived.open([lease(hole(address(client, family), target, service.port), 600)])
    opened = time.monotonic()
    while client.reach_tcp(target, service.port) is Reach.OPEN:
        time.sleep(0.01)
    assert 0.5 < time.monotonic() - opened - 0.3 < 0.8
    assert gate.live_holes() == []


def test_a_wrong_guess_that_a_hole_is_new_harms_nothing(gate: Gate) -> None:
    known, new, once = (
        hole(ip_address("192.0.2.1"), ip_address("192.0.2.2"), port, once=port == 24)
        for port in (22, 23, 24)
    )
    gate.open([lease(known, 5000)])
    gate.open([HoleLease(each, MINUTE_MS, is_new=True) for each in (known, new, once)])
    remaining = {live.hole: live.remaining_ms for live in gate.live_holes()}
    assert set(remaining) == {known, new, once}
    assert min(remaining.values()) > 5000
    gate.close([known, new, once])


def test_renewing_a_hole_loses_nothing_and_may_shorten_it(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    own = hole(client.v4, server.v4, service.port, Protocol.UDP)
    long_ms = 10_000  # longer than a busy machine keeps this test waiting
    gate.open([lease(own, long_ms)])
    ended = threading.Event()
    sent = 0

    def send_from_new_ports() -> None:
        nonlocal sent
        while not ended.is_set():
            with client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
                sending.sendto(b"x", (str(server.v4), service.port))
            sent += 1
            time.sleep(0.0005)

    sender = threading.Thread(target=send_from_new_ports)
    sender.start()
    renewals = 0
    while renewals < 300 or (sent <= 200 and sender.is_alive()):
        gate.open([lease(own, long_ms)])
        renewals += 1
        time.sleep(0.002)
    ended.set()
    sender.join()
    wait_until(lambda: len(service.received) == sent, what="every packet")
    assert sent > 200
    # Each renewal begins to count anew, and nobody may have sent since the last.
    assert client.reach_udp(server.v4, service.port) is Reach.OPEN
    assert gate.live_holes()[0].packets > 0

    gate.open([lease(own, MINUTE_MS)])
    gate.open([lease(own, 50)])
    time.sleep(0.1)
    assert client.reach_udp(server.v4, service.port) is Reach.SILENT
