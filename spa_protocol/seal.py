"""Keys and boxes: X25519, BLAKE2b, XChaCha20-Poly1305 and Ed25519, all of them libsodium's.

docs/protocol.md section 5. This is the only module of the protocol that imports nacl.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

from spa_protocol.layout import KEY_SIZE, LABEL, MAC_SIZE, TAG_SIZE, TAGS

_PROBE_SCALAR: Final = bytes([8]) + bytes(30) + bytes([64])


class WeakKey(ValueError):
    """A public key of small order or off the curve: whoever brings it proves nothing with it."""


@dataclass(frozen=True, slots=True)
class PairKeys:
    """The three secrets, 32 bytes each, that one client key and one server share."""

    tag: bytes
    knock: bytes
    reply: bytes

    def __repr__(self) -> str:
        return "PairKeys(...)"

    def tag_at(self, epoch: int, number: int = 0) -> bytes:
        """8 bytes that name the client key to this server during one epoch.

        Number 0 is the key's usual tag; 1 to 63 are its spare ones.
        """
        return tag_for(self.tag, epoch, number)

    def is_tag_of(self, tag: bytes, epoch: int) -> bool:
        """Whether it is one of the key's tags in this epoch."""
        return any(self.tag_at(epoch, number) == tag for number in range(TAGS))


def tag_for(tag_key: bytes, epoch: int, number: int = 0) -> bytes:
    """BLAKE2b-64, keyed with K.tag, of the epoch as u64; of a spare tag, with its number as u8."""
    if not 0 <= number < TAGS:
        raise ValueError(f"there is no tag {number}; they are 0 to {TAGS - 1}")
    data = epoch.to_bytes(8) + (bytes([number]) if number else b"")
    return hashlib.blake2b(data, key=tag_key, digest_size=TAG_SIZE).digest()


def agreement_public(secret: bytes) -> bytes:
    """The X25519 public key, 32 bytes, of a 32-byte secret."""
    public: bytes = sodium.crypto_scalarmult_base(secret)
    return public


def signing_public(seed: bytes) -> bytes:
    """The Ed25519 public key, 32 bytes, of a 32-byte seed (RFC 8032 section 5.1.5)."""
    public: bytes = sodium.crypto_sign_seed_keypair(seed)[0]
    return public


def pair_keys(
    own_secret: bytes, peer_public: bytes, *, agreement: bytes, server: bytes, signing: bytes
) -> PairKeys:
    """K.tag, K.knock and K.reply.

    Args: the caller's X25519 secret and the other side's public key, then the three public keys
    (the client's agreement key, the server's, the client's signing key) that the secrets are bound
    to; both sides pass the same three. Raises WeakKey when the shared secret would be zero.
    """
    try:
        shared = sodium.crypto_scalarmult(own_secret, peer_public)
    except (CryptoError, RuntimeError):
        raise WeakKey("an agreement key of small order") from None
    context = agreement + server + signing

    def derive(purpose: bytes) -> bytes:
        person = LABEL + b" " + purpose
        return hashlib.blake2b(context, key=shared, person=person, digest_size=KEY_SIZE).digest()

    return PairKeys(tag=derive(b"tag"), knock=derive(b"knock"), reply=derive(b"reply"))


def check_public(*, signing: bytes, agreement: bytes) -> None:
    """Raises WeakKey for keys that must never be enrolled (docs/protocol.md section 5.4)."""
    try:
        sodium.crypto_scalarmult(_PROBE_SCALAR, agreement)
    except (CryptoError, RuntimeError):
        raise WeakKey("the agreement key is of small order") from None
    if not sodium.crypto_core_ed25519_is_valid_point(signing):
        raise WeakKey("the signing key is no point of the curve's prime-order group")


def seal(plain: bytes, *, associated: bytes, nonce: bytes, key: bytes) -> bytes:
    """XChaCha20-Poly1305-IETF: the plain text's length plus 16 bytes."""
    box: bytes = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, associated, nonce, key)
    return box


def unseal(box: bytes, *, associated: bytes, nonce: bytes, key: bytes) -> bytes | None:
    """The plain text, or None where the box was not made with this key, nonce and data."""
    if len(box) < MAC_SIZE:
        return None
    try:
        plain: bytes = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
            box, associated, nonce, key
        )
    except (CryptoError, RuntimeError):
        return None
    return plain


def sign(message: bytes, seed: bytes) -> bytes:
    """An Ed25519 signature, 64 bytes."""
    _, secret = sodium.crypto_sign_seed_keypair(seed)
    signed: bytes = sodium.crypto_sign(message, secret)
    return signed[:64]


def verify(message: bytes, signature: bytes, public: bytes) -> bool:
    """Whether this is the key's signature; one that is not canonical is none."""
    try:
        sodium.crypto_sign_open(signature + message, public)
    except (CryptoError, RuntimeError):
        return False
    return True


def invite_secrets(token: bytes) -> tuple[bytes, bytes]:
    """The Ed25519 seed and the X25519 secret that a 32-byte invite token stands for."""

    def derive(purpose: bytes) -> bytes:
        person = LABEL + b" invite " + purpose
        return hashlib.blake2b(key=token, person=person, digest_size=KEY_SIZE).digest()

    return derive(b"sign"), derive(b"dh")
