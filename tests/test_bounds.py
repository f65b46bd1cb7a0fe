"""What is read has an end, and what is not a file is not replaced by one."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from keys import privatefile, tomlfile
from keys.poke import poke
from keys.readfile import Unreadable, read_file
from keys.tomlfile import FileProblem
from keys.trouble import Trouble
from spa_protocol.carrier import Carrier
from spa_server import control, unit
from spa_server.config import load_config

SERVER = Path(sys.executable).parent / "spa-server"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A host that is set up in a directory."""
    file = tmp_path / "server.toml"
    subprocess.run(
        [SERVER, "--config", file, "init", "--host", "h"], check=True, capture_output=True
    )
    return file


def run(config: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [SERVER, "--config", config, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def kinds(directory: Path) -> list[tuple[Path, Callable[[Path], bool]]]:
    """A pipe, a link to it, a link to a device, each with what shows it."""
    pipe = directory / "pipe"
    os.mkfifo(pipe)
    links = {"to-pipe": pipe, "to-device": Path("/dev/null")}
    for name, target in links.items():
        (directory / name).symlink_to(target)
    return [(pipe, Path.is_fifo), *((directory / name, Path.is_symlink) for name in links)]


def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    for path, is_as_it_was in kinds(tmp_path):
        with pytest.raises(Trouble, match="is no regular file and is not replaced"):
            privatefile.write(path, b"new", overwrite=True)
        assert is_as_it_was(path)


def test_a_file_is_replaced_and_a_link_to_one_is_not_followed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    for name, target in (("to-file", file), ("to-nothing", tmp_path / "nothing")):
        link = tmp_path / name
        link.symlink_to(target)
        privatefile.write(link, b"new", overwrite=True)
        assert (link.is_symlink(), link.read_bytes()) == (False, b"new")
    assert file.read_bytes() == b"old"
    privatefile.write(file, b"new", overwrite=True)
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("command", ["export", "report", "import-fwknop"])
def test_no_command_replaces_what_is_no_file(config: Path, tmp_path: Path, command: str) -> None:
    access = tmp_path / "access.conf"
    access.write_text("SOURCE ANY\nOPEN_PORTS tcp/22\nKEY_BASE64 AAAA\n")
    for path, is_as_it_was in kinds(tmp_path):
        arguments = {
            "export": ("audit", "export", "--out", path),
            "report": ("report", "--html", path, "--force"),
            "import-fwknop": ("import-fwknop", access, "--output", path, "--force"),
        }[command]
        done = run(config, *arguments)
        assert done.returncode == 4, done
        assert "is no regular file and is not replaced" in done.stderr
        assert is_as_it_was(path)
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".pipe")]


def test_a_device_without_an_end_is_no_configuration(config: Path) -> None:
    done = run(Path("/dev/zero"), "status")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "/dev/zero: is no file but a device" in done.stderr
    config.write_text('policy = "/dev/zero"\n')
    assert "/dev/zero: is no file but a device" in run(config, "policy", "test").stderr


def test_a_file_may_be_so_large_and_no_larger(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100))
    assert len(read_file(file, 100)) == 100
    with pytest.raises(Unreadable, match="larger than"):
        read_file(file, 99)
    os.truncate(file, 1 << 34)
    with pytest.raises(FileProblem, match="larger than 16384 KiB"):
        tomlfile.read_text(file)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """What a shell makes of `--config <(command)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"a = 1\n",))
    writer.start()
    assert tomlfile.read(pipe) == {"a": 1}
    writer.join()


@pytest.mark.parametrize("key", ["policy", "key", "database", "control"])
def test_no_path_has_a_nul_in_it(tmp_path: Path, key: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'{key} = "a\\u0000b"\n')
    with pytest.raises(FileProblem, match=f"{key}: no path has a NUL in it"):
        load_config(file)


# Answers of a daemon that is none


@contextmanager
def saying(path: Path, say: Callable[[socket.socket], None]) -> Iterator[None]:
    """Somebody at the control socket who answers one request as they like."""
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            with suppress(OSError), listening.accept()[0] as connection:
                connection.recv(1 << 16)
                say(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
    thread.join(5)


def endless(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(1 << 20).replace(b"\0", b" "))


def dripping(connection: socket.socket) -> None:
    while True:
        connection.sendall(b" ")
        time.sleep(0.02)


def test_an_answer_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with saying(path, endless), pytest.raises(Trouble, match="longer than any answer"):
        control.ask(path, {"do": "status"})


def test_an_answer_that_drips_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_ANSWER_WITHIN_S", 0.3)
    path = tmp_path / "control.sock"
    with saying(path, dripping), pytest.raises(Trouble, match="timed out"):
        control.ask(path, {"do": "status"})
    path.unlink()
    with saying(path, dripping):
        assert poke(path, 0.3).problem == "no answer in 0.3 s"


@pytest.mark.parametrize("command", ["status", "holes", "close --all", "whois 10.0.0.1:1 tcp/22"])
@pytest.mark.parametrize("answer", ['{"ok": true}', '{"ok": true, "holes": [{}]}', "[]", "7", "x"])
def test_an_answer_that_lacks_something_is_no_bug(
    config: Path, tmp_path: Path, command: str, answer: str
) -> None:
    with saying(tmp_path / "control.sock", lambda c: c.sendall(answer.encode() + b"\n")):
        done = run(config, *command.split())
    assert "bug" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 2, 4)


# The daemon's unit


@pytest.mark.parametrize(
    ("said", "carriers", "answers"),
    [
        ("LoadState=loaded\nUser=spa\nAmbientCapabilities=cap_net_admin", "icmp", False),
        ("LoadState=loaded\nUser=spa\nAmbientCapabilities=cap_net_admin cap_net_raw", "icmp", True),
        ("LoadState=loaded\nUser=spa\nAmbientCapabilities=cap_net_admin", "udp:53", True),
        ("LoadState=loaded\nUser=\nAmbientCapabilities=", "tcp-syn", True),
        ("LoadState=not-found\nUser=\nAmbientCapabilities=", "icmp", True),
    ],
)
def test_whether_the_unit_could_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, carriers: str, answers: bool
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\ncat <<.\n{said}\n.\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    why = unit.why_not_raw([Carrier.parse("udp"), Carrier.parse(carriers)])
    assert (why == "") is answers, why
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert unit.why_not_raw([Carrier.parse("icmp")]) == ""
