"""Knocks at the gate: which of them are heard, and how often."""

import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, ip_address
from itertools import count, islice

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from integration.gate import (
    DESTINATION_OPTIONS,
    MINUTE_MS,
    OTHER_TAG,
    TAG,
    Log,
    address,
    both_families,
    drain,
    fill,
    hole,
    knock,
    lease,
)
from integration.lab import Host, Reach
from spa_protocol.access import Protocol
from spa_protocol.layout import DATAGRAM_SIZE, DEFAULT_PORT
from spa_server.firewall.elements import TagLease
from spa_server.firewall.kernel import AdmissionStopped, Gate
from spa_server.firewall.plan import GatePlan


@pytest.fixture
def heard(gate: Gate) -> Iterator[Callable[[], list[bytes]]]:
    """Reads the knocks that were heard since, as packets."""
    gate.admit([TagLease(TAG, MINUTE_MS)])
    with Log(621) as log:
        yield lambda: [packet for _, packet in log.read()]


@both_families
def test_a_knock_is_heard_at_once_and_whole(
    server: Host, client: Host, heard: Callable[[], list[bytes]], family: int
) -> None:
    payload = TAG + bytes(range(232))
    knock(client, address(server, family), payload)
    (packet,) = heard()
    parsed = IP(packet) if family == 4 else IPv6(packet)
    assert ip_address(parsed.src) == address(client, family)
    assert ip_address(parsed.dst) == address(server, family)
    assert parsed[UDP].dport == DEFAULT_PORT
    assert bytes(parsed[UDP].payload) == payload


def test_a_knock_behind_all_ipv4_options_is_heard_whole(
    server: Host, client: Host, heard: Callable[[], list[bytes]]
) -> None:
    payload = TAG + bytes(range(232))
    knock(client, server.v4, payload, options=(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1" * 40))
    (packet,) = heard()
    assert len(packet) == 60 + 8 + DATAGRAM_SIZE
    assert packet.endswith(payload)


def test_nothing_but_a_knock_is_heard_and_nothing_gets_through(
    gate: Gate, server: Host, client: Host, heard: Callable[[], list[bytes]]
) -> None:
    listening = server.new_socket(socket.AF_INET6, socket.SOCK_DGRAM)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listening.bind(("", DEFAULT_PORT))
    listening.settimeout(0.1)
    gate.open([lease(hole(client.v4, server.v4, DEFAULT_PORT, Protocol.UDP))])
    for target in (server.v4, server.v6):
        knock(client, target, TAG.ljust(DATAGRAM_SIZE - 1))
        knock(client, target, TAG.ljust(DATAGRAM_SIZE + 1))
        knock(client, target, OTHER_TAG.ljust(DATAGRAM_SIZE))
        knock(client, target, b"")
    assert gate.counters()["knocks_rejected"].packets == 8
    knock(client, server.v6, options=DESTINATION_OPTIONS)
    assert gate.counters()["knocks_rejected"].packets == 9
    for not_local in ("10.77.1.255", "255.255.255.255", "ff02::1"):
        knock(client, not_local)
    knock(client, server.v4, port=DEFAULT_PORT + 1)
    assert heard() == []
    knock(client, server.v4)
    knock(client, server.v6)
    assert len(heard()) == 2
    assert drain(listening) == 0
    gate.withdraw([TAG, OTHER_TAG])
    knock(client, server.v4)
    assert heard() == []
    listening.close()


def test_the_knock_port_of_tcp_is_a_port_like_any_other(
    gate: Gate, server: Host, client: Host
) -> None:
    service = server.serve(DEFAULT_PORT)
    assert client.reach_tcp(server.v4, DEFAULT_PORT) is Reach.SILENT
    gate.open([lease(hole(client.v4, server.v4, DEFAULT_PORT))])
    assert client.reach_tcp(server.v4, DEFAULT_PORT) is Reach.OPEN
    service.stop()


def test_an_admission_ends_in_time_and_can_be_renewed(
    gate: Gate, server: Host, client: Host, heard: Callable[[], list[bytes]]
) -> None:
    other = OTHER_TAG.ljust(DATAGRAM_SIZE)
    assert gate.admit([TagLease(TAG, 200), TagLease(OTHER_TAG, 200)]) == 2
    assert gate.admit([TagLease(OTHER_TAG, MINUTE_MS)]) == 1
    knock(client, server.v4)
    assert len(heard()) == 1
    time.sleep(0.2)
    knock(client, server.v4)
    assert heard() == []
    knock(client, server.v4, other)
    assert len(heard()) == 1


@both_families
def test_a_stolen_tag_does_not_silence_its_owner(
    gate: Gate,
    server: Host,
    client: Host,
    stranger: Host,
    heard: Callable[[], list[bytes]],
    family: int,
) -> None:
    target = address(server, family)
    for _ in range(10):
        knock(stranger, target, times=500)
        knock(client, target)
    source = slice(12, 16) if family == 4 else slice(8, 24)
    sources = [ip_address(packet[source]) for packet in heard()]
    assert sources.count(address(client, family)) == 10
    from_thief = sources.count(address(stranger, family))
    assert 20 <= from_thief < 100
    assert gate.counters()["knocks_limited"].packets == 5000 - from_thief


def test_who_fills_the_list_of_sources_silences_nobody(
    gate: Gate, server: Host, client: Host, heard: Callable[[], list[bytes]]
) -> None:
    assert gate.is_loaded()
    fill("heard4", (IPv4Address(n).packed + OTHER_TAG for n in range(1, 65_536)))
    knock(client, server.v4, times=30)
    assert len(heard()) == 30


def test_a_tag_has_a_cap_over_all_sources(
    gate: Gate, server: Host, client: Host, heard: Callable[[], list[bytes]]
) -> None:
    gate.apply(
        GatePlan(outer=(), source_rate_per_s=999, source_burst=999, tag_rate_per_s=1, tag_burst=5)
    )
    gate.admit([TagLease(OTHER_TAG, MINUTE_MS)])
    knock(client, server.v4, times=100)
    assert len(heard()) in {5, 6}
    knock(client, server.v4, OTHER_TAG.ljust(DATAGRAM_SIZE), times=3)
    assert len(heard()) == 3


def test_half_a_million_tags_are_admitted_and_one_too_many_is_an_error(gate: Gate) -> None:
    numbers = count()
    tags = (TagLease(number.to_bytes(8), MINUTE_MS) for number in numbers)
    began = time.monotonic()
    assert gate.admit(islice(tags, 500_000)) == 500_000
    assert time.monotonic() - began < 10
    slices = gate.admit_in_slices(tags)
    assert next(slices) < 1000
    with pytest.raises(AdmissionStopped, match="full") as stopped:
        gate.admit(tags)
    assert 1_000_000 < 500_000 + stopped.value.admitted < 1_048_576
