"""A flow: the five-tuple by which the gate's log, conntrack and the record name a connection."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from spa_protocol.access import Protocol
from spa_protocol.layout import Address
from spa_server.link import on_link

_IPV4 = struct.Struct(">B8xB2x4s4s")
_IPV6 = struct.Struct(">6xBx16s16s")
_PORTS = struct.Struct(">HH")
_OTHERS: Final = {33: "dccp", 136: "udplite"}


@dataclass(frozen=True, slots=True)
class Flow:
    """The five-tuple of a packet. `protocol` is its IANA number."""

    source: Address
    source_port: int
    target: Address
    protocol: int
    port: int

    @property
    def access(self) -> str:
        """tcp/22, as the record writes it."""
        return access_text(self.protocol, self.port)


def access_text(protocol: int, port: int) -> str:
    """What the record calls a port of a protocol that has ports. Raises ValueError for others."""
    label = _OTHERS.get(protocol) or Protocol(protocol).label
    return f"{label}/{port}"


def parse_flow(packet: bytes, interface: int = 0) -> Flow | None:
    """The flow that a packet belongs to, from its first bytes: the log cuts a packet short.

    Its link-local addresses are those on the link by which it came, where that is given.
    """
    try:
        if packet[0] >> 4 == 4:
            first, protocol, source, target = _IPV4.unpack_from(packet)
            ends: tuple[Address, Address] = IPv4Address(source), IPv4Address(target)
            ports_at = (first & 0x0F) * 4
        else:
            protocol, source6, target6 = _IPV6.unpack_from(packet)
            ends, ports_at = (IPv6Address(source6), IPv6Address(target6)), 40
        source_port, port = _PORTS.unpack_from(packet, ports_at)
    except (IndexError, struct.error):
        return None
    if protocol not in set(Protocol) and protocol not in _OTHERS:
        return None
    source, target = (on_link(end, interface) for end in ends)
    return Flow(source, source_port, target, protocol, port)
