"""Carriers: how they are named, what of a packet is read, and what an answer in one looks like."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from keys.tomlfile import FileProblem
from spa_protocol.carrier import UDP as PLAIN
from spa_protocol.carrier import Carrier, Kind, name_of, ports_of
from spa_protocol.layout import DATAGRAM_SIZE
from spa_server import bpf, rawanswer
from spa_server.capture.datagram import Datagram
from spa_server.capture.file import read_capture
from spa_server.capture.headers import parse_carried
from spa_server.config import load_config

V4 = IP(src="192.0.2.7", dst="198.51.100.1")
V6 = IPv6(src="2001:db8::7", dst="2001:db8::1")
KNOCK = bytes(range(DATAGRAM_SIZE))
ALL = tuple(map(Carrier.parse, ("udp", "udp:53", "udp:443", "icmp", "tcp-syn", "tcp-syn:443")))
PORT = 62201

carriers = st.one_of(
    st.just(Carrier(Kind.ICMP)),
    st.builds(
        Carrier,
        st.sampled_from([Kind.UDP, Kind.TCP_SYN]),
        st.none() | st.integers(1, 65535),
    ),
)


def echo(outer: Packet, **fields: int) -> Packet:
    kind = ICMP if outer.version == 4 else ICMPv6EchoRequest
    return kind(id=9, seq=3, **fields)


@given(carriers)
def test_a_carrier_reads_as_it_is_written(carrier: Carrier) -> None:
    assert Carrier.parse(str(carrier)) == carrier


@pytest.mark.parametrize(
    "text",
    [
        *("", "tcp", "UDP", "icmp:8", "udp:", "udp:0", "udp:053", "udp:65536", "udp:-1"),
        *("udp:\u0665\u0663", "udp: 53", "tcp-syn:x", "udp:53:53", "icmpv6", "udp:999999999999"),
    ],
)
def test_what_is_no_carrier_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected udp, udp:PORT, icmp"):
        Carrier.parse(text)


@given(st.text(max_size=12))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        carrier = Carrier.parse(text)
    except ValueError:
        return
    assert str(carrier) == text


def test_ports() -> None:
    assert ports_of(Kind.UDP, ALL, PORT) == (53, 443, PORT)
    assert ports_of(Kind.TCP_SYN, ALL, PORT) == (443, PORT)


# The server's configuration


@pytest.mark.parametrize(
    ("kind", "port", "name"),
    [
        ("udp", 1234, None),
        ("udp", 53, "udp:53"),
        ("icmp", 0, "icmp"),
        ("tcp-syn", 1234, "tcp-syn"),
        ("tcp-syn", 443, "tcp-syn:443"),
    ],
)
def test_what_a_request_came_by_has_a_name(kind: str, port: int, name: str | None) -> None:
    assert name_of(kind, port, 1234) == name
    assert name is None or str(Carrier.parse(name)) == name


def test_the_configuration_names_carriers(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("")
    assert load_config(file).carriers == (PLAIN,)
    file.write_text('carriers = ["udp", "icmp", "udp:53", "icmp"]\n')
    assert load_config(file).carriers == tuple(map(Carrier.parse, ("udp", "icmp", "udp:53")))


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ('["icmp"]', 'carriers: expected "udp" among them'),
        ("[]", 'carriers: expected "udp" among them'),
        ('["udp", "ping"]', "carriers: 'ping' is no carrier; expected udp, udp:PORT, icmp"),
        ('["udp", "udp:0"]', "carriers: 'udp:0' has no port from 1 to 65535"),
        ('"udp"', "carriers: expected a list"),
        (str(["udp", *(f"udp:{n}" for n in range(1, 17))]), "carriers: expected 16 at most"),
    ],
)
def test_a_wrong_list_of_carriers_is_refused(tmp_path: Path, written: str, problem: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f"carriers = {written}\n")
    with pytest.raises(FileProblem) as refused:
        load_config(file)
    assert problem in str(refused.value)


# Packets


@pytest.mark.parametrize("outer", [V4, V6], ids=["ipv4", "ipv6"])
class TestParsing:
    def test_each_carrier(self, outer: Packet) -> None:
        ends = ip_address(outer.src), ip_address(outer.dst)
        cases = {
            Kind.UDP: (UDP(sport=4000, dport=53), 4000, 53, 0),
            Kind.ICMP: (echo(outer), 9, 0, 3),
            Kind.TCP_SYN: (TCP(sport=4000, dport=443, seq=7, flags="S"), 4000, 443, 7),
        }
        for kind, (inner, source_port, target_port, sequence) in cases.items():
            carried = parse_carried(raw(outer / inner / Raw(KNOCK)) + b"padding")
            assert carried is not None
            assert (carried.kind, carried.payload) == (kind, KNOCK)
            assert (carried.source, carried.target) == ends
            assert (carried.source_port, carried.target_port) == (source_port, target_port)
            assert carried.sequence == sequence

    def test_what_is_not_heard(self, outer: Packet) -> None:
        wrong = [
            echo(outer, code=1),
            echo(outer, type=0 if outer.version == 4 else 129),
            *(TCP(flags=flags) for flags in ("SA", "A", "SF", "SR", "", "F")),
            TCP(flags="S", options=[("MSS", 1460)]),
            TCP(flags="S", dataofs=4),
        ]
        for inner in wrong:
            assert parse_carried(raw(outer / inner / Raw(KNOCK))) is None, inner.summary()

    def test_explicit_congestion_notification_is_no_matter(self, outer: Packet) -> None:
        assert parse_carried(raw(outer / TCP(flags="SEC") / Raw(KNOCK))) is not None

    def test_every_truncation_is_no_packet(self, outer: Packet) -> None:
        for inner in (echo(outer), TCP(flags="S")):
            whole = raw(outer / inner / Raw(KNOCK))
            assert [cut for cut in range(len(whole)) if parse_carried(whole[:cut])] == []

    def test_the_other_families_icmp_is_none(self, outer: Packet) -> None:
        other = ICMPv6EchoRequest(id=9) if outer.version == 4 else ICMP(id=9)
        proto = {"proto": 58} if outer.version == 4 else {"nh": 1}
        kind = type(outer)
        packet = kind(src=outer.src, dst=outer.dst, **proto) / Raw(raw(other)) / Raw(KNOCK)
        assert parse_carried(raw(packet)) is None


@given(
    st.sampled_from(
        [
            raw(outer / inner / Raw(KNOCK))
            for outer in (V4, V6)
            for inner in (UDP(dport=53), echo(outer), TCP(flags="S"))
        ]
    ),
    st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=4),
    st.integers(0, 320),
)
def test_no_change_of_a_packet_raises_or_invents(
    whole: bytes, changes: list[tuple[int, int]], end: int
) -> None:
    changed = bytearray(whole)
    for at, value in changes:
        changed[at] = value
    carried = parse_carried(bytes(changed[:end]))
    assert carried is None or carried.payload in bytes(changed)


def test_a_file_of_packets_is_read_by_the_carriers_that_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "knocks.pcap"
    inner = [
        UDP(sport=1, dport=PORT) / Raw(b"any length"),
        UDP(sport=1, dport=53) / Raw(KNOCK),
        UDP(sport=1, dport=53) / Raw(b"a question"),
        UDP(sport=1, dport=54) / Raw(KNOCK),
        ICMP(id=9) / Raw(KNOCK),
        ICMP(id=9) / Raw(b"a ping"),
        TCP(dport=443, flags="S") / Raw(KNOCK),
        TCP(dport=80, flags="S") / Raw(KNOCK),
    ]
    wrpcap(str(path), [V4 / each for each in inner], linktype=101)
    assert [d.carrier for d in read_capture(path, PORT)] == ["udp"]
    found = list(read_capture(path, PORT, ALL))
    assert [d.carrier for d in found] == ["udp", "udp", "icmp", "tcp-syn"]
    assert [d.payload for d in found[1:]] == [KNOCK] * 3


# Answers


@pytest.mark.parametrize("ends", [(IPv4Address("192.0.2.7"), IPv4Address("198.51.100.1"))])
def test_the_answer_to_a_ping_is_its_echo_reply(ends: tuple[IPv4Address, IPv4Address]) -> None:
    to = Datagram(KNOCK, ends[0], 9, ends[1], 0, Kind.ICMP, 0, sequence=3)
    answer = ICMP(rawanswer.packet(b"x" * DATAGRAM_SIZE, to))
    assert (answer.type, answer.code, answer.id, answer.seq) == (0, 0, 9, 3)
    assert bytes(answer.payload) == b"x" * DATAGRAM_SIZE
    answer_sum, answer.chksum = answer.chksum, None
    assert ICMP(raw(answer)).chksum == answer_sum


def test_over_ipv6_the_kernel_writes_the_sum() -> None:
    ends = IPv6Address("2001:db8::7"), IPv6Address("2001:db8::1")
    to = Datagram(KNOCK, ends[0], 9, ends[1], 0, Kind.ICMP, 0, sequence=3)
    answer = ICMPv6EchoReply(rawanswer.packet(KNOCK, to))
    assert (answer.type, answer.id, answer.seq, answer.cksum) == (129, 9, 3, 0)
    assert answer.data == KNOCK


@given(st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=300))
def test_the_answer_to_a_syn_is_a_reset_that_acknowledges_it(sequence: int, payload: bytes) -> None:
    client, server = IPv4Address("192.0.2.7"), IPv4Address("198.51.100.1")
    to = Datagram(KNOCK, client, 4000, server, 443, Kind.TCP_SYN, 0, sequence=sequence)
    segment = rawanswer.packet(payload, to)
    answer = TCP(segment)
    assert (answer.sport, answer.dport, answer.flags) == (443, 4000, "RA")
    assert answer.ack == (sequence + 1 + DATAGRAM_SIZE) % 2**32
    assert bytes(answer.payload) == payload
    whole = raw(IP(src=str(server), dst=str(client)) / TCP(segment[:16] + bytes(2) + segment[18:]))
    again = IP(whole)
    del again[TCP].chksum
    assert struct.pack(">H", IP(raw(again))[TCP].chksum) == segment[16:18]


# The filter before a socket at an interface


def test_the_filter_is_short_and_jumps_within_itself() -> None:
    most = (PLAIN, Carrier(Kind.ICMP), *(Carrier(Kind.TCP_SYN, n) for n in range(1, 15)))
    for given_carriers in ((PLAIN,), ALL, most):
        program = bpf.knock_filter(PORT, given_carriers)
        for index, step in enumerate(program):
            assert index + 1 + max(step.if_true, step.if_false) <= len(program)
            assert max(step.if_true, step.if_false) < 256
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            bpf.attach(sock, program)  # the kernel checks it
