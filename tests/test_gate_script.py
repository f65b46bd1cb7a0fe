"""The gate as an nft script. Real packets meet it in integration/gate/test_closed.py."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_protocol.access import Access, Protocol
from spa_protocol.carrier import Carrier
from spa_server.firewall.gate import JUDGED_PRIORITY, observed_in, render, render_removal
from spa_server.firewall.plan import (
    AlwaysOpen,
    BadPlan,
    GatePlan,
    Observed,
    OpenPorts,
    merged_ports,
    open_ports,
    ports_without,
)


def rules_of(script: str, chain: str) -> list[str]:
    """The rules of a chain, without comments."""
    filled = re.findall(rf"^  chain {chain} {{\n(.*?)^  }}", script, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in "".join(filled).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_default_plan_closes_every_port_whatever_it_comes_in_by() -> None:
    script = render(GatePlan())
    ports = ". th sport . ip daddr . meta l4proto . th dport"
    assert "$" not in script
    assert rules_of(script, "gate") == [
        "iif lo accept",
        "meta l4proto != { tcp, udp, sctp, dccp, udplite } accept",
        f"ip saddr {ports} @stopped4 goto stop4",
        f"ip6 saddr {ports} @stopped6 goto stop6".replace("ip daddr", "ip6 daddr"),
        "jump session",
        "goto judge",
    ]
    assert rules_of(script, "stop4")[-1] == rules_of(script, "stop6")[-1] == "drop"
    assert rules_of(script, "always_open") == []
    assert rules_of(script, "judge")[-1] == "goto deny"
    assert rules_of(script, "deny")[-1].endswith("drop")
    assert "goto observe" not in script


def test_every_chain_is_flushed_and_filled_and_no_base_chain_is_deleted() -> None:
    script = render(GatePlan(cut=(Access(Protocol.TCP, 1, 1),)))
    declared = re.findall(r"^  chain (\w+) { (?:.*; )?}$", script, re.MULTILINE)
    flushed = re.findall(r"^flush chain inet spa (\w+)$", script, re.MULTILINE)
    assert declared == flushed
    # A base chain without rules is one that somebody emptied: `Gate.is_loaded`.
    assert [chain for chain in declared if not rules_of(script, chain)] == ["always_open"]
    verbs = set(re.findall(r"^(\w+)", script, re.MULTILINE))
    assert verbs == {"table", "flush"}


def test_sets_keep_what_they_hold() -> None:
    """None is given elements; what a policy lists is in sets without a name."""
    script = render(GatePlan(always_open=(AlwaysOpen(IPv4Network("10.0.0.0/8"), SSH),), cut=(SSH,)))
    assert re.findall(r"^  set (\w+) ", script, re.MULTILINE)
    assert "elements" not in script


SSH = Access(Protocol.TCP, 22, 22)
MARK = "meta priority set 5350:0"
NO_MARK = "meta priority set none"
WEB = Access(Protocol.TCP, 80, 89)


@pytest.mark.parametrize(
    ("outer", "judged", "left_alone"),
    [
        (None, ["goto judge"], []),
        (
            (),
            ["fib daddr type { local, broadcast, multicast, anycast } goto judge"],
            ["fib daddr type != { local, broadcast, multicast, anycast } return"],
        ),
        (
            ("wg0", "eth0", "eth0"),
            [
                "fib daddr type { local, broadcast, multicast, anycast } goto judge",
                'iifname { "eth0", "wg0" } goto judge',
                "jump midway_out",
            ],
            [
                'iifname != { "eth0", "wg0" } '
                "fib daddr type != { local, broadcast, multicast, anycast } return"
            ],
        ),
    ],
    ids=["no default route known", "only this host", "two outer interfaces"],
)
def test_which_packets_are_judged(
    outer: tuple[str, ...] | None, judged: list[str], left_alone: list[str]
) -> None:
    script = render(GatePlan(outer=outer))
    gate = rules_of(script, "gate")
    assert gate[gate.index("jump session") + 1 :] == judged
    cut = rules_of(script, "cut")
    assert cut[: cut.index("jump always_open")] == [*left_alone, MARK]


def test_what_is_let_in_bears_the_mark_that_the_backstop_asks_for() -> None:
    """Whatever a chain behind `judge` accepts does, and nothing that `deny` is to deny."""
    script = render(GatePlan(cut=(SSH,)))
    assert f"meta priority set {JUDGED_PRIORITY >> 16:x}:{JUDGED_PRIORITY & 0xFFFF:x}" == MARK
    judge, cut = rules_of(script, "judge"), rules_of(script, "cut")
    assert (judge[0], judge[-2:]) == (MARK, [NO_MARK, "goto deny"])
    opened = cut.index("jump always_open")
    assert cut[opened - 1 : opened + 2] == [MARK, "jump always_open", NO_MARK]
    answers = rules_of(
        script, "answers"
    )  # have a priority of their own, which is taken off as well
    others = script.count(NO_MARK) - sum(rule.count(NO_MARK) for rule in answers)
    assert script.count(MARK) == others == 2


def test_cut_ports_come_before_what_conntrack_says() -> None:
    cut = (WEB, Access(Protocol.TCP, 90, 95), SSH, Access(Protocol.SCTP, 7, 7))
    rules = rules_of(render(GatePlan(cut=cut)), "gate")
    assert rules[4:7] == [
        "tcp dport { 22, 80-95 } jump cut",
        "sctp dport { 7 } jump cut",
        "jump session",
    ]


def test_where_everything_is_observed_nothing_is_denied_or_cut() -> None:
    script = render(GatePlan(cut=(SSH,), observed=Observed(everything=True)))
    assert rules_of(script, "judge")[-3:] == ["goto observe", NO_MARK, "goto deny"]
    assert "jump cut" not in script
    assert not any("drop" in rule for rule in rules_of(script, "observe"))


def test_what_is_observed_is_judged_first_and_is_not_cut() -> None:
    observed = Observed(accesses=(WEB, Access(Protocol.UDP, 53, 53), Access(Protocol.TCP, 90, 92)))
    script = render(GatePlan(cut=(SSH, Access(Protocol.TCP, 88, 99)), observed=observed))
    judge = rules_of(script, "judge")
    assert judge[judge.index("jump begin") + 1 :] == [
        "tcp dport { 80-92 } goto observe",
        "udp dport { 53 } goto observe",
        NO_MARK,
        "goto deny",
    ]
    assert [rule for rule in rules_of(script, "gate") if "cut" in rule] == [
        "tcp dport { 22, 93-99 } jump cut"
    ]


def test_always_open_is_one_rule_for_each_set_of_networks() -> None:
    plan = GatePlan(
        always_open=(
            AlwaysOpen(IPv4Network("10.9.0.0/24"), WEB),
            AlwaysOpen(IPv4Network("10.9.1.0/24"), Access(Protocol.TCP, 85, 85)),
            AlwaysOpen(IPv4Network("10.9.0.7/32"), SSH),
            AlwaysOpen(IPv4Network("0.0.0.0/0"), Access(Protocol.UDP, 53, 53)),
            AlwaysOpen(IPv6Network("2001:db8::/32"), SSH),
        )
    )
    assert sorted(rules_of(render(plan), "always_open")) == [
        "meta nfproto ipv4 udp dport { 53 } counter accept",
        "tcp dport { 22 } ip saddr { 10.9.0.7/32 } counter accept",
        "tcp dport { 22 } ip6 saddr { 2001:db8::/32 } counter accept",
        "tcp dport { 80-84, 86-89 } ip saddr { 10.9.0.0/24 } counter accept",
        "tcp dport { 85 } ip saddr { 10.9.0.0/23 } counter accept",
    ]


def test_the_knock_port_and_the_limits_are_the_plans() -> None:
    plan = GatePlan(
        knock_port=1234, source_rate_per_s=3, source_burst=4, tag_rate_per_s=5, tag_burst=6
    )
    script = render(plan)
    assert rules_of(script, "knock") == ["udp dport 1234 fib daddr type local goto hear"]
    assert "limit rate 3/second burst 4 packets" in " ".join(rules_of(script, "hear_at_8"))
    assert "limit rate 5/second burst 6 packets" in rules_of(script, "hear_tag_at_8")[0]
    assert "62201" not in script


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a b",
        'eth0" }',
        "eth*",
        "a/b",
        "a:b",
        "sixteen-letters-",
        "é",
        "a\n",
        "$x",
        "{",
    ],
)
def test_a_name_that_is_no_interface_is_refused(name: str) -> None:
    with pytest.raises(BadPlan, match="interface"):
        GatePlan(outer=("eth0", name))


def test_real_interface_names_are_taken() -> None:
    GatePlan(outer=("eth0", "enp0s31f6", "br-1a2b3c4d5e6f", "eth0.100", "wg_home", "veth@if7"))


def test_a_port_or_limit_of_zero_is_refused() -> None:
    for wrong in ({"knock_port": 0}, {"knock_port": 65536}, {"tag_burst": 0}, {"source_burst": 0}):
        with pytest.raises(BadPlan):
            GatePlan(**wrong)  # type: ignore[arg-type] # every value is an int


def test_removing_takes_the_table_that_may_not_be_there() -> None:
    assert render_removal().splitlines() == ["add table inet spa", "delete table inet spa"]


# Few addresses and ports, so that what is drawn overlaps.
addresses4 = st.integers(0, 15).map(lambda n: IPv4Address(0x0A000000 + n))
networks = st.one_of(
    st.builds(
        lambda address, length: ip_network((address, length), strict=False),
        addresses4,
        st.sampled_from([0, 28, 29, 30, 31, 32]),
    ),
    st.sampled_from([IPv6Network("::/0"), IPv6Network("fd00::/126"), IPv6Network("fd00::1/128")]),
)
accesses = st.builds(
    lambda protocol, ports: Access(protocol, min(ports), max(ports)),
    st.sampled_from(Protocol),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
entries = st.lists(st.builds(AlwaysOpen, networks, accesses), max_size=8)


def is_let_in(rule: OpenPorts, source: str, protocol: Protocol, port: int) -> bool:
    return (
        rule.protocol is protocol
        and any(first <= port <= last for first, last in rule.ports)
        and any(ip_address(source) in network for network in rule.networks)
    )


@given(entries)
def test_always_open_lets_in_what_some_entry_lets_in(drawn: list[AlwaysOpen]) -> None:
    rules = open_ports(drawn)
    for source in ("10.0.0.0", "10.0.0.6", "10.0.0.15", "192.0.2.1", "fd00::1", "2001:db8::1"):
        for protocol in Protocol:
            for port in range(1, 14):
                wanted = any(
                    ip_address(source) in entry.network
                    and Access(protocol, port, port) in entry.access
                    for entry in drawn
                )
                let_in = [rule for rule in rules if is_let_in(rule, source, protocol, port)]
                assert len(let_in) == wanted


@given(entries)
def test_nothing_in_one_rule_overlaps(drawn: list[AlwaysOpen]) -> None:
    for rule in open_ports(drawn):
        assert len({network.version for network in rule.networks}) == 1
        assert not any(a.overlaps(b) for a, b in combinations(rule.networks, 2))
        for (_, last), (first, _) in zip(rule.ports, rule.ports[1:], strict=False):
            assert last + 1 < first


@given(st.lists(accesses, max_size=8))
def test_merged_ranges_cover_the_same_ports(drawn: list[Access]) -> None:
    for protocol in Protocol:
        merged = [
            p for first, last in merged_ports(drawn, protocol) for p in range(first, last + 1)
        ]
        assert merged == sorted({p for a in drawn if a.protocol is protocol for p in a.ports})


@given(st.lists(accesses, max_size=6), st.lists(accesses, max_size=6))
def test_ports_without_others_are_those_that_the_others_have_not(
    drawn: list[Access], others: list[Access]
) -> None:
    for protocol in Protocol:
        left = ports_without(merged_ports(drawn, protocol), merged_ports(others, protocol))
        ports = [port for first, last in left for port in range(first, last + 1)]
        removed = {p for a in others if a.protocol is protocol for p in a.ports}
        wanted = {p for a in drawn if a.protocol is protocol for p in a.ports} - removed
        assert ports == sorted(wanted)


@given(st.builds(Observed, st.booleans(), st.lists(accesses, max_size=6).map(tuple)))
def test_a_script_tells_what_it_observes(observed: Observed) -> None:
    told = observed_in(render(GatePlan(observed=observed)))
    assert bool(told) is bool(observed)
    assert told.everything is observed.everything
    every_port = [Access(protocol, port, port) for protocol in Protocol for port in range(1, 14)]
    assert [each in told for each in every_port] == [each in observed for each in every_port]


# Carriers

CARRIERS = ("udp", "udp:53", "udp:443", "udp:1234", "icmp", "tcp-syn", "tcp-syn:443")


def test_other_carriers_are_off_unless_they_are_planned() -> None:
    script = render(GatePlan())
    assert rules_of(script, "knock") == ["udp dport 62201 fib daddr type local goto hear"]
    assert rules_of(script, "answers") == [
        "meta l4proto udp meta priority 5350:f2f9 udp sport set 62201 "
        "meta priority set none notrack",
    ]


def test_each_carrier_has_its_rule_and_its_answers() -> None:
    carriers = tuple(map(Carrier.parse, CARRIERS))
    script = render(GatePlan(knock_port=1234, carriers=carriers))
    assert rules_of(script, "knock") == [
        "udp dport 1234 fib daddr type local goto hear",
        "udp dport { 53, 443 } goto hear_datagram",
        "meta l4proto { icmp, ipv6-icmp } goto hear_echo",
        "tcp dport { 443, 1234 } tcp flags & (fin | syn | rst | ack) == syn goto hear_syn",
    ]
    assert rules_of(script, "answers") == [
        "meta l4proto udp meta priority 5350:4d2 udp sport set 1234 meta priority set none notrack",
        "meta l4proto udp meta priority 5350:35 udp sport set 53 meta priority set none notrack",
        "meta l4proto udp meta priority 5350:1bb udp sport set 443 meta priority set none notrack",
        "meta l4proto { icmp, ipv6-icmp, tcp } meta priority 5350:ffff "
        "meta priority set none notrack",
    ]


def test_a_tag_is_held_against_the_same_rules_wherever_it_stands() -> None:
    script = render(GatePlan())
    for chain in ("hear", "hear_tag"):
        near, far = (
            [rule.replace(at, "TAG").replace(f"_at_{offset}", "") for rule in rules]
            for offset, at in ((8, "@th,64,64"), (20, "@th,160,64"))
            if (rules := rules_of(script, f"{chain}_at_{offset}"))
        )
        assert near == far


def test_by_another_carrier_only_an_admitted_tag_is_dropped() -> None:
    script = render(GatePlan(carriers=tuple(map(Carrier.parse, CARRIERS))))
    for chain in ("hear_datagram", "hear_echo", "hear_syn"):
        rules = rules_of(script, chain)
        assert rules
        for rule in rules:
            assert " @admitted fib daddr type local goto hear_at_" in rule or "return" in rule
            assert "drop" not in rule
