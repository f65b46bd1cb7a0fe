"""What a hole lets in is what completed a handshake: ADR 19."""

import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv6Address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import (
    SCTP,
    SCTPChunkAbort,
    SCTPChunkCookieEcho,
    SCTPChunkData,
    SCTPChunkInit,
    SCTPChunkInitAck,
)
from scapy.packet import Packet

from integration.attacks.forged_syns import forging
from integration.gate import ONLY_THIS_HOST, Log, address, af, both_families, hole, lease, ports
from integration.lab import Host, Reach, Service, echoes, reached, wait_until
from spa_protocol.access import Access, Protocol
from spa_server.firewall.kernel import Gate
from spa_server.firewall.plan import GatePlan
from spa_server.link import on_link
from spa_server.sessions import adopt_established

ACK_HELD_BACK = """
table inet held {
  chain out {
    type filter hook output priority 0
    tcp flags & (syn | rst | ack) == ack drop
  }
}
"""


@contextmanager
def half_open(client: Host) -> Iterator[None]:
    """Meanwhile connections from there are answered, and never completed."""
    client.run(["nft", "-f", "-"], text=ACK_HELD_BACK)
    try:
        yield
    finally:
        client.run(["nft", "delete", "table", "inet", "held"])


@both_families
def test_a_syn_is_no_connection_and_what_completes_it_is_one(
    gate: Gate, server: Host, client: Host, service: Service, family: int
) -> None:
    target = address(server, family)
    gate.open([lease(hole(address(client, family), target, service.port))])
    with Log(622) as log:
        with half_open(client):
            stream = client.connection(target, service.port)
            assert reached(stream) is Reach.OPEN
            assert log.prefixes() == []
        assert echoes(stream)
        assert echoes(stream)
        assert log.prefixes() == ["permit"]
        stream.close()


@both_families
def test_of_many_that_were_answered_once_lets_one_in(
    gate: Gate, server: Host, client: Host, service: Service, family: int
) -> None:
    target = address(server, family)
    gate.open([lease(hole(address(client, family), target, service.port, once=True))])
    with Log(622) as log:
        with half_open(client):
            streams = [client.connection(target, service.port) for _ in range(5)]
            assert {reached(stream) for stream in streams} == {Reach.OPEN}
            assert len(gate.live_holes()) == 1
        assert [echoes(stream) for stream in streams].count(True) == 1
        assert [echoes(stream) for stream in streams].count(True) == 1
        assert log.prefixes() == ["permit"]
    assert gate.live_holes() == []
    assert client.reach_tcp(target, service.port) is Reach.SILENT


def test_a_handshake_that_its_hole_did_not_outlive_is_not_completed(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """Else whoever is revoked could keep what they have begun, as a reserve."""
    own = hole(client.v4, server.v4, service.port)
    gate.open([lease(own)])
    with half_open(client):
        stream = client.connection(server.v4, service.port)
        assert reached(stream) is Reach.OPEN
        gate.close([own])
    assert not echoes(stream)
    assert service.received == []
    gate.open([lease(own)])
    wait_until(lambda: service.received, what="the repeated segment, once there is a hole")


def test_a_handshake_completed_by_a_fin_takes_a_once_hole_too(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """conntrack does not call that one assured, but the service gets its data."""
    gate.open([lease(hole(client.v4, server.v4, service.port, once=True))])
    with Log(622) as log:
        streams = []
        with half_open(client):
            for _ in range(2):
                stream = client.connection(server.v4, service.port)
                assert reached(stream) is Reach.OPEN
                stream.send(b"last words")
                stream.shutdown(socket.SHUT_WR)
                streams.append(stream)
        wait_until(lambda: service.received, what="the repeated segment")
        time.sleep(1)
        assert service.received == [b"last words"]
        assert log.prefixes() == ["permit"]


def test_forged_syns_take_nothing_from_the_owner(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service
) -> None:
    own = hole(client.v4, server.v4, service.port, once=True)
    gate.open([lease(own)])
    with Log(622) as log, forging(stranger, client, server, service.port, 2000):
        time.sleep(0.5)
        assert log.prefixes() == []
        assert [live.hole for live in gate.live_holes()] == [own]
        with client.connection(server.v4, service.port) as stream:
            assert reached(stream) is Reach.OPEN
            assert echoes(stream)
        assert gate.live_holes() == []
        assert log.prefixes() == ["permit"]


def test_what_begins_at_a_hole_is_limited_until_its_owner_knocks_again(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service
) -> None:
    own, other = (hole(client.v4, server.v4, p) for p in (service.port, next(ports)))
    gate.open([lease(own), lease(other)])
    with forging(stranger, client, server, service.port, 30_000):
        wait_until(lambda: gate.counters()["holes_limited"].packets > 1000)
    begun = gate.counters()["handshakes_begun"].packets
    assert 8192 <= begun < 12_000
    with forging(stranger, client, server, other.port, 1000):
        wait_until(lambda: gate.counters()["handshakes_begun"].packets > begun + 500)
    gate.open([lease(own)])
    assert client.reach_tcp(server.v4, service.port) is Reach.OPEN


def test_datagrams_of_many_flows_are_limited_and_those_of_a_known_one_go_on(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    gate.open([lease(hole(client.v4, server.v4, service.port, Protocol.UDP))])
    with client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as known:
        known.connect((str(server.v4), service.port))
        assert echoes(known)
        with Log(622) as log, raw_udp(client) as made:
            for source_port in range(20_000, 26_000):
                datagram = struct.pack(">HHHH", source_port, service.port, 9, 0) + b"x"
                made.sendto(datagram, (str(server.v4), 0))
            limited = gate.counters()["holes_limited"].packets
            assert limited > 2000
            assert len(log.prefixes()) == 6000 - limited
        assert echoes(known)


def raw_udp(host: Host) -> socket.socket:
    return host.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)


@pytest.mark.parametrize("once", [False, True])
def test_sctp_is_let_in_by_the_cookie(
    gate: Gate, server: Host, client: Host, port: int, once: bool
) -> None:
    """Neither host speaks SCTP, so both sides' packets are made by hand."""
    gate.open([lease(hole(client.v4, server.v4, port, Protocol.SCTP, once=once))])
    with Log(622) as log, association(client, server, port) as (there, back):
        there(0, SCTPChunkInit(init_tag=7, a_rwnd=9999))
        assert log.prefixes() == []
        back(7, SCTPChunkInitAck(init_tag=9, a_rwnd=9999))
        there(0, SCTPChunkInit(init_tag=7, a_rwnd=9999))
        assert log.prefixes() == []
        assert len(gate.live_holes()) == 1
        there(9, SCTPChunkCookieEcho(cookie=b"cookie"))
        assert log.prefixes() == ["permit"]
        assert len(gate.live_holes()) == (0 if once else 1)
        there(9, SCTPChunkData(data=b"data"))
        assert log.prefixes() == []
    assert denied(gate, Protocol.SCTP, port) == 0


Send = Callable[[int, Packet], None]


@contextmanager
def association(client: Host, server: Host, port: int) -> Iterator[tuple[Send, Send]]:
    """Sends chunks there, with a verification tag, and back."""
    with (
        client.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP) as one,
        server.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP) as other,
    ):

        def there(tag: int, chunk: Packet) -> None:
            packet = SCTP(sport=port, dport=port, tag=tag) / chunk
            one.sendto(bytes(packet), (str(server.v4), 0))

        def back(tag: int, chunk: Packet) -> None:
            packet = SCTP(sport=port, dport=port, tag=tag) / chunk
            other.sendto(bytes(packet), (str(client.v4), 0))

        yield there, back


def test_a_packet_that_acknowledges_nothing_takes_no_once_hole(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """conntrack picks up connections that it has not seen begin: not through such a hole."""
    own = hole(client.v4, server.v4, service.port, once=True)
    gate.open([lease(own)])
    with (
        Log(622) as log,
        client.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made,
    ):
        for flags in ("A", "PA", "FA", "R", "SA"):
            ends = IP(src=str(client.v4), dst=str(server.v4))
            packet = ends / TCP(sport=next(ports), dport=service.port, flags=flags, seq=1, ack=1)
            made.sendto(bytes(packet), (str(server.v4), 0))
        assert log.prefixes() == []
    assert [live.hole for live in gate.live_holes()] == [own]
    with client.connection(server.v4, service.port) as stream:
        assert echoes(stream) or reached(stream) is Reach.OPEN


def test_the_next_connection_on_an_entry_of_conntrack_is_recorded_too(
    gate: Gate, server: Host, client: Host, port: int
) -> None:
    """After the host has reset a connection conntrack keeps its entry, also for the next one."""
    listening = server.new_socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("", port))
    listening.listen()
    own, source_port = hole(client.v4, server.v4, port), next(ports)
    gate.open([lease(own)])
    with Log(622) as log:
        for _ in range(3):
            with client.connection(server.v4, port, source_port=source_port) as stream:
                assert reached(stream) is Reach.OPEN
                accepted, _ = listening.accept()
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()
            assert log.prefixes() == ["permit"]
    gate.close([own])
    gate.open([lease(hole(client.v4, server.v4, port, once=True))])
    with client.connection(server.v4, port, source_port=source_port) as stream:
        assert reached(stream) is Reach.SILENT
    with client.connection(server.v4, port) as stream:
        assert reached(stream) is Reach.OPEN


def test_a_reset_ends_what_was_begun_and_takes_no_once_hole(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service
) -> None:
    """The owner's host resets what it never asked for, and the service's forgets it."""
    own = hole(client.v4, server.v4, service.port, once=True)
    gate.open([lease(own)])
    with forging(stranger, client, server, service.port, 100):
        wait_until(lambda: gate.counters()["handshakes_begun"].packets > 50)
    waiting = f"ss -Htn state syn-recv sport = :{service.port}".split()
    wait_until(lambda: not server.run(waiting).stdout, within_s=0.5, what="the resets")
    assert [live.hole for live in gate.live_holes()] == [own]
    assert denied(gate, Protocol.TCP, service.port) == 0


@pytest.mark.parametrize("once", [False, True])
def test_of_sctp_nothing_but_its_cookie_lets_in_and_each_needs_a_hole(
    gate: Gate, server: Host, client: Host, port: int, once: bool
) -> None:
    """conntrack takes an ABORT with the tag of the INIT, which who forged that one knows too."""
    own = hole(client.v4, server.v4, port, Protocol.SCTP, once=once)
    gate.open([lease(own)])
    with Log(622) as log, association(client, server, port) as (there, back):
        there(9, SCTPChunkCookieEcho(cookie=b"of nobody's"))
        there(0, SCTPChunkInit(init_tag=7, a_rwnd=9999))
        back(7, SCTPChunkInitAck(init_tag=9, a_rwnd=9999))
        there(7, SCTPChunkAbort(TCB=1))
        there(9, SCTPChunkAbort())
        there(9, SCTPChunkData(data=b"data"))
        assert log.prefixes() == []
        assert [live.hole for live in gate.live_holes()] == [own]
        there(0, SCTPChunkInit(init_tag=7, a_rwnd=9999))
        back(7, SCTPChunkInitAck(init_tag=9, a_rwnd=9999))
        there(9, SCTPChunkCookieEcho(cookie=b"cookie"))
        assert log.prefixes() == ["permit"]
        before = denied(gate, Protocol.SCTP, port)
        gate.close([own])
        there(9, SCTPChunkCookieEcho(cookie=b"cookie"))
        assert denied(gate, Protocol.SCTP, port) == before + 1
        gate.open([lease(own)])
        there(9, SCTPChunkCookieEcho(cookie=b"cookie"))
        assert log.prefixes() == ([] if once else ["permit"])


def test_a_handshake_on_a_cut_port_is_no_session_and_is_not_severed(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    access = Access(Protocol.TCP, service.port, service.port)
    gate.apply(GatePlan(outer=(), cut=(access,)))
    own = hole(client.v4, server.v4, service.port)
    gate.open([lease(own)])
    with Log(622) as log:
        with half_open(client):
            stream = client.connection(server.v4, service.port)
            assert reached(stream) is Reach.OPEN
            gate.close([own])
        assert not echoes(stream)
        assert log.prefixes() == []
        gate.open([lease(own)])
        wait_until(lambda: service.received, what="the repeated segment, once there is a hole")
        assert log.prefixes() == ["permit"]
        stream.settimeout(1)
        assert stream.recv(64)
        gate.close([own])
        assert not echoes(stream)
        assert log.prefixes() == ["severed"]


def test_what_was_begun_is_not_completed_while_the_gate_is_away(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """The backstop takes for established what the gate does. Afterwards the handshake goes on."""
    own = hole(client.v4, server.v4, service.port, once=True)
    gate.open([lease(own)])
    with Log(622) as log:
        with half_open(client):
            streams = [client.connection(server.v4, service.port) for _ in range(2)]
            assert {reached(stream) for stream in streams} == {Reach.OPEN}
        server.run(["nft", "delete", "table", "inet", "spa"])
        assert not any(echoes(stream) for stream in streams)
        assert service.received == []
        gate.apply(ONLY_THIS_HOST)
        gate.open([lease(own)])
        wait_until(lambda: service.received, what="the repeated segment")
        assert log.prefixes() == ["permit"]


@pytest.mark.parametrize("once", [False, True])
def test_on_a_link_it_is_the_same(
    gate: Gate, server: Host, client: Host, service: Service, once: bool
) -> None:
    """The hole is for one link, and so are its tries and its limit."""
    with server.inside():
        index = socket.if_nametoindex("lan")
    source, target = (on_link(link_local(host), index) for host in (client, server))
    own = hole(source, target, service.port, once=once)
    assert own.interface == index
    gate.open([lease(own)])
    with Log(622) as log:
        with half_open(client):
            streams = [to_link_local(client, link_local(server), service.port) for _ in range(3)]
            assert {reached(stream) for stream in streams} == {Reach.OPEN}
            assert log.prefixes() == []
            assert len(list(gate.listing("link_begun6"))) == 1
            gate.open([lease(own)])
            assert list(gate.listing("link_begun6")) == []
        entered = [echoes(stream) for stream in streams].count(True)
        assert entered == (1 if once else 3)
        assert log.prefixes() == ["permit"] * entered
    assert len(gate.live_holes()) == (0 if once else 1)
    gate.close([own])
    assert list(gate.listing("link_tries6")) == []
    with to_link_local(client, link_local(server), service.port) as late:
        assert reached(late) is Reach.SILENT


def denied(gate: Gate, protocol: Protocol, port: int) -> int:
    """Packets to that port. Other tests' connections may still be repeating theirs."""
    denials = (each for each in gate.denials() if (each.protocol, each.port) == (protocol, port))
    return sum(each.packets for each in denials)


def link_local(host: Host) -> IPv6Address:
    """Its address on `lan`."""
    shown = host.run(["ip", "-6", "-o", "address", "show", "dev", "lan", "scope", "link"]).stdout
    return IPv6Address(shown.split()[3].split("/")[0])


def to_link_local(host: Host, target: IPv6Address, port: int) -> socket.socket:
    """A connection that was just begun, on `lan`."""
    made = host.new_socket(socket.AF_INET6, socket.SOCK_STREAM)
    made.setblocking(False)
    with host.inside():
        made.connect_ex((str(target), port, 0, socket.if_nametoindex("lan")))
    return made


class ByHand:
    """One end of a connection, made segment by segment: the client's own kernel hears nothing."""

    def __init__(self, client: Host, server: Host, port: int) -> None:
        self._client, self._server = client, server
        self._ports = (next(ports), port)
        self.seq, self.theirs = 1000, 0
        quiet = "table ip quiet\nadd chain ip quiet in { type filter hook input priority 0; }\n"
        quiet += f"add rule ip quiet in tcp sport {port} tcp dport {self._ports[0]} drop\n"
        client.run(["nft", "-f", "-"], text=quiet)
        self._heard = client.new_socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self._out = client.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def send(self, flags: str, data: bytes = b"", *, options: Sequence[object] = ()) -> None:
        source_port, port = self._ports
        segment = IP(src=str(self._client.v4), dst=str(self._server.v4)) / TCP(
            sport=source_port,
            dport=port,
            flags=flags,
            seq=self.seq,
            ack=self.theirs,
            options=list(options),
        )
        self._out.sendto(bytes(segment / data), (str(self._server.v4), 0))

    def begin(self) -> None:
        """A SYN, and the answer to it."""
        self.send("S", options=[("MSS", 1460), ("SAckOK", b"")])
        self._heard.settimeout(1)
        while TCP not in (packet := IP(self._heard.recv(2048))) or packet[TCP].flags != "SA":
            pass
        self.seq, self.theirs = self.seq + 1, packet[TCP].seq + 1


def test_what_conntrack_finds_invalid_completes_no_handshake(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """A SACK of what was never sent: the host ignores it, conntrack the whole segment."""
    gate.open([lease(hole(client.v4, server.v4, service.port))])
    with Log(622) as log:
        end = ByHand(client, server, service.port)
        try:
            end.begin()
            beyond = (end.theirs + 5000, end.theirs + 6000)
            end.send("PA", b"unrecorded", options=[("NOP", None), ("NOP", None), ("SAck", beyond)])
            time.sleep(0.3)
            assert (service.received, log.prefixes()) == ([], [])
            end.send("PA", b"recorded")
            wait_until(lambda: service.received)
            assert (service.received, log.prefixes()) == ([b"recorded"], ["permit"])
        finally:
            client.run(["nft", "delete", "table", "ip", "quiet"])


@pytest.mark.parametrize("flags", ["PA", "FPA", "SPA"])
def test_what_conntrack_has_not_seen_begin_completes_no_handshake(
    gate: Gate, server: Host, client: Host, service: Service, flags: str
) -> None:
    """Nor makes the host answer, by which it would be the one that began."""
    own = hole(client.v4, server.v4, service.port)
    gate.open([lease(own)])
    with Log(622) as log:
        end = ByHand(client, server, service.port)
        try:
            end.begin()
            server.run(["conntrack", "-D", "-p", "tcp", "--dport", str(service.port)])
            end.send(flags, b"unrecorded")
            time.sleep(0.3)
            gate.close([own])
            end.send("PA", b"without a hole")
            time.sleep(0.3)
            assert (service.received, log.prefixes()) == ([], [])
        finally:
            client.run(["nft", "delete", "table", "ip", "quiet"])


@both_families
def test_what_conntrack_took_up_midway_needs_a_hole_again_and_is_recorded_again(
    gate: Gate, server: Host, client: Host, port: int, family: int
) -> None:
    """The host speaks first once the entry is lost: for conntrack it is the one who began. Whoever
    was let in can make conntrack forget (integration/attacks/forgotten_session.py)."""
    own = hole(address(client, family), address(server, family), port)
    gate.open([lease(own)])
    with (
        listening(server, family, port) as made,
        Log(622) as log,
        client.connection(own.target, port) as stream,
    ):
        assert reached(stream) is Reach.OPEN
        accepted, _ = made.accept()
        accepted.settimeout(0.3)
        assert log.prefixes() == ["permit"]
        gate.close([own])
        forget(server, port)
        accepted.send(b"host")
        stream.settimeout(1)
        assert stream.recv(64) == b"host"
        stream.send(b"client")
        assert nothing_comes(accepted)
        server.run(["nft", "delete", "table", "inet", "spa"])
        assert nothing_comes(accepted)
        gate.apply(ONLY_THIS_HOST)
        assert log.prefixes() == []
        gate.open([lease(own)])
        accepted.settimeout(5)
        assert accepted.recv(64) == b"client"
        assert log.prefixes() == ["permit"]
        gate.close([own])
        stream.send(b"goes on")
        assert accepted.recv(64) == b"goes on"
        accepted.close()


def test_a_once_hole_takes_up_one_connection_midway(
    gate: Gate, server: Host, client: Host, port: int
) -> None:
    own = hole(client.v4, server.v4, port)
    gate.open([lease(own)])
    with listening(server, 4, port) as made:
        streams = [client.connection(server.v4, port) for _ in range(2)]
        assert {reached(stream) for stream in streams} == {Reach.OPEN}
        accepted = [made.accept()[0] for _ in streams]
        gate.close([own])
        forget(server, port)
        for end in accepted:
            end.settimeout(1)
            end.send(b"host")
        gate.open([lease(hole(client.v4, server.v4, port, once=True))])
        for stream in streams:
            stream.send(b"client")
        assert [nothing_comes(end) for end in accepted].count(False) == 1
        assert gate.live_holes() == []
        for end in (*streams, *accepted):
            end.close()


@pytest.mark.usefixtures("gate")
def test_the_host_s_own_connection_that_conntrack_forgot_is_taken_up_by_nobody_but_the_operator(
    server: Host, client: Host, port: int
) -> None:
    """As with nf_conntrack_tcp_loose=0: conntrack cannot tell who began it. `gate apply` can."""
    elsewhere = client.serve(port)
    with server.connection(client.v4, port) as stream:
        assert echoes(stream)
        forget(server, port)
        assert not echoes(stream)
        with server.inside():
            adopt_established()
        stream.settimeout(5)
        assert stream.recv(64)
        assert echoes(stream)
    elsewhere.stop()


@contextmanager
def listening(server: Host, family: int, port: int) -> Iterator[socket.socket]:
    with server.new_socket(af(family), socket.SOCK_STREAM) as made:
        made.bind(("", port))
        made.listen()
        made.settimeout(1)
        yield made


def forget(server: Host, port: int) -> None:
    """Makes conntrack forget what goes to a port."""
    for family in ("ipv4", "ipv6"):
        server.run(
            ["conntrack", "-D", "-f", family, "-p", "tcp", "--dport", str(port)], check=False
        )


def nothing_comes(stream: socket.socket) -> bool:
    try:
        return not stream.recv(64)
    except TimeoutError:
        return True


def test_a_forged_syn_that_conntrack_finds_invalid_is_no_line(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service
) -> None:
    """By a wrong checksum: it gets no label, and was recorded as what conntrack cannot tell."""
    gate.open([lease(hole(client.v4, server.v4, service.port))])
    made = stranger.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with Log(622) as log:
        for _ in range(20):
            ends = IP(src=str(client.v4), dst=str(server.v4))
            syn = TCP(sport=next(ports), dport=service.port, flags="S", chksum=0x1234)
            made.sendto(bytes(ends / syn), (str(server.v4), 0))
        assert log.prefixes() == []


@both_families
def test_syns_forged_between_the_ports_of_a_living_connection_are_few_lines(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service, family: int
) -> None:
    target, source = address(server, family), address(client, family)
    gate.open([lease(hole(source, target, service.port))])
    source_port = next(ports)
    with (
        Log(622) as log,
        client.connection(target, service.port, source_port=source_port) as stream,
    ):
        assert echoes(stream)
        layer, kind = (IP, af(family)) if family == 4 else (IPv6, af(family))
        made = stranger.new_socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW)
        ends = layer(src=str(source), dst=str(target))
        syn = bytes(ends / TCP(sport=source_port, dport=service.port, flags="S", seq=5))
        for _ in range(100):
            made.sendto(syn, (str(target), 0))
        time.sleep(0.2)
        assert len(log.prefixes()) <= 1 + 6
        assert echoes(stream)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(
    "options",
    [[], [(34, b"")], [(254, b"\xf9\x89")], [("MSS", 1460), ("SAckOK", b""), ("WScale", 7)]],
    ids=["data", "fastopen", "experimental", "more-options"],
)
def test_a_service_is_handed_nothing_before_the_handshake(
    gate: Gate, server: Host, client: Host, port: int, once: bool, options: list[object]
) -> None:
    """By a host that takes TCP Fast Open at every port and asks for no cookie."""
    server.sysctl(ipv4__tcp_fastopen=0x602)
    service = server.serve(port)
    gate.open([lease(hole(client.v4, server.v4, port, once=once))])
    made = client.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    ends = IP(src=str(client.v4), dst=str(server.v4))
    with half_open(client):
        syn = TCP(sport=next(ports), dport=port, flags="S", seq=5, options=options)
        made.sendto(bytes(ends / syn / b"x"), (str(server.v4), 0))
        time.sleep(0.2)
    try:
        assert (service.received, service.connections) == ([], 0)
        with client.connection(server.v4, port) as stream:
            assert echoes(stream) or echoes(stream)
    finally:
        service.stop()
        server.sysctl(ipv4__tcp_fastopen=1)
