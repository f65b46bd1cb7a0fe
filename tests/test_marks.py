"""The marks about the gate: where they are, and which of them count."""

import json
import os
from pathlib import Path

import pytest

from spa_protocol.access import Access
from spa_server import marks
from spa_server.config import Config, load_config
from spa_server.firewall.plan import Observed
from spa_server.marks import Trial


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(marks, "OF_THIS_BOOT", tmp_path / "run")
    file = tmp_path / "etc" / "server.toml"
    for name in ("etc", "lib"):
        (tmp_path / name).mkdir()
    file.write_text(f'database = "{tmp_path}/lib/spa.db"\n')
    return load_config(file)


@pytest.fixture
def trial() -> Trial:
    return Trial("token", None, was_wanted=False)


@pytest.mark.parametrize(
    "observed",
    [
        Observed(),
        Observed(everything=True),
        Observed(accesses=(Access.parse("tcp/22"), Access.parse("udp/5-9"))),
    ],
)
def test_what_was_observed_when_the_gate_was_kept_is_known(
    config: Config, observed: Observed
) -> None:
    assert marks.confirmed(config) is None
    marks.want(config, observed)
    assert marks.confirmed(config) == observed
    written = config.gate_wanted.stat().st_ino
    marks.want(config)
    marks.want(config, observed)
    assert config.gate_wanted.stat().st_ino == written
    assert marks.kept_open(config) == observed
    config.gate_pending.touch()  # a gate on trial: what it closes, a restart does not open
    assert marks.kept_open(config) == Observed()


@pytest.mark.parametrize("content", ["", "junk", "[]", '{"observed": 7}', '{"observed": ["x"]}'])
def test_a_mark_that_does_not_say_keeps_nothing_open(config: Config, content: str) -> None:
    config.gate_wanted.write_text(content)
    assert marks.confirmed(config) is None
    assert marks.kept_open(config) == Observed()
    assert marks.is_wanted(config)


def test_wanted_until_it_is_forgotten(config: Config) -> None:
    assert not marks.is_wanted(config)
    marks.want(config)
    assert marks.is_wanted(config)
    marks.forget(config)
    assert not marks.is_wanted(config)


def test_a_trial_is_over_with_the_boot(config: Config, trial: Trial) -> None:
    marks.begin(config, trial)
    assert marks.waiting(config) == trial
    assert marks.is_on_trial(config)
    trial.witness.unlink()  # as a boot does with all that is in /run
    assert marks.waiting(config) is None
    assert not marks.is_on_trial(config)


def test_nothing_is_left_of_a_trial_that_ended(config: Config, trial: Trial) -> None:
    marks.begin(config, trial)
    marks.end_trial(config)
    assert not config.gate_pending.exists()
    assert not trial.witness.exists()


@pytest.mark.parametrize("token", ["../../etc/passwd", "", 1])
def test_a_token_leads_nowhere_else(config: Config, token: object) -> None:
    config.gate_pending.write_text(
        json.dumps({"token": token, "before": None, "was_wanted": False})
    )
    assert marks.waiting(config) is None
    assert marks.is_on_trial(config)  # it counts, as whatever cannot be read


def test_a_torn_mark_counts_and_a_confirmed_one_is_gone(config: Config) -> None:
    config.gate_pending.write_text(json.dumps({"token": 1})[:5])
    assert marks.is_on_trial(config)
    marks.want(config)
    assert not marks.is_on_trial(config)


def test_the_mark_of_the_release_before_counts_and_root_moves_it(config: Config) -> None:
    config.gate_wanted_before.touch()
    assert marks.is_wanted(config)
    marks.want(config)
    assert config.gate_wanted.exists() is (os.geteuid() == 0)
    assert config.gate_wanted_before.exists() is (os.geteuid() != 0)
    marks.forget(config)
    assert not marks.is_wanted(config)


def test_at_the_boot_nothing_is_written(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit runs as the daemon's user, who may not write there, whichever mark there is."""
    monkeypatch.setattr(os, "geteuid", lambda: 61_234)
    for mark in (config.gate_wanted_before, config.gate_wanted):
        mark.touch()
        config.path.parent.chmod(0o500)
        before = sorted(config.path.parent.iterdir())
        marks.want(config)
        assert sorted(config.path.parent.iterdir()) == before
        config.path.parent.chmod(0o700)
