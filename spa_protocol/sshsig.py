"""What exactly is signed: OpenSSH's SSHSIG structure (openssh PROTOCOL.sshsig, PROTOCOL.u2f).

It is used so that an ssh-agent, and a FIDO2 security key behind it, can sign a knock.
docs/protocol.md section 5.3.
"""

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from spa_protocol import seal

NAMESPACE: Final = b"spa1 knock"
HASH: Final = b"sha512"
SECURITY_KEY_APPLICATION: Final = b"ssh:"
USER_PRESENT: Final = 0x01


class KeyType(IntEnum):
    """What makes a key's signatures: byte 3 of a join, first byte of a key line."""

    ED25519 = 1
    SK_ED25519 = 2


@dataclass(frozen=True, slots=True)
class Signature:
    """An Ed25519 signature and, when a security key made it, the flags and counter it covers."""

    value: bytes
    flags: int = 0
    counter: int = 0


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


_BEFORE_DIGEST: Final = b"SSHSIG" + _string(NAMESPACE) + _string(b"") + _string(HASH)


def signed_message(message: bytes) -> bytes:
    """The bytes that the signing key signs for a message (PROTOCOL.sshsig section 3)."""
    return _BEFORE_DIGEST + _string(hashlib.sha512(message).digest())


def verify(message: bytes, signature: Signature, key_type: KeyType, public: bytes) -> bool:
    """Whether the key signed the message in this structure."""
    structure = signed_message(message)
    if key_type is KeyType.SK_ED25519:
        structure = security_key_message(structure, signature.flags, signature.counter)
    return seal.verify(structure, signature.value, public)


def security_key_message(structure: bytes, flags: int, counter: int) -> bytes:
    """What a FIDO2 key signs in place of the structure itself (openssh PROTOCOL.u2f)."""
    application = hashlib.sha256(SECURITY_KEY_APPLICATION).digest()
    return application + struct.pack(">BI", flags, counter) + hashlib.sha256(structure).digest()
