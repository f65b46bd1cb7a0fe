"""Closing a host on which people are working: nobody is thrown out, and nobody is locked out.

What is shortened so that a test need not wait for hours: in the server's namespace every timeout of
conntrack for TCP is a second, but for established connections, and what the gate remembers of
flows is deleted, as if its 30 s were over. An idle session must not live by any of these.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from integration.lab import Address, Host, Lab, Reach, wait_until
from integration.site import PROGRAMS, Person, Site
from integration.test_ssh import start_sshd

OLD_POLICY: Final = """
[services]
ssh = "tcp/22"
web = "tcp/80"
[roles.ops]
[[roles.ops.allow]]
services = ["ssh", "web"]
[[always_open]]
services = ["web"]
from = "anywhere"
"""
NEW_POLICY: Final = OLD_POLICY.partition("[[always_open]]")[0]
TCP_TIMEOUTS: Final = (
    "syn_sent",
    "syn_recv",
    "fin_wait",
    "close_wait",
    "last_ack",
    "time_wait",
    "close",
    "max_retrans",
    "unacknowledged",
)


class Shell:
    """A session of ssh, in which a command runs with pipes to and from the test."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self._in, self._out = process, process.stdin, process.stdout
        self.read = b""

    def hear(self, within_s: float = 2.0) -> bytes:
        """What it says next; nothing where it stays silent."""
        ready, _, _ = select.select([self._out], [], [], within_s)
        heard = os.read(self._out.fileno(), 65_536) if ready else b""
        self.read += heard
        return heard

    def echoes(self) -> bool:
        """Whether `cat` at the other end gives back what it is given."""
        with suppress(BrokenPipeError):
            self._in.write(b"still there?\n")
            self._in.flush()
        return self.hear() == b"still there?\n"

    def is_busy(self) -> bool:
        """Whether a command that writes all the time still does, after all that was on its way."""
        while self.hear(0) and len(self.read) < 1 << 20:
            pass
        return self.hear(1.0) != b""

    def wait_for(self, text: bytes) -> None:
        """Reads until the text has come."""
        deadline_s = time.monotonic() + 10
        while text not in self.read:
            self.hear(0.5)
            assert time.monotonic() < deadline_s, self.read
            assert self.process.poll() is None, self.read

    def end(self, by: signal.Signals = signal.SIGKILL) -> None:
        """Ends the ssh client."""
        self.process.send_signal(by)
        self.process.wait()
        self._in.close()
        self._out.close()


@dataclass
class Living:
    """A host with an sshd on which nothing was ever filtered, and somebody who works on it."""

    lab: Lab
    server: Host
    client: Host
    keys: Path
    shells: list[Shell] = field(default_factory=list)

    def ssh(self, *command: str, to: Address | None = None, terminal: bool = False) -> Shell:
        """A new session from the client."""
        options = ["-F", "none", "-i", str(self.keys / "user"), "-tt" if terminal else "-T"]
        for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes"):
            options += ["-o", option]
        with self.client.inside():
            process = subprocess.Popen(
                ["ssh", *options, f"root@{to or self.server.v4}", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
        shell = Shell(process)
        self.lab.at_end(lambda: shell.end() if process.poll() is None else None)
        return shell

    def working(self, to: Address | None = None) -> Shell:
        """A session that is idle unless it is asked something."""
        shell = self.ssh("cat", to=to)
        assert shell.echoes()
        return shell

    def ssh_is(self, reach: Reach) -> bool:
        """What a new connection to the sshd meets."""
        return self.client.reach_tcp(self.server.v4, 22) is reach

    def web_is(self, reach: Reach) -> bool:
        """What a new connection to the other service meets."""
        return self.client.reach_tcp(self.server.v4, 80) is reach


@pytest.fixture
def living() -> Iterator[Living]:
    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        keys = lab.new_file("ssh")
        keys.mkdir()
        start_sshd(server, keys)
        server.serve(80)
        wait_until(lambda: client.reach_tcp(server.v4, 22) is Reach.OPEN)
        yield Living(lab, server, client, keys)


def site_on(living: Living, policy: str = NEW_POLICY) -> tuple[Site, Person]:
    site = Site(living.lab, living.server, policy=policy)
    return site, site.enrol("alice", "ops")


def conntrack_knows(host: Host) -> int:
    """How many connections conntrack follows; it follows none until a rule needs it."""
    with host.inside():
        return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


# Sessions that are open


def test_sessions_that_conntrack_never_saw_live_on(living: Living) -> None:
    """Idle or busy, of both families, the ones that speak first and the ones that are spoken to."""
    server = living.server
    site, alice = site_on(living)
    server.sysctl(**{f"netfilter__nf_conntrack_tcp_timeout_{name}": 1 for name in TCP_TIMEOUTS})
    server.sysctl(netfilter__nf_conntrack_tcp_loose=0)
    idle, idle6 = living.working(), living.working(to=server.v6)
    busy = living.ssh("while :; do date; sleep 0.05; done")
    assert busy.is_busy()
    assert conntrack_knows(server) == 0

    said = site.server("gate", "apply").stderr
    assert "open sessions were made known to it and live on" in said
    assert living.ssh_is(Reach.SILENT)
    assert busy.is_busy()
    time.sleep(2.5)  # nobody says anything in these, for longer than any timeout that was shortened
    for name in ("flows4", "flows6"):
        server.run(["nft", "flush", "set", "inet", "spa", name])
    assert idle.echoes()
    assert idle6.echoes()
    assert busy.is_busy()
    listed = server.run(["nft", "list", "set", "inet", "spa", "holes4"]).stdout
    assert "elements" not in listed, "no hole is opened for a session"

    site.start()
    assert idle.echoes()
    alice.knock(living.client, "tcp/22")
    assert living.working().echoes()
    assert idle6.echoes()
    assert busy.is_busy()


def test_a_session_that_is_a_second_old_lives_on_when_the_gate_is_changed(living: Living) -> None:
    """The gate that stands is changed in place, under load."""
    site, alice = site_on(living)
    site.apply_gate()
    site.start()
    alice.knock(living.client, "tcp/22")
    busy, idle = living.ssh("while :; do date; sleep 0.01; done"), living.working()
    for policy in (OLD_POLICY, NEW_POLICY) * 3:
        site.write_policy(policy)
        site.apply_gate()
        assert busy.is_busy()
    assert idle.echoes()


# Confirming

daemon_or_not = pytest.mark.parametrize("with_daemon", [False, True], ids=["alone", "daemon"])


# Of 2 s, and of programs that start: how punctual it is, one test measures.
TRIAL_WITHIN_S: Final = 15.0


def trial_is_over(site: Site) -> Callable[[], bool]:
    return lambda: not (site.directory / "gate.pending").exists()


def test_a_gate_that_nobody_confirms_is_gone_in_time(living: Living) -> None:
    site, _ = site_on(living)
    idle = living.working()
    began_s = time.monotonic()
    said = site.server("gate", "apply", "--confirm-within", "2s").stderr
    applied_s = time.monotonic()
    assert "It is undone in 2 s unless you run: spa-server gate confirm" in said
    assert living.ssh_is(Reach.SILENT)
    assert idle.echoes()
    wait_until(lambda: living.ssh_is(Reach.OPEN))
    assert time.monotonic() > began_s + 1.5
    assert time.monotonic() < applied_s + 4
    assert living.server.run(["nft", "list", "ruleset"]).stdout == ""
    assert idle.echoes()
    assert site.server("gate", "show", check=False).returncode == 1
    late = site.server("gate", "confirm", check=False)
    assert (late.returncode, "no gate waits to be confirmed" in late.stderr) == (1, True)


def test_a_gate_that_is_confirmed_stays(living: Living) -> None:
    """And is what the next one goes back to, which nobody confirms."""
    site, alice = site_on(living)
    site.apply_gate("--confirm-within", "3s")
    began_s = time.monotonic()
    site.start()
    site.server("gate", "confirm")
    time.sleep(max(0, began_s + 3 - time.monotonic()))  # the way back would have been taken
    assert living.ssh_is(Reach.SILENT)
    assert living.web_is(Reach.SILENT)
    site.write_policy(OLD_POLICY)
    site.apply_gate("--confirm-within", "2s")
    assert living.web_is(Reach.OPEN)
    wait_until(trial_is_over(site), within_s=TRIAL_WITHIN_S)
    assert living.web_is(Reach.SILENT)
    alice.knock(living.client, "tcp/22")
    assert living.ssh_is(Reach.OPEN)


@daemon_or_not
def test_a_new_policy_that_nobody_confirms_gives_way_to_the_old_one(
    living: Living, with_daemon: bool
) -> None:
    """The old gate stands then, and the daemon, if one runs, decides by the old policy again."""
    site, alice = site_on(living, OLD_POLICY)
    site.apply_gate()
    old_gate = site.server("gate", "show").stdout
    if with_daemon:
        site.start()
    assert living.web_is(Reach.OPEN)
    site.write_policy(NEW_POLICY.replace('"ssh", "web"', '"web"'))
    site.apply_gate("--confirm-within", "3s")
    assert living.web_is(Reach.SILENT)
    if with_daemon:
        assert alice.knock(living.client, "tcp/22", check=False).returncode == 1
    wait_until(trial_is_over(site), within_s=TRIAL_WITHIN_S)
    wait_until(lambda: living.web_is(Reach.OPEN))
    assert living.ssh_is(Reach.SILENT)
    assert without_counts(site.server("gate", "show").stdout) == without_counts(old_gate)
    if with_daemon:
        alice.knock(living.client, "tcp/22")
        assert living.ssh_is(Reach.OPEN)


def test_a_daemon_that_began_during_the_trial_goes_back_to_the_old_gate_too(living: Living) -> None:
    """It never knew the old policy: it holds the gate that stood then until it is reloaded."""
    site, alice = site_on(living, OLD_POLICY)
    site.apply_gate()
    site.write_policy(NEW_POLICY)
    site.apply_gate("--confirm-within", "3s")
    site.start()
    assert living.web_is(Reach.SILENT)
    wait_until(trial_is_over(site), within_s=TRIAL_WITHIN_S)
    assert living.web_is(Reach.OPEN)
    assert living.ssh_is(Reach.SILENT)
    living.server.run(["nft", "flush", "ruleset"])
    wait_until(lambda: living.ssh_is(Reach.SILENT))
    assert living.web_is(Reach.OPEN)
    alice.knock(living.client, "tcp/22")
    site.server("reload")
    assert living.web_is(Reach.SILENT)


def without_counts(ruleset: str) -> str:
    return "\n".join(line for line in ruleset.splitlines() if "packets" not in line)


@daemon_or_not
def test_a_second_trial_goes_back_to_what_was_before_the_first(
    living: Living, with_daemon: bool
) -> None:
    """Two gates that nobody confirmed are no reason to keep one of them."""
    site, _ = site_on(living, OLD_POLICY)
    if with_daemon:
        site.apply_gate()
        site.start()
    site.write_policy(NEW_POLICY)
    site.apply_gate("--confirm-within", "60s")
    site.apply_gate("--confirm-within", "2s")
    assert living.web_is(Reach.SILENT)
    wait_until(trial_is_over(site), within_s=TRIAL_WITHIN_S)
    wait_until(lambda: living.web_is(Reach.OPEN), what="the gate of before, or none")
    assert living.ssh_is(Reach.SILENT if with_daemon else Reach.OPEN)


def test_a_gate_that_is_removed_while_it_is_on_trial_does_not_come_back(living: Living) -> None:
    site, _ = site_on(living, OLD_POLICY)
    site.apply_gate()
    site.start()
    site.apply_gate("--confirm-within", "2s")
    site.server("gate", "remove", "--yes")
    time.sleep(2.2)  # until the way back would have been taken
    assert living.ssh_is(Reach.OPEN)
    assert living.server.run(["nft", "list", "ruleset"]).stdout == ""


def test_a_gate_that_was_removed_is_applied_again_under_a_daemon(living: Living) -> None:
    """The daemon that runs does not know yet that it is wanted."""
    site, alice = site_on(living)
    site.apply_gate()
    site.start()
    site.server("gate", "remove", "--yes")
    wait_until(lambda: site.events("gate.removed"))
    assert living.ssh_is(Reach.OPEN)
    site.apply_gate()
    assert living.ssh_is(Reach.SILENT)
    alice.knock(living.client, "tcp/22")
    assert living.ssh_is(Reach.OPEN)


def test_the_way_back_outlives_the_operator_s_session(living: Living) -> None:
    """The operator works over ssh, at a terminal, and is cut off before anything is confirmed.

    The shell in that terminal and what it started are hung up. The gate goes all the same.
    """
    site, _ = site_on(living)
    apply = f"{PROGRAMS}/spa-server --config {site.config} gate apply --confirm-within 3s"
    mark = living.lab.new_file("session")
    operator = living.ssh(f"echo $$ > {mark}; {apply}; cat", terminal=True)
    operator.wait_for(b"It is undone in 3 s")
    assert living.ssh_is(Reach.SILENT)
    session = Path("/proc", mark.read_text().strip())
    assert session.exists()
    operator.end()
    wait_until(lambda: not session.exists(), what="the session to be hung up")
    assert living.ssh_is(Reach.SILENT)
    wait_until(lambda: living.ssh_is(Reach.OPEN), what="the gate to be taken back")


def test_the_way_back_outlives_a_hangup_of_everything_the_operator_started(living: Living) -> None:
    """SIGHUP and SIGTERM to the process group, while the command still runs or just after."""
    site, _ = site_on(living)
    program = (PROGRAMS / "spa-server", "--config", site.config)
    applying = living.server.start([*program, "gate", "apply", "--confirm-within", "2s"])
    wait_until((site.directory / "gate.pending").exists)
    with suppress(ProcessLookupError):
        os.killpg(applying.pid, signal.SIGHUP)
        os.killpg(applying.pid, signal.SIGTERM)
    wait_until(trial_is_over(site), within_s=TRIAL_WITHIN_S)
    wait_until(lambda: living.ssh_is(Reach.OPEN))
    assert living.server.run(["nft", "list", "ruleset"]).stdout == ""


# What an operator asks


@dataclass
class Asking:
    """A host whose operator looks before leaping."""

    site: Site
    server: Host
    client: Host
    alice: Person

    def ask(self, *arguments: str, exit_code: int = 0) -> str:
        """What `spa-server` prints."""
        done = self.site.server(*arguments, check=False)
        assert done.returncode == exit_code, done.stderr
        assert done.stderr == ""
        return done.stdout

    def ask_json(self, *arguments: str, exit_code: int = 0) -> Any:
        """The same for programs."""
        return json.loads(self.ask(*arguments, "--json", exit_code=exit_code))

    def findings(self) -> list[str]:
        """The names of what `check` finds."""
        of_no_matter = ("daemon-not-running", "role-unused", "rule-without-listener")
        ignored = [option for name in of_no_matter for option in ("--ignore", name)]
        done = self.site.server("check", "--json", *ignored, check=False)
        names = [finding["name"] for finding in json.loads(done.stdout)]
        assert done.returncode == (1 if names else 0)
        return names


ASKED: Final = """
[services]
ssh = "tcp/22"
[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
from = ["10.77.0.0/16"]
lifetime = "30s"
max_lifetime = "1h"
[roles.clerk]
"""


@pytest.fixture(scope="module")
def asking() -> Iterator[Asking]:
    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        site = Site(lab, server, policy=ASKED)
        alice = Person("alice", site, lab.new_file("home-alice"))
        yield Asking(site, server, client, alice)


def test_check_goes_with_the_operator_from_nothing_to_a_sound_host(asking: Asking) -> None:
    site = asking.site
    assert asking.findings() == ["nobody-enrolled", "gate-not-loaded"]
    told = asking.ask("check", exit_code=1).splitlines()
    assert told[0].startswith("error: nobody-enrolled: no key is enrolled")
    assert "  -> spa-keys invite IDENTITY --role ROLE; who was invited has yet to join" in told
    site.enrol_key("alice", asking.alice.generate(), "clerk")
    assert asking.findings() == ["nobody-reaches-ssh", "gate-not-loaded"]
    site.write_policy(ASKED + "[roles.oops]\n")
    site.keys("grant", "alice", "oops")
    site.write_policy(ASKED)
    assert asking.findings() == ["nobody-reaches-ssh", "gate-not-loaded", "unknown-role"]
    site.keys("ungrant", "alice", "oops")
    site.keys("grant", "alice", "ops")
    assert asking.findings() == ["gate-not-loaded"]
    site.apply_gate("--confirm-within", "60s")
    assert asking.findings() == ["gate-not-confirmed"]
    site.server("gate", "confirm")
    assert asking.findings() == []
    assert asking.ask("check", "--only", "gate-not-confirmed") == "nothing found\n"


def test_explain_says_why_a_knock_would_be_granted(asking: Asking) -> None:
    said = asking.ask("explain", "alice", "tcp/22", "--from", "10.77.1.2", "--lifetime", "2h")
    first, *more = said.splitlines()
    assert first.startswith("alice (roles: clerk, ops) may reach tcp/22 from 10.77.1.2 at ")
    assert first.endswith(
        f": allowed by roles.ops.allow[0] ({asking.site.directory}/policy.toml:5) for 1h"
    )
    assert "  why 1h: that is the most that the rule gives; 2h is asked for" in more
    once = asking.ask("explain", "alice", "tcp/22", "--from", "10.77.1.2", "--once")
    assert once.splitlines()[0].endswith(" for 30s, for one connection")
    granted = asking.ask_json("explain", "alice", "tcp/22", "--from", "10.77.1.2")
    names = ("identity", "roles", "granted", "code", "rule", "line", "lifetime_s", "once", "near")
    assert {name: granted[name] for name in names} == {
        "identity": "alice",
        "roles": ["clerk", "ops"],
        "granted": True,
        "code": "granted",
        "rule": "roles.ops.allow[0]",
        "line": 5,
        "lifetime_s": 30,
        "once": False,
        "near": [],
    }


def test_explain_says_what_came_near_where_it_would_be_refused(asking: Asking) -> None:
    question = ("explain", "alice", "tcp/22", "--from", "192.0.2.9")
    first, second, third = asking.ask(*question, exit_code=1).splitlines()
    assert first.startswith("alice (roles: clerk, ops) may not reach tcp/22 from 192.0.2.9 at ")
    assert first.endswith(": not allowed from this source")
    condition = "only from 10.77.0.0/16, not 192.0.2.9"
    assert second == f"  roles.ops.allow[0] ({asking.site.directory}/policy.toml:5): {condition}"
    assert third == f'  the client is told: "{condition}"'
    refused = asking.ask_json(*question, exit_code=1)
    assert (refused["granted"], refused["rule"], refused["lifetime_s"]) == (False, None, 0)
    assert [(near["rule"], near["condition"]) for near in refused["near"]] == [
        ("roles.ops.allow[0]", condition)
    ]
    nothing_near = asking.ask("explain", "alice", "tcp/23", "--from", "10.77.1.2", exit_code=1)
    assert nothing_near.splitlines()[0].endswith(": no role allows it")
    assert nothing_near.endswith("  no rule of any role covers tcp/23\n")
    unknown = asking.site.server("explain", "carol", "tcp/22", "--from", "10.77.1.2", check=False)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "spa-server: there is no identity 'carol'; see: spa-keys list\n"


def test_explain_and_the_daemon_are_of_one_mind(asking: Asking) -> None:
    """The same question as a knock."""
    asking.site.start()
    for access, exit_code in (("tcp/22", 0), ("tcp/23", 1)):
        source = str(asking.client.v4)
        asking.ask("explain", "alice", access, "--from", source, exit_code=exit_code)
        knock = asking.alice.knock(asking.client, access, check=False)
        assert knock.returncode == exit_code
    asking.site.close_everything()


def test_inspect_tells_what_became_of_the_knocks_in_a_capture(asking: Asking) -> None:
    """Recorded by tcpdump on the server's interface while people knock, and looked at later."""
    site, server, client = asking.site, asking.server, asking.client
    file = site.lab.new_file("knocks.pcap")
    only = "udp and dst port 62201 and dst host " + str(server.v4)
    tcpdump = server.start(["tcpdump", "-U", "-Z", "root", "-i", "lan", "-w", file, only])
    tcpdump.wait_for("listening on")
    mallory = site.stranger()
    asking.alice.knock(client, "tcp/22")
    asking.alice.knock(client, "tcp/23", check=False)
    mallory.knock(client, "tcp/22", "--no-reply")
    with client.inside():
        sender = client.new_socket(2, 2)
        sender.sendto(b"\0" * 240, (str(server.v4), 62201))
        sender.sendto(b"junk", (str(server.v4), 62201))
    wait_until(lambda: len(asking.ask("inspect", str(file)).splitlines()) == 6)
    tcpdump.stop(signal.SIGINT)

    granted, refused, *others = asking.ask("inspect", str(file)).splitlines()
    assert f"{client.v4} -> {server.v4}  accepted" in granted
    assert "alice  tcp/22: allowed by roles.ops.allow[0] for 30 s" in granted
    assert "refused" in refused
    assert "tcp/23: no role allows it" in refused
    # The stranger's knock, who wants no reply, also under a spare tag; and what was sent by hand.
    assert [line.split("  ")[2] for line in others] == ["unknown-key"] * 3 + ["malformed"]
    assert all("a stranger" in line for line in others)

    lines = [json.loads(line) for line in asking.ask("inspect", str(file), "--json").splitlines()]
    assert [line["verdict"] for line in lines] == [
        "accepted",
        "refused",
        *["unknown-key"] * 3,
        "malformed",
    ]
    assert (lines[0]["identity"], lines[0]["kind"]) == ("alice", "knock")
    assert lines[0]["key_id"] == asking.alice.key_id()
    assert site.holes() != []


def test_inspect_changes_nothing(asking: Asking) -> None:
    """Not the record, not the holes, not what is remembered of knocks."""
    file = asking.site.lab.new_file("twice.pcap")
    before = (asking.site.audit(), asking.site.status()["remembered"])
    tcpdump = asking.server.start(
        ["tcpdump", "-U", "-Z", "root", "-i", "lan", "-w", file, "-c", "1", "udp dst port 62201"]
    )
    tcpdump.wait_for("listening on")
    asking.alice.knock(asking.client, "tcp/23", check=False)
    wait_until(lambda: tcpdump.process.poll() is not None)
    middle = (asking.site.audit(), asking.site.status()["remembered"])
    assert middle != before
    first = asking.ask("inspect", str(file))
    assert asking.ask("inspect", str(file)) == first
    assert (asking.site.audit(), asking.site.status()["remembered"]) == middle
