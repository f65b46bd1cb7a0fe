"""The marks about the gate: where they are, and which of them count."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from spa_server import clock, marks
from spa_server.config import Config, load_config
from spa_server.marks import Trial


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "etc" / "server.toml"
    for name in ("etc", "lib"):
        (tmp_path / name).mkdir()
    file.write_text(f'database = "{tmp_path}/lib/spa.db"\n')
    return load_config(file)


@pytest.fixture
def trial() -> Trial:
    return Trial("token", None, was_wanted=False, boot_id=clock.boot_id())


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
    marks.begin(config, replace(trial, boot_id="another"))
    assert marks.waiting(config) is None
    assert not marks.is_on_trial(config)


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
