"""Connecting without a command more: ssh-config, exec, forward and hold, against the real gate.

Each program is what a person would run; what it says is held against the server's holes and record.
"""

import hashlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import pytest

from integration.lab import Host, Lab, Reach, Running, wait_until
from integration.site import PROGRAMS, Person, RecordSince, Site
from integration.test_ssh import ssh_config, start_sshd
from integration.wayside import Terminal, dropping, losing
from spa_protocol.layout import DEFAULT_PORT

CLIENT: Final = PROGRAMS / "spa-client"
LOCAL, LOCAL6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
LOST_OF_A_HUNDRED: Final = 30
POSTGRES: Final = Path("/usr/lib/postgresql")

POLICY: Final = """
[services]
ssh = "tcp/22"
echo = "tcp/7000"
digest = "tcp/7001"
nothing = "tcp/7002"
postgres = "tcp/5432"
guests = "tcp/7100"

[roles.ops]
[[roles.ops.allow]]
services = ["ssh", "echo", "digest", "nothing", "postgres"]
lifetime = "3s"
max_lifetime = "1h"

[roles.guest]
[[roles.guest.allow]]
services = ["guests"]
lifetime = "3s"
"""

# Reads until the end of input, and only then answers.
DIGEST: Final = """
import hashlib, socket, sys, threading
def serve(stream):
    digest = hashlib.sha256()
    while chunk := stream.recv(65536):
        digest.update(chunk)
    stream.sendall(digest.hexdigest().encode())
    stream.close()
listener = socket.create_server(("::", 7001), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True:
    stream, _ = listener.accept()
    threading.Thread(target=serve, args=(stream,), daemon=True).start()
"""


@dataclass
class Scene:
    """A guarded host with services, two clients, and alice, who may use them; bob may not."""

    lab: Lab
    site: Site
    server: Host
    client: Host
    other: Host
    directory: Path
    alice: Person
    bob: Person

    def run(self, *arguments: str, person: Person | None = None) -> CompletedProcess[str]:
        """Runs `spa-client` on the client, to its end."""
        return (person or self.alice).client(self.client, *arguments, check=False)

    def start(self, *arguments: str, person: Person | None = None) -> Running:
        return self.client.start([CLIENT, *arguments], env=(person or self.alice).env)

    def forward(self, *arguments: str, person: Person | None = None) -> "Forwarding":
        return Forwarding(self, self.start("forward", *arguments, person=person))

    def named(self, *arguments: str) -> list[str | Path]:
        """The same, where the name `db.test` means the server's addresses of both families."""
        hosts = self.directory / "hosts"
        hosts.write_text(f"{self.server.v4} db.test\n{self.server.v6} db.test\n")
        words = f'mount --bind {hosts} /etc/hosts && exec {CLIENT} "$@"'
        return ["unshare", "--mount", "sh", "-c", words, "sh", *arguments]

    def open_ports(self) -> set[str]:
        return {hole["access"] for hole in self.site.holes()}


@dataclass
class Forwarding:
    """A `spa-client forward` that listens."""

    scene: Scene
    running: Running

    def __post_init__(self) -> None:
        self.running.wait_for("leads to")
        wait_until(lambda: self.running.output.count("leads to") >= 2, what="both families")

    @property
    def port(self) -> int:
        """The first port that it listens on."""
        return int(self.running.output.split(" leads to")[0].rpartition(":")[2])

    def connect(self, at: IPv4Address | IPv6Address = LOCAL) -> socket.socket:
        stream = self.scene.client.connection(at, self.port)
        stream.settimeout(20)
        return stream

    def talk(self, data: bytes = b"hello") -> bytes:
        with self.connect() as stream:
            wait_until(lambda: _is_connected(stream))
            stream.sendall(data)
            return _received(stream, len(data))

    def end(self, by: signal.Signals = signal.SIGINT) -> int:
        return self.running.stop(by)


def _is_connected(stream: socket.socket) -> bool:
    with suppress(OSError):
        stream.getpeername()
        return True
    return False


def _received(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (chunk := stream.recv(size - len(data))):
        data += chunk
    return data


def _until_end(stream: socket.socket) -> bytes:
    data = b""
    while chunk := stream.recv(65536):
        data += chunk
    return data


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, other = map(lab.host, ("server", "client", "other"))
        directory = lab.new_file("ways")
        directory.mkdir()
        server.serve(7000)
        server.serve(7100)
        server.start([sys.executable, "-c", DIGEST]).wait_for("listening")
        site = Site(lab, server, policy=POLICY)
        alice, bob = site.enrol("alice", "ops"), site.enrol("bob")
        alice.client(server, "add", "site6", site.line, "--address", str(server.v6))
        alice.client(server, "add", "both", site.line, "--address", "db.test")
        site.apply_gate()
        site.start()
        yield Scene(lab, site, server, client, other, directory, alice, bob)


@pytest.fixture(autouse=True)
def _nothing_is_left_open(scene: Scene) -> Iterator[None]:
    yield
    scene.site.close_everything()


@pytest.fixture
def record(scene: Scene) -> RecordSince:
    return scene.site.record_from_now()


# ssh-config


def test_ssh_needs_no_command_but_ssh(scene: Scene) -> None:
    """What ssh-config prints is put in front of a person's own file, as its help says."""
    start_sshd(scene.server, scene.directory)
    printed = scene.run("ssh-config")
    assert printed.returncode == 0
    assert "Host site6 " in printed.stdout
    usual = ssh_config(scene.directory, scene.server).partition("Host *")[2]
    config = scene.directory / "ssh_config"
    config.write_text(f"{printed.stdout}\nHost *{usual}")
    for name in ("site", "site6", str(scene.server.v6)):
        argv = ["ssh", "-F", config, name, "echo $SSH_CONNECTION"]
        said = scene.client.run(argv, env=scene.alice.env, check=False)
        assert said.returncode == 0, said
        assert said.stdout.split()[0] in {str(scene.client.v4), str(scene.client.v6)}


# exec


def test_the_program_runs_behind_the_answer(scene: Scene, record: RecordSince) -> None:
    """Its connection is let in by the hole, and its exit code is the command's."""
    code = "import socket, sys; socket.create_connection((sys.argv[1], 7000), 5); sys.exit(41)"
    long = ("tcp/7000", "--lifetime", "30s")
    done = scene.run("exec", "site", *long, "--", sys.executable, "-c", code, "{address}")
    assert done.returncode == 41, done
    assert f"site ({scene.server.v4}): tcp/7000 open for {scene.client.v4}" in done.stderr
    assert done.stdout == ""
    record.line("connection.permitted", identity="alice", access="tcp/7000")
    assert scene.open_ports() == {"tcp/7000"}


def test_the_program_has_the_command_s_streams_and_the_address(scene: Scene) -> None:
    shell = 'read line; echo "$line $SPA_ADDRESS"'
    argv = [CLIENT, "exec", "-q", "site", "tcp/7000", "--", "sh", "-c", shell]
    done = scene.client.run(argv, env=scene.alice.env, text="hello\n")
    assert done.stdout == f"hello {scene.server.v4}\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("who", "arguments", "code", "said"),
    [
        ("bob", ("tcp/7000",), 1, "refused tcp/7000: no role allows it"),
        ("alice", ("tcp/7000", "tcp/7100"), 1, "refused tcp/7100: no role allows it"),
        ("stranger", ("tcp/7000", "--timeout", "0.5"), 3, "no answer from site"),
    ],
)
def test_without_a_grant_the_program_is_not_run(
    scene: Scene, who: str, arguments: tuple[str, ...], code: int, said: str
) -> None:
    people = {"alice": scene.alice, "bob": scene.bob}
    person = people.get(who) or scene.site.stranger()
    proof = scene.directory / f"ran-{who}"
    done = scene.run(
        "exec", "site", *arguments, "--close", "--", "touch", str(proof), person=person
    )
    assert done.returncode == code
    assert said in done.stderr
    assert not proof.exists()
    assert scene.open_ports() == set()


def test_a_program_that_is_not_there_is_not_knocked_for(scene: Scene, record: RecordSince) -> None:
    assert scene.run("exec", "site", "tcp/7000", "--", "no-such-program").returncode == 127
    assert scene.run("exec", "site", "tcp/7000", "--", str(scene.directory)).returncode == 126
    assert record.lines("knock.accepted") == []


def test_close_closes_when_the_program_ends(scene: Scene, record: RecordSince) -> None:
    for arguments, code in ((("true",), 0), (("sh", "-c", "kill -9 $$"), 137)):
        done = scene.run("exec", "site", "tcp/7000", "--close", "--", *arguments)
        assert done.returncode == code
        assert "tcp/7000 closed for" in done.stderr
        assert scene.open_ports() == set()
    record.line("close.asked", identity="alice")
    assert scene.client.reach_tcp(scene.server.v4, 7000) is Reach.SILENT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_is_passed_on_and_the_hole_closed(
    scene: Scene, number: signal.Signals
) -> None:
    shell = "trap 'echo told; exit 9' TERM HUP; echo ready; while :; do sleep 0.1; done"
    running = scene.start("exec", "site", "tcp/7000", "--close", "--", "sh", "-c", shell)
    running.wait_for("ready")
    os.kill(running.pid, number)
    assert running.process.wait(10) == 9
    assert "told" in running.output
    assert scene.open_ports() == set()


def test_ctrl_c_is_the_program_s_and_the_hole_is_closed(scene: Scene) -> None:
    shell = "trap 'echo typed; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    argv = [CLIENT, "exec", "site", "tcp/7000", "--close", "--", "sh", "-c", shell]
    terminal = Terminal(scene.client, argv, scene.alice.env)
    terminal.wait_for("ready")
    terminal.type("\x03")
    assert terminal.end() == 5
    assert "typed" in terminal.output
    assert "closed for" in terminal.output
    assert scene.open_ports() == set()


def test_hold_keeps_it_open_while_the_program_runs(scene: Scene, record: RecordSince) -> None:
    how = ("--lifetime", "5s", "--hold", "--close")
    running = scene.start("exec", "site", "tcp/7000", *how, "--", "sleep", "12")
    wait_until(scene.open_ports)
    time.sleep(8)
    assert scene.client.reach_tcp(scene.server.v4, 7000) is Reach.OPEN
    assert running.process.wait(10) == 0
    assert scene.open_ports() == set()
    assert len(record.lines("knock.accepted", identity="alice")) >= 3


@pytest.mark.skipif(not POSTGRES.exists(), reason="PostgreSQL is not installed")
def test_psql(scene: Scene) -> None:
    """The issue's own example: a database that nobody reaches, and one that is asked."""
    start_postgres(scene.server, scene.directory)
    ask = ("psql", "-h", "{address}", "-U", "postgres", "-Atc", "select 6 * 7", "postgres")
    done = scene.run("exec", "-q", "site", "tcp/5432", "--close", "--", *ask)
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
    forwarding = scene.forward("0:site:postgresql")
    local = ["psql", "-h", "localhost", "-p", str(forwarding.port), *ask[3:]]
    assert scene.client.run(local).stdout == "42\n"


def start_postgres(host: Host, directory: Path) -> None:
    """A PostgreSQL that trusts everybody who reaches it, run by the user whom it insists on."""
    (binaries,) = sorted(POSTGRES.glob("*/bin"))[-1:]
    home = directory / "postgres"
    home.mkdir()
    for each in (directory.parent, directory):
        each.chmod(0o755)
    shutil.chown(home, "postgres", "postgres")
    as_user = ["runuser", "-u", "postgres", "--"]
    data = home / "data"
    host.run([*as_user, binaries / "initdb", "-D", data, "--auth=trust", "--no-sync"], cwd=home)
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all all trust\n")
    options = ["-c", "listen_addresses=*", "-k", home, "-c", "fsync=off"]
    serving = host.start([*as_user, binaries / "postgres", "-D", data, *options], cwd=home)
    serving.wait_for("ready to accept connections", within_s=30)


# Both families, and loss


@pytest.mark.parametrize(("dead", "source"), [("ip6", 4), ("ip", 6), ("", 0)])
@pytest.mark.alone
def test_both_families_are_knocked_on_and_the_first_that_works_wins(
    scene: Scene, dead: str, source: int, record: RecordSince
) -> None:
    """Where one family is dead on the way, nobody waits for it."""
    with ExitStack() as stack:
        if dead:
            what = f"meta nfproto {'ipv6' if dead == 'ip6' else 'ipv4'} meta l4proto {{ tcp, udp }}"
            stack.enter_context(dropping(what, scene.server))
        begun = time.monotonic()
        argv = scene.named("connect", "-q", "both", "7000")
        done = scene.client.run(argv, env=scene.alice.env, text="hello")
        assert done.stdout == "hello", done
        assert time.monotonic() - begun < 2.5
        argv = scene.named("exec", "-q", "both", "tcp/7000", "--", "echo", "{address}")
        won = ip_address(scene.client.run(argv, env=scene.alice.env).stdout.strip())
    assert won.version == source or not source
    granted = {ip_address(line["source"]).version for line in record.lines("hole.opened")}
    assert granted == ({source} if source else {4, 6})


@pytest.mark.timeout(300)
def test_with_three_packets_in_ten_lost_each_way_everybody_connects(scene: Scene) -> None:
    """UDP and TCP alike, at both hosts. Seven of each, with an exchange behind it."""
    code = "import socket, sys; socket.create_connection((sys.argv[1], 7000), 20); print('in')"
    with losing(LOST_OF_A_HUNDRED, scene.server, scene.client):
        for _ in range(7):
            argv = [CLIENT, "connect", "-q", "--lifetime", "30s", "site", "7000"]
            done = scene.client.run(argv, env=scene.alice.env, text="hello", timeout=60)
            assert (done.returncode, done.stdout) == (0, "hello"), done
        for _ in range(7):
            command = ("--", sys.executable, "-c", code, "{address}")
            argv = [CLIENT, "exec", "-q", "--lifetime", "30s", "site", "tcp/7000", *command]
            done = scene.client.run(argv, env=scene.alice.env, timeout=60)
            assert (done.returncode, done.stdout) == (0, "in\n"), done


# forward


def test_forward_joins_connections_of_both_families(scene: Scene, record: RecordSince) -> None:
    forwarding = scene.forward("0:site:7000")
    for address in (LOCAL, LOCAL6):
        with forwarding.connect(address) as stream:
            wait_until(lambda s=stream: _is_connected(s))
            stream.sendall(b"hello")
            assert _received(stream, 5) == b"hello"
    record.line("connection.permitted", identity="alice", access="tcp/7000")
    assert scene.other.reach_tcp(scene.client.v4, forwarding.port) is Reach.REFUSED
    assert forwarding.end() == 0
    assert forwarding.running.output.count("\n") == 2


def test_forward_passes_on_each_end_of_a_stream(scene: Scene) -> None:
    """The server answers only behind the end of input; so the halves are closed one by one."""
    payload = os.urandom(3_000_000)
    forwarding = scene.forward("0:site:7001")
    with forwarding.connect() as stream:
        wait_until(lambda: _is_connected(stream))
        stream.sendall(payload)
        stream.shutdown(socket.SHUT_WR)
        assert _until_end(stream).decode() == hashlib.sha256(payload).hexdigest()


def test_forward_carries_a_hundred_connections_at_once(scene: Scene, record: RecordSince) -> None:
    """With few knocks, since a server hears no more than twenty a second."""
    forwarding = scene.forward("0:site:7000")
    failures: list[object] = []

    def talk(number: int) -> None:
        data = f"{number:05}".encode() * 2000
        try:
            if (back := forwarding.talk(data)) != data:
                failures.append(back)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(100)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"100 connections in {time.monotonic() - begun:.2f} s")
    assert failures == []
    assert 1 <= len(record.lines("knock.accepted")) <= 10


def test_forward_s_ctrl_c_cuts_what_is_joined_and_closes_if_asked(scene: Scene) -> None:
    argv = [CLIENT, "forward", "--close", "--lifetime", "1m", "0:site:7000"]
    terminal = Terminal(scene.client, argv, scene.alice.env)
    port = int(terminal.wait_for(" leads to").split(" leads to")[0].rpartition(":")[2])
    stream = scene.client.connection(LOCAL, port)
    stream.settimeout(10)
    wait_until(lambda: _is_connected(stream))
    stream.sendall(b"x")
    assert stream.recv(1) == b"x"
    assert scene.open_ports() == {"tcp/7000"}
    terminal.type("\x03")
    assert terminal.end() == 0
    with suppress(ConnectionResetError):
        assert stream.recv(1) == b""
    assert scene.client.reach_tcp(LOCAL, port) is Reach.REFUSED
    assert "closed for" in terminal.output
    assert scene.open_ports() == set()


def test_forward_breaks_off_only_what_it_cannot_reach(scene: Scene) -> None:
    forwarding = scene.forward("0:site:7002", "0:site:7100", "0:site:7000")
    wait_until(lambda: forwarding.running.output.count("leads to") == 6)
    lines = forwarding.running.output.splitlines()
    ports = [int(line.split(" leads to")[0].rpartition(":")[2]) for line in lines[::2]]
    for port in ports[:2]:
        stream = scene.client.connection(LOCAL, port)
        stream.settimeout(10)
        with pytest.raises(ConnectionResetError):
            stream.recv(1)
    output = forwarding.running.output
    assert "tcp/7002 is open, but connecting failed: connection refused" in output
    assert "refused tcp/7100: no role allows it" in output
    with scene.client.connection(LOCAL, ports[2]) as stream:
        stream.settimeout(10)
        wait_until(lambda: _is_connected(stream))
        stream.sendall(b"y")
        assert stream.recv(1) == b"y"


def test_forward_for_others(scene: Scene) -> None:
    """Only where it is asked for, and with a warning."""
    forwarding = scene.forward("*:0:site:7000")
    with scene.other.connection(scene.client.v4, forwarding.port) as stream:
        stream.settimeout(10)
        wait_until(lambda: _is_connected(stream))
        stream.sendall(b"z")
        assert stream.recv(1) == b"z"
    assert "others may reach 0.0.0.0:" in forwarding.running.output


def test_forward_where_the_port_is_taken(scene: Scene) -> None:
    forwarding = scene.forward("0:site:7000")
    second = scene.run("forward", f"{forwarding.port}:site:7000")
    assert second.returncode == 4
    assert f"cannot listen on 127.0.0.1:{forwarding.port}: address already in use" in second.stderr


def test_forward_once_opens_for_each_connection_alone(scene: Scene, record: RecordSince) -> None:
    forwarding = scene.forward("--once", "0:site:7000")
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(forwarding.talk())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"hello"] * 5
    assert len(record.lines("knock.accepted")) == 5
    assert scene.client.reach_tcp(scene.server.v4, 7000) is Reach.SILENT


def test_forward_survives_loss(scene: Scene) -> None:
    forwarding = scene.forward("--lifetime", "30s", "0:site:7000")
    with losing(LOST_OF_A_HUNDRED, scene.server, scene.client):
        for _ in range(5):
            assert forwarding.talk() == b"hello"


# hold


def holding(scene: Scene, *arguments: str, person: Person | None = None) -> Running:
    running = scene.start("hold", "site", *arguments, person=person)
    running.wait_for("renewed until Ctrl-C")
    return running


def sources(scene: Scene) -> list[str]:
    """Whom something is open for."""
    return [hole["source"] for hole in scene.site.holes()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_hold_renews_and_closes_in_the_end(scene: Scene, number: signal.Signals) -> None:
    running = holding(scene, "tcp/7000", "--lifetime", "5s")
    for _ in range(20):
        time.sleep(0.5)
        assert scene.client.reach_tcp(scene.server.v4, 7000) is Reach.OPEN
    begun = time.monotonic()
    assert running.stop(number) == 0
    assert time.monotonic() - begun < 2
    assert f"tcp/7000 closed for {scene.client.v4}" in running.output
    assert scene.open_ports() == set()
    assert scene.client.reach_tcp(scene.server.v4, 7000) is Reach.SILENT


def test_hold_counts_down_on_a_terminal(scene: Scene) -> None:
    argv = [CLIENT, "hold", "site", "tcp/7000", "--lifetime", "8s"]
    terminal = Terminal(scene.client, argv, scene.alice.env)
    shown = terminal.wait_for("renewed once")
    assert "\rsite: tcp/7000 8 s left, renewed 0 times; Ctrl-C closes it" in shown
    assert "\rsite: tcp/7000 5 s left, renewed 0 times" in shown
    terminal.type("\x03")
    assert terminal.end() == 0
    assert "tcp/7000 closed for" in terminal.output


def test_hold_closes_when_its_terminal_is_gone(scene: Scene) -> None:
    terminal = Terminal(scene.client, [CLIENT, "hold", "site", "tcp/7000"], scene.alice.env)
    terminal.wait_for("left, renewed")
    terminal.hang_up()
    terminal.process.wait(10)
    wait_until(lambda: not scene.open_ports(), within_s=1.5)
    record = [line["event"] for line in scene.site.audit("--limit", "5")]
    assert "hole.closed" in record


def test_hold_survives_lost_answers(scene: Scene) -> None:
    """The knocks arrive and only the answers do not: it is open all the while."""
    running = holding(scene, "tcp/7000", "--lifetime", "8s")
    with dropping(f"udp sport {DEFAULT_PORT}", scene.client):
        running.wait_for("not renewed: no answer; open for", within_s=20)
    running.wait_for("answered again; it is open", within_s=20)
    assert scene.client.reach_tcp(scene.server.v4, 7000) is Reach.OPEN
    assert "not open any more" not in running.output
    assert running.stop(signal.SIGINT) == 0
    assert scene.open_ports() == set()


def test_hold_outlives_a_server_that_is_gone_for_a_while(scene: Scene) -> None:
    running = holding(scene, "tcp/7000")
    with dropping(f"udp dport {DEFAULT_PORT}", scene.server):
        running.wait_for("not open any more: no answer; knocking goes on", within_s=20)
        assert scene.client.reach_tcp(scene.server.v4, 7000) is Reach.SILENT
    running.wait_for("answered again; it is open", within_s=20)
    assert scene.client.reach_tcp(scene.server.v4, 7000) is Reach.OPEN
    assert running.stop(signal.SIGINT) == 0
    assert scene.open_ports() == set()


def test_hold_follows_a_changed_network(scene: Scene) -> None:
    """The machine gets another address. What was open for the old one is closed."""
    roaming = scene.lab.host("roaming")
    old, new = roaming.v4, ip_address("10.77.1.200")
    argv = [CLIENT, "hold", "site", "tcp/7000", "--lifetime", "1h"]
    running = roaming.start(argv, env=scene.alice.env)
    running.wait_for("renewed until Ctrl-C")
    interface = roaming.on("lan").interface
    roaming.ip(f"address del {old}/24 dev {interface}")
    time.sleep(2)
    roaming.ip(f"address add {new}/24 dev {interface}")
    running.wait_for(f"this machine's address is {new} now ({old} before); knocking again")
    running.wait_for(f"the server sees this machine at {new} now ({old} before)")
    wait_until(lambda: str(old) not in sources(scene), what="the old hole to be closed")
    assert str(new) in sources(scene)
    assert roaming.reach_tcp(scene.server.v4, 7000) is Reach.OPEN
    assert running.stop(signal.SIGINT) == 0
    assert scene.open_ports() == set()


def test_hold_ends_clearly_when_it_is_refused(scene: Scene) -> None:
    guest = scene.site.enrol("guest", "guest")
    running = holding(scene, "tcp/7100", person=guest)
    scene.site.keys("ungrant", "guest", "guest")
    assert running.process.wait(10) == 1
    assert "refused tcp/7100: no role allows it" in running.output
    refused = scene.run("hold", "site", "tcp/7100", person=guest)
    assert refused.returncode == 1
    assert "renewed until" not in refused.stdout


def test_hold_says_when_nobody_answers_the_close(scene: Scene) -> None:
    running = holding(scene, "tcp/7000", "--timeout", "1")
    with dropping(f"udp sport {DEFAULT_PORT}", scene.client):
        os.killpg(running.pid, signal.SIGINT)
        assert running.process.wait(10) == 3
    assert "no answer from site" in running.output


def test_hold_that_is_never_answered_does_not_begin(scene: Scene) -> None:
    done = scene.run("hold", "site", "tcp/7000", "--timeout", "1", person=scene.site.stranger())
    assert done.returncode == 3
    assert "no answer from site" in done.stderr
