"""The program `spa-keys` as its users meet it: what it prints, asks and says when it cannot."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from keys import (
    console,
    identity,
    keyfile,
    keyline,
    listing,
    sshkey,
    table,
    text,
    transfer,
    when,
)
from keys.cli import main
from keys.console import ExitCode, Parsed, Program, Trouble
from keys.poke import Poked, poke
from keys.registry import opened
from spa_protocol import keytext
from spa_protocol.layout import Malformed
from spa_protocol.sshsig import KeyType
from tests.ssh_agents import RealAgent, public_half, real_agent, ssh_keygen

PROGRAM = [sys.executable, "-c", "from keys.cli import main; main()"]
# A new passphrase costs as little as argon2id can: what it costs in truth is asked but once.
CHEAP = """
from nacl.pwhash import argon2id
argon2id.OPSLIMIT_MODERATE = argon2id.OPSLIMIT_MIN
argon2id.MEMLIMIT_MODERATE = argon2id.MEMLIMIT_MIN
from keys.cli import main; main()
"""
CHEAP_PROGRAM = [sys.executable, "-c", CHEAP]
NAMED_EACH_TIME = {"key_file", "key_list", "ssh", "new_file"}
T0 = 1_800_000_000_000_000  # 2027-01-15T08:00:00Z


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    def trouble(self, code: int = ExitCode.TROUBLE) -> str:
        """Its one line of error, without the program's name."""
        assert self.code == code, self
        assert self.out == ""
        match = re.fullmatch(r"spa-keys: ([^\n\x1b]+[^.\n])\n", self.err)
        assert match, self.err
        return match[1]


class Host:
    """A machine with its keys and its registry in one directory, and nothing of the real one's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = directory / "keys"
        self.database = directory / "registry" / "spa.db"
        self.control = directory / "control.sock"
        self.program = CHEAP_PROGRAM
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TZ": "Europe/Berlin",
            "SPA_KEYS_DIR": str(self.keys),
            "SPA_DATABASE": str(self.database),
            "SPA_CONTROL": str(self.control),
        }

    def run(self, *arguments: str, typed: str = "", **environment: str) -> Ended:
        """Runs it without any terminal."""
        ended = subprocess.run(
            [*self.program, *arguments],
            input=typed.encode(),
            capture_output=True,
            env=self.environment | environment,
            start_new_session=True,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    def run_at_terminal(self, *arguments: str, answers: tuple[str, ...]) -> Ended:
        """Runs it with a terminal of its own, where each answer waits for a question.

        `out` is what it wrote to stdout, a pipe; `err` what the terminal showed.
        """
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [*self.program, *arguments],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=self.environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(theirs)
        shown = b""
        for answer in answers:
            asked = b""
            while not re.search(rb"[:?] ?(\[y/N\]: )?$", asked.splitlines()[-1] if asked else b""):
                asked += os.read(ours, 1000)
            shown += asked + b"\n"
            time.sleep(0.05)  # the question is printed just before the echo is turned off
            os.write(ours, answer.encode())
        out, _ = process.communicate(timeout=60)
        try:
            while more := os.read(ours, 1000):
                shown += more
        except OSError:
            pass  # the terminal's other end is closed: that is how it ends
        os.close(ours)
        return Ended(process.returncode, out.decode(), shown.decode().replace("\r\n", "\n"))

    def generate(self, name: str = "default", *options: str) -> str:
        """A new key without a passphrase; its line."""
        ended = self.run("generate", name, "--no-passphrase", *options)
        assert ended.code == 0, ended
        return ended.out.strip()

    def enroll(self, name: str, *options: str, line: str | None = None) -> str:
        """Enrols a key, a new one by default; its id."""
        line = line or keytext.format_key(identity.generate().public, f"{name}@laptop")
        ended = self.run("enroll", name, "--key", line, *options)
        assert ended.code == 0, ended
        return keytext.parse_key(line)[0].key_id

    def listed(self, *options: str) -> list[dict[str, object]]:
        ended = self.run("list", "--json", *options)
        assert (ended.code, ended.err) == (0, "")
        return json.loads(ended.out)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


class TestGenerate:
    def test_it_prints_the_line_and_keeps_the_key(self, host: Host) -> None:
        ended = host.run("generate", "--no-passphrase", "--comment", "alice@laptop")
        public, comment = keytext.parse_key(ended.out)
        assert (ended.code, comment) == (0, "alice@laptop")
        path = host.keys / "default.key"
        assert identity.load(path, None).public == public
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(host.keys.stat().st_mode) == 0o700
        assert str(path) in ended.err
        assert "no passphrase" in ended.err

    def test_a_comment_where_none_is_given(self, host: Host) -> None:
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True)
        assert host.generate().endswith(f" {user.stdout.strip()}@{os.uname().nodename}")

    def test_without_a_terminal_it_says_which_option_to_give(self, host: Host) -> None:
        line = host.run("generate").trouble(ExitCode.USAGE)
        assert line.endswith("give --no-passphrase or --passphrase-file")
        assert host.run("generate", "--passphrase").code == ExitCode.USAGE
        assert not host.keys.exists()

    def test_a_passphrase_from_a_file(self, host: Host, tmp_path: Path) -> None:
        file = tmp_path / "p"
        file.write_text("secret\n")
        file.chmod(0o600)
        assert host.run("generate", "--passphrase-file", str(file)).code == 0
        assert identity.load(host.keys / "default.key", lambda _: "secret")

    def test_a_passphrase_file_that_others_can_read(self, host: Host, tmp_path: Path) -> None:
        (tmp_path / "p").write_text("secret\n")
        (tmp_path / "p").chmod(0o644)
        ended = host.run("generate", "--passphrase-file", str(tmp_path / "p"))
        assert ended.trouble().endswith(f"run: chmod 600 {tmp_path}/p")

    def test_a_passphrase_from_a_pipe(self, host: Host) -> None:
        options = ("--passphrase-file", "/dev/stdin")
        assert host.run("generate", *options, typed="from a manager\n").code == 0
        assert identity.load(host.keys / "default.key", lambda _: "from a manager")

    def test_options_that_contradict(self, host: Host, tmp_path: Path) -> None:
        options = ("--no-passphrase", "--passphrase-file", str(tmp_path / "p"))
        line = host.run("generate", *options).trouble(ExitCode.USAGE)
        assert "exclude each other" in line
        by_variable = host.run("generate", "--no-passphrase", SPA_PASSPHRASE_FILE="/none")
        assert by_variable.code == 0

    def test_it_never_replaces_a_key_unasked(self, host: Host) -> None:
        first = host.generate()
        line = host.run("generate", "--no-passphrase").trouble()
        assert "exists already; show it with 'spa-keys show default'" in line
        assert host.run("show").out.strip() == first
        second = host.generate("default", "--force")
        assert host.run("show").out.strip() == second != first

    @pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "", "a\x1b[31m"])
    def test_names_stay_inside_the_directory(self, host: Host, name: str) -> None:
        assert "cannot name a key" in host.run("generate", name).trouble(ExitCode.USAGE)


class TestAtATerminal:
    """Questions go to the terminal, so the line can be piped away."""

    def test_a_passphrase_is_asked_for_twice_and_not_shown(self, host: Host) -> None:
        ended = host.run_at_terminal("generate", answers=("horse\n", "horse\n"))
        assert ended.code == 0
        assert keytext.parse_key(ended.out)
        assert "Passphrase (empty for none): " in ended.err
        assert "horse" not in ended.err
        assert "guarded by its passphrase" in ended.err
        assert identity.load(host.keys / "default.key", lambda _: "horse")

    def test_an_empty_answer_is_none(self, host: Host) -> None:
        ended = host.run_at_terminal("generate", answers=("\n",))
        assert ended.code == 0
        assert identity.load(host.keys / "default.key", None)

    @pytest.mark.parametrize(
        ("options", "answers", "said"),
        [
            ((), ("one\n", "two\n"), "the two passphrases differ; try again"),
            (("--passphrase",), ("\n",), "the passphrase is empty"),
        ],
    )
    def test_answers_that_will_not_do(
        self, host: Host, options: tuple[str, ...], answers: tuple[str, ...], said: str
    ) -> None:
        ended = host.run_at_terminal("generate", *options, answers=answers)
        assert ended.code == ExitCode.TROUBLE
        assert f"spa-keys: {said}" in ended.err
        assert not host.keys.exists()

    @pytest.mark.parametrize("key", ["\x03", "\x04"])
    def test_ctrl_c_and_ctrl_d_end_it(self, host: Host, key: str) -> None:
        ended = host.run_at_terminal("generate", answers=(key,))
        assert ended.code == ExitCode.INTERRUPTED
        assert ended.err.splitlines()[-1] == "spa-keys: interrupted"
        assert "Traceback" not in ended.err
        assert not host.keys.exists()

    def test_revoking_an_identity_is_confirmed(self, host: Host) -> None:
        first, second = host.enroll("alice"), host.enroll("alice")
        ended = host.run_at_terminal("revoke", "alice", answers=("n\n",))
        assert ended.code == ExitCode.REFUSED
        assert "Revoke all 2 keys and invites of alice? [y/N]: " in ended.err
        assert {key["state"] for key in host.listed()} == {"active"}
        ended = host.run_at_terminal("revoke", "alice", answers=("y\n",))
        assert ended.code == 0
        assert set(ended.out.splitlines()) == {
            f"revoked key {key_id} of alice" for key_id in (first, second)
        }

    def test_revoking_one_key_is_not(self, host: Host) -> None:
        key = host.enroll("alice")
        assert (
            host.run_at_terminal("revoke", key, answers=()).out == f"revoked key {key} of alice\n"
        )


with_ssh_agent = pytest.mark.skipif(
    shutil.which("ssh-agent") is None, reason="openssh-client is needed"
)


@with_ssh_agent
class TestGenerateWithAnAgent:
    @pytest.fixture
    def agent(self, host: Host, tmp_path: Path) -> Iterator[RealAgent]:
        with real_agent(tmp_path) as running:
            host.environment |= running.environment
            yield running

    @pytest.fixture
    def key(self, tmp_path: Path) -> Path:
        return ssh_keygen(tmp_path / "id")

    def test_by_a_file(self, host: Host, agent: RealAgent, key: Path) -> None:
        agent.ssh_add(key)
        ended = host.run("generate", "--ssh", f"{key}.pub", "--no-passphrase")
        public, _ = keytext.parse_key(ended.out)
        assert public.signing == sshkey.read(public_half(key)).signing_key()[1]
        assert identity.load(host.keys / "default.key", None).is_in_agent
        assert ended.err.startswith("ssh-agent signs; the rest of the key is in ")
        assert host.run("show").out == ended.out

    def test_by_the_agent(self, host: Host, agent: RealAgent, key: Path) -> None:
        agent.ssh_add(key)
        by_agent = host.run("generate", "one", "--agent", "--no-passphrase")
        by_file = host.run("generate", "two", "--ssh", f"{key}.pub", "--no-passphrase")
        one, two = (keytext.parse_key(ended.out)[0] for ended in (by_agent, by_file))
        assert one.signing == two.signing
        assert one.key_id != two.key_id

    def test_from_stdin(self, host: Host, key: Path) -> None:
        line = public_half(key).read_text()
        ended = host.run("generate", "--ssh", "-", "--no-passphrase", typed=line)
        assert ended.code == 0
        assert "spa-keys: before you knock: there is no ssh-agent" in ended.err

    def test_a_passphrase_guards_the_other_half(
        self, host: Host, agent: RealAgent, key: Path
    ) -> None:
        agent.ssh_add(key)
        options = ("--agent", "--passphrase-file", "/dev/stdin")
        assert host.run("generate", *options, typed="horse\n").code == 0
        loaded = identity.load(host.keys / "default.key", lambda _: "horse")
        assert loaded.is_in_agent

    def test_one_of_several_is_chosen(self, host: Host, agent: RealAgent, tmp_path: Path) -> None:
        keys = [ssh_keygen(tmp_path / name) for name in ("first", "second")]
        for each in keys:
            agent.ssh_add(each)
        ended = host.run_at_terminal("generate", "--agent", answers=("3\n", "2\n", "\n"))
        assert ended.code == 0, ended
        public, _ = keytext.parse_key(ended.out)
        assert public.signing == sshkey.read(public_half(keys[1])).signing_key()[1]
        assert re.search(r"  1  SHA256:\S+  first@test  \(Ed25519\)\n  2  ", ended.err)

    def test_without_a_terminal_it_says_how(
        self, host: Host, agent: RealAgent, tmp_path: Path
    ) -> None:
        for name in ("first", "second"):
            agent.ssh_add(ssh_keygen(tmp_path / name))
        line = host.run("generate", "--agent", "--no-passphrase").trouble(ExitCode.USAGE)
        assert line == (
            "ssh-agent holds 2 keys that can knock; 'ssh-add -L' prints them; say which by "
            "--ssh FILE.pub"
        )

    @pytest.mark.parametrize(
        ("options", "code", "said"),
        [
            (("--agent",), 4, "there is no ssh-agent (SSH_AUTH_SOCK is not set); start one: "),
            (("--agent", "--ssh", "x.pub"), 2, "--ssh and --agent exclude each other"),
            (("--ssh", "/nowhere.pub"), 4, "/nowhere.pub: no such file or directory"),
            (("--keyring",), 2, "--no-passphrase and --keyring exclude each other"),
        ],
    )
    def test_what_will_not_do(
        self, host: Host, options: tuple[str, ...], code: int, said: str
    ) -> None:
        ended = host.run("generate", *options, "--no-passphrase")
        assert said in ended.trouble(code)
        assert not host.keys.exists()

    def test_no_option_shows_a_private_key(self, host: Host, key: Path) -> None:
        line = host.run("generate", "--ssh", str(key), "--no-passphrase").trouble()
        assert line.endswith(f"name its public half: {key}.pub")


class TestRotate:
    def test_the_whole_of_it(self, host: Host) -> None:
        first = host.generate()
        old_id = keytext.parse_key(first)[0].key_id
        ended = host.run("rotate", "--no-passphrase")
        assert ended.code == 0
        assert f"spa-keys enroll IDENTITY --key 'the line' --replaces {old_id}" in ended.err
        assert host.run("show").out.strip() == first
        assert host.run("show", "default.next").out == ended.out != first

        again = host.run("rotate", "--no-passphrase")
        assert again.out == ended.out
        assert f"was made before: {host.keys}/default.next.key" in again.err

        finished = host.run("rotate", "--finish")
        new_id = keytext.parse_key(ended.out)[0].key_id
        assert finished.out == f"{host.keys}/default.key is now {new_id}\n"
        assert host.run("show").out == ended.out
        assert host.run("show", "default.old").out.strip() == first
        assert sorted(path.name for path in host.keys.iterdir()) == [
            "default.key",
            "default.old.key",
        ]
        for path in host.keys.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_twice(self, host: Host) -> None:
        """The old key of the first time makes room for that of the second."""
        host.generate()
        lines = []
        for _ in range(2):
            lines.append(host.run("rotate", "--no-passphrase").out)
            assert host.run("rotate", "--finish").code == 0
        assert host.run("show", "default.old").out == lines[0]
        assert host.run("show").out == lines[1]

    def test_another_name(self, host: Host) -> None:
        host.generate("backup")
        assert host.run("rotate", "backup", "--no-passphrase").code == 0
        assert (host.keys / "backup.next.key").exists()

    def test_no_key(self, host: Host) -> None:
        assert "does not exist; make one" in host.run("rotate", "--no-passphrase").trouble()

    def test_without_a_name_the_only_key_is_meant(self, host: Host) -> None:
        """As after `spa-client join`, which names the key after the server."""
        line = host.generate("db1-hafzu4qm")
        assert host.run("show").out.strip() == line
        ended = host.run("rotate", "--no-passphrase")
        assert ended.code == 0, ended
        assert "rotate db1-hafzu4qm --finish" in ended.err
        assert (host.keys / "db1-hafzu4qm.next.key").exists()
        assert host.run("rotate", "--finish").code == 0
        assert host.run("passphrase", "--no-passphrase").code == 0
        assert host.run("show").out == ended.out

    def test_of_several_none_is_guessed(self, host: Host) -> None:
        host.generate("db1")
        host.generate("db2")
        said = host.run("rotate", "--no-passphrase").trouble(ExitCode.USAGE)
        assert said == f"there is no default.key in {host.keys}; say which: db1, db2"
        assert sorted(path.name for path in host.keys.iterdir()) == ["db1.key", "db2.key"]

    def test_nothing_to_finish(self, host: Host) -> None:
        line = host.generate()
        said = host.run("rotate", "--finish").trouble()
        assert said == f"there is no {host.keys}/default.next.key; make it with 'spa-keys rotate'"
        assert host.run("show").out.strip() == line


class TestMine:
    def test_every_key_with_its_guard(self, host: Host) -> None:
        line = host.generate("db1")
        secret = host.directory / "passphrase"
        secret.write_text("a long passphrase\n")
        secret.chmod(0o600)
        host.run("generate", "work", "--passphrase-file", str(secret), "--comment", "laptop")
        (host.keys / "bad.key").write_text("nothing")
        (host.keys / "bad.key").chmod(0o600)
        ended = host.run("mine")
        head, db1, work = ended.out.splitlines()
        assert head.split() == ["NAME", "KEY", "GUARDED", "BY", "SIGNED", "BY", "COMMENT"]
        key_id = keytext.parse_key(line)[0].key_id
        assert db1.split()[:4] == ["db1", key_id, "nothing", "itself"]
        assert work.split()[2:] == ["passphrase", "itself", "laptop"]
        assert "bad.key" in ended.err
        bad, first, _ = json.loads(host.run("mine", "--json").out)
        assert (bad["name"], bad["key"], bool(bad["problem"])) == ("bad", None, True)
        assert (first["key"], first["path"]) == (key_id, f"{host.keys}/db1.key")

    def test_none(self, host: Host) -> None:
        ended = host.run("mine")
        assert (ended.code, ended.out) == (0, "")
        assert f"No key is in {host.keys}" in ended.err
        assert host.run("mine", "--json").out == "[]\n"


class TestReplacing:
    """On the server: a key that ends when another is first used."""

    def enrolled(self, host: Host, *options: str) -> tuple[str, str]:
        """The ids of an old key, and of a new one that was enrolled with these options."""
        old = host.enroll("alice", "--role", "dba")
        return old, host.enroll("alice", "--replaces", old, *options)

    def test_both_are_good_for_a_while(self, host: Host) -> None:
        old, new = self.enrolled(host)
        before, after = sorted(host.listed(), key=lambda key: key["key"] == new)
        left = datetime.fromisoformat(str(before["expires_at"])) - datetime.now(UTC)
        assert timedelta(days=6.9) < left <= timedelta(days=7)
        assert (before["key"], after["key"], after["expires_at"]) == (old, new, None)
        assert {before["state"], after["state"]} == {"active"}
        with opened(host.database) as registry:
            assert registry.replacing() == {new}
            assert [key.key_id for key in registry.replaced_by(new)] == [old]

    def test_the_old_one_goes_when_the_new_one_is_used(self, host: Host) -> None:
        old, new = self.enrolled(host)
        with opened(host.database) as registry:
            changed = registry.last_change_id()
            assert registry.replaced(new, T0) == [old]
            (change,) = registry.changes_since(changed)
            assert (change.action, change.key_id) == ("key.revoked", old)
            assert change.actor == f"key:{new}"
            assert change.detail == f"replaced by {new}"
            assert registry.replacing() == frozenset()
            assert registry.replaced(new, T0) == []
        assert [key["key"] for key in host.listed()] == [new]

    def test_or_at_the_end_of_the_overlap(self, host: Host) -> None:
        old, _ = self.enrolled(host, "--overlap", "0s")
        states = {key["key"]: key["state"] for key in host.listed()}
        assert states[old] == "expired"

    def test_it_lives_no_longer_than_it_would_have(self, host: Host) -> None:
        old = host.enroll("alice", "--expires", "1h")
        (before,) = host.listed()
        host.enroll("alice", "--replaces", old, "--overlap", "30d")
        (after,) = (key for key in host.listed() if key["key"] == old)
        assert after["expires_at"] == before["expires_at"]

    def test_it_says_what_ends_when(self, host: Host) -> None:
        old = host.enroll("alice")
        line = keytext.format_key(identity.generate().public, "new")
        ended = host.run("enroll", "alice", "--key", line, "--replaces", old[:8])
        assert re.search(
            rf"\n{old} ends when the new key is first used, until \d{{4}}-\d\d-\d\dT", ended.out
        )

    def test_the_list_shows_which_replaces_which(self, host: Host) -> None:
        old, new = self.enrolled(host)
        keys = {str(key["key"]): key for key in host.listed()}
        assert [(keys[k]["replaced_by"], keys[k]["replaces"]) for k in (old, new)] == [
            (new, []),
            (None, [old]),
        ]
        lines = host.run("list").out.splitlines()
        of_old = next(n for n, line in enumerate(lines) if line.startswith(f"alice     {old}"))
        assert lines[of_old + 2] == f"  being replaced by {new}: ends at its first use"
        assert f"  replaces {old} when it is first used" in lines
        assert max(map(len, lines)) <= 80
        with opened(host.database) as registry:
            registry.replaced(new, T0)
        assert "replace" not in host.run("list", "--all").out

    def test_a_replaced_key_whose_overlap_is_over_is_shown_as_expired_alone(
        self, host: Host
    ) -> None:
        self.enrolled(host, "--overlap", "0s")
        assert "being replaced" not in host.run("list").out

    def test_enrolling_the_old_one_again_keeps_it(self, host: Host) -> None:
        line = keytext.format_key(identity.generate().public, "old")
        old = host.enroll("alice", line=line)
        new = host.enroll("alice", "--replaces", old)
        host.enroll("alice", line=line)
        with opened(host.database) as registry:
            assert registry.replacing() == frozenset()
            assert registry.replaced(new, T0) == []
        assert {key["expires_at"] for key in host.listed()} == {None}

    def test_by_the_name_of_its_owner_where_it_is_the_only_one(self, host: Host) -> None:
        old = host.enroll("alice")
        new = host.enroll("alice", "--replaces", "alice")
        with opened(host.database) as registry:
            assert [key.key_id for key in registry.replaced_by(new)] == [old]

    def test_several_devices_go_their_own_ways(self, host: Host) -> None:
        """Each device has a key; one is rotated, and the others are not touched."""
        laptop, phone, tower = (host.enroll("alice") for _ in range(3))
        new = host.enroll("alice", "--replaces", phone)
        with opened(host.database) as registry:
            registry.replaced(new, T0)
            active = {key.key_id for key in registry.keys_of("alice") if key.is_active(T0)}
        assert active == {laptop, tower, new}
        assert host.run("revoke", laptop).code == 0
        assert {key["key"] for key in host.listed()} == {tower, new}

    @pytest.mark.parametrize("command", ["revoke-old", "revoke-new"])
    def test_a_key_that_is_revoked_meanwhile(self, host: Host, command: str) -> None:
        old, new = self.enrolled(host)
        host.run("revoke", old if command == "revoke-old" else new)
        with opened(host.database) as registry:
            assert registry.replacing() == (frozenset() if command == "revoke-old" else {new})
            changed = registry.last_change_id()
            if command == "revoke-old":
                assert registry.replaced(new, T0) == []
                assert registry.changes_since(changed) == []

    def test_what_cannot_be_replaced(self, host: Host) -> None:
        others = host.enroll("bob")
        gone, first, second = (host.enroll("alice") for _ in range(3))
        host.run("revoke", gone)
        line = keytext.format_key(identity.generate().public, "new")
        for replaces, said in (
            (others, f"{others} is no key of alice's; nothing was changed"),
            (gone, f"{gone!r} names no other key of alice; name one by its id"),
            ("alice", "'alice' names 2 other keys of alice; name one by its id"),
            ("nobody", "no identity or key is called 'nobody'"),
            (keytext.parse_key(line)[0].key_id, "names no other key of alice"),
        ):
            ended = host.run("enroll", "alice", "--key", line, "--replaces", replaces)
            assert said in ended.trouble(ExitCode.REFUSED)
        again = host.run("enroll", "alice", "--key", line)
        assert again.code == 0  # nothing of it had been enrolled
        assert {key["key"] for key in host.listed("--identity", "alice")} >= {first, second}

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--overlap", "1d"), "--overlap is for a key that --replaces another"),
            (("--replaces", "x", "--overlap", "soon"), "'soon' is no duration"),
        ],
    )
    def test_options_that_will_not_do(
        self, host: Host, options: tuple[str, ...], said: str
    ) -> None:
        line = keytext.format_key(identity.generate().public, "new")
        ended = host.run("enroll", "alice", "--key", line, *options)
        assert said in ended.trouble(ExitCode.USAGE)

    def test_a_registry_of_the_version_before(self, host: Host) -> None:
        """The migration adds what is missing, and keeps what is there."""
        key_id = host.enroll("alice")
        with contextlib.closing(sqlite3.connect(host.database)) as connection, connection:
            connection.execute("DROP TABLE replacement")
            connection.execute("DELETE FROM _sqlite_migrations WHERE name = '0003_replacement'")
        assert "older version" in host.run("list").trouble()
        new = host.enroll("alice", "--replaces", key_id)
        assert {key["key"] for key in host.listed()} == {key_id, new}


class TestPassphrase:
    def secret_file(self, directory: Path, name: str, text: str) -> str:
        path = directory / name
        path.write_text(f"{text}\n")
        path.chmod(0o600)
        return str(path)

    def test_from_none_to_one_to_another_to_none(self, host: Host, tmp_path: Path) -> None:
        line = host.generate()
        path = host.keys / "default.key"
        horse = self.secret_file(tmp_path, "horse", "horse")
        mule = self.secret_file(tmp_path, "mule", "mule")
        assert host.run("passphrase", "--new-passphrase-file", horse).code == 0
        assert identity.load(path, lambda _: "horse")
        change = ("passphrase", "--passphrase-file", horse, "--new-passphrase-file", mule)
        ended = host.run(*change)
        assert (ended.code, ended.err) == (0, f"{path} is now guarded by its passphrase.\n")
        assert "wrong passphrase" in host.run(*change).trouble()
        assert identity.load(path, lambda _: "mule")
        assert host.run("passphrase", "--passphrase-file", mule, "--no-passphrase").code == 0
        assert identity.load(path, None)
        assert host.run("show").out.strip() == line

    def test_at_a_terminal(self, host: Host) -> None:
        host.run_at_terminal("generate", answers=("horse\n", "horse\n"))
        ended = host.run_at_terminal("passphrase", answers=("horse\n", "mule\n", "mule\n"))
        assert ended.code == 0
        assert "Passphrase for " in ended.err
        assert "New passphrase (empty for none): " in ended.err
        assert not re.search("horse|mule", ended.err)
        assert identity.load(host.keys / "default.key", lambda _: "mule")

    def test_a_wrong_one_changes_nothing(self, host: Host, tmp_path: Path) -> None:
        horse = self.secret_file(tmp_path, "horse", "horse")
        mule = self.secret_file(tmp_path, "mule", "mule")
        host.run("generate", "--passphrase-file", horse)
        before = (host.keys / "default.key").read_bytes()
        options = ("--passphrase-file", mule, "--no-passphrase")
        assert "wrong passphrase" in host.run("passphrase", *options).trouble()
        assert (host.keys / "default.key").read_bytes() == before

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ((), "no terminal to ask for a passphrase; give --no-passphrase or --new-"),
            (("--no-passphrase", "--new-passphrase-file", "x"), "exclude each other"),
            (("--no-passphrase", "--keyring"), "exclude each other"),
        ],
    )
    def test_usage(self, host: Host, options: tuple[str, ...], said: str) -> None:
        host.generate()
        assert said in host.run("passphrase", *options).trouble(ExitCode.USAGE)

    def test_a_key_in_the_agent_stays_there(self, host: Host, tmp_path: Path) -> None:
        in_agent = identity.in_agent(KeyType.ED25519, identity.generate().public.signing)
        identity.save(in_agent, host.keys / "default.key", None)
        horse = self.secret_file(tmp_path, "horse", "horse")
        assert host.run("passphrase", "--new-passphrase-file", horse).code == 0
        assert identity.load(host.keys / "default.key", lambda _: "horse") == in_agent


KEYRING = '''
"""A keyring in a file: what a desktop's would be, for a test."""
import json, os, pathlib
import keyring.backend, keyring.errors

FILE = pathlib.Path(os.environ["TEST_KEYRING"])

class Keyring(keyring.backend.KeyringBackend):
    priority = 1

    def _all(self):
        return json.loads(FILE.read_text()) if FILE.exists() else {}

    def get_password(self, service, username):
        return self._all().get(f"{service}/{username}")

    def set_password(self, service, username, password):
        FILE.write_text(json.dumps({**self._all(), f"{service}/{username}": password}))

    def delete_password(self, service, username):
        kept = self._all()
        del kept[f"{service}/{username}"]
        FILE.write_text(json.dumps(kept))

class Locked(Keyring):
    def get_password(self, *_):
        raise keyring.errors.KeyringLocked("the keyring is locked")

    set_password = get_password
'''


class TestKeyring:
    """The package `keyring`, with a backend of its own kind: chosen as any other is."""

    @pytest.fixture
    def secrets(self, host: Host, tmp_path: Path) -> Path:
        """Where the keyring keeps them."""
        pytest.importorskip("keyring")
        (tmp_path / "kept_in_a_file.py").write_text(KEYRING)
        host.environment |= {
            "PYTHONPATH": str(tmp_path),
            "PYTHON_KEYRING_BACKEND": "kept_in_a_file.Keyring",
            "TEST_KEYRING": str(tmp_path / "secrets.json"),
        }
        return tmp_path / "secrets.json"

    def generate(self, host: Host, **environment: str) -> tuple[Ended, str]:
        """With the passphrase `horse`; and the key's id."""
        options = ("--passphrase-file", "/dev/stdin", "--keyring")
        ended = host.run("generate", *options, typed="horse\n", **environment)
        assert ended.code == 0, ended
        return ended, keytext.parse_key(ended.out)[0].key_id

    def test_it_keeps_the_passphrase_and_nothing_else(self, host: Host, secrets: Path) -> None:
        ended, key_id = self.generate(host)
        assert "guarded by its passphrase, which the system's keyring keeps" in ended.err
        assert json.loads(secrets.read_text()) == {f"spaknock/{key_id}": "horse"}
        # Nobody can be asked here, so it is the keyring that opens the key.
        assert host.run("passphrase", "--no-passphrase").code == 0
        assert identity.load(host.keys / "default.key", None).public.key_id == key_id

    def test_it_forgets_what_is_no_longer_good(self, host: Host, secrets: Path) -> None:
        self.generate(host)
        assert host.run("passphrase", "--no-passphrase").code == 0
        assert json.loads(secrets.read_text()) == {}

    def test_another_passphrase_takes_its_place(self, host: Host, secrets: Path) -> None:
        _, key_id = self.generate(host)
        options = ("--new-passphrase-file", "/dev/stdin", "--keyring")
        assert host.run("passphrase", *options, typed="mule\n").code == 0
        assert json.loads(secrets.read_text()) == {f"spaknock/{key_id}": "mule"}
        assert (
            identity.load(
                host.keys / "default.key", lambda _: "mule", use_keyring=False
            ).public.key_id
            == key_id
        )

    @pytest.mark.parametrize(
        ("backend", "said"),
        [
            ("keyring.backends.fail.Keyring", "this system offers none"),
            ("kept_in_a_file.Locked", "the keyring is locked"),
            ("nothing.of.this.name", "No module named"),
        ],
    )
    @pytest.mark.usefixtures("secrets")
    def test_without_a_keyring_it_is_asked_for(self, host: Host, backend: str, said: str) -> None:
        ended, _ = self.generate(host, PYTHON_KEYRING_BACKEND=backend)
        first, *_ = ended.err.splitlines()
        assert first.startswith("spa-keys: the keyring cannot be used: ")
        assert said in first or backend.startswith("nothing")
        assert first.endswith("; the passphrase will be asked for")
        assert "guarded by its passphrase." in ended.err
        assert not identity.is_in_keyring(host.keys / "default.key")

    @pytest.mark.usefixtures("secrets")
    def test_a_keyring_that_is_gone_when_it_is_needed(self, host: Host) -> None:
        self.generate(host)
        gone = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
        ended = host.run("passphrase", "--no-passphrase", **gone)
        first, second = ended.err.splitlines()
        assert first == "spa-keys: the keyring cannot be used: this system offers none"
        assert "needs its passphrase and there is nobody to ask" in second

    def test_the_package_is_not_there(self, host: Host, tmp_path: Path) -> None:
        (tmp_path / "keyring.py").write_text("raise ImportError('hidden')")
        options = ("--passphrase-file", "/dev/stdin", "--keyring")
        ended = host.run("generate", *options, typed="horse\n", PYTHONPATH=str(tmp_path))
        assert ended.code == 0
        assert ended.err.startswith(
            "spa-keys: the keyring cannot be used: the package keyring is missing; "
            f"{sys.executable} -m pip install keyring"
        )

    @pytest.mark.usefixtures("secrets")
    def test_no_passphrase_no_keyring(self, host: Host) -> None:
        ended = host.run_at_terminal("generate", "--keyring", answers=("\n",))
        assert ended.code == ExitCode.TROUBLE
        assert "there is no passphrase that the keyring could keep" in ended.err
        assert not host.keys.exists()


class TestExportAndImport:
    @pytest.fixture
    def other(self, tmp_path: Path) -> Host:
        """Another machine."""
        (tmp_path / "other").mkdir()
        return Host(tmp_path / "other")

    @pytest.fixture
    def config(self, host: Host, other: Host) -> Path:
        for each in (host, other):
            each.environment["SPA_CONFIG"] = str(each.directory / "spa" / "config.toml")
        path = host.directory / "spa" / "config.toml"
        path.parent.mkdir()
        path.write_text('key = "default"\n# ü\n')
        return path

    def export(self, host: Host, *options: str, name: str = "all.spa") -> tuple[Ended, Path]:
        """With the passphrase `mule`."""
        path = host.directory / name
        arguments = ("export", str(path), "--passphrase-file", "/dev/stdin", *options)
        return host.run(*arguments, typed="mule\n"), path

    def unpack(self, host: Host, path: Path, *options: str, word: str = "mule") -> Ended:
        arguments = ("import", str(path), "--passphrase-file", "/dev/stdin", *options)
        return host.run(*arguments, typed=f"{word}\n")

    def test_everything_comes_over_as_it_is(self, host: Host, other: Host, config: Path) -> None:
        host.generate()
        host.run("generate", "work", "--passphrase-file", "/dev/stdin", typed="horse\n")
        ended, path = self.export(host)
        assert ended.out == f"key default\nkey work\nconfiguration {config}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        unpacked = self.unpack(other, path)
        assert unpacked.code == 0, unpacked
        for name in ("default.key", "work.key"):
            assert (other.keys / name).read_bytes() == (host.keys / name).read_bytes()
            assert stat.S_IMODE((other.keys / name).stat().st_mode) == 0o600
        there = other.directory / "spa" / "config.toml"
        assert there.read_bytes() == config.read_bytes()
        assert identity.load(other.keys / "work.key", lambda _: "horse")
        assert unpacked.out.splitlines() == [
            *(f"{other.keys}/{name}" for name in ("default.key", "work.key")),
            str(there),
        ]

    @pytest.mark.usefixtures("config")
    def test_nothing_of_it_can_be_read(self, host: Host) -> None:
        host.generate()
        host.program = PROGRAM
        _, path = self.export(host)
        secret = (host.keys / "default.key").read_text().splitlines()[-1]
        assert secret.encode()[:40] not in path.read_bytes()
        assert b"kdf: argon2id 3 268435456 " in path.read_bytes()

    @pytest.mark.usefixtures("config")
    def test_a_wrong_passphrase(self, host: Host, other: Host) -> None:
        host.generate()
        _, path = self.export(host)
        assert "wrong passphrase" in self.unpack(other, path, word="horse").trouble()
        assert not other.keys.exists()

    @pytest.mark.usefixtures("config")
    def test_it_must_have_a_passphrase(self, host: Host) -> None:
        host.generate()
        line = host.run("export", str(host.directory / "x")).trouble(ExitCode.USAGE)
        assert "there is no terminal to ask for a passphrase" in line
        ended = host.run_at_terminal("export", str(host.directory / "x"), answers=("\n",))
        assert "the passphrase is empty" in ended.err
        assert not (host.directory / "x").exists()

    @pytest.mark.usefixtures("config")
    def test_some_keys_only(self, host: Host, other: Host) -> None:
        host.generate()
        host.generate("work")
        ended, path = self.export(host, "--key", "work")
        assert "key default" not in ended.out
        self.unpack(other, path)
        assert [file.name for file in other.keys.iterdir()] == ["work.key"]

    @pytest.mark.usefixtures("config")
    def test_what_is_there_already_stays(self, host: Host, other: Host) -> None:
        host.generate()
        _, path = self.export(host)
        self.unpack(other, path)
        again = self.unpack(other, path)
        assert again.code == 0
        assert again.out.count("was there already") == 2

    @pytest.mark.usefixtures("config")
    def test_another_key_of_the_same_name_is_not_replaced(self, host: Host, other: Host) -> None:
        host.generate()
        host.generate("work")
        _, path = self.export(host)
        line = other.generate("work")
        said = self.unpack(other, path).trouble()
        assert said == (
            f"{other.keys}/work.key would be replaced by another; move it away, or give --force"
        )
        assert other.run("show", "work").out.strip() == line
        assert [file.name for file in other.keys.iterdir()] == ["work.key"]
        assert self.unpack(other, path, "--force").code == 0
        assert other.run("show", "work").out.strip() != line

    def test_keys_that_are_elsewhere_are_named(self, host: Host, config: Path) -> None:
        config.write_text('key = "/mnt/usb/a.key"\n[hosts.db1]\nkey = "./b"\n')
        host.generate()
        ended, _ = self.export(host)
        assert "Not in it: the key /mnt/usb/a.key, which the configuration names" in ended.err
        assert "Not in it: the key ./b, " in ended.err

    def test_without_a_configuration(self, host: Host, other: Host) -> None:
        host.generate()
        ended, path = self.export(host, "--config", str(host.directory / "none.toml"))
        assert ended.out == "key default\n"
        assert self.unpack(other, path).code == 0

    def test_nothing(self, host: Host) -> None:
        ended, _ = self.export(host, "--config", str(host.directory / "none.toml"))
        assert ended.trouble().startswith("there is nothing to export: no key in ")

    @pytest.mark.usefixtures("config")
    def test_a_damaged_key_is_said(self, host: Host) -> None:
        host.generate()
        (host.keys / "torn.key").write_text("spa-private-key 1 client\n")
        (host.keys / "torn.key").chmod(0o600)
        ended, path = self.export(host)
        assert "torn.key is not a whole key file" in ended.trouble()
        assert not path.exists()

    @pytest.mark.usefixtures("config")
    def test_it_replaces_no_file(self, host: Host) -> None:
        host.generate()
        self.export(host)
        ended, _ = self.export(host)
        assert "exists already; choose another name" in ended.trouble()

    @pytest.mark.usefixtures("config")
    def test_more_than_a_file_can_hold(self, host: Host) -> None:
        for number in range(3):
            key = identity.generate("x" * 200)
            identity.save(key, host.keys / f"k{number}.key", None)
        (host.directory / "spa" / "config.toml").write_text("# " + 50_000 * "x")
        ended, path = self.export(host)
        assert "64 KiB is the most; export fewer keys" in ended.trouble()
        assert not path.exists()

    @pytest.mark.usefixtures("config")
    def test_a_key_is_no_export_and_an_export_no_key(self, host: Host) -> None:
        host.generate()
        _, path = self.export(host)
        line = self.unpack(host, host.keys / "default.key").trouble()
        assert "is no export, but the key of a client; make one with 'spa-keys export'" in line
        path.rename(host.keys / "odd.key")
        assert "is an export, and no key; unpack it" in host.run("show", "odd").trouble()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "truncated"),
            (b"{}", "missing required field"),
            (b'{"config": null, "keys": {}, "more": 1}', "unknown field"),
            (b'{"config": null, "keys": {"../../evil": "x"}}', "cannot name a key"),
            (b'{"config": null, "keys": {"a": "spa-private-key 1 client"}}', "lines are missing"),
            (b'{"config": null, "keys": {"a": "hello"}}', "no private key"),
        ],
    )
    def test_what_is_in_it_is_checked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
    ) -> None:
        """Even what somebody has sealed with the right passphrase."""
        cheap = keyfile.Argon2id(1, 8192, bytes(16))
        monkeypatch.setattr(keyfile.Argon2id, "fresh", lambda: cheap)
        file = keyfile.seal_file(
            keyfile.Kind.EXPORT,
            comment="",
            public=b"",
            signing="none",
            secret=content,
            passphrase="mule",
        )
        (tmp_path / "x").write_bytes(bytes(file))
        (tmp_path / "x").chmod(0o600)
        with pytest.raises(identity.KeyFileError, match=f"not a whole key file .*{said}"):
            transfer.load(tmp_path / "x", lambda _: "mule")

    def test_an_export_in_clear_is_refused(self, tmp_path: Path) -> None:
        content = bytes(transfer.Export("key = 'x'", {}))
        file = keyfile.KeyFile(keyfile.Kind.EXPORT, "", b"", "none", None, content)
        (tmp_path / "x").write_bytes(bytes(file))
        (tmp_path / "x").chmod(0o600)
        with pytest.raises(identity.KeyFileError, match="an export without a passphrase"):
            transfer.load(tmp_path / "x", None)

    @given(
        config=st.none() | st.text(st.characters(codec="utf-8")),
        names=st.sets(st.from_regex(r"[a-z][a-z.]{0,10}", fullmatch=True), max_size=3),
    )
    def test_what_is_written_parses(self, config: str | None, names: set[str]) -> None:
        keys = {name: bytes(some_key_file(name)) for name in names}
        export = transfer.Export(config, keys)
        assert transfer.Export.parse(bytes(export)) == export

    @given(content=st.binary(max_size=60))
    def test_no_content_raises_anything_but_torn(self, content: bytes) -> None:
        with contextlib.suppress(keyfile.Torn):
            transfer.Export.parse(content)


def some_key_file(comment: str) -> keyfile.KeyFile:
    return keyfile.KeyFile(keyfile.Kind.CLIENT, comment, bytes(65), "here", None, bytes(64))


class TestShow:
    def test_the_line_and_the_fingerprint(self, host: Host) -> None:
        line = host.generate("work")
        assert host.run("show", "work") == Ended(0, f"{line}\n", "")
        key_id = keytext.parse_key(line)[0].key_id
        assert host.run("show", "work", "--fingerprint") == Ended(0, f"{key_id}\n", "")

    def test_it_needs_no_passphrase(self, host: Host, tmp_path: Path) -> None:
        (tmp_path / "p").write_text("secret")
        (tmp_path / "p").chmod(0o600)
        line = host.run("generate", "--passphrase-file", str(tmp_path / "p")).out
        assert host.run("show") == Ended(0, line, "")

    def test_a_key_that_is_not_there(self, host: Host) -> None:
        assert host.run("show", "x").trouble().endswith("make one with 'spa-keys generate'")

    def test_a_comment_cannot_steer_the_terminal(self, host: Host) -> None:
        host.generate()
        path = host.keys / "default.key"
        path.write_text(re.sub("comment: .*", "comment: \x1b[2Jevil\u202e", path.read_text()))
        ended = host.run("show")
        assert ended.code == 0
        assert ended.out.strip().endswith(r" \x1b[2Jevil\u202e")


class TestEnroll:
    def test_it_says_what_it_did(self, host: Host) -> None:
        line = host.generate()
        ended = host.run("enroll", "alice", "--key", line, "--role", "ops", "--role", "dba")
        key_id = keytext.parse_key(line)[0].key_id
        assert ended.out == f"alice may knock with {key_id}, without end; roles dba, ops\n"
        assert (ended.code, ended.err) == (0, "")
        ended = host.run("enroll", "alice", "--key", line, "--expires", "2199-01-31")
        assert ", until 2199-01-31T00:00; roles dba, ops" in ended.out

    def test_from_a_file_and_from_stdin(self, host: Host, tmp_path: Path) -> None:
        first, second = host.generate("a"), host.generate("b")
        (tmp_path / "a.pub").write_text(f"# from alice\n\n{first}\n")
        assert host.run("enroll", "alice", "--key-file", str(tmp_path / "a.pub")).code == 0
        assert host.run("enroll", "alice", "--key-file", "-", typed=second).code == 0
        assert len(host.listed()) == 2

    @pytest.mark.parametrize("options", [(), ("--key", "LINE", "--key-file", "-")])
    def test_one_key_is_given(self, host: Host, options: tuple[str, ...]) -> None:
        line = host.generate()
        options = tuple(line if option == "LINE" else option for option in options)
        ended = host.run("enroll", "alice", *options)
        assert ended.trouble(ExitCode.USAGE).startswith("give the key by --key or by --key-file")

    def test_a_torn_line(self, host: Host) -> None:
        line = host.generate()[:-30]
        ended = host.run("enroll", "alice", "--key", line)
        assert "the key line is not whole" in ended.trouble(ExitCode.USAGE)
        ended = host.run("enroll", "alice", "--key-file", "-", typed=line)
        assert ended.trouble().startswith("stdin: the key line is not whole")
        assert not host.database.exists()

    def test_a_private_key_by_mistake(self, host: Host) -> None:
        host.generate()
        path = str(host.keys / "default.key")
        line = host.run("enroll", "alice", "--key-file", path).trouble()
        assert "is a private key, which stays with its owner" in line

    def test_two_lines(self, host: Host) -> None:
        typed = host.generate("a") + "\n" + host.generate("b")
        line = host.run("enroll", "alice", "--key-file", "-", typed=typed).trouble()
        assert line.startswith("stdin has 2 lines; expected one")

    @pytest.mark.parametrize("expires", ["soon", "90", "2020-01-01", "-1d", "2027-02-30", "0s"])
    def test_an_expiry_that_is_none(self, host: Host, expires: str) -> None:
        options = ("--key", host.generate(), f"--expires={expires}")
        line = host.run("enroll", "alice", *options).trouble(ExitCode.USAGE)
        assert line.startswith("invalid value for '--expires': ")
        assert not host.database.exists()

    def test_a_key_of_somebody_else(self, host: Host) -> None:
        line = host.generate()
        host.enroll("alice", line=line)
        ended = host.run("enroll", "bob", "--key", line)
        assert "is enrolled for alice already" in ended.trouble(ExitCode.REFUSED)

    def test_names_are_checked_before_anything_is_done(self, host: Host) -> None:
        line = host.generate()
        for arguments in (("a b", "--key", line), ("alice", "--key", line, "--role", "a/b")):
            assert "cannot name" in host.run("enroll", *arguments).trouble(ExitCode.USAGE)
        assert not host.database.exists()

    def test_who_did_it_is_on_record(self, host: Host) -> None:
        line = keytext.format_key(identity.generate().public)
        host.run("enroll", "alice", "--key", line, SUDO_USER="carol")
        with opened(host.database, read_only=True) as registry:
            (change,) = registry.changes_since(0)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True)
        assert change.actor == f"{user.stdout.strip()} (sudo by carol)"


class TestEnrollFromAList:
    def line(self, comment: str = "") -> tuple[str, str]:
        """A key's id and its line."""
        public = identity.generate().public
        return public.key_id, keytext.format_key(public, comment)

    def test_everybody_at_once(self, host: Host, tmp_path: Path) -> None:
        keys = [self.line(f"key {i}") for i in range(4)]
        (tmp_path / "people").write_text(
            "# who, in which roles, with which key\n\n"
            f"alice  dba,oncall  {keys[0][1]}\n"
            f"alice {keys[1][1]}\r\n"
            f"  bob dba oncall {keys[2][1]}\n"
            f"# carol {keys[3][1]}\n"
            f"backup\t{keys[3][1]}"
        )
        ended = host.run(
            "enroll", "--from", str(tmp_path / "people"), "--role", "all", "--expires", "2199-01-31"
        )
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.splitlines() == [
            f"{name} may knock with {key_id}, until 2199-01-31T00:00; {roles}"
            for name, (key_id, _), roles in zip(
                ("alice", "alice", "bob", "backup"),
                keys,
                (*["roles all, dba, oncall"] * 3, "role all"),
                strict=True,
            )
        ]
        assert {row["comment"] for row in host.listed()} == {f"key {i}" for i in range(4)}

    def test_from_stdin(self, host: Host) -> None:
        ended = host.run("enroll", "--from", "-", typed=f"alice {self.line()[1]}")
        assert (ended.code, len(host.listed())) == (0, 1)

    def test_all_or_nothing(self, host: Host, tmp_path: Path) -> None:
        good = f"alice {self.line()[1]}\n"
        torn = self.line()[1][:-20]
        (tmp_path / "people").write_text(
            f"{good}bob {torn}\n{self.line()[1]}\na/b {self.line()[1]}\nnothing\n{good}"
        )
        said = host.run("enroll", "--from", str(tmp_path / "people")).trouble()
        assert said.startswith(f"{tmp_path}/people: line 2: the key line is not whole")
        assert said.endswith("also wrong: 3, 4, 5, 6")
        assert not host.database.exists()

    @pytest.mark.parametrize(
        ("written", "said"),
        [
            ("KEY", "line 1: nobody is named; write the identity, its roles and then the key"),
            ("alice a/b KEY", "line 1: 'a/b' cannot name a role"),
            ("alice KEY\nbob KEY", "line 2: the same key as in line 1"),
            ("alice dba", "line 1: not a key line; expected 'spa-key <base64> comment'"),
            ("alice ssh-ed25519 AAAAC3Nz alice", "line 1: an SSH key alone cannot knock"),
            ("# nothing", "holds no key line; expected lines like 'spa-key ...'"),
        ],
    )
    def test_a_line_that_will_not_do(self, host: Host, written: str, said: str) -> None:
        typed = written.replace("KEY", self.line()[1])
        line = host.run("enroll", "--from", "-", typed=typed).trouble()
        assert line.startswith("stdin")
        assert said in line
        assert not host.database.exists()

    def test_what_the_registry_refuses_names_its_line(self, host: Host) -> None:
        key_id, taken = self.line()
        host.enroll("alice", line=taken)
        typed = f"carol dba {self.line()[1]}\n\nbob {taken}\n"
        line = host.run("enroll", "--from", "-", typed=typed).trouble(ExitCode.REFUSED)
        assert line.startswith(f"stdin: line 3: key {key_id} is enrolled for alice already")
        assert [row["identity"] for row in host.listed()] == ["alice"]

    def test_from_authorized_keys(self, host: Host, tmp_path: Path) -> None:
        key_id, line = self.line("alice@laptop")
        other, more = self.line("alice@phone")
        ssh = 'from="10.0.0.0/8",no-pty ssh-rsa AAAAB3NzaC1yc2E alice@laptop'
        (tmp_path / "authorized_keys").write_text(
            f"# {line}\n{ssh}\n#and {line}\nssh-ed25519 AAAAC3NzaC1 a spa-key here\ndba {more}\n"
        )
        ended = host.run("enroll", "alice", "--from", str(tmp_path / "authorized_keys"))
        assert ended.code == 0, ended
        assert {str(row["key"]) for row in host.listed()} == {key_id, other}
        assert host.listed()[0]["roles"] == ["dba"]
        assert ended.err == "Passed over: 2 SSH keys, which alone cannot knock.\n"

    def test_only_ssh_keys(self, host: Host) -> None:
        typed = "ssh-ed25519 AAAAC3NzaC1 alice@laptop\n"
        line = host.run("enroll", "alice", "--from", "-", typed=typed).trouble()
        assert line.startswith("stdin holds an SSH key, which alone cannot knock; its owner runs")
        assert not host.database.exists()

    def test_a_private_key_by_mistake(self, host: Host) -> None:
        host.generate()
        line = host.run("enroll", "alice", "--from", str(host.keys / "default.key")).trouble()
        assert "is a private key, which stays with its owner" in line

    def test_too_large(self, host: Host) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(17 * 2**20)
            line = host.run("enroll", "--from", file.name).trouble()
        assert "is larger than 16384 KiB" in line

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("alice", "--from", "-", "--key-file", "x"), "--from takes the place of --key"),
            (("--key-file", "x"), "missing argument 'IDENTITY', or a list by --from"),
        ],
    )
    def test_contradictions(self, host: Host, arguments: tuple[str, ...], said: str) -> None:
        assert said in host.run("enroll", *arguments).trouble(ExitCode.USAGE)

    def test_a_thousand(self, host: Host) -> None:
        typed = "".join(f"job{i % 100} batch {self.line()[1]}\n" for i in range(1000))
        ended = host.run("enroll", "--from", "-", typed=typed)
        assert (ended.code, ended.out.count("\n")) == (0, 1000)
        assert len(host.listed()) == 1000


class TestList:
    def test_json(self, host: Host) -> None:
        key_id = host.enroll("alice", "--role", "dba", "--expires", "2199-01-31T12:00:00+01:00")
        (key,) = host.listed()
        assert re.fullmatch(
            r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", str(key.pop("enrolled_at"))
        )
        assert key == {
            "identity": "alice",
            "roles": ["dba"],
            "key": key_id,
            "type": "ed25519",
            "comment": "alice@laptop",
            "state": "active",
            "expires_at": "2199-01-31T11:00:00Z",
            "revoked_at": None,
            "last_seen": None,
            "replaced_by": None,
            "replaces": [],
        }

    def test_revoked_keys_only_with_all(self, host: Host) -> None:
        host.enroll("alice")
        host.run("revoke", "alice")
        assert host.listed() == []
        assert [key["state"] for key in host.listed("--all")] == ["revoked"]
        ended = host.run("list")
        assert (ended.code, ended.out, ended.err) == (
            0,
            "",
            "No key but revoked ones; see --all.\n",
        )

    def test_one_identity(self, host: Host) -> None:
        host.enroll("alice")
        host.enroll("bob")
        assert [key["identity"] for key in host.listed("--identity", "bob")] == ["bob"]

    def test_the_table(self, host: Host) -> None:
        alice = host.enroll("alice", "--role", "dba", "--expires", "2199-01-31T12:00:00Z")
        bob = host.enroll("bob.the-builder1", "--role", "ops", "--role", "net")
        with opened(host.database) as registry:
            registry.seen([(alice, T0)])
        ended = host.run("list")
        lines = ended.out.splitlines()
        assert lines[0].split("  ") == [*lines[0].split("  ")]
        assert lines[0].split() == ["IDENTITY", "KEY", "STATE", "EXPIRES", "LAST", "SEEN"]
        assert lines[1].split() == [
            "alice",
            alice,
            "active",
            "2199-01-31T13:00",
            "2027-01-15T09:00",
        ]
        assert re.fullmatch(r"  alice@laptop; role dba; enrolled 20.{14}", lines[2])
        assert lines[3].split() == ["bob.the-builder1", bob, "active", "never", "never"]
        assert re.fullmatch(r"  bob.the-builder1@laptop; roles net, ops; enrolled .{16}", lines[4])
        assert max(map(len, lines)) <= 80

    def test_a_registry_with_damage_is_still_listed(self, host: Host) -> None:
        good, bad = host.enroll("alice"), host.enroll("bob")
        connection = sqlite3.connect(host.database)
        connection.execute("UPDATE \"key\" SET signing = x'00' WHERE key_id = ?", [bad])
        connection.execute(
            "UPDATE \"key\" SET comment = 'evil\x1b[31m\x9b' WHERE key_id = ?", [good]
        )
        connection.commit()
        connection.close()
        ended = host.run("list")
        assert ended.code == 0
        assert ended.err == f"spa-keys: key {bad} is passed over: the signing key is not 32 bytes\n"
        assert r"evil\x1b[31m\x9b; no role;" in ended.out
        assert "\x1b" not in ended.out
        assert "\x1b" not in host.run("list", "--json").out

    def test_no_registry(self, host: Host) -> None:
        assert host.run("list").trouble().startswith("there is no registry at")
        assert not host.database.exists()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ("show --directory {file}", "{file}/default.key cannot be read: not a directory; name"),
            (
                "show --directory {no}",
                "{no}/default.key does not exist; make one with 'spa-keys gen",
            ),
            ("import {directory}", "{directory} cannot be read: is a directory; name the file"),
            ("import {no}", "{no} does not exist; make one with 'spa-keys export'"),
            ("import {file}", "{file} is open to other users (mode 0644); run: chmod 600 {file}"),
            ("enroll a --key-file {no}", "{no}: no such file or directory; name the file"),
            ("enroll a --key-file {directory}", "{directory}: is a directory; name the file"),
            ("enroll a --key-file {file}", "{file} has no line; expected one, 'spa-key"),
            ("enroll --from {directory}", "{directory}: is a directory; name the file"),
            ("generate x --no-passphrase --directory {file}", "{file}/x.key cannot be written: "),
            ("generate x --ssh {no}", "{no}: no such file or directory; name the file"),
            ("invite a --server-config {directory}", "{directory}: is a directory; name the file"),
            ("invite a --server-config {no}", "{no}: no such file or directory; name the file"),
        ],
    )
    def test_every_trouble_with_a_file_says_what_to_do(
        self, host: Host, tmp_path: Path, arguments: str, said: str
    ) -> None:
        where = {name: str(tmp_path / name) for name in ("file", "directory", "no")}
        (tmp_path / "file").touch(mode=0o644)
        (tmp_path / "directory").mkdir()
        line = host.run(*arguments.format(**where).split()).trouble()
        assert line.startswith(said.format(**where))
        assert "; " in line

    def test_into_a_closed_pipe(self, host: Host) -> None:
        host.enroll("alice")
        command = " ".join(map(shlex.quote, PROGRAM))
        for arguments in ("list", "list --json", "--help"):
            ended = subprocess.run(
                ["bash", "-c", f"{command} {arguments} | true; exit ${{PIPESTATUS[0]}}"],
                capture_output=True,
                env=host.environment,
                check=False,
            )
            assert ended.stderr == b""
            assert ended.returncode in (0, ExitCode.CLOSED_PIPE)

    @pytest.mark.parametrize("arguments", ["list", "list --json", "--help", "show --help"])
    def test_onto_a_full_disk(self, host: Host, arguments: str) -> None:
        host.enroll("alice")
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                [*PROGRAM, *arguments.split()],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=host.environment,
                check=False,
            )
        assert ended.returncode == 4
        assert ended.stderr == "spa-keys: no space left on device\n"

    def test_streams_that_are_closed_are_nobody_elses(self, host: Host) -> None:
        """The registry's file must not become standard output, nor a list be read from it."""
        host.enroll("alice")
        command = " ".join(map(shlex.quote, PROGRAM))
        for arguments, closed, code in (
            ("list", ">&- 2>&- <&-", 0),
            ("list --json", ">&-", 0),
            ("enroll bob --key-file -", "<&-", 4),
            ("revoke alice", "<&- >&-", 0),
        ):
            ended = subprocess.run(
                ["bash", "-c", f"{command} {arguments} {closed}"],
                capture_output=True,
                text=True,
                env=host.environment,
                check=False,
            )
            assert ended.returncode == code, ended
            assert "bug" not in ended.stderr
        assert [key["state"] for key in host.listed("--all")] == ["revoked"]


class TestRevokeAndRoles:
    def test_revoking_says_what_it_took_and_that_no_daemon_heard(self, host: Host) -> None:
        key_id = host.enroll("alice")
        ended = host.run("revoke", "alice", "--yes")
        assert ended.out == f"revoked key {key_id} of alice\n"
        assert ended.err == (
            f"No daemon was reached at {host.control}: open holes close when it starts.\n"
        )
        again = host.run("revoke", key_id[:7]).trouble(ExitCode.REFUSED)
        assert again.startswith(f"key {key_id} was revoked at 20")

    def test_revoking_nobody(self, host: Host) -> None:
        host.enroll("alice")
        line = host.run("revoke", "\x1b[31mx").trouble(ExitCode.REFUSED)
        assert line == r"no identity or key is called '\x1b[31mx'; see: spa-keys list --all"

    def test_granting_and_ungranting(self, host: Host) -> None:
        host.enroll("alice")
        assert host.run("grant", "alice", "ops", "dba") == Ended(0, "alice: roles dba, ops\n", "")
        assert host.run("ungrant", "alice", "ops") == Ended(0, "alice: role dba\n", "")
        ended = host.run("ungrant", "alice", "dba")
        assert ended.out == "alice: no role, so nothing is allowed\n"
        assert host.run("ungrant", "alice", "dba").trouble(1) == "alice does not have the role dba"
        assert "there is no identity 'bob'" in host.run("grant", "bob", "dba").trouble(1)

    @pytest.mark.parametrize("command", ["revoke x", "grant x y", "ungrant x y"])
    def test_no_registry_is_made_by_a_wrong_path(self, host: Host, command: str) -> None:
        assert host.run(*command.split()).trouble().startswith("there is no registry at")
        assert not host.database.parent.exists()


class TestTheDatabaseInTrouble:
    """One line each, and exit code 4."""

    COMMANDS = ("list", "revoke alice", "grant alice x", "ungrant alice x")

    def every_command(self, host: Host) -> Iterator[str]:
        for command in self.COMMANDS:
            yield host.run(*command.split()).trouble()
        line = keytext.format_key(identity.generate().public)
        yield host.run("enroll", "alice", "--key", line).trouble()

    def test_not_a_database(self, host: Host) -> None:
        host.database.parent.mkdir()
        host.database.write_text("nothing of the kind\n" * 100)
        for line in self.every_command(host):
            assert line.startswith(f"{host.database} is not a database")

    def test_a_directory(self, host: Host) -> None:
        host.database.mkdir(parents=True)
        for line in self.every_command(host):
            assert line == f"{host.database} is a directory; set --database to a file in it"

    def test_in_use(self, host: Host) -> None:
        host.enroll("alice")
        connection = sqlite3.connect(host.database)
        connection.execute("BEGIN IMMEDIATE")
        assert "is in use by another program; try again" in host.run("revoke", "alice").trouble()
        assert host.run("list").code == 0
        connection.close()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_of_another_user(self, host: Host) -> None:
        host.enroll("alice")
        for directory in (host.directory, *host.directory.parents):
            if directory == Path(tempfile.gettempdir()):
                break
            directory.chmod(0o755)
        said = as_nobody(["list", "--database", str(host.database)])
        assert said == (
            4,
            f"spa-keys: {host.database}: permission denied; run this as its owner or as root\n",
        )
        host.database.parent.chmod(0o755)
        said = as_nobody(["revoke", "alice", "--database", str(host.database)])
        assert said == (
            4,
            f"spa-keys: {host.database} cannot be opened; run this as its owner or as root\n",
        )
        host.database.chmod(0o644)
        said = as_nobody(["revoke", "alice", "--database", str(host.database)])
        assert said[0] == 4
        assert "run this as its owner or as root" in said[1]


def as_nobody(arguments: list[str]) -> tuple[int, str]:
    """The exit code and stderr of a command run by a user without any rights."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        sys.stderr = os.fdopen(2, "w")
        try:
            main(arguments)
        except SystemExit as ended:
            sys.stderr.flush()
            os._exit(int(ended.code or 0))
        os._exit(99)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return os.waitstatus_to_exitcode(status), pipe.read()


class Daemon:
    """Something that answers at a control socket, and remembers what it was asked."""

    def __init__(self, path: Path, answer: bytes | None) -> None:
        self.asked: list[bytes] = []
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                asked = connection.makefile("rb").readline()
                if asked == b"stop":
                    return
                self.asked.append(asked)
                if self._answer is None:
                    time.sleep(0.5)
                else:
                    connection.sendall(self._answer)

    def stop(self) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._socket.getsockname())
            connection.sendall(b"stop")
        self._thread.join()
        self._socket.close()


class TestTellingTheDaemon:
    def test_every_change_tells_it(self, host: Host) -> None:
        daemon = Daemon(host.control, b'{"ok": true}\n')
        try:
            host.enroll("alice")
            host.run("grant", "alice", "a")
            host.run("ungrant", "alice", "a")
            ended = host.run("revoke", "alice")
            host.run("list")
        finally:
            daemon.stop()
        assert [json.loads(line) for line in daemon.asked] == [{"do": "reload-keys"}] * 4
        assert (ended.code, ended.err) == (0, "")

    def test_it_refuses(self, host: Host) -> None:
        daemon = Daemon(host.control, b'{"ok": false, "error": "not \\u001b[31mnow"}\n')
        try:
            line = keytext.format_key(identity.generate().public)
            ended = host.run("enroll", "alice", "--key", line)
        finally:
            daemon.stop()
        assert ended.code == 0
        assert r"could not be told at once (not \x1b[31mnow); it will notice" in ended.err

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (b'{"ok": true, "keys": 3}\n', Poked(is_running=True)),
            (b'{"ok": false, "error": "busy"}\n', Poked(is_running=True, problem="busy")),
            (b"", Poked(is_running=True, problem="its answer makes no sense")),
            (b"[]\n", Poked(is_running=True, problem="its answer makes no sense")),
            (b"\xff\n", Poked(is_running=True, problem="its answer makes no sense")),
            (None, Poked(is_running=True, problem="no answer in 0.1 s")),
        ],
    )
    def test_answers(self, tmp_path: Path, answer: bytes | None, expected: Poked) -> None:
        daemon = Daemon(tmp_path / "s", answer)
        try:
            assert poke(tmp_path / "s", timeout_s=0.1) == expected
        finally:
            daemon.stop()

    def test_nobody_there(self, tmp_path: Path) -> None:
        left_behind = socket.socket(socket.AF_UNIX)
        left_behind.bind(str(tmp_path / "dead"))
        left_behind.close()
        (tmp_path / "file").touch()
        for path in (tmp_path / "none", tmp_path / "dead", tmp_path / "file" / "x"):
            assert poke(path) == Poked(is_running=False)
        assert poke(tmp_path / ("long" * 50)).problem == "af_unix path too long"


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ("foo", "no such command 'foo'; try 'spa-keys --help'"),
            ("lst", "no such command 'lst'; did you mean 'list'?"),
            ("list --foo", "no such option '--foo'; try 'spa-keys list --help'"),
            ("grant", "missing argument 'IDENTITY'; try 'spa-keys grant --help'"),
            ("show a b", "got unexpected extra argument (b); try 'spa-keys show --help'"),
        ],
    )
    def test_one_line(self, host: Host, arguments: str, said: str) -> None:
        assert host.run(*arguments.split()).trouble(ExitCode.USAGE) == said

    def test_without_arguments_it_teaches(self, host: Host) -> None:
        ended = host.run()
        assert (ended.code, ended.out) == (ExitCode.USAGE, "")
        assert "spa-keys generate" in ended.err

    def test_version(self, host: Host) -> None:
        assert re.fullmatch(r"spa-keys \d+\.\d+\.\d+\S*\n", host.run("--version").out)

    def test_everything_is_explained(self) -> None:
        for name, command in main.commands.items():
            help_text = CliRunner().invoke(main, [name, "--help"]).output
            assert command.help
            assert "Example" in help_text
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    assert parameter.help, f"{name} {parameter.name}"
                if isinstance(parameter, click.Option) and isinstance(parameter.type, click.Path):
                    assert parameter.envvar or parameter.name in NAMED_EACH_TIME

    def test_a_traceback_when_it_is_asked_for(self, host: Host) -> None:
        ended = host.run("show", SPA_DEBUG="1")
        assert "Traceback" in ended.err
        assert ended.err.splitlines()[-1].startswith("spa-keys: ")
        assert "Traceback" not in host.run("show", SPA_DEBUG="0").err

    def test_a_terminal_without_utf_8(self, host: Host) -> None:
        host.enroll("alice", line=keytext.format_key(identity.generate().public, "日本"))
        ended = host.run("list", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
        assert r"\u65e5\u672c" in ended.out

    def test_the_client_gets_no_database(self) -> None:
        program = (
            "import keys.identity, keys.serverkey, keys.console, keys.when, keys.places, sys\n"
            "print([m for m in sys.modules if m.startswith(('sqlite', 'rich', 'scapy'))])"
        )
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        assert said.stdout == b"[]\n"


class TestProgram:
    """What the three programs share."""

    def ends(self, raised: BaseException | None = None, returned: object = None) -> tuple[int, str]:
        @click.group("spa-test", cls=Program)
        def program() -> None:
            pass

        @program.command()
        def do() -> object:
            if raised is not None:
                raise raised
            return returned

        ended = CliRunner().invoke(program, ["do"])
        assert ended.stdout == ""
        return ended.exit_code, ended.stderr

    @pytest.mark.parametrize(
        ("raised", "code", "line"),
        [
            (Trouble("it broke", "mend it"), 4, "it broke; mend it"),
            (Trouble("it broke"), 4, "it broke"),
            (Trouble("no", exit_code=ExitCode.REFUSED), 1, "no"),
            (Trouble("a\nb\x1b[31m"), 4, r"a\nb\x1b[31m"),
            (
                FileNotFoundError(2, "No such file or directory", "x"),
                4,
                "x: no such file or directory; name the file that you mean",
            ),
            (
                PermissionError(13, "Permission denied", "x"),
                4,
                "x: permission denied; run this as its owner or as root",
            ),
            (OSError(28, "No space left on device"), 4, "no space left on device"),
            (OSError("odd"), 4, "odd"),
            (keytext.BadKeyText("not a key line"), 4, "not a key line"),
            (Malformed("port 0"), 4, "port 0"),
            (when.BadTime("never"), 4, "never"),
            (click.UsageError("Give one. Or two?"), 2, "give one; or two?"),
            (click.ClickException("Could not do it."), 4, "could not do it"),
            (KeyboardInterrupt(), 130, "interrupted"),
            (EOFError(), 130, "interrupted"),
            (click.Abort(), 1, "stopped, as asked"),
            (ExceptionGroup("g", [ExceptionGroup("h", [Trouble("deep")])]), 4, "deep"),
            (BaseExceptionGroup("g", [KeyboardInterrupt()]), 130, "interrupted"),
        ],
    )
    def test_what_goes_wrong_is_one_line(self, raised, code: int, line: str) -> None:
        assert self.ends(raised) == (code, f"spa-test: {line}\n")

    def test_a_bug_is_called_one(self) -> None:
        code, line = self.ends(ZeroDivisionError("division by zero"))
        assert code == 4
        assert line == (
            "spa-test: unexpected ZeroDivisionError: division by zero; this is a bug; "
            "run it again with SPA_DEBUG=1 and report what it says\n"
        )

    @pytest.mark.parametrize(
        ("returned", "code"), [(None, 0), (3, 3), (ExitCode.REFUSED, 1), ("x", 0)]
    )
    def test_a_command_may_return_its_exit_code(self, returned: object, code: int) -> None:
        assert self.ends(returned=returned) == (code, "")

    def test_a_subclass_of_trouble_has_its_own_exit_code(self) -> None:
        class Silence(Trouble):
            exit_code = ExitCode.NO_ANSWER

        assert self.ends(Silence("no answer", "is it up?"))[0] == 3
        assert self.ends(Silence("no answer", exit_code=ExitCode.USAGE))[0] == 2

    def test_ctrl_c_in_the_middle(self) -> None:
        program = (
            "import click, time\nfrom keys.console import Program\n"
            "@click.group('spa-test', cls=Program)\ndef main(): pass\n"
            "@main.command()\ndef wait():\n    print('ready', flush=True)\n    time.sleep(60)\n"
            "main(['wait'])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (130, "spa-test: interrupted\n")

    def test_as_a_part_of_another_program_it_raises(self) -> None:
        with pytest.raises(Trouble):
            main(["show", "--directory", "/nonexistent"], standalone_mode=False)

    def test_a_parsed_parameter(self) -> None:
        duration = Parsed("duration", when.parse_duration)
        assert duration.convert("2h", None, None) == 7200
        assert duration.convert(5.0, None, None) == 5.0
        with pytest.raises(click.BadParameter, match="'x' is no duration"):
            duration.convert("x", None, None)


class TestWhen:
    @pytest.mark.parametrize(
        ("written", "seconds"),
        [
            ("30s", 30),
            ("15m", 900),
            ("8h", 28_800),
            ("90d", 7_776_000),
            ("2w", 1_209_600),
            ("1h30m", 5400),
            ("1d12h", 129_600),
            ("1.5h", 5400),
            ("500ms", 0.5),
            ("1s500ms", 1.5),
            ("0s", 0),
            (" 8H ", 28_800),
        ],
    )
    def test_durations(self, written: str, seconds: float) -> None:
        assert when.parse_duration(written) == pytest.approx(seconds)

    @pytest.mark.parametrize(
        "written",
        [
            "",
            "30",
            "s",
            "-1s",
            "+1s",
            "1 h",
            "30m1h",
            "1h1h",
            "1y",
            "1e3s",
            "٣s",
            "1.s",
            "99999999d",
        ],
    )
    def test_what_is_no_duration(self, written: str) -> None:
        with pytest.raises(when.BadTime):
            when.parse_duration(written)

    @pytest.mark.parametrize(
        ("written", "utc"),
        [
            ("2027-01-31", "2027-01-30T23:00:00Z"),
            ("2027-07-31", "2027-07-30T22:00:00Z"),
            ("2027-01-31T18:00", "2027-01-31T17:00:00Z"),
            ("2027-01-31 18:00:30", "2027-01-31T17:00:30Z"),
            ("2027-01-31T18:00:00Z", "2027-01-31T18:00:00Z"),
            ("2027-01-31t18:00:00.5z", "2027-01-31T18:00:00.500000Z"),
            ("2027-01-31T18:00:00-05:00", "2027-01-31T23:00:00Z"),
            ("90d", "2027-04-15T08:00:00Z"),
        ],
    )
    def test_moments(self, written: str, utc: str) -> None:
        assert when.rfc3339(when.parse_moment(written, T0, ZoneInfo("Europe/Berlin"))) == utc

    @pytest.mark.parametrize(
        "written",
        [
            "",
            "tomorrow",
            "2027-1-31",
            "2027-02-30",
            "20270131",
            "2027-W05",
            "2027-01-31T25:00",
            "2027-01-31T18",
            "2027-01-31T18:00:00+25:00",
            "0000-01-01",
            "31.01.2027",
        ],
    )
    def test_what_is_no_moment(self, written: str) -> None:
        with pytest.raises(when.BadTime):
            when.parse_moment(written, T0, UTC)

    @pytest.mark.parametrize("edge", ["0001-01-01", "9999-12-31"])
    def test_the_ends_of_the_calendar_raise_nothing_else(self, edge: str) -> None:
        for hours in (-14, 14):
            try:
                when.parse_moment(edge, T0, timezone(timedelta(hours=hours)))
            except when.BadTime:
                continue

    def test_an_expiry_lies_ahead(self) -> None:
        assert when.parse_expiry("1s", T0) == T0 + 1_000_000
        for past in ("0s", "2020-01-01", "2027-01-15T08:00:00Z"):
            with pytest.raises(when.BadTime, match="is past"):
                when.parse_expiry(past, T0)

    @given(st.integers(0, 250_000_000_000_000_000))
    def test_what_is_shown_is_what_was_parsed(self, at_us: int) -> None:
        shown = when.rfc3339(at_us)
        assert when.parse_moment(shown, 0) == at_us
        assert datetime.fromisoformat(shown).utcoffset() == timedelta(0)

    @given(st.text())
    def test_no_text_raises_anything_but_bad_time(self, written: str) -> None:
        for parse in (when.parse_duration, lambda t: when.parse_moment(t, T0)):
            with contextlib.suppress(when.BadTime):
                parse(written)


class TestText:
    @given(st.text())
    def test_what_is_printable_steers_no_terminal(self, written: str) -> None:
        shown = text.printable(written)
        assert shown.isprintable()
        assert "\n" not in shown
        assert text.printable(shown) == shown

    @given(st.text())
    def test_a_clean_comment_is_one_short_line(self, written: str) -> None:
        comment = text.clean_comment(written)
        assert comment.isprintable()
        assert len(comment) <= text.MAX_COMMENT
        assert text.clean_comment(comment) == comment == comment.strip()

    def test_lone_surrogates(self) -> None:
        assert text.printable("a\udcffb") == r"a\udcffb"

    def test_a_table_is_aligned_in_columns_of_the_terminal(self) -> None:
        rows = [("a", "x"), ("日本", "y"), ("e\u0301", "z"), ("\x1b", "")]
        lines = table.table(("H", "J"), rows).split("\n")
        assert lines == ["H     J", "a     x", "日本  y", "e\u0301     z", r"\x1b"]

    def test_an_empty_listing_is_its_heading(self) -> None:
        assert listing.as_table([], {}, {}, T0).startswith("IDENTITY  KEY")

    def test_a_key_line_from_a_file(self, tmp_path: Path) -> None:
        public = identity.generate().public
        (tmp_path / "k").write_bytes(b"\xff\xfe")
        with pytest.raises(Trouble, match="not a key line"):
            keyline.read(tmp_path / "k")
        (tmp_path / "k").write_text(keytext.format_key(public, "ä") + "\r\n")
        assert keyline.read(tmp_path / "k") == (public, "ä")

    def test_the_console_names_what_it_offers(self) -> None:
        assert all(hasattr(console, name) for name in console.__all__)


def test_other_programs_are_told_what_was_enrolled(host: Host) -> None:
    first = host.run("generate", "first", "--no-passphrase").out.strip()
    second = host.run("generate", "second", "--no-passphrase").out.strip()
    ended = host.run("enroll", "alice", "--key", first, "--json", "--expires", "2099-01-31T00:00Z")
    [row] = json.loads(ended.out)
    assert (row["identity"], row["roles"], row["ends"]) == ("alice", [], {})
    assert row["expires_at"].startswith("2099-01-31T00:00:00")
    again = host.run("enroll", "alice", "--key", second, "--replaces", row["key"][:8], "--json")
    [new] = json.loads(again.out)
    assert list(new["ends"]) == [row["key"]]
    assert new["key"] != row["key"]
    assert new["expires_at"] is None
