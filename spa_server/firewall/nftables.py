"""Requests to nftables (linux/netfilter/nf_tables.h) as netlink messages, and what it answers.

Only what a running gate needs: transactions, and reading the table's own objects. The rules are
nft's work, set elements are in `elements`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from spa_server import netlink
from spa_server.firewall.gate import TABLE
from spa_server.netlink import NFGENMSG, NLM_F_ACK, NLM_F_REQUEST, Message

NFPROTO_INET: Final = 1
SUBSYSTEM: Final = 10

NEWTABLE: Final = SUBSYSTEM << 8 | 0
GETTABLE: Final = SUBSYSTEM << 8 | 1
GETCHAIN: Final = SUBSYSTEM << 8 | 4
NEWSETELEM: Final = SUBSYSTEM << 8 | 12
GETSETELEM: Final = SUBSYSTEM << 8 | 13
DELSETELEM: Final = SUBSYSTEM << 8 | 14
NEWGEN: Final = SUBSYSTEM << 8 | 15
NEWOBJ: Final = SUBSYSTEM << 8 | 18
GETOBJ: Final = SUBSYSTEM << 8 | 19

# The first attribute of every nftables message names its table.
TABLE_ATTRIBUTE: Final = 1
GEN_PROC_PID: Final = 2

_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11

_TABLE_FLAGS: Final = 2
_TABLE_DORMANT: Final = 1
_CHAIN_NAME: Final = 3
_CHAIN_HOOK: Final = 4
_CHAIN_USE: Final = 6
_OBJ_NAME: Final = 2
_OBJ_TYPE: Final = 3
_OBJ_DATA: Final = 4
_OBJ_COUNTER: Final = 1
_COUNTER_BYTES: Final = 1
_COUNTER_PACKETS: Final = 2


class Request(msgspec.Struct, frozen=True):
    """One message of a transaction: its type, its flags, and its attributes as bytes."""

    kind: int
    flags: int
    content: bytes


class Count(msgspec.Struct, frozen=True):
    """What a counter has counted."""

    packets: int
    bytes: int


def text(kind: int, value: str) -> bytes:
    """A string attribute, which ends in a zero byte."""
    return netlink.attribute(kind, value.encode() + b"\0")


def header(family: int = NFPROTO_INET, resource: int = 0) -> bytes:
    """struct nfgenmsg, 4 bytes."""
    return NFGENMSG.pack(family, 0, resource)


def batch(requests: Sequence[Request], sequence: int) -> bytes:
    """One transaction, in which request i has sequence number `sequence` + 1 + i.

    Only the last request asks for an acknowledgement: when it comes and nothing was refused, the
    whole was committed. Takes len(requests) + 2 sequence numbers.
    """
    last = len(requests) - 1
    parts = [netlink.message(_BATCH_BEGIN, NLM_F_REQUEST, sequence, header(0, SUBSYSTEM))]
    for index, request in enumerate(requests):
        flags = request.flags | NLM_F_REQUEST | (NLM_F_ACK if index == last else 0)
        content = header() + request.content
        parts.append(netlink.message(request.kind, flags, sequence + 1 + index, content))
    end = sequence + 1 + len(requests)
    parts.append(netlink.message(_BATCH_END, NLM_F_REQUEST, end, header(0, SUBSYSTEM)))
    return b"".join(parts)


def of_table(*attributes: bytes) -> bytes:
    """The payload of a request to read something of the gate's table."""
    return header() + text(TABLE_ATTRIBUTE, TABLE) + b"".join(attributes)


def of_chain(name: str) -> bytes:
    """The payload of a request to read one chain."""
    return of_table(text(_CHAIN_NAME, name))


def is_dormant(table: Message) -> bool:
    """Whether somebody switched the table off, rules and all."""
    flags = dict(netlink.attributes(table.payload, NFGENMSG.size)).get(_TABLE_FLAGS, b"")
    return bool(int.from_bytes(flags) & _TABLE_DORMANT)


def is_at_work(chain: Message) -> bool:
    """Whether a base chain hangs in its hook and has rules."""
    found = dict(netlink.attributes(chain.payload, NFGENMSG.size))
    return _CHAIN_HOOK in found and int.from_bytes(found.get(_CHAIN_USE, b"")) > 0


def named_counters(answers: Iterable[Message]) -> Iterator[tuple[str, Count]]:
    """Name and value of every counter among the table's objects."""
    for answer in answers:
        found = dict(netlink.attributes(answer.payload, NFGENMSG.size))
        if int.from_bytes(found.get(_OBJ_TYPE, b"")) == _OBJ_COUNTER:
            name = found[_OBJ_NAME].rstrip(b"\0").decode()
            yield name, decode_count(found.get(_OBJ_DATA, b""))


def decode_count(data: bytes) -> Count:
    """A counter's attributes."""
    found = dict(netlink.attributes(data))
    return Count(
        packets=int.from_bytes(found.get(_COUNTER_PACKETS, b"")),
        bytes=int.from_bytes(found.get(_COUNTER_BYTES, b"")),
    )
