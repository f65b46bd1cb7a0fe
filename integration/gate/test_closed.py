"""The gate on real packets, with no daemon: what it lets through and what it does not."""

import socket
import struct
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.sctp import SCTP, SCTPChunkInit

from integration.gate import (
    DESTINATION_OPTIONS,
    ONLY_THIS_HOST,
    Log,
    address,
    af,
    both_families,
    drain,
    fill,
    hole,
    knock,
    lease,
    ports,
    reach,
)
from integration.lab import Host, Reach, Service
from spa_protocol.access import Access, Protocol
from spa_server.firewall.kernel import Gate
from spa_server.firewall.plan import AlwaysOpen, GatePlan

DCCP, UDP_LITE = 33, 136


# Closed


@both_families
def test_a_port_is_open_silent_behind_the_gate_and_open_without_it(
    gate: Gate, server: Host, stranger: Host, service: Service, family: int
) -> None:
    target = address(server, family)
    for protocol in (Protocol.TCP, Protocol.UDP):
        gate.remove()
        assert reach(stranger, target, service.port, protocol) is Reach.OPEN
        assert reach(stranger, target, 19_999, protocol) is Reach.REFUSED
        service.received.clear()
        gate.apply(ONLY_THIS_HOST)
        assert reach(stranger, target, service.port, protocol) is Reach.SILENT
        assert reach(stranger, target, 19_999, protocol) is Reach.SILENT
        assert service.received == []


def sctp_init(port: int) -> bytes:
    return bytes(SCTP(sport=port, dport=port) / SCTPChunkInit(init_tag=1))


def udp_like(port: int) -> bytes:
    """The ports where DCCP and UDP-Lite have them, and no checksum that anybody would check."""
    return struct.pack(">HHHH", port, port, 16, 0) + bytes(8)


@both_families
@pytest.mark.parametrize("number", [Protocol.SCTP, DCCP, UDP_LITE])
def test_other_protocols_with_ports_are_closed_and_only_sctp_can_be_opened(
    gate: Gate, server: Host, client: Host, port: int, family: int, number: int
) -> None:
    source, target = address(client, family), address(server, family)
    packet = sctp_init(port) if number == Protocol.SCTP else udp_like(port)
    with (
        server.new_socket(af(family), socket.SOCK_RAW, number) as listening,
        client.new_socket(af(family), socket.SOCK_RAW, number) as sending,
    ):
        listening.settimeout(0.2)

        def arrives() -> bool:
            sending.sendto(packet, (str(target), 0))
            try:
                return bool(listening.recv(4096))
            except TimeoutError:
                return False

        assert not arrives()
        gate.open([lease(hole(source, target, port, each)) for each in Protocol])
        assert arrives() is (number == Protocol.SCTP)
        gate.remove()
        assert arrives()


def test_neither_broadcast_nor_multicast_gets_in(gate: Gate, server: Host, stranger: Host) -> None:
    port = next(ports)
    hears4 = server.new_socket(socket.AF_INET, socket.SOCK_DGRAM)
    hears6 = server.new_socket(socket.AF_INET6, socket.SOCK_DGRAM)
    hears6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    membership = socket.inet_aton("224.0.0.251") + server.v4.packed
    hears4.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    index = socket.if_nametoindex("lan")
    everyone = socket.inet_pton(socket.AF_INET6, "ff02::fb") + struct.pack("@I", index)
    hears6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, everyone)
    for each in (hears4, hears6):
        each.bind(("", port))
        each.settimeout(0.2)
    calls4 = stranger.new_socket(socket.AF_INET, socket.SOCK_DGRAM)
    calls4.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    calls4.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, stranger.v4.packed)
    calls6 = stranger.new_socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with stranger.inside():
        calls6.setsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("lan")
        )
        calls4.bind((str(stranger.v4), 0))

    def heard() -> int:
        for group in ("10.77.1.255", "255.255.255.255", "224.0.0.251", "224.0.0.1"):
            calls4.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan")
            calls4.sendto(b"anybody", (group, port))
        for group in ("ff02::1", "ff02::fb"):
            calls6.sendto(b"anybody", (group, port))
        return drain(hears4) + drain(hears6)

    assert heard() == 0
    (denied4,) = [d for d in gate.denials() if (d.source, d.port) == (stranger.v4, port)]
    (denied6,) = [d for d in gate.denials() if d.source.version == 6 and d.port == port]
    assert (denied4.packets, denied6.packets) == (4, 2)
    gate.remove()
    assert heard() == 6
    for each in (hears4, hears6, calls4, calls6):
        each.close()


# Alive


@both_families
def test_echo_and_neighbour_discovery_work(
    gate: Gate, server: Host, stranger: Host, family: int
) -> None:
    assert gate.is_loaded()
    server.ip("neighbour flush all")
    stranger.ip("neighbour flush all")
    if family == 4:
        number, request, answers = socket.IPPROTO_ICMP, bytes(ICMP(type=8, id=77)), b"\0"
    else:
        # The kernel fills in the checksum.
        number, request, answers = socket.IPPROTO_ICMPV6, bytes(ICMPv6EchoRequest(cksum=0)), b"\x81"
    with stranger.new_socket(af(family), socket.SOCK_RAW, number) as asking:
        asking.settimeout(1)
        asking.sendto(request, (str(address(server, family)), 0))
        header = 20 if family == 4 else 0
        while asking.recv(4096)[header : header + 1] != answers:
            pass


@both_families
def test_outgoing_connections_and_loopback_work(
    gate: Gate, server: Host, client: Host, service: Service, family: int
) -> None:
    assert gate.is_loaded()
    elsewhere = client.serve(service.port)
    loopback = ip_address("127.0.0.1" if family == 4 else "::1")
    for target in (address(client, family), loopback, address(server, family)):
        assert server.reach_tcp(target, service.port) is Reach.OPEN
        assert server.reach_udp(target, service.port) is Reach.OPEN
        assert server.reach_tcp(target, 19_999) is Reach.REFUSED
    assert server.reach_udp(address(client, family), 19_999) is Reach.REFUSED
    elsewhere.stop()


# Always open


def test_always_open_is_for_its_networks_alone_even_when_entries_overlap(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service
) -> None:
    other = server.serve(next(ports))
    wide = Access(Protocol.TCP, service.port - 10, service.port + 10)
    one = Access(Protocol.TCP, service.port, service.port)
    gate.apply(
        GatePlan(
            outer=(),
            always_open=(
                AlwaysOpen(IPv4Network(client.v4), wide),
                AlwaysOpen(IPv4Network(client.v4), one),
                AlwaysOpen(IPv4Network("10.78.0.0/16"), one),
                AlwaysOpen(IPv6Network("fd77:1::/126"), one),
                AlwaysOpen(IPv6Network(client.v6), wide),
                AlwaysOpen(IPv6Network("::/0"), Access(Protocol.UDP, other.port, other.port)),
            ),
        )
    )
    assert client.reach_tcp(server.v4, service.port) is Reach.OPEN
    assert stranger.reach_tcp(server.v4, service.port) is Reach.SILENT
    assert client.reach_udp(server.v4, service.port) is Reach.SILENT
    assert client.reach_tcp(server.v6, service.port) is Reach.OPEN
    assert stranger.reach_tcp(server.v6, service.port) is Reach.OPEN
    assert stranger.reach_udp(server.v6, other.port) is Reach.OPEN
    assert stranger.reach_udp(server.v4, other.port) is Reach.SILENT
    gate.apply(ONLY_THIS_HOST)
    assert client.reach_tcp(server.v4, service.port) is Reach.SILENT
    other.stop()


# Fragments and extension headers


@both_families
def test_fragments_are_judged_as_the_datagram_they_are(
    gate: Gate, server: Host, client: Host, service: Service, family: int
) -> None:
    source, target = address(client, family), address(server, family)
    assert client.reach_udp(target, service.port, bytes(4000)) is Reach.SILENT
    assert service.received == []
    gate.open([lease(hole(source, target, service.port, Protocol.UDP))])
    assert client.reach_udp(target, service.port, bytes(4000)) is Reach.OPEN
    assert service.received == [bytes(4000)]


def test_extension_headers_hide_no_port(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    def send() -> list[bytes]:
        service.received.clear()
        knock(client, server.v6, b"hidden", port=service.port, options=DESTINATION_OPTIONS)
        time.sleep(0.1)
        return service.received

    assert send() == []
    gate.open([lease(hole(client.v6, server.v6, service.port, Protocol.UDP))])
    assert send() == [b"hidden"]


# Denials


@both_families
def test_denials_are_counted_and_the_first_is_recorded(
    gate: Gate, server: Host, stranger: Host, port: int, family: int
) -> None:
    source, target = address(stranger, family), address(server, family)
    with Log(623) as log:
        knock(stranger, target, port=port, times=7)
        assert stranger.reach_tcp(target, port) is Reach.SILENT
        (first, _), (second, packet) = log.read(1.2)
    assert (first, second) == ("deny", "deny")
    assert (IP(packet) if family == 4 else IPv6(packet)).dport == port
    denied = {(d.source, d.access): d.packets for d in gate.denials() if d.port == port}
    assert denied == {
        (source, Access(Protocol.UDP, port, port)): 7,
        (source, Access(Protocol.TCP, port, port)): 1,
    }


def test_a_full_list_of_denials_falls_to_a_counter(
    gate: Gate, server: Host, stranger: Host, port: int
) -> None:
    tail = struct.pack(">B3xH2x", Protocol.TCP, 1)
    fill("denied4", (IPv4Address(n).packed + tail for n in range(1, 65_536)))
    fill("denied_sources4", (IPv4Address(n).packed for n in range(1, 65_536)))
    knock(stranger, server.v4, port=port, times=3)
    assert gate.counters()["denied_unlisted"].packets == 3
    assert len(list(gate.denials())) == 2 * 65_535


def test_in_a_full_list_of_denials_a_source_is_logged_and_counted(
    gate: Gate, server: Host, stranger: Host, port: int
) -> None:
    tail = struct.pack(">B3xH2x", Protocol.TCP, 1)
    fill("denied4", (IPv4Address(n).packed + tail for n in range(1, 65_536)))
    with Log(623) as denials:
        for other in range(3):
            knock(stranger, server.v4, port=port + other, times=1)
        assert denials.prefixes(within_s=1.5) == ["deny"]
    (of_source,) = [d for d in gate.denials() if d.source == stranger.v4]
    assert (of_source.access, of_source.packets) == (None, 3)


@pytest.mark.parametrize("family", [4, 6])
def test_one_source_fills_no_list_of_denials(
    gate: Gate, server: Host, stranger: Host, family: int
) -> None:
    """Nor a network of IPv6. 256 kinds at once, then one a second; the others are counted."""
    target = server.v4 if family == 4 else server.v6
    for port in range(1, 1001):
        knock(stranger, target, port=port, times=1)
    kinds = [d for d in gate.denials() if d.access is not None]
    (others,) = [d for d in gate.denials() if d.access is None and d.protocol == 0]
    assert 256 <= len(kinds) < 300
    assert len(kinds) + others.packets == 1000
    assert others.source_text in {str(stranger.v4), "fd77:1::/64"}
