"""The rulebook: the policy in its file, or the last that was good."""

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest

from keys.tomlfile import FileProblem
from spa_server.config import Config, load_config
from spa_server.rulebook import Rulebook

GOOD = """
[services]
ssh = "tcp/22"
[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
[[tests]]
identity = "alice"
access = "tcp/22"
from = "10.0.0.1"
expect = "allow"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "server.toml").write_text("")
    usual = load_config(tmp_path / "server.toml")
    return replace(usual, policy=tmp_path / "policy.toml", database=tmp_path / "spa.db")


def test_a_sound_policy_is_taken_and_kept(config: Config) -> None:
    config.policy.write_text(GOOD)
    book = Rulebook(config, lambda _identity: frozenset({"ops"}))
    assert set(book.begin().roles) == {"ops"}
    assert book.problem is None
    assert book.begin().digest == blake2b(GOOD.encode(), digest_size=32).hexdigest()
    kept = config.database.parent / "policy.good.toml"
    assert kept.read_text() == GOOD
    assert kept.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("broken", ["[services", GOOD.replace('"allow"', '"deny"'), None])
def test_a_broken_one_leaves_the_last_that_was_good(config: Config, broken: str | None) -> None:
    config.policy.write_text(GOOD)
    Rulebook(config, lambda _identity: frozenset({"ops"})).begin()
    config.policy.unlink()
    if broken is not None:
        config.policy.write_text(broken)
    book = Rulebook(config, lambda _identity: frozenset({"ops"}))
    assert set(book.begin().roles) == {"ops"}
    assert book.problem is not None
    with pytest.raises(FileProblem):
        book.read()
    config.policy.write_text(GOOD)
    book.read()
    assert book.problem is None


def test_a_role_that_was_taken_makes_a_test_fail_and_the_last_good_one_serve(
    config: Config,
) -> None:
    config.policy.write_text(GOOD)
    Rulebook(config, lambda _identity: frozenset({"ops"})).begin()
    book = Rulebook(config, lambda _identity: frozenset())
    assert set(book.begin().roles) == {"ops"}
    assert "tests[0]" in str(book.problem)


def test_where_neither_is_sound_the_daemon_cannot_begin(config: Config) -> None:
    config.policy.write_text("[services")
    with pytest.raises(FileProblem, match="not TOML"):
        Rulebook(config, lambda _identity: frozenset()).begin()


OPEN_TO_ALL = GOOD.replace(
    "[roles.ops]", '[[always_open]]\nservices = ["web"]\n[roles.ops]'
).replace("[services]", '[services]\nweb = "tcp/443"')


def test_a_host_of_0_1_0_begins_with_what_was_in_force_and_is_told(config: Config) -> None:
    """Without `from`, always_open was for everybody: an upgrade closes no website."""
    config.policy.write_text(OPEN_TO_ALL)
    (config.database.parent / "policy.good.toml").write_text(OPEN_TO_ALL)
    book = Rulebook(config, lambda _identity: frozenset({"ops"}))
    assert str(book.begin().always_open[0].sources) == "anywhere"
    assert 'from = "anywhere"' in str(book.problem)
    with pytest.raises(FileProblem, match="always_open"):
        book.read()
    written = OPEN_TO_ALL.replace('["web"]', '["web"]\nfrom = "anywhere"')
    config.policy.write_text(written)
    assert str(book.read().always_open[0].sources) == "anywhere"
    assert book.problem is None


def test_what_nobody_confirmed_is_not_what_a_restart_takes(config: Config) -> None:
    """And the file is not the policy in force, until it is read again."""
    config.policy.write_text(GOOD)
    book = Rulebook(config, lambda _identity: frozenset({"ops"}))
    book.begin()
    book.begin_trial()
    config.policy.write_text(OPEN_TO_ALL.replace('["web"]', '["web"]\nfrom = "anywhere"'))
    book.read()
    book.take_back(7)
    assert (config.database.parent / "policy.good.toml").read_text() == GOOD
    assert "nobody confirmed it" in str(book.problem)
    assert book.refused_at_us == 7
    config.policy.write_text(GOOD)
    book.read()
    assert book.problem is None


def test_a_trial_of_the_gate_alone_leaves_the_policy_in_force(config: Config) -> None:
    config.policy.write_text(GOOD)
    book = Rulebook(config, lambda _identity: frozenset({"ops"}))
    book.begin()
    book.begin_trial()
    book.read()
    book.take_back(7)
    assert book.problem is None
