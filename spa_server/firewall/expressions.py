"""The expressions that nftables rules are made of (linux/netfilter/nf_tables.h), as bytes.

For the few rules that nft cannot write: those of a table with an owner. A rule is a sequence of
expressions; each loads a value into register 1, compares what is there, or acts, and the first
comparison that fails ends the rule. Values are in network byte order where they come from a packet
and in the host's where they come from the kernel.
"""

import sys
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, TypeAlias

from spa_server import netlink
from spa_server.firewall import nftables
from spa_server.netlink import attribute, nested

Expression: TypeAlias = bytes
Rule: TypeAlias = tuple[Expression, ...]

_NAME: Final = 1
_DATA: Final = 2
_LIST_ELEM: Final = 1
_VALUE: Final = 1
_VERDICT: Final = 2
_VERDICT_CODE: Final = 1
_VERDICT_REGISTER: Final = 0
_REGISTER: Final = 1
_FIB_ADDRESS_TYPE: Final = 3
_FIB_DESTINATION: Final = 1 << 1
_ORIGINAL: Final = b"\0"


class Is(IntEnum):
    """How `compare` compares."""

    EQUAL = 0
    OTHER = 1
    AT_MOST = 3
    AT_LEAST = 5


class Meta(IntEnum):
    """What the kernel knows of a packet beside its bytes."""

    PRIORITY = 2
    INPUT_INTERFACE = 4
    INPUT_NAME = 6
    FAMILY = 15
    PROTOCOL = 16


class Track(IntEnum):
    """What conntrack knows of a packet's connection."""

    STATE = 0
    DIRECTION = 1
    STATUS = 2
    DESTINATION_PORT = 12
    LABELS = 13


class Base(IntEnum):
    """Where in a packet `payload` begins to count."""

    NETWORK = 1
    TRANSPORT = 2


def meta(key: Meta) -> Expression:
    """Loads it."""
    return _expression("meta", _number(1, _REGISTER), _number(2, key))


def set_priority(priority: int) -> tuple[Expression, Expression]:
    """Gives the packet this priority."""
    value = nested(2, attribute(_VALUE, _host(priority)))
    return (
        _expression("immediate", _number(1, _REGISTER), value),
        _expression("meta", _number(2, Meta.PRIORITY), _number(3, _REGISTER)),
    )


def track(key: Track) -> Expression:
    """Loads it, of the packet that began the connection where there are two ways."""
    way = (attribute(3, _ORIGINAL),) if key is Track.DESTINATION_PORT else ()
    return _expression("ct", _number(1, _REGISTER), _number(2, key), *way)


def payload(base: Base, offset: int, size: int) -> Expression:
    """Loads so many bytes of the packet."""
    numbers = enumerate((_REGISTER, base, offset, size), start=1)
    return _expression("payload", *(_number(kind, value) for kind, value in numbers))


def destination_type() -> Expression:
    """Loads what routing says of the packet's destination: RTN_LOCAL and so on (rtnetlink)."""
    return _expression(
        "fib", _number(1, _REGISTER), _number(2, _FIB_ADDRESS_TYPE), _number(3, _FIB_DESTINATION)
    )


def mask(bits: bytes) -> Expression:
    """Keeps these bits of what is loaded."""
    return _expression(
        "bitwise",
        _number(1, _REGISTER),
        _number(2, _REGISTER),
        _number(3, len(bits)),
        nested(4, attribute(_VALUE, bits)),
        nested(5, attribute(_VALUE, bytes(len(bits)))),
    )


def compare(how: Is, value: bytes) -> Expression:
    """Goes on where what is loaded compares so."""
    return _expression(
        "cmp", _number(1, _REGISTER), _number(2, how), nested(3, attribute(_VALUE, value))
    )


def compare_number(how: Is, value: int) -> Expression:
    """The same with a number of the kernel's own: 32 bits in the host's byte order."""
    return compare(how, _host(value))


def mask_number(bits: int) -> Expression:
    """`mask` for a number of the kernel's own."""
    return mask(_host(bits))


def counter() -> Expression:
    """Counts the packets that come as far as this."""
    return _expression("counter")


def verdict(code: int) -> Expression:
    """Ends the packet's way through the chain: NF_DROP or NF_ACCEPT."""
    value = nested(_VERDICT, _number(_VERDICT_CODE, code))
    return _expression("immediate", _number(1, _VERDICT_REGISTER), nested(2, value))


def encode(rule: Iterable[Expression]) -> bytes:
    """The value of NFTA_RULE_EXPRESSIONS."""
    return b"".join(nested(_LIST_ELEM, each) for each in rule)


def _expression(name: str, *content: bytes) -> Expression:
    return nftables.text(_NAME, name) + netlink.nested(_DATA, b"".join(content))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4))


def _host(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)
