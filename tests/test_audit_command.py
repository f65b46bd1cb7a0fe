"""`spa-server audit`: nothing is left out in silence, and what cannot be meant is refused."""

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keys import schema
from keys.registry import Registry
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
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("event", ["knock", "knock.accepted"])
def test_an_event_and_a_group_of_events(config: Path, event: str) -> None:
    assert len(run(config, "--event", event).stdout.splitlines()) == COUNT
