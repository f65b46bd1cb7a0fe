"""Answers of another version's daemon, or of an impostor's: each command says so in one line."""

import copy
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from keys import serverkey
from keys.registry import Registry
from spa_server import answers
from spa_server.cli import main

FLOW: Final = {
    "identity": "alice",
    "ambiguous": [],
    "key_id": "k",
    "rule": "roles.ops.allow[0]",
    "grant": 1,
    "source": "10.0.0.9",
    "source_port": 40000,
    "target": "10.0.0.1",
    "access": "tcp/22",
    "since": "2026-01-01T00:00:00Z",
    "state": "established",
    "bytes_in": 1,
    "bytes_out": None,
    "packets_in": 1,
    "packets_out": None,
}
HOLE: Final = {
    "grant": 1,
    "identity": "alice",
    "source": "10.0.0.9",
    "target": "10.0.0.1",
    "access": "tcp/22",
    "once": False,
    "open": True,
    "remaining_s": 2.5,
}
LINE: Final = {
    "id": 1,
    "at": "2026-01-01T00:00:00Z",
    "event": "knock.accepted",
    "identity": "alice",
    "key_id": "u7bd3qyvd5jawrrl",
    "source": "10.0.0.9",
    "target": "10.0.0.1",
    "access": "tcp/22",
    "rule": None,
    "reason": "well",
    "detail": {"count": 2},
}
WELL: Final[dict[str, dict[str, Any]]] = {
    "status": {
        "version": "1",
        "state": "serving",
        "gate": "loaded",
        "mode": "enforce",
        "observed": [],
        "record": "written",
        "lost": 0,
        "config_is_current": True,
        "gate_in_doubt": None,
        "backstop_absence": None,
        "backstop_trouble": None,
        "hindered": "",
        "gate_on_trial": True,
        "held_back": "so",
        "trial_ends_at": "2026-01-01T00:00:00Z",
        "nobody_heard_until": "2026-01-01T00:00:00Z",
    },
    "holes": {"holes": [HOLE]},
    "whois": {"connections": [{**FLOW, "open_until": None}], "remarks": ["so"], "why": "so"},
    "sessions": {
        "sessions": [{**FLOW, "grants": [1], "sessions": "keep", "ends_at": None}],
        "left_off": 1,
        "is_complete": False,
    },
    "cut": {"cut": 1},
    "activity": {
        "now_us": 1_700_000_000_000_000,
        "started_us": 1_600_000_000_000_000,
        "grants": 1,
        "accepted": 1,
        "refused": 1,
        "denied": 1,
        "holes": [HOLE],
        "recent": [
            {
                "event": "join.refused",
                "at_us": 1,
                "identity": None,
                "source": "10.0.0.9",
                "access": None,
                "reason": "no",
            }
        ],
        "sources": [{"last_us": 1, "packets": 3, "source": None, "access": None}],
    },
    "close": {"closed": 1},
    "reload": {"roles": 1},
    "record": {"event_id": 1, "digest": "00ff"},
    "audit": {"is_known": True, "lines": [LINE], "heads": [1, 1]},
}
COMMANDS: Final[dict[str, list[list[str]]]] = {
    "status": [["status"], ["status", "--json"], ["top", "--once"], ["check"]],
    "holes": [["holes"], ["holes", "--json"]],
    "whois": [["whois", "10.0.0.9:40000"]],
    "sessions": [["sessions"]],
    "cut": [["sessions", "--cut", "--all"]],
    "activity": [["top", "--once"]],
    "close": [["close", "--all"]],
    "reload": [["reload"]],
    "record": [["audit", "verify"], ["report", "--json"]],
    "audit": [["audit"], ["audit", "--json"]],
}
JUNK: Final = (
    None,
    True,
    -1,
    10**30,
    1e308,
    float("nan"),
    "\x1b[2J",
    "x" * 5000,
    [],
    [[]],
    {},
    ".",
)


class Impostor:
    """Something at the daemon's place: it answers as a daemon does, but for one `do`."""

    def __init__(self, path: Path) -> None:
        self.said = copy.deepcopy(WELL)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                asked = json.loads(connection.recv(65536) or b"null")
                if asked is None:
                    return
                answer = {"ok": True, **self.said.get(asked["do"], {})}
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def end(self, path: Path) -> None:
        with closing(socket.socket(socket.AF_UNIX)) as last:
            last.connect(str(path))
        self.thread.join()
        self.listener.close()


@pytest.fixture
def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Impostor]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spa_server.commands.audit.must_ask", lambda _config: True)
    monkeypatch.setattr("spa_server.commands.filters.must_ask", lambda _config: True)
    names = {"policy": "policy.toml", "key": "server.key", "database": "spa.db"}
    lines = [f'{key} = "{name}"\n' for key, name in {**names, "control": "c.sock"}.items()]
    (tmp_path / "server.toml").write_text("".join(lines))
    (tmp_path / "policy.toml").write_text('[services]\nssh = "tcp/22"\n')
    serverkey.save(serverkey.generate(), tmp_path / "server.key")
    Registry(tmp_path / "spa.db").close()
    made = Impostor(tmp_path / "c.sock")
    yield made
    made.end(tmp_path / "c.sock")


def run(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(main, ["--config", "server.toml", *arguments])
    return ended.exit_code, ended.output


def spoilt(value: Any) -> Iterator[Any]:
    """The value with each of its parts in turn replaced by junk, or missing."""
    yield from JUNK
    if isinstance(value, dict):
        for key, part in value.items():
            yield {name: other for name, other in value.items() if name != key}
            for junk in spoilt(part):
                yield {**value, key: junk}
    elif isinstance(value, list):
        for number, part in enumerate(value):
            for junk in spoilt(part):
                yield [*value[:number], junk, *value[number + 1 :]]


def test_every_answer_that_is_asked_for_is_held_against_its_shape() -> None:
    assert set(COMMANDS) == set(WELL) == set(answers.ANSWERS) - {"take-back"}
    for do, answer in WELL.items():
        answers.must_fit(do, answer)
        with pytest.raises(ValueError, match=r".") as _:
            answers.must_fit(do, {})


@pytest.mark.parametrize("do", WELL)
def test_whatever_is_answered_no_command_calls_it_a_bug(impostor: Impostor, do: str) -> None:
    for command in COMMANDS[do]:
        if command[0] not in {"check", "report"} and command != ["audit", "verify"]:
            code, said = run(*command)
            assert code == 0, (command, said)
    chosen = list(spoilt(WELL[do]))
    slow = 7 if do in {"status", "record"} else 1
    for number, junk in enumerate(chosen):
        impostor.said[do] = junk if isinstance(junk, dict) else {"holes": junk}
        for command in COMMANDS[do][:: 1 if number % slow == 0 else len(COMMANDS[do])]:
            code, said = run(*command)
            assert code in {0, 1, 4}, (command, junk)
            assert "a bug" not in said, (command, junk, said)
            assert "\x1b" not in said, (command, junk)
            if code == 4 and command[0] not in {"check", "report"}:
                assert said.count("\n") == 1, said


def test_it_says_what_to_do(impostor: Impostor) -> None:
    impostor.said["holes"] = {"holes": {"alice": 7}}
    code, said = run("holes")
    assert code == 4
    assert said.endswith("cannot be read; is it of another version? systemctl restart spa-server\n")
