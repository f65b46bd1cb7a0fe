"""The sealed answer to an authentic request: docs/protocol.md section 8."""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from spa_protocol import access, seal
from spa_protocol.access import Access, check_together, decode_access
from spa_protocol.knock import Kind
from spa_protocol.layout import (
    DATAGRAM_SIZE,
    LABEL,
    MAX_ACCESSES,
    MAX_MESSAGE,
    NONCE_SIZE,
    PLAIN_SIZE,
    TAG_SIZE,
    VERSION,
    Address,
    Malformed,
    decode_address,
    encode_address,
    require_zero,
)
from spa_protocol.reason import Code, Status
from spa_protocol.seal import PairKeys

_HEAD: Final = struct.Struct(">BBBBQ")
_OUTCOME: Final = struct.Struct(">IB")
_OUTCOME_SIZE: Final = access.FIELD_SIZE + _OUTCOME.size
_OUTCOMES_AT: Final = 44
_MESSAGE_AT: Final = _OUTCOMES_AT + MAX_ACCESSES * _OUTCOME_SIZE

_NONE: Final = frozenset[Code]()
_CODES_FIT: Final[dict[Status, Callable[[set[Code]], bool]]] = {
    Status.GRANTED: lambda codes: Code.GRANTED in codes,
    Status.REFUSED: lambda codes: bool(codes) and Code.GRANTED not in codes,
    Status.CLOCK: lambda codes: codes == _NONE,
    Status.JOINED: lambda codes: codes == _NONE,
    Status.JOIN_REFUSED: lambda codes: codes == _NONE,
    Status.UNAVAILABLE: lambda codes: codes <= {Code.UNAVAILABLE},
    Status.CLOSED: lambda codes: codes <= {Code.GRANTED},
    Status.PENDING: lambda codes: Code.GRANTED not in codes,
}
_OF_ANY_KIND: Final = {Status.CLOCK, Status.UNAVAILABLE}
_STATUSES: Final = {
    Kind.KNOCK: {Status.GRANTED, Status.REFUSED, Status.PENDING, *_OF_ANY_KIND},
    Kind.CLOSE: {Status.CLOSED, Status.REFUSED, *_OF_ANY_KIND},
    Kind.JOIN: {Status.JOINED, Status.JOIN_REFUSED, Status.PENDING, *_OF_ANY_KIND},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one access: its code and, when granted, for how many seconds."""

    access: Access
    code: Code
    lifetime_s: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server says: its time, the addresses as it saw them, an outcome for each access.

    `message` is at most 67 bytes of UTF-8 for a person; `clip` shortens one.
    """

    status: Status
    server_time_us: int
    source: Address | None
    target: Address | None
    outcomes: tuple[Outcome, ...] = ()
    message: str = ""


def clip(message: str) -> str:
    """The longest beginning of a message that fits into a reply, with no character torn."""
    return message.encode()[:MAX_MESSAGE].decode(errors="ignore")


def encode(reply: Reply) -> bytes:
    """192 bytes. Raises Malformed when there are more than 8 outcomes or the message is long."""
    message = reply.message.encode()
    if len(reply.outcomes) > MAX_ACCESSES or len(message) > MAX_MESSAGE:
        raise Malformed("a reply holds 8 outcomes and 67 bytes of message")
    head = _HEAD.pack(VERSION, reply.status, len(reply.outcomes), 0, reply.server_time_us)
    outcomes = b"".join(
        struct.pack(">BHH", o.access.protocol, o.access.first, o.access.last)
        + _OUTCOME.pack(o.lifetime_s, o.code)
        for o in reply.outcomes
    )
    addresses = encode_address(reply.source) + encode_address(reply.target)
    plain = (head + addresses + outcomes).ljust(_MESSAGE_AT, b"\0")
    return (plain + bytes([len(message)]) + message).ljust(PLAIN_SIZE, b"\0")


def decode(plain: bytes) -> Reply:
    """The inverse of `encode`. Raises Malformed for anything but the one encoding."""
    version, status, count, zero, server_time_us = _HEAD.unpack_from(plain)
    if version != VERSION or zero or count > MAX_ACCESSES:
        raise Malformed(f"version {version}, {count} outcomes")
    try:
        outcomes = tuple(_decode_outcome(plain, index) for index in range(count))
        size = plain[_MESSAGE_AT]
        message = plain[_MESSAGE_AT + 1 : _MESSAGE_AT + 1 + size].decode()
        known = Status(status)
    except ValueError as error:
        raise Malformed(str(error)) from None
    require_zero(plain[_OUTCOMES_AT + count * _OUTCOME_SIZE : _MESSAGE_AT], "unused outcomes")
    require_zero(plain[_MESSAGE_AT + 1 + size :], "bytes after the message")
    if size > MAX_MESSAGE:
        raise Malformed("the message is too long")
    source, target = decode_address(plain[12:28]), decode_address(plain[28:44])
    reply = Reply(known, server_time_us, source, target, outcomes, message)
    _check_meaning(reply)
    return reply


def _check_meaning(reply: Reply) -> None:
    """Raises Malformed for a reply whose parts contradict each other (section 8.2's table)."""
    if reply.source and reply.target and reply.source.version != reply.target.version:
        raise Malformed("source and target must be of one address family")
    if reply.outcomes:
        check_together(tuple(outcome.access for outcome in reply.outcomes))
    if any(outcome.lifetime_s for outcome in reply.outcomes if outcome.code is not Code.GRANTED):
        raise Malformed("what is not granted has no lifetime")
    codes = {outcome.code for outcome in reply.outcomes}
    if not _CODES_FIT[reply.status](codes):
        raise Malformed(f"the outcomes of a reply of status {reply.status}")
    if reply.status is Status.CLOSED and any(outcome.lifetime_s for outcome in reply.outcomes):
        raise Malformed("what is closed has no lifetime")


def answers(reply: Reply, kind: Kind, accesses: tuple[Access, ...]) -> bool:
    """Whether it can be the reply to a request of this kind for these accesses.

    The outcomes are those asked for, in their order, or none; a join asks for none.
    """
    outcomes = tuple(outcome.access for outcome in reply.outcomes)
    return reply.status in _STATUSES[kind] and outcomes in ((), accesses)


def _decode_outcome(plain: bytes, index: int) -> Outcome:
    at = _OUTCOMES_AT + index * _OUTCOME_SIZE
    lifetime_s, code = _OUTCOME.unpack_from(plain, at + access.FIELD_SIZE)
    return Outcome(decode_access(plain[at : at + access.FIELD_SIZE]), Code(code), lifetime_s)


def address_of(pair: PairKeys, request_nonce: bytes) -> bytes:
    """The 8 bytes by which a client recognises the reply to the request with this nonce."""
    return hashlib.blake2b(request_nonce, key=pair.reply, digest_size=TAG_SIZE).digest()


def seal_reply(reply: Reply, *, pair: PairKeys, request_nonce: bytes, nonce: bytes) -> bytes:
    """The 240 bytes to send back."""
    first = address_of(pair, request_nonce)
    associated = LABEL + first + request_nonce
    return (
        first + nonce + seal.seal(encode(reply), associated=associated, nonce=nonce, key=pair.reply)
    )


def open_reply(payload: bytes, *, pair: PairKeys, request_nonce: bytes) -> Reply | None:
    """The server's reply to this request, or None for any other bytes."""
    first = address_of(pair, request_nonce)
    if len(payload) != DATAGRAM_SIZE or payload[:TAG_SIZE] != first:
        return None
    nonce, box = payload[TAG_SIZE : TAG_SIZE + NONCE_SIZE], payload[TAG_SIZE + NONCE_SIZE :]
    associated = LABEL + first + request_nonce
    plain = seal.unseal(box, associated=associated, nonce=nonce, key=pair.reply)
    if plain is None:
        return None
    try:
        return decode(plain)
    except Malformed:
        return None
