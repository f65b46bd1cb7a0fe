"""A server's private key: the X25519 secret that every client's knocks are sealed for.

It signs nothing and has no passphrase, since the daemon starts with nobody there to ask.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keys import keyfile, privatefile
from keys.keyfile import Kind
from spa_protocol import seal
from spa_protocol.layout import KEY_SIZE

_NO_SIGNING: Final = "none"


@dataclass(frozen=True, slots=True)
class ServerKey:
    """The secret, in no repr, and the public key; 32 bytes each."""

    secret: bytes = field(repr=False)
    public: bytes


def generate() -> ServerKey:
    """A new key from the system's random bytes."""
    return from_secret(secrets.token_bytes(KEY_SIZE))


def from_secret(secret: bytes) -> ServerKey:
    """The key of a 32-byte X25519 secret."""
    return ServerKey(secret, seal.agreement_public(secret))


def save(key: ServerKey, path: Path, *, overwrite: bool = False) -> None:
    """Writes the key file, mode 0600, whole or not at all. Raises KeyFileError."""
    file = keyfile.seal_file(
        Kind.SERVER,
        comment="",
        public=key.public,
        signing=_NO_SIGNING,
        secret=key.secret,
        passphrase=None,
    )
    privatefile.write(path, bytes(file), overwrite=overwrite)


def load(path: Path, *, service: int | None = None) -> ServerKey:
    """The key in the file, which may belong to `service` when root asks. Raises KeyFileError."""
    file = keyfile.load(path, Kind.SERVER, service=service)
    key = from_secret(keyfile.open_secret(path, file, KEY_SIZE, ask=None))
    if key.public != file.public:
        raise keyfile.damaged(path, "its public key is another's")
    return key
