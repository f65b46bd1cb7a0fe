"""The program as its user runs it: exit codes, what stands on stdout, one line on stderr."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from keys import identity, keyfile
from spa_client.cli import main
from spa_protocol.access import Access
from spa_protocol.knock import Close, Knock
from spa_protocol.reason import Code, Status
from tests.test_client_fake_server import (
    FakeServer,
    Script,
    grants,
    refuses,
    says,
    says_nothing,
    serving,
)

PROGRAM = [sys.executable, "-c", "from spa_client.cli import main; main()"]
MEBIBYTE = 2**20
HASTE = ("--timeout", "0.4")


@dataclass
class Home:
    """A user's home with a key and a configuration, and the program run in it."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / ".config" / "spa" / "config.toml"

    @property
    def key(self) -> Path:
        return self.directory / ".config" / "spa" / "keys" / "default.key"

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPA_", "XDG_"))}
        return {**kept, "HOME": str(self.directory)}

    def configure(self, server: FakeServer, more: str = "") -> None:
        identity.save(server.client, self.key, None, overwrite=True)
        self.config.write_text(f'[hosts.db1]\nserver = "{server.line}"\n{more}\n')

    def run(
        self, *arguments: str, before: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, *PROGRAM, *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            start_new_session=True,
        )

    def start(self, *arguments: str, **how: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*PROGRAM, *arguments], env=self.environment, **how)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@contextlib.contextmanager
def configured(home: Home, script: Script = grants, more: str = "") -> Iterator[FakeServer]:
    with serving(script) as server:
        home.configure(server, more)
        yield server


def the_line(result: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr; nothing on stdout."""
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("spa-client: ")
    assert not line.endswith(".")
    return line


def test_granted(home: Home) -> None:
    with configured(home) as server:
        result = home.run("knock", "db1", "tcp/22", "domain")
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    pattern = r"db1 \(127\.0\.0\.1\): {} open for 127\.0\.0\.1 until (.* )?\d\d:\d\d:\d\d \(30 s\)"
    assert re.fullmatch(pattern.format("tcp/22"), first)
    assert re.fullmatch(pattern.format("tcp/53"), second)
    assert [h.knock.request.lifetime_s for h in server.heard] == [0]


def test_options_reach_the_server(home: Home) -> None:
    with configured(home) as server:
        result = home.run(
            "knock", "db1", "ssh", "--lifetime", "15m", "--once", "--target", "127.0.0.1"
        )
    assert result.returncode == 0, result.stderr
    assert "open once for" in result.stdout
    request = server.heard[0].knock.request
    assert isinstance(request, Knock)
    assert (request.lifetime_s, request.once, str(request.target)) == (900, True, "127.0.0.1")


@pytest.mark.parametrize(
    ("option", "configured_source", "declared"),
    [
        ("auto", "none", "127.0.0.1"),
        ("none", "auto", "None"),
        ("203.0.113.9", "none", "203.0.113.9"),
        (None, "203.0.113.8", "203.0.113.8"),
    ],
)
def test_source(home: Home, option: str | None, configured_source: str, declared: str) -> None:
    with configured(home, more=f'source = "{configured_source}"') as server:
        result = home.run("knock", "db1", "ssh", *(("--source", option) if option else ()))
    assert result.returncode == 0
    assert str(server.heard[0].knock.request.source) == declared


def test_what_the_configuration_asks_for(home: Home) -> None:
    with configured(home, more='access = ["udp/53", "ssh"]') as server:
        assert home.run("knock", "db1").returncode == 0
        assert home.run("close", "db1").returncode == 1
    wanted = (Access.parse("udp/53"), Access.parse("tcp/22"))
    assert [h.knock.request.accesses for h in server.heard] == [wanted, wanted]


@pytest.mark.parametrize("code", [c for c in Code if c is not Code.GRANTED])
def test_refused(home: Home, code: Code) -> None:
    with configured(home, refuses(code)):
        result = home.run("knock", "db1", "tcp/22")
    assert result.returncode == 1
    expected = f"spa-client: db1 (127.0.0.1): refused tcp/22: {code.sentence}"
    assert the_line(result).startswith(expected)


def test_a_reply_never_makes_the_client_declare_a_source(home: Home) -> None:
    with configured(home, refuses(Code.DECLARE_SOURCE), 'source = "none"') as server:
        result = home.run("knock", "db1", "tcp/22")
        again = home.run("knock", "db1", "tcp/22")
    assert "add --source 127.0.0.1" in the_line(result)
    assert again.returncode == 1
    assert [h.knock.request.source for h in server.heard] == [None, None]


def test_clock(home: Home) -> None:
    with configured(home, says(Status.CLOCK, lead_s=94)):
        result = home.run("knock", "db1", "tcp/22")
    assert result.returncode == 1
    assert "your clock is 94 s behind the server's; set the clock right" in the_line(result)


def test_the_servers_message_cannot_steer_the_terminal(home: Home) -> None:
    with configured(home, says(Status.REFUSED, message="\x1b[2Jgone\nspa-client: open")):
        result = home.run("knock", "db1", "tcp/22")
    assert result.returncode == 1
    assert "\x1b" not in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_no_answer(home: Home) -> None:
    with configured(home, says_nothing) as server:
        result = home.run("knock", "db1", "tcp/22", *HASTE)
    assert result.returncode == 3
    assert the_line(result).startswith("spa-client: no answer from db1 (127.0.0.1, udp/")
    assert len(server.heard) == 2


def test_wrong_port(home: Home) -> None:
    with configured(home):
        result = home.run("knock", "db1", "tcp/22", "--port", "9", *HASTE)
    assert result.returncode == 3
    assert "connection refused" in the_line(result)


def test_another_servers_line(home: Home) -> None:
    with configured(home) as one, serving() as other:
        line = str(other.line).replace(f":{other.port}", f":{other.port}")
        result = home.run("knock", "127.0.0.1", "ssh", "--server", line, *HASTE)
        assert one.heard == []
    assert result.returncode == 3
    # The second try is two knocks: under the usual tag, and under a spare one.
    assert [r.value for r in other.refused] == ["unknown-key"] * 3


def test_a_server_line_on_the_command_line(home: Home) -> None:
    with serving() as server:
        identity.save(server.client, home.directory / "my.key", None)
        result = home.run(
            "knock",
            "localhost",
            "ssh",
            "-4",
            "--server",
            str(server.line),
            "--key",
            str(home.directory / "my.key"),
        )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("localhost (127.0.0.1): tcp/22 open")


def test_environment_variables(home: Home) -> None:
    with configured(home) as server:
        moved = home.config.rename(home.directory / "elsewhere.toml")
        key = home.key.rename(home.directory / "elsewhere.key")
        result = home.run("knock", "db1", "ssh", SPA_CONFIG=str(moved), SPA_KEY=str(key))
    assert result.returncode == 0, result.stderr
    assert len(server.heard) == 1


def test_keys_elsewhere(home: Home) -> None:
    with configured(home) as server:
        elsewhere = home.directory / "elsewhere"
        elsewhere.mkdir()
        home.key.rename(elsewhere / "default.key")
        by_option = home.run("knock", "db1", "ssh", "--keys-dir", str(elsewhere))
        by_variable = home.run("knock", "db1", "ssh", SPA_KEYS_DIR=str(elsewhere))
    assert (by_option.returncode, by_variable.returncode) == (0, 0), by_option.stderr
    assert len(server.heard) == 2


def test_no_reply(home: Home) -> None:
    with configured(home) as server:
        result = home.run("knock", "db1", "tcp/22", "--no-reply")
        deadline = time.monotonic() + 5
        while not server.heard and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (result.returncode, result.stderr) == (0, "")
    assert "what came of it is unknown" in result.stdout
    assert not server.heard[0].knock.request.reply_wanted


def test_json(home: Home) -> None:
    with configured(home) as server:
        result = home.run("knock", "db1", "tcp/22", "--json")
    said = json.loads(result.stdout)
    assert (result.returncode, result.stderr, said["result"]) == (0, "", "granted")
    assert said["addresses"][0]["port"] == server.port


@pytest.mark.parametrize(
    ("script", "code", "word"),
    [(refuses(Code.NOT_NOW), 1, "refused"), (says_nothing, 3, "no answer")],
)
def test_json_of_what_went_wrong(home: Home, script: Script, code: int, word: str) -> None:
    with configured(home, script):
        result = home.run("knock", "db1", "tcp/22", "--json", *HASTE)
    said = json.loads(result.stdout)
    assert (result.returncode, result.stderr) == (code, "")
    assert (said["exit_code"], said["result"]) == (code, word)


def test_close(home: Home) -> None:
    with configured(home, says(Status.CLOSED)) as server:
        result = home.run("close", "db1", "tcp/22")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "db1 (127.0.0.1): tcp/22 closed for 127.0.0.1\n"
    assert isinstance(server.heard[0].knock.request, Close)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("knock",), "missing argument 'HOST'"),
        (("knock", "db9", "tcp/22"), "no host 'db9' in "),
        (("knock", "db1"), "say which access, like tcp/22"),
        (("knock", "db1", "22"), "'22' is no access; write it like tcp/22"),
        (("knock", "db1", "nonsense"), "not in the services database"),
        (("knock", "db1", "tcp/1-300"), "more than 256 ports"),
        (("knock", "db1", "tcp/22", "tcp/20-30"), "overlaps"),
        (("knock", "db1", "ssh", "--lifetime", "soon"), "'soon' is no duration"),
        (("knock", "db1", "ssh", "--lifetime", "0s"), "a second at least"),
        (("knock", "db1", "ssh", "--timeout", "0"), "no timeout"),
        (("knock", "db1", "ssh", "--timeout", "1h"), "no timeout"),
        (("knock", "db1", "ssh", "--source", "me"), "'me' is no source"),
        (("knock", "db1", "ssh", "--target", "db1"), "db1"),
        (("knock", "db1", "ssh", "--server", "spa-server x"), "not a server line"),
        (("knock", "db1", "ssh", "--port", "0"), "'--port'"),
        (("knock", "db1", "ssh", "--nonsense"), "no such option"),
        (("connect", "db1", "20-30"), "more than one port"),
        (("connect", "db9", "22"), "no host 'db9' in "),
        (("add", "db2", "spa-server", "x"), "not a server line"),
        (("add", "db2", "LINE", "--source", "me"), "'me' is no source"),
        (("add", "db2", "LINE", "--access", "22"), "'22' is no access"),
        (("nonsense",), "no such command"),
    ],
)
def test_usage(home: Home, arguments: tuple[str, ...], problem: str) -> None:
    with configured(home):
        result = home.run(*arguments)
    assert result.returncode == 2
    assert problem in the_line(result).lower() or problem in the_line(result)


def test_what_this_side_lacks(home: Home) -> None:
    with configured(home, more='adress = "x"'):
        assert "hosts.db1.adress: is not known" in the_line(home.run("knock", "db1", "ssh"))
    with configured(home, more='address = "a..b"'):
        result = home.run("knock", "db1", "ssh")
        assert result.returncode == 4
        assert "cannot resolve a..b" in the_line(result)
        home.key.unlink()
        result = home.run("knock", "db1", "ssh")
        assert result.returncode == 4
        assert f"{home.key} does not exist" in the_line(result)
        result = home.run("knock", "db1", "ssh", "--config", str(home.directory / "no.toml"))
        assert result.returncode == 4
        assert "no.toml: does not exist" in the_line(result)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("-6",), "127.0.0.1 has no IPv6 address"),
        (("--target", "::1"), "--target ::1 is IPv6, and db1 has no address of that kind"),
        (
            ("--source", "2001:db8::1"),
            "source 2001:db8::1 is IPv6, and db1 has no address of that kind",
        ),
    ],
)
def test_families_that_do_not_meet(home: Home, options: tuple[str, ...], problem: str) -> None:
    with configured(home) as server:
        result = home.run("knock", "db1", "ssh", *options)
    assert result.returncode == 4
    assert problem in the_line(result)
    assert server.heard == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_a_key_that_others_can_read(home: Home) -> None:
    with configured(home) as server:
        home.key.chmod(0o644)
        result = home.run("knock", "db1", "ssh")
    assert result.returncode == 4
    assert f"chmod 600 {home.key}" in the_line(result)
    assert server.heard == []


def test_passphrases(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = keyfile.Argon2id(1, 8192, b"s" * 16)
    monkeypatch.setattr(keyfile.Argon2id, "fresh", lambda: cheap)
    right, wrong = home.directory / "right", home.directory / "wrong"
    for path, passphrase in ((right, "horse\nignored"), (wrong, "donkey")):
        path.write_text(passphrase)
        path.chmod(0o600)
    with configured(home) as server:
        identity.save(server.client, home.key, "horse", overwrite=True)
        opened = home.run("knock", "db1", "ssh", "--passphrase-file", str(right))
        from_environment = home.run("knock", "db1", "ssh", SPA_PASSPHRASE_FILE=str(right))
        unopened = home.run("knock", "db1", "ssh", "--passphrase-file", str(wrong))
        unasked = home.run("knock", "db1", "ssh")
        right.chmod(0o644)
        open_to_all = home.run("knock", "db1", "ssh", "--passphrase-file", str(right))
    assert (opened.returncode, from_environment.returncode) == (0, 0), opened.stderr
    for result in (unopened, unasked, open_to_all):
        assert result.returncode == 4
    assert "wrong passphrase" in the_line(unopened)
    assert "nobody to ask" in the_line(unasked)
    assert "open to other users" in the_line(open_to_all)
    assert len(server.heard) == 2


def can_unshare() -> bool:
    unshare = shutil.which("unshare")
    return bool(unshare) and not subprocess.run([unshare, "-n", "true"], check=False).returncode


@pytest.mark.skipif(not can_unshare(), reason="needs a network namespace of its own")
@pytest.mark.parametrize("address", ["2001:db8::1", "192.0.2.1", "fe80::1%lo"])
def test_no_route(home: Home, address: str) -> None:
    with configured(home, more=f'address = "{address}"'):
        begun = time.monotonic()
        result = home.run("knock", "db1", "ssh", "--timeout", "60", before=("unshare", "-n"))
    assert time.monotonic() - begun < 30
    assert result.returncode == 4
    assert the_line(result).startswith(f"spa-client: cannot send to db1: {address}: ")


NO_NEIGHBOUR = """
ip link set lo up
ip link add spa0 type veth peer name spa1
ip addr add 10.7.0.2/24 dev spa0
ip addr add fd07::2/64 dev spa0 nodad
ip link set spa0 up
ip link set spa1 up
exec "$@"
"""


@pytest.mark.skipif(not can_unshare() or not shutil.which("ip"), reason="needs a namespace and ip")
@pytest.mark.parametrize("address", ["10.7.0.77", "fd07::77"])
def test_a_host_that_is_not_there_is_told(home: Home, address: str) -> None:
    """The system learns it seconds later, and must neither keep it to itself nor be believed."""
    before = ("unshare", "-n", "sh", "-ec", NO_NEIGHBOUR, "sh")
    with configured(home, more=f'address = "{address}"'):
        result = home.run("knock", "db1", "ssh", "--timeout", "5", before=before)
    assert result.returncode == 3, result.stderr
    assert f"no answer from db1 ({address}: no route to host, udp/" in the_line(result)


def test_interrupted(home: Home) -> None:
    with configured(home, says_nothing) as server:
        process = home.start(
            "knock", "db1", "ssh", "--timeout", "60", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        wait_until(lambda: server.heard)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert (stdout, stderr.strip()) == (b"", b"spa-client: interrupted")


def wait_until(true: object) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_add_and_hosts(home: Home) -> None:
    empty = home.run("hosts")
    assert (empty.returncode, empty.stdout) == (0, "")
    assert "spa-client add" in empty.stderr
    with serving() as server:
        added = home.run("add", "db1", *str(server.line).split(), "--access", "ssh")
        again = home.run("add", "db1", str(server.line))
        table = home.run("hosts").stdout.splitlines()
        listed = json.loads(home.run("hosts", "--json").stdout)
    assert added.returncode == 0, added.stderr
    assert "spa-client knock db1" in added.stdout
    assert again.returncode == 4
    assert "has a host 'db1' already" in the_line(again)
    assert table[0].split("  ")[0] == "NAME"
    assert table[1].split()[0:2] == ["db1", f"127.0.0.1:{server.port}"]
    assert listed[0]["access"] == ["tcp/22"]
    assert listed[0]["server"] == str(server.line)


@pytest.mark.parametrize("command", ["", *main.commands])
def test_help(home: Home, command: str) -> None:
    result = home.run(*command.split(), "--help")
    assert result.returncode == 0
    assert "spa-client" in result.stdout


# connect


@contextlib.contextmanager
def echo() -> Iterator[int]:
    """A TCP server on loopback that returns what it gets; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        serving = threading.Thread(target=_echo, args=(listener,))
        serving.start()
        yield listener.getsockname()[1]
        serving.join()


def _echo(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            while chunk := connection.recv(MEBIBYTE):
                connection.sendall(chunk)


def test_fifty_megabytes_each_way(home: Home) -> None:
    """In and out at once, through pipes; the end of input comes back as the end of output."""
    block = os.urandom(MEBIBYTE)
    sent, received, size = hashlib.sha256(), hashlib.sha256(), 0
    with configured(home) as server, echo() as port:
        process = home.start(
            "connect", "db1", str(port), stdin=-1, stdout=-1, stderr=subprocess.PIPE
        )

        def feed() -> None:
            for _ in range(50):
                sent.update(block)
                process.stdin.write(block)
            process.stdin.close()

        feeding = threading.Thread(target=feed)
        feeding.start()
        while chunk := process.stdout.read1(MEBIBYTE):
            received.update(chunk)
            size += len(chunk)
        feeding.join()
        stderr = process.stderr.read().decode()
        assert process.wait(10) == 0
        process.stdout.close()
        process.stderr.close()
    assert size == 50 * MEBIBYTE
    assert received.digest() == sent.digest()
    (line,) = stderr.splitlines()
    assert line.startswith(f"spa-client: db1 (127.0.0.1): tcp/{port} open for 127.0.0.1 until ")
    assert len(server.heard) == 1


def test_connect_by_the_hosts_address_and_quietly(home: Home) -> None:
    with configured(home), echo() as port:
        process = home.start(
            "connect", "127.0.0.1", str(port), "-q", stdin=-1, stdout=-1, stderr=-1
        )
        stdout, stderr = process.communicate(b"hello", timeout=10)
    assert (process.returncode, stdout, stderr) == (0, b"hello", b"")


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        (refuses(Code.NOT_NOW), 1, "refused tcp/22: not allowed at this hour"),
        (says_nothing, 3, "no answer from db1"),
        (grants, 3, "tcp/22 is open, but connecting failed: connection refused; is the service"),
    ],
)
def test_not_connected(home: Home, script: Script, code: int, said: str) -> None:
    with configured(home, script, 'address = "127.0.0.1"'):
        result = home.run("connect", "db1", "1" if script is grants else "22", "-q", *HASTE)
    assert result.returncode == code
    assert said.replace("tcp/22 is", "tcp/1 is") in the_line(result)


def test_connect_interrupted(home: Home) -> None:
    with configured(home), echo() as port:
        process = home.start("connect", "db1", str(port), "-q", stdin=-1, stdout=-1, stderr=-1)
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read().strip() == b"spa-client: interrupted"
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
