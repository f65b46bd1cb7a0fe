"""Captures and answers on real packets, with tcpdump and the kernel's own counts as oracles."""

import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count

import pytest
from msgspec.structs import replace
from scapy.compat import raw
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from integration.conftest import Neighbours
from integration.lab import Host, Lab, Reach, wait_until
from spa_protocol.layout import Address
from spa_server.answer import AnswerSocket
from spa_server.capture import CaptureError
from spa_server.capture.datagram import Datagram, KnockCapture
from spa_server.capture.file import read_capture
from spa_server.capture.interface import InterfaceCapture
from spa_server.capture.nflog import NflogCapture, NflogPacket, NflogSocket

PORT = 62201
NOW_US = 1_800_000_000_000_000
RULES = """
table inet knocks {
  chain hear {
    type filter hook prerouting priority raw
    udp dport 62201 log group 621 prefix "knock" drop
    udp dport 62202 log group 622 prefix "permit" drop
    udp dport 62203 log group 700 drop
  }
}
"""
_numbers = count()


def knock() -> bytes:
    """240 bytes that no other knock has."""
    return next(_numbers).to_bytes(8) + bytes(232)


def sending(host: Host, family: int = socket.AF_INET) -> socket.socket:
    return host.new_socket(family, socket.SOCK_DGRAM)


def send(host: Host, target: Address, payload: bytes, port: int = PORT) -> int:
    """Sends one datagram and returns the port it was sent from."""
    family = socket.AF_INET6 if target.version == 6 else socket.AF_INET
    with sending(host, family) as sender:
        sender.sendto(payload, (str(target), port))
        return int(sender.getsockname()[1])


def send_frame(host: Host, frame: Packet) -> None:
    with host.new_socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((host.on("lan").interface, 0))
        sender.send(raw(frame))


def hear(capture: KnockCapture, within_s: float = 0.5) -> list[Datagram]:
    """Everything until nothing has come for a while."""
    heard: list[Datagram] = []
    while select.select([capture], [], [], within_s)[0]:
        heard += capture.read_batch(64, NOW_US)[0]
        within_s = 0.1
    return heard


def as_nobody(host: Host, code: str, *capabilities: str) -> str:
    """What Python code prints when nobody runs it, with these capabilities alone."""
    allowed = ",".join(f"+{name}" for name in capabilities) or "-all"
    setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = [*setpriv, f"--inh-caps={allowed}", f"--ambient-caps={allowed}", sys.executable, "-c"]
    if host.run([*command, "import spa_server"], check=False).returncode:
        pytest.skip("this Python is not for every user of this machine")
    return host.run([*command, code]).stdout.strip()


class Tcpdump:
    """An independent ear: what it writes is read back with `read_capture`."""

    def __init__(self, host: Host, interface: str, expression: str) -> None:
        self._path = host.lab.new_file("capture.pcap")
        options = ["-i", interface, "-U", "-Z", "root", "-w", str(self._path)]
        self._running = host.start(["tcpdump", *options, *expression.split()])
        self._running.wait_for("listening on")

    def heard(self, expected: int, port: int = PORT) -> list[Datagram]:
        def found() -> list[Datagram]:
            try:
                return list(read_capture(self._path, port))
            except CaptureError:
                return []

        wait_until(lambda: len(found()) >= expected, what=f"{expected} packets in tcpdump's file")
        self._running.stop()
        return found()


def without_place(datagrams: list[Datagram]) -> list[Datagram]:
    """The same datagrams with nothing that only one of two captures can know."""
    return [replace(datagram, seen_at_us=0, interface=0) for datagram in datagrams]


@pytest.fixture(scope="module")
def wired(neighbours: Neighbours) -> Neighbours:
    """The server's rules log what comes to three ports."""
    neighbours.server.run(["nft", "-f", "-"], text=RULES)
    return neighbours


@pytest.fixture
def logged(wired: Neighbours) -> Iterator[NflogCapture]:
    with wired.server.inside():
        capture = NflogCapture()
    with closing(capture):
        yield capture


class TestNflog:
    @pytest.mark.parametrize("version", ["v4", "v6"])
    def test_a_knock_is_heard_at_once_and_whole(
        self, wired: Neighbours, logged: NflogCapture, version: str
    ) -> None:
        source, target = getattr(wired.client, version), getattr(wired.server, version)
        payload = knock()
        port = send(wired.client, target, payload)
        assert select.select([logged], [], [], 0.2)[0], "it waits for more"
        with wired.server.inside():
            interface = socket.if_nametoindex("lan")
        expected = Datagram(payload, source, port, target, PORT, "udp", NOW_US, interface)
        assert logged.read_batch(10, NOW_US) == ([expected], 0)
        assert logged.read_batch(10, NOW_US) == ([], 0)

    def test_as_tcpdump_hears_it(self, wired: Neighbours, logged: NflogCapture) -> None:
        tcpdump = Tcpdump(wired.server, "lan", f"udp dst port {PORT}")
        for size in (0, 1, 10, 239, 240, 241):
            for target in (wired.server.v4, wired.server.v6):
                send(wired.client, target, bytes(size))
        heard = without_place(hear(logged))
        assert len(heard) == 12
        assert heard == without_place(tcpdump.heard(12))

    def test_tcpdump_of_a_log_group_is_read(self, wired: Neighbours) -> None:
        tcpdump = Tcpdump(wired.server, "nflog:700", "")
        payload = knock()
        before_us = time.time_ns() // 1000
        for target in (wired.server.v4, wired.server.v6):
            send(wired.client, target, payload, 62203)
        heard = tcpdump.heard(2, port=62203)
        assert [(each.payload, each.target) for each in heard] == [
            (payload, wired.server.v4),
            (payload, wired.server.v6),
        ]
        assert all(before_us <= each.seen_at_us <= before_us + 10_000_000 for each in heard)

    def test_groups_are_apart(self, wired: Neighbours, logged: NflogCapture) -> None:
        with wired.server.inside():
            permits = NflogSocket(622)
        with closing(permits):
            send(wired.client, wired.server.v4, b"permitted", 62202)
            send(wired.client, wired.server.v4, b"a knock")
            assert [each.payload for each in hear(logged)] == [b"a knock"]
            (message,) = permits.read_batch(10).messages
        assert isinstance(message, NflogPacket)
        assert (message.prefix, message.packet[28:]) == ("permit", b"permitted")

    def test_a_batch_has_a_limit(self, wired: Neighbours, logged: NflogCapture) -> None:
        for _ in range(5):
            send(wired.client, wired.server.v4, knock())
        sizes = [len(logged.read_batch(2, NOW_US)[0]) for _ in range(4)]
        assert sizes == [2, 2, 1, 0]

    def test_what_was_copied_in_part_is_not_heard(
        self, wired: Neighbours, logged: NflogCapture
    ) -> None:
        send(wired.client, wired.server.v4, bytes(1000))
        assert logged.read_batch(10, NOW_US) == ([], 0)

    def test_what_is_lost_is_counted_and_the_next_is_heard(
        self, wired: Neighbours, logged: NflogCapture
    ) -> None:
        sent = 40_000
        with sending(wired.client) as sender:
            sender.connect((str(wired.server.v4), PORT))
            for _ in range(sent):
                sender.send(bytes(240))
        heard = lost = 0
        while batch := logged.read_batch(1, NOW_US)[0]:
            heard += len(batch)
        assert 1000 < heard < sent
        payload = knock()
        send(wired.client, wired.server.v4, payload)
        (last,), lost = logged.read_batch(10, NOW_US)
        assert last.payload == payload
        assert heard + lost == sent

    def test_one_read_makes_room_for_one_more(
        self, wired: Neighbours, logged: NflogCapture
    ) -> None:
        """Overrun, the kernel still delivers: it does not wait until the queue is empty."""
        with sending(wired.client) as sender:
            sender.connect((str(wired.server.v4), PORT))
            for _ in range(40_000):
                sender.send(bytes(240))
            logged.read_batch(100, NOW_US)
            payload = knock()
            sender.send(payload)
        assert payload in [each.payload for each in hear(logged)]

    def test_another_reader_of_the_group_is_named(
        self, wired: Neighbours, logged: NflogCapture
    ) -> None:
        assert logged.fileno() >= 0
        with (
            wired.server.inside(),
            pytest.raises(CaptureError, match=r"^log group 621 is read by another process; "),
        ):
            NflogCapture()

    def test_a_closed_group_is_free_again(self, wired: Neighbours) -> None:
        with wired.server.inside():
            for _ in range(2):
                NflogCapture().close()

    NOBODY = """
import socket, sys
from spa_server.capture import CaptureError
from spa_server.capture.nflog import NflogCapture
try:
    capture = NflogCapture()
except CaptureError as error:
    sys.exit(print(error))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", ("127.0.0.1", 62201))
print(capture.read_batch(10, 0)[0][0].payload.decode())
"""

    def test_one_capability_is_enough(self, wired: Neighbours) -> None:
        assert as_nobody(wired.server, self.NOBODY, "net_admin") == "hello"

    def test_none_is_not(self, wired: Neighbours) -> None:
        printed = as_nobody(wired.server, self.NOBODY)
        assert printed == "log group 621 is refused; CAP_NET_ADMIN is needed"


@pytest.fixture
def listening(neighbours: Neighbours) -> Iterator[InterfaceCapture]:
    with neighbours.server.inside():
        capture = InterfaceCapture("lan", PORT)
    with closing(capture):
        yield capture


def addressed(outer: Packet, *tags: Packet) -> Packet:
    """A frame from the client to the server: its addresses, tags, and a knock behind `outer`."""
    frame = Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff")
    for tag in tags:
        frame /= tag
    return frame / outer / UDP(sport=40000, dport=PORT) / Raw(knock())


class TestInterface:
    def outer(self, neighbours: Neighbours, version: str) -> Packet:
        header = IP if version == "v4" else IPv6
        source, target = getattr(neighbours.client, version), getattr(neighbours.server, version)
        return header(src=str(source), dst=str(target))

    @pytest.mark.parametrize("version", ["v4", "v6"])
    def test_a_knock_is_heard_whole(
        self, neighbours: Neighbours, listening: InterfaceCapture, version: str
    ) -> None:
        source, target = getattr(neighbours.client, version), getattr(neighbours.server, version)
        payload = knock()
        port = send(neighbours.client, target, payload)
        (heard,) = hear(listening)
        with neighbours.server.inside():
            interface = socket.if_nametoindex("lan")
        assert heard == Datagram(payload, source, port, target, PORT, "udp", NOW_US, interface)

    def test_as_tcpdump_hears_it(self, neighbours: Neighbours, listening: InterfaceCapture) -> None:
        """libpcap compiles the same filter from words."""
        sizes = "(ip and udp[4:2] = 248) or (ip6 and ip6[44:2] = 248)"
        tcpdump = Tcpdump(neighbours.server, "lan", f"udp dst port {PORT} and ({sizes})")
        for target in (neighbours.server.v4, neighbours.server.v6):
            for size in (0, 239, 240, 241, 1000):
                send(neighbours.client, target, bytes(size))
            send(neighbours.client, target, knock(), PORT + 1)
            send(neighbours.client, target, knock())
            send_frame(neighbours.client, addressed(self.outer(neighbours, "v6")))
            long_header = IP(src="10.77.1.2", dst="10.77.1.1", options=b"\1" * 12)
            send_frame(neighbours.client, addressed(long_header))
        heard = without_place(hear(listening))
        assert len(heard) == 8
        assert heard == without_place(tcpdump.heard(8))

    @pytest.mark.parametrize("version", ["v4", "v6"])
    def test_behind_a_vlan_tag(
        self, neighbours: Neighbours, listening: InterfaceCapture, version: str
    ) -> None:
        frame = addressed(self.outer(neighbours, version), Dot1Q(vlan=7))
        send_frame(neighbours.client, frame)
        (heard,) = hear(listening)
        assert heard.payload == frame[Raw].load
        assert heard.source == getattr(neighbours.client, version)

    def test_what_is_for_others_is_heard_too(
        self, neighbours: Neighbours, listening: InterfaceCapture
    ) -> None:
        frame = addressed(IP(src="203.0.113.1", dst="203.0.113.2"))
        frame[Ether].dst = "02:00:00:00:00:99"
        send_frame(neighbours.client, frame)
        (heard,) = hear(listening)
        assert heard.target == ip_address("203.0.113.2")

    def test_it_is_promiscuous_while_it_is_open(
        self, neighbours: Neighbours, listening: InterfaceCapture
    ) -> None:
        show = ["ip", "-details", "link", "show", "lan"]
        assert " promiscuity 1 " in neighbours.server.run(show).stdout
        listening.close()
        listening.close()
        assert " promiscuity 0 " in neighbours.server.run(show).stdout

    @pytest.mark.parametrize(
        "outer",
        [
            IP(src="10.77.1.2", dst="10.77.1.1", flags="MF"),
            IP(src="10.77.1.2", dst="10.77.1.1", frag=1),
            IPv6(src="fd77:1::2", dst="fd77:1::1") / IPv6ExtHdrDestOpt(),
        ],
        ids=lambda packet: packet.summary(),
    )
    def test_what_is_not_heard(
        self, neighbours: Neighbours, listening: InterfaceCapture, outer: Packet
    ) -> None:
        send_frame(neighbours.client, addressed(outer))
        assert hear(listening, within_s=0.2) == []

    def test_its_own_packets_are_not_heard(
        self, neighbours: Neighbours, listening: InterfaceCapture
    ) -> None:
        send(neighbours.server, neighbours.client.v4, knock())
        assert hear(listening, within_s=0.2) == []

    def test_loopback_is_heard_once(self, neighbours: Neighbours) -> None:
        with neighbours.server.inside():
            capture = InterfaceCapture("lo", PORT)
        with closing(capture):
            send(neighbours.server, ip_address("127.0.0.1"), knock())
            send(neighbours.server, ip_address("::1"), knock())
            assert [heard.target.is_loopback for heard in hear(capture)] == [True, True]

    def test_a_repeated_knock_is_limited_and_another_is_not(
        self, neighbours: Neighbours, listening: InterfaceCapture
    ) -> None:
        repeated, other = knock(), knock()
        with sending(neighbours.client) as sender:
            for _ in range(200):
                sender.sendto(repeated, (str(neighbours.server.v4), PORT))
            sender.sendto(other, (str(neighbours.server.v4), PORT))
        payloads = [heard.payload for heard in hear(listening)]
        assert payloads.count(repeated) == 20
        assert payloads.count(other) == 1

    def test_what_is_lost_is_counted(
        self, neighbours: Neighbours, listening: InterfaceCapture
    ) -> None:
        sent = 20_000
        with sending(neighbours.client) as sender:
            sender.connect((str(neighbours.server.v4), PORT))
            for _ in range(sent):
                sender.send(bytes(240))
        _, lost = listening.read_batch(sent, NOW_US)
        assert 0 < lost < sent
        assert listening.read_batch(sent, NOW_US) == ([], 0)

    def test_down_it_waits_and_gone_it_says_so(self, lab: Lab) -> None:
        server, client = lab.host("server"), lab.host("client")
        with server.inside():
            capture = InterfaceCapture("lan", PORT)
        with closing(capture):
            server.ip("link set lan down")
            assert hear(capture, within_s=0.2) == []
            server.ip("link set lan up")
            wait_until(lambda: client.reach_udp(server.v4, 9) is Reach.REFUSED)
            send(client, server.v4, knock())
            assert len(hear(capture)) == 1
            server.ip("link delete lan")
            with pytest.raises(CaptureError, match=r"^lan is gone: "):
                hear(capture)

    def test_errors_are_for_an_operator(self, neighbours: Neighbours) -> None:
        with (
            neighbours.server.inside(),
            pytest.raises(CaptureError, match=r"^there is no interface wan; ip link shows them$"),
        ):
            InterfaceCapture("wan")

    NOBODY = """
from spa_server.capture import CaptureError
from spa_server.capture.interface import InterfaceCapture
try:
    print(InterfaceCapture("lan").read_batch(1, 0))
except CaptureError as error:
    print(error)
"""

    def test_one_capability_is_enough(self, neighbours: Neighbours) -> None:
        assert as_nobody(neighbours.server, self.NOBODY, "net_raw") == "([], 0)"

    def test_none_is_not(self, neighbours: Neighbours) -> None:
        printed = as_nobody(neighbours.server, self.NOBODY, "net_admin")
        assert printed == "lan may not be captured from; CAP_NET_RAW is needed"


@pytest.fixture
def answering(lab: Lab) -> Iterator[tuple[Host, Host, AnswerSocket]]:
    """A server with two addresses of each family, its answer socket, and a client."""
    server, client = lab.host("server"), lab.host("client")
    server.add_address("10.77.1.100/24")
    server.add_address("fd77:1::100/64")
    with server.inside():
        answers = AnswerSocket(PORT)
    with closing(answers):
        yield server, client, answers


Answering = tuple[Host, Host, AnswerSocket]


def asked(ours: Address, theirs: Address, port: int, interface: int = 0) -> Datagram:
    """What an answer goes back to."""
    return Datagram(b"", theirs, port, ours, PORT, "udp", 0, interface)


class TestAnswer:
    @pytest.mark.parametrize("source", ["10.77.1.1", "10.77.1.100", "fd77:1::1", "fd77:1::100"])
    def test_an_answer_comes_from_where_the_knock_went(
        self, answering: Answering, source: str
    ) -> None:
        _, client, answers = answering
        address = ip_address(source)
        own = client.v4 if address.version == 4 else client.v6
        with sending(client, socket.AF_INET if address.version == 4 else socket.AF_INET6) as asking:
            asking.settimeout(1)
            asking.bind((str(own), 0))
            request = asked(address, own, asking.getsockname()[1])
            assert answers.send(b"yes", request) is None
            payload, sender = asking.recvfrom(100)
        assert (payload, ip_address(sender[0]), sender[1]) == (b"yes", address, PORT)

    def test_link_local_goes_back_by_the_interface(self, answering: Answering) -> None:
        server, client, answers = answering
        ours, theirs = link_local(server), link_local(client)
        with server.inside():
            interface = socket.if_nametoindex("lan")
        with sending(client, socket.AF_INET6) as asking:
            asking.settimeout(1)
            asking.bind(("::", 0))
            request = asked(ours, theirs, asking.getsockname()[1], interface)
            assert answers.send(b"yes", request) is None
            payload, sender = asking.recvfrom(100)
        assert (payload, IPv6Address(sender[0].partition("%")[0])) == (b"yes", ours)

    def test_junk_draws_nothing_and_is_never_received(self, answering: Answering) -> None:
        server, client, answers = answering
        for target in (server.v4, server.v6, ip_address("10.77.1.100")):
            assert client.reach_udp(target, PORT) is Reach.SILENT
            assert client.reach_udp(target, PORT + 1) is Reach.REFUSED
        ours = list(answers._sockets.values())
        assert len(ours) == 2
        assert select.select(ours, [], [], 0.1) == ([], [], [])
        answers.close()
        assert client.reach_udp(server.v4, PORT) is Reach.REFUSED

    def test_nmap_sees_no_difference_to_a_filtered_port(self, answering: Answering) -> None:
        server, client, _ = answering
        scan = ["nmap", "-sU", "-n", "-Pn", "--max-retries=1", "-oG", "-"]
        ports = f"{PORT},{PORT + 1}"
        printed = client.run([*scan, "-p", ports, str(server.v4)]).stdout
        assert f"{PORT}/open|filtered/udp" in printed
        assert f"{PORT + 1}/closed/udp" in printed

    @pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
    def test_nobody_can_bind_the_port_beside_it(self, answering: Answering, option: int) -> None:
        server, _, _ = answering
        with sending(server) as other:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
            with pytest.raises(OSError, match="Address already in use"):
                other.bind((str(server.v4), PORT))

    def test_a_port_that_is_taken(self, answering: Answering) -> None:
        server, _, answers = answering
        with server.inside(), closing(AnswerSocket(PORT)) as second:
            said = "udp port 62201: another program is bound to it; answers leave from another"
            assert second.trouble == f"{said}, rewritten"
            assert not second.try_again()
            answers.close()
            assert second.try_again()
            assert second.trouble == ""

    def test_what_cannot_be_sent_is_returned(self, answering: Answering) -> None:
        server, client, answers = answering
        cases: list[tuple[Address, Address]] = [
            (server.v4, IPv4Address("192.0.2.1")),
            (server.v6, IPv6Address("2001:db8::1")),
            (IPv4Address("192.0.2.9"), client.v4),
            (IPv6Address("2001:db8::9"), client.v6),
            (server.v4, client.v6),
        ]
        for source, target in cases:
            error = answers.send(b"no", asked(source, target, 9))
            assert isinstance(error, OSError), (source, target)
        assert answers.send(b"yes", asked(server.v4, client.v4, 9)) is None


def link_local(host: Host) -> IPv6Address:
    shown = host.run(["ip", "-6", "-o", "address", "show", "dev", "lan", "scope", "link"]).stdout
    return IPv6Address(shown.split()[3].partition("/")[0])
