"""Who listens on this host: sockets that wait for anybody, through sock_diag (linux/inet_diag.h).

TCP and SCTP sockets that listen, UDP sockets that are bound and not connected. Sockets that only
this host itself can reach are left out.
"""

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from spa_protocol.access import Access, Protocol
from spa_protocol.layout import Address, unmapped
from spa_server.netlink import NETLINK_SOCK_DIAG, Message, NetlinkError, NetlinkSocket

_SOCK_DIAG_BY_FAMILY: Final = 20
_LOOPBACK_INDEX: Final = 1
# TCP_LISTEN; for UDP TCP_CLOSE, which every socket is in that is not connected.
_STATES: Final = {Protocol.TCP: 1 << 10, Protocol.UDP: 1 << 7, Protocol.SCTP: 1 << 10}
# There once the module is loaded. To ask for SCTP's sockets before would load it.
_SCTP: Final = Path("/proc/net/sctp")

_REQUEST: Final = struct.Struct("=BBxxI48x")
# inet_diag_msg: family, local port and address in network order, then interface, user and inode
_ANSWER: Final = struct.Struct(">B3xH2x16s16x")
_REST: Final = struct.Struct("=I20xII")
_SIZE: Final = _ANSWER.size + _REST.size


@dataclass(frozen=True, slots=True)
class Listener:
    """One socket. `inode` is what its processes name it by; 0 for one of the kernel's own."""

    protocol: Protocol
    address: Address
    port: int
    uid: int
    inode: int

    @property
    def access(self) -> Access:
        """Its protocol and port."""
        return Access(self.protocol, self.port, self.port)


def read_listeners() -> list[Listener]:
    """The sockets of the caller's network namespace. Raises NetlinkError."""
    protocols = [p for p in Protocol if p is not Protocol.SCTP or _SCTP.exists()]
    with NetlinkSocket(NETLINK_SOCK_DIAG) as diag:
        return [
            listener
            for protocol in protocols
            for family in (socket.AF_INET, socket.AF_INET6)
            for answer in _sockets(diag, protocol, family)
            if (listener := _listener(protocol, answer)) is not None
        ]


def _sockets(diag: NetlinkSocket, protocol: Protocol, family: int) -> list[Message]:
    request = _REQUEST.pack(family, protocol, _STATES[protocol])
    try:
        return diag.dump(_SOCK_DIAG_BY_FAMILY, request)
    except NetlinkError as error:
        if error.errno == errno.ENOENT and protocol is Protocol.SCTP:
            return []  # the kernel knows the protocol, and cannot show its sockets
        raise


def _listener(protocol: Protocol, answer: Message) -> Listener | None:
    """None for a socket without a port, and for one that others than this host cannot reach."""
    if len(answer.payload) < _SIZE:
        return None
    family, port, raw = _ANSWER.unpack_from(answer.payload)
    interface, uid, inode = _REST.unpack_from(answer.payload, _ANSWER.size)
    address: Address = (
        IPv4Address(raw[:4]) if family == socket.AF_INET else unmapped(IPv6Address(raw))
    )
    if port == 0 or address.is_loopback or interface == _LOOPBACK_INDEX:
        return None
    return Listener(protocol, address, port, uid, inode)
