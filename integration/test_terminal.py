"""Nothing that others put into the record, the registry or an answer steers a terminal.

The record and the registry are those of a real daemon; each text in them, and each in each answer
of the daemon, is then changed to one that would colour, erase, turn round or forge lines. Whoever
writes the database (the daemon's user) or asks it (the group spa) does not reach root's terminal.
"""

import json
import re
import shutil
import socketserver
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from integration.lab import Lab, echoes
from integration.site import Site
from keys import cli as keys_cli
from spa_server import cli as server_cli
from spa_server import control

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\x08\u202e\u2066\u200b\u2028\x85\r\nFORGED line\x00"
SERVER_COMMANDS = (
    "status",
    "holes",
    "sessions",
    "top --once",
    "audit",
    "audit --denied",
    "audit verify",
    "audit export",
    "audit export --format csv",
    "policy show",
    "policy history",
    "policy suggest",
    "policy test",
    "check",
    "whois 10.99.0.1:9",
    "report",
    "close --all",
    "sessions --cut --all",
)
KEYS_COMMANDS = ("list", "list --all", "list --invites", "list --invites --all", "pending")


@dataclass
class Scene:
    """A copy of a record that has something of everything, and a daemon to ask."""

    site: Site
    directory: Path
    answers: dict[str, dict[str, Any]]

    def outputs(
        self, of_server: tuple[str, ...], of_keys: tuple[str, ...]
    ) -> Iterator[tuple[str, str]]:
        config = str(self.directory / "server.toml")
        database = str(self.directory / "spa.db")
        for command in of_server:
            yield command, _run(server_cli.main, "--config", config, *command.split())
        for command in of_keys:
            yield command, _run(keys_cli.main, *command.split(), "--database", database)


def _run(main: Any, *arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    return str(done.output) + str(done.stderr)


def steering(text: str) -> set[str]:
    """What is in it that no program of ours may write to a terminal."""
    forged = {line for line in re.split(r"[\n\r]", text) if line.startswith("FORGED")}
    return {c for c in text if not (c.isprintable() or c == "\n")} | forged


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        site, client = Site(lab, lab.host("server")), lab.host("client")
        site.host.serve(22)
        site.apply_gate()
        alice = site.enrol("alice", "ops")
        bob = site.enrol("bob", "voter")
        site.start()
        invite = ("--host", "db1", "--server-config", str(site.config))
        site.keys("invite", "carol", "--role", "ops", *invite)
        site.keys("invite", "dave", "--approve", *invite)
        line = alice.generate("next")
        site.keys("enroll", "alice", "--key", line, "--replaces", alice.key_id())
        alice.knock(client, "tcp/22", "--lifetime", "1h")
        bob.knock(client, "tcp/22", check=False)
        client.reach_tcp(site.host.v4, 23)
        with client.connection(site.host.v4, 22) as stream:
            assert echoes(stream)
            site.server("reload")
            questions: dict[str, dict[str, Any]] = {
                "whois": {"source": str(client.v4), "port": stream.getsockname()[1]},
                "activity": {"limit": 100},
            }
            answers = {
                do: control.ask(site.control, {"do": do, **questions.get(do, {})})
                for do in ("status", "holes", "sessions", "whois", "activity")
            }
        site.stop()
        yield Scene(site, site.directory, answers)


def _text_columns(file: Path) -> Iterator[tuple[str, str]]:
    with closing(sqlite3.connect(file)) as connection:
        tables = [
            n for (n,) in connection.execute("select name from sqlite_master where type='table'")
        ]
        for table in tables:
            for column in connection.execute(f'pragma table_info("{table}")'):
                if "TEXT" in column[2].upper() and not table.startswith(("sqlite_", "_sqlite")):
                    yield table, column[1]


def _poison(file: Path, table: str, column: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("pragma foreign_keys = off")
        connection.create_function("poisoned", 1, _poisoned_text)
        connection.execute(f'update or ignore "{table}" set "{column}" = poisoned("{column}")')  # noqa: S608 - of a schema
        connection.commit()


def _poisoned_text(text: object) -> object:
    if not isinstance(text, str):
        return text
    try:
        return (
            json.dumps(_poisoned(json.loads(text))) if text.startswith(("{", "[")) else text + EVIL
        )
    except ValueError:
        return text + EVIL


def _poisoned(value: Any, only: str | None = None, key: str = "") -> Any:
    """Every text in it, or those under one name."""
    if isinstance(value, dict):
        return {k: _poisoned(v, only, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_poisoned(each, only, key) for each in value]
    return value + EVIL if isinstance(value, str) and only in {None, key} else value


def _names(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _names(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _names(each, key)
    elif isinstance(value, str):
        yield key


@contextmanager
def _answering(path: Path, answers: dict[str, dict[str, Any]]) -> Iterator[Callable[[str], None]]:
    """A daemon whose texts under one name are evil; what is returned chooses the name."""
    chosen = [""]

    class Answerer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked = json.loads(self.rfile.readline())
            error = {"ok": False, "error": "no" + EVIL}
            answer = answers.get(asked["do"])
            told = error if answer is None else {"ok": True, **_poisoned(answer, chosen[0])}
            self.wfile.write(json.dumps(told).encode() + b"\n")

    with socketserver.ThreadingUnixStreamServer(str(path), Answerer) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield lambda name: chosen.__setitem__(0, name)
        server.shutdown()
        serving.join()


def test_of_the_database(scene: Scene, tmp_path: Path) -> None:
    found = []
    for name in ("spa.db", "denials.db"):
        for table, column in _text_columns(scene.directory / name):
            copy = tmp_path / f"{table}.{column}"
            shutil.copytree(scene.directory, copy, ignore=shutil.ignore_patterns("*.sock"))
            _poison(copy / name, table, column)
            with scene.site.host.inside():
                for command, output in Scene(scene.site, copy, {}).outputs(
                    SERVER_COMMANDS, KEYS_COMMANDS
                ):
                    if wrong := steering(output):
                        found.append((table, column, command, sorted(wrong)))
            shutil.rmtree(copy)
    assert found == []


def test_of_what_the_daemon_answers(scene: Scene, tmp_path: Path) -> None:
    found = []
    shutil.copytree(scene.directory, tmp_path / "spa", ignore=shutil.ignore_patterns("*.sock"))
    told = Scene(scene.site, tmp_path / "spa", {})
    names = sorted(set(_names(scene.answers)))
    with _answering(tmp_path / "spa" / "control.sock", scene.answers) as poisoning:
        for name in names:
            poisoning(name)
            for command, output in told.outputs(SERVER_COMMANDS, ()):
                if wrong := steering(output):
                    found.append((name, command, sorted(wrong)))
    assert found == []
