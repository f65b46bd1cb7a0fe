"""Knocks signed by ssh-agent: OpenSSH's own agent does it, and a made-up one does it wrong."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from keys import agent, agentkey, identity, sshkey
from keys.agent import AgentTrouble, NotThere
from keys.identity import Identity
from keys.sshkey import CannotKnock, Reader, SshKey, Torn, string
from keys.trouble import Trouble
from spa_client import closing
from spa_client.compose import SourceRule
from spa_client.config import Host
from spa_client.knocking import Knocking, patient
from spa_client.patience import TOO_LATE_S, TRIES, PatientComposer, TooLate
from spa_protocol import sshsig
from spa_protocol.knock import Close
from spa_protocol.publickey import PublicKey
from spa_protocol.reason import Code, Status
from spa_protocol.sshsig import KeyType, Signature
from tests.ssh_agents import (
    FakeAgent,
    RealAgent,
    SecurityKey,
    holding,
    public_half,
    real_agent,
    sk_provider,
    ssh_keygen,
)
from tests.test_client_fake_server import (
    FakeServer,
    Heard,
    Script,
    grants,
    refuses,
    says,
    says_nothing,
)

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="ssh-agent is a Unix socket"),
    pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="openssh-client is needed"),
]

MESSAGE = b"what is to be signed"
PROGRAM = [sys.executable, "-c", "from spa_client.cli import main; main()"]
with_sk_dummy = pytest.mark.skipif(
    sk_provider() is None, reason="OpenSSH's security key in software (openssh-tests) is needed"
)


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealAgent]:
    with real_agent(tmp_path) as running:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(running.socket))
        yield running


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return ssh_keygen(tmp_path / "id_ed25519")


def made_of(path: Path) -> Identity:
    """A key that signs with an SSH key; whether an agent holds that is not asked."""
    return identity.in_agent(*sshkey.read(public_half(path)).signing_key())


def holds(signature: Signature, who: Identity, message: bytes = MESSAGE) -> bool:
    return sshsig.verify(message, signature, who.public.key_type, who.public.signing)


def refusal(who: Identity, kind: type[Trouble] = AgentTrouble) -> str:
    """What signing says; one line."""
    with pytest.raises(kind) as refused:
        who.sign(MESSAGE)
    line = str(refused.value)
    assert "\n" not in line
    assert not line.endswith(".")
    return line


class TestOpenSshsAgent:
    def test_it_signs(self, real: RealAgent, key: Path) -> None:
        real.ssh_add(key)
        signed = made_of(key).sign(MESSAGE)
        assert holds(signed, made_of(key))
        assert not holds(signed, made_of(key), b"another")
        assert (signed.flags, signed.counter) == (0, 0)

    def test_it_lists_its_keys_as_ssh_add_does(self, real: RealAgent, tmp_path: Path) -> None:
        for kind in ("ed25519", "ecdsa", "rsa"):
            real.ssh_add(ssh_keygen(tmp_path / kind, kind=kind))
        with agent.reached() as connection:
            held = connection.keys()
        listed = subprocess.run(["ssh-add", "-l"], capture_output=True, text=True, check=True)
        shown = [line.split()[1:3] for line in listed.stdout.splitlines()]
        assert [[each.fingerprint, each.comment] for each in held] == shown
        assert len(held) == 3

    def test_many_signatures_at_once(self, real: RealAgent, key: Path) -> None:
        real.ssh_add(key)
        who, signed = made_of(key), []
        threads = [
            threading.Thread(target=lambda n=n: signed.append((n, who.sign(b"%d" % n))))
            for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(signed) == 20
        assert all(holds(signature, who, b"%d" % n) for n, signature in signed)


class TestTrouble:
    """One clear line each, of what OpenSSH's own agent does."""

    def test_no_agent(self, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        line = refusal(made_of(key), NotThere)
        assert line.startswith("there is no ssh-agent (SSH_AUTH_SOCK is not set); start one: ")

    def test_a_dead_agent(self, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dead = tmp_path / "dead"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(dead))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(dead))
        assert f"no ssh-agent answers at {dead} (SSH_AUTH_SOCK): connection refused" in refusal(
            made_of(key), NotThere
        )

    @pytest.mark.parametrize("path", ["/nowhere/agent", "/dev/null", "/" + 200 * "x"])
    def test_what_is_no_agent(self, key: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        assert f"no ssh-agent answers at {path}" in refusal(made_of(key), NotThere)

    def test_an_agent_that_ended(
        self, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with real_agent(tmp_path) as ended:
            monkeypatch.setenv("SSH_AUTH_SOCK", str(ended.socket))
            ended.ssh_add(key)
            assert made_of(key).sign(MESSAGE)
        assert "no ssh-agent answers" in refusal(made_of(key), NotThere)

    def test_a_locked_agent(self, real: RealAgent, key: Path) -> None:
        real.ssh_add(key)
        real.lock()
        line = refusal(made_of(key), NotThere)
        assert line.startswith("ssh-agent lists no key: it is locked, or empty; unlock it with ")

    @pytest.mark.usefixtures("real")
    def test_an_empty_agent(self, key: Path) -> None:
        assert "it is locked, or empty" in refusal(made_of(key), NotThere)

    def test_a_key_that_it_does_not_hold(self, real: RealAgent, key: Path, tmp_path: Path) -> None:
        real.ssh_add(ssh_keygen(tmp_path / "another"))
        shown = sshkey.read(public_half(key)).fingerprint
        line = refusal(made_of(key), NotThere)
        assert line == f"ssh-agent does not hold key {shown}; add it with ssh-add"

    def test_a_key_for_certain_hosts(self, real: RealAgent, key: Path, tmp_path: Path) -> None:
        host_key = public_half(ssh_keygen(tmp_path / "host")).read_text()
        (tmp_path / "known").write_text(f"db1 {host_key}")
        real.ssh_add("-H", tmp_path / "known", "-h", "db1", key)
        line = refusal(made_of(key))
        assert line.startswith("ssh-agent refuses to sign with key SHA256:")
        assert "it is for certain hosts only (ssh-add -h)" in line

    def test_a_key_whose_time_is_over(self, real: RealAgent, key: Path) -> None:
        real.ssh_add("-t", "1", key)
        time.sleep(1.5)
        assert "lists no key" in refusal(made_of(key), NotThere)

    def test_windows(self, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "win32")
        assert "cannot be asked on Windows; use a key that signs by itself" in refusal(made_of(key))


class TestConfirmation:
    """`ssh-add -c`: the agent runs a program that asks somebody."""

    def confirming(self, directory: Path, script: str) -> dict[str, str]:
        asking = directory / "askpass"
        asking.write_text(f"#!/bin/sh\n{script}\n")
        asking.chmod(0o755)
        return {"SSH_ASKPASS": str(asking), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":9"}

    @pytest.mark.parametrize(
        ("script", "agrees", "is_told"),
        [("exit 0", True, False), ("sleep 0.8", True, True), ("exit 1", False, False)],
    )
    def test_it(
        self,
        tmp_path: Path,
        key: Path,
        monkeypatch: pytest.MonkeyPatch,
        script: str,
        agrees: bool,
        is_told: bool,
    ) -> None:
        told: list[str] = []
        with real_agent(tmp_path, self.confirming(tmp_path, script)) as running:
            running.ssh_add("-c", key)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(running.socket))
            who = identity.in_agent(*sshkey.read(public_half(key)).signing_key(), tell=told.append)
            if agrees:
                assert holds(who.sign(MESSAGE), who)
            else:
                assert "or its use was not confirmed (-c)" in refusal(who)
        asked = "ssh-agent asks you to confirm the use of your key"
        assert told == ([asked] if is_told else [])


@with_sk_dummy
class TestOpenSshsSecurityKey:
    """The agent signs through ssh-sk-helper and sk-dummy.so, which is touched all the time."""

    @pytest.fixture(params=["touch", "no-touch"])
    def security_key(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
        provider = sk_provider() or ""
        options = [] if request.param == "touch" else ["-O", "no-touch-required"]
        path = ssh_keygen(tmp_path / "id_sk", "-w", provider, *options, kind="ed25519-sk")
        return path, request.param == "touch"

    def test_it_signs_and_says_whether_it_was_touched(
        self, real: RealAgent, security_key: tuple[Path, bool]
    ) -> None:
        path, is_touched = security_key
        real.ssh_add("-S", sk_provider() or "", path)
        who = made_of(path)
        signed = who.sign(MESSAGE)
        assert who.public.key_type is KeyType.SK_ED25519
        assert holds(signed, who)
        assert bool(signed.flags & sshsig.USER_PRESENT) is is_touched

    def test_the_touch_cannot_be_claimed(
        self, real: RealAgent, security_key: tuple[Path, bool]
    ) -> None:
        path, _ = security_key
        real.ssh_add("-S", sk_provider() or "", path)
        who = made_of(path)
        signed = who.sign(MESSAGE)
        claimed = Signature(signed.value, signed.flags ^ sshsig.USER_PRESENT, signed.counter)
        assert not holds(claimed, who)

    def test_another_application(self, real: RealAgent, tmp_path: Path) -> None:
        options = ("-w", sk_provider() or "", "-O", "application=ssh:work")
        path = ssh_keygen(tmp_path / "id_sk", *options, kind="ed25519-sk")
        with pytest.raises(Trouble, match="made for the application 'ssh:work' cannot sign"):
            sshkey.read(public_half(path))
        real.ssh_add("-S", sk_provider() or "", path)
        with pytest.raises(Trouble, match="holds no key that can sign a knock"):
            agentkey.of_agent("", print, None)


class TestSecurityKeyByTheFormat:
    """The same by the published format alone (openssh PROTOCOL.u2f), and with a slow finger."""

    def signed(
        self, fake: FakeAgent, monkeypatch: pytest.MonkeyPatch, told: list[str]
    ) -> tuple[Identity, Signature]:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(fake.path))
        who = agentkey.of_agent("", told.append, None)
        return who, who.sign(MESSAGE)

    @pytest.mark.parametrize("flags", [0, 1, 5, 255])
    def test_what_the_authenticator_chose_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int
    ) -> None:
        told: list[str] = []
        with FakeAgent(tmp_path / "a", holding(SecurityKey(), flags=flags)) as fake:
            who, signed = self.signed(fake, monkeypatch, told)
        assert (signed.flags, signed.counter) == (flags, 7)
        assert holds(signed, who)
        assert told == []

    def test_somebody_is_told_to_touch_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[str] = []
        with FakeAgent(tmp_path / "a", holding(SecurityKey(), after_s=0.6)) as fake:
            who, signed = self.signed(fake, monkeypatch, told)
        assert told == ["touch your security key"] * 2  # for the probe, and for the message
        assert holds(signed, who)

    def refusing(self, after_s: float) -> FakeAgent:
        key = SecurityKey()
        listing = holding(key)

        def respond(request: bytes) -> bytes:
            if request[0] == 11:
                return listing(request) or b""
            time.sleep(after_s)
            return string(b"\x05")

        return FakeAgent(self.path, respond)

    @pytest.mark.parametrize(
        ("after_s", "said"),
        [
            (0.0, "is it plugged in? it may want a PIN, or be for certain hosts only (ssh-add -h)"),
            (0.6, "the security key was not touched in time"),
        ],
    )
    def test_it_does_not_sign(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_s: float, said: str
    ) -> None:
        self.path = tmp_path / "a"
        monkeypatch.setenv("SSH_AUTH_SOCK", str(self.path))
        who = identity.in_agent(KeyType.SK_ED25519, SecurityKey().public)
        with self.refusing(after_s):
            assert said in refusal(who)


PLAIN = identity.in_agent(KeyType.ED25519, SecurityKey().public)


def sign_response(*parts: bytes) -> bytes:
    return string(b"\x0e" + string(b"".join(parts)))


class TestAnAgentThatMakesNoSense:
    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (None, "the connection to ssh-agent broke: it hung up"),
            (b"\0\0", "it hung up"),
            (b"\0\0\0\0", "a message of 0 bytes"),
            (b"\xff\xff\xff\xff", "a message of 4294967295 bytes"),
            (string(b"\x06"), "a message of type 6"),
            (string(b"\x0e"), "4 bytes are missing"),
            (sign_response(), "4 bytes are missing"),
            (sign_response(string(b"ssh-rsa"), string(bytes(64))), "by another algorithm"),
            (sign_response(string(b"ssh-ed25519"), string(bytes(63))), "a signature of 63 bytes"),
            (sign_response(string(b"ssh-ed25519"), string(bytes(64)), b"x"), "1 bytes too many"),
            (string(b"\x0e" + string(b"") + b"more"), "4 bytes too many"),
            (sign_response(string(b"ssh-ed25519"), string(bytes(64))), "does not hold"),
        ],
    )
    def test_signing(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        answer: bytes | None,
        said: str,
    ) -> None:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "a"))
        with FakeAgent(tmp_path / "a", lambda _: answer, hangs_up=True):
            assert said in refusal(PLAIN)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (string(b"\x0c" + (3000).to_bytes(4)), "3000 keys"),
            (string(b"\x0c" + (1).to_bytes(4)), "4 bytes are missing"),
            (string(b"\x0c" + (0).to_bytes(4) + b"x"), "1 bytes too many"),
            (string(b"\x05"), "ssh-agent lists no key"),
        ],
    )
    def test_listing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, said: str
    ) -> None:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "a"))
        with (
            FakeAgent(tmp_path / "a", lambda _: answer),
            pytest.raises(AgentTrouble, match=said),
        ):
            agentkey.of_agent("", print, None)

    def test_silence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(agent, "PERSON_WITHIN_S", 0.2)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "a"))
        release = threading.Event()

        def respond(_: bytes) -> bytes | None:
            release.wait(10)
            return None

        with FakeAgent(tmp_path / "a", respond):
            assert "did not answer in time" in refusal(PLAIN)
            release.set()

    def test_a_comment_cannot_steer_the_terminal(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blob = SecurityKey().blob
        listing = b"\x0c" + (1).to_bytes(4) + string(blob) + string(b"a\x1b[31m\xff\nb")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "a"))
        with FakeAgent(tmp_path / "a", lambda _: string(listing)), agent.reached() as connection:
            (held,) = connection.keys()
        assert held.comment.isprintable()

    @given(answer=st.binary(max_size=200))
    @example(answer=b"\0\0\0\x01\x0e")
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_whatever_it_says_it_is_one_trouble(self, answer: bytes) -> None:
        """Over a socket pair, so that a hundred examples take no time."""
        for talk in (lambda a: a.keys(), lambda a: a.sign(PLAIN.public, MESSAGE)):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                theirs.sendall(answer)
                theirs.shutdown(socket.SHUT_WR)
                with pytest.raises(AgentTrouble):
                    talk(agent.Agent(ours))


class TestSshKeys:
    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("rsa", "an RSA key cannot sign a knock"),
            ("ecdsa", "an ECDSA key cannot sign a knock"),
        ],
    )
    def test_other_algorithms(self, tmp_path: Path, kind: str, said: str) -> None:
        path = public_half(ssh_keygen(tmp_path / "id", kind=kind))
        with pytest.raises(Trouble, match=said) as refused:
            sshkey.read(path)
        assert "make one: ssh-keygen -t ed25519" in str(refused.value)

    def test_a_certificate(self, tmp_path: Path, key: Path) -> None:
        authority = ssh_keygen(tmp_path / "ca")
        subprocess.run(
            ["ssh-keygen", "-q", "-s", authority, "-I", "me", public_half(key)],
            check=True,
            capture_output=True,
        )
        with pytest.raises(Trouble, match="an SSH certificate cannot sign") as refused:
            sshkey.read(Path(f"{key}-cert.pub"))
        assert refused.value.hint == "use the key that it was made for"

    @pytest.mark.parametrize(
        ("blob", "what"),
        [
            (string(b"ssh-dss"), "a DSA key"),
            (string(b"sk-ecdsa-sha2-nistp256@openssh.com"), "an ECDSA security key"),
            (string(b"sk-ssh-ed25519-cert-v01@openssh.com"), "an SSH certificate"),
            (string(b"sk-ecdsa-sha2-nistp256-cert-v01@openssh.com"), "an SSH certificate"),
            (string(b"ssh-mldsa\x1b[31m"), r"an SSH key of type ssh-mldsa\x1b[31m"),
            (
                SecurityKey(application=b"https://site").blob,
                "a security key made for the application 'https://site'",
            ),
        ],
    )
    def test_which_cannot_knock(self, blob: bytes, what: str) -> None:
        with pytest.raises(CannotKnock) as refused:
            SshKey(blob, "").signing_key()
        assert refused.value.what == what

    def test_the_private_half_by_mistake(self, key: Path) -> None:
        with pytest.raises(Trouble) as refused:
            sshkey.read(key)
        assert refused.value.hint == f"name its public half: {key}.pub"

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA====",
            "ssh-ed25519 !!!!",
            "a b c",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fAA",
            "one\ntwo",
            "\x00\xff",
        ],
    )
    def test_what_is_no_ssh_key(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "x.pub"
        path.write_text(content)
        with pytest.raises(Trouble, match="holds no SSH public key"):
            sshkey.read(path)

    def test_fingerprints_are_those_of_ssh_keygen(self, key: Path) -> None:
        shown = subprocess.run(
            ["ssh-keygen", "-l", "-f", public_half(key)], capture_output=True, text=True, check=True
        )
        assert sshkey.read(public_half(key)).fingerprint == shown.stdout.split()[1]

    @given(key_type=st.sampled_from(KeyType), signing=st.binary(min_size=32, max_size=32))
    def test_a_key_and_its_blob(self, key_type: KeyType, signing: bytes) -> None:
        blob = sshkey.blob_of(PublicKey(key_type, signing, bytes(32)))
        assert SshKey(blob, "").signing_key() == (key_type, signing)

    @given(blob=st.binary(max_size=100), name=st.sampled_from([*sshkey.ALGORITHMS.values(), b""]))
    def test_one_encoding_of_a_key(self, blob: bytes, name: bytes) -> None:
        """What is taken for a key is written again as the same bytes."""
        blob = string(name) + blob if name else blob
        try:
            found = SshKey(blob, "").signing_key()
        except (Torn, CannotKnock):
            return
        assert sshkey.blob_of(PublicKey(*found, bytes(32))) == blob

    @given(content=st.binary(max_size=20))
    def test_a_reader_reads_to_the_end_or_says_so(self, content: bytes) -> None:
        reader = Reader(content)
        try:
            found = string(reader.string())
            reader.end()
        except Torn:
            return
        assert found == content


class TestChoosing:
    def test_the_only_one_that_can_knock(self, real: RealAgent, tmp_path: Path) -> None:
        real.ssh_add(ssh_keygen(tmp_path / "rsa", kind="rsa"))
        usable = ssh_keygen(tmp_path / "good")
        real.ssh_add(usable)
        made = agentkey.of_agent("alice", print, lambda _: pytest.fail("asked"))
        assert made.public.signing == made_of(usable).public.signing
        assert made.is_in_agent

    def test_one_of_several(self, real: RealAgent, tmp_path: Path) -> None:
        paths = [ssh_keygen(tmp_path / name) for name in ("first", "second")]
        for path in paths:
            real.ssh_add(path)
        asked: list[list[str]] = []
        made = agentkey.of_agent("", print, lambda lines: asked.append(list(lines)) or 1)
        assert made.public.signing == made_of(paths[1]).public.signing
        assert ["first@test" in asked[0][0], "second@test" in asked[0][1]] == [True, True]
        with pytest.raises(Trouble, match=r"holds 2 keys that can knock; .* say which by --ssh"):
            agentkey.of_agent("", print, None)

    def test_none(self, real: RealAgent, tmp_path: Path) -> None:
        with pytest.raises(NotThere, match="locked, or empty"):
            agentkey.of_agent("", print, None)
        real.ssh_add(ssh_keygen(tmp_path / "rsa", kind="rsa"))
        with pytest.raises(Trouble, match=r"no key that can sign a knock \(an RSA key\)"):
            agentkey.of_agent("", print, None)

    def test_a_key_that_does_not_sign_is_found_out_at_once(
        self, real: RealAgent, key: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "known").write_text(
            f"db1 {public_half(ssh_keygen(tmp_path / 'h')).read_text()}"
        )
        real.ssh_add("-H", tmp_path / "known", "-h", "db1", key)
        for make in (
            lambda: agentkey.of_agent("", print, None),
            lambda: agentkey.of_file(public_half(key), "", print),
        ):
            with pytest.raises(AgentTrouble, match="for certain hosts only"):
                make()

    def test_a_file_whose_key_is_not_there_yet(self, real: RealAgent, key: Path) -> None:
        told: list[str] = []
        made = agentkey.of_file(public_half(key), "", told.append)
        (line,) = told
        assert line.startswith("before you knock: ssh-agent lists no key")
        real.ssh_add(key)
        assert holds(made.sign(MESSAGE), made)


def clock(*took_s: float) -> Callable[[], float]:
    """A monotonic clock as it is read: at the beginning, and before and after each signature."""

    def readings() -> Iterator[float]:
        now_s = 1000.0
        yield now_s
        for each_s in took_s:
            yield now_s
            now_s += each_s
            yield now_s

    return readings().__next__


class TestPatience:
    LOOPBACK = ip_address("127.0.0.1")
    AT_US = 1_800_000_000_000_000

    def composed(self, *took_s: float) -> tuple[int, list[str]]:
        """The time of the knock that is sent, after the beginning; and what was told."""
        told: list[str] = []
        with FakeServer(identity.generate(), grants) as server:
            plain = server.composer()
            patient = PatientComposer(
                plain.identity,
                plain.server,
                plain.pair,
                plain.wish,
                tell=told.append,
                monotonic_s=clock(*took_s),
            )
            made = patient.compose(self.LOOPBACK, self.LOOPBACK, nonce=bytes(24), now_us=self.AT_US)
        return made.sent_at_us - self.AT_US, told

    def test_a_touch_in_time(self) -> None:
        assert self.composed(0.1) == (0, [])
        assert self.composed(TOO_LATE_S) == (0, [])

    def test_a_touch_that_came_too_late(self) -> None:
        """The knock that leaves is made anew, and its time is when the new one was begun."""
        sent_after_us, told = self.composed(25.0, 3.0)
        assert sent_after_us == 25_000_000
        assert told == ["that came after 25 s, and the knock is stale; again, sooner"]

    def test_it_is_bounded(self) -> None:
        with pytest.raises(TooLate, match=f"signed too late {TRIES} times; touch the key"):
            self.composed(*[21.0] * TRIES)

    def test_what_is_signed_is_what_is_sent(self) -> None:
        """Both carry the later time; else the server would refuse the signature."""
        told: list[str] = []
        with FakeServer(identity.generate(), grants) as server:
            plain = server.composer()
            patient = PatientComposer(
                plain.identity,
                plain.server,
                plain.pair,
                plain.wish,
                tell=told.append,
                monotonic_s=clock(30.0, 1.0),
            )
            now_us = time.time_ns() // 1000
            made = patient.compose(self.LOOPBACK, self.LOOPBACK, nonce=bytes(24), now_us=now_us)
            knock = server.accept(made.payload)
        assert knock.request.sent_at_us == now_us + 30_000_000


class Home:
    """A user's home whose key is in an agent, and a server that knows it."""

    def __init__(self, directory: Path, who: Identity, server: FakeServer) -> None:
        self.directory = directory
        spa = directory / ".config" / "spa"
        identity.save(who, spa / "keys" / "default.key", None)
        (spa / "config.toml").write_text(f'[hosts.db1]\nserver = "{server.line}"\n')

    def knock(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("knock", "db1", "tcp/22", *options, **environment)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPA_", "XDG_", "SSH_"))}
        return subprocess.run(
            [*PROGRAM, *arguments],
            env={**kept, "HOME": str(self.directory), **environment},
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )


class TestTheClient:
    def test_it_knocks_with_a_key_in_the_agent(
        self, real: RealAgent, key: Path, tmp_path: Path
    ) -> None:
        real.ssh_add(key)
        who = made_of(key)
        with FakeServer(who, grants) as server:
            result = Home(tmp_path, who, server).knock(**real.environment)
        assert (result.returncode, result.stderr) == (0, "")
        assert not server.heard[0].knock.touched

    def test_an_agent_that_goes_before_the_close_leaves_the_programs_exit_code(
        self, real: RealAgent, key: Path, tmp_path: Path
    ) -> None:
        real.ssh_add(key)
        who = made_of(key)
        goes = ("sh", "-c", 'mv "$SSH_AUTH_SOCK" "$SSH_AUTH_SOCK.away"; exit 3')
        with FakeServer(who, grants) as server:
            home = Home(tmp_path, who, server)
            argv = ("exec", "db1", "tcp/22", "--close", "-q", "--", *goes)
            result = home.run(*argv, **real.environment)
        assert result.returncode == 3
        assert result.stderr.startswith("spa-client: not closed, and ends by itself: no ssh-agent")
        assert len(result.stderr.splitlines()) == 1

    def test_without_the_agent_it_says_one_line(
        self, real: RealAgent, key: Path, tmp_path: Path
    ) -> None:
        who = made_of(key)
        with FakeServer(who, grants) as server:
            home = Home(tmp_path, who, server)
            without, empty = home.knock(), home.knock(**real.environment)
        assert (without.returncode, without.stdout) == (4, "")
        assert without.stderr.startswith("spa-client: there is no ssh-agent (SSH_AUTH_SOCK is not ")
        assert empty.stderr.startswith("spa-client: ssh-agent lists no key: it is locked, or empty")
        assert [len(r.stderr.splitlines()) for r in (without, empty)] == [1, 1]
        assert server.heard == server.refused == []

    def test_it_asks_for_a_touch_and_for_one_only(self, tmp_path: Path) -> None:
        """The first knock is lost: a key that must be touched is not asked for another."""
        security_key = SecurityKey()
        who = identity.in_agent(KeyType.SK_ED25519, security_key.public)

        def late(heard: Heard) -> Iterator[object]:
            yield 1.2
            yield heard.reply()

        with (
            FakeServer(who, late) as server,
            FakeAgent(tmp_path / "a", holding(security_key, after_s=0.6)) as fake,
        ):
            result = Home(tmp_path, who, server).knock(**fake.environment)
        assert result.returncode == 0
        assert result.stderr == "spa-client: touch your security key\n"
        assert [heard.knock.touched for heard in server.heard] == [True]
        assert len(fake.heard) == 1

    def test_without_a_touch_the_knock_says_so(self, tmp_path: Path) -> None:
        security_key = SecurityKey()
        who = identity.in_agent(KeyType.SK_ED25519, security_key.public)
        with (
            FakeServer(who, grants) as server,
            FakeAgent(tmp_path / "a", holding(security_key, flags=0)) as fake,
        ):
            result = Home(tmp_path, who, server).knock(**fake.environment)
        assert (result.returncode, result.stderr) == (0, "")
        assert [heard.knock.touched for heard in server.heard] == [False]

    @pytest.mark.parametrize(
        ("first", "touches", "asked"),
        [
            (grants, 1, ["127.0.0.1"]),
            (refuses(Code.NOT_FROM_HERE), 2, ["127.0.0.1", "::1"]),
            (says_nothing, 2, ["127.0.0.1", "::1"]),
        ],
    )
    def test_one_address_after_the_other(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        first: Script,
        touches: int,
        asked: list[str],
    ) -> None:
        """A touch for each address, but none for what could bring nothing more."""
        security_key = SecurityKey()
        who = identity.in_agent(KeyType.SK_ED25519, security_key.public)
        with (
            FakeServer(who, first) as v4,
            FakeServer(who, grants, host="::1", port=v4.port) as v6,
            FakeAgent(tmp_path / "a", holding(security_key)) as fake,
        ):
            v6.secret, v6.sender = v4.secret, v4.sender
            monkeypatch.setenv("SSH_AUTH_SOCK", str(fake.path))
            host = Host("db1", v4.line, "db1", tmp_path)
            targets = (v4.target, v6.target)
            results = list(Knocking(host, targets, patient(v4.composer()), 0.3).results())
        assert len(fake.heard) == touches
        assert [str(result.target) for result in results] == asked
        assert v4.refused == v6.refused == []

    def test_closing_takes_a_touch_at_each_address_and_asks_again_for_a_late_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        security_key = SecurityKey()
        who = identity.in_agent(KeyType.SK_ED25519, security_key.public)
        told: list[str] = []
        with (
            FakeServer(who, grants) as v4,
            FakeServer(who, grants, host="::1", port=v4.port) as v6,
            FakeAgent(tmp_path / "a", holding(security_key)) as fake,
        ):
            v6.secret, v6.sender = v4.secret, v4.sender
            monkeypatch.setenv("SSH_AUTH_SOCK", str(fake.path))
            host = Host("db1", v4.line, "db1", tmp_path)
            composer = patient(v4.composer(source=SourceRule.NONE))
            both = [
                Knocking(host, (server.target,), composer, 0.3).run().results[0]
                for server in (v4, v6)
            ]
            for server in (v4, v6):
                server.script = says(Status.CLOSED)
            late = replace(
                composer,
                tell=told.append,
                monotonic_s=iter([0, 0, 25, 25, 26, 26, 26, 27]).__next__,
            )
            story = closing.close(Knocking(host, (v4.target, v6.target), late, 0.3), both)
        assert story is not None
        assert story.exit_code == 0
        assert [str(result.target) for result in story.results] == ["127.0.0.1", "::1"]
        assert told == ["that came after 25 s, and the knock is stale; again, sooner"]
        assert [isinstance(h.knock.request, Close) for h in (*v4.heard, *v6.heard)] == [
            False,
            True,
        ] * 2
        assert len(fake.heard) == 5

    def test_no_other_key_pays_for_it(self, tmp_path: Path) -> None:
        """Neither the agent's code nor the keyring is read for a key that signs by itself."""
        program = (
            "import sys\nfrom spa_client.cli import main\n"
            "try: main()\n"
            "finally: print(sorted(m for m in sys.modules if 'agent' in m or 'keyring' in m or "
            "m in ('keys.sshkey', 'spa_client.patience')))"
        )
        own = identity.generate()
        with FakeServer(own, grants) as server:
            home = Home(tmp_path, own, server)
            result = subprocess.run(
                [sys.executable, "-c", program, "knock", "db1", "tcp/22"],
                env={"HOME": str(home.directory), "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                check=True,
            )
        assert result.stdout.splitlines()[-1] == "[]"


def test_the_key_file_is_private(tmp_path: Path, key: Path) -> None:
    identity.save(made_of(key), tmp_path / "a.key", None)
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
