"""Private key files: what they hold, who may read them, and what happens to a damaged one."""

import base64
import json
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keys import identity, keyfile, oskeyring, passphrase, privatefile, serverkey
from keys.identity import Identity, KeyFileError
from keys.keyfile import Argon2id, KeyFile, Kind, Torn
from keys.trouble import Trouble
from spa_protocol import publickey, sshsig
from spa_protocol.sshsig import KeyType

VECTORS = Path(__file__).parent / "vectors" / "spa1.json"
SEED, AGREEMENT = bytes(range(32)), bytes(range(32, 64))
ALICE = Identity.from_secrets(SEED, AGREEMENT, "alice@laptop")
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can act as several users"
)

# As format 1 was first written; it must load for ever. The public half is what openssl makes of it.
PLAIN_FILE = """\
spa-private-key 1 client
comment: alice@laptop
public: AQOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4NYBy1jZYgNGu6jKa35EhODhR7SGijjt16WXQ0s0WYlQ=
signing: here
kdf: none
secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==
"""

# The same of a key whose signing half is in ssh-agent: a touch of the public key's type, no seed.
AGENT_FILE = """\
spa-private-key 1 client
comment: alice@laptop
public: AgOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4NYBy1jZYgNGu6jKa35EhODhR7SGijjt16WXQ0s0WYlQ=
signing: agent
kdf: none
secret: ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=
"""


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id with next to no work, for tests that are not about the work."""
    monkeypatch.setattr(Argon2id, "fresh", classmethod(lambda cls: cls(1, 8192, bytes(range(16)))))


def write_private(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def refusal(path: Path, answer: str | None = None) -> str:
    """What loading the key says; one line, and never a secret."""
    with pytest.raises(KeyFileError) as refused:
        identity.load(path, None if answer is None else lambda _: answer)
    line = str(refused.value)
    assert "\n" not in line
    assert base64.b64encode(SEED).decode()[:20] not in line
    return line


class TestTheKey:
    def test_it_signs_what_the_protocol_verifies(self) -> None:
        signature = ALICE.sign(b"a message")
        public = ALICE.public
        assert sshsig.verify(b"a message", signature, public.key_type, public.signing)
        assert not sshsig.verify(b"another", signature, public.key_type, public.signing)

    @pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is the oracle")
    def test_openssh_verifies_it_too(self, tmp_path: Path) -> None:
        def string(value: bytes) -> bytes:
            return struct.pack(">I", len(value)) + value

        public = string(b"ssh-ed25519") + string(ALICE.public.signing)
        signature = string(b"ssh-ed25519") + string(ALICE.sign(b"a message").value)
        parts = (public, b"spa1 knock", b"", b"sha512", signature)
        blob = b"SSHSIG" + struct.pack(">I", 1) + b"".join(map(string, parts))
        armoured = "\n".join(textwrap.wrap(base64.b64encode(blob).decode(), 70))
        signature_file = tmp_path / "signature"
        signature_file.write_text(
            f"-----BEGIN SSH SIGNATURE-----\n{armoured}\n-----END SSH SIGNATURE-----\n"
        )
        allowed = tmp_path / "allowed"
        allowed.write_text(f"alice ssh-ed25519 {base64.b64encode(public).decode()}\n")
        command = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", "alice"]
        command += ["-n", "spa1 knock", "-s", str(signature_file)]
        right = subprocess.run(command, input=b"a message", capture_output=True, check=False)
        wrong = subprocess.run(command, input=b"another", capture_output=True, check=False)
        assert (right.returncode, right.stderr) == (0, b"")
        assert wrong.returncode != 0

    def test_it_shares_its_secrets_with_the_server(self) -> None:
        server = serverkey.generate()
        ours = ALICE.pair_with(server.public)
        assert ours == publickey.server_pair(server.secret, server.public, ALICE.public)

    def test_an_invite_is_a_key_by_the_vectors(self) -> None:
        for vector in json.loads(VECTORS.read_text())["joins"]:
            if "token" not in vector:
                continue
            public = Identity.from_invite(bytes.fromhex(vector["token"])).public
            assert public.signing.hex() == vector["invite_signing_public"]
            assert public.agreement.hex() == vector["invite_agreement_public"]

    def test_two_are_never_the_same(self) -> None:
        assert identity.generate().public != identity.generate().public

    def test_no_repr_shows_a_secret(self) -> None:
        server = serverkey.from_secret(AGREEMENT)
        file = KeyFile.parse(PLAIN_FILE.encode())
        for shown in (repr(ALICE), repr(server), repr(file), str(ALICE), f"{ALICE}"):
            for secret in (SEED, AGREEMENT):
                assert repr(secret)[2:-1] not in shown
                assert secret.hex() not in shown

    def test_a_comment_is_one_line(self) -> None:
        assert identity.generate(" a\n b\x1b[31m\t\u202ec ").comment == "a b[31m c"


class TestTheFile:
    def test_without_a_passphrase_it_is_as_it_ever_was(self, tmp_path: Path) -> None:
        path = tmp_path / "alice.key"
        identity.save(ALICE, path, None)
        assert path.read_text() == PLAIN_FILE
        assert identity.load(path, None) == ALICE

    def test_a_passphrase_guards_it(self, tmp_path: Path) -> None:
        """The one test with the real cost of Argon2id: 256 MiB and most of a second."""
        path = tmp_path / "alice.key"
        identity.save(ALICE, path, "correct horse")
        assert b"kdf: argon2id 3 268435456 " in path.read_bytes()
        questions = []
        loaded = identity.load(path, lambda text: questions.append(text) or "correct horse")
        assert loaded == ALICE
        assert questions == [f"Passphrase for {path}: "]
        for secret in (SEED, AGREEMENT, SEED + AGREEMENT):
            assert base64.b64encode(secret)[:40] not in path.read_bytes()

    def test_nobody_is_asked_when_there_is_no_passphrase(self, tmp_path: Path) -> None:
        path = tmp_path / "alice.key"
        identity.save(ALICE, path, "")
        assert identity.load(path, lambda _: pytest.fail("asked")) == ALICE

    @pytest.mark.usefixtures("cheap")
    def test_two_files_of_one_key_differ(self, tmp_path: Path) -> None:
        identity.save(ALICE, tmp_path / "a", "pass")
        identity.save(ALICE, tmp_path / "b", "pass")
        assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()

    @pytest.mark.usefixtures("cheap")
    def test_its_public_half_needs_no_passphrase(self, tmp_path: Path) -> None:
        identity.save(ALICE, tmp_path / "a", "pass")
        assert identity.load_public(tmp_path / "a") == (ALICE.public, "alice@laptop")

    def test_a_server_key(self, tmp_path: Path) -> None:
        key = serverkey.generate()
        serverkey.save(key, tmp_path / "server.key")
        assert serverkey.load(tmp_path / "server.key") == key
        assert "key of a server, not of a client" in refusal(tmp_path / "server.key")
        identity.save(ALICE, tmp_path / "client.key", None)
        with pytest.raises(KeyFileError, match="key of a client, not of a server"):
            serverkey.load(tmp_path / "client.key")

    def test_a_server_key_with_another_public_half(self, tmp_path: Path) -> None:
        path = tmp_path / "server.key"
        key = serverkey.generate()
        serverkey.save(serverkey.ServerKey(key.secret, serverkey.generate().public), path)
        with pytest.raises(KeyFileError, match="its public key is another's"):
            serverkey.load(path)


IN_AGENT = Identity(
    replace(ALICE.public, key_type=KeyType.SK_ED25519), "alice@laptop", None, AGREEMENT
)


class TestAKeyInTheAgent:
    def test_its_file_is_as_it_ever_was(self, tmp_path: Path) -> None:
        identity.save(IN_AGENT, tmp_path / "a", None)
        assert (tmp_path / "a").read_text() == AGENT_FILE
        loaded = identity.load(tmp_path / "a", None)
        assert loaded == IN_AGENT
        assert (loaded.is_in_agent, loaded.needs_touch) == (True, True)
        assert loaded.pair_with(serverkey.generate().public)

    @pytest.mark.usefixtures("cheap")
    def test_a_passphrase_guards_it(self, tmp_path: Path) -> None:
        identity.save(IN_AGENT, tmp_path / "a", "pass")
        assert base64.b64encode(AGREEMENT)[:30] not in (tmp_path / "a").read_bytes()
        assert identity.load(tmp_path / "a", lambda _: "pass") == IN_AGENT
        assert "wrong passphrase" in refusal(tmp_path / "a", "Pass")

    @pytest.mark.parametrize("key_type", list(KeyType))
    def test_each_is_new_though_the_signing_key_is_the_same(self, key_type: KeyType) -> None:
        one, other = (identity.in_agent(key_type, ALICE.public.signing, "a\nb") for _ in range(2))
        assert (one.public.key_type, one.public.signing) == (key_type, ALICE.public.signing)
        assert one.public.agreement != other.public.agreement
        assert one.comment == "a b"

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("signing: agent", "signing: here"),
            ("signing: agent", "signing: none"),
            ("signing: agent", "signing: Agent"),
            ("secret: ICEi", "secret: ICEj"),
            ("secret: ", "secret: AAAA"),
        ],
    )
    def test_a_file_that_does_not_fit_together(
        self, tmp_path: Path, before: str, after: str
    ) -> None:
        line = refusal(write_private(tmp_path / "a", AGENT_FILE.replace(before, after).encode()))
        assert re.search("not a whole key file|keeps its signing key elsewhere", line)

    def test_a_seed_that_is_said_to_be_elsewhere(self, tmp_path: Path) -> None:
        text = PLAIN_FILE.replace("signing: here", "signing: agent")
        assert "a secret of the wrong size" in refusal(write_private(tmp_path / "a", text.encode()))

    def test_a_security_key_whose_seed_is_here(self, tmp_path: Path) -> None:
        """No such thing: a security key keeps its seed."""
        text = PLAIN_FILE.replace("public: AQ", "public: Ag")
        line = refusal(write_private(tmp_path / "a", text.encode()))
        assert "its public key is another's" in line

    def test_no_repr_shows_a_secret(self) -> None:
        assert repr(AGREEMENT)[2:-1] not in repr(IN_AGENT)


@pytest.mark.usefixtures("cheap")
class TestThePassphraseInTheKeyring:
    """The file says that the keyring has it; `recall` is what the keyring says."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        identity.save(ALICE, tmp_path / "a", "pass", in_keyring=True)
        return tmp_path / "a"

    def loaded(
        self, monkeypatch: pytest.MonkeyPatch, path: Path, found: str | None, **how: object
    ) -> tuple[list[str], list[str]]:
        """What was asked, and what was told, until the key was open."""

        def recall(key_id: str) -> str:
            assert key_id == ALICE.public.key_id
            if found is None:
                raise oskeyring.NoKeyring("the keyring cannot be used: none here")
            return found

        asked: list[str] = []
        told: list[str] = []
        monkeypatch.setattr(oskeyring, "recall", recall)
        loaded = identity.load(
            path, lambda text: asked.append(text) or "pass", tell=told.append, **how
        )
        assert loaded == ALICE
        return asked, told

    def test_it_is_in_the_file_that_it_is_there(self, path: Path, tmp_path: Path) -> None:
        assert re.search(rb"\nkdf: argon2id 1 8192 \S+ keyring\n", path.read_bytes())
        assert identity.is_in_keyring(path)
        identity.save(ALICE, tmp_path / "b", "pass")
        identity.save(ALICE, tmp_path / "c", None)
        assert not identity.is_in_keyring(tmp_path / "b")
        assert not identity.is_in_keyring(tmp_path / "c")

    def test_nobody_is_asked(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.loaded(monkeypatch, path, "pass") == ([], [])
        assert identity.load(path, None) == ALICE

    def test_without_a_keyring_somebody_is(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, told = self.loaded(monkeypatch, path, None)
        assert asked == [f"Passphrase for {path}: "]
        assert told == ["the keyring cannot be used: none here"]
        with pytest.raises(KeyFileError, match="nobody to ask"):
            identity.load(path, None)

    def test_a_keyring_that_has_another(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked, told = self.loaded(monkeypatch, path, "former")
        assert len(asked) == 1
        assert told == [f"the passphrase that the keyring holds does not open {path}"]

    def test_a_passphrase_that_was_given_goes_first(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, told = self.loaded(monkeypatch, path, "former", use_keyring=False)
        assert (len(asked), told) == (1, [])

    @pytest.mark.parametrize(
        "edit",
        [
            lambda text: text.replace(" keyring\n", "\n"),
            lambda text: text.replace(" keyring\n", " keyring \n"),
            lambda text: text.replace(" keyring\n", " Keyring\n"),
            lambda text: text.replace(" keyring\n", " keyring keyring\n"),
            lambda text: re.sub("kdf: .*", "kdf: none keyring", text),
            lambda text: re.sub("kdf: .*", "kdf: keyring", text),
        ],
    )
    def test_nothing_of_it_can_be_changed(self, path: Path, tmp_path: Path, edit) -> None:
        changed = write_private(tmp_path / "b", edit(path.read_text()).encode())
        assert re.search("altered|not a whole key file", refusal(changed, "pass"))


class TestErrors:
    """One clear line each."""

    def test_not_found(self, tmp_path: Path) -> None:
        line = refusal(tmp_path / "none.key")
        assert line == f"{tmp_path}/none.key does not exist; make one with 'spa-keys generate'"

    @pytest.mark.usefixtures("cheap")
    def test_wrong_passphrase(self, tmp_path: Path) -> None:
        identity.save(ALICE, tmp_path / "a", "pass")
        assert refusal(tmp_path / "a", "Pass").startswith("wrong passphrase for")

    @pytest.mark.usefixtures("cheap")
    def test_nobody_to_ask(self, tmp_path: Path) -> None:
        identity.save(ALICE, tmp_path / "a", "pass")
        assert "nobody to ask; run this at a terminal" in refusal(tmp_path / "a")

    def test_a_later_version(self, tmp_path: Path) -> None:
        later = PLAIN_FILE.replace("key 1", "key 2").encode()
        line = refusal(write_private(tmp_path / "a", later))
        assert line.endswith("is a key file of version 2; this program reads 1; use a newer one")

    @pytest.mark.parametrize(
        "content", [b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\n", b"\x00\xff"]
    )
    def test_another_kind_of_file(self, tmp_path: Path, content: bytes) -> None:
        line = refusal(write_private(tmp_path / "a", content))
        assert "no private key of this program" in line or "not a whole key file" in line

    def test_a_key_that_signs_elsewhere(self, tmp_path: Path) -> None:
        """What a later version may write for an ssh-agent: told apart from damage, and shown."""
        text = PLAIN_FILE.replace("signing: here", "signing: agent alice@laptop")
        path = write_private(tmp_path / "a", text.encode())
        assert "keeps its signing key elsewhere (agent alice@laptop)" in refusal(path)
        assert identity.load_public(path)[0] == ALICE.public

    def test_the_public_half_of_another_key(self, tmp_path: Path) -> None:
        """Else whoever can write the file could have a victim enrol the writer's key."""
        other = base64.b64encode(identity.generate().public.packed).decode()
        text = re.sub("public: .*", f"public: {other}", PLAIN_FILE)
        assert "its public key is another's" in refusal(
            write_private(tmp_path / "a", text.encode())
        )

    @pytest.mark.usefixtures("cheap")
    def test_the_public_half_of_another_key_under_a_passphrase(self, tmp_path: Path) -> None:
        identity.save(ALICE, tmp_path / "a", "pass")
        other = base64.b64encode(identity.generate().public.packed).decode()
        text = re.sub("public: .*", f"public: {other}", (tmp_path / "a").read_text())
        assert "the file was altered" in refusal(
            write_private(tmp_path / "b", text.encode()), "pass"
        )

    @pytest.mark.parametrize(
        "kdf",
        [
            "argon2id 3 4294967296 AAECAwQFBgcICQoLDA0ODw==",
            "argon2id 1000000 268435456 AAECAwQFBgcICQoLDA0ODw==",
            "argon2id 0 268435456 AAECAwQFBgcICQoLDA0ODw==",
            "argon2id 3 1 AAECAwQFBgcICQoLDA0ODw==",
            "argon2id 3 268435456 AAEC",
            "argon2id -3 268435456 AAECAwQFBgcICQoLDA0ODw==",
            "argon2id 03 268435456 AAECAwQFBgcICQoLDA0ODw==",
            "argon2id ३ 268435456 AAECAwQFBgcICQoLDA0ODw==",
            "scrypt 1 2 3",
            "",
        ],
    )
    def test_a_file_that_demands_too_much_is_never_obeyed(self, tmp_path: Path, kdf: str) -> None:
        secret = base64.b64encode(bytes(24 + 64 + 16)).decode()
        text = re.sub("secret: .*", f"secret: {secret}", PLAIN_FILE)
        text = text.replace("kdf: none", f"kdf: {kdf}")
        path = write_private(tmp_path / "a", text.encode())
        assert "is not a whole key file" in refusal(path, "pass")

    @pytest.mark.parametrize(
        "edit",
        [
            lambda text: text.replace("\n", "\r\n"),
            lambda text: text + "\n",
            lambda text: text.removesuffix("\n"),
            lambda text: text.replace("comment: ", "comment:"),
            lambda text: text.replace("client", "somebody"),
            lambda text: text.replace("signing: here\n", ""),
            lambda text: text.replace("Pw==", "Px=="),
            lambda text: text.replace("public: AQ", "public: CQ"),
            lambda text: re.sub("public: .*", "public: AQ==", text),
            lambda text: re.sub("secret: .*", "secret: AQ==", text),
            lambda text: text + 70_000 * "x",
        ],
    )
    def test_a_damaged_file(self, tmp_path: Path, edit) -> None:
        path = write_private(tmp_path / "a", edit(PLAIN_FILE).encode())
        assert re.search("not a whole key file|too large", refusal(path))

    def test_a_weak_public_key(self, tmp_path: Path) -> None:
        weak = base64.b64encode(bytes([1]) + ALICE.public.signing + bytes(32)).decode()
        text = re.sub("public: .*", f"public: {weak}", PLAIN_FILE)
        assert "small order" in refusal(write_private(tmp_path / "a", text.encode()))


class TestDamage:
    """No damage to a file is ever taken for a key."""

    @given(size=st.integers(0, len(PLAIN_FILE) - 1))
    def test_a_beginning_of_a_file_is_no_file(self, size: int) -> None:
        with pytest.raises((Torn, KeyFileError)):
            KeyFile.parse(PLAIN_FILE.encode()[:size])

    @given(at=st.integers(0, len(PLAIN_FILE) - 1), value=st.integers(0, 255))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_one_wrong_byte(self, tmp_path: Path, at: int, value: int) -> None:
        """Only the comment, which nothing covers here, may change unseen."""
        content = bytearray(PLAIN_FILE.encode())
        content[at] = value
        try:
            loaded = identity.load(write_private(tmp_path / "a", bytes(content)), None)
        except KeyFileError:
            return
        assert loaded.public == ALICE.public
        assert loaded.sign(b"x") == ALICE.sign(b"x")

    @given(data=st.data())
    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
    )
    @pytest.mark.usefixtures("cheap")
    def test_one_wrong_byte_under_a_passphrase(self, tmp_path: Path, data: st.DataObject) -> None:
        """Not even the comment may change."""
        path = tmp_path / "sealed"
        identity.save(ALICE, path, "pass", overwrite=True)
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        flip = data.draw(st.integers(1, 255))
        content[at] ^= flip
        with pytest.raises(KeyFileError):
            identity.load(write_private(tmp_path / "a", bytes(content)), lambda _: "pass")

    @given(content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
    def test_what_parses_has_one_encoding(self, content: bytes) -> None:
        for candidate in (content, b"spa-private-key 1 client\n" + content):
            try:
                parsed = KeyFile.parse(candidate)
            except (Torn, KeyFileError):
                continue
            assert bytes(parsed) == candidate

    @given(
        comment=st.text(st.characters(exclude_characters="\n", codec="utf-8")),
        public=st.binary(),
        signing=st.text(st.characters(exclude_characters="\n", codec="utf-8")),
        secret=st.binary(),
        kind=st.sampled_from(Kind),
    )
    def test_what_is_written_parses(
        self, comment: str, public: bytes, signing: str, secret: bytes, kind: Kind
    ) -> None:
        file = KeyFile(kind, comment, public, signing, None, secret)
        assert KeyFile.parse(bytes(file)) == file


@posix
class TestPrivacy:
    def test_it_is_private_whatever_the_umask(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "deep" / "alice.key"
        for umask in (0o000, 0o022, 0o077):
            before = os.umask(umask)
            try:
                identity.save(ALICE, path, None, overwrite=True)
            finally:
                os.umask(before)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for made in (path.parent, path.parent.parent):
            assert stat.S_IMODE(made.stat().st_mode) == 0o700

    def test_a_directory_that_is_there_stays_as_it_is(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        identity.save(ALICE, tmp_path / "a", None)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755

    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o500])
    def test_modes_that_are_private(self, tmp_path: Path, mode: int) -> None:
        path = write_private(tmp_path / "a", PLAIN_FILE.encode())
        path.chmod(mode)
        assert identity.load(path, None) == ALICE

    @pytest.mark.parametrize(
        "mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o666, 0o440]
    )
    def test_modes_that_are_not(self, tmp_path: Path, mode: int) -> None:
        path = write_private(tmp_path / "a key", PLAIN_FILE.encode())
        path.chmod(mode)
        line = refusal(path)
        assert line.endswith(f"(mode {mode:04o}); run: chmod 600 '{path}'")
        subprocess.run(["sh", "-c", line.partition("run: ")[2]], check=True)
        assert identity.load(path, None) == ALICE

    @as_root
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    @pytest.mark.parametrize(
        ("owner", "mode", "caller", "expected"),
        [
            (65534, 0o600, 65534, "loaded"),
            (0, 0o600, 65534, "permission denied"),
            (0, 0o644, 65534, "open to other users"),
            (65533, 0o644, 65534, "belongs to another user; run: chown 65534"),
            (65534, 0o600, 0, "belongs to another user; run: chown 0"),
            (0, 0o600, 0, "loaded"),
        ],
    )
    def test_owners(self, owner: int, mode: int, caller: int, expected: str) -> None:
        """A real process of that user, in a directory that it can enter."""
        directory = Path(tempfile.mkdtemp())
        directory.chmod(0o755)
        try:
            path = directory / "a"
            path.write_text(PLAIN_FILE)
            os.chown(path, owner, owner)
            path.chmod(mode)
            said = in_child(lambda: identity.load(path, None) and "loaded", caller)
            assert expected in said
        finally:
            shutil.rmtree(directory)

    @pytest.mark.parametrize(
        ("owner", "mode", "caller", "expected"),
        [
            (65534, 0o600, 0, "loaded"),
            (65534, 0o640, 0, "open to other users"),
            (65533, 0o600, 0, "belongs to another user; run: chown 65534"),
            (65534, 0o644, 65533, "belongs to another user; run: chown 65533"),
        ],
    )
    def test_root_may_use_what_belongs_to_the_service_it_operates_and_nobody_else_may(
        self, owner: int, mode: int, caller: int, expected: str
    ) -> None:
        directory = Path(tempfile.mkdtemp())
        directory.chmod(0o755)
        try:
            path = directory / "server.key"
            serverkey.save(serverkey.generate(), path)
            os.chown(path, owner, owner)
            path.chmod(mode)
            said = in_child(lambda: serverkey.load(path, service=65534) and "loaded", caller)
            assert expected in said
        finally:
            shutil.rmtree(directory)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        assert "is a directory" in refusal(tmp_path)
        with pytest.raises(KeyFileError, match="is no file"):
            privatefile.read(Path("/dev/null"))

    def test_a_pipe_is_read_like_a_file(self, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo, 0o600)
        writer = threading.Thread(target=lambda: fifo.write_text("from the manager\nmore"))
        writer.start()
        assert passphrase.from_file(fifo) == "from the manager"
        writer.join()

    def test_a_link_is_followed_for_reading_and_replaced_in_writing(self, tmp_path: Path) -> None:
        target = write_private(tmp_path / "target", PLAIN_FILE.encode())
        link = tmp_path / "link"
        link.symlink_to(target)
        assert identity.load(link, None) == ALICE
        with pytest.raises(KeyFileError, match="exists already"):
            identity.save(ALICE, link, None)
        identity.save(identity.generate(), link, None, overwrite=True)
        assert not link.is_symlink()
        assert target.read_text() == PLAIN_FILE


def in_child(work, uid: int) -> str:
    """What `work` returns, or the KeyFileError it raises, in a process of another user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            said = str(work())
        except KeyFileError as error:
            said = str(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


class TestWriting:
    def test_nothing_is_overwritten_unasked(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        identity.save(ALICE, path, None)
        with pytest.raises(KeyFileError, match="exists already"):
            identity.save(identity.generate(), path, None)
        assert path.read_text() == PLAIN_FILE
        assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208
        other = identity.generate()
        identity.save(other, path, None, overwrite=True)
        assert identity.load(path, None).public == other.public

    def test_of_many_that_race_one_wins(self, tmp_path: Path) -> None:
        keys = [identity.generate() for _ in range(8)]
        barrier, won = threading.Barrier(8), []

        def save(key: Identity) -> None:
            barrier.wait()
            try:
                identity.save(key, tmp_path / "a", None)
            except KeyFileError:
                return
            won.append(key.public)

        threads = [threading.Thread(target=save, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [identity.load(tmp_path / "a", None).public]
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    @posix
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_crash_before_the_name_is_given_leaves_what_was(
        self, tmp_path: Path, overwrite: bool
    ) -> None:
        """The process is killed when the content is on the disk and the name is not."""
        path = tmp_path / "a"
        if overwrite:
            identity.save(ALICE, path, None)
        program = (
            "import os, signal, sys, pathlib\n"
            "from keys import identity, privatefile\n"
            "privatefile._name = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"identity.save(identity.generate(), pathlib.Path(sys.argv[1]), None, "
            f"overwrite={overwrite})\n"
        )
        ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
        assert ended.returncode == -signal.SIGKILL
        assert path.exists() == overwrite
        assert not overwrite or path.read_text() == PLAIN_FILE
        (left,) = (p for p in tmp_path.iterdir() if p != path)
        assert stat.S_IMODE(left.stat().st_mode) == 0o600
        identity.save(ALICE, path, None, overwrite=overwrite)
        assert identity.load(path, None) == ALICE

    @posix
    def test_a_full_disk_leaves_nothing(self, tmp_path: Path) -> None:
        """The kernel refuses to write more than 100 bytes (RLIMIT_FSIZE)."""
        program = (
            "import pathlib, resource, signal, sys\n"
            "from keys import identity\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
            "try: identity.save(identity.generate(), pathlib.Path(sys.argv[1]), None)\n"
            "except identity.KeyFileError as error: print(error)\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "a")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said == (
            f"{tmp_path}/a cannot be written: file too large; see whether you may write to "
            f"{tmp_path}, and whether its disk has room\n"
        )
        assert list(tmp_path.iterdir()) == []

    def test_a_place_that_cannot_be_had(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(KeyFileError, match="cannot be written: not a directory"):
            identity.save(ALICE, tmp_path / "file" / "a", None)


class TestPassphrases:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [(b"pass\n", "pass"), (b"pass", "pass"), (b" p \r\nx", " p "), ("ü\n".encode(), "ü")],
    )
    def test_from_a_file(self, tmp_path: Path, content: bytes, expected: str) -> None:
        assert passphrase.from_file(write_private(tmp_path / "p", content)) == expected

    @pytest.mark.parametrize("content", [b"", b"\n", b"\npass", b"\xff\n"])
    def test_a_file_without_one(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(KeyFileError, match="holds no passphrase"):
            passphrase.from_file(write_private(tmp_path / "p", content))

    def test_asked_for_twice(self) -> None:
        def ask(*answers: str):
            left = iter(answers)
            return lambda _: next(left)

        assert passphrase.asked_twice(ask("a", "a"), may_be_empty=True) == "a"
        assert passphrase.asked_twice(ask(""), may_be_empty=True) is None
        with pytest.raises(Trouble, match="differ"):
            passphrase.asked_twice(ask("a", "b"), may_be_empty=True)
        with pytest.raises(Trouble, match="empty"):
            passphrase.asked_twice(ask(""), may_be_empty=False)

    def test_too_little_memory_is_said(self) -> None:
        kdf = Argon2id(1, 8192, bytes(16))
        assert len(kdf.key("x")) == 32
        with pytest.raises(KeyFileError, match="needs 8388608 MiB of memory"):
            keyfile.Argon2id(1, 2**43, bytes(16)).key("x")
