"""Setting a host up: what `spa-server init` makes, and what it leaves alone."""

import json
import os
import pwd
import re
import socket
import stat
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keys import serverkey
from keys.invite import WrittenHost, server_here
from spa_protocol.keytext import Endpoint, ServerLine
from spa_server import cli, setup
from spa_server import config as config_module
from spa_server.config import load_config
from spa_server.policy.load import load_policy
from spa_server.setup import initialise, server_line


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_made_where_it_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "spa" / "server.toml"
    made = list(initialise(path))
    assert len(made) == 4
    config = load_config(path)
    before = {p: p.read_bytes() for p in (path, config.policy, config.key)}
    assert list(initialise(path)) == []
    assert {p: p.read_bytes() for p in before} == before


def test_what_comes_next_is_told_where_something_was_made(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    first, again = init(path, "--host", "db1"), init(path)
    assert "Next: " in first.stderr
    assert (again.stdout, again.stderr) == (
        first.stdout,
        "Everything was there: nothing was changed.\n",
    )


def test_another_host_than_the_configurations_is_told_to_be_for_this_line_only(
    tmp_path: Path,
) -> None:
    path = tmp_path / "server.toml"
    init(path, "--host", "db1")
    assert "This line alone" not in init(path, "--host", "db1").stderr
    other = init(path, "--host", "db2")
    assert other.stdout.endswith(" db2:62201\n")
    assert f"invites go on to name db1:62201; for good, set host in {path}" in other.stderr


def test_secrets_are_private(tmp_path: Path) -> None:
    list(initialise(tmp_path / "server.toml"))
    config = load_config(tmp_path / "server.toml")
    assert mode(config.key) == 0o600
    assert mode(config.database) == 0o600


def test_the_starter_policy_is_sound_and_only_its_role_gets_in(tmp_path: Path) -> None:
    list(initialise(tmp_path / "server.toml"))
    policy = load_policy(load_config(tmp_path / "server.toml").policy)
    assert list(policy.roles) == ["admin"]
    assert policy.always_open == ()


def test_the_line_for_clients_holds_the_key_and_where_to_knock(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    list(initialise(path))
    line = server_line(path, WrittenHost.parse("db1.internal:4000"))
    assert ServerLine.parse(str(line)) == line
    assert line.public == serverkey.load(load_config(path).key).public
    assert line.endpoint == Endpoint("db1.internal", 4000)


def init(path: Path, *options: str) -> Result:
    """The command itself."""
    return CliRunner().invoke(cli.main, ["--config", str(path), "init", *options])


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [("db1", "db1:4000"), ("db1:5000", "db1:5000"), ("2001:db8::1", "[2001:db8::1]:4000")],
)
def test_the_port_is_that_of_the_configuration(tmp_path: Path, host: str, endpoint: str) -> None:
    path = tmp_path / "server.toml"
    list(initialise(path))
    path.write_text(path.read_text().replace("# knock_port = 62201", "knock_port = 4000"))
    done = init(path, "--host", host)
    assert done.exit_code == 0, done.output
    assert str(ServerLine.parse(done.stdout.strip()).endpoint) == endpoint


def test_the_host_that_was_named_once_is_remembered(tmp_path: Path) -> None:
    """Invites need no --host after it."""
    path = tmp_path / "server.toml"
    line = init(path, "--host", "db1.internal:5000").stdout
    assert 'host = "db1.internal:5000"' in path.read_text().splitlines()
    assert init(path).stdout == line
    assert str(server_here(path, None).endpoint) == "db1.internal:5000"


@pytest.mark.parametrize("host", ['""', '"db1:0"', '"a b"', "7", '["db1"]'])
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(f"host = {host}\n")
    done = init(path)
    assert done.exit_code == 4
    assert f"{path}: host: expected " in done.stderr


def test_a_host_that_has_no_name_is_told_to_say_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made stays; the line alone is missing."""
    monkeypatch.setattr(socket, "getfqdn", lambda: "localhost")
    done = init(tmp_path / "server.toml")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "this host has no name of its own; say where clients knock: --host NAME" in done.stderr
    assert init(tmp_path / "server.toml", "--host", "db1").exit_code == 0


def test_a_key_that_belongs_to_the_daemons_user_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root runs it, once more, after the file was given to the daemon."""
    path, nobody = tmp_path / "server.toml", pwd.getpwnam("nobody")
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    list(initialise(path))
    line = init(path, "--host", "db1").stdout
    os.chown(tmp_path / "server.key", nobody.pw_uid, nobody.pw_gid)
    refused = init(path, "--host", "db1")
    assert refused.exit_code == 4
    assert "belongs to another user than the daemon's; run: chown spa " in refused.stderr
    monkeypatch.setattr(setup, "DAEMON_USER", "nobody")
    assert init(path, "--host", "db1").stdout == line


def test_a_key_that_others_can_read_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    list(initialise(path))
    (tmp_path / "server.key").chmod(0o644)
    done = init(path, "--host", "db1")
    assert done.exit_code == 4
    assert "is open to other users (mode 0644); run: chmod 600 " in done.stderr


def test_a_key_that_was_made_before_is_kept(tmp_path: Path) -> None:
    mine = serverkey.generate()
    serverkey.save(mine, tmp_path / "server.key")
    list(initialise(tmp_path / "server.toml"))
    assert serverkey.load(tmp_path / "server.key") == mine


def test_the_configuration_that_is_made_names_every_key_and_its_default(tmp_path: Path) -> None:
    """Whoever takes a comment's sign away has what was in force before, but for examples."""
    path = tmp_path / "server.toml"
    list(initialise(path))
    text = re.sub(r"(?m)^# (?=\w+ = |\[)", "", path.read_text())
    keys = tomllib.loads(text)
    assert set(keys) == set(config_module._ServerFile.__struct_fields__)
    assert set(keys["anomalies"]) == set(config_module._AnomaliesTable.__struct_fields__)
    usual = load_config(path)
    path.write_text(text)
    shown = load_config(path)
    assert shown.anomalies.hook is not None
    assert shown.metrics is not None
    examples = {
        "outer": usual.outer,
        "outputs": usual.outputs,
        "metrics": usual.metrics,
        "anomalies": replace(shown.anomalies, hook=None),
    }
    assert replace(shown, **examples) == usual


def test_other_programs_get_the_line_and_what_was_made(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    done = init(path, "--host", "db1", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["server"] == init(path, "--host", "db1").stdout.strip()
    assert sorted(told["made"]) == sorted(
        str(tmp_path / name) for name in ("server.toml", "policy.toml", "server.key", "spa.db")
    )
    assert json.loads(init(path, "--host", "db1", "--json").stdout)["made"] == []
