"""What a capture hears: headers and links against scapy, limits, filters, netlink messages."""

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import (
    CookedLinux,
    CookedLinuxV2,
    Dot1AD,
    Dot1Q,
    Ether,
    Loopback,
    LoopbackOpenBSD,
)
from scapy.packet import Packet, Raw

from spa_protocol.carrier import Kind
from spa_server import bpf
from spa_server.capture import links, nflog
from spa_server.capture.headers import Carried, parse_carried, parse_ip
from spa_server.capture.limit import PairLimit

PAYLOAD = bytes(range(240))
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4 = IP(src="192.0.2.7", dst="198.51.100.1")
V6 = IPv6(src="2001:db8::7", dst="2001:db8::1")
KNOCK = UDP(sport=40000, dport=62201) / Raw(PAYLOAD)

addresses4 = st.ip_addresses(v=4).map(str)
addresses6 = st.ip_addresses(v=6).map(str).filter(lambda text: not text.startswith("::ffff:"))
ports = st.integers(0, 65535)
payloads = st.binary(max_size=600)


def expected(outer: Packet) -> Carried:
    return Carried(Kind.UDP, ip_address(outer.src), 40000, ip_address(outer.dst), 62201, PAYLOAD)


class TestHeaders:
    """The bytes are scapy's: it is the oracle."""

    @given(addresses4, addresses4, st.tuples(ports, ports), payloads, st.integers(0, 10))
    def test_ipv4_as_scapy_builds_it(
        self, source: str, target: str, ends: tuple[int, int], payload: bytes, words: int
    ) -> None:
        sport, dport = ends
        outer = IP(src=source, dst=target, options=[IPOption_NOP()] * words * 4)
        packet = parse_carried(raw(outer / UDP(sport=sport, dport=dport) / Raw(payload)))
        assert packet == Carried(
            Kind.UDP, ip_address(source), sport, ip_address(target), dport, payload
        )

    @given(addresses6, addresses6, st.tuples(ports, ports), payloads)
    def test_ipv6_as_scapy_builds_it(
        self, source: str, target: str, ends: tuple[int, int], payload: bytes
    ) -> None:
        sport, dport = ends
        outer = IPv6(src=source, dst=target)
        packet = parse_carried(raw(outer / UDP(sport=sport, dport=dport) / Raw(payload)))
        assert packet == Carried(
            Kind.UDP, ip_address(source), sport, ip_address(target), dport, payload
        )

    @pytest.mark.parametrize("outer", [V4, V6])
    def test_padding_behind_the_packet_is_no_payload(self, outer: Packet) -> None:
        assert parse_carried(raw(outer / KNOCK) + b"padding") == expected(outer)

    @pytest.mark.parametrize("outer", [V4, V6])
    def test_the_udp_length_ends_the_payload(self, outer: Packet) -> None:
        longer = UDP(sport=40000, dport=62201, len=248) / Raw(PAYLOAD + b"more")
        assert parse_carried(raw(outer / longer)) == expected(outer)

    @pytest.mark.parametrize("outer", [V4, V6])
    @pytest.mark.parametrize("length", [0, 7, 249, 65535])
    def test_a_udp_length_that_cannot_be(self, outer: Packet, length: int) -> None:
        wrong = UDP(sport=40000, dport=62201, len=length) / Raw(PAYLOAD)
        assert parse_carried(raw(outer / wrong)) is None

    @pytest.mark.parametrize("outer", [V4, V6])
    def test_cut_anywhere_it_is_nothing(self, outer: Packet) -> None:
        whole = raw(outer / KNOCK)
        assert [cut for cut in range(len(whole)) if parse_carried(whole[:cut])] == []

    @pytest.mark.parametrize(
        "packet",
        [
            IP(src="192.0.2.7", dst="198.51.100.1", flags="MF") / KNOCK,
            IP(src="192.0.2.7", dst="198.51.100.1", frag=1) / KNOCK,
            IP(src="192.0.2.7", dst="198.51.100.1", ihl=4) / KNOCK,
            IP(src="192.0.2.7", dst="198.51.100.1", version=5) / KNOCK,
            V4 / TCP(flags="SA"),
            V6 / TCP(flags="SA"),
            V6 / IPv6ExtHdrDestOpt() / KNOCK,
            V6 / IPv6ExtHdrFragment() / KNOCK,
            IPv6(src="::ffff:192.0.2.7", dst="2001:db8::1") / KNOCK,
            IPv6(src="2001:db8::7", dst="::ffff:198.51.100.1") / KNOCK,
        ],
        ids=lambda packet: packet.summary(),
    )
    def test_what_is_not_heard(self, packet: Packet) -> None:
        assert parse_carried(raw(packet)) is None

    def test_a_reserved_or_df_bit_is_no_fragment(self) -> None:
        outer = IP(src="192.0.2.7", dst="198.51.100.1", flags="DF")
        assert parse_carried(raw(outer / KNOCK)) == expected(outer)

    @given(st.binary(max_size=400))
    def test_no_bytes_raise(self, data: bytes) -> None:
        parse_carried(data)

    @given(
        st.sampled_from([raw(V4 / KNOCK), raw(V6 / KNOCK)]), st.integers(0, 47), st.integers(0, 255)
    )
    def test_no_change_of_a_header_raises_or_invents(
        self, whole: bytes, at: int, value: int
    ) -> None:
        changed = whole[:at] + bytes([value]) + whole[at + 1 :]
        packet = parse_carried(changed)
        assert packet is None or packet.payload in changed

    def test_parse_ip_shows_other_protocols(self) -> None:
        packet = parse_ip(raw(V4 / TCP(dport=22)))
        assert packet is not None
        assert (packet.protocol, len(packet.payload)) == (6, 20)
        assert parse_ip(b"") is None


@pytest.mark.parametrize("outer", [V4, V6], ids=["ipv4", "ipv6"])
class TestLinks:
    """Every link type that is read, built by scapy."""

    def check(self, link_type: int, frame: bytes, outer: Packet) -> None:
        inner = links.ip_of(link_type, frame)
        assert inner is not None
        assert parse_carried(inner) == expected(outer)

    def test_ethernet(self, outer: Packet) -> None:
        self.check(1, raw(ETHER / outer / KNOCK), outer)

    def test_vlan_tags(self, outer: Packet) -> None:
        self.check(1, raw(ETHER / Dot1Q(vlan=7) / outer / KNOCK), outer)
        self.check(1, raw(ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=8) / outer / KNOCK), outer)

    def test_linux_cooked(self, outer: Packet) -> None:
        self.check(113, raw(CookedLinux() / outer / KNOCK), outer)
        self.check(276, raw(CookedLinuxV2() / outer / KNOCK), outer)

    def test_raw(self, outer: Packet) -> None:
        for link_type in (12, 101, 228 if outer is V4 else 229):
            self.check(link_type, raw(outer / KNOCK), outer)

    @pytest.mark.parametrize("order", ["<I", ">I"])
    def test_loopback(self, outer: Packet, order: str) -> None:
        for family in (2,) if outer is V4 else (10, 24, 28, 30):
            self.check(0, struct.pack(order, family) + raw(outer / KNOCK), outer)
        self.check(0, raw(Loopback() / outer / KNOCK), outer)
        self.check(108, raw(LoopbackOpenBSD() / outer / KNOCK), outer)

    @pytest.mark.parametrize("endian", ["<", ">"])
    def test_nflog(self, outer: Packet, endian: links.Endian) -> None:
        packet = raw(outer / KNOCK)
        prefix = struct.pack(f"{endian}HH5s3x", 9, 10, b"knock")
        frame = struct.pack(">BBH", 2 if outer is V4 else 10, 0, 621) + prefix
        frame += struct.pack(f"{endian}HH", 4 + len(packet), 9) + packet
        assert links.ip_of(239, frame, endian) == packet

    def test_a_frame_that_belies_its_packet(self, outer: Packet) -> None:
        frame = raw(ETHER / outer / KNOCK)
        wrong = b"\x86\xdd" if outer is V4 else b"\x08\x00"
        assert links.ip_of(1, frame[:12] + wrong + frame[14:]) is None


@given(st.sampled_from([*links._READERS, 7]), st.binary(max_size=80), st.sampled_from("<>"))
def test_no_frame_raises(link_type: int, frame: bytes, endian: links.Endian) -> None:
    links.ip_of(link_type, frame, endian)


class TestPairLimit:
    SECOND = 1_000_000

    def count(self, limit: PairLimit, times: int, now_us: int, pair: bytes = b"a") -> int:
        return sum(limit.admits(pair, b"tag", now_us) for _ in range(times))

    def test_a_burst_then_a_rate(self) -> None:
        limit = PairLimit(per_second=20, burst=20)
        assert self.count(limit, 1000, 0) == 20
        assert self.count(limit, 1000, self.SECOND) == 20
        assert self.count(limit, 1000, self.SECOND + self.SECOND // 2) == 10

    def test_over_time_no_more_than_rate_and_burst(self) -> None:
        limit = PairLimit(per_second=20, burst=20)
        passed = sum(limit.admits(b"a", b"t", now) for now in range(0, 10 * self.SECOND, 1000))
        assert 219 <= passed <= 221

    def test_another_source_or_tag_is_not_held_back(self) -> None:
        limit = PairLimit()
        assert self.count(limit, 100, 0) == 20
        assert limit.admits(b"b", b"tag", 0)
        assert limit.admits(b"a", b"gat", 0)

    def test_the_pair_not_heard_for_longest_is_forgotten(self) -> None:
        limit = PairLimit(remembered=2)
        assert self.count(limit, 100, 0, b"a") == 20
        assert self.count(limit, 100, 0, b"b") == 20
        assert self.count(limit, 100, 0, b"a") == 0
        self.count(limit, 1, 0, b"c")
        assert self.count(limit, 100, 0, b"a") == 0
        assert self.count(limit, 100, 0, b"b") == 20

    def test_a_clock_set_back_holds_nobody_back(self) -> None:
        limit = PairLimit()
        self.count(limit, 100, 1000 * self.SECOND)
        assert self.count(limit, 100, 0) == 20


def test_a_filter_that_drops_all() -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        receiver.setblocking(False)
        sender.send(b"before")
        bpf.attach(receiver, bpf.DROP_ALL)
        sender.send(b"behind")
        assert receiver.recv(10) == b"before"
        with pytest.raises(BlockingIOError):
            receiver.recv(10)


class TestNflogMessages:
    """linux/netfilter/nfnetlink_log.h, built here by hand."""

    def attribute(self, kind: int, value: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

    def message(self, attributes: bytes, kind: int = 0x0400) -> bytes:
        body = struct.pack(">BBH", socket.AF_INET, 0, 621) + attributes
        return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body

    def logged(self, number: int) -> bytes:
        return self.message(
            self.attribute(1, bytes(4))
            + self.attribute(10, b"deny\0")
            + self.attribute(4, struct.pack(">I", 3))
            + self.attribute(12, struct.pack(">I", number))
            + self.attribute(9, b"E-packet")
        )

    def test_several_in_one_read(self) -> None:
        done = self.message(b"", kind=3)
        found = list(nflog._messages(self.logged(7) + self.logged(8) + done))
        assert found == [(n, nflog.NflogPacket("deny", b"E-packet", 3)) for n in (7, 8)]

    def test_one_without_a_number(self) -> None:
        early = self.message(self.attribute(9, b"E-packet"))
        assert list(nflog._messages(early)) == [(None, nflog.NflogPacket("", b"E-packet", 0))]

    @given(st.integers(0, 200), st.integers(0, 255))
    def test_torn_or_changed_messages_do_not_raise(self, at: int, value: int) -> None:
        whole = self.logged(7) + self.logged(8)
        list(nflog._messages(whole[:at]))
        list(nflog._messages(whole[:at] + bytes([value]) + whole[at + 1 :]))
