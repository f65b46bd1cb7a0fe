"""`spa-server audit`: nothing is left out in silence, and what cannot be meant is refused."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keys import schema
from keys.enrolled import Action
from keys.registry import Registry
from keys.when import rfc3339
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.cli import main
from tests.world import NOW_US

COUNT = 12


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A record of `COUNT` knocks by alice, and bob in the registry who has never knocked."""
    path = tmp_path / "server.toml"
    path.write_text('database = "spa.db"\n')
    connection: sqlite3.Connection = schema.connect(tmp_path / "spa.db", create=True)
    registry = Registry(connection)
    registry.create_invite(
        "bob",
        roles=["ops"],
        expires_at_us=NOW_US * 2,
        needs_approval=False,
        now_us=NOW_US,
        actor="x",
    )
    ledger = Ledger(connection, registry.seen, unrecorded=tmp_path / "unrecorded", boot_id="boot")
    knocks = [Record(Event.KNOCK_ACCEPTED, NOW_US + n, identity="alice") for n in range(COUNT)]
    ledger.note(knocks, NOW_US)
    connection.close()
    return path


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), "audit", *arguments])


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_lines_that_are_left_out_are_told(config: Path, form: list[str]) -> None:
    done = run(config, "--limit", str(COUNT - 1), *form)
    assert f"the latest {COUNT - 1} lines, there are more" in done.stderr
    if form:
        assert len(json.loads(done.stdout)) == COUNT - 1
    else:
        assert len(done.stdout.splitlines()) == COUNT - 1


def test_where_all_are_shown_nothing_is_said(config: Path) -> None:
    done = run(config, "--limit", str(COUNT))
    assert (len(done.stdout.splitlines()), done.stderr) == (COUNT, "")


@pytest.mark.parametrize("command", [[], ["export"]])
@pytest.mark.parametrize(
    ("option", "value", "code", "said"),
    [
        ("--event", "hole.opend", 2, "there is no event 'hole.opend'; did you mean 'hole.opened'?"),
        ("--event", "xyz", 2, "there is no event 'xyz'; one of anomaly, "),
        ("--identity", "carol", 1, "carol is nobody in the registry or the record; see: spa-keys"),
        ("--identity", "no such", 2, "'no such'"),
    ],
)
def test_who_and_what_there_is_not(
    config: Path, command: list[str], option: str, value: str, code: int, said: str
) -> None:
    done = run(config, *command, option, value)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr


def test_who_has_no_lines_yet_is_somebody(config: Path) -> None:
    done = run(config, "--identity", "bob")
    assert (done.exit_code, done.stdout) == (0, "")


BEGINS = f"{rfc3339(NOW_US)[:19]}Z"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--event", "anomaly.found"], f"nothing of that kind in the record since {BEGINS}"),
        (["--denied"], f"nothing of that kind in the record since {BEGINS}"),
        (
            ["--since", "2286-01-01T00:00:00Z"],
            "no line in the record since 2286-01-01T00:00:00Z",
        ),
    ],
)
def test_that_there_is_nothing_is_said_and_since_when(
    config: Path, asked: list[str], said: str
) -> None:
    done = run(config, *asked)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"spa-server: {said}\n")
    done = run(config, *asked, "--json")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "[]\n", "")
    done = run(config, "export", *asked)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "0 lines.\n")


def test_the_columns_line_up_whatever_the_event_is_called(config: Path) -> None:
    with closing(schema.connect(config.parent / "spa.db")) as connection:
        ledger = Ledger(connection, lambda *_: None, unrecorded=config.parent / "u", boot_id="boot")
        ledger.note([Record(event, NOW_US, identity="alice") for event in Event], NOW_US)
    lines = run(config).stdout.splitlines()
    assert len(lines) == COUNT + len(Event)
    assert {line.index("  alice") for line in lines if " alice" in line} == {22 + _longest()}


def _longest() -> int:
    return max(map(len, Event))


@pytest.mark.parametrize(
    ("action", "key_id", "detail", "said"),
    [
        (Action.KEY_REVOKED, "hafzu4qmtwhc2yac", "", "key.revoked; key hafzu4qmtwhc2yac"),
        (Action.INVITE_CREATED, "p5rcog4ywjk7lsss", "", "invite.created; invite p5rcog4ywjk7lsss"),
        (Action.ROLE_GRANTED, None, "admin", "role.granted; admin"),
    ],
)
def test_a_change_of_the_registry_names_whom_what_and_by_whom(
    config: Path, action: Action, key_id: str | None, detail: str, said: str
) -> None:
    with closing(schema.connect(config.parent / "spa.db")) as connection:
        ledger = Ledger(connection, lambda *_: None, unrecorded=config.parent / "u", boot_id="boot")
        what = {"actor": "root", "detail": detail}
        change = Record(
            Event.KEYS_CHANGED, NOW_US, "bob", key_id=key_id, reason=action, detail=what
        )
        ledger.note([change], NOW_US)
    (line,) = run(config, "--event", "keys").stdout.splitlines()
    order = said.split("; ")
    assert set(line.partition("bob; ")[2].split("; ")) == {*order, "actor: root"}


@pytest.mark.parametrize("event", ["knock", "knock.accepted"])
def test_an_event_and_a_group_of_events(config: Path, event: str) -> None:
    assert len(run(config, "--event", event).stdout.splitlines()) == COUNT
