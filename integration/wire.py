"""The wire itself: packets put on it as they are and taken off it, and knocks written at any time.

Headers are written and read here by hand or with scapy, never with the product's own readers, so
that the two can be held against each other.
"""

import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from integration.lab import DEFAULT_SEGMENT, Address, Host, Lab
from integration.site import Person, Site
from keys import identity
from keys.identity import Identity
from spa_client.compose import Composer, Datagram, NamedTarget, Source, SourceRule, TargetRule, Wish
from spa_protocol.access import Access
from spa_protocol.keytext import ServerLine, format_key
from spa_protocol.layout import DEFAULT_PORT, NONCE_SIZE
from spa_protocol.reply import Reply, open_reply

SECOND_US: Final = 1_000_000
_ETH_P_ALL: Final = 0x0003
_ETHERTYPES: Final = {4: 0x0800, 6: 0x86DD}
_PACKET_OUTGOING: Final = 4
_SO_RCVBUFFORCE: Final = 33
_ROOM: Final = 64 * 1024 * 1024
_UDP: Final = 17
_ANY: Final = IPv4Address(0)


def now_us() -> int:
    """This machine's wall time in microseconds since 1970."""
    return time.time_ns() // 1000


def faketime(lab: Lab, clock: str | Path) -> dict[str, str]:
    """The environment for a program whose clock is off: by `-8` seconds, or by what a file says.

    Its monotonic clock is the kernel's, and so are the times of files. libfaketime 0.9.10 does not
    know that sleeping until a time of the monotonic clock, as Python does, is none of its business.
    Nor is waiting for a condition until one: the fix that is forced on it for an older glibc has
    threads wait for Python's lock without end, or not at all.
    """
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    directory = lab.new_file("faketime")
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(
        "import select, time\ntime.sleep = lambda seconds: select.select((), (), (), seconds)\n"
    )
    lab.at_end(_sweep_up_after_faketime)
    source = "FAKETIME" if isinstance(clock, str) else "FAKETIME_TIMESTAMP_FILE"
    return {
        "LD_PRELOAD": str(library),
        source: str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        "NO_FAKE_STAT": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")])),
    }


def _sweep_up_after_faketime() -> None:
    """A process that is killed, or runs another program, leaves a file of 8 bytes behind."""
    for left in Path("/dev/shm").glob("*faketime_s*_*"):  # noqa: S108 - where it puts them
        _, _, pid = left.name.rpartition("_")
        if not Path("/proc", pid).exists():
            left.unlink(missing_ok=True)


ACCEPTS_UNDECLARED: Final = 'undeclared_target = "accept"\n'
"""The setting under which a knock that names no target is good at whichever address it arrives."""


@dataclass(frozen=True)
class Pen:
    """A key in the test's own hands: it writes requests and reads the answers to them."""

    key: Identity
    server: bytes

    @classmethod
    def of(cls, person: Person, name: str = "default") -> Self:
        """The key that the person's programs use."""
        path = person.home / ".config" / "spa" / "keys" / f"{name}.key"
        return cls(identity.load(path, None), ServerLine.parse(person.site.line).public)

    @classmethod
    def enrolled(cls, site: Site, name: str, *roles: str, expires: str | None = None) -> Self:
        """A new key, enrolled under this name, that no program uses."""
        key = identity.generate(name)
        site.enrol_key(name, format_key(key.public), *roles, expires=expires)
        return cls(key, ServerLine.parse(site.line).public)

    @property
    def name(self) -> str:
        """Whom the key was enrolled for, by `enrolled`."""
        return self.key.comment

    @property
    def key_id(self) -> str:
        """What lists and logs call the key."""
        return self.key.public.key_id

    def tag(self, epoch: int) -> bytes:
        """The 8 bytes by which the server knows the key in an epoch."""
        return self.key.pair_with(self.server).tag_at(epoch)

    def write(
        self,
        *accesses: str,
        at_us: int | None = None,
        source: Source = SourceRule.NONE,
        target: NamedTarget = TargetRule.NONE,
        lifetime_s: int = 0,
        closing: bool = False,
        reply_wanted: bool = True,
    ) -> Datagram:
        """A knock, or a close, stamped with a time: now, unless another is given.

        One without a target is for a site with ACCEPTS_UNDECLARED in its settings.
        """
        wish = Wish(
            accesses=tuple(map(Access.parse, accesses)),
            closing=closing,
            lifetime_s=lifetime_s,
            reply_wanted=reply_wanted,
        )
        return self._composer(wish, source, target).compose(
            _ANY,
            _ANY,
            nonce=secrets.token_bytes(NONCE_SIZE),
            now_us=now_us() if at_us is None else at_us,
        )

    def read(self, payload: bytes, request: Datagram) -> Reply | None:
        """The server's answer to a request, or None for any other bytes."""
        pair = self.key.pair_with(self.server)
        return open_reply(payload, pair=pair, request_nonce=request.nonce)

    def _composer(
        self, wish: Wish, source: Source, target: NamedTarget = TargetRule.NONE
    ) -> Composer:
        return Composer.toward(self.server, self.key, wish, source, target)


@dataclass(frozen=True)
class Caller:
    """Who knocks from a host without starting a program each time."""

    pen: Pen
    host: Host
    target: Address

    def ask(self, *accesses: str, within_s: float = 3.0, **how: Any) -> Reply | None:
        """The answer to one new request, sent once."""
        how.setdefault("target", self.target)
        return self.send(self.pen.write(*accesses, **how), within_s=within_s)

    def send(self, request: Datagram, within_s: float = 3.0) -> Reply | None:
        """Sends a request that was written before, and waits for an answer to it."""
        family = socket.AF_INET6 if self.target.version == 6 else socket.AF_INET
        with self.host.new_socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((str(self.target), DEFAULT_PORT))
            asking.send(request.payload)
            asking.settimeout(within_s)
            try:
                return self.pen.read(asking.recv(65536), request)
            except TimeoutError:
                return None


class Heard(NamedTuple):
    """A UDP datagram on the wire."""

    source: Address
    source_port: int
    target: Address
    target_port: int
    payload: bytes


@dataclass
class Tap:
    """Hears what passes a host's interface, in and out, with a packet socket of its own."""

    host: Host
    segment: str = DEFAULT_SEGMENT
    _socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._socket = self.host.new_socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        self._socket.bind((self.host.on(self.segment).interface, _ETH_P_ALL))
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def packets(self, *, outgoing: bool) -> list[bytes]:
        """The IP packets of one direction since the last look; those of the other are let go."""
        return list(self._drain(outgoing))

    def knocks(self) -> list[Heard]:
        """The datagrams to the knock port that came in since the last look."""
        heard = map(udp_in, self._drain(outgoing=False))
        return [one for one in heard if one is not None and one.target_port == DEFAULT_PORT]

    def answers(self) -> list[Heard]:
        """The datagrams that left from the knock port since the last look."""
        heard = map(udp_in, self._drain(outgoing=True))
        return [one for one in heard if one is not None and one.source_port == DEFAULT_PORT]

    def _drain(self, outgoing: bool) -> Iterator[bytes]:
        while True:
            try:
                packet, (_, ethertype, kind, *_) = self._socket.recvfrom(65536)
            except BlockingIOError:
                return
            if (kind == _PACKET_OUTGOING) is outgoing and ethertype in _ETHERTYPES.values():
                yield packet


@dataclass
class Injector:
    """Puts packets on a segment as they are, from one host to another, whoever they claim to be."""

    host: Host
    target: Host
    segment: str = DEFAULT_SEGMENT
    _socket: socket.socket = field(init=False)
    _addresses: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._socket = self._packet_socket(self.host)
        with self._packet_socket(self.target) as other:
            self._addresses = other.getsockname()[4] + self._socket.getsockname()[4]

    def send(self, *packets: bytes, padding: bytes = b"") -> None:
        """Sends IP packets, each in a frame of its own with padding behind it."""
        for packet in packets:
            ethertype = _ETHERTYPES.get(packet[0] >> 4 if packet else 0, 0x0800)
            header = self._addresses + ethertype.to_bytes(2)
            self._socket.send(header + packet + padding)

    def knock(
        self,
        payload: bytes,
        source: Address,
        *,
        source_port: int = 40_000,
        port: int = DEFAULT_PORT,
    ) -> None:
        """Sends a payload as a datagram to the target, from any source."""
        target = self.target.on(self.segment)
        to = target.v4 if source.version == 4 else target.v6
        self.send(datagram(payload, source, to, source_port=source_port, port=port))

    def _packet_socket(self, host: Host) -> socket.socket:
        made = host.new_socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.bind((host.on(self.segment).interface, 0))
        return made


def datagram(
    payload: bytes,
    source: Address,
    target: Address,
    *,
    source_port: int = 40_000,
    port: int = DEFAULT_PORT,
    length: int | None = None,
) -> bytes:
    """An IP packet with a UDP datagram in it; `length` is what its UDP header claims."""
    length = len(payload) + 8 if length is None else length
    return ip_packet(struct.pack(">HHHH", source_port, port, length, 0) + payload, source, target)


def ip_packet(
    inner: bytes, source: Address, target: Address, *, protocol: int = _UDP, options: bytes = b""
) -> bytes:
    """An IP packet around anything. Options are IPv4's; the sum over its header is right.

    UDP over IPv6 gets the sum that RFC 8200 asks for.
    """
    if isinstance(source, IPv6Address):
        ends = source.packed + target.packed
        if protocol == _UDP and len(inner) >= 8:
            pseudo = ends + struct.pack(">II", len(inner), protocol)
            inner = inner[:6] + struct.pack(">H", checksum(pseudo + inner) or 0xFFFF) + inner[8:]
        return struct.pack(">IHBB", 6 << 28, len(inner), protocol, 64) + ends + inner
    first = 0x45 + len(options) // 4
    total = 20 + len(options) + len(inner)
    head = struct.pack(">BBHHHBB", first, 0, total, secrets.randbits(16), 0, 64, protocol)
    return _summed(head + bytes(2) + source.packed + target.packed + options) + inner


def _summed(header: bytes) -> bytes:
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:]


def resummed(packet: bytes) -> bytes:
    """An IPv4 packet whose header was changed, with the sum made right again."""
    end = (packet[0] & 0x0F) * 4
    return _summed(packet[:10] + bytes(2) + packet[12:end]) + packet[end:]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_in(packet: bytes) -> Heard | None:
    """The datagram in an IP packet without extension headers and fragments."""
    if packet[0] >> 4 == 4:
        begin, protocol = (packet[0] & 0x0F) * 4, packet[9]
        ends = packet[12:16], packet[16:20]
    else:
        begin, protocol = 40, packet[6]
        ends = packet[8:24], packet[24:40]
    if protocol != _UDP or len(packet) < begin + 8:
        return None
    source_port, target_port, length = struct.unpack_from(">HHH", packet, begin)
    source, target = map(ip_address, ends)
    return Heard(source, source_port, target, target_port, packet[begin + 8 : begin + length])


class KernelHole(NamedTuple):
    """An element of the kernel's sets of holes."""

    source: Address
    target: Address
    protocol: str
    port: int


def holes_in_kernel(host: Host) -> dict[KernelHole, float]:
    """Every hole that is open, and for how many seconds more, as nft itself tells it."""
    found = {}
    for name in ("holes4", "holes6", "once4", "once6", "link_holes6", "link_once6"):
        for element in _elements(host, name):
            source, target, protocol, port, *_ = element["val"]["concat"]
            hole = KernelHole(ip_address(source), ip_address(target), protocol, port)
            found[hole] = float(element["expires"])
    return found


def tags_in_kernel(host: Host) -> dict[bytes, float]:
    """Every tag that the kernel admits, and for how many seconds more."""
    # nft's JSON has them as signed numbers.
    return {
        element["val"].to_bytes(8, signed=True): float(element["expires"])
        for element in _elements(host, "admitted")
    }


def counted_in_kernel(host: Host, counter: str) -> int:
    """The packets that a named counter of the gate has counted."""
    told = json.loads(host.run(["nft", "-j", "list", "counter", "inet", "spa", counter]).stdout)
    return sum(entry["counter"]["packets"] for entry in told["nftables"] if "counter" in entry)


def _elements(host: Host, name: str) -> Iterator[dict[str, Any]]:
    told = json.loads(host.run(["nft", "-j", "list", "set", "inet", "spa", name]).stdout)
    for entry in told["nftables"]:
        for element in entry.get("set", {}).get("elem", ()):
            yield element["elem"]


def refusals(site: Site, pen: Pen, reason: str) -> list[dict[str, Any]]:
    """The lines of the record about refused requests of one key for one reason."""
    lines = site.events("knock.refused")
    return [line for line in lines if (line["key_id"], line["reason"]) == (pen.key_id, reason)]


@contextmanager
def silent(tap: Tap, towards: Address | None = None) -> Iterator[None]:
    """In here nothing may leave from the knock port: to one address, or to any."""
    tap.answers()
    yield
    assert [one for one in tap.answers() if towards in (None, one.target)] == []
