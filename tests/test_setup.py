"""Setting a host up: what `spa-server init` makes, and what it leaves alone."""

import stat
from pathlib import Path

from keys import serverkey
from spa_protocol.keytext import Endpoint, ServerLine
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
    list(initialise(tmp_path / "server.toml"))
    config = load_config(tmp_path / "server.toml")
    line = str(server_line(config, Endpoint("db1.internal", 4000)))
    assert ServerLine.parse(line).public == serverkey.load(config.key).public
    assert ServerLine.parse(line).endpoint == Endpoint("db1.internal", 4000)
    assert server_line(config, None).endpoint.port == config.knock_port


def test_a_key_that_was_made_before_is_kept(tmp_path: Path) -> None:
    mine = serverkey.generate()
    serverkey.save(mine, tmp_path / "server.key")
    list(initialise(tmp_path / "server.toml"))
    assert serverkey.load(tmp_path / "server.key") == mine
