"""Where answers leave from: the knock port, which hears nothing.

The socket is bound to the knock port, so that an answer comes from where the knock went, and a
filter drops whatever would arrive at it: nothing is ever received here, and since there is a
socket, the kernel refuses nothing either (no ICMP port unreachable). Knocks are heard elsewhere, by
spa_server/capture/.

SO_REUSEADDR and SO_REUSEPORT are not set: with them, another program could bind the port beside it.
"""

import errno
import socket
import struct
from ipaddress import IPv4Address
from typing import Final

from spa_protocol.layout import Address
from spa_server import bpf

_IP_PKTINFO: Final = 8
_SO_LOCK_FILTER: Final = 44
_PKTINFO4: Final = struct.Struct("=i4s4x")  # in_pktinfo: interface, source, unused
_PKTINFO6: Final = struct.Struct("=16si")  # in6_pktinfo: source, interface

_HINTS: Final = {
    errno.EADDRINUSE: "another program is bound to it",
    errno.EACCES: "one under 1024 needs CAP_NET_BIND_SERVICE",
}


class AnswerError(Exception):
    """The knock port cannot be had. The message says why, for an operator."""


class AnswerSocket:
    """Sends from UDP `port`, over IPv4 and, where the kernel has it, IPv6. Raises AnswerError."""

    def __init__(self, port: int) -> None:
        self._sockets: dict[int, socket.socket] = {}
        try:
            self._sockets[4] = _deaf_socket(socket.AF_INET, port)
            if _has_ipv6():
                self._sockets[6] = _deaf_socket(socket.AF_INET6, port)
        except OSError as error:
            self.close()
            hint = _HINTS.get(error.errno or 0, "answers leave from there")
            raise AnswerError(f"udp port {port} cannot be had: {error.strerror}; {hint}") from None

    def close(self) -> None:
        """Gives the port back."""
        for sock in self._sockets.values():
            sock.close()

    def send(
        self,
        payload: bytes,
        *,
        source: Address,
        destination: tuple[Address, int],
        interface: int = 0,
    ) -> OSError | None:
        """Sends one datagram from an address of this host; what went wrong, or None.

        `interface` is the index of the one the knock came in by: heeded for link-local addresses,
        which mean nothing without it. An answer that cannot be sent is trouble for nobody but its
        receiver, so nothing is raised, and nothing waits.
        """
        address, port = destination
        sock = self._sockets.get(address.version)
        if sock is None or source.version != address.version:
            return OSError(errno.EAFNOSUPPORT, f"no way from {source} to {address}")
        scope = interface if address.is_link_local else 0
        where = (str(address), port) if address.version == 4 else (str(address), port, 0, scope)
        try:
            sock.sendmsg([payload], [_from(source, scope)], socket.MSG_DONTWAIT, where)
        except OSError as error:
            return error
        return None


def _from(source: Address, scope: int) -> tuple[int, int, bytes]:
    """The control message that sets a packet's source (ip(7), RFC 3542 section 6.1)."""
    if isinstance(source, IPv4Address):
        return socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, source.packed)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(source.packed, scope)


def _deaf_socket(family: int, port: int) -> socket.socket:
    """A UDP socket on every address. The filter stands, and is locked, before the port is bound."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        bpf.attach(sock, bpf.DROP_ALL)
        sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", port))
    except BaseException:
        sock.close()
        raise
    return sock


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True
