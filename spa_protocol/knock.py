"""The requests that a client sends: knock, close and join.

The rules, in the order in which they are checked (docs/protocol.md section 6):

1.  A datagram is exactly 240 bytes                                          else malformed
2.  its first 8 bytes are a known key's tag of an epoch near now             else unknown-key
3.  the box opens with that key's K.knock, "spa1" and the tag as data        else not-authentic
4.  the body is the one encoding of one meaning; the tag is one of sent_at's
    epoch; an invite only joins, and a key never does                        else malformed
5.  the signing key signed server, agreement key, nonce and body[0:88]       else bad-signature

What opens (steps 1 to 4) is an `OpenedKnock`, which nothing may act upon; what verifies (step 5) is
an `AuthenticKnock`. Freshness and replay need a clock and a memory: spa_server/doorkeeper.py.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from spa_protocol import seal, sshsig
from spa_protocol.access import Access, check_together, decode_accesses, encode_accesses
from spa_protocol.layout import (
    BODY_SIZE,
    DATAGRAM_SIZE,
    KEY_SIZE,
    LABEL,
    MAX_LIFETIME_S,
    NONCE_SIZE,
    SIGNATURE_SIZE,
    SIGNED_SIZE,
    TAG_SIZE,
    VERSION,
    Address,
    Malformed,
    decode_address,
    encode_address,
    epoch_of,
    is_plain,
    require_zero,
)
from spa_protocol.publickey import PublicKey, Sender
from spa_protocol.reason import Reason
from spa_protocol.seal import PairKeys, WeakKey
from spa_protocol.sshsig import KeyType, Signature

_HEAD: Final = struct.Struct(">BBBBQ")
_TOUCH: Final = struct.Struct(">BI")
_REPLY_WANTED: Final = 1
_ONCE: Final = 2


class Kind(IntEnum):
    """Byte 1 of a body."""

    KNOCK = 1
    JOIN = 2
    CLOSE = 3


@dataclass(frozen=True, slots=True)
class Knock:
    """Asks for holes. `source` None is the packet's own source address, `target` None the address
    it was sent to, `lifetime_s` 0 what the policy gives. Raises Malformed when it cannot be."""

    sent_at_us: int
    accesses: tuple[Access, ...]
    source: Address | None = None
    target: Address | None = None
    lifetime_s: int = 0
    once: bool = False
    reply_wanted: bool = True

    def __post_init__(self) -> None:
        _check_request(self.accesses, self.source, self.target)
        if not 0 <= self.lifetime_s <= MAX_LIFETIME_S:
            raise Malformed(f"a lifetime of {self.lifetime_s} s")


@dataclass(frozen=True, slots=True)
class Close:
    """Gives back what this key was granted: the same accesses, source and target as the knock's."""

    sent_at_us: int
    accesses: tuple[Access, ...]
    source: Address | None = None
    target: Address | None = None
    reply_wanted: bool = True

    def __post_init__(self) -> None:
        _check_request(self.accesses, self.source, self.target)


@dataclass(frozen=True, slots=True)
class Join:
    """An invite's only request: enrol this key. Raises Malformed for one that may not be."""

    sent_at_us: int
    key: PublicKey
    reply_wanted: bool = True

    def __post_init__(self) -> None:
        try:
            self.key.check()
        except WeakKey as weak:
            raise Malformed(str(weak)) from None


Request: TypeAlias = Knock | Close | Join


def _check_request(
    accesses: tuple[Access, ...], source: Address | None, target: Address | None
) -> None:
    check_together(accesses)
    for address in (source, target):
        if address is not None and not is_plain(address):
            raise Malformed(f"{address} is not the plain address of a host")
    if source is not None and target is not None and source.version != target.version:
        raise Malformed("source and target must be of one address family")


def encode_signed(request: Request) -> bytes:
    """Bytes 0 to 87 of the body: the part that the signature covers."""
    flags = _REPLY_WANTED if request.reply_wanted else 0
    if isinstance(request, Join):
        head = _HEAD.pack(VERSION, Kind.JOIN, flags, request.key.key_type, request.sent_at_us)
        return (head + request.key.signing + request.key.agreement).ljust(SIGNED_SIZE, b"\0")
    kind, lifetime_s = Kind.CLOSE, 0
    if isinstance(request, Knock):
        kind, lifetime_s = Kind.KNOCK, request.lifetime_s
        flags |= _ONCE if request.once else 0
    return (
        _HEAD.pack(VERSION, kind, flags, len(request.accesses), request.sent_at_us)
        + encode_address(request.source)
        + encode_address(request.target)
        + lifetime_s.to_bytes(4)
        + encode_accesses(request.accesses)
    )


def encode_body(request: Request, signature: Signature) -> bytes:
    """The 128 bytes of a body; of the signature only a security key's flags and counter."""
    touch = _TOUCH.pack(signature.flags, signature.counter)
    return (encode_signed(request) + touch).ljust(BODY_SIZE, b"\0")


def decode_signed(signed: bytes) -> Request:
    """A request from bytes 0 to 87. Raises Malformed for anything but its one encoding."""
    version, kind, flags, count, sent_at_us = _HEAD.unpack_from(signed)
    if version != VERSION:
        raise Malformed(f"version {version}")
    if flags & ~(_REPLY_WANTED | (_ONCE if kind == Kind.KNOCK else 0)):
        raise Malformed(f"undefined flags {flags:#04x}")
    reply_wanted = bool(flags & _REPLY_WANTED)
    if kind == Kind.JOIN:
        return _decode_join(signed, count, sent_at_us, reply_wanted)
    if kind not in (Kind.KNOCK, Kind.CLOSE):
        raise Malformed(f"kind {kind}")
    source, target = decode_address(signed[12:28]), decode_address(signed[28:44])
    lifetime_s = int.from_bytes(signed[44:48])
    accesses = decode_accesses(signed[48:88], count)
    if kind == Kind.KNOCK:
        once = bool(flags & _ONCE)
        return Knock(sent_at_us, accesses, source, target, lifetime_s, once, reply_wanted)
    require_zero(signed[44:48], "a close's lifetime")
    return Close(sent_at_us, accesses, source, target, reply_wanted)


def _decode_join(signed: bytes, key_type: int, sent_at_us: int, reply_wanted: bool) -> Join:
    require_zero(signed[12 + 2 * KEY_SIZE :], "bytes after a join's keys")
    if key_type not in set(KeyType):
        raise Malformed(f"key type {key_type}")
    signing, agreement = signed[12:44], signed[44:76]
    return Join(sent_at_us, PublicKey(KeyType(key_type), signing, agreement), reply_wanted)


def message_to_sign(request: Request, *, server: bytes, agreement: bytes, nonce: bytes) -> bytes:
    """What the SSHSIG structure is made over: server key, agreement key, nonce, body[0:88]."""
    return server + agreement + nonce + encode_signed(request)


def seal_request(
    request: Request, signature: Signature, *, pair: PairKeys, nonce: bytes, tag_number: int = 0
) -> bytes:
    """The 240 bytes to send. The signature is that of `message_to_sign` with the same nonce."""
    tag = pair.tag_at(epoch_of(request.sent_at_us), tag_number)
    plain = encode_body(request, signature) + signature.value
    return tag + nonce + seal.seal(plain, associated=LABEL + tag, nonce=nonce, key=pair.knock)


@dataclass(frozen=True, slots=True)
class OpenedKnock:
    """A request that opened and parsed, but whose signature nobody has looked at."""

    sender: Sender
    nonce: bytes
    request: Request
    signature: Signature
    body: bytes


@dataclass(frozen=True, slots=True)
class AuthenticKnock:
    """A request that its key's owner signed for this server. It may still be old, or a replay."""

    sender: Sender
    nonce: bytes
    request: Request
    touched: bool


def open_request(payload: bytes, find: Callable[[bytes], Sender | None]) -> OpenedKnock | Reason:
    """Steps 1 to 4. `find` maps a tag to the key that bears it in an epoch near now."""
    if len(payload) != DATAGRAM_SIZE:
        return Reason.MALFORMED
    tag, nonce = payload[:TAG_SIZE], payload[TAG_SIZE : TAG_SIZE + NONCE_SIZE]
    sender = find(tag)
    if sender is None:
        return Reason.UNKNOWN_KEY
    box = payload[TAG_SIZE + NONCE_SIZE :]
    plain = seal.unseal(box, associated=LABEL + tag, nonce=nonce, key=sender.pair.knock)
    if plain is None:
        return Reason.NOT_AUTHENTIC
    body, value = plain[:BODY_SIZE], plain[-SIGNATURE_SIZE:]
    try:
        request, signature = _decode_body(body, value, sender)
    except Malformed:
        return Reason.MALFORMED
    if not sender.pair.is_tag_of(tag, epoch_of(request.sent_at_us)):
        return Reason.MALFORMED
    return OpenedKnock(sender, nonce, request, signature, body)


def _decode_body(body: bytes, value: bytes, sender: Sender) -> tuple[Request, Signature]:
    touch_end = SIGNED_SIZE + _TOUCH.size
    request = decode_signed(body[:SIGNED_SIZE])
    require_zero(body[touch_end:], "the end of the body")
    if sender.public.key_type is not KeyType.SK_ED25519:
        require_zero(body[SIGNED_SIZE:touch_end], "a plain key's security-key fields")
    if isinstance(request, Join) is not sender.is_invite:
        raise Malformed("an invite only joins, and a key never does")
    return request, Signature(value, *_TOUCH.unpack(body[SIGNED_SIZE:touch_end]))


def verify_request(opened: OpenedKnock) -> AuthenticKnock | Reason:
    """Step 5."""
    sender = opened.sender
    message = sender.server + sender.public.agreement + opened.nonce + opened.body[:SIGNED_SIZE]
    signature = opened.signature
    if not sshsig.verify(message, signature, sender.public.key_type, sender.public.signing):
        return Reason.BAD_SIGNATURE
    touched = bool(signature.flags & sshsig.USER_PRESENT)
    return AuthenticKnock(sender, opened.nonce, opened.request, touched)


def freshness(sent_at_us: int, now_us: int, window_s: float) -> Reason | None:
    """None while the two clocks are at most `window_s` apart (docs/protocol.md section 6.3)."""
    if now_us - sent_at_us > window_s * 1_000_000:
        return Reason.STALE
    if sent_at_us - now_us > window_s * 1_000_000:
        return Reason.AHEAD
    return None
