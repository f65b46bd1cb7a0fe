"""Signatures, held against OpenSSH's own `ssh-keygen -Y`: docs/protocol.md section 5.3."""

import base64
import hashlib
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from spa_protocol import seal, sshsig
from spa_protocol.sshsig import KeyType, Signature, security_key_message, signed_message, verify

MESSAGE: Final = bytes(range(176))
SEED: Final = bytes(range(32))
PUBLIC: Final = seal.signing_public(SEED)
NAMESPACE: Final = "spa1 knock"
PLAIN_NAME: Final = b"ssh-ed25519"
TOUCH_NAME: Final = b"sk-ssh-ed25519@openssh.com"

needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed"
)


def touched(
    message: bytes = MESSAGE, flags: int = 1, counter: int = 41, application: bytes = b"ssh:"
) -> Signature:
    """As a security key signs: openssh PROTOCOL.u2f, "SSH U2F Signatures"."""
    covered = (
        hashlib.sha256(application).digest()
        + struct.pack(">BI", flags, counter)
        + hashlib.sha256(signed_message(message)).digest()
    )
    return Signature(seal.sign(covered, SEED), flags, counter)


# The structure


def test_the_structure_byte_for_byte() -> None:
    structure = signed_message(MESSAGE)
    assert structure == (
        bytes.fromhex("535348534947 0000000a 73706131206b6e6f636b 00000000")
        + bytes.fromhex("00000006 736861353132 00000040")
        + hashlib.sha512(MESSAGE).digest()
    )
    assert len(structure) == 102


def test_a_plain_key() -> None:
    signature = Signature(seal.sign(signed_message(MESSAGE), SEED))
    assert verify(MESSAGE, signature, KeyType.ED25519, PUBLIC)
    assert not verify(MESSAGE + b"\0", signature, KeyType.ED25519, PUBLIC)
    assert not verify(MESSAGE, signature, KeyType.ED25519, seal.signing_public(bytes(32)))
    assert not verify(MESSAGE, signature, KeyType.SK_ED25519, PUBLIC)
    assert not verify(MESSAGE, Signature(bytes(64)), KeyType.ED25519, PUBLIC)


def test_a_signature_without_the_structure_is_none() -> None:
    for bare in (MESSAGE, hashlib.sha512(MESSAGE).digest()):
        assert not verify(MESSAGE, Signature(seal.sign(bare, SEED)), KeyType.ED25519, PUBLIC)


def test_a_signature_that_is_not_canonical_is_none() -> None:
    """S and S + L are one number to a careless verifier: RFC 8032 section 5.1.7 asks for S < L."""
    order = 2**252 + 27742317777372353535851937790883648493
    value = seal.sign(signed_message(MESSAGE), SEED)
    raised = int.from_bytes(value[32:], "little") + order
    twin = value[:32] + raised.to_bytes(32, "little")
    assert not verify(MESSAGE, Signature(twin), KeyType.ED25519, PUBLIC)


# Security keys


def test_a_security_key() -> None:
    signature = touched()
    assert verify(MESSAGE, signature, KeyType.SK_ED25519, PUBLIC)
    assert not verify(MESSAGE + b"\0", signature, KeyType.SK_ED25519, PUBLIC)
    assert not verify(MESSAGE, signature, KeyType.ED25519, PUBLIC)


def test_a_security_keys_flags_and_counter_are_signed() -> None:
    signature = touched(flags=0)
    assert verify(MESSAGE, signature, KeyType.SK_ED25519, PUBLIC)
    for forged in (replace(signature, flags=1), replace(signature, counter=42)):
        assert not verify(MESSAGE, forged, KeyType.SK_ED25519, PUBLIC)


@pytest.mark.parametrize("application", [b"", b"ssh", b"ssh:work", b"https://example.org"])
def test_a_security_key_of_another_application_is_none(application: bytes) -> None:
    """A signature that a website has a FIDO2 key make opens nothing."""
    signature = touched(application=application)
    assert not verify(MESSAGE, signature, KeyType.SK_ED25519, PUBLIC)


def test_a_plain_signature_is_none_of_a_security_key() -> None:
    plain = Signature(seal.sign(signed_message(MESSAGE), SEED))
    for flags, counter in ((0, 0), (1, 41)):
        assert not verify(
            MESSAGE, replace(plain, flags=flags, counter=counter), KeyType.SK_ED25519, PUBLIC
        )


def test_what_a_security_key_signs_byte_for_byte() -> None:
    covered = security_key_message(b"structure", 0x05, 0x01020304)
    application = "e30610e8a162115960fe1ec223e6529c9f4b6e80200dcb5e5c321c8af1e2b1bf"
    assert covered[:32].hex() == application
    assert covered[32:37].hex() == "0501020304"
    assert covered[37:] == hashlib.sha256(b"structure").digest()


# OpenSSH as the judge


def wire(*strings: bytes) -> bytes:
    """SSH strings, each behind its length."""
    return b"".join(struct.pack(">I", len(string)) + string for string in strings)


def armored(name: bytes, public: bytes, signature: bytes) -> str:
    """A signature file: openssh PROTOCOL.sshsig section 1."""
    blob = b"SSHSIG" + struct.pack(">I", 1)
    blob += wire(public, NAMESPACE.encode(), b"", b"sha512", signature)
    lines = base64.encodebytes(blob).decode()
    assert public.startswith(wire(name))
    return f"-----BEGIN SSH SIGNATURE-----\n{lines}-----END SSH SIGNATURE-----\n"


def openssh_accepts(
    where: Path, name: bytes, public: bytes, signature: bytes, message: bytes
) -> bool:
    """What `ssh-keygen -Y verify` says of a signature by this public key blob."""
    signers, file = where / "allowed_signers", where / "signature"
    encoded = base64.b64encode(public).decode()
    signers.write_text(f'alice namespaces="{NAMESPACE}" {name.decode()} {encoded}\n')
    file.write_text(armored(name, public, signature))
    command = ["ssh-keygen", "-Y", "verify", "-I", "alice", "-n", NAMESPACE]
    done = subprocess.run(
        [*command, "-f", str(signers), "-s", str(file)],
        input=message,
        capture_output=True,
        check=False,
        timeout=20,
    )
    return done.returncode == 0 and done.stdout.startswith(b'Good "spa1 knock" signature for alice')


@needs_ssh_keygen
def test_openssh_accepts_ours(tmp_path: Path) -> None:
    public = wire(PLAIN_NAME, PUBLIC)
    signature = wire(PLAIN_NAME, seal.sign(signed_message(MESSAGE), SEED))
    assert openssh_accepts(tmp_path, PLAIN_NAME, public, signature, MESSAGE)
    assert not openssh_accepts(tmp_path, PLAIN_NAME, public, signature, MESSAGE[:-1])


@needs_ssh_keygen
def test_openssh_accepts_a_security_keys_as_we_do(tmp_path: Path) -> None:
    public = wire(TOUCH_NAME, PUBLIC, sshsig.SECURITY_KEY_APPLICATION)
    ours = touched()
    for signature in (ours, replace(ours, flags=0), replace(ours, counter=42)):
        blob = wire(TOUCH_NAME, signature.value)
        blob += struct.pack(">BI", signature.flags, signature.counter)
        accepted = openssh_accepts(tmp_path, TOUCH_NAME, public, blob, MESSAGE)
        assert accepted is verify(MESSAGE, signature, KeyType.SK_ED25519, PUBLIC)
        assert accepted is (signature == ours)


def strings(blob: bytes) -> list[bytes]:
    """The inverse of `wire`."""
    found = []
    while blob:
        (size,) = struct.unpack_from(">I", blob)
        found.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    return found


@needs_ssh_keygen
def test_we_accept_openssh_s(tmp_path: Path) -> None:
    key, file = tmp_path / "key", tmp_path / "message"
    file.write_bytes(MESSAGE)
    generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)]
    subprocess.run(generate, check=True, timeout=20)
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(file)]
    subprocess.run(sign, check=True, timeout=20, capture_output=True)
    encoded = key.with_suffix(".pub").read_text().split()[1]
    name, public = strings(base64.b64decode(encoded))
    assert name == PLAIN_NAME

    lines = file.with_suffix(".sig").read_text().splitlines()
    blob = base64.b64decode("".join(lines[1:-1]))
    assert blob.startswith(b"SSHSIG\0\0\0\1")
    _, namespace, _, algorithm, signature = strings(blob[10:])
    assert (namespace, algorithm) == (sshsig.NAMESPACE, sshsig.HASH)
    _, value = strings(signature)
    assert verify(MESSAGE, Signature(value), KeyType.ED25519, public)
    assert not verify(MESSAGE[:-1], Signature(value), KeyType.ED25519, public)
