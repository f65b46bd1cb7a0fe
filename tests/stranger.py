"""A client that was written from docs/protocol.md alone: the proof that the page suffices.

It imports nothing of this project, and cites the page's sections. It composes and opens bytes; to
send them is left to whoever uses it.
"""

import base64
import hashlib
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

PROTOCOLS: Final = {"tcp": 6, "udp": 17, "sctp": 132}

AccessNumbers = tuple[int, int, int]
"""Protocol, first port, last port."""


class Refused(Exception):
    """A line of text that a reader must refuse (section 9.1)."""


def blake2b(bits: int, *, data: bytes = b"", key: bytes = b"", person: bytes = b"") -> bytes:
    """Section 2.2."""
    return hashlib.blake2b(data, key=key, person=person, digest_size=bits // 8).digest()


# Keys: section 5


@dataclass(frozen=True)
class Client:
    """A client key of type 1, and the server that it speaks to (5.1)."""

    seed: bytes
    agreement_secret: bytes
    server: bytes

    @classmethod
    def of_invite(cls, token: bytes, server: bytes) -> "Client":
        """Section 5.6."""
        seed = blake2b(256, key=token, person=b"spa1 invite sign")
        return cls(seed, blake2b(256, key=token, person=b"spa1 invite dh"), server)

    @property
    def signing_public(self) -> bytes:
        public: bytes = sodium.crypto_sign_seed_keypair(self.seed)[0]
        return public

    @property
    def agreement_public(self) -> bytes:
        public: bytes = sodium.crypto_scalarmult_base(self.agreement_secret)
        return public

    @property
    def dh(self) -> bytes:
        """The binding raises an error where it is all zero."""
        shared: bytes = sodium.crypto_scalarmult(self.agreement_secret, self.server)
        return shared

    def derived(self, purpose: bytes) -> bytes:
        """K.tag, K.knock or K.reply (5.1)."""
        context = self.agreement_public + self.server + self.signing_public
        return blake2b(256, key=self.dh, person=b"spa1 " + purpose, data=context)

    def tag(self, time_us: int, number: int = 0) -> bytes:
        """Section 5.2: the usual tag, or a spare one by its number, 1 to 63."""
        epoch = struct.pack(">Q", time_us // 300_000_000)
        return blake2b(
            64, key=self.derived(b"tag"), data=epoch + (bytes([number]) if number else b"")
        )

    def message(self, signed: bytes, nonce: bytes) -> bytes:
        """What the key's owner signs (5.3); `signed` are bytes 0 to 87 of the body."""
        return self.server + self.agreement_public + nonce + signed

    def signature(self, signed: bytes, nonce: bytes) -> bytes:
        """Section 5.3, type 1."""
        secret = sodium.crypto_sign_seed_keypair(self.seed)[1]
        both: bytes = sodium.crypto_sign(sshsig(self.message(signed, nonce)), secret)
        return both[:64]

    def sealed(self, signed: bytes, nonce: bytes, number: int = 0) -> bytes:
        """Section 5.5."""
        plain = signed + bytes(40) + self.signature(signed, nonce)
        associated = b"spa1" + self.tag(time_of(signed), number)
        box: bytes = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(
            plain, associated, nonce, self.derived(b"knock")
        )
        return box

    def request(self, signed: bytes, nonce: bytes, number: int = 0) -> bytes:
        """The 240 bytes to send (3)."""
        return self.tag(time_of(signed), number) + nonce + self.sealed(signed, nonce, number)

    def reply_address(self, request_nonce: bytes) -> bytes:
        """Section 8.1."""
        return blake2b(64, key=self.derived(b"reply"), data=request_nonce)

    def open_reply(self, datagram: bytes, request_nonce: bytes) -> "Reply | None":
        """The reply to the request with this nonce, or None for anything else (8.5)."""
        address = self.reply_address(request_nonce)
        if len(datagram) != 240 or datagram[:8] != address:
            return None
        associated = b"spa1" + address + request_nonce
        try:
            plain = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
                datagram[32:], associated, datagram[8:32], self.derived(b"reply")
            )
        except CryptoError:
            return None
        return read_reply(plain)

    def key_line(self, comment: str) -> str:
        """Section 9.2."""
        value = b"\1" + self.signing_public + self.agreement_public
        return f"spa-key {base64.b64encode(value + checksum(value)).decode()} {comment}"

    def key_id(self) -> str:
        """Section 9.5."""
        value = b"\1" + self.signing_public + self.agreement_public
        return base64.b32encode(blake2b(80, person=b"spa1 key id", data=value)).decode().lower()


def time_of(signed: bytes) -> int:
    (time_us,) = struct.unpack(">Q", signed[4:12])
    return int(time_us)


def sshsig(message: bytes) -> bytes:
    """The 102 bytes of section 5.3."""
    start = bytes.fromhex(
        "53 53 48 53 49 47"
        "00 00 00 0a 73 70 61 31 20 6b 6e 6f 63 6b"
        "00 00 00 00"
        "00 00 00 06 73 68 61 35 31 32"
        "00 00 00 40"
    )
    return start + hashlib.sha512(message).digest()


def tag_numbers(tries: int) -> list[tuple[int, ...]]:
    """Which tags the requests of each try bear (10)."""
    spare = secrets.SystemRandom().sample(range(1, 64), min(63, tries))
    return [(0,), *((0, number) for number in spare)][:tries]


# Bodies: section 4. Each is bytes 0 to 87; the 40 that follow are zero for a key of type 1.


def knock(
    time_us: int,
    accesses: Sequence[str],
    *,
    source: str | None = None,
    target: str | None = None,
    lifetime_s: int = 0,
    once: bool = False,
    reply_wanted: bool = True,
    kind: int = 1,
) -> bytes:
    """Section 4.1. An access is written as in `tcp/22` or `udp/60000-60010`."""
    flags = (0x01 if reply_wanted else 0) | (0x02 if once else 0)
    return (
        struct.pack(">BBBBQ", 1, kind, flags, len(accesses), time_us)
        + address_field(source)
        + address_field(target)
        + struct.pack(">I", lifetime_s)
        + b"".join(map(access_entry, accesses)).ljust(40, b"\0")
    )


def close(
    time_us: int,
    accesses: Sequence[str],
    *,
    source: str | None = None,
    target: str | None = None,
    reply_wanted: bool = True,
) -> bytes:
    """Section 4.5."""
    return knock(time_us, accesses, source=source, target=target, reply_wanted=reply_wanted, kind=3)


def join(time_us: int, new: Client, *, reply_wanted: bool = True) -> bytes:
    """Section 4.4; to be sent by the invite."""
    head = struct.pack(">BBBBQ", 1, 2, 0x01 if reply_wanted else 0, 1, time_us)
    return head + new.signing_public + new.agreement_public + bytes(12)


def access_entry(text: str) -> bytes:
    """Section 4.2."""
    protocol, _, ports = text.partition("/")
    first, _, last = ports.partition("-")
    return struct.pack(">BHH", PROTOCOLS[protocol], int(first), int(last or first))


def address_field(text: str | None) -> bytes:
    """Section 4.3."""
    if text is None:
        return bytes(16)
    address = ip_address(text)
    return bytes(10) + b"\xff\xff" + address.packed if address.version == 4 else address.packed


# Replies: section 8


@dataclass(frozen=True)
class Reply:
    """Status and codes are the numbers of 8.2 and 8.3; an outcome is access, lifetime, code."""

    status: int
    time_us: int
    source: str | None
    target: str | None
    outcomes: list[tuple[AccessNumbers, int, int]]
    message: str


def read_reply(plain: bytes) -> Reply | None:
    """The 192 bytes of section 8.1, strictly; None for what is not the one encoding."""
    version, status, count, unused, time_us = struct.unpack(">BBBBQ", plain[:12])
    if version != 1 or status > 7 or count > 8 or unused:
        return None
    entries = [plain[44 + 10 * index : 54 + 10 * index] for index in range(8)]
    outcomes = [struct.unpack(">BHHIB", entry) for entry in entries[:count]]
    for protocol, first, last, _, code in outcomes:
        if protocol not in PROTOCOLS.values() or not 1 <= first <= last or code > 10:
            return None
    size, text = plain[124], plain[125:]
    if any(map(any, entries[count:])) or size > 67 or any(text[size:]):
        return None
    try:
        message = text[:size].decode("utf-8")
    except UnicodeDecodeError:
        return None
    ends = plain[12:28], plain[28:44]
    if not (all(map(is_address, ends)) and one_family(*ends) and makes_sense(status, outcomes)):
        return None
    source, target = read_address(plain[12:28]), read_address(plain[28:44])
    told = [((protocol, first, last), life, code) for protocol, first, last, life, code in outcomes]
    return Reply(status, time_us, source, target, told, message)


def one_family(source: bytes, target: bytes) -> bool:
    """Section 8.1, of two addresses that are told."""
    return not (any(source) and any(target)) or (source[:12] == MAPPED) is (target[:12] == MAPPED)


def makes_sense(status: int, outcomes: Sequence[tuple[int, ...]]) -> bool:
    """The column of outcomes in section 8.2; that none is told twice (4.2, 8.1)."""
    codes = [code for *_, code in outcomes]
    ports = {(p, port) for p, first, last, *_ in outcomes for port in range(first, last + 1)}
    count = sum(last - first + 1 for _, first, last, *_ in outcomes)
    if len(ports) != count or count > 256:
        return False
    if any(life and (code or status == 6) for *_, life, code in outcomes):
        return False
    if status == 0:
        return 0 in codes
    if status == 1:
        return bool(codes) and 0 not in codes
    allowed = {5: {10}, 6: {0}, 7: set(range(1, 11))}.get(status, set())
    return allowed.issuperset(codes)


def fits(kind: int, asked: Sequence[AccessNumbers], told: Reply) -> bool:
    """Whether a reply can be to a request of this kind for these accesses (8.1)."""
    statuses = {1: {0, 1, 2, 5, 7}, 3: {1, 2, 5, 6}, 2: {2, 3, 4, 5, 7}}
    outcomes = [access for access, _, _ in told.outcomes]
    return told.status in statuses[kind] and outcomes in ([], list(asked))


MAPPED: Final = bytes(10) + b"\xff\xff"


def is_address(field: bytes) -> bool:
    """Whether it is zero or unicast (4.3)."""
    if field.startswith(MAPPED):
        v4 = field[12:]
        return v4 not in (bytes(4), b"\xff\xff\xff\xff") and v4[0] >> 4 != 0xE
    return field[0] != 0xFF


def read_address(field: bytes) -> str | None:
    if not any(field):
        return None
    return str(IPv4Address(field[12:]) if field.startswith(MAPPED) else IPv6Address(field))


# Text: section 9


def checksum(value: bytes, text: str = "") -> bytes:
    """Section 9.1."""
    return blake2b(32, person=b"spa1 text", data=value + text.encode("utf-8"))


def read_server_line(line: str) -> tuple[bytes, str]:
    """A server's public key, and host:port (9.3)."""
    word, encoded, where = line.split(" ")
    if word != "spa-server":
        raise Refused
    return checked(base64.b64decode(encoded, validate=True), 32, where), where


def read_invite(line: str) -> tuple[bytes, bytes, str]:
    """The token, the server's public key, and host:port (9.4)."""
    where, _, encoded = line.removeprefix("spa://").partition("/")
    value = checked(base64.urlsafe_b64decode(encoded), 65, where)
    if value[0] != 1:
        raise Refused
    return value[1:33], value[33:], where


def checked(whole: bytes, size: int, text: str) -> bytes:
    value = whole[:-4]
    if len(value) != size or whole[-4:] != checksum(value, text):
        raise Refused
    return value
