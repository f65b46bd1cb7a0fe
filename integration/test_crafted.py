"""Packets that nobody would send in good faith: nothing opens, nothing is said, nothing breaks.

What a knock is wrapped in proves nothing, so it hardly matters; what matters is that it is whole,
right behind one IP and one UDP header, and sent to this host alone.
"""

import json
import random
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count, cycle
from typing import Any, Final, TypeAlias

import pytest
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import GRE
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw, fuzz

from integration.lab import Address, Host, Lab, Place, Reach, wait_until
from integration.site import Site
from integration.wire import (
    ACCEPTS_UNDECLARED,
    Caller,
    Injector,
    Pen,
    Tap,
    counted_in_kernel,
    datagram,
    holes_in_kernel,
    ip_packet,
    now_us,
    refusals,
    resummed,
    silent,
    udp_in,
)
from spa_protocol.access import Access
from spa_protocol.knock import Knock, message_to_sign, seal_request
from spa_protocol.layout import DEFAULT_PORT, epoch_of
from spa_protocol.reason import Code, Reason, Status

SEED: Final = 20_261_124
LIFETIME_S: Final = 600
NOT_ACCEPTED: Final = set(Reason)
UDP_LITE, DCCP, GRE_NUMBER = 136, 33, 47
PROTOCOLS_WITH_PORTS: Final = {6, 17, 132, DCCP, UDP_LITE}
ICMP_ERRORS: Final = {3, 4, 5, 11, 12}
ICMPV6_INFORMATION: Final = 128

Wrap: TypeAlias = Callable[[bytes, Address, Address], list[bytes]]


@dataclass
class Scene:
    """A guarded server, its client, and someone whose packets claim to come from anywhere.

    The addresses of BENCHMARK and DOCUMENTATION lie behind the attacker, so that an answer to one
    of them would be seen to leave.
    """

    lab: Lab
    site: Site
    server: Host
    client: Host
    attacker: Host
    injector: Injector
    tap: Tap
    clerks: list[Pen]
    pens: list[Pen]

    def __post_init__(self) -> None:
        self._numbers = count(1)
        self._callers = cycle(Caller(pen, self.client, self.server.v4) for pen in self.clerks)

    def new_source(self, version: int) -> Address:
        """An address that nothing was sent from before, in a /64 of its own."""
        number = next(self._numbers)
        if version == 4:
            return IPv4Address("198.18.0.0") + number
        return IPv6Address("2001:db8::1") + (number << 64)

    def target(self, version: int) -> Address:
        return self.server.v4 if version == 4 else self.server.v6

    def serves(self) -> None:
        """A valid knock, sent after everything else, is granted; then all of that has been judged.

        Several knock in turn, since nobody may send more than 20 a second. The daemon may judge
        theirs before what others sent, so what waits is waited for.
        """
        reply = next(self._callers).ask("tcp/80")
        assert reply is not None
        assert reply.status is Status.GRANTED
        wait_until(
            lambda: self.site.status()["waiting"] == 0, within_s=30, what="everything to be judged"
        )

    def holes_from(self, source: Address) -> int:
        return sum(hole.source == source for hole in holes_in_kernel(self.server))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, attacker = lab.host("server"), lab.host("client"), lab.host("attacker")
        server.add_route("198.18.0.0/15", attacker.v4)
        server.add_route("2001:db8::/32", attacker.v6)
        site = Site(lab, server, settings=ACCEPTS_UNDECLARED)
        clerks = [Pen.enrolled(site, f"clerk-{number}", "ops") for number in range(4)]
        pens = [Pen.enrolled(site, f"person-{number}", "ops") for number in range(8)]
        site.apply_gate()
        site.start()
        injector, tap = Injector(attacker, server), Tap(server)
        yield Scene(lab, site, server, client, attacker, injector, tap, clerks, pens)


@pytest.fixture(autouse=True)
def _the_daemon_has_nothing_to_complain_of(scene: Scene) -> Iterator[None]:
    assert scene.site.daemon is not None
    yield
    assert scene.site.daemon.process.poll() is None
    assert scene.site.daemon.output == ""


# One valid knock, wrapped


def scapy_packet(packet: Packet) -> list[bytes]:
    return [raw(packet)]


def fragments(packet: bytes, size: int) -> list[bytes]:
    """An IPv4 packet in fragments with `size` bytes each, a multiple of 8 (RFC 791)."""
    head, inner = packet[:20], packet[20:]
    pieces = []
    for at in range(0, len(inner), size):
        more = 0x2000 if at + size < len(inner) else 0
        total, offset = 20 + len(inner[at : at + size]), more | at // 8
        header = head[:2] + struct.pack(">H", total) + head[4:6] + struct.pack(">H", offset)
        pieces.append(resummed(header + head[8:] + inner[at : at + size]))
    return pieces


def fragments6(packet: bytes, size: int) -> list[bytes]:
    """The same of an IPv6 packet (RFC 8200 section 4.5)."""
    head, inner = packet[:40], packet[40:]
    number, pieces = secrets.randbits(32), []
    for at in range(0, len(inner), size):
        more = int(at + size < len(inner))
        piece = struct.pack(">BBHI", head[6], 0, at | more, number) + inner[at : at + size]
        header = head[:4] + struct.pack(">H", len(piece)) + bytes([44]) + head[7:]
        pieces.append(header + piece)
    return pieces


def changed(packet: bytes, at: int, new: bytes) -> bytes:
    return packet[:at] + new + packet[at + len(new) :]


def behind(*headers: Packet) -> Wrap:
    """Behind IPv6 extension headers."""

    def wrap(knock: bytes, source: Address, target: Address) -> list[bytes]:
        packet = IPv6(src=str(source), dst=str(target))
        for header in headers:
            packet /= header
        return scapy_packet(packet / UDP(sport=40000, dport=DEFAULT_PORT) / Raw(knock))

    return wrap


def inside(protocol: int, header: bytes) -> Wrap:
    """In a packet of another protocol, behind its header."""
    return lambda knock, source, target: [
        ip_packet(header + knock, source, target, protocol=protocol)
    ]


def claiming(length: int) -> Wrap:
    """In a datagram whose UDP header claims another length."""
    return lambda knock, source, target: [datagram(knock, source, target, length=length)]


def sent_to(address: str) -> Wrap:
    return lambda knock, source, _: [datagram(knock, source, ip_address(address))]


def made_of(change: Callable[[bytes], bytes]) -> Wrap:
    """In a packet that was changed after it was made."""
    return lambda knock, source, target: [change(datagram(knock, source, target))]


PORTS: Final = struct.pack(">HH", 40000, DEFAULT_PORT)

HEARD_IPV4: dict[str, Wrap] = {
    "with padding behind the packet": made_of(lambda packet: packet + secrets.token_bytes(60)),
    "with more bytes in the packet than in the datagram": lambda knock, source, target: [
        ip_packet(PORTS + struct.pack(">HH", 248, 0) + knock + bytes(32), source, target)
    ],
    "with a wrong UDP checksum": made_of(lambda packet: changed(packet, 26, b"\x12\x34")),
    "with 40 bytes of IPv4 options": lambda knock, source, target: [
        ip_packet(datagram(knock, source, target)[20:], source, target, options=b"\x01" * 40)
    ],
    "with every flag but fragments, and TTL 1": made_of(
        lambda packet: resummed(changed(changed(packet, 6, b"\xc0\x00"), 8, b"\x01"))
    ),
    "from port 0": lambda knock, source, target: [datagram(knock, source, target, source_port=0)],
    "in two fragments": lambda *how: fragments(datagram(*how), 128),
    "in 31 fragments, the last first": lambda *how: fragments(datagram(*how), 8)[::-1],
}
UNHEARD_IPV4: dict[str, Wrap] = {
    "in a datagram that claims to be shorter": claiming(247),
    "in a datagram that claims to be longer": claiming(249),
    "in a datagram that claims to be empty": claiming(8),
    "in a datagram that claims no length": claiming(0),
    "in a packet that ends before its datagram": lambda knock, source, target: [
        ip_packet(PORTS + struct.pack(">HH", 248, 0) + knock[:-1], source, target)
    ],
    "with one byte less": lambda knock, *ends: [datagram(knock[:-1], *ends)],
    "with one byte more": lambda knock, *ends: [datagram(knock + b"\0", *ends)],
    "twice in one datagram": lambda knock, *ends: [datagram(knock * 2, *ends)],
    "to the port beside": lambda *how: [datagram(*how, port=DEFAULT_PORT + 1)],
    "with a wrong IPv4 checksum": made_of(lambda packet: changed(packet, 10, b"\x12\x34")),
    "with an IPv4 header that claims 16 bytes": made_of(
        lambda packet: resummed(changed(packet, 0, b"\x44"))
    ),
    "with an IPv4 header that claims 60 bytes": made_of(lambda packet: changed(packet, 0, b"\x4f")),
    "as IP version 5": made_of(lambda packet: resummed(changed(packet, 0, b"\x55"))),
    "in a packet longer than its frame": made_of(lambda packet: packet[:-40]),
    "with more bytes behind it than the kernel copies": lambda knock, source, target: [
        ip_packet(PORTS + struct.pack(">HH", 248, 0) + knock + bytes(99), source, target)
    ],
    "without its last fragment": lambda *how: fragments(datagram(*how), 128)[:-1],
    "without its first fragment": lambda *how: fragments(datagram(*how), 128)[1:],
    "in fragments that overlap": lambda *how: [
        *fragments(datagram(*how), 128)[:1],
        *fragments(datagram(*how), 120)[1:],
    ],
    "in a TCP SYN": inside(socket.IPPROTO_TCP, raw(TCP(sport=40000, dport=DEFAULT_PORT))),
    "in a ping": inside(socket.IPPROTO_ICMP, raw(ICMP(id=1))),
    "in an ICMP error": lambda *how: [
        ip_packet(raw(ICMP(type=3, code=3)) + datagram(*how), *how[1:], protocol=1)
    ],
    "in SCTP": inside(socket.IPPROTO_SCTP, raw(SCTP(sport=40000, dport=DEFAULT_PORT))),
    "in UDP-Lite": inside(UDP_LITE, PORTS + struct.pack(">HH", 248, 0)),
    "in DCCP": inside(DCCP, PORTS + struct.pack(">HH", 248, 0)),
    "in an IP packet inside the IP packet": lambda *how: [
        ip_packet(datagram(*how), *how[1:], protocol=socket.IPPROTO_IPIP)
    ],
    "in GRE": lambda *how: [ip_packet(raw(GRE()) + datagram(*how), *how[1:], protocol=GRE_NUMBER)],
    "to the network's broadcast address": sent_to("10.77.1.255"),
    "to everybody's broadcast address": sent_to("255.255.255.255"),
    "to a multicast group": sent_to("224.0.0.1"),
    "to an address of another host": sent_to("10.77.1.2"),
    "to loopback, from outside": sent_to("127.0.0.1"),
    "to no address": sent_to("0.0.0.0"),  # noqa: S104 - a target
}
HEARD_IPV6: dict[str, Wrap] = {
    "with padding behind the packet": made_of(lambda packet: packet + secrets.token_bytes(60)),
    "with a wrong UDP checksum": made_of(lambda packet: changed(packet, 46, b"\x12\x34")),
    "with no UDP checksum": made_of(lambda packet: changed(packet, 46, bytes(2))),
    "in one fragment": lambda *how: fragments6(datagram(*how), 256),
    "in two fragments": lambda *how: fragments6(datagram(*how), 128),
    "in 31 fragments, the last first": lambda *how: fragments6(datagram(*how), 8)[::-1],
}
UNHEARD_IPV6: dict[str, Wrap] = {
    "behind hop-by-hop options": behind(IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])),
    "behind a router alert": behind(IPv6ExtHdrHopByHop(options=[RouterAlert()])),
    "behind destination options": behind(IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])),
    "behind a routing header": behind(IPv6ExtHdrRouting(addresses=["fd77:1::2"])),
    "behind a spent routing header": behind(IPv6ExtHdrRouting(segleft=0)),
    "behind four headers": behind(
        IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(segleft=0), IPv6ExtHdrDestOpt()
    ),
    "behind destination options in a fragment": behind(
        IPv6ExtHdrFragment(id=7), IPv6ExtHdrDestOpt()
    ),
    "as a jumbogram that is none": behind(IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=300)])),
    "without its last fragment": lambda *how: fragments6(datagram(*how), 128)[:-1],
    "in fragments that overlap": lambda *how: [
        *fragments6(datagram(*how), 128)[:1],
        *fragments6(datagram(*how), 120)[1:],
    ],
    "in a datagram that claims to be shorter": claiming(247),
    "in a datagram that claims to be longer": claiming(249),
    "in a packet that claims no length": made_of(lambda packet: changed(packet, 4, bytes(2))),
    "in a packet longer than its frame": made_of(lambda packet: packet[:-40]),
    "in an ICMPv6 ping": inside(socket.IPPROTO_ICMPV6, raw(ICMPv6EchoRequest(cksum=0))),
    "in a TCP SYN": inside(socket.IPPROTO_TCP, raw(TCP(sport=40000, dport=DEFAULT_PORT))),
    "in an IPv6 packet inside the IPv6 packet": lambda *how: [
        ip_packet(datagram(*how), *how[1:], protocol=socket.IPPROTO_IPV6)
    ],
    "to all nodes": sent_to("ff02::1"),
    "to the network's anycast address": sent_to("fd77:1::"),
    "to an address of another host": sent_to("fd77:1::2"),
    "to loopback, from outside": sent_to("::1"),
}


def every_one_of(wraps: dict[int, dict[str, Wrap]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("version", "wrap"),
        [
            pytest.param(version, wrap, id=f"ipv{version} {name}")
            for version, of_one in wraps.items()
            for name, wrap in of_one.items()
        ],
    )


@every_one_of({4: HEARD_IPV4, 6: HEARD_IPV6})
def test_a_whole_knock_is_heard_whatever_is_odd_about_its_wrapping(
    scene: Scene, version: int, wrap: Wrap
) -> None:
    """It is signed and sealed: a checksum, an option or padding can neither prove nor spoil it.

    Fragments are put together by the kernel before its rules see them, and limits count what they
    make up, so whoever cuts a knock gains nothing by it. It is heard once, as ever: the same
    packets again are a replay.
    """
    source, target = scene.new_source(version), scene.target(version)
    knock = scene.pens[0].write("tcp/22", lifetime_s=LIFETIME_S)
    packets = wrap(knock.payload, source, target)
    scene.injector.send(*packets)
    scene.serves()
    assert scene.holes_from(source) == 1
    with silent(scene.tap, source):
        scene.injector.send(*packets)
        scene.serves()


@every_one_of({4: UNHEARD_IPV4, 6: UNHEARD_IPV6})
def test_a_knock_is_not_heard_where_its_wrapping_is_false_or_hides_it(
    scene: Scene, version: int, wrap: Wrap
) -> None:
    source, target = scene.new_source(version), scene.target(version)
    knock = scene.pens[1].write("tcp/22", lifetime_s=LIFETIME_S)
    with silent(scene.tap, source):
        scene.injector.send(*wrap(knock.payload, source, target))
        scene.serves()
    assert scene.holes_from(source) == 0
    # And it was not burned: its owner's own packet, late, is still good.
    scene.injector.knock(knock.payload, source)
    scene.serves()
    assert scene.holes_from(source) == 1


@pytest.mark.parametrize(
    "source",
    ["0.0.0.0", "127.0.0.1", "255.255.255.255", "10.77.1.255", "224.0.0.1", "10.77.1.1"],  # noqa: S104
)
def test_a_knock_from_an_ipv4_address_that_it_cannot_come_from_is_not_heard(
    scene: Scene, source: str
) -> None:
    """Nobody, loopback, everybody, a group, this host: who answers those answers strangers."""
    assert_not_heard_from(scene, source)


@pytest.mark.parametrize("source", ["::", "::1", "ff02::1", "fd77:1::", "fd77:1::1"])
def test_a_knock_from_an_ipv6_address_that_it_cannot_come_from_is_not_heard(
    scene: Scene, source: str
) -> None:
    assert_not_heard_from(scene, source)


def assert_not_heard_from(scene: Scene, source: str) -> None:
    knock = scene.pens[2].write("tcp/22", lifetime_s=LIFETIME_S)
    with silent(scene.tap, ip_address(source)):
        scene.injector.knock(knock.payload, ip_address(source))
        scene.serves()
    assert scene.holes_from(ip_address(source)) == 0


def test_the_host_itself_is_told_that_it_needs_no_hole(scene: Scene) -> None:
    for target in (scene.server.v4, scene.server.v6, IPv4Address("127.0.0.1")):
        reply = Caller(scene.pens[2], scene.server, target).ask("tcp/22")
        assert reply is not None
        assert [outcome.code for outcome in reply.outcomes] == [Code.NOT_A_TARGET]
        assert scene.holes_from(target) == 0


# A stolen tag, a stolen secret


def test_a_flood_under_a_stolen_tag_silences_nobody_and_fills_no_record(scene: Scene) -> None:
    """A tag stands in the open in every knock. Who floods with it uses up what is his own."""
    owner = Caller(scene.pens[3], scene.client, scene.server.v4)
    source = scene.new_source(4)
    tag = owner.pen.tag(epoch_of(now_us()))
    flood = [datagram(tag + secrets.token_bytes(232), source, scene.server.v4) for _ in range(5000)]
    limited = counted_in_kernel(scene.server, "knocks_limited")
    flooding = threading.Thread(target=scene.injector.send, args=flood)
    flooding.start()
    replies = [owner.ask("tcp/22") for _ in range(20)]
    flooding.join()
    assert [reply.status for reply in replies if reply] == [Status.GRANTED] * 20

    def lines() -> list[dict[str, Any]]:
        told = refusals(scene.site, owner.pen, "not-authentic")
        return [line for line in told if line["source"] == str(source)]

    def counted() -> int:
        further: list[int] = [line["detail"].get("further", 1) for line in lines()]
        return sum(further) + counted_in_kernel(scene.server, "knocks_limited") - limited

    wait_until(lambda: counted() == 5000, within_s=30, what="every packet to be counted")
    assert len(lines()) < 6


def test_a_knock_under_a_stolen_secret_without_the_signature_burns_nothing(scene: Scene) -> None:
    """Whoever has the shared secret alone (the server has it too) can seal, but not sign."""
    pen, thief = scene.pens[4], scene.pens[5]
    knock = pen.write("tcp/22", lifetime_s=LIFETIME_S)
    request = Knock(knock.sent_at_us, (Access.parse("tcp/22"),), lifetime_s=LIFETIME_S)
    message = message_to_sign(
        request, server=pen.server, agreement=pen.key.public.agreement, nonce=knock.nonce
    )
    pair = pen.key.pair_with(pen.server)
    forged = seal_request(request, thief.key.sign(message), pair=pair, nonce=knock.nonce)
    source = scene.new_source(4)
    with silent(scene.tap, source):
        scene.injector.knock(forged, source)
        scene.serves()
    assert scene.holes_from(source) == 0
    assert len(refusals(scene.site, pen, "bad-signature")) == 1
    scene.injector.knock(knock.payload, source)
    scene.serves()
    assert scene.holes_from(source) == 1


def test_a_knock_at_the_head_of_a_jumbo_frame_is_none(scene: Scene) -> None:
    place = Place("jumbo", IPv4Address("10.77.99.1"), IPv6Address("fd77:99::1"))
    scene.server.places["jumbo"] = place
    scene.attacker.places["jumbo"] = replace(place, v4=place.v4 + 1, v6=place.v6 + 1)
    scene.attacker.ip(
        f"link add jumbo mtu 9000 type veth peer jumbo mtu 9000 netns {scene.server.namespace}",
        "link set jumbo up",
    )
    scene.server.ip(
        "link set jumbo up",
        f"address add {place.v4}/24 dev jumbo",
        f"address add {place.v6}/64 dev jumbo nodad",
    )
    rejected = counted_in_kernel(scene.server, "knocks_rejected")
    injector = Injector(scene.attacker, scene.server, "jumbo")
    knock = scene.pens[6].write("tcp/22", lifetime_s=LIFETIME_S).payload
    sources = scene.new_source(4), scene.new_source(6)
    for source in sources:
        injector.knock(knock + bytes(8600), source)
    scene.serves()
    assert counted_in_kernel(scene.server, "knocks_rejected") == rejected + 2
    assert [scene.holes_from(source) for source in sources] == [0, 0]
    injector.knock(knock, sources[0])
    scene.serves()
    assert scene.holes_from(sources[0]) == 1


# An independent ear


def test_tcpdump_heard_what_the_daemon_heard(scene: Scene) -> None:
    """`spa-server inspect` on what tcpdump wrote gives the daemon's own verdicts."""
    path = scene.lab.new_file("knocks.pcap")
    options = ["-i", "lan", "--immediate-mode", "-s", "512", "-U", "-Z", "root", "-c", "33"]
    expression = ["udp", "dst", "port", str(DEFAULT_PORT)]
    tcpdump = scene.server.start(["tcpdump", *options, "-w", path, *expression])
    tcpdump.wait_for("listening on")

    nobody = Pen.enrolled(scene.site, "nobody")
    expected: list[tuple[Address, str, str, str]] = []
    for number, version in enumerate((4, 6) * 4):
        pen = nobody if number % 3 == 0 else scene.pens[7]
        source = scene.new_source(version)
        knock = pen.write("tcp/22", lifetime_s=LIFETIME_S).payload
        tag = knock[:8]
        for payload in (knock, knock, tag + secrets.token_bytes(232), secrets.token_bytes(240)):
            scene.injector.knock(payload, source)
        name, verdict = ("nobody", "refused") if pen is nobody else ("person-7", "accepted")
        expected += [
            (source, name, verdict, "tcp/22"),
            (source, name, "replayed", ""),
            (source, name, "not-authentic", ""),
        ]
    scene.serves()
    wait_until(
        lambda: tcpdump.process.poll() is not None, within_s=20, what="all 33 packets in its file"
    )

    told = scene.site.server("inspect", "--json", str(path)).stdout.splitlines()
    seen = [json.loads(line) for line in told]
    ours = {source for source, *_ in expected}
    inspected = [
        (
            ip_address(one["source"]),
            one["identity"],
            one["verdict"],
            "".join(decision.partition(":")[0] for decision in one["decisions"]),
        )
        for one in seen
        if ip_address(one["source"]) in ours and one["verdict"] != "unknown-key"
    ]
    assert inspected == expected
    assert sum(one["verdict"] == "unknown-key" for one in seen) == 8

    verdicts = {"knock.accepted": "accepted", "knock.refused": "refused"}
    recorded = [
        (
            ip_address(line["source"]),
            line["identity"],
            line["reason"] if line["reason"] in NOT_ACCEPTED else verdicts[line["event"]],
            line["access"] or "",
        )
        for line in scene.site.events("knock")
        if line["source"] and ip_address(line["source"]) in ours
    ]
    # Refusals of what nobody signed are kept apart: the two files have no common order in a batch.
    assert sorted(recorded, key=str) == sorted(expected, key=str)


# Junk in numbers


@dataclass
class Junk:
    """Packets in which nothing is a knock that was never heard. The same seed makes the same kinds.

    `burned` are valid knocks that have been heard: what is left of one after a change may at most
    be a replay. `tags` are those of enrolled keys, now.
    """

    rng: random.Random
    burned: list[bytes]
    tags: list[bytes]
    targets: dict[int, Address]

    def source(self, version: int) -> Address:
        if version == 4:
            return IPv4Address("198.18.0.0") + self.rng.randrange(1, 2**17 - 1)
        return IPv6Address("2001:db8::1") + (self.rng.randrange(2**32) << 64)

    def packet(self, payload: bytes) -> bytes:
        """A payload in a proper packet from anywhere."""
        version = self.rng.choice((4, 4, 4, 6))
        port = self.rng.randrange(65536)
        return datagram(payload, self.source(version), self.targets[version], source_port=port)

    def flipped(self, data: bytes, first: int = 0, last: int | None = None) -> bytes:
        """Data with one to eight of its bits flipped."""
        bits = range(first * 8, (len(data) if last is None else last) * 8)
        number = int.from_bytes(data)
        for bit in self.rng.sample(bits, self.rng.randint(1, 8)):
            number ^= 1 << (len(data) * 8 - 1 - bit)
        return number.to_bytes(len(data))

    def bytes_of(self, size: int) -> bytes:
        return self.rng.randbytes(size)

    def bit_flipped(self) -> bytes:
        return self.packet(self.flipped(self.rng.choice(self.burned)))

    def sealed_part_flipped(self) -> bytes:
        return self.packet(self.flipped(self.rng.choice(self.burned), first=8))

    def truncated(self) -> bytes:
        return self.packet(self.rng.choice(self.burned)[: self.rng.randrange(240)])

    def torn(self) -> bytes:
        """A packet cut anywhere, whose headers claim what is no longer there."""
        packet = self.packet(self.rng.choice(self.burned))
        return packet[: self.rng.randrange(14, len(packet))]

    def oversized(self) -> bytes:
        more = self.bytes_of(self.rng.randrange(1, 1400 - 240))
        return self.packet(self.rng.choice(self.burned) + more)

    def random_of_right_length(self) -> bytes:
        return self.packet(self.bytes_of(240))

    def random_of_any_length(self) -> bytes:
        return self.packet(self.bytes_of(self.rng.randrange(1400)))

    def right_tag(self) -> bytes:
        return self.packet(self.rng.choice(self.tags) + self.bytes_of(232))

    def right_tag_wrong_length(self) -> bytes:
        return self.packet(self.rng.choice(self.tags) + self.bytes_of(self.rng.randrange(1400)))

    def mixed(self) -> bytes:
        """The beginning of one knock and the end of another."""
        one, other = self.rng.sample(self.burned, 2)
        at = self.rng.randrange(1, 240)
        return self.packet(one[:at] + other[at:])

    def headers_flipped(self) -> bytes:
        packet = self.packet(self.rng.choice(self.burned))
        version = packet[0] >> 4
        packet = self.flipped(packet, first=1, last=28 if version == 4 else 48)
        return resummed(packet) if version == 4 and self.rng.random() < 0.7 else packet

    def fragment(self) -> bytes:
        packet = self.packet(self.rng.choice(self.burned))
        cut = fragments if packet[0] >> 4 == 4 else fragments6
        return self.rng.choice(cut(packet, 8 * self.rng.randrange(1, 30)))

    def doubled(self) -> bytes:
        return self.packet(self.rng.choice(self.burned))


NUMBERS: Final = {
    Junk.bit_flipped: 1500,
    Junk.sealed_part_flipped: 2000,
    Junk.truncated: 1000,
    Junk.torn: 500,
    Junk.oversized: 500,
    Junk.random_of_right_length: 1000,
    Junk.random_of_any_length: 500,
    Junk.right_tag: 2000,
    Junk.right_tag_wrong_length: 500,
    Junk.mixed: 500,
    Junk.headers_flipped: 2000,
    Junk.fragment: 500,
    Junk.doubled: 500,
}


def crafted_by_scapy(junk: Junk) -> Iterator[bytes]:
    """What scapy's own fuzzing makes of the headers around a knock, in both families."""
    random.seed(junk.rng.random())
    four = {"src": str(junk.source(4)), "dst": str(junk.targets[4])}
    six = {"src": str(junk.source(6)), "dst": str(junk.targets[6])}
    knock = Raw(junk.burned[0])
    udp = UDP(sport=40000, dport=DEFAULT_PORT) / knock
    loose_source_route = IPOption(b"\x83\x07\x04\x0a\x4d\x01\x02\x00")
    shapes: list[Packet] = [
        IP(**four) / fuzz(UDP(dport=DEFAULT_PORT)) / knock,
        fuzz(IP(**four, proto=socket.IPPROTO_UDP)) / udp,
        IP(**four, options=[loose_source_route]) / udp,
        fuzz(IPv6(**six)) / udp,
        IPv6(**six) / fuzz(IPv6ExtHdrHopByHop()) / udp,
        IPv6(**six) / fuzz(IPv6ExtHdrDestOpt()) / udp,
        IPv6(**six) / fuzz(IPv6ExtHdrRouting()) / udp,
        IPv6(**six) / fuzz(IPv6ExtHdrFragment()) / udp,
        IP(**four) / fuzz(TCP(dport=DEFAULT_PORT)) / knock,
        IP(**four) / fuzz(ICMP()) / knock,
        IP(**four) / fuzz(SCTP(dport=DEFAULT_PORT)) / SCTPChunkData(data=bytes(knock)),
    ]
    for shape in shapes:
        for _ in range(60):
            yield raw(shape)


def protocols_complained_of(said: list[bytes]) -> set[int]:
    """What the host's ICMP errors are about. It sends some for protocols that it does not know."""
    complaints = set()
    for packet in said:
        is_icmp4 = packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_ICMP
        is_icmp6 = packet[0] >> 4 == 6 and packet[6] == socket.IPPROTO_ICMPV6
        if is_icmp4 and packet[20] in ICMP_ERRORS:
            complaints.add(packet[28 + 9])
        elif is_icmp6 and packet[40] < ICMPV6_INFORMATION:
            complaints.add(packet[48 + 6])
    return complaints


def test_thousands_of_crafted_packets_open_nothing_and_break_nothing(scene: Scene) -> None:
    burned = [scene.pens[number % 8].write("tcp/22", lifetime_s=LIFETIME_S) for number in range(40)]
    for knock in burned:
        scene.injector.knock(knock.payload, scene.new_source(4))
    scene.serves()
    before = holes_in_kernel(scene.server)
    junk = Junk(
        random.Random(SEED),
        [knock.payload for knock in burned],
        [pen.tag(epoch_of(now_us())) for pen in scene.pens],
        {4: scene.server.v4, 6: scene.server.v6},
    )
    kinds = [kind for kind, number in NUMBERS.items() for _ in range(number)]
    junk.rng.shuffle(kinds)
    packets = [kind(junk) for kind in kinds] + list(crafted_by_scapy(junk))
    assert len(packets) > 13_000

    scene.tap.answers()
    scene.injector.send(*packets)
    scene.serves()
    opened = holes_in_kernel(scene.server).keys() - before.keys()
    assert {hole.source for hole in opened} <= {scene.client.v4}
    said = scene.tap.packets(outgoing=True)
    answers = [one for one in map(udp_in, said) if one is not None]
    assert {answer.target for answer in answers} == {scene.client.v4}
    assert protocols_complained_of(said).isdisjoint(PROTOCOLS_WITH_PORTS)


# With the other capture


def test_the_capture_at_an_interface_tells_the_same_from_the_same(lab: Lab) -> None:
    """It has no kernel rules before it, so here the daemon itself sees all the junk."""
    server, client, attacker = lab.host("server"), lab.host("client"), lab.host("attacker")
    server.add_route("198.18.0.0/15", attacker.v4)
    server.add_route("2001:db8::/32", attacker.v6)
    site = Site(lab, server, settings='capture = "interface:lan"\n' + ACCEPTS_UNDECLARED)
    pens = [Pen.enrolled(site, name, "ops") for name in ("alice", "bob", "carol")]
    site.apply_gate()
    site.start()
    injector, tap = Injector(attacker, server), Tap(server)
    scene = Scene(lab, site, server, client, attacker, injector, tap, pens[:1], pens[1:])
    assert site.status()["capture"] == "interface:lan"

    knocks = [pens[1].write("tcp/22", lifetime_s=LIFETIME_S) for _ in range(8)]
    sources = [scene.new_source(version) for version in (4, 6) * 4]
    for knock, source in zip(knocks, sources, strict=True):
        injector.knock(knock.payload, source)
    scene.serves()
    opened = holes_in_kernel(server).keys()
    assert {hole.source for hole in opened} == {*sources, client.v4}
    assert client.reach_tcp(server.v4, 80) is Reach.REFUSED
    assert client.reach_tcp(server.v4, 22) is Reach.SILENT

    for knock, source in zip(knocks, sources, strict=True):
        injector.knock(knock.payload, source)
    scene.serves()
    replayed = refusals(site, pens[1], "replayed")
    assert [ip_address(line["source"]) for line in replayed] == sources

    junk = Junk(
        random.Random(SEED),
        [knock.payload for knock in knocks],
        [pen.tag(epoch_of(now_us())) for pen in pens[1:]],
        {4: server.v4, 6: server.v6},
    )
    packets = [kind(junk) for kind in NUMBERS for _ in range(80)]
    packets += crafted_by_scapy(junk)
    spare = [pens[2].write("tcp/22", lifetime_s=LIFETIME_S).payload for _ in range(3)]
    for wrong, payload in zip(("10.77.1.255", "224.0.0.1", "10.77.1.2"), spare, strict=True):
        packets.append(datagram(payload, scene.new_source(4), ip_address(wrong)))
    packets.append(datagram(spare[0], IPv4Address("224.0.0.1"), server.v4))
    tap.answers()
    injector.send(*packets)
    scene.serves()
    assert holes_in_kernel(server).keys() == opened
    assert {answer.target for answer in tap.answers()} == {client.v4}
    assert site.daemon is not None
    assert site.daemon.output == ""
