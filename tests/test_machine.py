"""A server's key knows the machine it was made on."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keys.trouble import Trouble
from spa_server import cli, machine
from spa_server.alignment.standing import check_machine
from spa_server.config import Config, load_config
from spa_server.machine import Mark, Origin, must_be_here
from spa_server.setup import initialise

ONE, OTHER = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"


@pytest.fixture
def is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the machine's id."""
    path = tmp_path / "machine-id"
    path.write_text(f"{ONE}\n")
    monkeypatch.setattr(machine, "MACHINE_ID", path)
    return path


@pytest.fixture
def config(tmp_path: Path, is_on: Path) -> Config:
    assert is_on.exists()
    list(initialise(tmp_path / "server.toml"))
    return load_config(tmp_path / "server.toml")


def run(config: Config, *arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["--config", str(config.path), *arguments])


def findings(config: Config) -> list[str]:
    return [finding.name for finding in check_machine(config)]


def test_where_it_was_made_the_key_is_at_home(config: Config) -> None:
    assert Mark(config.key).origin() is Origin.HERE
    must_be_here(config)
    assert findings(config) == []
    assert ONE not in Mark(config.key).path.read_text()


def test_at_a_clone_nothing_starts_until_it_is_told(config: Config, is_on: Path) -> None:
    is_on.write_text(OTHER)
    result = run(config, "run")
    assert result.exit_code == 4
    assert "came with another machine" in result.output
    assert "spa-server adopt-key" in result.output
    assert findings(config) == ["key-of-another-machine"]
    adopted = run(config, "adopt-key")
    assert adopted.exit_code == 0, adopted.output
    must_be_here(config)
    is_on.write_text(ONE)
    with pytest.raises(Trouble, match="another machine"):
        must_be_here(config)


@pytest.mark.parametrize("there", ["", "uninitialized", None])
def test_a_machine_without_an_id_is_another_one(
    config: Config, is_on: Path, there: str | None
) -> None:
    """An image with a key in it, or a container: its key is not that of the machine before."""
    is_on.unlink() if there is None else is_on.write_text(there)
    with pytest.raises(Trouble, match="another machine"):
        must_be_here(config)
    assert run(config, "adopt-key").exit_code == 0
    must_be_here(config)
    is_on.write_text(ONE)
    with pytest.raises(Trouble, match="another machine"):
        must_be_here(config)


def test_a_key_without_a_mark_is_of_an_unknown_machine(config: Config) -> None:
    """Made by 0.1.0, or copied alone: it goes on, and a note says so."""
    Mark(config.key).path.unlink()
    must_be_here(config)
    assert findings(config) == ["key-of-no-machine"]


def test_a_mark_that_cannot_be_read_is_in_doubt(config: Config) -> None:
    Mark(config.key).path.unlink()
    Mark(config.key).path.mkdir()
    with pytest.raises(Trouble, match="cannot be read"):
        must_be_here(config)


def test_another_key_beside_the_same_mark_is_no_longer_vouched_for(config: Config) -> None:
    config.key.unlink()
    list(initialise(config.path))
    must_be_here(config)
    mark = Mark(config.key).path.read_text()
    Mark(config.key).path.write_text(mark.replace(mark[0], "0" if mark[0] != "0" else "1", 1))
    with pytest.raises(Trouble, match="another machine"):
        must_be_here(config)
