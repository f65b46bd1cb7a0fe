"""The UDP datagram inside an IP packet: RFC 791, RFC 8200 and RFC 768, strictly read.

What is not heard:

1.  a packet shorter than one of its headers claims,
2.  an IPv4 fragment: only a whole datagram has its ports and its length in one place,
3.  an IPv6 packet whose next header is not UDP itself: no extension header is walked,
4.  an IPv6 packet with an IPv4 address written into it (::ffff:0:0/96), which no host may send,
5.  a UDP length under 8, or beyond the IP payload.

The payload ends where the UDP length says, so that padding behind it (an Ethernet frame has at
least 46 bytes) is no part of it. Checksums are not looked at: a knock carries its own proof.
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import msgspec

from spa_protocol.layout import Address

UDP: Final = 17
_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_UDP_HEADER: Final = 8
_FRAGMENT: Final = 0x3FFF  # more fragments, and the offset
_MAPPED: Final = bytes(10) + b"\xff\xff"
_IPV4 = struct.Struct(">BxHxxHxBxx4s4s")
_IPV6 = struct.Struct(">xxxxHBx16s16s")
_UDP = struct.Struct(">HHH")


class IpPacket(msgspec.Struct, frozen=True):
    """A whole IP packet's addresses, its protocol number and the bytes behind its IP header."""

    source: Address
    target: Address
    protocol: int
    payload: bytes


class UdpPacket(msgspec.Struct, frozen=True):
    """A whole UDP datagram."""

    source: Address
    source_port: int
    target: Address
    target_port: int
    payload: bytes


def parse_ip(packet: bytes) -> IpPacket | None:
    """The IP packet that these bytes begin with, or None by rules 1, 2 and 4. Never raises.

    For IPv6 the protocol is the first next header, which may be that of an extension header.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _parse_ipv4(packet)
    return _parse_ipv6(packet) if version == 6 else None


def parse_packet(packet: bytes) -> UdpPacket | None:
    """The UDP datagram in an IP packet, or None by rules 1 to 5. Never raises."""
    outer = parse_ip(packet)
    if outer is None or outer.protocol != UDP or len(outer.payload) < _UDP_HEADER:
        return None
    source_port, target_port, length = _UDP.unpack_from(outer.payload)
    if not _UDP_HEADER <= length <= len(outer.payload):
        return None
    payload = outer.payload[_UDP_HEADER:length]
    return UdpPacket(outer.source, source_port, outer.target, target_port, payload)


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
