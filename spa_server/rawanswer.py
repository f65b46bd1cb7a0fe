"""Answers to knocks that came in a ping or a SYN, in what the network expects to come back.

    icmp       an echo reply with the sealed reply as its data
    tcp-syn    a reset, as a closed port sends it, with the sealed reply as its data, which
               RFC 1122 section 4.2.2.12 allows. A SYN-ACK would have the client's kernel, which
               knows nothing of the SYN, answer by a reset of its own.

Whatever follows connections on the way (a NAT, a firewall) lets both through to whoever sent the
ping or the SYN. They leave by raw sockets, which hear nothing. CAP_NET_RAW is needed to open them.
Their priority tells the gate to keep them from conntrack, which has not seen what they answer.
docs/decisions/0013-carriers.md says why.
"""

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from spa_protocol.carrier import TCP_HEADER_SIZE, Carrier, Kind
from spa_protocol.layout import Address
from spa_server import bpf
from spa_server.capture.datagram import Datagram
from spa_server.firewall.gate import RAW_ANSWER_PRIORITY

_IPV6_CHECKSUM: Final = 7
_ECHO_REPLIES: Final = {4: 0, 6: 129}
_RST_ACK: Final = 0x14
_SYN_LENGTH: Final = 1  # in the space of sequence numbers
_CHECKSUM_OF_TCP: Final = 16
_ECHO = struct.Struct(">BBHHH")
_TCP = struct.Struct(">HHIIBBHHH")
_PROTOCOLS: Final = {
    (Kind.ICMP, 4): (socket.AF_INET, socket.IPPROTO_ICMP),
    (Kind.ICMP, 6): (socket.AF_INET6, socket.IPPROTO_ICMPV6),
    (Kind.TCP_SYN, 4): (socket.AF_INET, socket.IPPROTO_TCP),
    (Kind.TCP_SYN, 6): (socket.AF_INET6, socket.IPPROTO_TCP),
}


class RawSockets:
    """One deaf socket for each raw carrier that is configured, and each family the kernel has.

    Raises OSError, PermissionError without CAP_NET_RAW.
    """

    def __init__(self, carriers: Iterable[Carrier]) -> None:
        kinds = {carrier.kind for carrier in carriers}
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        try:
            for (kind, version), (family, protocol) in _PROTOCOLS.items():
                if kind in kinds and (made := _deaf_socket(family, protocol)) is not None:
                    self._sockets[kind, version] = made
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes them."""
        for sock in self._sockets.values():
            sock.close()

    def find(self, to: Datagram) -> socket.socket | None:
        """The socket that an answer to this datagram leaves by, if there is one."""
        return self._sockets.get((to.carrier, to.source.version))


def packet(payload: bytes, to: Datagram) -> bytes:
    """What answers a datagram that came by a raw carrier: a header and the payload."""
    return _reset(payload, to) if to.carrier == Kind.TCP_SYN else _echo_reply(payload, to)


def _echo_reply(payload: bytes, to: Datagram) -> bytes:
    """With its checksum for IPv4; the kernel writes that of ICMPv6 (RFC 3542 section 3.1)."""
    kind = _ECHO_REPLIES[to.source.version]
    checksum = 0
    if to.source.version == 4:
        checksum = _checksum(_ECHO.pack(kind, 0, 0, to.source_port, to.sequence) + payload)
    return _ECHO.pack(kind, 0, checksum, to.source_port, to.sequence) + payload


def _reset(payload: bytes, to: Datagram) -> bytes:
    """As RFC 9293 section 3.10.7.1 answers a SYN; the kernel writes the checksum over IPv6."""
    acknowledged = (to.sequence + _SYN_LENGTH + len(to.payload)) % 2**32
    ports = (to.target_port, to.source_port)
    words = TCP_HEADER_SIZE // 4 << 4
    segment = _TCP.pack(*ports, 0, acknowledged, words, _RST_ACK, 0, 0, 0) + payload
    if to.source.version == 6:
        return segment
    checksum = _checksum(_pseudo_header(to.target, to.source, len(segment)) + segment)
    return _TCP.pack(*ports, 0, acknowledged, words, _RST_ACK, 0, checksum, 0) + payload


def _pseudo_header(source: Address, target: Address, length: int) -> bytes:
    return source.packed + target.packed + struct.pack(">HH", socket.IPPROTO_TCP, length)


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    words = struct.unpack(f">{len(data) // 2 + len(data) % 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _deaf_socket(family: int, protocol: int) -> socket.socket | None:
    """None where the kernel has not got the family. Raises OSError."""
    try:
        sock = socket.socket(family, socket.SOCK_RAW, protocol)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        bpf.deafen(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, RAW_ANSWER_PRIORITY)
        if (family, protocol) == (socket.AF_INET6, socket.IPPROTO_TCP):
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _CHECKSUM_OF_TCP)
    except BaseException:
        sock.close()
        raise
    return sock
