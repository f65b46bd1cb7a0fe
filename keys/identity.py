"""A client's private key: the Ed25519 key it signs with and the X25519 secret it agrees with.

The secret in its file (`keys/keyfile.py`) is the signing key's seed, 32 bytes, and the agreement
secret, 32 bytes. Where `signing` says `agent`, ssh-agent has the signing key, and the secret is the
agreement secret alone.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keys import keyfile, privatefile
from keys.keyfile import KeyFile, Kind, WrongPassphrase
from keys.passphrase import Ask
from keys.privatefile import KeyFileError
from keys.text import clean_comment, printable
from spa_protocol import publickey, seal, sshsig
from spa_protocol.layout import KEY_SIZE
from spa_protocol.publickey import PublicKey
from spa_protocol.seal import PairKeys, WeakKey
from spa_protocol.sshsig import KeyType, Signature

if TYPE_CHECKING:
    from keys.agent import Tell

__all__ = [
    "Described",
    "Identity",
    "KeyFileError",
    "describe",
    "generate",
    "in_agent",
    "is_in_keyring",
    "load",
    "load_public",
    "save",
]

_HERE: Final = "here"
_IN_AGENT: Final = "agent"
_SECRET_SIZES: Final = {_HERE: 2 * KEY_SIZE, _IN_AGENT: KEY_SIZE}


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair that can knock. Its secrets are in no repr.

    `_seed` is None where ssh-agent signs; `_tell` is told what a person has to do for that.
    """

    public: PublicKey
    comment: str
    _seed: bytes | None = field(repr=False)
    _agreement: bytes = field(repr=False)
    _tell: "Tell | None" = field(default=None, compare=False, repr=False)

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

    @property
    def is_in_agent(self) -> bool:
        """Whether ssh-agent signs, so that signing takes its time and may fail."""
        return self._seed is None

    @property
    def needs_touch(self) -> bool:
        """Whether somebody has to touch a security key for each signature."""
        return self.public.key_type is KeyType.SK_ED25519

    def sign(self, message: bytes) -> Signature:
        """The signature over the message in OpenSSH's structure (docs/protocol.md section 5.3).

        Raises AgentTrouble where the signing key is in ssh-agent.
        """
        if self._seed is not None:
            return Signature(seal.sign(sshsig.signed_message(message), self._seed))
        from keys.agent import Signer  # noqa: PLC0415 - most keys never need it

        return Signer(self.public, self._tell).sign(message)

    def pair_with(self, server: bytes) -> PairKeys:
        """The secrets shared with a server's public key, 32 bytes. Raises WeakKey."""
        return publickey.client_pair(self._agreement, server, self.public)


def generate(comment: str = "") -> Identity:
    """A new key from the system's random bytes."""
    seed, agreement = secrets.token_bytes(KEY_SIZE), secrets.token_bytes(KEY_SIZE)
    return Identity.from_secrets(seed, agreement, clean_comment(comment))


def in_agent(
    key_type: KeyType, signing: bytes, comment: str = "", tell: "Tell | None" = None
) -> Identity:
    """A key whose signing half, by its public key of 32 bytes, is in ssh-agent; the rest is new."""
    agreement = secrets.token_bytes(KEY_SIZE)
    public = PublicKey(key_type, signing, seal.agreement_public(agreement))
    return Identity(public, clean_comment(comment), None, agreement, tell)


def save(
    identity: Identity,
    path: Path,
    passphrase: str | None,
    *,
    in_keyring: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes the key file, mode 0600, whole or not at all. Raises KeyFileError.

    With a passphrase it takes about a second and 256 MiB; without one (None or empty) the secrets
    stand in the file. `in_keyring` notes that the system's keyring has it (keys/oskeyring.py).
    """
    file = keyfile.seal_file(
        Kind.CLIENT,
        comment=clean_comment(identity.comment),
        public=identity.public.packed,
        signing=_IN_AGENT if identity.is_in_agent else _HERE,
        secret=(identity._seed or b"") + identity._agreement,
        passphrase=passphrase,
        in_keyring=in_keyring,
    )
    privatefile.write(path, bytes(file), overwrite=overwrite)


def load(
    path: Path, ask: Ask | None, *, tell: "Tell | None" = None, use_keyring: bool = True
) -> Identity:
    """The key in the file. Raises KeyFileError.

    `ask` gets a question and returns the passphrase; it is called only if there is one. None says
    that nobody can be asked. The system's keyring goes before it, where the file says that it has
    the passphrase and `use_keyring` does not forbid. `tell` is told what ssh-agent waits for.
    """
    file = keyfile.load(path, Kind.CLIENT)
    public = _public(path, file)
    size = _SECRET_SIZES.get(file.signing)
    if size is None:
        where = printable(file.signing)
        raise KeyFileError(f"{path} keeps its signing key elsewhere ({where})", "use a newer one")
    secret = _opened(path, file, size, ask, tell, use_keyring=use_keyring)
    seed, agreement = secret[:-KEY_SIZE] or None, secret[-KEY_SIZE:]
    if seed is None:
        halves = PublicKey(public.key_type, public.signing, seal.agreement_public(agreement))
        found = Identity(halves, file.comment, None, agreement, tell)
    else:
        found = Identity.from_secrets(seed, agreement, file.comment)
    if found.public != public:
        raise keyfile.damaged(path, "its public key is another's")
    return found


def load_public(path: Path) -> tuple[PublicKey, str]:
    """The public key and the comment, without the passphrase. Raises KeyFileError."""
    file = keyfile.load(path, Kind.CLIENT)
    return _public(path, file), file.comment


@dataclass(frozen=True, slots=True)
class Described:
    """What a key file says of itself. `guard` is `passphrase`, `keyring` or `nothing`."""

    public: PublicKey
    comment: str
    guard: str
    is_in_agent: bool


def describe(path: Path) -> Described:
    """What can be known without the passphrase. Raises KeyFileError."""
    file = keyfile.load(path, Kind.CLIENT)
    guard = "nothing" if file.kdf is None else "keyring" if file.kdf.in_keyring else "passphrase"
    return Described(_public(path, file), file.comment, guard, file.signing == _IN_AGENT)


def is_in_keyring(path: Path) -> bool:
    """Whether the system's keyring has the passphrase, as the file says. Raises KeyFileError."""
    kdf = keyfile.load(path, Kind.CLIENT).kdf
    return kdf is not None and kdf.in_keyring


def _opened(
    path: Path, file: KeyFile, size: int, ask: Ask | None, tell: "Tell | None", *, use_keyring: bool
) -> bytes:
    """The secret, by the passphrase that the keyring has, else by the one that is asked for."""
    if not (file.kdf and file.kdf.in_keyring and use_keyring):
        return keyfile.open_secret(path, file, size, ask)
    from keys import oskeyring  # noqa: PLC0415 - slow, and most keys never need it

    try:
        known = oskeyring.recall(_public(path, file).key_id)
        return keyfile.open_secret(path, file, size, lambda _: known)
    except oskeyring.NoKeyring as none:
        said = str(none)
    except WrongPassphrase:
        said = f"the passphrase that the keyring holds does not open {path}"
    if tell is not None:
        tell(said)
    return keyfile.open_secret(path, file, size, ask)


def _public(path: Path, file: KeyFile) -> PublicKey:
    packed = file.public
    if len(packed) != 1 + 2 * KEY_SIZE or packed[0] not in set(KeyType):
        raise keyfile.damaged(path, "no public key")
    public = PublicKey(KeyType(packed[0]), packed[1 : 1 + KEY_SIZE], packed[1 + KEY_SIZE :])
    try:
        public.check()
    except WeakKey as weak:
        raise keyfile.damaged(path, str(weak)) from None
    return public
