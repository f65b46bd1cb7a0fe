"""Who did it: what an operator does to a host has a name in the record; and so has the policy."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from integration.lab import Lab, wait_until
from integration.site import PROGRAMS, Site

WIDER = """
[services]
ssh = "tcp/22"
extra = "tcp/8080"
[roles.ops]
[[roles.ops.allow]]
services = ["ssh", "extra"]
"""


@dataclass
class Scene:
    """A host, and its operator, who came by sudo."""

    lab: Lab
    site: Site

    def sudo(self, *arguments: str, check: bool = True) -> str:
        """As root, whom carol has asked by sudo."""
        command = [str(PROGRAMS / "spa-server"), "--config", str(self.site.config), *arguments]
        env = {**os.environ, "SUDO_USER": "carol"}
        return self.site.host.run(command, env=env, check=check).stdout


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        yield Scene(lab, Site(lab, lab.host("server")))


def is_carols(line: dict[str, Any]) -> bool:
    detail = line["detail"]
    return (detail.get("actor"), detail.get("uid")) == ("root (sudo by carol)", 0)


def test_what_a_daemon_is_asked_to_do_bears_a_name(scene: Scene) -> None:
    site, client = scene.site, scene.lab.host("client")
    site.apply_gate()
    site.start()
    alice = site.enrol("alice", "ops")
    applied = json.loads(scene.sudo("gate", "apply", "--confirm-within", "60s", "--json"))
    assert (applied["mode"], applied["undone_in_s"]) == ("enforce", 60)
    scene.sudo("gate", "confirm")
    scene.sudo("reload")
    alice.knock(client, "tcp/22")
    assert json.loads(scene.sudo("close", "--all", "--json")) == {"closed": 1}
    site.write_policy("[services")
    scene.sudo("reload", check=False)
    scene.sudo("backup", str(site.config.parent / "backup.tar"))
    scene.sudo("gate", "remove", "--yes")
    wait_until(lambda: site.events("gate.removed"))
    for event in (
        "gate.applied",
        "gate.confirmed",
        "policy.loaded",
        "hole.closed",
        "policy.refused",
        "backup.made",
        "gate.removed",
    ):
        assert is_carols(site.events(event)[-1]), event
    assert site.server("audit", "verify").returncode == 0


def test_what_is_done_while_no_daemon_runs_is_entered_by_the_next(scene: Scene) -> None:
    site = scene.site
    site.enrol("alice", "ops")
    scene.sudo("gate", "apply")
    site.start()
    assert is_carols(site.events("gate.applied")[0])
    site.stop()
    scene.sudo("gate", "remove", "--yes")
    scene.sudo("gate", "apply")
    site.start()
    removed = site.events("gate.removed")
    assert len(removed) == 1
    assert is_carols(removed[0])
    site.restart(signal.SIGKILL)
    assert len(site.events("gate.removed")) == 1  # each is entered once
    assert site.server("audit", "verify").returncode == 0


def test_what_a_signal_asked_for_is_a_signals(scene: Scene) -> None:
    site = scene.site
    site.apply_gate()
    site.start()
    assert site.daemon is not None
    site.daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: site.events("policy.loaded"))
    assert site.events("policy.loaded")[-1]["detail"]["actor"] == "SIGHUP"


def test_the_policy_of_then_is_kept_and_compared(scene: Scene) -> None:
    site = scene.site
    site.apply_gate()
    site.start()
    before = site.events("daemon.started")[-1]
    old = (site.config.parent / "policy.toml").read_text()
    site.write_policy(WIDER)
    scene.sudo("reload")
    digest = before["detail"]["digest"]
    assert scene.sudo("policy", "print", digest[:16]) == old
    assert "root (sudo by carol)" in scene.sudo("policy", "history")
    done = site.server("policy", "diff", "--since", before["at"], "--by-role", check=False)
    assert done.returncode == 1  # somebody gains
    assert "8080" in done.stdout
    assert "by root (sudo by carol)" in done.stderr
    assert "no difference" in site.server("policy", "diff", "--since", "0s").stdout
