"""`spa-server check` on real hosts: what does not fit is found under its name, and nothing else."""

import ctypes
import json
import os
import shutil
import socket
import struct
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from integration.lab import Host, Lab, Reach, Running, wait_until
from integration.site import Site
from integration.test_unprivileged import AS_THE_DAEMON, UID, passage
from spa_server import netlink

Found = list[tuple[str, str]]

POLICY: Final = """
[services]
ssh = "tcp/22"
web = "tcp/80"
[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
[[always_open]]
services = ["web"]
from = "anywhere"
"""
LISTEN: Final = """
import socket, sys, time
with socket.create_server(("", int(sys.argv[1]))):
    print("listening", flush=True)
    time.sleep(1000)
"""
FIND_DRIFT: Final = """
import json, sys
from pathlib import Path
from spa_server.alignment.drift import find_drift
from spa_server.config import load_config
from spa_server.firewall.kernel import Gate
from spa_server.policy.load import load_policy
config = load_config(Path(sys.argv[1]))
planned = Gate().ruleset() if sys.argv[2:] else None
found = find_drift(config, load_policy(config.policy), planned=planned)
print(json.dumps([(one.name, one.subject) for one in found]))
"""


@dataclass
class Scene:
    """A guarded server on which everything fits, and a client."""

    lab: Lab
    site: Site
    server: Host
    client: Host

    def check(self, *arguments: str) -> Found:
        """Name and subject of what `check` finds; its exit status must go with them."""
        done = self.site.server("check", "--json", *arguments, check=False)
        assert done.stderr == ""
        told: list[dict[str, Any]] = json.loads(done.stdout)
        assert done.returncode == any(one["severity"] != "note" for one in told)
        assert all(one["what"] and one["advice"] for one in told)
        return [(one["name"], one["subject"]) for one in told]

    def what(self, name: str) -> str:
        """The words of the one finding of a name."""
        done = self.site.server("check", "--json", "--only", name, check=False)
        (told,) = json.loads(done.stdout)
        return str(told["what"])

    def nft(self, script: str) -> None:
        """Loads a script on the server."""
        self.server.run(["nft", "-f", "-"], text=textwrap.dedent(script))

    @contextmanager
    def table(self, name: str, script: str) -> Iterator[None]:
        """A table of somebody else's for as long as the block lasts."""
        self.nft(script)
        try:
            yield
        finally:
            self.server.run(["nft", "delete", "table", *name.split()])

    @contextmanager
    def listening(self, port: int, *prefix: str) -> Iterator[Running]:
        """A program that listens on a port."""
        running = self.server.start([*prefix, sys.executable, "-c", LISTEN, str(port)])
        try:
            running.wait_for("listening")
            yield running
        finally:
            running.stop()

    @contextmanager
    def no_daemon(self) -> Iterator[None]:
        """While it does not run, nobody puts the gate right."""
        self.site.stop()
        try:
            yield
        finally:
            self.site.apply_gate()
            self.site.start()


def listen(host: Host, port: int) -> socket.socket:
    made = host.new_socket(socket.AF_INET6, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("::", port))
    made.listen()
    return made


@pytest.fixture(scope="module")
def module_scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        site = Site(lab, server, policy=POLICY)
        site.enrol("alice", "ops")
        for port in (22, 80):
            listen(server, port)
        site.apply_gate()
        site.start()
        yield Scene(lab, site, server, client)


@pytest.fixture
def scene(module_scene: Scene) -> Iterator[Scene]:
    """Each test leaves the host as it found it, and nothing is found any more."""
    yield module_scene
    assert module_scene.check() == []


def test_on_a_well_kept_host_nothing_is_found(scene: Scene) -> None:
    assert scene.site.server("check").stdout == (
        "nothing found: policy, registry, gate and host fit together\n"
    )


# The gate


def test_a_gate_that_was_edited_by_hand(scene: Scene) -> None:
    """A running daemon puts it right at once."""
    with scene.no_daemon():
        assert scene.check() == [("daemon-not-running", "daemon")]
        scene.server.run(["nft", "insert", "rule", "inet", "spa", "judge", "tcp dport 4444 accept"])
        assert scene.check() == [("gate-differs", "gate"), ("daemon-not-running", "daemon")]
        assert scene.what("gate-differs").endswith("chain judge has 'tcp dport 4444 accept'")
        # Behind the gate stands the backstop: what the rule lets by bears no mark.
        assert scene.client.reach_tcp(scene.server.v4, 4444) is Reach.SILENT


def test_a_chain_of_somebody_else_s_in_the_gate_s_own_table(scene: Scene) -> None:
    with scene.no_daemon():
        scene.nft(
            """
            table inet spa {
              chain mine {
                type filter hook prerouting priority -151;
                tcp dport 4444 accept
              }
            }
            """
        )
        assert ("gate-differs", "gate") in scene.check()
        scene.server.run(["nft", "delete", "chain", "inet", "spa", "mine"])
        assert scene.check("--ignore", "daemon-not-running") == []


def test_counters_and_holes_make_no_difference(scene: Scene) -> None:
    """What the gate has counted, heard and denied is not what it is."""
    for port in range(5000, 5010):
        assert scene.client.reach_tcp(scene.server.v4, port, within_s=0.05) is Reach.SILENT
    assert int(scene.site.status()["knocks_rejected"]) == 0
    with scene.client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as junk:
        junk.sendto(b"junk", (str(scene.server.v4), 62201))
    wait_until(lambda: int(scene.site.status()["knocks_rejected"]) > 0)
    assert scene.check() == []


def test_a_gate_that_is_gone(scene: Scene) -> None:
    """Without the daemon; with it, it would be back before anybody looks."""
    with scene.no_daemon():
        scene.server.run(["nft", "delete", "table", "inet", "spa"])
        assert scene.check() == [("gate-not-loaded", "gate")]


def test_a_policy_that_was_written_and_not_reloaded(scene: Scene) -> None:
    """In the gate itself stands only what is always open and what is cut."""
    scene.site.write_policy(POLICY + "[roles.ops.limits]\nmax_open = 3\n")
    assert scene.check() == [("policy-not-in-force", "policy.toml")]
    scene.site.write_policy(POLICY.replace('"anywhere"', '["10.0.0.0/8"]'))
    assert scene.check() == [("gate-differs", "gate"), ("policy-not-in-force", "policy.toml")]
    scene.site.server("reload")
    assert scene.check() == []
    scene.site.write_policy(POLICY)
    scene.site.server("reload")


def test_a_gate_that_only_observes_says_so(scene: Scene) -> None:
    config = scene.site.config.read_text()
    with scene.no_daemon():
        scene.site.config.write_text(config + 'observe = ["ssh"]\n')
        assert ("gate-differs", "gate") in scene.check()
        scene.site.apply_gate()
        assert scene.check("--ignore", "daemon-not-running") == [("gate-observes", "gate")]
        scene.site.config.write_text(config)


def test_a_configuration_that_was_changed_after_the_daemon_read_it(scene: Scene) -> None:
    """A comment is no change."""
    if "config_is_current" not in scene.site.status():
        pytest.skip("this daemon does not tell")
    config = scene.site.config.read_text()
    scene.site.config.write_text(config + "# a comment\n")
    assert scene.check() == []
    scene.site.config.write_text(config + 'freshness = "31s"\n')
    assert scene.check() == [("config-changed", "server.toml")]
    scene.site.config.write_text(config)


# Listeners


def test_a_listener_that_no_rule_leads_to(scene: Scene) -> None:
    """A note: closed is how a port should be."""
    with scene.listening(8080) as program:
        assert scene.check() == [("listening-unreachable", "tcp/8080")]
        what = scene.what("listening-unreachable")
        assert f"(pid {program.pid}, user 0) listens on tcp/8080" in what
        assert scene.client.reach_tcp(scene.server.v4, 8080) is Reach.SILENT
        assert scene.check("--ignore", "listening-unreachable") == []


@pytest.mark.parametrize("protocol", ["udp", "sctp"])
def test_a_listener_of_another_protocol(scene: Scene, protocol: str) -> None:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    number = 0 if protocol == "udp" else socket.IPPROTO_SCTP
    try:
        listening = scene.server.new_socket(socket.AF_INET, kind, number)
    except OSError:
        pytest.skip(f"this kernel has no {protocol}")
    with listening:
        listening.bind(("", 8080))
        if protocol == "sctp":
            listening.listen()
        assert scene.check() == [("listening-unreachable", f"{protocol}/8080")]


def test_a_listener_on_loopback_is_nobody_s_business(scene: Scene) -> None:
    with scene.server.new_socket(socket.AF_INET, socket.SOCK_STREAM) as local:
        local.bind(("127.0.0.1", 8080))
        local.listen()
        assert scene.check() == []


def test_rules_that_lead_to_nobody(scene: Scene) -> None:
    policy = (
        POLICY
        + '[[roles.ops.allow]]\nservices = ["db"]\n'
        + '[[always_open]]\nservices = ["mail"]\nfrom = "anywhere"\n'
    )
    services = '[services]\ndb = "tcp/5432"\nmail = "tcp/25"'
    scene.site.write_policy(policy.replace("[services]", services))
    scene.site.server("reload")
    assert scene.check() == [
        ("rule-without-listener", "tcp/5432"),
        ("always-open-unused", "tcp/25"),
    ]
    with scene.listening(5432), scene.listening(25):
        assert scene.check() == []
    scene.site.write_policy(POLICY)
    scene.site.server("reload")


def test_a_listener_that_changed_its_owner(scene: Scene) -> None:
    """It is found until somebody says that it is right."""
    other = shutil.which("setpriv")
    if other is None:
        pytest.skip("setpriv is not installed")
    policy = POLICY.replace('web = "tcp/80"', 'web = ["tcp/80", "tcp/8443"]')
    scene.site.write_policy(policy)
    scene.site.server("reload")
    as_daemon = (*passage(scene.lab), other, f"--reuid={UID}", "--clear-groups")
    with scene.listening(8443):
        assert scene.check() == []
    with scene.listening(8443, *as_daemon):
        for _ in range(2):
            assert scene.check() == [("listener-changed", "tcp/8443")]
        what = scene.what("listener-changed")
        assert f"(user {UID}) listens on tcp/8443; before, it was" in what
        assert "(user 0)" in what
        assert scene.check("--accept", "tcp/443") == [("listener-changed", "tcp/8443")]
        scene.check("--accept", "tcp/8443")
        assert scene.check() == []
    with scene.listening(8443):
        assert scene.check() == [("listener-changed", "tcp/8443")]
        scene.check("--accept", "tcp/8443")
    scene.site.write_policy(POLICY)
    scene.site.server("reload")


def test_a_port_that_is_always_open_and_that_nobody_uses(scene: Scene) -> None:
    """Where the rules count, and zero is all that was seen for a week."""
    kept = scene.site.directory / "alignment.json"
    with scene.no_daemon():
        scene.nft(
            """
            flush chain inet spa always_open
            table inet spa {
              chain always_open {
                meta nfproto ipv4 tcp dport 80 counter accept
                meta nfproto ipv6 tcp dport 80 counter accept
              }
            }
            """
        )
        asked = ("--only", "always-open-unused")
        assert scene.check(*asked) == []
        memory = json.loads(kept.read_text())
        first_seen_us = memory["unused_since_us"]["tcp/80"]
        assert abs(first_seen_us / 1_000_000 - time.time()) < 60
        memory["unused_since_us"]["tcp/80"] -= 7 * 86_400_000_000
        kept.write_text(json.dumps(memory))
        assert scene.check(*asked) == [("always-open-unused", "tcp/80")]
        assert scene.client.reach_tcp(scene.server.v6, 80) is Reach.OPEN
        assert scene.check(*asked) == []
        assert json.loads(kept.read_text())["unused_since_us"] == {}


def test_what_cannot_be_remembered_is_said_and_left_as_it_is(scene: Scene) -> None:
    kept = scene.site.directory / "alignment.json"
    before = kept.read_text()
    kept.write_text("{")
    assert scene.check() == [("not-checked", "alignment.json")]
    assert kept.read_text() == "{"
    kept.write_text(before)


# Others


def test_an_earlier_chain_that_accepts_opens_nothing(scene: Scene) -> None:
    table = """
        table inet other {
          chain early {
            type filter hook prerouting priority -400; policy accept;
            tcp dport 8080 accept
          }
        }
        """
    with scene.table("inet other", table), scene.listening(8080):
        assert scene.check("--ignore", "listening-unreachable") == [
            ("earlier-hook", "inet other early")
        ]
        assert scene.client.reach_tcp(scene.server.v4, 8080) is Reach.SILENT


def test_an_earlier_chain_that_rewrites_opens_what_no_rule_opens(scene: Scene) -> None:
    """The gate sees port 80, which is always open."""
    table = """
        table ip other {
          chain early {
            type filter hook prerouting priority -400;
            tcp dport 8080 tcp dport set 80
          }
          chain late {
            type filter hook postrouting priority 400;
            tcp sport 80 tcp sport set 8080
          }
        }
        """
    with scene.table("ip other", table):
        assert scene.check() == [("earlier-rewrite", "ip other early")]
        assert scene.client.reach_tcp(scene.server.v4, 8080) is Reach.OPEN
    assert scene.client.reach_tcp(scene.server.v4, 8080) is Reach.SILENT


def test_nat_opens_nothing_whatever_its_priority(scene: Scene) -> None:
    """The kernel translates destinations at -100: after the gate."""
    table = """
        table ip other {
          chain early {
            type nat hook prerouting priority -190;
            tcp dport 8080 redirect to :80
          }
        }
        """
    with scene.table("ip other", table):
        assert scene.check() == []
        assert scene.client.reach_tcp(scene.server.v4, 8080) is Reach.SILENT


@pytest.mark.parametrize(
    ("hook", "rules", "expected"),
    [
        ("prerouting priority raw", "tcp dport 80 notrack", "earlier-notrack"),
        ("prerouting priority -400", "ip saddr 192.0.2.1 drop", "other-drops"),
        ("input priority filter; policy drop", "tcp dport 22 accept", "another-firewall"),
        ("input priority filter", "tcp dport 22 accept; counter reject", "another-firewall"),
        ("input priority filter", "ip saddr 192.0.2.1 drop", "other-drops"),
        ("forward priority filter; policy drop", "accept", "other-drops"),
        ("ingress device lan priority 0", "ip saddr 192.0.2.1 fwd to lan", "ingress-redirect"),
        ("prerouting priority mangle + 1", "accept", None),
        ("postrouting priority filter", "accept", None),
    ],
)
def test_other_chains(scene: Scene, hook: str, rules: str, expected: str | None) -> None:
    family = "netdev" if "ingress" in hook else "inet"
    lines = "\n".join(f"    {rule.strip()}" for rule in rules.split(";"))
    table = (
        f"table {family} other {{\n  chain c {{\n    type filter hook {hook};\n{lines}\n  }}\n}}"
    )
    with scene.table(f"{family} other", table):
        assert scene.check() == ([(expected, f"{family} other c")] if expected else [])


def test_a_flowtable(scene: Scene) -> None:
    table = """
        table inet other {
          flowtable ft { hook ingress priority 0; devices = { lan }; }
          chain c {
            type filter hook forward priority 0;
            flow add @ft
          }
        }
        """
    done = scene.server.run(["nft", "-f", "-"], text=textwrap.dedent(table), check=False)
    if done.returncode:
        pytest.skip(f"this kernel has no flowtables: {done.stderr.splitlines()[0]}")
    try:
        assert scene.check() == [("flowtable", "inet other ft")]
    finally:
        scene.server.run(["nft", "delete", "table", "inet", "other"])


IPTABLES: Final = [
    ("-t raw -A PREROUTING -p tcp --dport 33 -j CT --notrack", "earlier-notrack"),
    ("-t raw -A PREROUTING -p tcp --dport 33 -j NFQUEUE --queue-num 3", "earlier-queue"),
    ("-t raw -A PREROUTING -p tcp --dport 33 -j ACCEPT", "earlier-hook"),
    ("-A INPUT -p tcp --dport 33 -j REJECT", "other-drops"),
    ("-A INPUT -j DROP", "another-firewall"),
    ("-A FORWARD -j DROP", "other-drops"),
    ("-A INPUT -p tcp --dport 33 -j ACCEPT", None),
    ("-t nat -A POSTROUTING -j MASQUERADE", None),
]


@pytest.mark.parametrize(("rule", "expected"), IPTABLES)
def test_rules_of_iptables(scene: Scene, rule: str, expected: str | None) -> None:
    """In the kernel they are nftables' rules, with words of their own."""
    if shutil.which("iptables-nft") is None:
        pytest.skip("iptables-nft is not installed")
    if scene.server.run(["iptables-nft", *rule.split()], check=False).returncode:
        pytest.skip("this kernel has no such target")
    scene.server.run(["ip6tables-nft", *rule.split()])
    try:
        assert {name for name, _ in scene.check()} == ({expected} if expected else set())
        assert len(scene.check()) == (2 if expected else 0)
    finally:
        for table in _tables(scene.server) - {"inet spa", "inet spa_backstop"}:
            scene.server.run(["nft", "delete", "table", *table.split()])


def _tables(host: Host) -> set[str]:
    listed = host.run(["nft", "list", "tables"]).stdout.splitlines()
    return {line.removeprefix("table ") for line in listed}


@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
def test_rules_that_nft_does_not_show(scene: Scene, program: str) -> None:
    """A table that is there and empty is no finding: it cannot be taken away."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    rule = ["INPUT", "-p", "tcp", "--dport", "33", "-j", "ACCEPT"]
    if scene.server.run([program, "-A", *rule], check=False).returncode:
        pytest.skip("this kernel has no such tables")
    assert scene.check() == [("iptables-legacy", f"{program.removesuffix('-legacy')} filter")]
    scene.server.run([program, "-D", *rule])
    assert scene.check() == []


def test_tc_at_ingress(scene: Scene) -> None:
    """What hangs at an interface comes before every chain; an empty qdisc does nothing."""
    if shutil.which("tc") is None:
        pytest.skip("tc is not installed")

    def tc(command: str) -> bool:
        return scene.server.run(["tc", *command.split()], check=False).returncode == 0

    if not tc("qdisc add dev lan clsact"):
        pytest.skip("this kernel has no clsact")
    try:
        assert scene.check() == []
        if not tc("filter add dev lan ingress u32 match u32 0 0 flowid 1:1"):
            pytest.skip("this kernel has no u32")
        assert scene.check() == [("tc-ingress", "lan")]
    finally:
        assert tc("qdisc delete dev lan clsact")


def test_an_xdp_program(scene: Scene) -> None:
    with scene.server.inside():
        attach_xdp(socket.if_nametoindex("lan"), load_xdp())
    assert scene.check() == [("xdp-program", "lan")]
    with scene.server.inside():
        attach_xdp(socket.if_nametoindex("lan"), -1)


def test_a_bridge_between_the_world_and_other_machines(scene: Scene) -> None:
    server = scene.server
    server.ip("link add br0 type bridge", "link set br0 up", "address add 192.0.2.1/24 dev br0")
    for port in ("vnet1", "vnet2"):
        server.ip(
            f"link add {port} type veth peer name {port}-guest", f"link set {port} master br0 up"
        )
    server.ip("route add default via 192.0.2.2")
    wait_until(
        lambda: 'iifname "br0"' in server.run(["nft", "list", "table", "inet", "spa"]).stdout
    )
    calls = "bridge__bridge-nf-call-iptables"
    try:
        server.sysctl(**{calls: 1})
        assert scene.check() == []
        server.sysctl(**{calls: 0})
        assert scene.check() == [("bridge-unjudged", "br0")]
    except FileNotFoundError:  # a kernel without br_netfilter judges no bridge
        assert scene.check() == [("bridge-unjudged", "br0")]
    finally:
        server.ip("link delete br0", "link delete vnet1", "link delete vnet2")
    wait_until(lambda: "br0" not in server.run(["nft", "list", "table", "inet", "spa"]).stdout)


def load_xdp() -> int:
    """A descriptor of a program that passes every packet (bpf(2), BPF_PROG_LOAD)."""
    if sys.maxsize < 2**32 or os.uname().machine != "x86_64":
        pytest.skip("the number of bpf(2) is known here for x86_64 only")
    library = ctypes.CDLL(None, use_errno=True)
    passing = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    code, licence = ctypes.create_string_buffer(passing), ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(128)
    where = ctypes.addressof(code), ctypes.addressof(licence)
    struct.pack_into("=IIQQ", attributes, 0, 6, 2, *where)
    descriptor: int = library.syscall(321, 5, attributes, 128)
    if descriptor < 0:
        pytest.skip("BPF programs cannot be loaded here")
    return descriptor


def attach_xdp(index: int, descriptor: int) -> None:
    """At an interface (RTM_SETLINK, IFLA_XDP), or away from it by -1."""
    xdp = netlink.nested(43, netlink.attribute(1, struct.pack("=i", descriptor)))
    link = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    with netlink.NetlinkSocket(netlink.NETLINK_ROUTE) as asking:
        assert asking.request(19, 0, link + xdp) == 0
    if descriptor >= 0:
        os.close(descriptor)


# Containers

PUBLISHED: Final = """
table ip nat {
  chain docker {
    tcp dport 8080 dnat to 172.17.0.2:80
    tcp dport 22 dnat to 172.17.0.3:22
    ip daddr 127.0.0.1 tcp dport 8081 dnat to 172.17.0.2:81
  }
  chain prerouting {
    type nat hook prerouting priority dstnat;
    fib daddr type local jump docker
  }
}
"""


def test_ports_that_docker_publishes(scene: Scene) -> None:
    with scene.table("ip nat", PUBLISHED):
        assert scene.check() == [
            ("docker-published", "tcp/22 172.17.0.3:22"),
            ("docker-published", "tcp/8080 172.17.0.2:80"),
        ]
        done = scene.site.server("check")
        assert "roles.ops.allow[0] opens, leads to 172.17.0.3:22" in " ".join(done.stdout.split())


def test_ports_that_docker_publishes_by_iptables(scene: Scene) -> None:
    if shutil.which("iptables-nft") is None:
        pytest.skip("iptables-nft is not installed")
    for rule in (
        "-N DOCKER",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        "-A DOCKER ! -i docker0 -p udp -m udp --dport 8088 -j DNAT --to-destination 172.17.0.2:80",
        "-A DOCKER -d 127.0.0.1/32 -p tcp -m tcp --dport 8089 -j DNAT --to-destination 172.17.0.2",
    ):
        scene.server.run(["iptables-nft", "-t", "nat", *rule.split()])
    try:
        assert scene.check() == [("docker-published", "udp/8088 172.17.0.2:80")]
    finally:
        scene.server.run(["nft", "delete", "table", "ip", "nat"])


def test_a_published_port_needs_no_listener(scene: Scene) -> None:
    scene.site.write_policy(POLICY.replace('"tcp/80"', '["tcp/80", "tcp/8080"]'))
    scene.site.server("reload")
    assert scene.check() == [("always-open-unused", "tcp/8080")]
    with scene.table("ip nat", PUBLISHED):
        assert [name for name, _ in scene.check()] == ["docker-published", "docker-published"]
    scene.site.write_policy(POLICY)
    scene.site.server("reload")


# How it is told


def test_what_is_found_fits_a_terminal_the_worst_first(scene: Scene) -> None:
    table = """
        table inet other {
          chain input { type filter hook input priority 0; policy drop; tcp dport 22 accept; }
        }
        """.replace("; }", "\n}").replace("drop; ", "drop\n")
    with scene.no_daemon(), scene.table("inet other", table), scene.listening(8080):
        done = scene.site.server("check", check=False)
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        heads = [line.split(":")[:2] for line in lines if not line.startswith("  ")]
        assert heads == [
            ["error", " daemon-not-running"],
            ["warning", " another-firewall"],
            ["note", " listening-unreachable"],
        ]
        assert scene.check("--only", "another-firewall", "--only", "flowtable") == [
            ("another-firewall", "inet other input")
        ]
        unknown = scene.site.server("check", "--only", "another-firewal", check=False)
        assert unknown.returncode == 2
        assert "did you mean another-firewall?" in unknown.stderr


# The daemon, without privileges


def test_a_daemon_that_is_not_root_finds_what_it_can(scene: Scene) -> None:
    """With CAP_NET_ADMIN alone; what it cannot see is said, and nothing is guessed."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    paths = [scene.site.directory, *scene.site.directory.rglob("*")]
    for path in (*paths, scene.site.directory.parent):
        os.chown(path, UID, UID)
    command = [*passage(scene.lab), *AS_THE_DAEMON, sys.executable, "-c", FIND_DRIFT]

    def drift(*more: str) -> Found:
        done = scene.server.run([*command, str(scene.site.config), *more])
        return [(name, subject) for name, subject in json.loads(done.stdout)]

    try:
        blind = [("not-checked", "iptables-legacy"), ("not-checked", "programs")]
        assert drift() == [("not-checked", "gate"), *blind]
        assert drift("planned") == blind
        with scene.listening(8080), scene.table("ip nat", PUBLISHED):
            assert drift("planned") == [
                ("listening-unreachable", "tcp/8080"),
                ("docker-published", "tcp/22 172.17.0.3:22"),
                ("docker-published", "tcp/8080 172.17.0.2:80"),
                *blind,
            ]
    finally:
        for path in (*paths, scene.site.directory.parent):
            os.chown(path, 0, 0)
