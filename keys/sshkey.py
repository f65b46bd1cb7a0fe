"""SSH public keys as OpenSSH writes them, and which of them can sign a knock.

    ssh-ed25519 AAAA... comment                     RFC 8709: signs as a key of type 1
    sk-ssh-ed25519@openssh.com AAAA... comment      openssh PROTOCOL.u2f: a key of type 2

Nothing else can: no RSA, no ECDSA, no certificate, and no security key that was made for another
application than "ssh:" (docs/protocol.md section 5.3).
"""

import base64
import binascii
import hashlib
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keys.text import clean_comment, printable
from keys.trouble import Trouble
from spa_protocol.layout import KEY_SIZE
from spa_protocol.publickey import PublicKey
from spa_protocol.sshsig import SECURITY_KEY_APPLICATION, KeyType

ALGORITHMS: Final = {
    KeyType.ED25519: b"ssh-ed25519",
    KeyType.SK_ED25519: b"sk-ssh-ed25519@openssh.com",
}

_STDIN: Final = Path("-")
_MAX_FILE: Final = 65_536
_PRIVATE: Final = b"-----BEGIN"
_CERTIFICATE: Final = "-cert-v01@openssh.com"
_MAKE: Final = "make one: ssh-keygen -t ed25519"
_MAKE_SK: Final = "make one: ssh-keygen -t ed25519-sk"
_FAMILIES: Final = {
    "ssh-rsa": ("an RSA key", _MAKE),
    "ssh-dss": ("a DSA key", _MAKE),
    "ecdsa-sha2-": ("an ECDSA key", _MAKE),
    "sk-ecdsa-sha2-": ("an ECDSA security key", _MAKE_SK),
}


class Torn(ValueError):
    """Bytes that are not what SSH writes. The message is for a developer."""


class CannotKnock(Trouble):
    """An SSH key of a kind that signs no knock; `what` says which kind, like "an RSA key"."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what} cannot sign a knock; only Ed25519 keys can", hint)
        self.what = what


class Reader:
    """Takes the parts of an SSH message one by one (RFC 4251 section 5). Each raises Torn."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def byte(self) -> int:
        """One byte."""
        return self._take(1)[0]

    def number(self) -> int:
        """A uint32."""
        return int.from_bytes(self._take(4))

    def string(self) -> bytes:
        """A string: its length, a uint32, and its bytes."""
        return self._take(self.number())

    def end(self) -> None:
        """Raises Torn where something is left."""
        if self._at != len(self._content):
            raise Torn(f"{len(self._content) - self._at} bytes too many")

    def _take(self, size: int) -> bytes:
        taken = self._content[self._at : self._at + size]
        if len(taken) != size:
            raise Torn(f"{size - len(taken)} bytes are missing")
        self._at += size
        return taken


def string(value: bytes) -> bytes:
    """A string as SSH writes it (RFC 4251 section 5)."""
    return struct.pack(">I", len(value)) + value


@dataclass(frozen=True, slots=True)
class SshKey:
    """A public key: `blob` is the key itself, in the form that SSH sends and agents go by."""

    blob: bytes
    comment: str

    @property
    def fingerprint(self) -> str:
        """`SHA256:...`, as `ssh-add -l` shows it."""
        return fingerprint(self.blob)

    def signing_key(self) -> tuple[KeyType, bytes]:
        """What a knock is verified against: type, and 32 bytes. Raises CannotKnock, Torn."""
        reader = Reader(self.blob)
        algorithm = reader.string()
        if algorithm == ALGORITHMS[KeyType.ED25519]:
            key_type = KeyType.ED25519
        elif algorithm == ALGORITHMS[KeyType.SK_ED25519]:
            key_type = KeyType.SK_ED25519
        else:
            raise _cannot_knock(algorithm)
        public = reader.string()
        if len(public) != KEY_SIZE:
            raise Torn(f"a public key of {len(public)} bytes")
        if key_type is KeyType.SK_ED25519:
            _check_application(reader.string())
        reader.end()
        return key_type, public


def fingerprint(blob: bytes) -> str:
    """`SHA256:` and the hash of a key in base64 without padding."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode()
    return f"SHA256:{digest.rstrip('=')}"


def blob_of(public: PublicKey) -> bytes:
    """The SSH key that makes the signatures of a client key."""
    blob = string(ALGORITHMS[public.key_type]) + string(public.signing)
    if public.key_type is KeyType.SK_ED25519:
        blob += string(SECURITY_KEY_APPLICATION)
    return blob


def parse_line(line: str) -> SshKey:
    """From `algorithm base64 comment`, as in a file id_ed25519.pub. Raises Torn."""
    words = line.split(None, 2)
    if len(words) < 2:
        raise Torn("not an SSH public key")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise Torn("no base64") from None
    if Reader(blob).string() != words[0].encode(errors="replace"):
        raise Torn("two different algorithms are named")
    return SshKey(blob, clean_comment(words[2] if len(words) > 2 else ""))


def read(path: Path) -> SshKey:
    """The one SSH key of a public key file, which can sign a knock; `-` is stdin.

    Raises Trouble and OSError.
    """
    content = _content(path)
    if content.startswith(_PRIVATE):
        hint = f"name its public half: {path}.pub"
        raise Trouble(f"{path} is a private SSH key, which only ssh-agent reads", hint)
    lines = [line.strip() for line in content.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    try:
        if len(lines) != 1:
            raise Torn(f"{len(lines)} lines")
        key = parse_line(lines[0])
        key.signing_key()
    except Torn as torn:
        hint = "expected one line like 'ssh-ed25519 AAAA...'"
        raise Trouble(f"{path} holds no SSH public key ({torn})", hint) from None
    except CannotKnock as cannot:
        raise Trouble(f"{path}: {cannot.message}", cannot.hint) from None
    return key


def _content(path: Path) -> bytes:
    if path == _STDIN:
        return sys.stdin.buffer.read(_MAX_FILE)
    with path.open("rb") as file:
        return file.read(_MAX_FILE)


def _cannot_knock(algorithm: bytes) -> CannotKnock:
    name = algorithm.decode(errors="replace")
    if name.endswith(_CERTIFICATE):
        return CannotKnock("an SSH certificate", "use the key that it was made for")
    for beginning, (what, hint) in _FAMILIES.items():
        if name.startswith(beginning):
            return CannotKnock(what, hint)
    return CannotKnock(f"an SSH key of type {printable(name)[:60]}", _MAKE)


def _check_application(application: bytes) -> None:
    if application == SECURITY_KEY_APPLICATION:
        return
    shown = printable(application.decode(errors="replace"))[:60]
    raise CannotKnock(
        f"a security key made for the application '{shown}'",
        f"one for 'ssh:' is needed; {_MAKE_SK}",
    )
