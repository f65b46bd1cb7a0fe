"""Knocks at the gate: which of them are heard, and how often."""

import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
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
from integration.lab import Address, Host, Reach
from integration.wire import Injector, datagram
from spa_protocol.access import Protocol
from spa_protocol.carrier import UDP as UDP_CARRIER
from spa_protocol.carrier import Carrier
from spa_protocol.layout import DATAGRAM_SIZE, DEFAULT_PORT
from spa_server.firewall.elements import TagLease
from spa_server.firewall.kernel import AdmissionStopped, Gate
from spa_server.firewall.plan import GatePlan

FAR = "2001:db8:5:5::"


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
    target, thief = address(server, family), ip_address("10.77.1.3" if family == 4 else FAR)
    junk = [datagram(TAG.ljust(DATAGRAM_SIZE), thief, target)] * 500
    injector = Injector(stranger, server)
    for _ in range(10):
        injector.send(*junk)
        knock(client, target)
    source = slice(12, 16) if family == 4 else slice(8, 24)
    sources = [ip_address(packet[source]) for packet in heard()]
    assert sources.count(address(client, family)) == 10
    from_thief = sources.count(thief)
    assert 20 <= from_thief < 100
    assert gate.counters()["knocks_limited"].packets == 5000 - from_thief


def test_all_addresses_of_an_ipv6_network_are_one_source(
    gate: Gate, server: Host, client: Host, stranger: Host, heard: Callable[[], list[bytes]]
) -> None:
    """One host has a /64, and may send from each of its addresses."""
    assert gate.is_loaded()
    network = int(ip_address(FAR))
    addresses = [IPv6Address(network + n) for n in range(500)]
    payload = TAG.ljust(DATAGRAM_SIZE)
    junk = [datagram(payload, source, server.v6) for source in addresses]
    Injector(stranger, server).send(*junk)
    assert 20 <= len(heard()) < 40
    knock(client, server.v6)
    assert len(heard()) == 1


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


def from_everywhere(tag: bytes, count: int, target: Address) -> list[bytes]:
    """Knocks that a limit for each source does not touch."""
    payload = tag.ljust(DATAGRAM_SIZE)
    begin = int(IPv4Address("198.18.0.0"))
    return [datagram(payload, IPv4Address(begin + n), target) for n in range(count)]


@pytest.mark.parametrize("port", [DEFAULT_PORT, 53])
def test_flooded_tags_share_a_lane_that_takes_nothing_from_others(
    gate: Gate, server: Host, stranger: Host, heard: Callable[[], list[bytes]], port: int
) -> None:
    carriers = (UDP_CARRIER, Carrier.parse("udp:53"))
    gate.apply(GatePlan(outer=(), flooded_rate_per_s=1, flooded_burst=5, carriers=carriers))
    flooded = [number.to_bytes(8) for number in range(1, 21)]
    gate.admit([TagLease(tag, MINUTE_MS) for tag in (*flooded, OTHER_TAG)])
    for tag in flooded:
        gate.hold_back(TagLease(tag, MINUTE_MS))
    gate.hold_back(TagLease(flooded[0], MINUTE_MS))
    injector = Injector(stranger, server)
    for tag in flooded:
        injector.send(*from_everywhere(tag, 10, server.v4))
    assert len(heard()) in {5, 6, 7}
    payload = OTHER_TAG.ljust(DATAGRAM_SIZE)
    for number in range(50):
        source = IPv4Address("198.18.9.0") + number
        injector.send(datagram(payload, source, server.v4, port=port))
    assert len(heard()) == 50
    gate.hold_back(TagLease(OTHER_TAG, 1))
    time.sleep(0.05)
    injector.send(*from_everywhere(OTHER_TAG, 20, server.v4))
    assert len(heard()) == 20


def test_one_flooded_tag_does_not_fill_the_lane_of_all(
    gate: Gate, server: Host, stranger: Host, heard: Callable[[], list[bytes]]
) -> None:
    """By the limits as they are: three tags that are flooded leave a fourth its place."""
    gate.apply(GatePlan(outer=()))
    flooded = [number.to_bytes(8) for number in range(31, 34)]
    gate.admit([TagLease(tag, MINUTE_MS) for tag in (*flooded, OTHER_TAG)])
    for tag in (*flooded, OTHER_TAG):
        gate.hold_back(TagLease(tag, MINUTE_MS))
    injector = Injector(stranger, server)
    for tag in flooded:
        injector.send(*from_everywhere(tag, 2000, server.v4))
    injector.send(*from_everywhere(OTHER_TAG, 20, server.v4))
    tags = [packet[28:36] for packet in heard()]  # behind the headers of IPv4 and UDP
    assert tags.count(OTHER_TAG) == 20
    assert all(tag in tags for tag in flooded)


def test_all_that_is_heard_has_a_cap(
    gate: Gate, server: Host, stranger: Host, heard: Callable[[], list[bytes]]
) -> None:
    gate.apply(GatePlan(outer=(), total_rate_per_s=1, total_burst=5))
    gate.admit([TagLease(OTHER_TAG, MINUTE_MS)])
    injector = Injector(stranger, server)
    for tag in (TAG, OTHER_TAG):
        injector.send(*from_everywhere(tag, 50, server.v4))
    assert len(heard()) in {5, 6, 7}
    assert gate.counters()["knocks_limited"].packets >= 93


def test_how_many_tags_fit_can_be_changed_in_place(
    gate: Gate, server: Host, client: Host, heard: Callable[[], list[bytes]]
) -> None:
    gate.apply(GatePlan(outer=(), tags=2_000_000))
    numbers = count(1)
    tags = (TagLease(number.to_bytes(8), MINUTE_MS) for number in numbers)
    assert gate.admit(islice(tags, 1_100_000)) == 1_100_000
    knock(client, server.v4)
    assert len(heard()) == 1
    with pytest.raises(AdmissionStopped, match="full"):
        gate.admit(islice(tags, 1_000_000))


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
