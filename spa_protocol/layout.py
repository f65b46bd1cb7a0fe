"""Sizes, fields and units of spa1 datagrams: docs/protocol.md sections 3 and 4.

Everything is big-endian. Times are microseconds since the Unix epoch, lifetimes are seconds.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

VERSION: Final = 1
LABEL: Final = b"spa1"

# Specification: what both sides must agree on.
TAG_SIZE: Final = 8
NONCE_SIZE: Final = 24
BODY_SIZE: Final = 128
SIGNATURE_SIZE: Final = 64
PLAIN_SIZE: Final = BODY_SIZE + SIGNATURE_SIZE
MAC_SIZE: Final = 16
DATAGRAM_SIZE: Final = TAG_SIZE + NONCE_SIZE + PLAIN_SIZE + MAC_SIZE
SIGNED_SIZE: Final = 88
KEY_SIZE: Final = 32
EPOCH_S: Final = 300
TAGS: Final = 64
MAX_ACCESSES: Final = 8
MAX_PORTS: Final = 256
MAX_MESSAGE: Final = 67
MAX_LIFETIME_S: Final = 2**32 - 1

# Defaults: what a server may set otherwise.
DEFAULT_PORT: Final = 62201
DEFAULT_FRESHNESS_S: Final = 30

Address: TypeAlias = IPv4Address | IPv6Address

# Compared as numbers: `ipaddress` takes microseconds for it, and this is asked of every datagram.
_IPV4_BROADCAST: Final = 0xFFFF_FFFF
_IPV4_MULTICAST: Final = 0xE  # 224.0.0.0/4
_IPV6_MULTICAST: Final = 0xFF  # ff00::/8
_IPV4_OF_NO_OTHER_HOST: Final = {0, 127}  # 0.0.0.0/8, 127.0.0.0/8
_IPV4_RESERVED: Final = 0xF  # 240.0.0.0/4
_MAPPED: Final = bytes(10) + b"\xff\xff"
_UNDECLARED: Final = bytes(16)


class Malformed(ValueError):
    """Bytes that are not the one spa1 encoding of a meaning. The message is for a developer."""


def epoch_of(at_us: int) -> int:
    """The tag epoch (300 s each, counted from 1970) that a time in microseconds falls into."""
    return at_us // (EPOCH_S * 1_000_000)


def unmapped(address: Address) -> Address:
    """An IPv4 address written as IPv6 (::ffff:192.0.2.1) as the IPv4 address that it is."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@lru_cache(maxsize=65_536)
def text_of(address: Address) -> str:
    """The address as everybody writes it. A busy server writes the same few into every record."""
    return str(address)


def is_unicast(address: Address) -> bool:
    """Whether packets to this address go to one host: not unspecified, multicast or broadcast."""
    number = int(address)
    if isinstance(address, IPv4Address):
        return number not in (0, _IPV4_BROADCAST) and number >> 28 != _IPV4_MULTICAST
    return number != 0 and number >> 120 != _IPV6_MULTICAST


def may_be_elsewhere(address: Address) -> bool:
    """Whether another host can have it, so that packets come from it: docs/protocol.md 4.3.

    Not 0.0.0.0/8, 127.0.0.0/8, 240.0.0.0/4 (RFC 6890), nor ::/96, which holds ::1.
    """
    number = int(address)
    if isinstance(address, IPv4Address):
        return number >> 24 not in _IPV4_OF_NO_OTHER_HOST and number >> 28 < _IPV4_RESERVED
    return number >> 32 != 0


def is_plain(address: Address) -> bool:
    """Whether a datagram can carry it: a host's, IPv4 as IPv4, and with no scope of one machine."""
    if isinstance(address, IPv6Address) and (address.scope_id or address.ipv4_mapped):
        return False
    return is_unicast(address)


def encode_address(address: Address | None) -> bytes:
    """16 bytes: IPv4 mapped into IPv6 (RFC 4291 section 2.5.5.2), None as all zero."""
    if address is None:
        return _UNDECLARED
    return _MAPPED + address.packed if isinstance(address, IPv4Address) else address.packed


def decode_address(field: bytes) -> Address | None:
    """The inverse of `encode_address`. Raises Malformed for what no host can have."""
    if field == _UNDECLARED:
        return None
    address = IPv4Address(field[12:]) if field[:12] == _MAPPED else IPv6Address(field)
    if not is_unicast(address):
        raise Malformed(f"{address} is not a unicast address")
    return address


def require_zero(field: bytes, what: str) -> None:
    """Raises Malformed unless every byte that has no meaning is zero."""
    if field.count(0) != len(field):
        raise Malformed(f"{what} must be zero")
