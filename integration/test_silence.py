"""To a stranger the host is not there: no port is open, none is closed, and no knock is known.

What is silent could also be out of reach, so the same is always tried where something does answer:
at a host without a gate, and with a true knock.
"""

import secrets
import signal
import socket
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pytest

from integration.lab import Address, Host, Lab, Reach, wait_until
from integration.site import Person, Site
from integration.wire import ACCEPTS_UNDECLARED, Heard, Pen, Tap, udp_in
from spa_protocol.layout import DATAGRAM_SIZE, DEFAULT_PORT, TAG_SIZE

SERVED: Final = (22, 80, 5432, 7000)
PORTS: Final = f"20-29,80,443,5432,7000,9090-9094,{DEFAULT_PORT}"
PORT_COUNT: Final = 20
LENGTHS: Final = (0, 1, 8, 32, 239, 240, 241, 248, 480, 1400)
ICMPV6, HOP_BY_HOP = 58, 0
NEIGHBOUR_DISCOVERY: Final = range(133, 138)

both_families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@dataclass
class Scene:
    """A guarded host, one with the same services and no gate, one who may knock, and a stranger."""

    site: Site
    server: Host
    bare: Host
    client: Host
    stranger: Host
    alice: Person


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, bare, client, stranger = map(lab.host, ("server", "bare", "client", "stranger"))
        for host in (server, bare):
            for port in SERVED:
                host.serve(port)
        # Else it would refuse a UDP port once a second, and a scan would take that long.
        bare.sysctl(ipv4__icmp_ratelimit=0, ipv6__icmp__ratelimit=0)
        site = Site(lab, server, settings=ACCEPTS_UNDECLARED)
        alice = site.enrol("alice", "ops")
        site.apply_gate()
        site.start()
        yield Scene(site, server, bare, client, stranger, alice)


@pytest.fixture(autouse=True)
def _nothing_is_left_open(scene: Scene) -> Iterator[None]:
    yield
    scene.site.close_everything()


def address(host: Host, family: int) -> Address:
    return host.v4 if family == 4 else host.v6


def nmap(at: Host, family: int, *arguments: str) -> ET.Element:
    """What nmap reports, as it was told to look."""
    version = ["-6"] if family == 6 else []
    quickly = ["-n", "--max-retries", "1", "--max-rtt-timeout", "150ms", "--min-parallelism", "50"]
    done = at.run(["nmap", *version, *quickly, "-oX", "-", *arguments])
    return ET.fromstring(done.stdout)  # noqa: S314 - our own nmap wrote it


Found = Counter[tuple[str, str]]


def scan(at: Host, family: int, kinds: Sequence[str], *targets: Host) -> list[Found]:
    """How many ports nmap found in which state, and why it thinks so, for each host in turn."""
    names = [str(address(target, family)) for target in targets]
    report = nmap(at, family, "-Pn", *kinds, "-p", PORTS, *names)
    found = {_address(host): _states(host) for host in report.iter("host")}
    return [found[name] for name in names]


def _address(host: ET.Element) -> str:
    return next(a.get("addr", "") for a in host.iter("address") if a.get("addrtype") != "mac")


def _states(host: ET.Element) -> Found:
    found: Found = Counter()
    for port in host.iter("port"):
        state = next(port.iter("state"))
        found[state.get("state", ""), state.get("reason", "")] += 1
    for group in host.iter("extraports"):
        for reason in group.iter("extrareasons"):
            found[group.get("state", ""), reason.get("reason", "")] += int(reason.get("count", 0))
    return found


def heard(tap: Tap) -> list[bytes]:
    """The IP packets that came to the host since the last look, but for neighbour discovery."""
    return [packet for packet in tap.packets(outgoing=False) if not _is_of_the_link(packet)]


def _is_of_the_link(packet: bytes) -> bool:
    if packet[0] >> 4 == 4:
        return False
    return packet[6] == HOP_BY_HOP or (packet[6] == ICMPV6 and packet[40] in NEIGHBOUR_DISCOVERY)


# Scans


@pytest.mark.parametrize(
    ("kinds", "silence", "elsewhere"),
    [
        (["-sS"], "filtered", {"open", "closed"}),
        (["-sA"], "filtered", {"unfiltered"}),
        (["-sF"], "open|filtered", {"open|filtered", "closed"}),
        (["-sN"], "open|filtered", {"open|filtered", "closed"}),
        (["-sU"], "open|filtered", {"open", "closed"}),
    ],
    ids=["syn", "ack", "fin", "null", "udp"],
)
@both_families
def test_a_scan_finds_no_port_open_and_none_closed(
    scene: Scene, family: int, kinds: list[str], silence: str, elsewhere: set[str]
) -> None:
    guarded, bare = scan(scene.stranger, family, kinds, scene.server, scene.bare)
    assert guarded == {(silence, "no-response"): PORT_COUNT}
    assert {state for state, _ in bare} == elsewhere


def test_a_stranger_sees_nothing_of_what_is_open_to_somebody_else(scene: Scene) -> None:
    scene.alice.knock(scene.client, "tcp/22", "tcp/80", "--lifetime", "1m")
    with scene.client.connection(scene.server.v4, 22):
        own, others = (
            scan(host, 4, ["-sS"], scene.server)[0] for host in (scene.client, scene.stranger)
        )
    assert own == {("open", "syn-ack"): 2, ("filtered", "no-response"): PORT_COUNT - 2}
    assert others == {("filtered", "no-response"): PORT_COUNT}


@both_families
def test_the_host_still_answers_a_ping(scene: Scene, family: int) -> None:
    target = str(address(scene.server, family))
    report = nmap(scene.stranger, family, "-sn", "-PE", "--send-ip", target)
    assert [status.get("reason") for status in report.iter("status")] == ["echo-reply"]


# The knock port


@both_families
def test_nothing_at_the_knock_port_answers_but_to_a_true_knock(scene: Scene, family: int) -> None:
    """Junk, junk of the right length, other tags, stolen tags and recorded knocks.

    One answer comes for the true knock at the end, and it is all that ever came.
    """
    target, pen = address(scene.server, family), Pen.of(scene.alice)
    record = scene.site.record_from_now()
    true, recorded = pen.write("tcp/22").payload, pen.write("tcp/22", reply_wanted=False).payload
    junk = [secrets.token_bytes(length) for length in LENGTHS]
    forged = [true[:TAG_SIZE] + secrets.token_bytes(DATAGRAM_SIZE - TAG_SIZE), _one_bit_off(true)]
    untrue = [true[:-1], true + b"\0", secrets.token_bytes(TAG_SIZE) + true[TAG_SIZE:]]
    with Tap(scene.client) as tap, asking(scene.client, target) as sending:
        heard(tap)
        for payload in (*junk, *forged, *untrue, recorded, recorded):
            sending.send(payload)
        assert scene.client.reach_tcp(target, DEFAULT_PORT) is Reach.SILENT
        sending.send(true)
        sending.recv(2048)
        sending.send(true)
        answer = _only_answer(heard(tap))
        assert scene.client.reach_udp(target, DEFAULT_PORT) is Reach.SILENT
        assert heard(tap) == []
    assert (answer.source, answer.source_port) == (target, DEFAULT_PORT)
    assert len(answer.payload) == DATAGRAM_SIZE
    who = {"key_id": pen.key_id, "source": address(scene.client, family)}
    record.line("knock.refused", **who, target=target, reason="not-authentic")
    record.line("knock.refused", **who, target=target, identity="alice", reason="replayed")


def asking(host: Host, target: Address) -> socket.socket:
    """A UDP socket connected to the knock port, which tells of ICMP errors too."""
    kind = socket.AF_INET6 if target.version == 6 else socket.AF_INET
    made = host.new_socket(kind, socket.SOCK_DGRAM)
    made.connect((str(target), DEFAULT_PORT))
    made.settimeout(3)
    return made


def _one_bit_off(payload: bytes) -> bytes:
    return payload[:-1] + bytes([payload[-1] ^ 1])


def _only_answer(packets: list[bytes]) -> Heard:
    (packet,) = packets
    answer = udp_in(packet)
    assert answer is not None
    return answer


def test_a_knock_that_wants_no_reply_opens_and_draws_no_packet(scene: Scene) -> None:
    with Tap(scene.stranger) as tap:
        heard(tap)
        said = scene.alice.knock(scene.stranger, "tcp/22", "--no-reply")
        assert "no reply was asked for" in said.stdout
        wait_until(scene.site.holes, what="the hole")
        assert heard(tap) == []
    assert scene.stranger.reach_tcp(scene.server.v4, 22) is Reach.OPEN


@both_families
def test_a_knock_at_the_broadcast_or_a_multicast_address_is_none(scene: Scene, family: int) -> None:
    """It would reach many hosts by one packet, and tell of each that guards itself."""
    pen, client = Pen.of(scene.alice), scene.client
    everybody = ["10.77.1.255", "255.255.255.255", "224.0.0.1"] if family == 4 else ["ff02::1"]
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with Tap(scene.server) as arriving, Tap(client) as tap:
        with client.new_socket(kind, socket.SOCK_DGRAM) as sending:
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan")
            for each in everybody:
                sending.sendto(pen.write("tcp/22").payload, (each, DEFAULT_PORT))
        arrived = [str(knock.target) for knock in arriving.knocks()]
        assert arrived == everybody
        true = pen.write("tcp/80")
        with asking(client, address(scene.server, family)) as sending:
            sending.send(true.payload)
            sending.recv(2048)
        knocked = [p for p in heard(tap) if (one := udp_in(p)) and one.source_port == DEFAULT_PORT]
        assert len(knocked) == 1
    assert [hole["access"] for hole in scene.site.holes()] == ["tcp/80"]


def test_with_the_daemon_killed_the_host_is_as_silent(scene: Scene) -> None:
    """And the client says what that may mean."""
    scene.site.stop(signal.SIGKILL)
    payload = Pen.of(scene.alice).write("tcp/22").payload
    with Tap(scene.client) as tap:
        heard(tap)
        with asking(scene.client, scene.server.v4) as sending:
            for each in (payload, secrets.token_bytes(DATAGRAM_SIZE), b""):
                sending.send(each)
        said = scene.alice.knock(scene.client, "tcp/22", "--timeout", "0.5", check=False)
        assert heard(tap) == []
    assert said.returncode == 3
    assert f"no answer from site ({scene.server.v4}, udp/{DEFAULT_PORT})" in said.stderr
    (tcp,) = scan(scene.stranger, 4, ["-sS"], scene.server)
    (udp,) = scan(scene.stranger, 6, ["-sU"], scene.server)
    assert tcp == {("filtered", "no-response"): PORT_COUNT}
    assert udp == {("open|filtered", "no-response"): PORT_COUNT}
    scene.site.start()
