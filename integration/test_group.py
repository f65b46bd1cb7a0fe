"""The group spa: whoever is in it may see and end what is open, and read the record; no file."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from integration.lab import Host, Lab
from integration.site import PROGRAMS, Person, Site

_MEMBER: Final = 54_321
_GROUP: Final = 54_322


@dataclass
class Scene:
    """A host whose daemon runs, and an operator who is nobody but in its group."""

    site: Site
    client: Host
    alice: Person

    def member(self, *arguments: str, group: int = _GROUP) -> subprocess.CompletedProcess[str]:
        """What the operator sees."""
        user = ("setpriv", f"--reuid={_MEMBER}", f"--regid={group}", "--clear-groups")
        program = (PROGRAMS / "spa-server", "--config", self.site.config, *arguments)
        return self.site.host.run([*user, *program], check=False)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        site = Site(lab, lab.host("server"))
        client = lab.host("client")
        site.apply_gate()
        site.start()
        os.chown(site.control, 0, _GROUP)  # as the group spa has it where there is one
        for directory in (site.directory, *site.directory.parents):
            if directory.stat().st_mode & 0o001 == 0:
                directory.chmod(directory.stat().st_mode | 0o011)
        alice = site.enrol("alice", "ops")
        alice.knock(client, "tcp/22")
        client.reach_tcp(site.host.v4, 9)
        yield Scene(site, client, alice)


def test_a_member_reads_the_record_through_the_daemon(scene: Scene) -> None:
    found = json.loads(scene.member("audit", "--json", "--event", "hole.opened").stdout)
    assert [line["identity"] for line in found] == ["alice"]
    assert found == scene.site.audit("--event", "hole.opened")
    assert "alice" in scene.member("audit", "--identity", "alice", "--since", "1h").stdout
    nobody = scene.member("audit", "--identity", "nobody-here")
    assert nobody.returncode == 1
    assert "is nobody in the registry or the record" in nobody.stderr
    few = scene.member("audit", "--limit", "1")
    assert len(few.stdout.splitlines()) == 1
    assert "the latest 1 lines" in few.stderr


def test_a_member_is_told_that_there_is_nothing(scene: Scene) -> None:
    asked = ("audit", "--event", "backup.made")
    told = scene.member(*asked)
    assert (told.returncode, told.stdout) == (0, "")
    assert told.stderr == "spa-server: nothing of that kind in the record\n"
    assert scene.member(*asked, "--json").stdout == "[]\n"


def test_a_member_follows_the_record(scene: Scene) -> None:
    program = f"{PROGRAMS}/spa-server --config {scene.site.config} audit --event knock --follow"
    user = f"setpriv --reuid={_MEMBER} --regid={_GROUP} --clear-groups"
    following = scene.site.host.start(["sh", "-c", f"exec {user} {program} --limit 1"])
    following.wait_for("knock.accepted")
    before = following.output.count("knock.accepted")
    scene.alice.knock(scene.client, "tcp/80")
    following.wait_for("tcp/80")
    assert following.output.count("knock.accepted") == before + 1
    following.stop()


def test_no_file_is_a_members_and_nobody_else_may_ask(scene: Scene) -> None:
    for command in (("audit", "verify"), ("audit", "export", "--format", "jsonl")):
        refused = scene.member(*command)
        assert refused.returncode != 0
        assert "Traceback" not in refused.stderr
        assert refused.stdout == ""
    stranger = scene.member("audit", group=_MEMBER)
    assert stranger.returncode != 0
    assert stranger.stdout == ""


@contextmanager
def asking(scene: Scene, request: dict[str, object]) -> Iterator[list[subprocess.Popen[str]]]:
    """A member who asks as often as the daemon lets one."""
    code = (
        "import json, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])\n"
        "s.sendall(sys.argv[2].encode() + b'\\n'); print(s.makefile().readline())\n"
    )
    argv = [sys.executable, "-c", code, str(scene.site.control), json.dumps(request)]
    user = ["setpriv", f"--reuid={_MEMBER}", f"--regid={_GROUP}", "--clear-groups"]
    asked = [
        subprocess.Popen([*user, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(12)
    ]
    try:
        yield asked
    finally:
        for each in asked:
            each.communicate()


@pytest.mark.parametrize(
    "wanted",
    [
        {"identity": "'; drop table event; --"},
        {"event": 7},
        {"nothing": 1},
        [],
        {"source": "%' or 1 = 1 --"},
    ],
)
def test_what_a_member_asks_is_no_command(scene: Scene, wanted: object) -> None:
    with asking(scene, {"do": "audit", "wanted": wanted, "limit": 10**9}) as asked:
        answers = [json.loads(each.communicate()[0]) for each in asked]
    assert all(answer["ok"] is False or answer["lines"] == [] for answer in answers)
    assert scene.site.audit("--event", "hole.opened")


def test_members_who_ask_much_keep_nobody_from_knocking(scene: Scene) -> None:
    """Whatever they ask is read in a thread, one at a time and for three seconds at most."""
    with asking(scene, {"do": "audit", "wanted": {"access": "tcp/1"}}) as asked:
        assert scene.alice.knock(scene.client, "tcp/22").returncode == 0
        assert all(json.loads(each.communicate()[0])["ok"] for each in asked)
