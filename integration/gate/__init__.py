"""What the tests of the gate share: its host, those who want in, and what the kernel logs."""

import socket
import struct
from collections.abc import Iterable
from ipaddress import ip_address
from itertools import count, islice

import pytest

from integration.lab import Address, Host, Reach
from spa_protocol.access import Protocol
from spa_protocol.layout import DATAGRAM_SIZE, DEFAULT_PORT
from spa_server import netlink
from spa_server.firewall import elements, nftables
from spa_server.firewall.elements import HoleLease
from spa_server.firewall.plan import GatePlan
from spa_server.hole import Hole

MINUTE_MS = 60_000
ONLY_THIS_HOST = GatePlan(outer=())
TAG = b"tag-of-1"
OTHER_TAG = b"tag-of-2"
SECOND = 100  # from a host's first address to its second

DESTINATION_OPTIONS = (socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))

both_families = pytest.mark.parametrize("family", [4, 6])
ports = count(20_001)


def address(host: Host, family: int) -> Address:
    return host.v4 if family == 4 else host.v6


def af(family: int) -> int:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def hole(
    source: Address,
    target: Address,
    port: int,
    protocol: Protocol = Protocol.TCP,
    *,
    once: bool = False,
) -> Hole:
    return Hole(source, target, protocol, port, once)


def lease(of: Hole, timeout_ms: int = MINUTE_MS) -> HoleLease:
    return HoleLease(of, timeout_ms)


def reach(host: Host, target: Address, port: int, protocol: Protocol, **more: Address) -> Reach:
    probe = host.reach_tcp if protocol is Protocol.TCP else host.reach_udp
    return probe(target, port, source=more.get("source"))


class Log:
    """What the kernel copies to one NFLOG group of the caller's namespace."""

    def __init__(self, group: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
        netlink.enlarge_receive_buffer(self._socket, 1 << 24)
        self._socket.bind((0, 0))
        everything = struct.pack(">IBx", 0xFFFF, 2)
        bind = netlink.attribute(1, b"\x01") + netlink.attribute(2, everything)
        self._socket.send(
            netlink.message(4 << 8 | 1, 1, 1, struct.pack(">BBH", 0, 0, group) + bind)
        )

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def read(self, within_s: float = 0.1) -> list[tuple[str, bytes]]:
        """Prefix and packet, from the IP header, of all that comes until nothing comes."""
        found: list[tuple[str, bytes]] = []
        self._socket.settimeout(within_s)
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except TimeoutError:
                return found
            for each in netlink.messages(data):
                if each.kind == 4 << 8:
                    attributes = dict(netlink.attributes(each.payload[4:]))
                    prefix = attributes.get(10, b"").rstrip(b"\0").decode()
                    found.append((prefix, attributes.get(9, b"")))

    def prefixes(self, within_s: float = 0.1) -> list[str]:
        """The prefixes alone."""
        return [prefix for prefix, _ in self.read(within_s)]


def knock(
    host: Host,
    target: Address | str,
    payload: bytes = TAG.ljust(DATAGRAM_SIZE, b"."),
    *,
    port: int = DEFAULT_PORT,
    options: tuple[int, int, bytes] | None = None,
    times: int = 1,
) -> None:
    """Sends a datagram; `options` is one socket option."""
    destination = ip_address(target)
    with host.new_socket(af(destination.version), socket.SOCK_DGRAM) as sending:
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan")
        if options is not None:
            sending.setsockopt(*options)
        for _ in range(times):
            sending.sendto(payload, (str(target), port))


def drain(listening: socket.socket) -> int:
    received = 0
    while True:
        try:
            listening.recv(65536)
        except TimeoutError:
            return received
        received += 1


def fill(set_name: str, keys: Iterable[bytes]) -> None:
    """Adds elements of ours until the set is full or there are no more."""
    with netlink.NetlinkSocket(netlink.NETLINK_NETFILTER) as made:
        remaining = iter(keys)
        while some := [(key, MINUTE_MS) for key in islice(remaining, 500)]:
            requests = elements.add(set_name, some)
            answers = made.exchange(nftables.batch(requests, made.sequence(len(requests) + 2)))
            if netlink.failures_in(answers):
                requests = [each for one in some for each in elements.add(set_name, [one])]
                for request in requests:
                    made.exchange(nftables.batch([request], made.sequence(3)))
