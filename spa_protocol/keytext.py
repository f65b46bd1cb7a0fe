"""Keys and invites as one line of text each: docs/protocol.md section 9.

    spa-key <base64> comment              a client's public key, to be enrolled at a server
    spa-server <base64> host:port         a server's public key and where to knock
    spa://host:port/<base64url>           an invite, which is a secret

Each ends its bytes with a checksum of 4, so that a line torn or mistyped on its way is refused.
"""

import base64
import binascii
import hashlib
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final

from spa_protocol.layout import DEFAULT_PORT, KEY_SIZE
from spa_protocol.publickey import PublicKey
from spa_protocol.seal import WeakKey
from spa_protocol.sshsig import KeyType

_CHECKSUM_SIZE: Final = 4
_BLANKS: Final = re.compile(r"[ \t]+")
_KEY_WORD: Final = "spa-key"
_SERVER_WORD: Final = "spa-server"
_INVITE_SCHEME: Final = "spa://"
_INVITE_VERSION: Final = b"\x01"


class BadKeyText(ValueError):
    """A line that is not what it should be. The message says what was expected."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to knock: a host name or address, and a UDP port."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def of_line(cls, text: str) -> "Endpoint":
        """As a server line or an invite has it (section 9.6): an IPv6 address in brackets, without
        a zone, and a port without leading zeros, which may be missing. Raises BadKeyText."""
        endpoint = cls.parse(text)
        if text not in (str(endpoint), str(endpoint).removesuffix(f":{DEFAULT_PORT}")):
            raise BadKeyText("host and port are not spelt as in a line; write host:port")
        if "%" in endpoint.host:
            raise BadKeyText("an address in a line has no zone")
        return endpoint

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """From `host`, `host:port`, `[v6]:port` or a bare IPv6 address.

        Raises BadKeyText, which does not repeat the text: it may be a misplaced invite.
        """
        host, colon, port = text.rpartition(":")
        is_bare_v6 = text.count(":") > 1 and not text.startswith("[")
        if not colon or is_bare_v6 or text.endswith("]"):
            host, port = text, str(DEFAULT_PORT)
        is_bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if is_bracketed else host
        if not (_is_ipv6(host) if is_bracketed or ":" in host else _is_name(host)):
            raise BadKeyText("no host is named; write host, host:port or [IPv6]:port")
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
            raise BadKeyText("the port is no number from 1 to 65535; write host:port")
        return cls(host, int(port))


def _is_name(text: str) -> bool:
    return bool(text) and not any(c.isspace() or not c.isprintable() or c in "/[]@" for c in text)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return _is_name(text)


@dataclass(frozen=True, slots=True)
class ServerLine:
    """A server's public agreement key, 32 bytes, and where to knock."""

    public: bytes
    endpoint: Endpoint

    def __str__(self) -> str:
        return f"{_SERVER_WORD} {_pack(self.public, str(self.endpoint))} {self.endpoint}"

    @classmethod
    def parse(cls, line: str) -> "ServerLine":
        """Raises BadKeyText."""
        words = _words(line)
        if len(words) != 3 or words[0] != _SERVER_WORD:
            raise BadKeyText(f"not a server line; expected '{_SERVER_WORD} <base64> host:port'")
        endpoint = Endpoint.of_line(words[2])
        return cls(_unpack(words[1], KEY_SIZE, str(endpoint), "server line"), endpoint)


@dataclass(frozen=True, slots=True)
class Invite:
    """A secret token, 32 bytes, that lets its holder enrol one key at this server."""

    token: bytes = field(repr=False)
    server: bytes
    endpoint: Endpoint

    def reveal(self) -> str:
        """The line to hand over. It is a secret, and belongs in no log.

        Given to a program as an argument, others on the machine can see it: read it from stdin.
        """
        packed = _pack(_INVITE_VERSION + self.token + self.server, str(self.endpoint), url=True)
        return f"{_INVITE_SCHEME}{self.endpoint}/{packed}"

    @classmethod
    def parse(cls, line: str) -> "Invite":
        """Raises BadKeyText; its message holds nothing of the secret."""
        where, slash, packed = line.strip().removeprefix(_INVITE_SCHEME).partition("/")
        if not line.strip().startswith(_INVITE_SCHEME) or not slash:
            raise BadKeyText(f"not an invite; expected '{_INVITE_SCHEME}host:port/...'")
        endpoint = Endpoint.of_line(where)
        size = len(_INVITE_VERSION) + 2 * KEY_SIZE
        value = _unpack(packed, size, str(endpoint), "invite", url=True)
        if value[:1] != _INVITE_VERSION:
            raise BadKeyText("an invite of a later version; a newer spa-client may read it")
        return cls(value[1 : 1 + KEY_SIZE], value[1 + KEY_SIZE :], endpoint)


def format_key(public: PublicKey, comment: str = "") -> str:
    """The `spa-key` line of a client's public key."""
    return f"{_KEY_WORD} {_pack(public.packed, '')} {' '.join(comment.split())}".rstrip()


def parse_key(line: str) -> tuple[PublicKey, str]:
    """A public key and its comment. Raises BadKeyText, also for a key that is never enrolled."""
    word, packed, comment = (*_words(line, 3), "", "", "")[:3]
    if word != _KEY_WORD or not packed:
        raise BadKeyText(f"not a key line; expected '{_KEY_WORD} <base64> comment'")
    value = _unpack(packed, 1 + 2 * KEY_SIZE, "", "key line")
    if value[0] not in set(KeyType):
        raise BadKeyText(f"key type {value[0]} is not known; a newer version may read it")
    public = PublicKey(KeyType(value[0]), value[1 : 1 + KEY_SIZE], value[1 + KEY_SIZE :])
    try:
        public.check()
    except WeakKey as weak:
        raise BadKeyText(f"this key may not be used: {weak}") from None
    return public, comment.strip()


def _words(line: str, most: int = 0) -> list[str]:
    """What blanks and tabs part, `most` words of them, the last with the rest; line ends fall."""
    return _BLANKS.split(line.strip(" \t\r\n"), maxsplit=most - 1 if most else 0)


def _checksum(value: bytes, text: str) -> bytes:
    covered = value + text.encode()
    return hashlib.blake2b(covered, digest_size=_CHECKSUM_SIZE, person=b"spa1 text").digest()


def _pack(value: bytes, text: str, *, url: bool = False) -> str:
    whole = value + _checksum(value, text)
    return (base64.urlsafe_b64encode(whole) if url else base64.b64encode(whole)).decode()


def _unpack(packed: str, size: int, text: str, what: str, *, url: bool = False) -> bytes:
    try:
        whole = base64.b64decode(packed, altchars=b"-_" if url else None, validate=True)
    except (binascii.Error, ValueError):
        raise BadKeyText(f"the {what} is not whole: it is no base64") from None
    value = whole[:-_CHECKSUM_SIZE]
    if len(value) != size or packed != _pack(value, text, url=url):
        raise BadKeyText(f"the {what} is not whole: its checksum does not fit; copy it again")
    return value
