"""The text file that a private key is kept in, format 1.

    spa-private-key 1 client
    comment: alice@laptop
    public: <base64>
    signing: here
    kdf: argon2id 3 268435456 <salt, base64>
    secret: <base64>

The comment and the public key are readable without the passphrase. `secret` is the secret itself
where `kdf` is `none`; else it is a nonce of 24 bytes and an XChaCha20-Poly1305 box, sealed with the
passphrase through Argon2id, with every line above it as associated data: so nothing of it can be
changed unseen. One file has one encoding, to the byte.

`signing` says where the signing half is: `here`, in the secret; `agent`, in ssh-agent; or that
there is `none`. `kdf` ends with the word `keyring` where the system's keyring has the passphrase.

An export (`spa-keys export`) is such a file too: of the kind `export`, with nothing public, always
with a passphrase, and its secret is what keys/transfer.py puts into it.
"""

import base64
import binascii
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

import nacl.exceptions
from nacl.pwhash import argon2id

from keys import privatefile
from keys.privatefile import KeyFileError, Missing
from keys.text import printable
from spa_protocol import seal
from spa_protocol.layout import KEY_SIZE, MAC_SIZE, NONCE_SIZE

MAGIC: Final = "spa-private-key"
VERSION: Final = 1
_FIELDS: Final = ("comment", "public", "signing", "kdf", "secret")
_NO_KDF: Final = "none"
_KEYRING: Final = "keyring"
# What a file may demand: what libsodium calls sensitive. More would let a file eat all memory.
_MAX_OPS: Final = argon2id.OPSLIMIT_SENSITIVE
_MAX_MEMORY: Final = argon2id.MEMLIMIT_SENSITIVE


class Kind(StrEnum):
    """Whose key it is; or that it is the export of a client's keys."""

    CLIENT = "client"
    SERVER = "server"
    EXPORT = "export"


_MADE_BY: Final = {
    Kind.CLIENT: "make one with 'spa-keys generate'",
    Kind.SERVER: "make one with 'spa-server init'",
    Kind.EXPORT: "make one with 'spa-keys export' where the keys are",
}


class WrongPassphrase(KeyFileError):
    """The passphrase opens nothing, or the file was altered: the two look the same."""


class Torn(ValueError):
    """A text that is no whole key file. The message is for a developer."""


@dataclass(frozen=True, slots=True)
class Argon2id:
    """How a passphrase becomes a key: passes, bytes of memory, and 16 bytes of salt.

    `in_keyring` says that the system's keyring has the passphrase.
    """

    ops: int
    memory: int
    salt: bytes
    in_keyring: bool = False

    @classmethod
    def fresh(cls) -> Self:
        """libsodium's moderate limits (3 passes over 256 MiB) and a new salt."""
        salt = secrets.token_bytes(argon2id.SALTBYTES)
        return cls(argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE, salt)

    def key(self, passphrase: str) -> bytes:
        """32 bytes. Raises KeyFileError where this machine lacks the memory."""
        try:
            key: bytes = argon2id.kdf(
                KEY_SIZE,
                passphrase.encode(errors="surrogatepass"),
                self.salt,
                self.ops,
                self.memory,
            )
        except (nacl.exceptions.CryptoError, MemoryError):
            needed = f"{self.memory // 2**20} MiB"
            what = f"the passphrase needs {needed} of memory to be tried"
            raise KeyFileError(what, "end other programs, or use a machine that has it") from None
        return key

    def __str__(self) -> str:
        keyring = f" {_KEYRING}" if self.in_keyring else ""
        return f"argon2id {self.ops} {self.memory} {_base64(self.salt)}{keyring}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises Torn."""
        words = text.split(" ")
        in_keyring = words[4:] == [_KEYRING]
        if len(words) != 4 + in_keyring or words[0] != "argon2id":
            raise Torn("not a kdf line")
        ops, memory, salt = _number(words[1]), _number(words[2]), _bytes(words[3])
        if len(salt) != argon2id.SALTBYTES:
            raise Torn("a salt of the wrong size")
        if not argon2id.OPSLIMIT_MIN <= ops <= _MAX_OPS:
            raise Torn("passes out of bounds")
        if not argon2id.MEMLIMIT_MIN <= memory <= _MAX_MEMORY:
            raise Torn("memory out of bounds")
        return cls(ops, memory, salt, in_keyring)


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What stands in a key file. `secret` is sealed unless `kdf` is None."""

    kind: Kind
    comment: str
    public: bytes
    signing: str
    kdf: Argon2id | None
    secret: bytes = field(repr=False)

    @property
    def header(self) -> str:
        """Every line before the secret, each with its line end."""
        lines = (
            f"{MAGIC} {VERSION} {self.kind}",
            f"comment: {self.comment}",
            f"public: {_base64(self.public)}",
            f"signing: {self.signing}",
            f"kdf: {self.kdf or _NO_KDF}",
        )
        return "".join(f"{line}\n" for line in lines)

    def __bytes__(self) -> bytes:
        return f"{self.header}secret: {_base64(self.secret)}\n".encode()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The inverse of `bytes()`. Raises Torn, or KeyFileError for another file or version."""
        try:
            lines = content.decode().split("\n")
        except UnicodeDecodeError:
            raise Torn("not UTF-8") from None
        kind = _first_line(lines[0])
        values = [_value(name, line) for name, line in zip(_FIELDS, lines[1:], strict=False)]
        if len(values) != len(_FIELDS):
            raise Torn("lines are missing")
        comment, public, signing, kdf, secret = values
        parsed_kdf = None if kdf == _NO_KDF else Argon2id.parse(kdf)
        parsed = cls(kind, comment, _bytes(public), signing, parsed_kdf, _bytes(secret))
        if bytes(parsed) != content:
            raise Torn("not the one encoding of its content")
        return parsed


def seal_file(
    kind: Kind,
    *,
    comment: str,
    public: bytes,
    signing: str,
    secret: bytes,
    passphrase: str | None,
    in_keyring: bool = False,
) -> KeyFile:
    """A key file of these values. No passphrase, or an empty one, leaves the secret in clear."""
    if not passphrase:
        return KeyFile(kind, comment, public, signing, None, secret)
    kdf = replace(Argon2id.fresh(), in_keyring=in_keyring)
    nonce = secrets.token_bytes(NONCE_SIZE)
    header = KeyFile(kind, comment, public, signing, kdf, b"").header
    box = seal.seal(secret, associated=header.encode(), nonce=nonce, key=kdf.key(passphrase))
    return KeyFile(kind, comment, public, signing, kdf, nonce + box)


def load(path: Path, kind: Kind, *, service: int | None = None) -> KeyFile:
    """The file, its secret still sealed; `service` as in privatefile.read. Raises KeyFileError."""
    try:
        parsed = KeyFile.parse(privatefile.read(path, service=service))
    except Missing as missing:
        raise Missing(missing.message, _MADE_BY[kind]) from None
    except Torn as torn:
        raise damaged(path, str(torn)) from None
    except _Unusable as unusable:
        raise KeyFileError(f"{path} {unusable.message}", unusable.hint) from None
    if parsed.kind is kind:
        return parsed
    if kind is Kind.EXPORT:
        what = f"{path} is no export, but the key of a {parsed.kind}"
        raise KeyFileError(what, _MADE_BY[kind])
    if parsed.kind is Kind.EXPORT:
        raise KeyFileError(f"{path} is an export, and no key", "unpack it with 'spa-keys import'")
    what = f"{path} holds the key of a {parsed.kind}, not of a {kind}"
    raise KeyFileError(what, _MADE_BY[kind])


def open_secret(
    path: Path, file: KeyFile, size: int | None, ask: Callable[[str], str] | None
) -> bytes:
    """The secret, `size` bytes; None is any size. `ask` is called once, if a passphrase guards it.

    Raises KeyFileError, and WrongPassphrase. `path` is for its message and for the question.
    """
    overhead = NONCE_SIZE + MAC_SIZE if file.kdf else 0
    if len(file.secret) < overhead or size not in (None, len(file.secret) - overhead):
        raise damaged(path, "a secret of the wrong size")
    return _unseal(path, file, file.kdf, ask) if file.kdf else file.secret


def damaged(path: Path, what: str) -> KeyFileError:
    """The error for a file that is not as it was written."""
    hint = "take it from a backup, or make a new key"
    return KeyFileError(f"{path} is not a whole key file ({what})", hint)


def _unseal(path: Path, file: KeyFile, kdf: Argon2id, ask: Callable[[str], str] | None) -> bytes:
    if ask is None:
        hint = "run this at a terminal, or use a key that has none"
        raise KeyFileError(f"{path} needs its passphrase and there is nobody to ask", hint)
    key = kdf.key(ask(f"Passphrase for {printable(str(path))}: "))
    nonce, box = file.secret[:NONCE_SIZE], file.secret[NONCE_SIZE:]
    secret = seal.unseal(box, associated=file.header.encode(), nonce=nonce, key=key)
    if secret is None:
        raise WrongPassphrase(f"wrong passphrase for {path}, or the file was altered", "try again")
    return secret


class _Unusable(KeyFileError):
    """A file that is something else, or of another version; said without its name."""


def _first_line(line: str) -> Kind:
    words = line.split(" ")
    if words[0] != MAGIC:
        raise _Unusable("is no private key of this program", "name the file that you mean")
    if len(words) < 2 or not words[1].isdecimal():
        raise Torn("no version")
    if words[1] != str(VERSION):
        raise _Unusable(
            f"is a key file of version {printable(words[1])}; this program reads {VERSION}",
            "use a newer one",
        )
    if len(words) != 3 or words[2] not in set(Kind):
        raise Torn("neither a client's nor a server's")
    return Kind(words[2])


def _value(name: str, line: str) -> str:
    if not line.startswith(f"{name}: "):
        raise Torn(f"no line {name!r} where it belongs")
    return line.removeprefix(f"{name}: ")


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Torn("no base64") from None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise Torn("no number")
    return int(text)
