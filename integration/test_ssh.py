"""ssh and scp as people use them, with `spa-client connect` as their ProxyCommand.

The sshd is a real one, with keys made for the test. It would let everybody in who has the user's
key, and here all have it: whoever does not get in was kept out by the gate.
"""

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import pytest

from integration.lab import Address, Host, Lab
from integration.site import POLICY, PROGRAMS, Person, Site

SSHD: Final = "/usr/sbin/sshd"
GUEST_PORT: Final = 2222
MEGABYTE: Final = 1024 * 1024
FILE_MEGABYTES: Final = 100
SSH_FAILED: Final = 255

both_families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])

GUESTS: Final = """
[roles.guest]
[[roles.guest.allow]]
services = ["guests"]
lifetime = "2s"
sessions = "cut"
"""


@dataclass
class Scene:
    """A guarded host with an sshd, two clients, and people.

    alice may use ssh, gina only the port for guests, from which she is thrown out when her time is
    up, and bob nothing. `directory` holds everybody's files.
    """

    site: Site
    server: Host
    client: Host
    other: Host
    directory: Path
    alice: Person
    bob: Person
    gina: Person

    def ssh(self, person: Person, at: Host, *arguments: str) -> CompletedProcess[str]:
        """Runs ssh on a host, as its user's ssh_config says."""
        argv: list[str | Path] = ["ssh", "-F", self.directory / "ssh_config", *arguments]
        return at.run(argv, env=person.env, check=False)

    def scp(self, person: Person, at: Host, source: Path | str, to: Path | str) -> None:
        """Copies a file; one on the server is written site:PATH."""
        at.run(["scp", "-F", self.directory / "ssh_config", source, to], env=person.env)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, other = map(lab.host, ("server", "client", "other"))
        directory = lab.new_file("ssh")
        directory.mkdir()
        start_sshd(server, directory)
        (directory / "ssh_config").write_text(ssh_config(directory, server))
        services = f'[services]\nguests = "tcp/{GUEST_PORT}"'
        policy = POLICY.replace("[services]", services) + GUESTS
        site = Site(lab, server, policy=policy)
        alice, bob = site.enrol("alice", "ops"), site.enrol("bob")
        gina = site.enrol("gina", "guest")
        alice.client(server, "add", "site6", site.line, "--address", str(server.v6))
        site.apply_gate()
        site.start()
        yield Scene(site, server, client, other, directory, alice, bob, gina)


@pytest.fixture(autouse=True)
def _nothing_is_left_open(scene: Scene) -> Iterator[None]:
    yield
    scene.site.close_everything()


def start_sshd(host: Host, directory: Path) -> None:
    """An sshd with its own host key, where root logs in with one key that is made here.

    It insists on a directory in /run, and gets a /run of its own for it.
    """
    for name in ("host", "user"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", directory / name]
        host.run(argv)
    (directory / "sshd_config").write_text(f"""
Port 22
Port {GUEST_PORT}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PidFile none
Subsystem sftp internal-sftp
""")
    prepare = "mount -t tmpfs tmpfs /run && mkdir /run/sshd"
    serve = f"exec {SSHD} -D -e -f {directory}/sshd_config"
    running = host.start(["unshare", "--mount", "sh", "-c", f"{prepare} && {serve}"])
    running.wait_for("Server listening on 0.0.0.0 port 22.")


def ssh_config(directory: Path, server: Host) -> str:
    """For hosts that are reached through spa-client, and `plain` ones to which ssh connects."""
    host_key = (directory / "host.pub").read_text()
    (directory / "known_hosts").write_text(f"site {host_key}")
    return f"""
Host site site6
    ProxyCommand {PROGRAMS}/spa-client connect %h %p
Host brief
    ProxyCommand {PROGRAMS}/spa-client connect --once --lifetime 1s site %p
Host plain
    HostName {server.v4}
Host plain6
    HostName {server.v6}
Host *
    User root
    IdentityFile {directory}/user
    IdentitiesOnly yes
    HostKeyAlias site
    UserKnownHostsFile {directory}/known_hosts
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 20
"""


def address(host: Host, family: int) -> Address:
    return host.v4 if family == 4 else host.v6


@both_families
def test_after_a_knock_ssh_works_from_that_source_and_only_to_that_port(
    scene: Scene, family: int
) -> None:
    plain = "plain" if family == 4 else "plain6"
    in_vain = ("-o", "ConnectTimeout=1", plain, "id")
    before = scene.ssh(scene.alice, scene.client, *in_vain)
    assert before.returncode == SSH_FAILED
    assert "timed out" in before.stderr
    source, target = address(scene.client, family), address(scene.server, family)
    scene.alice.knock_at(scene.client, target, "tcp/22", "--lifetime", "1m")
    said = scene.ssh(scene.alice, scene.client, plain, "echo $SSH_CONNECTION")
    assert said.stdout.split()[::2] == [str(source), str(target)]
    for at, port in ((scene.other, 22), (scene.client, GUEST_PORT)):
        assert "timed out" in scene.ssh(scene.alice, at, "-p", str(port), *in_vain).stderr


@both_families
def test_ssh_through_spa_client_knocks_and_connects(scene: Scene, family: int) -> None:
    """What spa-client has to say it says on stderr, which ssh shows."""
    name = "site" if family == 4 else "site6"
    source, target = address(scene.client, family), address(scene.server, family)
    record = scene.site.record_from_now()
    said = scene.ssh(scene.alice, scene.client, name, "echo $SSH_CONNECTION")
    assert said.stdout.split()[::2] == [str(source), str(target)]
    assert f"spa-client: {name} ({target}): tcp/22 open for {source}" in said.stderr
    path = {"source": source, "target": target, "access": "tcp/22", "rule": "roles.ops.allow[0]"}
    record.line("hole.opened", identity="alice", **path)
    record.line("connection.permitted", identity="alice", **path)


def test_a_session_through_spa_client_outlives_its_hole(scene: Scene) -> None:
    record = scene.site.record_from_now()
    said = scene.ssh(scene.alice, scene.client, "brief", "sleep 2; echo still here")
    assert said.stdout == "still here\n"
    record.line("hole.expired", identity="alice", access="tcp/22")


def test_a_guest_is_thrown_out_when_the_time_is_up(scene: Scene) -> None:
    record = scene.site.record_from_now()
    command = "echo in; sleep 20; echo no"
    said = scene.ssh(scene.gina, scene.client, "-p", str(GUEST_PORT), "site", command)
    assert said.stdout == "in\n"
    assert said.returncode == SSH_FAILED
    record.line("connection.severed", identity="gina", access=f"tcp/{GUEST_PORT}")


def test_scp_of_a_big_file_arrives_whole_both_ways(scene: Scene) -> None:
    own, theirs, back = (scene.directory / name for name in ("own", "theirs", "back"))
    with own.open("wb") as file:
        for _ in range(FILE_MEGABYTES):
            file.write(os.urandom(MEGABYTE))
    scene.scp(scene.alice, scene.client, own, f"site:{theirs}")
    assert digest(theirs) == digest(own)
    scene.scp(scene.alice, scene.client, f"site:{theirs}", back)
    assert back.stat().st_size == FILE_MEGABYTES * MEGABYTE
    assert digest(back) == digest(own)
    for each in (own, theirs, back):
        each.unlink()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_nothing_but_what_the_server_sends_is_written_to_stdout(scene: Scene) -> None:
    said = scene.alice.client(scene.client, "connect", "site", "22")
    assert said.stdout.startswith("SSH-2.0-")
    assert said.stdout.count("\n") == 1
    assert "tcp/22 open" in said.stderr
    quiet = scene.alice.client(scene.client, "connect", "--quiet", "site", "22")
    assert quiet.stdout == said.stdout
    assert not quiet.stderr


def test_who_is_refused_reads_why(scene: Scene) -> None:
    """From spa-client, whose exit code is 1; ssh's own is always 255."""
    reason = f"spa-client: site ({scene.server.v4}): refused tcp/22: no role allows it"
    said = scene.bob.client(scene.client, "connect", "site", "22", check=False)
    assert said.returncode == 1
    assert reason in said.stderr
    assert not said.stdout
    through = scene.ssh(scene.bob, scene.client, "site", "id")
    assert through.returncode == SSH_FAILED
    assert reason in through.stderr


def test_where_nothing_listens_behind_the_hole_it_says_so(scene: Scene) -> None:
    said = scene.alice.client(scene.client, "connect", "site", "80", check=False)
    assert said.returncode == 3
    assert "tcp/80 is open, but connecting failed: connection refused" in said.stderr


def test_with_the_daemon_dead_ssh_fails_and_says_why(scene: Scene) -> None:
    """After as long as a knock waits for its answer, and not after ssh's own timeout."""
    scene.site.stop(signal.SIGKILL)
    shortly = ("connect", "site", "22", "--timeout", "0.5")
    said = scene.alice.client(scene.client, *shortly, check=False)
    assert said.returncode == 3
    assert f"spa-client: no answer from site ({scene.server.v4}, udp/62201)" in said.stderr
    through = scene.ssh(scene.alice, scene.client, "site", "id")
    assert through.returncode == SSH_FAILED
    assert f"no answer from site ({scene.server.v4}, udp/62201)" in through.stderr
    scene.site.start()
