"""The public half of a client's key: what a server enrols and a knock is verified against."""

import base64
import hashlib
from dataclasses import dataclass, field

from spa_protocol import seal
from spa_protocol.seal import PairKeys
from spa_protocol.sshsig import KeyType


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A signing key and an agreement key, 32 bytes each, that belong together."""

    key_type: KeyType
    signing: bytes
    agreement: bytes

    @property
    def packed(self) -> bytes:
        """65 bytes: type, signing key, agreement key."""
        return bytes([self.key_type]) + self.signing + self.agreement

    @property
    def key_id(self) -> str:
        """The key's name in records and commands: 16 letters and digits, BLAKE2b-80 in base32."""
        digest = hashlib.blake2b(self.packed, digest_size=10, person=b"spa1 key id").digest()
        return base64.b32encode(digest).decode().lower()

    def check(self) -> None:
        """Raises WeakKey unless it may be enrolled."""
        seal.check_public(signing=self.signing, agreement=self.agreement)


@dataclass(frozen=True, slots=True)
class Sender:
    """A client key, or an invite, as one server knows it.

    `server` is the server's public key, `pair` the secrets the two share, and `is_invite` says
    that the key may only join.
    """

    public: PublicKey
    server: bytes
    pair: PairKeys
    is_invite: bool = False
    key_id: str = field(init=False)

    def __post_init__(self) -> None:
        """The key's name is asked for with every datagram: it is hashed once."""
        object.__setattr__(self, "key_id", self.public.key_id)

    @classmethod
    def known_to(
        cls, server_secret: bytes, public: PublicKey, *, is_invite: bool = False
    ) -> "Sender":
        """Raises WeakKey for an agreement key of small order."""
        server = seal.agreement_public(server_secret)
        return cls(public, server, server_pair(server_secret, server, public), is_invite)


def server_pair(server_secret: bytes, server: bytes, public: PublicKey) -> PairKeys:
    """The shared secrets, computed at the server. Raises WeakKey."""
    return seal.pair_keys(
        server_secret,
        public.agreement,
        agreement=public.agreement,
        server=server,
        signing=public.signing,
    )


def client_pair(agreement_secret: bytes, server: bytes, public: PublicKey) -> PairKeys:
    """The same secrets, computed at the client. Raises WeakKey."""
    return seal.pair_keys(
        agreement_secret,
        server,
        agreement=public.agreement,
        server=server,
        signing=public.signing,
    )
