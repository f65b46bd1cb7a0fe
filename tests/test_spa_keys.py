"""The program `spa-keys` as its users meet it: what it prints, asks and says when it cannot."""

import contextlib
import fcntl
import json
import os
import re
import shlex
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

from keys import console, identity, keyline, listing, table, text, when
from keys.cli import main
from keys.console import ExitCode, Parsed, Program, Trouble
from keys.poke import Poked, poke
from keys.registry import opened
from spa_protocol import keytext
from spa_protocol.layout import Malformed

PROGRAM = [sys.executable, "-c", "from keys.cli import main; main()"]
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
            [*PROGRAM, *arguments],
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
            [*PROGRAM, *arguments],
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
            while not re.search(rb"[:?] ?(\[y/N\]: )?$", shown.splitlines()[-1] if shown else b""):
                shown += os.read(ours, 1000)
            shown += b"\n"
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
        assert set(ended.out.split()) == {"revoked", first, second}

    def test_revoking_one_key_is_not(self, host: Host) -> None:
        key = host.enroll("alice")
        assert host.run_at_terminal("revoke", key, answers=()).out == f"revoked {key}\n"


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
        assert re.fullmatch(r"  alice@laptop; roles dba; enrolled 20.{14}", lines[2])
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
            assert ended.returncode in (0, 1, ExitCode.CLOSED_PIPE)


class TestRevokeAndRoles:
    def test_revoking_says_what_it_took_and_that_no_daemon_heard(self, host: Host) -> None:
        key_id = host.enroll("alice")
        ended = host.run("revoke", "alice", "--yes")
        assert ended.out == f"revoked {key_id}\n"
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
        assert host.run("ungrant", "alice", "ops") == Ended(0, "alice: roles dba\n", "")
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
                    assert parameter.envvar or parameter.name == "key_file"

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
                "x: no such file or directory",
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
        assert listing.as_table([], {}, T0).startswith("IDENTITY  KEY")

    def test_a_key_line_from_a_file(self, tmp_path: Path) -> None:
        public = identity.generate().public
        (tmp_path / "k").write_bytes(b"\xff\xfe")
        with pytest.raises(Trouble, match="not a key line"):
            keyline.read(tmp_path / "k")
        (tmp_path / "k").write_text(keytext.format_key(public, "ä") + "\r\n")
        assert keyline.read(tmp_path / "k") == (public, "ä")

    def test_the_console_names_what_it_offers(self) -> None:
        assert all(hasattr(console, name) for name in console.__all__)
