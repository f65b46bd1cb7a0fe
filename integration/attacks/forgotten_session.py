"""A session that conntrack is made to forget goes on unseen, without hole and with a revoked key.

The attacker is alice, who was let in and will be revoked. She sends data and, right behind it, a
reset that bears the number before the data: conntrack takes it, for the host has not acknowledged
the data yet; the host does not, for it has them. Ten seconds later conntrack has forgotten the
session, and the record says that it has ended. What the host then sends, if only once more, makes
conntrack take the host for the one who began, and alice's packets for answers. She leaves something
unacknowledged, so the host does send.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from scapy.layers.inet import IP, TCP

from integration.attacks import Figure
from integration.lab import Host, Lab, wait_until
from integration.site import Site

_PORT: Final = 22
_SOURCE_PORT: Final = 31_000
_INTERACTIVE: Final = 30
_FORGETS_WITHIN_S: Final = 5.0


def run(lab: Lab) -> Iterator[Figure]:
    """What still reaches the service, and whether it is listed."""
    server, client = lab.host("server"), lab.host("client")
    server.sysctl(netfilter__nf_conntrack_tcp_timeout_close=1)
    site = Site(lab, server)
    alice = site.enrol("alice", "ops")
    site.apply_gate()
    site.start()
    listening = server.new_socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("", _PORT))
    listening.listen()
    alice.knock(client, f"tcp/{_PORT}")
    end = _ByHand(client, server)
    end.begin()
    accepted, _ = listening.accept()
    accepted.settimeout(0.5)
    end.make_forget(accepted)
    wait_until(
        lambda: f"sport={_SOURCE_PORT}" not in _entries(server) or not _is_of_client(server),
        within_s=_FORGETS_WITHIN_S,
        what="conntrack to forget",
    )
    site.keys("revoke", alice.key_id())
    site.close_everything()
    accepted.send(b"the service speaks")
    time.sleep(0.3)
    end.send("PA", b"unseen")
    came = b""
    with accepted, listening, suppress(TimeoutError):
        came = accepted.recv(64)
    yield Figure("bytes of a session that the record calls ended", len(came), not came)


def _entries(server: Host) -> str:
    return server.run(["conntrack", "-L", "-p", "tcp"]).stdout


def _is_of_client(server: Host) -> bool:
    """Whether conntrack still knows who began."""
    return any(
        line.index(f"sport={_SOURCE_PORT}") < line.index(f"sport={_PORT} ")
        for line in _entries(server).splitlines()
        if f"sport={_SOURCE_PORT}" in line
    )


class _ByHand:
    """Alice's end, segment by segment: her own kernel hears nothing."""

    def __init__(self, client: Host, server: Host) -> None:
        self._ends = IP(src=str(client.v4), dst=str(server.v4))
        self._target = str(server.v4)
        quiet = "table ip quiet { chain in { type filter hook input priority 0; "
        quiet += f"tcp sport {_PORT} tcp dport {_SOURCE_PORT} drop; }}; }}"
        client.run(["nft", "-f", "-"], text=quiet)
        self._heard = client.new_socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self._heard.settimeout(1)
        self._out = client.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._seq, self._theirs = 1000, 0

    def send(self, flags: str, data: bytes = b"") -> None:
        segment = TCP(sport=_SOURCE_PORT, dport=_PORT, flags=flags, seq=self._seq, ack=self._theirs)
        self._out.sendto(bytes(self._ends / segment / data), (self._target, 0))

    def begin(self) -> None:
        self.send("S")
        self._theirs = self._hear("SA").seq + 1
        self._seq += 1
        self.send("A")

    def make_forget(self, accepted: socket.socket) -> None:
        """Where a session is interactive, the host acknowledges with its answer, not at once."""
        for _ in range(_INTERACTIVE):
            self.send("PA", b"ask")
            self._seq += 3
            accepted.send(accepted.recv(64))
            self._theirs = self._hear("PA").seq + 3
            self.send("A")
        self.send("PA", b"data")
        self.send("R")
        self._seq += 4
        accepted.send(accepted.recv(64))

    def _hear(self, flags: str) -> TCP:
        while TCP not in (packet := IP(self._heard.recv(2048))) or packet[TCP].flags != flags:
            pass
        return packet[TCP]
