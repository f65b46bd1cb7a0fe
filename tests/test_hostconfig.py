"""All programs of a host mean one registry and one daemon: those that server.toml names."""

from pathlib import Path

import pytest

from keys.hostconfig import host_config
from keys.registry import opened
from keys.tomlfile import FileProblem
from spa_server.config import load_config
from tests.test_invite import Site

_PLACES = ("SPA_DATABASE", "SPA_CONTROL")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """One in which nothing but server.toml says where things are."""
    made = Site(tmp_path)
    for name in _PLACES:
        del made.environment[name]
    return made


def test_the_registry_is_the_one_that_the_configuration_names(site: Site) -> None:
    site.invite("alice", "--role", "ops")
    with opened(load_config(site.config).database, read_only=True) as registry:
        assert [invite.identity for invite in registry.invites()] == ["alice"]
    listed = site.run("list", "--invites")
    assert "alice" in listed.out
    assert listed.err == ""


def test_an_option_takes_its_place(site: Site) -> None:
    del site.environment["SPA_SERVER_CONFIG"]
    assert site.run("invite", "alice", "--host", "h", "--server-config", str(site.config)).code == 0
    assert "alice" in site.run("list", "--invites", "--server-config", str(site.config)).out


@pytest.mark.parametrize("name", ["database", "control"])
def test_another_than_the_configured_is_said(site: Site, tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    said = site.run("invite", "alice", "--host", "h", f"--{name}", str(other)).err
    configured = getattr(load_config(site.config), name)
    assert f"spa-keys: --{name} is {other}, while {site.config} has {configured}\n" in said


def test_the_same_by_another_way_is_not_said(site: Site) -> None:
    site.invite("alice")
    assert site.run("list", "--invites", "--database", str(site.database)).err == ""


def test_it_is_what_the_server_reads(site: Site) -> None:
    here, there = host_config(site.config), load_config(site.config)
    assert (here.database, here.control, here.key) == (there.database, there.control, there.key)
    assert here.knock_port == there.knock_port


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("database = 1", "database: expected text"),
        ("control = []", "control: expected text"),
        ("knock_port = 70000", "knock_port: expected a number from 1 to 65535"),
    ],
)
def test_what_is_wrong_with_it_is_said(site: Site, line: str, problem: str) -> None:
    site.config.write_text(line)
    with pytest.raises(FileProblem, match=problem):
        host_config(site.config)
    assert problem in site.run("list").err
