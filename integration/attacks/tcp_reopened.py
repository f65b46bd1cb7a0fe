"""Connections are opened again between the same ports, with no hole: TCP.

The attacker is alice, who was let in, and whose key is then revoked; or whoever can send from her
address. conntrack remembers a connection that is over for some seconds, and takes a SYN between the
same ports for a part of it. Three ways to make it remember:

- the host resets the connection, which a close with unread data is enough for;
- the handshake is never finished: a reset by the client, and one of the host's, leave an entry that
  was never established, and that a SYN is taken into all the same;
- a `once` hole is used, and the host resets what came through it.
"""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from scapy.layers.inet import IP, TCP

from integration.attacks import Figure
from integration.lab import Host, Lab, Reach, echoes, reached
from integration.site import Person, Site

ORDINARY, ONCE = 22, 7000
_AGAIN = 4
_AT_ONCE = struct.pack("ii", 1, 0)
_source_ports = count(31_001)


def run(lab: Lab) -> Iterator[Figure]:
    """How many connections came about that no hole was for."""
    server, client = lab.host("server"), lab.host("client")
    site = Site(lab, server)
    site.apply_gate()
    site.start()
    services = [Resetting(server, port) for port in (ORDINARY, ONCE)]
    ways = {
        f"the host reset the first one on tcp/{ORDINARY}": (ORDINARY, reset_by_host),
        f"the host reset the first one on tcp/{ONCE}, once": (ONCE, reset_by_host),
        f"the first was never finished on tcp/{ORDINARY}": (ORDINARY, never_finished),
        f"the first was never finished on tcp/{ONCE}, once": (ONCE, never_finished),
    }
    for number, (what, (port, prepare)) in enumerate(ways.items()):
        alice = site.enrol(f"alice{number}", "ops", "voter")
        source_port = next(_source_ports)
        alice.knock(client, f"tcp/{port}")
        prepare(client, server, port, source_port)
        _revoke(site, alice)
        opened = sum(_opens(client, server, port, source_port) for _ in range(_AGAIN))
        yield Figure(f"of {_AGAIN} connections without a hole opened: {what}", opened, opened == 0)
    for service in services:
        service.stop()


class Resetting:
    """A service that echoes once, and then resets the connection."""

    def __init__(self, host: Host, port: int) -> None:
        self._listener = host.new_socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("", port))
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            with stream, suppress(OSError):
                stream.settimeout(1)
                stream.send(stream.recv(64))
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)


def _revoke(site: Site, person: Person) -> None:
    site.keys("revoke", person.key_id())
    site.close_everything()


def _opens(client: Host, server: Host, port: int, source_port: int) -> bool:
    # The client's own end of the last one may still be closing.
    with (
        suppress(OSError),
        client.connection(server.v4, port, source_port=source_port) as stream,
    ):
        return reached(stream) is Reach.OPEN and echoes(stream)
    return False


def reset_by_host(client: Host, server: Host, port: int, source_port: int) -> None:
    """A connection comes about, and the host resets it. Raises AssertionError if it did not."""
    assert _opens(client, server, port, source_port)
    time.sleep(0.1)


def never_finished(client: Host, server: Host, port: int, source_port: int) -> None:
    """SYN, SYN-ACK; the client resets, then sends a segment that the host resets in its turn.

    The last reset that conntrack saw is the host's: a SYN does not make it forget the entry. The
    client's own kernel must not see the answers, or it would reset too.
    """
    quiet = "table ip quiet\nadd chain ip quiet in { type filter hook input priority 0; }\n"
    quiet += f"add rule ip quiet in tcp sport {port} tcp dport {source_port} drop\n"
    client.run(["nft", "-f", "-"], text=quiet)
    heard = client.new_socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sending = client.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    heard.settimeout(1)

    def send(flags: str, sequence: int, acknowledged: int = 0) -> None:
        segment = IP(src=str(client.v4), dst=str(server.v4)) / TCP(
            sport=source_port, dport=port, flags=flags, seq=sequence, ack=acknowledged
        )
        sending.sendto(bytes(IP(bytes(segment))[TCP]), (str(server.v4), 0))

    def answer(flags: str) -> TCP:
        while True:
            packet = IP(heard.recv(2048))
            if TCP in packet and (packet[TCP].sport, packet[TCP].dport) == (port, source_port):
                assert packet[TCP].flags == flags, packet.summary()
                return packet[TCP]

    send("S", 1000)
    theirs = answer("SA").seq
    send("R", 1001)
    send("A", 1001, theirs + 1)
    answer("R")
    client.run(["nft", "delete", "table", "ip", "quiet"])
    for each in (heard, sending):
        each.close()
