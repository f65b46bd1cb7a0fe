"""What an IP packet carries: a UDP datagram, an ICMP echo request, a TCP SYN with data.

Strictly read, by RFC 791, RFC 8200, RFC 768, RFC 792, RFC 4443 and RFC 9293.

What is not heard:

1.  a packet shorter than one of its headers claims,
2.  an IPv4 fragment: only a whole datagram has its ports and its length in one place,
3.  an IPv6 packet whose next header is not the carrier's own: no extension header is walked,
4.  an IPv6 packet with an IPv4 address written into it (::ffff:0:0/96), which no host may send,
5.  a UDP length under 8, or beyond the IP payload,
6.  of ICMP anything but an echo request of code 0, of TCP anything but a SYN without options.

The payload ends where the UDP length says, else where the IP packet does, so that padding behind it
(an Ethernet frame has at least 46 bytes) is no part of it. Checksums are not looked at: a knock
carries its own proof.
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import msgspec

from spa_protocol.carrier import ECHO_HEADER_SIZE, TCP_HEADER_SIZE, Kind
from spa_protocol.layout import Address

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
ECHO_REQUESTS: Final = {ICMP: 8, ICMPV6: 128}
SYN: Final = 0x02
OPENING: Final = 0x17  # fin, syn, rst and ack: of a connection's first segment only syn is set
_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_UDP_HEADER: Final = 8
_FRAGMENT: Final = 0x3FFF  # more fragments, and the offset
_MAPPED: Final = bytes(10) + b"\xff\xff"
_IPV4 = struct.Struct(">BxHxxHxBxx4s4s")
_IPV6 = struct.Struct(">xxxxHBx16s16s")
_UDP = struct.Struct(">HHH")
_ECHO = struct.Struct(">BBxxHH")
_TCP = struct.Struct(">HHIxxxxBB")
_ICMP_OF: Final = {4: ICMP, 6: ICMPV6}


class IpPacket(msgspec.Struct, frozen=True):
    """A whole IP packet's addresses, its protocol number and the bytes behind its IP header."""

    source: Address
    target: Address
    protocol: int
    payload: bytes


class Carried(msgspec.Struct, frozen=True):
    """What one carrier brought. For the ports and `sequence` of ICMP and TCP see `Datagram`."""

    kind: Kind
    source: Address
    source_port: int
    target: Address
    target_port: int
    payload: bytes
    sequence: int = 0


def parse_ip(packet: bytes) -> IpPacket | None:
    """The IP packet that these bytes begin with, or None by rules 1, 2 and 4. Never raises.

    For IPv6 the protocol is the first next header, which may be that of an extension header.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _parse_ipv4(packet)
    return _parse_ipv6(packet) if version == 6 else None


def parse_carried(packet: bytes) -> Carried | None:
    """What an IP packet carries, whichever carrier it is, or None by rules 1 to 6. Never raises."""
    outer = parse_ip(packet)
    if outer is None:
        return None
    if outer.protocol == UDP:
        return _parse_udp(outer)
    if outer.protocol == TCP:
        return _parse_syn(outer)
    return _parse_echo(outer) if outer.protocol == _ICMP_OF[outer.source.version] else None


def _parse_udp(outer: IpPacket) -> Carried | None:
    inner = outer.payload
    if len(inner) < _UDP_HEADER:
        return None
    source_port, target_port, length = _UDP.unpack_from(inner)
    if not _UDP_HEADER <= length <= len(inner):
        return None
    payload = inner[_UDP_HEADER:length]
    return Carried(Kind.UDP, outer.source, source_port, outer.target, target_port, payload)


def _parse_echo(outer: IpPacket) -> Carried | None:
    if len(outer.payload) < ECHO_HEADER_SIZE:
        return None
    kind, code, identifier, sequence = _ECHO.unpack_from(outer.payload)
    if (kind, code) != (ECHO_REQUESTS[outer.protocol], 0):
        return None
    payload = outer.payload[ECHO_HEADER_SIZE:]
    return Carried(Kind.ICMP, outer.source, identifier, outer.target, 0, payload, sequence)


def _parse_syn(outer: IpPacket) -> Carried | None:
    if len(outer.payload) < TCP_HEADER_SIZE:
        return None
    source_port, target_port, sequence, offset, flags = _TCP.unpack_from(outer.payload)
    if flags & OPENING != SYN or offset >> 4 != TCP_HEADER_SIZE // 4:
        return None
    return Carried(
        Kind.TCP_SYN,
        outer.source,
        source_port,
        outer.target,
        target_port,
        outer.payload[TCP_HEADER_SIZE:],
        sequence,
    )


def _parse_ipv4(packet: bytes) -> IpPacket | None:
    if len(packet) < _IPV4_HEADER:
        return None
    first, total, fragment, protocol, source, target = _IPV4.unpack_from(packet)
    begin = (first & 0x0F) * 4
    if not _IPV4_HEADER <= begin <= total <= len(packet) or fragment & _FRAGMENT:
        return None
    return IpPacket(IPv4Address(source), IPv4Address(target), protocol, packet[begin:total])


def _parse_ipv6(packet: bytes) -> IpPacket | None:
    if len(packet) < _IPV6_HEADER:
        return None
    length, protocol, source, target = _IPV6.unpack_from(packet)
    end = _IPV6_HEADER + length
    if end > len(packet) or _MAPPED in (source[:12], target[:12]):
        return None
    return IpPacket(IPv6Address(source), IPv6Address(target), protocol, packet[_IPV6_HEADER:end])
