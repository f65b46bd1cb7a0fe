"""What tcpdump saw at a host's interface: TCP over IPv4, connection by connection."""

import signal
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, NamedTuple, Self

from integration.lab import Host, Running

_MAGIC: Final = 0xA1B2C3D4  # microseconds, in this host's order
_ETHERNET: Final = 1
_SYN_AND_ACK: Final = 0x12
_SYN: Final = 0x02


class Ends(NamedTuple):
    """A connection by its four ends; addresses as text."""

    source: str
    source_port: int
    target: str
    port: int


class _Packet(NamedTuple):
    ends: Ends
    flags: int
    size: int
    at_us: int


@dataclass
class Seen:
    """`begun`: of each connection that somebody began, the times of its SYNs, in microseconds.

    `packets` and `bytes` (of IP) are counted one way: a connection's own, and back.
    """

    begun: dict[Ends, list[int]] = field(default_factory=dict)
    packets: Counter[Ends] = field(default_factory=Counter)
    bytes: Counter[Ends] = field(default_factory=Counter)

    def figures(self, ends: Ends) -> dict[str, int]:
        """As `connection.ended` calls them."""
        back = Ends(ends.target, ends.port, ends.source, ends.source_port)
        return {
            "packets_in": self.packets[ends],
            "bytes_in": self.bytes[ends],
            "packets_out": self.packets[back],
            "bytes_out": self.bytes[back],
        }


class Tcpdump:
    """Captures from when the block begins until it ends, and raises where anything was missed."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._path = host.lab.new_file("capture.pcap")
        self._running: Running | None = None

    def __enter__(self) -> Self:
        interface = next(iter(self._host.places))
        options = ["-Z", "root", "-n", "-U", "-s", "96", "-B", "32768", "-w", str(self._path)]
        self._running = self._host.start(["tcpdump", "-i", interface, *options, "ip and tcp"])
        self._running.wait_for("listening on")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._running is not None
        self._running.stop(signal.SIGINT)
        self._running.wait_for("0 packets dropped by kernel")

    def seen(self) -> Seen:
        """All of it, once the block is left."""
        found = Seen()
        for packet in _read(self._path):
            found.packets[packet.ends] += 1
            found.bytes[packet.ends] += packet.size
            if packet.flags & _SYN_AND_ACK == _SYN:
                found.begun.setdefault(packet.ends, []).append(packet.at_us)
        return found


def _read(path: Path) -> Iterator[_Packet]:
    content = path.read_bytes()
    magic, *_, link = struct.unpack_from("=IHHiIII", content)
    assert (magic, link) == (_MAGIC, _ETHERNET)
    at = 24
    while at < len(content):
        seconds, micros, captured, _ = struct.unpack_from("=IIII", content, at)
        yield _packet(content[at + 30 : at + 16 + captured], seconds * 1_000_000 + micros)
        at += 16 + captured


def _packet(ip: bytes, at_us: int) -> _Packet:
    header = (ip[0] & 15) * 4
    source_port, port = struct.unpack_from(">HH", ip, header)
    source, target = (str(IPv4Address(ip[at : at + 4])) for at in (12, 16))
    ends = Ends(source, source_port, target, port)
    return _Packet(ends, ip[header + 13], int.from_bytes(ip[2:4]), at_us)
