"""The daemon as a user of no standing, with CAP_NET_ADMIN and no other capability.

The systemd units run it so: what it needed beyond that, it would lack on every real host.
"""

import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from integration.lab import Host, Lab, Reach, echoes, wait_until
from integration.site import PROGRAMS, Person, Site

UID: Final = 61_234
CAP_NET_ADMIN: Final = 1 << 12
AS_THE_DAEMON: Final = (
    "setpriv",
    f"--reuid={UID}",
    f"--regid={UID}",
    "--clear-groups",
    "--no-new-privs",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=-all,+net_admin",
    "--bounding-set=-all,+net_admin",
)
# Covers a directory that only root may pass by an open one that holds one of its subdirectories, in
# the mount namespace that `ip netns exec` makes, and so for the program that is run there alone.
PASSAGE: Final = """
held=$1 closed=$2 inside=$3; shift 3
mount --bind "$closed" "$held"
mount -t tmpfs -o mode=0755 passage "$closed"
mkdir "$closed/$inside"
mount --bind "$held/$inside" "$closed/$inside"
exec "$@"
"""


def passage(lab: Lab) -> tuple[str, ...]:
    """What a command begins with so that others than root can run a program at all."""
    needed = (PROGRAMS / "spa-server", Path(sys.executable).resolve(), Path(__file__))
    closed = {
        (directory, path.relative_to(directory).parts[0])
        for path in needed
        for directory in path.parents
        if not directory.stat().st_mode & 0o001
    }
    if len({directory for directory, _ in closed}) != len(closed):
        pytest.skip(f"other users cannot run the programs, behind {sorted(closed)}")
    prefix: tuple[str, ...] = ()
    for directory, inside in sorted(closed):
        held = lab.new_file("held")
        held.mkdir()
        prefix += ("sh", "-ec", PASSAGE, "sh", str(held), str(directory), inside)
    return prefix


@dataclass
class Scene:
    """A guarded server whose files and daemon are an unprivileged user's."""

    site: Site
    server: Host
    client: Host
    alice: Person
    prefix: tuple[str, ...]

    def start(self) -> None:
        """Starts the daemon as its user."""
        self.site.start(prefix=self.prefix)

    @property
    def daemon_pid(self) -> int:
        """Its process id."""
        assert self.site.daemon is not None
        return self.site.daemon.pid


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    with tempfile.TemporaryDirectory(prefix="spa-unprivileged") as directory, Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        prefix = (*passage(lab), *AS_THE_DAEMON)
        site = Site(lab, server, directory=Path(directory))
        alice = site.enrol("alice", "ops", "dba")
        for path in (site.directory, *site.directory.rglob("*")):
            os.chown(path, UID, UID)
        for port in (22, 80, 5432):
            server.serve(port)
        with closing(client.connection(server.v4, 22)) as before:
            assert echoes(before)
            program = (PROGRAMS / "spa-server", "--config", site.config)
            server.run([*prefix, *program, "gate", "apply"])
            assert echoes(before), "a session that was open before the gate"
        made = Scene(site, server, client, alice, prefix)
        made.start()
        yield made


def test_it_is_that_user_with_that_capability_alone(scene: Scene) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{scene.daemon_pid}/status").read_text().splitlines()
    )
    assert status["Uid"].split() == [str(UID)] * 4
    assert status["Gid"].split() == [str(UID)] * 4
    assert status["Groups"].strip() == ""
    assert status["NoNewPrivs"] == "1"
    capabilities = {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    assert capabilities == {CAP_NET_ADMIN}


def test_a_knock_opens_its_port_for_its_time(scene: Scene) -> None:
    server, client = scene.server, scene.client
    assert client.reach_tcp(server.v4, 22) is Reach.SILENT
    scene.alice.knock(client, "tcp/22", "--lifetime", "2s")
    assert client.reach_tcp(server.v4, 22) is Reach.OPEN
    wait_until(lambda: client.reach_tcp(server.v4, 22) is Reach.SILENT)
    wait_until(lambda: scene.site.events("hole.expired"))
    permitted, *_ = scene.site.events("connection.permitted")
    assert permitted["identity"] == "alice"
    assert scene.site.events("connection.denied")


def test_a_session_is_cut_with_its_hole(scene: Scene) -> None:
    """SOCK_DESTROY is the one thing here that no file of rules can do."""
    server, client = scene.server, scene.client
    scene.alice.knock(client, "tcp/5432", "--lifetime", "10m")
    with client.connection(server.v4, 5432) as session:
        assert echoes(session)
        scene.site.server("close", "--all")
        assert not echoes(session)
    (severed,) = [e for e in scene.site.events("connection.severed") if e["detail"].get("count")]
    assert (severed["identity"], severed["detail"]["count"]) == ("alice", 1)


def test_a_person_whom_root_enrols_is_heard_at_once(scene: Scene) -> None:
    """Root writes into the daemon's database, and takes nothing of it into its own hands."""
    scene.site.enrol("bob", "ops").knock(scene.client, "tcp/80")
    assert scene.client.reach_tcp(scene.server.v4, 80) is Reach.OPEN
    owners = {path.name: path.stat().st_uid for path in scene.site.directory.iterdir()}
    assert {name: uid for name, uid in owners.items() if uid != UID} == {}
    scene.site.server("close", "--all")


def test_a_flushed_ruleset_is_restored(scene: Scene) -> None:
    server, client = scene.server, scene.client
    scene.alice.knock(client, "tcp/22", "--lifetime", "10m")
    server.run(["nft", "flush", "ruleset"])
    wait_until(lambda: scene.site.events("gate.restored"))
    assert client.reach_tcp(server.v4, 22) is Reach.OPEN
    assert client.reach_tcp(server.v4, 80) is Reach.SILENT
    scene.alice.knock(client, "tcp/80")
    assert client.reach_tcp(server.v4, 80) is Reach.OPEN
    scene.site.server("close", "--all")


def test_another_daemon_takes_over(scene: Scene) -> None:
    server, client = scene.server, scene.client
    scene.alice.knock(client, "tcp/22", "--lifetime", "10m")
    scene.site.stop(signal.SIGKILL)
    scene.start()
    assert [hole["access"] for hole in scene.site.holes() if hole["open"]] == ["tcp/22"]
    assert client.reach_tcp(server.v4, 22) is Reach.OPEN
    scene.site.server("close", "--all")
    assert client.reach_tcp(server.v4, 22) is Reach.SILENT


def test_it_tells_systemd_when_it_is_ready(scene: Scene) -> None:
    """The unit is of Type=notify: what waits for it may count on the daemon from then on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        path = scene.site.directory / "notify"
        systemd.bind(str(path))
        path.chmod(0o777)
        systemd.settimeout(10)
        scene.site.stop()
        scene.site.start(prefix=scene.prefix, env={"NOTIFY_SOCKET": str(path)})
        assert systemd.recv(1000) == b"READY=1"
    path.unlink()


def test_its_control_socket_is_for_itself_and_its_group(scene: Scene) -> None:
    status = (scene.site.directory / "control.sock").stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert (status.st_uid, status.st_gid) == (UID, UID)
