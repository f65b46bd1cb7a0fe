"""`spa-client doctor` finds what was built to go wrong between two hosts.

A client on one segment, a guarded server on another, and a router between them that loses, blocks
and translates. What the doctor advises is then done, where a command can do it, and has to help.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import pytest

from integration.lab import Host, Lab, Reach
from integration.site import PROGRAMS, Person, RecordSince, Site
from integration.wayside import dropping, firewall, losing, translating
from integration.wire import faketime
from spa_protocol.layout import DEFAULT_PORT

PORT, SILENT_PORT, STRICT_PORT = 7000, 7002, 7003
CARRIER: Final = "100.64.7.2"
PUBLIC: Final = ("10.77.2.50", "10.77.2.51", "10.77.2.52")

POLICY: Final = f"""
[services]
echo = "tcp/{PORT}"
voice = "udp/{PORT}"
nothing = "tcp/{SILENT_PORT}"
strict = "tcp/{STRICT_PORT}"
office = "tcp/7004"
late = "tcp/7005"

[roles.ops]
[[roles.ops.allow]]
services = ["echo", "voice", "nothing"]
lifetime = "20s"
[[roles.ops.allow]]
services = ["strict"]
require = ["declared-source"]
lifetime = "20s"
[[roles.ops.allow]]
services = ["office"]
from = ["192.0.2.0/24"]
"""


@dataclass
class Scene:
    """The client reaches the server by a router; `bare` is a host without a gate."""

    lab: Lab
    site: Site
    client: Host
    router: Host
    server: Host
    bare: Host
    alice: Person

    def doctor(
        self,
        *arguments: str,
        person: Person | None = None,
        env: dict[str, str] | None = None,
        host: str = "site",
        timeout: str = "15",
    ) -> "Diagnosed":
        """Asks the doctor."""
        who = person or self.alice
        asked = ("doctor", host, *(arguments or (f"tcp/{PORT}",)), "--json", "--timeout", timeout)
        run = who.client(self.client, *asked, check=False, env=env)
        return Diagnosed(run.returncode, json.loads(run.stdout))

    def knock(self, *arguments: str) -> None:
        self.alice.client(self.client, "knock", "site", *arguments)

    def reaches(self, port: int = PORT) -> bool:
        found = self.client.reach_tcp(self.server.v4, port, within_s=1.0)
        return found is Reach.OPEN


@dataclass(frozen=True)
class Diagnosed:
    """What the doctor said."""

    code: int
    told: dict[str, Any]

    @property
    def diagnosis(self) -> str:
        return str(self.told["diagnosis"])

    @property
    def advice(self) -> str:
        return str(self.told["advice"])

    @property
    def lost(self) -> int:
        """How many of the knocks that measure the way were not answered."""
        probes = [address["probes"] for address in self.told["addresses"]]
        return sum(each["sent"] - each["answered"] for each in probes)

    def check(self, name: str) -> dict[str, Any]:
        """The first finding of this name."""
        return next(check for check in self.told["checks"] if check["check"] == name)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        client = lab.host("client", "inner")
        router = lab.host("router", "inner", "outer")
        server, bare = lab.host("server", "outer"), lab.host("bare", "outer")
        router.forward()
        client.default_route(router, "inner")
        for host in (server, bare):
            host.default_route(router, "outer")
            host.serve(PORT)
        server.serve(STRICT_PORT)
        site = Site(lab, server, policy=POLICY)
        alice = site.enrol("alice", "ops")
        alice.client(server, "add", "bare", site.line, "--address", str(bare.v4))
        alice.client(server, "add", "nowhere", site.line, "--address", "no-such-host.invalid")
        alice.client(server, "add", "far", site.line, "--address", "198.51.100.1")
        site.apply_gate()
        site.start()
        yield Scene(lab, site, client, router, server, bare, alice)


@pytest.fixture(autouse=True)
def _nothing_is_left_open(scene: Scene) -> Iterator[None]:
    yield
    scene.site.close_everything()


@pytest.fixture
def record(scene: Scene) -> RecordSince:
    return scene.site.record_from_now()


def test_all_is_well(scene: Scene) -> None:
    found = scene.doctor()
    assert (found.code, found.diagnosis) == (0, "fine"), found
    assert {check["mark"] for check in found.told["checks"]} == {"ok"}
    assert found.check("reply")["text"].endswith("8 of 8 further ones answered")
    (address,) = found.told["addresses"]
    assert address["own_address"] == str(scene.client.v4)
    assert address["seen_sources"] == [str(scene.client.v4)]


def test_what_a_person_reads(scene: Scene) -> None:
    run = scene.alice.client(scene.client, "doctor", "site", f"tcp/{PORT}")
    lines = run.stdout.splitlines()
    steps = ["config", "key", "name", "route", "reply", "clock", "source", "policy", "port"]
    assert [line[5:].split()[0] for line in lines[:-1]] == steps
    assert lines[-1] == "advice: everything works: connect as usual"


def test_loss(scene: Scene) -> None:
    with losing(30, scene.router):
        found = scene.doctor()
        if found.diagnosis == "fine":  # of eight knocks none is lost once in three hundred times
            found = scene.doctor()
    assert (found.code, found.diagnosis) == (0, "loss"), found
    assert f"of 8 knocks or their replies {found.lost} were lost" in found.advice


@pytest.mark.parametrize(("off", "side"), [("-120", "behind"), ("+120", "ahead of")])
def test_a_clock_wrong_by_two_minutes(scene: Scene, off: str, side: str) -> None:
    found = scene.doctor(env=faketime(scene.lab, off))
    assert (found.code, found.diagnosis) == (1, "clock"), found
    assert f"clock is 120 s {side} the server's: set this machine's clock right" in found.advice
    assert found.check("clock") == {
        "check": "clock",
        "mark": "bad",
        "text": f"120 s {side} the server's",
    }
    assert scene.site.holes() == []


@pytest.mark.parametrize(("off", "side"), [("-172800", "behind"), ("+100000", "ahead of")])
def test_a_clock_that_is_days_off(scene: Scene, off: str, side: str) -> None:
    """The server hears nothing that is stamped so; asked by other times, it tells its own."""
    unasked = scene.doctor(env=faketime(scene.lab, off), timeout="1")
    assert unasked.diagnosis in ("silent", "clock")  # a clock behind its own files is known
    assert "this machine's clock says 20" in unasked.advice
    found = scene.doctor(f"tcp/{PORT}", "--clock", env=faketime(scene.lab, off), timeout="1")
    assert (found.code, found.diagnosis) == (3, "clock"), found
    assert re.search(rf"clock is (2 d|1 d 3 h|1 d 23 h) {side} the server's", found.advice), found
    assert found.check("clock")["mark"] == "bad"
    assert found.told["clock_lead_s"] == pytest.approx(-int(off), abs=10)
    assert scene.site.holes() == []


def test_a_clock_that_drifts(scene: Scene) -> None:
    found = scene.doctor(env=faketime(scene.lab, "-20"))
    assert (found.code, found.diagnosis) == (0, "clock drifts"), found
    assert "clock is 20 s behind the server's" in found.advice


def test_nat(scene: Scene) -> None:
    """It works, and the doctor says what is between."""
    with translating("oifname outer masquerade", scene.router):
        found = scene.doctor()
        assert (found.code, found.diagnosis) == (0, "fine"), found
    outer = scene.router.on("outer").v4
    text = f"the server saw {outer}, this machine is {scene.client.v4}: there is a NAT between"
    assert found.check("source")["text"] == text


def test_nat_and_a_declared_address_that_does_not_get_through(scene: Scene) -> None:
    with translating("oifname outer masquerade", scene.router):
        found = scene.doctor(f"tcp/{PORT}", "--source", str(scene.client.v4))
        assert (found.code, found.diagnosis) == (1, "misdeclared"), found
        assert "knock with --source none" in found.advice
        assert not scene.reaches()
        scene.knock(f"tcp/{PORT}", "--source", "none")
        assert scene.reaches()


@pytest.fixture
def carrier(scene: Scene) -> Iterator[Host]:
    """The client has an address of RFC 6598 alone, and the carrier several of its own."""
    client, router = scene.client, scene.router
    inner = client.on("inner").interface
    router.ip(f"address add 100.64.7.1/24 dev {router.on('inner').interface}")
    for address in PUBLIC:
        router.add_address(f"{address}/24", "outer")
    client.ip(f"address add {CARRIER}/24 dev {inner}", f"route del default via {router.v4}")
    client.ip(f"route add default via 100.64.7.1 src {CARRIER}")
    yield router
    client.ip(f"route del default via 100.64.7.1 src {CARRIER}")
    client.ip(f"route add default via {router.v4}", f"address del {CARRIER}/24 dev {inner}")
    router.ip(f"address del 100.64.7.1/24 dev {router.on('inner').interface}")
    for address in PUBLIC:
        router.ip(f"address del {address}/24 dev {router.on('outer').interface}")


def test_carrier_grade_nat_where_connections_leave_from_another_address(
    scene: Scene, carrier: Host, record: RecordSince
) -> None:
    """Nobody signs an address because a reply named it; the one that the person gives helps."""
    knocks_from, connects_from, _ = PUBLIC
    rules = f"oifname outer meta l4proto udp snat ip to {knocks_from}; "
    rules += f"oifname outer meta l4proto tcp snat ip to {connects_from}"
    with translating(rules, carrier):
        found = scene.doctor()
        assert (found.code, found.diagnosis) == (1, "carrier nat"), found
        assert f"opened for {knocks_from}" in found.advice
        assert "give that by --source" in found.advice
        assert found.told["addresses"][0]["own_address"] == CARRIER
        assert found.told["addresses"][0]["reply"]["declared_source"] is None
        assert {line["source"] for line in record.lines("hole.opened")} == {knocks_from}
        denied = record.line("connection.denied", source=connects_from)
        assert denied["access"] == f"tcp/{PORT}"
        scene.knock(f"tcp/{PORT}", "--source", connects_from)
        assert scene.reaches()


def test_a_nat_that_changes_addresses_from_flow_to_flow(scene: Scene, carrier: Host) -> None:
    """Even where this machine's own address does not betray it."""
    scene.client.ip(f"route change default via {scene.router.v4} src {scene.client.v4}")
    try:
        spread = ", ".join(f"{number} : {address}" for number, address in enumerate(PUBLIC[:2]))
        rules = f"oifname outer meta l4proto udp snat ip to numgen inc mod 2 map {{ {spread} }}; "
        rules += f"oifname outer meta l4proto tcp snat ip to {PUBLIC[2]}"
        with translating(rules, carrier):
            found = scene.doctor()
    finally:
        scene.client.ip(f"route change default via 100.64.7.1 src {CARRIER}")
    assert (found.code, found.diagnosis) == (1, "carrier nat"), found
    assert set(found.told["addresses"][0]["seen_sources"]) == set(PUBLIC[:2])


def test_knocks_that_a_firewall_drops(scene: Scene) -> None:
    with firewall(f"udp dport {DEFAULT_PORT} drop", scene.router):
        found = scene.doctor(timeout="2")
    assert (found.code, found.diagnosis) == (3, "silent"), found
    assert f"udp/{DEFAULT_PORT} is blocked on the way" in found.advice
    assert f"whether key {scene.alice.key_id()} is enrolled" in found.advice
    assert "silent too, as a closed gate is" in found.check("port")["text"]


def test_replies_that_a_firewall_drops(scene: Scene) -> None:
    """The knocks arrive and open the port, and nothing says so."""
    with firewall(f"udp sport {DEFAULT_PORT} drop", scene.router):
        found = scene.doctor(timeout="2")
    assert (found.code, found.diagnosis) == (3, "replies lost"), found
    assert f"drops what comes from udp/{DEFAULT_PORT}" in found.advice
    assert scene.site.holes() == []


def test_knocks_that_a_firewall_rejects(scene: Scene) -> None:
    with firewall(f"udp dport {DEFAULT_PORT} reject with icmp admin-prohibited", scene.router):
        found = scene.doctor(timeout="2")
    assert (found.code, found.diagnosis) == (3, "rejected"), found
    assert f"a firewall on the way rejects udp/{DEFAULT_PORT}" in found.advice


def test_a_port_that_a_firewall_drops(scene: Scene) -> None:
    with firewall(f"tcp dport {PORT} drop", scene.router):
        found = scene.doctor()
    assert (found.code, found.diagnosis) == (1, "port blocked"), found
    assert f"the gate opened tcp/{PORT} for {scene.client.v4}, and nothing comes" in found.advice
    assert f"a firewall between here and {scene.server.v4} drops it" in found.advice
    assert found.told["addresses"][0]["ports"][0]["reach"] == "silent"


def test_a_port_that_a_firewall_rejects(scene: Scene) -> None:
    rule = f"tcp dport {PORT} reject with icmp host-prohibited"
    with firewall(rule, scene.router):
        found = scene.doctor()
    assert (found.code, found.diagnosis) == (1, "port blocked"), found
    assert "the network says: no route to host" in found.advice


def test_a_blocked_port_and_loss_together(scene: Scene) -> None:
    """Loss is told, and not taken for the reason."""
    with ExitStack() as stack:
        stack.enter_context(losing(30, scene.router))
        rule = ["nft", f"add rule inet wayside wayside tcp dport {PORT} drop"]
        scene.router.run(rule)
        found = scene.doctor()
    assert (found.code, found.diagnosis) == (1, "port blocked"), found
    assert ("were lost, too" in found.advice) is (found.lost > 0)


def test_a_service_that_is_down(scene: Scene) -> None:
    found = scene.doctor(f"tcp/{SILENT_PORT}")
    assert (found.code, found.diagnosis) == (1, "no service"), found
    assert f"nothing listens on tcp/{SILENT_PORT}" in found.advice


def test_a_port_that_cannot_be_tried(scene: Scene) -> None:
    found = scene.doctor(f"udp/{PORT}")
    assert (found.code, found.diagnosis) == (0, "fine"), found
    assert found.check("port")["mark"] == "-"


@pytest.mark.parametrize(
    ("access", "said"),
    [
        ("tcp/22", "no role of yours allows tcp/22: ask the operator for one, key "),
        ("tcp/7004", "the policy does not allow tcp/7004 from "),
        (
            f"tcp/{STRICT_PORT}",
            "the policy wants the source declared: if 10.77.1.1, which the server saw, is an "
            "address of yours alone, knock with --source 10.77.1.1",
        ),
    ],
)
def test_what_the_policy_refuses(scene: Scene, access: str, said: str) -> None:
    found = scene.doctor(access)
    assert (found.code, found.diagnosis) == (1, "refused"), found
    assert said in found.advice
    assert found.told["addresses"][0]["reply"]["declared_source"] is None


def test_a_key_that_nobody_enrolled(scene: Scene) -> None:
    found = scene.doctor(person=scene.site.stranger(), timeout="2")
    assert (found.code, found.diagnosis) == (3, "silent"), found


def test_no_gate_at_all(scene: Scene) -> None:
    found = scene.doctor(host="bare", timeout="2")
    assert (found.code, found.diagnosis) == (3, "no gate"), found
    assert f"tcp/{PORT} of {scene.bare.v4} answers without one" in found.advice
    assert "leads to another machine" in found.advice
    assert "connect as it is" not in found.advice


def test_a_hole_of_before(scene: Scene) -> None:
    """The port answers, while the knocks of now are not heard, nor what closes it."""
    scene.knock(f"tcp/{PORT}")
    with firewall(f"udp dport {DEFAULT_PORT} drop", scene.router):
        found = scene.doctor(timeout="1")
    assert (found.code, found.diagnosis) == (3, "open already"), found
    assert "a hole of before is still open" in found.advice
    scene.alice.client(scene.client, "close", "site", f"tcp/{PORT}")


def test_a_name_that_means_nothing(scene: Scene) -> None:
    found = scene.doctor(host="nowhere")
    assert (found.code, found.diagnosis) == (4, "name"), found
    assert "cannot resolve no-such-host.invalid" in found.advice


def test_no_way_there(scene: Scene) -> None:
    scene.client.ip("route add unreachable 198.51.100.0/24")
    found = scene.doctor(host="far")
    assert (found.code, found.diagnosis) == (4, "route"), found
    assert "this machine has no way to 198.51.100.1: no route to host" in found.advice


def test_one_family_that_is_dead(scene: Scene) -> None:
    name = "two.test"
    hosts = scene.lab.new_file("hosts")
    hosts.write_text(f"{scene.server.v4} {name}\n{scene.server.v6} {name}\n")
    scene.alice.client(scene.server, "add", "two", scene.site.line, "--address", name)
    words = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    asked = [PROGRAMS / "spa-client", "doctor", "two", f"tcp/{PORT}", "--json"]
    argv = ["unshare", "--mount", "sh", "-c", words, "sh", *asked]
    with dropping("meta nfproto ipv6 meta l4proto { tcp, udp }", scene.server):
        run = scene.client.run(argv, env=scene.alice.env)
    told = json.loads(run.stdout)
    assert told["diagnosis"] == "one address only"
    assert "-4 spares you the wait" in told["advice"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda key: key.chmod(0o644), "is open to other users (mode 0644); run: chmod 600"),
        (lambda key: key.unlink(), "does not exist; make one with 'spa-keys generate'"),
        (lambda key: key.write_text("nonsense"), "is no private key of this program"),
    ],
    ids=["mode", "missing", "nonsense"],
)
def test_a_key_file_that_cannot_be_used(
    scene: Scene, spoil: Callable[[Any], object], said: str
) -> None:
    person = scene.site.stranger("careless")
    spoil(person.home / ".config" / "spa" / "keys" / "default.key")
    found = scene.doctor(person=person)
    assert (found.code, found.diagnosis) == (4, "key"), found
    assert said in found.advice
    assert [check["check"] for check in found.told["checks"]] == ["config", "key"]


def test_a_configuration_that_others_may_write(scene: Scene) -> None:
    config = scene.alice.home / ".config" / "spa" / "config.toml"
    config.chmod(0o666)
    found = scene.doctor()
    config.chmod(0o600)
    odd = [check for check in found.told["checks"] if check["mark"] == "odd"]
    assert [check["check"] for check in odd] == ["config"]
    assert "may be written by others" in odd[0]["text"]


def test_a_host_that_is_not_in_the_configuration(scene: Scene) -> None:
    found = scene.doctor(host="nobody")
    assert (found.code, found.diagnosis) == (2, "config"), found
    assert "no host 'nobody' in" in found.advice
