"""Checkpoints: the server's own signature over the record so far.

A digest chain alone proves nothing against whoever can write the file: they can chain anew. So the
daemon signs the head of the chain from time to time with its *record key*. Whoever keeps a
checkpoint elsewhere, or only the public key, can tell later that nothing before it was changed.

    record key   Ed25519, seed = BLAKE2b-256(key = the server's secret, person = "spa1 record key")
    checkpoint   signature over "spa1 checkpoint" || u64 event id || u64 at_us || digest 32
    base         signature over "spa1 base" || u64 first id || u64 at_us || u64 until_us
                 || digest 32

docs/record.md, "Checkpoints".
"""

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass, field
from typing import Final

from spa_protocol import seal
from spa_server.audit.chain import DIGEST_SIZE

KEY_SIZE: Final = 32
_CHECKSUM_SIZE: Final = 4
_SIGNATURE_SIZE: Final = 64
_WORD: Final = "spa-checkpoint"
_CHECKPOINT: Final = struct.Struct(">QQ32s")
_BASE: Final = struct.Struct(">QQQ32s")


class BadCheckpoint(ValueError):
    """A line that is no checkpoint, or a text that is no record key; the message says why."""


@dataclass(frozen=True, slots=True)
class Signer:
    """The public half of a record key, 32 bytes."""

    public: bytes

    @property
    def name(self) -> str:
        """What checkpoints call it: 16 letters and digits, BLAKE2b-80 in base32."""
        digest = hashlib.blake2b(self.public, digest_size=10, person=b"spa1 signer id").digest()
        return base64.b32encode(digest).decode().lower()

    def __str__(self) -> str:
        """48 characters of base64: the key and a checksum of 4 bytes."""
        return base64.b64encode(self.public + _checksum(self.public)).decode()

    @classmethod
    def parse(cls, text: str) -> "Signer":
        """From what `str` gives. Raises BadCheckpoint."""
        try:
            whole = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise BadCheckpoint("this is no record key: it is no base64") from None
        public = whole[:-_CHECKSUM_SIZE]
        if len(public) != KEY_SIZE or whole != public + _checksum(public):
            raise BadCheckpoint("the record key is not whole: copy it again")
        return cls(public)

    def verifies(self, signed: "Checkpoint | Base") -> bool:
        """Whether this key made the signature. What came from a file may be anything."""
        sizes = (len(signed.digest), len(signed.signature))
        if signed.signer != self.name or sizes != (DIGEST_SIZE, _SIGNATURE_SIZE):
            return False
        try:
            return seal.verify(signed.message, signed.signature, self.public)
        except struct.error:
            return False


def _checksum(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_CHECKSUM_SIZE, person=b"spa1 signer text").digest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The line `event_id` had this digest, 32 bytes, at a time; and a signature, 64 bytes."""

    event_id: int
    at_us: int
    digest: bytes
    signer: str = ""
    signature: bytes = b""

    @property
    def message(self) -> bytes:
        """What is signed."""
        return b"spa1 checkpoint" + _CHECKPOINT.pack(self.event_id, self.at_us, self.digest)

    def __str__(self) -> str:
        """One line, to be kept elsewhere."""
        signature = base64.b64encode(self.signature).decode()
        numbers = f"{self.event_id} {self.at_us}"
        return f"{_WORD} {numbers} {self.digest.hex()} {self.signer} {signature}"

    @classmethod
    def parse(cls, line: str) -> "Checkpoint":
        """From what `str` gives. Raises BadCheckpoint; whether it is signed is not looked at."""
        try:
            word, event_id, at_us, digest, signer, signature = line.split()
            made = cls(
                _number(event_id),
                _number(at_us),
                bytes.fromhex(digest),
                signer,
                base64.b64decode(signature, validate=True),
            )
        except (ValueError, binascii.Error):
            raise BadCheckpoint(f"not a checkpoint; expected '{_WORD} ...'") from None
        sizes = (len(made.digest), len(made.signature))
        if word != _WORD or sizes != (DIGEST_SIZE, _SIGNATURE_SIZE):
            raise BadCheckpoint(f"not a checkpoint; expected '{_WORD} ...'")
        return made


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**63:
        raise ValueError(text)
    return number


@dataclass(frozen=True, slots=True)
class Base:
    """The chain begins at `first_id`, behind this digest: what was before it was removed.

    `at_us` is when, `until_us` the time of the last line that was removed.
    """

    first_id: int
    at_us: int
    until_us: int
    digest: bytes
    signer: str = ""
    signature: bytes = b""

    @property
    def message(self) -> bytes:
        """What is signed."""
        values = (self.first_id, self.at_us, self.until_us, self.digest)
        return b"spa1 base" + _BASE.pack(*values)


@dataclass(frozen=True, slots=True)
class RecordKey:
    """The key that signs the record: a seed of 32 bytes, in no repr."""

    seed: bytes = field(repr=False)
    signer: Signer

    def checkpoint(self, event_id: int, digest: bytes, now_us: int) -> Checkpoint:
        """A checkpoint at this head."""
        made = Checkpoint(event_id, now_us, digest, self.signer.name)
        signature = seal.sign(made.message, self.seed)
        return Checkpoint(event_id, now_us, digest, self.signer.name, signature)

    def base(self, first_id: int, digest: bytes, *, at_us: int, until_us: int) -> Base:
        """The statement that everything before `first_id` was removed."""
        made = Base(first_id, at_us, until_us, digest, self.signer.name)
        signature = seal.sign(made.message, self.seed)
        return Base(first_id, at_us, until_us, digest, self.signer.name, signature)


def record_key(server_secret: bytes) -> RecordKey:
    """The record key of a server, from its 32-byte secret."""
    seed = hashlib.blake2b(
        key=server_secret, person=b"spa1 record key", digest_size=KEY_SIZE
    ).digest()
    return RecordKey(seed, Signer(seal.signing_public(seed)))
