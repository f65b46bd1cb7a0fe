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


# Roles


@pytest.fixture
def dbas(site: Site) -> Site:
    """A host whose policy has the role dba alone."""
    with site.config.open("a") as config:
        config.write('policy = "policy.toml"\n')
    site.config.with_name("policy.toml").write_text("[roles.dba]\n")
    return site


def test_a_role_that_the_policy_does_not_have_is_refused(dbas: Site) -> None:
    policy = dbas.config.with_name("policy.toml")
    refusal = f"spa-keys: {policy} has no role dbaa; see: spa-server policy show\n"
    key = dbas.run("generate", "--no-passphrase").out.strip()
    for command in (
        ["invite", "alice", "--host", "h", "--role", "dba", "--role", "dbaa"],
        ["enroll", "alice", "--key", key, "--role", "dbaa"],
    ):
        ended = dbas.run(*command)
        assert (ended.code, ended.out, ended.err) == (1, "", refusal)
    assert dbas.run("enroll", "alice", "--key", key, "--role", "dba").code == 0
    ended = dbas.run("grant", "alice", "dbaa")
    assert (ended.code, ended.err) == (1, refusal)
    assert dbas.run("ungrant", "alice", "dba").code == 0  # whatever somebody has can be taken away


@pytest.mark.parametrize("policy", [None, "[roles", "roles = 1"])
def test_where_the_policy_cannot_tell_every_role_will_do(dbas: Site, policy: str | None) -> None:
    path = dbas.config.with_name("policy.toml")
    path.unlink() if policy is None else path.write_text(policy)
    assert dbas.run("invite", "alice", "--host", "h", "--role", "dbaa").code == 0
