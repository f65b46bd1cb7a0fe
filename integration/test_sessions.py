"""Open sessions: adopted before a gate comes, severed when a hole ends. The kernel is real."""

import asyncio
import select
import socket
import sys
import threading
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

import pytest

from integration.lab import Host, Lab
from spa_protocol.access import Protocol
from spa_protocol.layout import Address
from spa_server.flow import Flow
from spa_server.hole import Hole
from spa_server.netlink import NetlinkSocket
from spa_server.sessions import SessionsError, adopt_established, sever

GATE = """
table inet gate {
  chain judge {
    type filter hook prerouting priority -150
    iif lo accept
    meta l4proto != { tcp, udp } accept
    ct state established accept
    counter drop
  }
}
"""
REDIRECT = """
table ip nat {
  chain prerouting {
    type nat hook prerouting priority -100
    tcp dport 80 redirect to :7001
  }
}
"""
FAMILIES = ["ipv4", "ipv6", "ipv4 on an ipv6 socket"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Both ends of one session between the server and the client."""

    server: socket.socket
    client: socket.socket

    def passes(self, data: bytes = b"still there", within_s: float = 1.0) -> tuple[bool, bool]:
        """Whether data gets to the server, and to the client."""
        return carries(self.client, self.server, data, within_s), carries(
            self.server, self.client, data, within_s
        )


def carries(sender: socket.socket, receiver: socket.socket, data: bytes, within_s: float) -> bool:
    sender.send(data)
    receiver.settimeout(within_s)
    try:
        return receiver.recv(len(data)) == data
    except TimeoutError:
        return False


@dataclass(frozen=True, slots=True)
class Street:
    """A server on which conntrack has never been on, and two clients."""

    lab: Lab
    server: Host
    client: Host
    other: Host

    def tcp(self, kind: str, port: int, client: Host | None = None) -> Pair:
        """A session that a client opened."""
        opener, server = client or self.client, self.server
        with self.listener(server, kind, port) as listener:
            end = connected(opener, server.v6 if kind == "ipv6" else server.v4, port)
            accepted, _ = listener.accept()
        self.lab.at_end(accepted.close)
        return Pair(accepted, end)

    def listener(self, host: Host, kind: str, port: int) -> socket.socket:
        family = socket.AF_INET if kind == "ipv4" else socket.AF_INET6
        listener = host.new_socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, kind == "ipv6")
        listener.bind(("", port))
        listener.listen()
        return listener

    def udp(self, port: int) -> Pair:
        """Two UDP sockets that are connected to each other."""
        ends = [host.new_socket(socket.AF_INET, socket.SOCK_DGRAM) for host in self.hosts]
        for end, host in zip(ends, self.hosts, strict=True):
            end.bind((str(host.v4), port if host is self.server else 0))
        ends[0].connect(ends[1].getsockname())
        ends[1].connect(ends[0].getsockname())
        return Pair(*ends)

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.server, self.client

    def close_gate(self) -> None:
        self.server.run(["nft", "-f", "-"], text=GATE)

    def adopt(self) -> int:
        with self.server.inside():
            return adopt_established()

    def sever(self, *holes: Hole) -> int:
        with self.server.inside():
            return len(sever(holes, lambda _flow: False))

    def hole(self, port: int, kind: str = "ipv4", protocol: Protocol = Protocol.TCP) -> Hole:
        if kind == "ipv6":
            return Hole(self.client.v6, self.server.v6, protocol, port)
        return Hole(self.client.v4, self.server.v4, protocol, port)

    def conntrack(self) -> list[str]:
        return self.server.run(["conntrack", "-L"]).stdout.splitlines()


def connected(host: Host, target: Address, port: int) -> socket.socket:
    family = socket.AF_INET6 if target.version == 6 else socket.AF_INET
    end = host.new_socket(family, socket.SOCK_STREAM)
    end.connect((str(target), port))
    return end


@pytest.fixture
def street(lab: Lab) -> Street:
    return Street(lab, lab.host("server"), lab.host("client"), lab.host("other"))


class TestAdoption:
    @pytest.mark.parametrize("kind", FAMILIES)
    def test_an_idle_session_goes_on_both_ways(self, street: Street, kind: str) -> None:
        pair = street.tcp(kind, 7001)
        assert street.conntrack() == []
        assert street.adopt() == 1
        street.close_gate()
        assert pair.passes() == (True, True)

    @pytest.mark.parametrize("kind", FAMILIES)
    def test_without_it_the_peer_is_cut_off(self, street: Street, kind: str) -> None:
        pair = street.tcp(kind, 7001)
        street.close_gate()
        assert not carries(pair.client, pair.server, b"hello", 0.5)

    def test_a_session_that_the_server_opened(self, street: Street) -> None:
        with street.listener(street.client, "ipv4", 7001) as listener:
            ours = connected(street.server, street.client.v4, 7001)
            theirs, _ = listener.accept()
        assert street.adopt() == 1
        (entry,) = street.conntrack()
        assert f"ESTABLISHED src={street.server.v4} dst={street.client.v4} " in entry
        street.close_gate()
        assert Pair(ours, theirs).passes() == (True, True)
        theirs.close()

    def test_the_entry_is_what_conntrack_would_have_made(self, street: Street) -> None:
        with street.listener(street.server, "ipv4", 7001) as listener:
            end = connected(street.client, street.server.v4, 7001)
            with listener.accept()[0]:
                assert street.adopt() == 1
                port = end.getsockname()[1]
                (entry,) = street.conntrack()
        client, server = street.client.v4, street.server.v4
        there = f"src={client} dst={server} sport={port} dport=7001"
        back = f"src={server} dst={client} sport=7001 dport={port}"
        assert f"ESTABLISHED {there} {back} [ASSURED]" in entry
        assert int(entry.split()[2]) > 431_900

    def test_windows_that_nobody_saw_agreed_on(self, lab: Lab) -> None:
        """A slow router in between, so that more is under way than an unscaled window allows."""
        server, router = lab.host("server"), lab.host("router", "lan", "far")
        street = Street(lab, server, lab.host("client", "far"), lab.host("other"))
        router.forward()
        for interface in ("lan", "far"):
            slow = ["tbf", "rate", "400mbit", "burst", "128kb", "limit", "8mb"]
            router.run(["tc", "qdisc", "add", "dev", interface, "root", *slow])
        server.default_route(router)
        street.client.default_route(router, "far")
        pair = street.tcp("ipv4", 7001)
        street.adopt()
        street.close_gate()
        for sender, receiver in ((pair.client, pair.server), (pair.server, pair.client)):
            assert moved(sender, receiver, 16 * 1024 * 1024)

    def test_a_session_closed_on_one_side(self, street: Street) -> None:
        pair = street.tcp("ipv4", 7001)
        pair.server.shutdown(socket.SHUT_WR)
        assert pair.client.recv(1) == b""
        assert street.adopt() == 1
        street.close_gate()
        assert carries(pair.client, pair.server, b"the rest", 1.0)

    def test_connected_udp(self, street: Street) -> None:
        pair = street.udp(7001)
        assert street.adopt() == 1
        street.close_gate()
        assert pair.passes() == (True, True)

    def test_connected_udp_without_it(self, street: Street) -> None:
        pair = street.udp(7001)
        street.close_gate()
        assert not carries(pair.client, pair.server, b"hello", 0.5)

    def test_what_conntrack_knows_is_left_alone(self, street: Street) -> None:
        street.server.run(["nft", "-f", "-"], text=GATE.replace("counter drop", "accept"))
        pair = street.tcp("ipv4", 7001)
        before = without_timeouts(street.conntrack())
        assert len(before) == 1
        assert street.adopt() == 0
        assert without_timeouts(street.conntrack()) == before
        assert pair.passes() == (True, True)

    def test_what_is_translated_is_known(self, street: Street) -> None:
        """The socket's own addresses are not those that the session began with."""
        street.server.run(["nft", "-f", "-"], text=REDIRECT)
        with street.listener(street.server, "ipv4", 7001) as listener:
            end = connected(street.client, street.server.v4, 80)
            accepted, _ = listener.accept()
        assert street.adopt() == 0
        street.close_gate()
        assert Pair(accepted, end).passes() == (True, True)
        accepted.close()

    def test_twice_and_before_and_after(self, street: Street) -> None:
        first = street.tcp("ipv4", 7001)
        assert (street.adopt(), street.adopt()) == (1, 0)
        second = street.tcp("ipv6", 7002)
        street.close_gate()
        assert street.adopt() == 1
        assert first.passes() == (True, True)
        assert second.passes() == (True, True)

    def test_loopback_is_left_alone(self, street: Street) -> None:
        with street.listener(street.server, "ipv4 on an ipv6 socket", 7001) as listener:
            end = street.server.new_socket(socket.AF_INET, socket.SOCK_STREAM)
            end.connect(("127.0.0.1", 7001))
            with listener.accept()[0]:
                assert street.adopt() == 0


class TestSever:
    @pytest.mark.parametrize("kind", FAMILIES)
    def test_the_session_ends_at_once_and_the_peer_is_told(self, street: Street, kind: str) -> None:
        pair = street.tcp(kind, 7001)
        assert street.sever(street.hole(7001, kind)) == 1
        assert sockets(street.server) == []
        with pytest.raises(ConnectionAbortedError):
            pair.server.recv(1)
        pair.client.settimeout(1)
        with pytest.raises(ConnectionResetError):
            pair.client.recv(1)

    def test_no_other_session_does(self, street: Street) -> None:
        street.server.add_address("10.77.1.100/24")
        kinds = ("ipv4", "ipv6")
        others = [street.tcp(kind, 7002) for kind in kinds]
        others += [street.tcp(kind, 7001, street.other) for kind in kinds]
        severed = [street.tcp(kind, 7001) for kind in kinds]
        with street.listener(street.client, "ipv4", 7001) as listener:
            asked = connected(street.server, street.client.v4, 7001)
            others.append(Pair(asked, listener.accept()[0]))
        elsewhere = Hole(street.client.v4, IPv4Address("10.77.1.100"), Protocol.TCP, 7001)
        assert street.sever(elsewhere) == 0
        assert street.sever(*(street.hole(7001, kind) for kind in kinds)) == 2
        assert [pair.passes() for pair in others] == [(True, True)] * 5
        assert all(ended(pair.client) for pair in severed)
        others[-1].client.close()

    @pytest.mark.alone
    def test_every_session_of_a_hole(self, street: Street) -> None:
        pairs = [street.tcp("ipv4", 7001) for _ in range(20)]
        started = time.monotonic()
        assert street.sever(street.hole(7001)) == 20
        assert time.monotonic() - started < 0.5
        assert all(ended(pair.client) for pair in pairs)

    def test_a_session_that_may_live_does(self, street: Street) -> None:
        first, second = street.tcp("ipv4", 7001), street.tcp("ipv4", 7001)
        spared = Flow(*_at(first), street.server.v4, Protocol.TCP, 7001)
        with street.server.inside():
            severed = sever([street.hole(7001)], lambda flow: flow == spared)
        assert severed == [Flow(*_at(second), street.server.v4, Protocol.TCP, 7001)]
        assert first.passes() == (True, True)
        assert ended(second.client)

    def test_connected_udp(self, street: Street) -> None:
        pair, other = street.udp(7001), street.udp(7002)
        hole = street.hole(7001, protocol=Protocol.UDP)
        assert street.sever(street.hole(7001)) == 0
        assert street.sever(hole) == 1
        with pytest.raises(ConnectionAbortedError):
            pair.server.recv(1)
        assert other.passes() == (True, True)

    def test_nothing_to_sever(self, street: Street) -> None:
        assert street.sever() == 0
        assert street.sever(street.hole(7001), street.hole(7001, protocol=Protocol.SCTP)) == 0
        listener = street.listener(street.server, "ipv4", 7001)
        assert street.sever(street.hole(7001)) == 0
        assert connected(street.client, street.server.v4, 7001)
        listener.close()

    def test_inside_a_running_event_loop(self, street: Street) -> None:
        street.tcp("ipv4", 7001)

        async def daemon() -> tuple[int, int]:
            return street.adopt(), street.sever(street.hole(7001))

        assert asyncio.run(daemon()) == (1, 1)


class TestCapability:
    NOBODY = """
from ipaddress import ip_address
from spa_protocol.access import Protocol
from spa_server.hole import Hole
from spa_server.sessions import SessionsError, adopt_established, sever
held = [Hole(CLIENT, SERVER, Protocol.TCP, 7001)]
for act in adopt_established, lambda: len(sever(held, lambda flow: False)):
    try:
        print(act())
    except SessionsError as error:
        print(error)
"""

    @pytest.mark.parametrize(
        ("capabilities", "printed"),
        [
            ("+net_admin", "1\n1\n"),
            (
                "-all",
                "an open session cannot be made known to conntrack; CAP_NET_ADMIN is needed\n"
                "a session cannot be severed; CAP_NET_ADMIN is needed\n",
            ),
        ],
    )
    def test_one_is_enough_and_none_is_not(
        self, street: Street, capabilities: str, printed: str
    ) -> None:
        street.tcp("ipv4", 7001)
        code = self.NOBODY.replace("CLIENT", f"ip_address('{street.client.v4}')")
        code = code.replace("SERVER", f"ip_address('{street.server.v4}')")
        setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        setpriv += [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
        command = [*setpriv, sys.executable, "-c"]
        if street.server.run([*command, "import spa_server"], check=False).returncode:
            pytest.skip("this Python is not for every user of this machine")
        assert street.server.run([*command, code]).stdout == printed


def test_a_full_table_is_said(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """nf_conntrack_max is the whole machine's, so the kernel's answer is given here."""
    street.tcp("ipv4", 7001)
    monkeypatch.setattr(NetlinkSocket, "request", lambda *_: 12)
    with pytest.raises(SessionsError, match=r"^conntrack takes no more entries; raise net\."):
        street.adopt()


def _at(pair: Pair) -> tuple[Address, int]:
    host, port = pair.client.getsockname()[:2]
    return ip_address(host), port


def sockets(host: Host) -> list[str]:
    """What ss shows but listeners."""
    return host.run(["ss", "-Htun", "state", "connected"]).stdout.splitlines()


def without_timeouts(entries: list[str]) -> list[list[str]]:
    return [[word for at, word in enumerate(entry.split()) if at != 2] for entry in entries]


def ended(end: socket.socket) -> bool:
    """Whether a peer was reset."""
    end.settimeout(1)
    try:
        end.recv(1)
    except ConnectionResetError:
        return True
    return False


def moved(sender: socket.socket, receiver: socket.socket, size: int) -> bool:
    """Whether a lot of data gets there, faster than a window that is too small would let it."""
    sender.settimeout(5)
    receiver.settimeout(5)
    sending = threading.Thread(target=sender.sendall, args=(bytes(size),))
    sending.start()
    got = 0
    while got < size and select.select([receiver], [], [], 2)[0]:
        got += len(receiver.recv(1 << 20))
    sending.join()
    return got == size
