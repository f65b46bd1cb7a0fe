"""Associations are opened again between the same ports, with no hole: SCTP.

The attacker is alice, who was let in, and whose hole is then closed. conntrack remembers the
association, and takes what opens another one between the same ports for a part of it: an INIT, and
the COOKIE ECHO by which the association really comes about, as often as one cookie is sent. An
association that is aborted before it stands is never called assured, and is remembered too.

This kernel may have no SCTP: both ends are packets made by hand. What counts is what arrives.
"""

import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from scapy.layers.inet import IP
from scapy.layers.sctp import (
    SCTP,
    SCTPChunkAbort,
    SCTPChunkCookieAck,
    SCTPChunkCookieEcho,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkParamStateCookie,
)
from scapy.packet import Packet

from integration.attacks import Figure
from integration.lab import Host, Lab
from integration.site import Site

ORDINARY, ONCE = 2905, 2906
_AGAIN = 12
_OURS, _THEIRS = 0x11111111, 0x22222222  # verification tags
_HEARD_WITHIN_S = 0.3
_source_ports = count(32_001)

POLICY = f"""
[services]
signalling = "sctp/{ORDINARY}"
one = "sctp/{ONCE}"

[roles.ops]
[[roles.ops.allow]]
services = ["signalling"]
lifetime = "1m"
[[roles.ops.allow]]
services = ["one"]
lifetime = "1m"
once = true
"""


def run(lab: Lab) -> Iterator[Figure]:
    """How much arrived that may open an association, and that no hole was for."""
    server, client = lab.host("server"), lab.host("client")
    site = Site(lab, server, POLICY)
    alice = site.enrol("alice", "ops")
    site.apply_gate()
    site.start()
    for port in (ORDINARY, ONCE):
        alice.knock(client, f"sctp/{port}")
        ends = Ends(server, client, port)
        assert ends.arrives(INIT)
        ends.answer(INIT_ACK)
        assert ends.arrives(COOKIE_ECHO), "the handshake itself"
        ends.answer(COOKIE_ACK)
        site.close_everything()
        for what, packet in (("INIT", INIT), ("COOKIE ECHO", COOKIE_ECHO)):
            arrived = ends.arrive(packet, _AGAIN)
            yield Figure(
                f"of {_AGAIN} x {what} after an association on sctp/{port}", arrived, arrived == 0
            )

        alice.knock(client, f"sctp/{port}")
        ends = Ends(server, client, port)
        assert ends.arrives(INIT)
        ends.answer(INIT_ACK)
        site.close_everything()
        ends.arrives(ABORT)
        for what, packet in (("INIT", INIT), ("COOKIE ECHO", COOKIE_ECHO)):
            arrived = ends.arrive(packet, _AGAIN)
            yield Figure(
                f"of {_AGAIN} x {what} after one that was aborted on sctp/{port}",
                arrived,
                arrived == 0,
            )


INIT = SCTP(tag=0) / SCTPChunkInit(init_tag=_OURS, a_rwnd=65_535, n_in_streams=1, n_out_streams=1)
INIT_ACK = SCTP(tag=_OURS) / SCTPChunkInitAck(
    init_tag=_THEIRS,
    a_rwnd=65_535,
    n_in_streams=1,
    n_out_streams=1,
    params=[SCTPChunkParamStateCookie(cookie=b"cookie-of-1")],
)
COOKIE_ECHO = SCTP(tag=_THEIRS) / SCTPChunkCookieEcho(cookie=b"cookie-of-1")
COOKIE_ACK = SCTP(tag=_OURS) / SCTPChunkCookieAck()
ABORT = SCTP(tag=_THEIRS) / SCTPChunkAbort()


class Ends:
    """The client's end and the host's, between one pair of ports."""

    def __init__(self, server: Host, client: Host, port: int) -> None:
        self._server, self._client = server, client
        self._ports = next(_source_ports), port
        self._at_server, self._at_client = (
            host.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
            for host in (server, client)
        )
        self._at_server.settimeout(_HEARD_WITHIN_S)

    def arrives(self, packet: Packet) -> bool:
        """Whether the host hears it from the client."""
        return self.arrive(packet, 1) == 1

    def arrive(self, packet: Packet, times: int) -> int:
        """How often the host hears it, of so many times."""
        source, port = self._ports
        for _ in range(times):
            self._send(self._at_client, packet, source, port, self._server)
        arrived = 0
        with suppress(TimeoutError):
            while True:
                heard = IP(self._at_server.recv(4096))[SCTP]
                arrived += (heard.sport, heard.dport) == (source, port)
        return arrived

    def answer(self, packet: Packet) -> None:
        """The host sends it to the client."""
        source, port = self._ports
        self._send(self._at_server, packet, port, source, self._client)

    @staticmethod
    def _send(by: socket.socket, packet: Packet, sport: int, dport: int, to: Host) -> None:
        made = packet.copy()
        made.sport, made.dport = sport, dport
        by.sendto(bytes(made), (str(to.v4), 0))
