"""Recorded packets: what scapy and tcpdump write, and what of it is torn."""

import gzip
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import CookedLinux, CookedLinuxV2, Dot1Q, Ether, Loopback
from scapy.packet import Packet, Raw
from scapy.utils import PcapWriter, wrpcap, wrpcapng

from spa_server.capture import CaptureError
from spa_server.capture.datagram import Datagram
from spa_server.capture.file import read_capture

PORT = 62201
PAYLOAD = bytes(range(240))
SEEN_AT_US = 1_800_000_000_123_456
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4 = IP(src="192.0.2.7", dst="198.51.100.1") / UDP(sport=40000, dport=PORT) / Raw(PAYLOAD)
V6 = IPv6(src="2001:db8::7", dst="2001:db8::1") / UDP(sport=40000, dport=PORT) / Raw(PAYLOAD)
ELSEWHERE = IP(src="192.0.2.7", dst="198.51.100.1") / UDP(dport=PORT + 1) / Raw(PAYLOAD)
Write = Callable[[str, Any], None]


def datagram(source: str, target: str) -> Datagram:
    return Datagram(PAYLOAD, ip_address(source), 40000, ip_address(target), PORT, "udp", SEEN_AT_US)


BOTH = [datagram("192.0.2.7", "198.51.100.1"), datagram("2001:db8::7", "2001:db8::1")]


def timed(packets: Sequence[Packet]) -> list[Packet]:
    """Copies with a capture time of whole microseconds."""
    copies = [packet.copy() for packet in packets]
    for copy in copies:
        copy.time = SEEN_AT_US / 1_000_000
    return copies


def wrpcap_nano(name: str, packets: Any) -> None:
    with PcapWriter(name, nano=True) as writer:
        writer.write(packets)


formats = pytest.mark.parametrize("write", [wrpcap, wrpcapng, wrpcap_nano])


@formats
@pytest.mark.parametrize(
    "link", [ETHER, ETHER / Dot1Q(vlan=7), CookedLinux(), CookedLinuxV2(), Loopback()]
)
def test_every_link_in_every_format(tmp_path: Path, write: Write, link: Packet) -> None:
    path = tmp_path / "capture"
    write(str(path), timed([link / V4, link / ELSEWHERE, link / V6]))
    assert list(read_capture(path, PORT)) == BOTH


@formats
def test_packets_without_a_link(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "capture"
    write(str(path), timed([V4]))
    assert list(read_capture(path, PORT)) == BOTH[:1]


def test_any_length_to_the_port(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    outer = ETHER / IP(src="192.0.2.7", dst="198.51.100.1")
    wrpcap(str(path), [outer / UDP(dport=PORT) / Raw(b"hello"), outer / TCP(dport=PORT)])
    assert [found.payload for found in read_capture(path, PORT)] == [b"hello"]


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "capture.gz"
    wrpcap(str(path), timed([ETHER / V4, ETHER / V6]), gz=1)
    assert list(read_capture(path, PORT)) == BOTH


@formats
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_torn_yields_what_came_before(
    tmp_path: Path, write: Write, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "capture"
    write(str(path), timed([ETHER / V4]))
    one = len(path.read_bytes())
    write(str(path), timed([ETHER / V4, ETHER / V6]))
    two = path.read_bytes()
    for cut in (one + 1, one + 15, one + 17, one + 100, len(two) - 1):
        path.write_bytes(pack(two[:cut]))
        found = read_capture(path, PORT)
        assert next(found) == BOTH[0]
        with pytest.raises(CaptureError, match="is torn or damaged; what stands before"):
            next(found)


def test_a_gzip_torn_itself(tmp_path: Path) -> None:
    path = tmp_path / "capture.gz"
    wrpcap(str(path), timed([ETHER / V4] * 50), gz=1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CaptureError, match="torn or damaged"):
        list(read_capture(path, PORT))


@pytest.mark.parametrize("content", [b"", b"\xd4", b"no capture at all", b"\x1f\x8b", bytes(4096)])
def test_no_capture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "capture"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=r"capture is no capture; tcpdump -w writes one$"):
        list(read_capture(path, PORT))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"none cannot be read: no such file or directory$"):
        list(read_capture(tmp_path / "none", PORT))
    with pytest.raises(CaptureError, match=r"cannot be read: is a directory$"):
        list(read_capture(tmp_path, PORT))


def test_a_link_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    wrpcap(str(path), [b"radio"], linktype=127)
    with pytest.raises(CaptureError, match=r"frames of a kind that is not read \(type 127\)"):
        list(read_capture(path, PORT))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("whole") / "capture"
    contents = []
    for write in (wrpcap, wrpcapng):
        write(str(path), timed([ETHER / V4, ETHER / V6]))
        contents.append(path.read_bytes())
    return contents


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.integers(0, 1),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damage_raises_only_capture_errors(
    tmp_path: Path, whole: list[bytes], which: int, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(whole[which])
    for at, value in changes:
        content[at % len(content)] = value
    path = tmp_path / "capture"
    path.write_bytes(content)
    with suppress(CaptureError):
        assert len(list(read_capture(path, PORT))) <= 2
