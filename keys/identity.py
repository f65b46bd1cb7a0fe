"""A client's private key: the Ed25519 seed it signs with and the X25519 secret it agrees with.

The file's secret (`keys/keyfile.py`) is the seed, 32 bytes, and the agreement secret, 32 bytes.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keys import keyfile, privatefile
from keys.keyfile import KeyFile, Kind
from keys.privatefile import KeyFileError
from keys.text import clean_comment, printable
from spa_protocol import publickey, seal, sshsig
from spa_protocol.layout import KEY_SIZE
from spa_protocol.publickey import PublicKey
from spa_protocol.seal import PairKeys, WeakKey
from spa_protocol.sshsig import KeyType, Signature

__all__ = ["Identity", "KeyFileError", "generate", "load", "load_public", "save"]

_SIGNING_HERE: Final = "here"
_SECRET_SIZE: Final = 2 * KEY_SIZE


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair that can knock. Its secrets are in no repr."""

    public: PublicKey
    comment: str
    _seed: bytes = field(repr=False)
    _agreement: bytes = field(repr=False)

    @classmethod
    def from_secrets(cls, seed: bytes, agreement: bytes, comment: str = "") -> "Identity":
        """From an Ed25519 seed and an X25519 secret, 32 bytes each."""
        public = PublicKey(
            KeyType.ED25519, seal.signing_public(seed), seal.agreement_public(agreement)
        )
        return cls(public, comment, seed, agreement)

    @classmethod
    def from_invite(cls, token: bytes) -> "Identity":
        """The key that an invite's 32-byte token stands for: it may only join."""
        return cls.from_secrets(*seal.invite_secrets(token), comment="invite")

    def sign(self, message: bytes) -> Signature:
        """The signature over the message in OpenSSH's structure (docs/protocol.md section 5.3)."""
        return Signature(seal.sign(sshsig.signed_message(message), self._seed))

    def pair_with(self, server: bytes) -> PairKeys:
        """The secrets shared with a server's public key, 32 bytes. Raises WeakKey."""
        return publickey.client_pair(self._agreement, server, self.public)


def generate(comment: str = "") -> Identity:
    """A new key from the system's random bytes."""
    seed, agreement = secrets.token_bytes(KEY_SIZE), secrets.token_bytes(KEY_SIZE)
    return Identity.from_secrets(seed, agreement, clean_comment(comment))


def save(
    identity: Identity, path: Path, passphrase: str | None, *, overwrite: bool = False
) -> None:
    """Writes the key file, mode 0600, whole or not at all. Raises KeyFileError.

    With a passphrase it takes about a second and 256 MiB; without one (None or empty) the secrets
    stand in the file.
    """
    file = keyfile.seal_file(
        Kind.CLIENT,
        comment=clean_comment(identity.comment),
        public=identity.public.packed,
        signing=_SIGNING_HERE,
        secret=identity._seed + identity._agreement,
        passphrase=passphrase,
    )
    privatefile.write(path, bytes(file), overwrite=overwrite)


def load(path: Path, ask: Callable[[str], str] | None) -> Identity:
    """The key in the file. Raises KeyFileError.

    `ask` gets a question and returns the passphrase; it is called once, and only if there is one.
    None says that nobody can be asked.
    """
    file = keyfile.load(path, Kind.CLIENT)
    public = _public(path, file)
    if file.signing != _SIGNING_HERE:
        where = printable(file.signing)
        raise KeyFileError(f"{path} keeps its signing key elsewhere ({where})", "use a newer one")
    secret = keyfile.open_secret(path, file, _SECRET_SIZE, ask)
    identity = Identity.from_secrets(secret[:KEY_SIZE], secret[KEY_SIZE:], file.comment)
    if identity.public != public:
        raise keyfile.damaged(path, "its public key is another's")
    return identity


def load_public(path: Path) -> tuple[PublicKey, str]:
    """The public key and the comment, without the passphrase. Raises KeyFileError."""
    file = keyfile.load(path, Kind.CLIENT)
    return _public(path, file), file.comment


def _public(path: Path, file: KeyFile) -> PublicKey:
    packed = file.public
    if len(packed) != 1 + _SECRET_SIZE or packed[0] not in set(KeyType):
        raise keyfile.damaged(path, "no public key")
    public = PublicKey(KeyType(packed[0]), packed[1 : 1 + KEY_SIZE], packed[1 + KEY_SIZE :])
    try:
        public.check()
    except WeakKey as weak:
        raise keyfile.damaged(path, str(weak)) from None
    return public
