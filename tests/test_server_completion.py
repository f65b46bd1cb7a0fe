"""What the shell offers for the arguments of `spa-server`."""

from contextlib import closing
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from keys import identity, schema
from keys.registry import Registry
from spa_server import cli
from spa_server.audit import policytexts, tables
from spa_server.audit.policytexts import digest_of
from spa_server.config import load_config
from spa_server.setup import initialise
from tests.world import NOW_US


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A host with one person and one policy that was in force."""
    path = tmp_path / "server.toml"
    list(initialise(path))
    with closing(schema.connect(load_config(path).database)) as connection:
        tables.prepare(connection)
        key = identity.generate().public
        Registry(connection).enroll(
            "alice", key, comment="", roles=("admin",), now_us=NOW_US, actor="root"
        )
        with schema.transaction(connection):
            policytexts.keep(connection, digest_of("old"), "old", 1)
    return path


def offered(config: Path, *words: str) -> list[str]:
    """For the last word."""
    completing = ShellComplete(cli.main, {}, "spa-server", "_SPA_SERVER_COMPLETE")
    before = ["--config", str(config), *words[:-1]]
    return [item.value for item in completing.get_completions(before, words[-1])]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sessions", "--identity", ""), "alice"),
        (("sessions", "--to", "t"), "tcp/22"),
        (("close", "--identity", "a"), "alice"),
        (("policy", "show", "--service", ""), "ssh"),
        (("policy", "print", ""), digest_of("old")[:16]),
        (("explain", "al"), "alice"),
        (("explain", "alice", ""), "tcp/22"),
        (("audit", "--event", "backup"), "backup.made"),
        (("audit", "--access", ""), "tcp/22"),
        (("check", "--only", "gate-in"), "gate-in-doubt"),
    ],
)
def test_what_is_known_here_is_offered(config: Path, words: tuple[str, ...], expected: str) -> None:
    assert expected in offered(config, *words)


def test_the_keys_are_offered_by_their_ids(config: Path) -> None:
    with closing(schema.connect(load_config(config).database)) as connection:
        [key] = Registry(connection).keys()
    assert offered(config, "sessions", "--key", key.key_id[:3]) == [key.key_id]


def test_where_nobody_answers_nothing_is_offered(config: Path) -> None:
    assert offered(config, "close", "") == []
    assert offered(config.with_name("none.toml"), "sessions", "--identity", "") == []
