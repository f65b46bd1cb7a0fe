"""Alignment's reading of the ruleset: what nft tells, and what follows for the gate."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spa_protocol.access import Access, Protocol
from spa_server.alignment.bypass import check_bypass
from spa_server.alignment.listeners import Listener, read_listeners
from spa_server.alignment.matches import accesses_of, always_open_packets
from spa_server.alignment.openings import Openings
from spa_server.alignment.processes import holders
from spa_server.alignment.published import Published, check_published, published_in
from spa_server.alignment.ruleset import Rule, Ruleset, parse_ruleset
from spa_server.firewall.kernel import FirewallError
from tests.test_policy import policy

ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
TCP_PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
TO_22 = {"match": {"op": "==", "left": TCP_PORT, "right": 22}}
REJECT = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
COUNTER = {"counter": {"packets": 3, "bytes": 180}}


def target(name: str) -> dict[str, Any]:
    return {"xt": {"type": "target", "name": name}}


def chain(name: str, hook: str | None = None, prio: int = 0, **more: Any) -> dict[str, Any]:
    made = {"family": "inet", "table": "other", "name": name, "handle": 1, **more}
    hooked = {"type": "filter", "hook": hook, "prio": prio, "policy": "accept"} if hook else {}
    return {"chain": {**hooked, **made}}


def rule(
    of: str, *expr: dict[str, Any], family: str = "inet", table: str = "other"
) -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": of, "handle": 2, "expr": expr}}


def ruleset(*objects: dict[str, Any]) -> Ruleset:
    meta = {"metainfo": {"version": "1.0.6", "json_schema_version": 1}}
    return parse_ruleset(json.dumps({"nftables": [meta, *objects]}))


def found(*objects: dict[str, Any]) -> list[str]:
    return [finding.name for finding in check_bypass(ruleset(*objects))]


def early(*expr: dict[str, Any]) -> list[str]:
    return found(chain("early", "prerouting", -400), rule("early", *expr))


# What other chains do


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ([ACCEPT], ["earlier-hook"]),
        ([TO_22, COUNTER, ACCEPT], ["earlier-hook"]),
        ([{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 4}}], ["earlier-hook"]),
        ([{"notrack": None}], ["earlier-notrack"]),
        ([{"queue": {"num": 3}}], ["earlier-queue"]),
        (
            [{"mangle": {"key": TCP_PORT, "value": 22}}],
            ["earlier-rewrite"],
        ),
        ([TO_22, DROP], ["other-drops"]),
        ([DROP], ["another-firewall"]),
        ([COUNTER, REJECT], ["another-firewall"]),
        ([target("NFQUEUE")], ["earlier-queue"]),
        ([target("NOTRACK")], ["earlier-notrack"]),
        ([TO_22, target("REJECT")], ["other-drops"]),
        ([target("CT")], ["earlier-hook"]),
        ([target("SOMETHING")], ["earlier-hook"]),
        ([{"xt": None}], ["earlier-hook"]),
        (
            [
                {
                    "vmap": {
                        "key": {},
                        "data": {"set": [[22, {"accept": None}], [23, {"drop": None}]]},
                    }
                }
            ],
            ["other-drops"],
        ),
        ([{"vmap": {"key": {}, "data": "@verdicts"}}], ["earlier-hook"]),
    ],
)
def test_a_chain_before_the_gate(expr: list[dict[str, Any]], names: list[str]) -> None:
    assert early(*expr) == names


def test_a_chain_without_rules_does_nothing() -> None:
    """iptables makes such chains by merely listing."""
    assert found(chain("early", "prerouting", -400)) == []


@pytest.mark.parametrize(
    ("prio", "names"), [(-300, ["earlier-hook"]), (-150, ["earlier-hook"]), (-149, [])]
)
def test_what_comes_after_the_gate_is_judged_before(prio: int, names: list[str]) -> None:
    """At the gate's own priority nobody knows which comes first."""
    assert found(chain("c", "prerouting", prio), rule("c", ACCEPT)) == names


def test_rules_behind_jumps_count_as_the_chain_s_own() -> None:
    jump, goto = {"jump": {"target": "sub"}}, {"goto": {"target": "subsub"}}
    objects = [
        chain("early", "prerouting", -400),
        chain("sub"),
        chain("subsub"),
        chain("idle"),
        rule("early", TO_22, jump),
        rule("sub", {"vmap": {"key": {}, "data": {"set": [[1, goto]]}}}),
        rule("subsub", {"notrack": None}, {"goto": {"target": "early"}}),
        rule("idle", {"queue": {"num": 1}}),
    ]
    assert found(*objects) == ["earlier-notrack"]


def test_what_a_named_map_leads_to_is_any_chain_of_its_table() -> None:
    """nft leaves out its elements."""
    objects = [
        chain("early", "prerouting", -400),
        chain("sub"),
        rule("early", {"vmap": {"key": {}, "data": "@verdicts"}}),
        rule("sub", {"notrack": None}),
    ]
    assert found(*objects) == ["earlier-notrack"]
    elsewhere = [chain("sub", table="third"), rule("sub", {"queue": None}, table="third")]
    assert found(*objects, *elsewhere) == ["earlier-notrack"]


def test_an_iptables_target_is_what_nft_translates_it_to() -> None:
    """CT is notrack or the choice of a helper; JSON does not tell which."""
    read = ruleset(chain("early", "prerouting", -300), rule("early", target("CT")))
    (opaque,) = read.rules
    for text, name in (
        ("tcp dport 33 counter packets 0 bytes 0 notrack", "earlier-notrack"),
        ('tcp dport 21 counter packets 0 bytes 0 xt target "CT"', "earlier-hook"),
    ):
        told = Rule(opaque.family, opaque.table, opaque.chain, opaque.handle, opaque.expr, text)
        findings = check_bypass(Ruleset(read.chains, [told]))
        assert [f.name for f in findings] == [name]


@pytest.mark.parametrize(
    ("hook", "policy_", "expr", "names"),
    [
        ("input", "drop", [ACCEPT], ["another-firewall"]),
        ("input", "accept", [TO_22, DROP], ["other-drops"]),
        ("input", "accept", [TO_22, ACCEPT], []),
        ("input", "accept", [{"limit": {"rate": 1}}, DROP], ["another-firewall"]),
        ("forward", "drop", [ACCEPT], ["other-drops"]),
        ("forward", "accept", [DROP], ["other-drops"]),
        ("output", "drop", [ACCEPT], ["other-drops"]),
        ("postrouting", "accept", [ACCEPT], []),
    ],
)
def test_another_firewall(
    hook: str, policy_: str, expr: list[dict[str, Any]], names: list[str]
) -> None:
    assert found(chain("c", hook, policy=policy_), rule("c", *expr)) == names


@pytest.mark.parametrize("prio", [-199, -150, -100, 0])
def test_nat_translates_after_the_gate_whatever_its_priority(prio: int) -> None:
    nat = chain("nat", "prerouting", prio, type="nat")
    assert found(nat, rule("nat", TO_22, {"dnat": {"addr": "10.0.0.2", "port": 80}})) == []


@pytest.mark.parametrize(
    ("family", "expr", "names"),
    [
        ("netdev", [{"fwd": {"dev": "lo"}}], ["ingress-redirect"]),
        ("inet", [{"fwd": {"dev": "eth1"}}], ["ingress-redirect"]),
        ("netdev", [ACCEPT], []),
        ("netdev", [TO_22, DROP], ["other-drops"]),
    ],
)
def test_what_happens_at_ingress(family: str, expr: list[dict[str, Any]], names: list[str]) -> None:
    assert found(chain("i", "ingress", family=family), rule("i", *expr, family=family)) == names


def test_the_gate_is_no_stranger_and_arp_no_port() -> None:
    ours = chain("gate", "prerouting", -150, table="spa")
    assert found(ours, rule("gate", DROP, table="spa")) == []
    arp = chain("in", "input", -300, family="arp", policy="drop")
    assert found(arp) == []


@pytest.mark.parametrize("dev", ["eth0", ["eth0", "eth1"]])
def test_a_flowtable(dev: object) -> None:
    table = {"family": "inet", "name": "ft", "table": "other", "handle": 1, "prio": 0, "dev": dev}
    flow = {"flow": {"op": "add", "flowtable": "@ft"}}
    objects = [{"flowtable": table}, chain("fw", "forward"), rule("fw", flow)]
    (finding,) = check_bypass(ruleset(*objects))
    assert (finding.name, finding.subject) == ("flowtable", "inet other ft")
    assert "eth0" in finding.what


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"nftables": {}}',
        '{"nftables": [{"rule": {}}]}',
        '{"nftables": [{"chain": {"family": "inet", "table": "t", "name": "c", "prio": "x"}}]}',
        json.dumps({"nftables": [{"rule": {**rule("c")["rule"], "expr": 3}}]}),
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(FirewallError, match="not understood"):
        parse_ruleset(text)


# Ports in rules


def dport(protocol: str, right: object, op: str = "==") -> dict[str, Any]:
    left = {"payload": {"protocol": protocol, "field": "dport"}}
    return {"match": {"op": op, "left": left, "right": right}}


def l4proto(right: object) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": right}}


@pytest.mark.parametrize(
    ("expr", "accesses"),
    [
        ([dport("tcp", 22)], "tcp/22"),
        ([dport("sctp", {"set": [7, {"range": [80, 90]}]})], "sctp/7 sctp/80-90"),
        ([dport("udp", {"range": [80, 90]})], "udp/80-90"),
        ([l4proto({"set": ["tcp", "udp"]}), dport("th", 53)], "tcp/53 udp/53"),
        ([dport("th", 53), l4proto("udp")], "udp/53"),
        ([l4proto("udp")], ""),
        ([dport("th", 53)], ""),
        ([dport("tcp", 22, "!=")], ""),
        ([dport("tcp", "@ports")], ""),
        ([dport("tcp", 0)], ""),
        ([dport("tcp", {"range": [9, 7]})], ""),
        ([dport("tcp", True)], ""),
        ([dport("dccp", 5)], ""),
        ([{"match": None}, {"match": {"op": "=="}}, {"match": {"op": "==", "left": 3}}], ""),
    ],
)
def test_the_ports_that_a_rule_names(expr: list[dict[str, Any]], accesses: str) -> None:
    found = accesses_of(Rule("inet", "t", "c", 1, tuple(expr)))
    assert found == [Access.parse(text) for text in accesses.split()]


def test_what_always_open_rules_have_let_in() -> None:
    def counted(packets: int, *expr: dict[str, Any]) -> dict[str, Any]:
        counter = {"counter": {"packets": packets, "bytes": 0}}
        return rule("always_open", *expr, counter, ACCEPT, table="spa")

    read = ruleset(
        chain("always_open", table="spa"),
        counted(2, dport("tcp", 22)),
        counted(3, dport("tcp", 22)),
        counted(0, dport("udp", {"set": [53, 123]})),
        rule("always_open", dport("tcp", 80), ACCEPT, table="spa"),
        rule("elsewhere", dport("tcp", 81), COUNTER, ACCEPT, table="spa"),
    )
    assert always_open_packets(read) == {"tcp/22": 5, "udp/53, udp/123": 0}


# Published ports

NAT = chain("nat", "prerouting", -100, type="nat", family="ip")


LOOPBACK = {"prefix": {"addr": "127.0.0.0", "len": 8}}


def nat(*expr: dict[str, Any], of: str = "nat") -> dict[str, Any]:
    return rule(of, *expr, family="ip")


def to(addr: object, **more: object) -> dict[str, Any]:
    return {"dnat": {"addr": addr, **more}}


def daddr(right: object) -> dict[str, Any]:
    left = {"payload": {"protocol": "ip", "field": "daddr"}}
    return {"match": {"op": "==", "left": left, "right": right}}


@pytest.mark.parametrize(
    ("expr", "published"),
    [
        ([dport("tcp", 80), to("10.0.0.2", port=8080)], [("tcp/80", "10.0.0.2:8080")]),
        ([dport("tcp", 80), to("fd00::2", port=8080)], [("tcp/80", "[fd00::2]:8080")]),
        ([dport("tcp", 80), to("10.0.0.2")], [("tcp/80", "10.0.0.2")]),
        ([dport("tcp", 80), to({"map": {}})], [("tcp/80", "somewhere")]),
        ([daddr("192.0.2.1"), dport("tcp", 80), to("10.0.0.2")], [("tcp/80", "10.0.0.2")]),
        ([daddr("127.0.0.1"), dport("tcp", 80), to("10.0.0.2")], []),
        ([daddr(LOOPBACK), dport("tcp", 80), to("10.0.0.2")], []),
        ([to("10.0.0.2")], []),
        ([dport("tcp", 80), ACCEPT], []),
    ],
)
def test_ports_that_lead_into_containers(
    expr: list[dict[str, Any]], published: list[tuple[str, str]]
) -> None:
    found = published_in(ruleset(NAT, nat(*expr)))
    assert [(str(one.access), one.destination) for one in found] == published


def test_docker_publishes_behind_a_jump_in_words_that_json_lacks() -> None:
    read = ruleset(
        NAT,
        chain("DOCKER", family="ip"),
        nat({"xt": {"type": "match", "name": "addrtype"}}, {"jump": {"target": "DOCKER"}}),
        nat(dport("tcp", 8080), COUNTER, target("DNAT"), of="DOCKER"),
    )
    jump, dnat = read.rules
    text = 'iifname != "docker0" tcp dport 8080 counter packets 0 bytes 0 dnat to 172.17.0.2:80'
    told = Rule(dnat.family, dnat.table, dnat.chain, dnat.handle, dnat.expr, text)
    port = Access.parse("tcp/8080")
    assert published_in(Ruleset(read.chains, [jump, told])) == [Published(port, "172.17.0.2:80")]
    assert published_in(read) == [Published(port, "somewhere")]


def test_a_published_port_is_told_whether_a_rule_opens_it_or_not() -> None:
    rules = policy('[services]\nweb = "tcp/80"\n[roles.r]\n[[roles.r.allow]]\nservices = ["web"]\n')
    some = [Published(Access.parse(text), "10.0.0.2:80") for text in ("tcp/80", "tcp/81")]
    opened, closed = check_published(some, Openings(rules))
    assert (
        opened.what
        == "tcp/80, which roles.r.allow[0] opens, leads to 10.0.0.2:80, not to this host"
    )
    assert closed.what.endswith("is opened by no rule: nobody reaches it")


# Sockets of this host


@pytest.fixture
def sockets() -> Iterator[dict[str, socket.socket]]:
    """Nobody is spoken to: they are bound, and that is all."""
    with (
        closing(socket.socket(socket.AF_INET)) as tcp4,
        closing(socket.socket(socket.AF_INET6)) as tcp6,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as udp,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as connected,
        closing(socket.socket(socket.AF_INET)) as local,
        closing(socket.socket(socket.AF_INET)) as bound,
    ):
        for listening, address in ((tcp4, "0.0.0.0"), (tcp6, "::"), (local, "127.0.0.1")):  # noqa: S104
            listening.bind((address, 0))
            listening.listen()
        udp.bind(("0.0.0.0", 0))  # noqa: S104
        bound.bind(("0.0.0.0", 0))  # noqa: S104
        connected.connect(("127.0.0.1", 9))
        yield {
            "tcp4": tcp4,
            "tcp6": tcp6,
            "udp": udp,
            "connected": connected,
            "local": local,
            "bound": bound,
        }


def test_sockets_that_wait_for_others_are_found_with_their_owner(
    sockets: dict[str, socket.socket],
) -> None:
    """Not those that talk to one peer, that only this host reaches, that do not listen yet."""
    names = {os.fstat(each.fileno()).st_ino: name for name, each in sockets.items()}
    seen = {names[found.inode]: found for found in read_listeners() if found.inode in names}
    assert set(seen) == {"tcp4", "tcp6", "udp"}
    for name, found in seen.items():
        assert isinstance(found, Listener)
        assert found.port == sockets[name].getsockname()[1]
        assert str(found.address) == sockets[name].getsockname()[0]
        assert found.uid == os.geteuid()
        assert found.protocol is (Protocol.UDP if name == "udp" else Protocol.TCP)
    held = holders([found.inode for found in seen.values()])
    assert {process.pid for process in held.values()} == {os.getpid()}
    assert {process.program for process in held.values()} == {str(Path(sys.executable).resolve())}
    assert len(held) == 3


def test_a_socket_that_a_child_inherits_is_its_maker_s(sockets: dict[str, socket.socket]) -> None:
    inode = os.fstat(sockets["tcp4"].fileno()).st_ino
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        assert holders([inode])[inode].pid == os.getpid()
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def test_nobody_holds_what_is_no_socket() -> None:
    assert holders([]) == {}
    assert holders([0]) == {}
    assert holders([2**63]) == {}
