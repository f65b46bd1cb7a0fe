"""Knocks by other carriers than UDP to the knock port: heard where allowed, and nothing else.

Every packet is a real one: the client's own, or one that scapy made.
"""

import os
import random
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw, fuzz

from integration.lab import Address, Host, Lab, Reach, wait_until
from integration.site import POLICY, PROGRAMS, Person, Site
from integration.test_unprivileged import AS_THE_DAEMON, UID, passage
from integration.wire import (
    ACCEPTS_UNDECLARED,
    Injector,
    Pen,
    Tap,
    counted_in_kernel,
    holes_in_kernel,
    now_us,
    refusals,
)
from spa_protocol.layout import DATAGRAM_SIZE, DEFAULT_PORT, epoch_of

SEED: Final = 20_261_124
CARRIERS: Final = ("udp", "udp:53", "udp:443", "icmp", "tcp-syn", "tcp-syn:443")
ALL: Final = f"carriers = [{', '.join(repr(each) for each in CARRIERS)}]\n"
SERVED: Final = 53
DROPS_INVALID: Final = """
table inet careful {
  chain output {
    type filter hook output priority 0; policy accept;
    ct state invalid drop
  }
}
"""
PUBLIC: Final = 7053
OPEN_DNS: Final = (
    POLICY
    + """
[[always_open]]
services = ["dns"]
from = "anywhere"
"""
).replace("[services]", '[services]\ndns = ["udp/7053", "udp/53"]')


@dataclass
class Scene:
    lab: Lab
    site: Site
    server: Host
    client: Host
    alice: Person
    pen: Pen
    injector: Injector
    used: int = 50

    def target(self, version: int) -> Address:
        return self.server.v4 if version == 4 else self.server.v6

    def source(self, version: int) -> Address:
        return self.client.v4 if version == 4 else self.client.v6

    def new_source(self, version: int) -> Address:
        """An address on the segment from which nothing came before."""
        self.used += 1
        return self.source(version) + self.used

    def inject(self, carrier: str, payload: bytes, version: int = 4) -> None:
        self.injector.send(wrapped(carrier, payload, self.source(version), self.target(version)))

    def knocks(self, carrier: str, version: int = 4, *more: str) -> int:
        """The exit code of a knock by the program."""
        options = ("tcp/22", "--carrier", carrier, "--timeout", "1.5", *more)
        done = self.alice.knock_at(self.client, self.target(version), *options, check=False)
        return done.returncode


def wrapped(carrier: str, payload: bytes, source: Address, target: Address) -> bytes:
    """An IP packet that carries a payload."""
    ends = {"src": str(source), "dst": str(target)}
    kind, _, port = carrier.partition(":")
    to = {"sport": random.randrange(20_000, 60_000), "dport": int(port or DEFAULT_PORT)}
    four = source.version == 4
    if kind == "udp":
        inner = UDP(**to)
    elif kind == "tcp-syn":
        inner = TCP(flags="S", seq=7, **to)
    else:
        inner = ICMP(id=9, seq=1) if four else ICMPv6EchoRequest(id=9, seq=1)
    return raw((IP(**ends) if four else IPv6(**ends)) / inner / Raw(payload))


def made(lab: Lab, settings: str = ALL, policy: str = POLICY) -> Scene:
    server, client = lab.host("server"), lab.host("client")
    site = Site(lab, server, policy=policy, settings=ACCEPTS_UNDECLARED + settings)
    alice = site.enrol("alice", "ops")
    pen = Pen.enrolled(site, "bob", "ops")
    site.apply_gate()
    site.start()
    return Scene(lab, site, server, client, alice, pen, Injector(client, server))


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab:
        scene = made(lab)
        scene.server.serve(22)
        yield scene


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    shared.site.close_everything()
    yield shared
    assert shared.site.daemon is not None
    assert shared.site.daemon.process.poll() is None
    assert shared.site.daemon.output == ""


both = pytest.mark.parametrize("version", [4, 6])


@both
@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_knock_by_each_carrier_is_answered_and_opens_the_port(
    scene: Scene, carrier: str, version: int
) -> None:
    target = scene.target(version)
    assert scene.client.reach_tcp(target, 22) is Reach.SILENT
    by = ("--carrier", carrier, "--lifetime", "1m")
    done = scene.alice.knock_at(scene.client, target, "tcp/22", *by)
    assert "tcp/22 open" in done.stdout
    accepted = scene.site.events("knock.accepted")[-1]["detail"]
    assert accepted.get("carrier") == (None if carrier == "udp" else carrier)
    assert scene.client.reach_tcp(target, 22) is Reach.OPEN
    closed = ("close", scene.alice.name_of(target), "tcp/22", "--carrier", carrier)
    assert "closed" in scene.alice.client(scene.client, *closed).stdout
    assert scene.client.reach_tcp(target, 22) is Reach.SILENT


def test_what_the_client_is_configured_to_use_is_used(scene: Scene) -> None:
    line = scene.site.line
    scene.alice.client(scene.client, "add", "by-ping", line, "--carrier", "icmp")
    tap = Tap(scene.server)
    scene.alice.client(scene.client, "knock", "by-ping", "tcp/22")
    assert tap.knocks() == []
    # What the command line says wins.
    scene.alice.client(scene.client, "knock", "by-ping", "tcp/22", "--carrier", "udp")
    assert len(tap.knocks()) == 1
    both_ports = ("knock", "by-ping", "tcp/22", "--carrier", "udp:53", "--port", "54")
    wrong = scene.alice.client(scene.client, *both_ports, check=False)
    assert wrong.returncode == 2
    assert "both name a port; give one of them" in wrong.stderr


@pytest.mark.parametrize("carrier", ["udp:53", "icmp", "tcp-syn"])
def test_the_other_commands_go_the_same_way(scene: Scene, carrier: str) -> None:
    done = scene.alice.client(
        scene.client,
        *("exec", "site", "tcp/22", "--carrier", carrier, "--", "echo", "reached"),
    )
    assert "reached" in done.stdout
    doctor = ("doctor", "site", "tcp/22", "--carrier", carrier)
    assert "everything works" in scene.alice.client(scene.client, *doctor).stdout


@pytest.mark.parametrize("carrier", ["udp:53", "icmp", "tcp-syn"])
def test_an_invite_is_redeemed_by_another_carrier(scene: Scene, carrier: str) -> None:
    name = f"carol-{carrier.replace(':', '-')}"
    host = str(scene.server.v4)
    line = scene.site.keys("invite", name, "--role", "ops", "--host", host).stdout.strip()
    home = scene.lab.new_file(f"home-{name}")
    home.mkdir()
    how = ("--no-passphrase", "--carrier", carrier, "--access", "tcp/22")
    done = scene.client.run(
        [PROGRAMS / "spa-client", "join", line, "--name", "there", *how],
        env={"HOME": str(home), "XDG_CONFIG_HOME": ""},
    )
    assert "tcp/22 open" in done.stdout
    assert scene.site.events("join.accepted")[-1]["detail"]["carrier"] == carrier
    assert f'carrier = "{carrier}"' in (home / ".config/spa/config.toml").read_text()


def test_a_datagram_is_good_once_whatever_carries_it(scene: Scene) -> None:
    for first, *others in (("udp", "icmp", "tcp-syn", "udp:53"), ("icmp", "tcp-syn:443", "udp")):
        scene.site.close_everything()
        knock = scene.pen.write("tcp/22", lifetime_s=60)
        scene.inject(first, knock.payload)
        wait_until(lambda: len(holes_in_kernel(scene.server)) == 1)
        scene.site.close_everything()
        assert replays(scene, knock.payload, *others) == len(others)
        assert holes_in_kernel(scene.server) == {}


def replays(scene: Scene, payload: bytes, *carriers: str, version: int = 4) -> int:
    """How many of several more copies were refused as such; each is from somewhere else."""
    sources = [scene.new_source(version) for _ in carriers]
    for carrier, source in zip(carriers, sources, strict=True):
        scene.injector.send(wrapped(carrier, payload, source, scene.target(version)))
    assert scene.knocks("udp", version, "--no-reply") == 0
    time.sleep(0.3)
    scene.site.close_everything()
    lines = refusals(scene.site, scene.pen, "replayed")
    return len([line for line in lines if ip_address(line["source"]) in sources])


def switches(pid: int) -> int:
    """How often a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)[0])


@both
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.alone
def test_junk_does_not_wake_the_daemon(scene: Scene, carrier: str, version: int) -> None:
    assert scene.site.daemon is not None
    time.sleep(0.2)
    before = switches(scene.site.daemon.pid)
    ends = scene.source(version), scene.target(version)
    scene.injector.send(
        *(wrapped(carrier, secrets.token_bytes(DATAGRAM_SIZE), *ends) for _ in range(3000)),
        *(wrapped(carrier, secrets.token_bytes(size), *ends) for size in range(0, 480, 7)),
    )
    time.sleep(0.3)
    # The denial of a closed port is recorded once, and counted from time to time: that is no knock.
    assert switches(scene.site.daemon.pid) - before < 80


@both
def test_the_limit_for_a_source_and_tag_is_one_for_all_carriers(scene: Scene, version: int) -> None:
    time.sleep(1.5)
    before = counted_in_kernel(scene.server, "knocks_limited")
    tag = scene.pen.tag(epoch_of(now_us()))
    packets = [
        wrapped(carrier, tag + bytes(232), scene.source(version), scene.target(version))
        for carrier in CARRIERS * 50
    ]
    scene.injector.send(*packets)
    limited = counted_in_kernel(scene.server, "knocks_limited") - before
    assert 260 <= limited <= 280
    time.sleep(1.5)


@both
def test_a_ping_is_answered_as_before(scene: Scene, version: int) -> None:
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP)
        if version == 4
        else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    with scene.client.new_socket(family, socket.SOCK_RAW, protocol) as pinging:
        pinging.connect((str(scene.target(version)), 0))
        pinging.settimeout(2)
        for size in (0, 56, DATAGRAM_SIZE, 1400):
            data = secrets.token_bytes(size)
            packet = wrapped("icmp", data, scene.source(version), scene.target(version))
            pinging.send(packet[20 if version == 4 else 40 :])
            answer = pinging.recv(4096)
            inner = answer[20:] if version == 4 else answer
            assert (inner[0], inner[8:]) == (0 if version == 4 else 129, data)


@both
def test_neither_the_kernel_nor_anybody_else_answers_a_knock(scene: Scene, version: int) -> None:
    """No echo reply but ours, no SYN-ACK, no reset but ours, no port unreachable."""
    tap = Tap(scene.server)
    for carrier in CARRIERS:
        tap.packets(outgoing=True)
        knock = scene.pen.write("tcp/22", reply_wanted=False)
        scene.inject(carrier, knock.payload, version)
        scene.inject(carrier, knock.payload[:8] + bytes(232), version)
        time.sleep(0.15)
        about = [ICMP, TCP, UDP, ICMPv6EchoRequest]
        said = [IP(p) if p[0] >> 4 == 4 else IPv6(p) for p in tap.packets(outgoing=True)]
        assert [p.summary() for p in said if any(p.haslayer(each) for each in about)] == []


@both
@pytest.mark.parametrize("port", [DEFAULT_PORT, 443])
def test_the_port_of_a_syn_is_a_port_like_any_other(lab: Lab, port: int, version: int) -> None:
    policy = POLICY.replace("[services]", f'[services]\ntls = "tcp/{port}"')
    scene = made(lab, policy=policy.replace('"ssh", "web"', '"ssh", "tls", "web"'))
    target = scene.target(version)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listening = scene.server.new_socket(family, socket.SOCK_STREAM)
    listening.bind(("", port))
    listening.listen()
    listening.settimeout(2)
    assert scene.client.reach_tcp(target, port) is Reach.SILENT
    scene.alice.knock_at(scene.client, target, f"tcp/{port}", "--carrier", f"tcp-syn:{port}")
    with scene.client.connection(target, port) as stream, listening.accept()[0] as accepted:
        stream.setblocking(True)
        stream.settimeout(2)
        accepted.settimeout(2)
        stream.send(bytes(DATAGRAM_SIZE))
        assert accepted.recv(4096) == bytes(DATAGRAM_SIZE)
        accepted.send(b"well")
        assert stream.recv(4096) == b"well"


@both
@pytest.mark.parametrize("carrier", CARRIERS)
def test_an_answer_leaves_a_host_that_drops_what_is_invalid(
    lab: Lab, carrier: str, version: int
) -> None:
    scene = made(lab)
    scene.server.run(["nft", "-f", "-"], text=DROPS_INVALID)
    assert scene.knocks(carrier, version) == 0


def test_an_answer_lets_nothing_back_in(scene: Scene) -> None:
    """conntrack must not take it for the beginning of a conversation with the port it left from."""
    service = scene.server.serve(SERVED)
    with scene.client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((str(scene.server.v4), SERVED))
        knock = scene.pen.write("tcp/22")
        asking.send(knock.payload)
        asking.settimeout(3)
        assert scene.pen.read(asking.recv(4096), knock) is not None
        asking.send(b"let me in")
        asking.settimeout(0.3)
        with pytest.raises(TimeoutError):
            asking.recv(4096)
    assert service.received == []
    service.stop()


# Off, unless it is allowed


@both
def test_each_is_off_by_default(lab: Lab, version: int) -> None:
    scene = made(lab, settings="", policy=OPEN_DNS)
    dns = scene.server.serve(SERVED)
    for carrier in CARRIERS[1:]:
        knock = scene.pen.write("tcp/22", lifetime_s=60)
        scene.inject(carrier, knock.payload, version)
        if carrier == f"udp:{SERVED}":
            wait_until(lambda: dns.received)
            assert dns.received == [knock.payload]
        assert scene.knocks(carrier, version) == 3
    assert holes_in_kernel(scene.server) == {}
    assert scene.site.events("knock") == []


@both
def test_a_service_at_a_carriers_port_gets_its_packets(lab: Lab, version: int) -> None:
    scene = made(lab, policy=OPEN_DNS)
    dns = scene.server.serve(SERVED)
    target = scene.target(version)
    questions = [b"a question", secrets.token_bytes(DATAGRAM_SIZE), b""]
    with scene.client.new_socket(
        socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM
    ) as asking:
        asking.connect((str(target), SERVED))
        asking.settimeout(2)
        for question in questions:
            asking.send(question)
            assert asking.recv(4096) == question
        # A knock in between is not the service's, and its answer comes from the same port.
        knock = scene.pen.write("tcp/22")
        asking.send(knock.payload)
        assert scene.pen.read(asking.recv(4096), knock) is not None
        asking.send(b"another")
        assert asking.recv(4096) == b"another"
    assert dns.received == [*questions, b"another"]


# Behind a middlebox


MIDDLEBOX: Final = """
table inet box {{
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state invalid drop
    ct state established accept
    {rule}
  }}
  chain out {{
    type nat hook postrouting priority 100;
    oifname "outside" masquerade
  }}
}}
"""


@pytest.mark.parametrize(
    ("carrier", "rule"),
    [
        ("udp:53", "udp dport 53 accept"),
        ("icmp", "meta l4proto { icmp, ipv6-icmp } accept"),
        ("tcp-syn:443", "tcp dport 443 accept"),
    ],
)
@both
def test_a_middlebox_that_lets_little_else_through(
    lab: Lab, carrier: str, rule: str, version: int
) -> None:
    """It follows connections, drops what belongs to none, and translates addresses."""
    inside, outside = "inside", "outside"
    server, client = lab.host("server", outside), lab.host("client", inside)
    router = lab.host("router", inside, outside)
    router.forward()
    client.default_route(router, inside)
    server.default_route(router, outside)
    router.run(["nft", "-f", "-"], text=MIDDLEBOX.format(rule=f"{rule}\n    tcp dport 22 accept"))
    site = Site(lab, server, settings=ACCEPTS_UNDECLARED + ALL)
    alice = site.enrol("alice", "ops")
    server.serve(22)
    site.apply_gate()
    site.start()
    target = server.v4 if version == 4 else server.v6
    assert alice.knock_at(client, target, "tcp/22", "--timeout", "1", check=False).returncode == 3
    assert client.reach_tcp(target, 22) is Reach.SILENT
    done = alice.knock_at(client, target, "tcp/22", "--carrier", carrier, "--source", "none")
    assert "tcp/22 open" in done.stdout
    assert client.reach_tcp(target, 22) is Reach.OPEN


# Another capture, other users


@both
def test_the_capture_at_an_interface_hears_them_too(lab: Lab, version: int) -> None:
    scene = made(lab, settings=ALL + 'capture = "interface:lan"\n')
    for carrier in CARRIERS:
        assert scene.knocks(carrier, version) == 0, carrier
    knock = scene.pen.write("tcp/22", lifetime_s=60)
    scene.inject("icmp", knock.payload, version)
    assert replays(scene, knock.payload, "tcp-syn", "udp:53", "icmp", version=version) == 3
    # It hands over what is no knock too: of that nothing is written.
    for carrier in CARRIERS[1:]:
        scene.inject(carrier, secrets.token_bytes(DATAGRAM_SIZE), version)
    time.sleep(0.3)
    # A client that wants no reply also knocks under a spare tag, by UDP; here nobody waits for it.
    unknown = [e for e in scene.site.events("knock") if e["reason"] == "unknown-key"]
    assert [e for e in unknown if "carrier" in e["detail"]] == []


def test_without_cap_net_raw_the_daemon_says_so_and_needs_it_for_no_datagram(lab: Lab) -> None:
    with tempfile.TemporaryDirectory(prefix="spa-carriers") as directory:
        server, client = lab.host("server"), lab.host("client")
        settings = ACCEPTS_UNDECLARED + 'carriers = ["udp", "udp:53"]\n'
        site = Site(lab, server, settings=settings, directory=Path(directory))
        alice = site.enrol("alice", "ops")
        site.apply_gate()
        for path in (site.directory, *site.directory.rglob("*")):
            os.chown(path, UID, UID)
        prefix = (*passage(lab), *AS_THE_DAEMON)
        site.start(prefix=prefix)
        for address in (server.v4, server.v6):
            alice.knock_at(client, address, "tcp/22", "--carrier", "udp:53")
        site.stop()
        site.start(prefix=prefix)
        site.config.write_text(site.config.read_text().replace('"udp:53"', '"icmp"'))
        before = server.run(["nft", "list", "chain", "inet", "spa", "knock"]).stdout
        for command in (("gate", "apply", "--confirm-within", "60s"), ("reload",)):
            done = site.server(*command, check=False)
            assert done.returncode == 4
            assert "carriers: icmp cannot be answered: Operation not permitted" in done.stderr
            assert "give the daemon CAP_NET_RAW" in done.stderr
        assert server.run(["nft", "list", "chain", "inet", "spa", "knock"]).stdout == before
        site.server("gate", "confirm", check=False)
        site.stop()
        site.start(prefix=prefix)
        assert "icmp cannot be answered" in site.status()["hindered"]
        alice.knock(client, "tcp/22")
        program = (PROGRAMS / "spa-server", "--config", site.config)
        found = server.run([*prefix, *program, "check"], check=False)
        assert "answers-hindered" in found.stdout, found.stderr


def test_carriers_are_taken_when_the_gate_is_applied_and_go_with_a_trial(lab: Lab) -> None:
    """No restart is needed: not for the gate, nor for what answers."""
    server, client = lab.host("server"), lab.host("client")
    site = Site(lab, server)
    alice = site.enrol("alice", "ops")
    site.apply_gate()
    site.start()
    by_ping = ("tcp/22", "--carrier", "icmp", "--timeout", "0.5")
    assert alice.knock_at(client, server.v4, *by_ping, check=False).returncode != 0
    site.config.write_text(site.config.read_text() + 'carriers = ["udp", "icmp"]\n')
    site.apply_gate("--confirm-within", "5s")
    alice.knock_at(client, server.v4, *by_ping)
    wait_until(lambda: not (site.directory / "gate.pending").exists(), within_s=20)
    assert alice.knock_at(client, server.v4, *by_ping, check=False).returncode != 0


def test_without_cap_net_raw_the_client_says_so(scene: Scene) -> None:
    drop = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "--ambient-caps=-all")
    argv = [*drop, PROGRAMS / "spa-client", "knock", "site", "tcp/22", "--carrier"]
    for carrier in ("icmp", "tcp-syn"):
        done = scene.client.run([*argv, carrier], env=scene.alice.env, check=False)
        assert done.returncode == 4
        assert done.stderr.count("\n") == 1
        assert f"the carrier {carrier} needs CAP_NET_RAW; run it as root" in done.stderr


# What nobody sends in good faith

CRAFTED: Final[dict[str, Callable[[bytes, dict[str, str]], Packet]]] = {
    "an echo reply": lambda k, e: IP(**e) / ICMP(type=0, id=9) / Raw(k),
    "an echo request of code 1": lambda k, e: IP(**e) / ICMP(type=8, code=1) / Raw(k),
    "a ping with one byte less": lambda k, e: IP(**e) / ICMP(id=9) / Raw(k[:-1]),
    "a ping with one byte more": lambda k, e: IP(**e) / ICMP(id=9) / Raw(k + b"\0"),
    "a ping with IPv4 options": lambda k, e: IP(**e, options=[b"\x01" * 4]) / ICMP(id=9) / Raw(k),
    "a SYN-ACK": lambda k, e: IP(**e) / TCP(dport=DEFAULT_PORT, flags="SA") / Raw(k),
    "an ACK": lambda k, e: IP(**e) / TCP(dport=DEFAULT_PORT, flags="A") / Raw(k),
    "a SYN-FIN": lambda k, e: IP(**e) / TCP(dport=DEFAULT_PORT, flags="SF") / Raw(k),
    "a SYN with options": lambda k, e: (
        IP(**e) / TCP(dport=DEFAULT_PORT, flags="S", options=[("MSS", 1460)]) / Raw(k)
    ),
    "a SYN with one byte less": lambda k, e: (
        IP(**e) / TCP(dport=DEFAULT_PORT, flags="S") / Raw(k[:-1])
    ),
    "a SYN to another port": lambda k, e: IP(**e) / TCP(dport=80, flags="S") / Raw(k),
    "a datagram to another port": lambda k, e: IP(**e) / UDP(dport=54) / Raw(k),
    "a datagram longer than it says": lambda k, e: IP(**e) / UDP(dport=53, len=247) / Raw(k),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_what_is_no_knock_by_its_wrapping_is_not_heard(scene: Scene, name: str) -> None:
    ends = {"src": str(scene.client.v4), "dst": str(scene.server.v4)}
    knock = scene.pen.write("tcp/22", lifetime_s=60)
    scene.injector.send(raw(CRAFTED[name](knock.payload, ends)))
    assert scene.knocks("udp", 6) == 0
    assert [h for h in holes_in_kernel(scene.server) if h.source == scene.client.v4] == []
    # It was not burned: the same is still good.
    scene.inject("icmp", knock.payload)
    wait_until(lambda: any(h.source == scene.client.v4 for h in holes_in_kernel(scene.server)))


def test_behind_an_extension_header_none_is_heard(scene: Scene) -> None:
    ends = {"src": str(scene.client.v6), "dst": str(scene.server.v6)}
    for inner in (
        ICMPv6EchoRequest(id=9),
        TCP(dport=443, flags="S"),
        UDP(sport=4000, dport=53),
    ):
        knock = scene.pen.write("tcp/22", lifetime_s=60)
        scene.injector.send(raw(IPv6(**ends) / IPv6ExtHdrDestOpt() / inner / Raw(knock.payload)))
    assert scene.knocks("udp", 4) == 0
    assert [h for h in holes_in_kernel(scene.server) if h.source == scene.client.v6] == []


def test_thousands_of_crafted_packets_open_nothing_and_break_nothing(scene: Scene) -> None:
    chosen = random.Random(SEED)
    random.seed(SEED)
    burned = scene.pen.write("tcp/22", lifetime_s=60)
    scene.inject("udp", burned.payload)
    wait_until(lambda: holes_in_kernel(scene.server))
    scene.site.close_everything()
    tag = scene.pen.tag(epoch_of(now_us()))
    packets = []
    for number in range(4000):
        version = chosen.choice((4, 6))
        payload = chosen.choice(
            (
                burned.payload,
                tag + chosen.randbytes(232),
                chosen.randbytes(240),
                burned.payload[:99],
            )
        )
        ends = scene.source(version), scene.target(version)
        whole = wrapped(chosen.choice(CARRIERS), payload, *ends)
        headers = 48 if version == 4 else 68
        if number % 3:
            at = chosen.randrange(1, headers)
            whole = whole[:at] + chosen.randbytes(1) + whole[at + 1 :]
        if number % 7 == 0:
            whole = whole[: chosen.randrange(14, len(whole))]
        packets.append(whole)
    outer = IP(src=str(scene.client.v4), dst=str(scene.server.v4))
    for _ in range(200):
        packets.append(raw(outer / fuzz(ICMP(type=8)) / Raw(burned.payload)))
        packets.append(raw(outer / fuzz(TCP(dport=443)) / Raw(burned.payload)))
    scene.injector.send(*packets)
    time.sleep(1.5)
    assert scene.knocks("icmp", 6) == 0
    assert {h.source for h in holes_in_kernel(scene.server)} <= {ip_address(scene.client.v6)}
