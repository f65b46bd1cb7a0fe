"""Completion in the shells themselves: bash, zsh and fish are asked what they would offer."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import keys.cli
import spa_client.cli
import spa_server.cli
from keys import identity
from keys.completion import SHELLS, offering, script
from keys.identity import Identity
from keys.registry import opened
from spa_client import config
from spa_protocol.publickey import PublicKey
from tests.test_client_fake_server import serving

PROGRAMS = Path(sys.executable).parent
MAINS = {
    "spa-client": spa_client.cli.main,
    "spa-keys": keys.cli.main,
    "spa-server": spa_server.cli.main,
}

# What each shell needs to be asked from a script: the words so far, the last one unfinished.
BASH = """
eval "$(spa-client completion bash)"
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
compopt() {{ :; }}
_spa_client_completion spa-client
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
autoload -Uz compinit && compinit -D
eval "$(spa-client completion zsh)"
compadd() {{
  while [[ "$1" == -* ]]; do [[ "$1" == -V ]] && shift; shift; done; print -l -- ${{(P)1}}
}}
_describe() {{ print -l -- ${{${{(P)3}}%%:*}} }}
words=({words}); CURRENT=$#words
_spa_client_completion
"""
FISH = """
spa-client completion fish | source
complete --do-complete '{line}'
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home with two hosts and two keys."""
    path = tmp_path / ".config" / "spa" / "config.toml"
    with serving() as server:
        for name, access in (("db1", ("tcp/5432", "ssh")), ("db2", ()), ("$(touch x)", ())):
            host = config.NewHost(name, str(server.line), access=access)
            config.add(path, host)
    for name in ("default", "work"):
        identity.save(identity.generate(), path.parent / "keys" / f"{name}.key", None)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPA_", "XDG_"))}
    return {**kept, "HOME": str(tmp_path), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}


def offers(shell: str, line: str, environment: Mapping[str, str]) -> list[str]:
    """What a shell offers behind this line; its last word is the one to be completed."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = " ".join(f"'{word}'" for word in line.split(" "))
    code = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell].format(words=words, line=line)
    argv = {
        "bash": ["bash", "--norc", "-c", code],
        "zsh": ["zsh", "-f", "-c", code],
        "fish": ["fish", "--no-config", "-c", code],
    }[shell]
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == "", done.stderr
    return [each.split("\t")[0] for each in done.stdout.splitlines() if each]


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_and_options(shell: str, environment: dict[str, str]) -> None:
    assert offers(shell, "spa-client ssh-", environment) == ["ssh-config"]
    assert set(offers(shell, "spa-client ho", environment)) == {"hold", "hosts"}
    assert "--lifetime" in offers(shell, "spa-client knock --l", environment)


@pytest.mark.parametrize("shell", SHELLS)
def test_names_from_the_configuration(shell: str, environment: dict[str, str]) -> None:
    assert set(offers(shell, "spa-client knock d", environment)) == {"db1", "db2"}
    assert set(offers(shell, "spa-client ssh-config db1 d", environment)) >= {"db1", "db2"}
    assert offers(shell, "spa-client exec db1 tcp/5", environment) == ["tcp/5432"]
    assert offers(shell, "spa-client knock --key w", environment) == ["work"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_broken_configuration_is_no_trouble(shell: str, environment: dict[str, str]) -> None:
    (Path(environment["HOME"]) / ".config" / "spa" / "config.toml").write_text("nonsense")
    assert offers(shell, "spa-client knock d", environment) == []


def test_the_configuration_that_the_line_names(environment: dict[str, str], tmp_path: Path) -> None:
    with serving() as server:
        config.add(tmp_path / "other.toml", config.NewHost("other", str(server.line)))
    line = f"spa-client knock --config {tmp_path}/other.toml o"
    assert offers("bash", line, environment) == ["other"]


def test_behind_the_dashes_nothing_of_ours_is_offered(environment: dict[str, str]) -> None:
    assert offers("bash", "spa-client exec db1 tcp/5432 -- tcp/", environment) == []


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", MAINS)
def test_each_program_prints_a_script_that_its_shell_reads(name: str, shell: str) -> None:
    text = script(MAINS[name], name, shell)
    assert name in text
    assert f"_{name.replace('-', '_').upper()}_COMPLETE" in text
    if shutil.which(shell):
        check = subprocess.run(
            [shell, "-n"], input=text, text=True, capture_output=True, check=False
        )
        assert (check.returncode, check.stderr) == (0, "")


@pytest.mark.parametrize("name", MAINS)
def test_each_program_has_the_command(name: str) -> None:
    assert "completion" in MAINS[name].commands
    done = subprocess.run(
        [PROGRAMS / name, "completion", "bash"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == script(MAINS[name], name, "bash")


def test_who_is_in_the_registry_and_which_keys_there_are(
    environment: dict[str, str], tmp_path: Path
) -> None:
    database = tmp_path / "spa.db"
    with opened(database, create=True) as registry:
        for name, role in (("alice", "dba"), ("adam", "ops"), ("bob", "dba")):
            registry.enroll(name, identity.generate().public, roles=[role], now_us=1, actor="root")
    where = {**environment, "SPA_DATABASE": str(database)}
    assert keys_offers("grant a", where) == ["adam", "alice"]
    assert keys_offers("grant alice d", where) == ["dba"]
    assert keys_offers("show w", environment) == ["work"]
    assert keys_offers("grant a", {**environment, "SPA_DATABASE": "/nowhere"}) == []


def test_what_can_be_revoked_approved_or_replaced(
    environment: dict[str, str], tmp_path: Path
) -> None:
    database = tmp_path / "spa.db"
    alice, bob = identity.generate().public, identity.generate().public
    with opened(database, create=True) as registry:
        registry.enroll("alice", alice, now_us=1, actor="root")
        token = registry.create_invite(
            "bob", expires_at_us=10**15, needs_approval=True, now_us=1, actor="root"
        )
        registry.redeem(Identity.from_invite(token).public.key_id, bob, 2)
    where = {**environment, "SPA_DATABASE": str(database)}
    assert keys_offers("revoke a", where) == ["alice", *_beginning("a", alice, bob)]
    assert keys_offers(f"revoke {alice.key_id[:6]}", where) == [alice.key_id]
    replaced = f"enroll alice --replaces {alice.key_id[:6]}"
    assert keys_offers(replaced, where) == [alice.key_id]
    for command in ("approve", "reject"):
        assert keys_offers(f"{command} b", where) == ["bob", *_beginning("b", bob)]
        assert keys_offers(f"{command} {bob.key_id[:6]}", where) == [bob.key_id]
        assert keys_offers(f"{command} {alice.key_id[:6]}", where) == []


def _beginning(letter: str, *keys: PublicKey) -> list[str]:
    return [key.key_id for key in keys if key.key_id.startswith(letter)]


def keys_offers(line: str, environment: Mapping[str, str]) -> list[str]:
    words = f"spa-keys {line}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [PROGRAMS / "spa-keys"],
        env={**environment, "_SPA_KEYS_COMPLETE": "bash_complete", **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    return [each.removeprefix("plain,") for each in done.stdout.split()]


def test_a_shell_that_is_none() -> None:
    done = subprocess.run(
        [PROGRAMS / "spa-client", "completion", "tcsh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_what_is_offered_is_plain_and_offered_once() -> None:
    @offering
    def words(_: click.Context) -> list[str]:
        return ["b", "a", "b", "a b", "$(x)", "`x`", "-x", "*", "a;b", "tcp/22", "a\n"]

    assert words(None, None, "") == ["b", "a", "tcp/22"]
    assert words(None, None, "t") == ["tcp/22"]


def test_whatever_goes_wrong_offers_nothing() -> None:
    @offering
    def words(_: click.Context) -> list[str]:
        raise RuntimeError("no")

    assert words(None, None, "") == []


def test_help_says_how_to_install_it() -> None:
    done = CliRunner().invoke(spa_client.cli.main, ["completion", "--help"], standalone_mode=False)
    assert ".bashrc" in done.output
    assert "fish/completions" in done.output
