"""From nothing to a session of ssh: six commands, as README.md has them, on two fresh machines."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.lab import Lab, Reach
from integration.newcomer import MAX_COMMANDS, NAME, Walk

SECONDS = 60.0
README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    with Lab() as lab:
        made = Walk(lab)
        assert made.laptop.host.reach_tcp(made.server.host.v4, 22) is Reach.OPEN
        for step in made.go():
            print(f"{step.seconds:.2f} s  {step.prompt} {step.command}")
        print(f"{made.seconds:.2f} s, {len(made.steps)} commands")
        yield made


def test_in_six_commands_there_is_a_session(walk: Walk) -> None:
    path = walk.steps[:MAX_COMMANDS]
    source, _, target, port = path[-1].output.split("\n")[0].split()
    assert (source, target) == (str(walk.laptop.host.v4), str(walk.server.host.v4))
    assert port == "22"
    assert sum(step.seconds for step in path) < SECONDS


def test_the_port_is_shut_to_whoever_does_not_knock(walk: Walk) -> None:
    walk.server.type("spa-server close --all", check=False)
    assert walk.laptop.host.reach_tcp(walk.server.host.v4, 22) is Reach.SILENT


def test_from_then_on_ssh_is_called_as_ever(walk: Walk) -> None:
    assert walk.steps[-1].command.startswith(f"ssh {NAME}")
    assert str(walk.laptop.host.v4) in walk.steps[-1].output
    assert (walk.laptop.home / ".ssh" / "config").read_text() == "Include spa_hosts\n"
    assert f"Host {NAME}" in (walk.laptop.home / ".ssh" / "spa_hosts").read_text()


def test_the_record_says_who_came(walk: Walk) -> None:
    told = json.loads(walk.server.type("spa-server audit --json").stdout)
    events = {line["event"] for line in told if line["identity"] == "alice"}
    assert events >= {"join.accepted", "hole.opened", "connection.permitted"}


def test_the_key_is_the_daemons_and_init_may_be_run_again(walk: Walk) -> None:
    key = (walk.server.etc / "spa" / "server.key").stat()
    assert (key.st_uid == os.geteuid(), stat.S_IMODE(key.st_mode)) == (False, 0o600)
    again = walk.server.type(f"spa-server init --host {NAME}")
    assert again.stdout == walk.steps[0].output.split("made ")[0]


def test_the_commands_are_those_of_the_readme(walk: Walk) -> None:
    """What a newcomer reads is what was typed here, the name of the host and options apart."""
    readme = README.read_text(encoding="utf-8")
    for step in walk.steps[:5]:
        words = re.sub(r" (--no-passphrase|--host \S+)", "", step.command)
        assert words in " ".join(readme.split()), step.command
