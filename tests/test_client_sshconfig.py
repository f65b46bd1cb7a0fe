"""The lines for ssh_config: every name in them finds its host again, and nothing else is there."""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_client import config, sshconfig
from spa_client.config import Config, Host
from tests.test_client_fake_server import serving

PLAIN = st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True)


def host(name: str, address: str, at: str | None = None) -> Host:
    with serving() as server:
        line = server.line
    endpoint = replace(line.endpoint, host=at or address)
    return Host(name, replace(line, endpoint=endpoint), address, Path("x.key"))


def names(block: str | None) -> list[str]:
    assert block is not None
    return block.splitlines()[0].split()[1:]


def test_a_host_by_its_name_and_its_addresses() -> None:
    db1 = host("db1", "db1.internal", at="10.0.0.5")
    assert sshconfig.block(db1, [db1], "CMD %h %p") == (
        "Host db1 db1.internal 10.0.0.5\n    ProxyCommand CMD %h %p"
    )


def test_the_first_label_of_a_host_is_a_name_of_it_too() -> None:
    db1 = host("db1.internal", "db1.internal")
    assert names(sshconfig.block(db1, [db1], "")) == ["db1.internal", "db1"]
    assert Config(Path(), Path(), {db1.name: db1}).find("db1") is db1


def test_a_first_label_that_means_something_else_is_left_out() -> None:
    one, two = host("db1.internal", "db1.internal"), host("db1.other", "db1.other")
    assert names(sshconfig.block(one, [one, two], "")) == ["db1.internal"]
    named = host("db1", "10.0.0.5")
    known = Config(Path(), Path(), {one.name: one, named.name: named})
    assert names(sshconfig.block(one, known.hosts.values(), "")) == ["db1.internal"]
    assert known.find("DB1") is named
    assert names(sshconfig.block(one, [one], "", {"db1"})) == ["db1.internal"]
    with pytest.raises(config.UnknownHost, match=r"db1 is short for db1\.internal, db1\.other"):
        Config(Path(), Path(), {one.name: one, two.name: two}).find("db1")
    address = host("10.0.0.5", "10.0.0.5")
    assert names(sshconfig.block(address, [address], "")) == ["10.0.0.5"]


def test_an_address_that_two_hosts_have_is_left_out() -> None:
    one, two = host("one", "gate.internal"), host("two", "gate.internal", at="10.0.0.5")
    assert names(sshconfig.block(one, [one, two], "")) == ["one"]
    assert names(sshconfig.block(two, [one, two], "")) == ["two", "10.0.0.5"]


@pytest.mark.parametrize("name", ["*", "db?", "!db1", "a b", "-oProxyCommand=x", 'x"y', "x\ny", ""])
def test_what_ssh_would_take_for_something_else_is_left_out(name: str) -> None:
    bad = host(name, "10.0.0.5")
    assert names(sshconfig.block(bad, [bad], "")) == ["10.0.0.5"]
    assert sshconfig.block(host(name, name), [bad], "") is None


@given(st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=6, unique_by=lambda t: t[0]))
def test_every_name_finds_its_host(entries: list[tuple[str, str, str]]) -> None:
    line = _LINE
    hosts = {
        name: Host(name, replace(line, endpoint=replace(line.endpoint, host=at)), address, Path())
        for name, address, at in entries
    }
    known = Config(Path("config.toml"), Path(), hosts)
    for each in hosts.values():
        for name in names(sshconfig.block(each, hosts.values(), "")):
            assert known.find(name) is each


with serving() as _server:
    _LINE = _server.line


def test_ssh_asks_in_small_letters() -> None:
    upper = host("DB1", "10.0.0.5")
    assert Config(Path(), Path(), {"DB1": upper}).find("db1") is upper


def test_options_are_quoted_for_the_shell_and_for_ssh() -> None:
    command = sshconfig.proxy_command(["--config", "/home/a b/100%/config.toml"])
    assert command.endswith(" connect --config '/home/a b/100%%/config.toml' %h %p")
    words = shlex.split(command.replace("%%", "%"))
    assert words[-3:] == ["/home/a b/100%/config.toml", "%h", "%p"]


def test_a_program_that_is_not_on_the_path_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "spa-client"
    program.touch()
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sshconfig.proxy_command([]) == "spa-client connect %h %p"
    monkeypatch.setenv("PATH", "/nowhere")
    assert sshconfig.proxy_command([]) == f"{program} connect %h %p"


def test_the_command(tmp_path: Path) -> None:
    with serving() as server:
        path = tmp_path / "config.toml"
        for name in ("db1", "db2", "*"):
            config.add(path, config.NewHost(name, str(server.line), address=f"{name}.internal"))
    program = [sys.executable, "-c", "from spa_client.cli import main; main()", "ssh-config"]
    everything = _run(*program, "--config", str(path))
    assert everything.returncode == 0
    assert everything.stdout.count("ProxyCommand ") == 2
    assert f"connect --config {path} %h %p" in everything.stdout
    assert "'*' is left out" in everything.stderr
    one = _run(*program, "db2", "--config", str(path))
    assert [line.split()[0] for line in one.stdout.splitlines()] == ["Host", "ProxyCommand"]
    assert _run(*program, "db9", "--config", str(path)).returncode == 2


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
