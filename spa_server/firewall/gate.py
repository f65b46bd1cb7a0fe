"""The gate as an nft script: a plan's values in the template `gate.nft`."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from string import Template
from typing import Final

from spa_protocol.access import Access, Protocol
from spa_protocol.carrier import Kind, ports_of
from spa_server.firewall.plan import (
    GatePlan,
    Observed,
    OpenPorts,
    PortRange,
    merged_ports,
    open_ports,
    ports_without,
)

TABLE: Final = "spa"
_ANSWERS: Final = 0x5350  # "SP"
RAW_ANSWER_PRIORITY: Final = _ANSWERS << 16 | 0xFFFF
"""The priority of an answer by a raw carrier: like those of `answer_priority`, but not by UDP."""
JUDGED_PRIORITY: Final = _ANSWERS << 16
"""The priority of a packet that the gate lets in, from there to the backstop (backstop.py), which
takes it off again. No queue sorts by it: its lower half is 0, as of packets that have none."""
_TO_THIS_HOST: Final = "{ local, broadcast, multicast, anycast }"
_CHAIN: Final = re.compile(r"^\s*chain (\w+) \{", re.MULTILINE)
_OBSERVED: Final = re.compile(
    r"^\s*(?:(\w+) dport (?:\{ )?([\d, -]+?)(?: \})? )?goto observe$", re.MULTILINE
)
_FOREIGN: Final = re.compile(r"\b(?:comment|include|define|redefine|undefine)\b|[^\t\n\x20-\x7e]")
_INDENT: Final = "\n    "


def render(plan: GatePlan) -> str:
    """What `nft -f -` loads to make the gate be as planned, in one transaction and in place."""
    return _template().substitute(
        knock_port=plan.knock_port,
        carriers=_rules(_carrier_rules(plan)),
        answers=_rules(_answer_rules(plan)),
        source_rate=plan.source_rate_per_s,
        source_burst=plan.source_burst,
        tag_rate=plan.tag_rate_per_s,
        tag_burst=plan.tag_burst,
        flooded_tag_rate=plan.flooded_tag_rate_per_s,
        flooded_tag_burst=plan.flooded_tag_burst,
        flooded_rate=plan.flooded_rate_per_s,
        flooded_burst=plan.flooded_burst,
        total_rate=plan.total_rate_per_s,
        total_burst=plan.total_burst,
        tags=plan.tags,
        cut=_rules(_cut_rules(plan)),
        ours=_rules(_rules_for_ours(plan)),
        delivered=_rules(_rules_for_delivered(plan)),
        not_ours=_rules(_rules_for_not_ours(plan)),
        observed=_rules(_observed_rules(plan.observed)),
        judged=_class(JUDGED_PRIORITY),
        always_open=_rules([_open_rule(rule) for rule in open_ports(plan.always_open)]),
    )


def render_removal() -> str:
    """What `nft -f -` loads to open every port again, whether the gate stands or not."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


def render_again(ruleset: str) -> str:
    """What `nft -f -` loads to make the gate be as nft listed it, in place.

    The listing comes twice: first so that every chain exists to be flushed, then to fill them.
    """
    chains = _CHAIN.findall(ruleset)
    flushes = "".join(f"flush chain inet {TABLE} {name}\n" for name in chains)
    return f"{ruleset}\n{flushes}{ruleset}\n"


def is_plain(ruleset: str) -> bool:
    """Whether a listing has only what a gate has: no comment, no other file, no control character.

    nft writes comments as they are, quotes and line ends included: what the daemon's user wrote
    into one would be a statement when root loads the listing again, `include` for one.
    """
    return _FOREIGN.search(ruleset) is None


def observed_in(script: str) -> Observed:
    """Which ports a gate observes, from its script or from nft's listing of it."""
    found = _OBSERVED.findall(script)
    accesses = (f"{label}/{ports}" for label, each in found if label for ports in each.split(", "))
    return Observed(
        everything=any(not label for label, _ in found),
        accesses=tuple(map(Access.parse, accesses)),
    )


@cache
def _template() -> Template:
    return Template(resources.files(__package__).joinpath("gate.nft").read_text("utf-8"))


def _rules(rules: list[str]) -> str:
    return _INDENT.join(rules) or "# none"


def _carrier_rules(plan: GatePlan) -> list[str]:
    datagrams, syns = _ports_beside(plan), ports_of(Kind.TCP_SYN, plan.carriers, plan.knock_port)
    rules = []
    if datagrams:
        rules.append(f"udp dport {_numbers(datagrams)} goto hear_datagram")
    if any(carrier.kind is Kind.ICMP for carrier in plan.carriers):
        rules.append("meta l4proto { icmp, ipv6-icmp } goto hear_echo")
    if syns:
        flags = "tcp flags & (fin | syn | rst | ack) == syn"
        rules.append(f"tcp dport {_numbers(syns)} {flags} goto hear_syn")
    return rules


def _answer_rules(plan: GatePlan) -> list[str]:
    """A priority of this kind takes CAP_NET_ADMIN to set: nobody else's packets are rewritten."""
    rules = [
        f"meta l4proto udp meta priority {_class(answer_priority(port))} "
        f"udp sport set {port} meta priority set none notrack"
        for port in (plan.knock_port, *_ports_beside(plan))
    ]
    if any(carrier.is_raw for carrier in plan.carriers):
        raw = f"meta priority {_class(RAW_ANSWER_PRIORITY)}"
        rules.append(
            f"meta l4proto {{ icmp, ipv6-icmp, tcp }} {raw} meta priority set none notrack"
        )
    return rules


def _ports_beside(plan: GatePlan) -> list[int]:
    """UDP ports beside the knock port."""
    every = ports_of(Kind.UDP, plan.carriers, plan.knock_port)
    return [port for port in every if port != plan.knock_port]


def answer_priority(port: int) -> int:
    """The priority (SO_PRIORITY) of an answer that is to leave from another UDP port.

    Not one of the small numbers that sort packets into bands.
    """
    return _ANSWERS << 16 | port


def _class(priority: int) -> str:
    """As nft writes it: two halves in hex."""
    return f"{priority >> 16:x}:{priority & 0xFFFF:x}"


def _numbers(ports: Iterable[int]) -> str:
    return f"{{ {', '.join(map(str, ports))} }}"


def _cut_rules(plan: GatePlan) -> list[str]:
    if plan.observed.everything:
        return []
    ranges = {
        protocol: ports_without(
            merged_ports(plan.cut, protocol), merged_ports(plan.observed.accesses, protocol)
        )
        for protocol in Protocol
    }
    return _port_rules(ranges, "jump cut")


def _observed_rules(observed: Observed) -> list[str]:
    if observed.everything:
        return ["goto observe"]
    ranges = {protocol: merged_ports(observed.accesses, protocol) for protocol in Protocol}
    return _port_rules(ranges, "goto observe")


def _port_rules(ranges: Mapping[Protocol, tuple[PortRange, ...]], verdict: str) -> list[str]:
    return [
        f"{protocol.label} dport {_ports(ports)} {verdict}"
        for protocol, ports in ranges.items()
        if ports
    ]


def _rules_for_ours(plan: GatePlan) -> list[str]:
    """Which packets are judged: all, those for this host, those that enter by `outer`.

    What is forwarded from elsewhere is not, but may be answered through `outer`.
    """
    if plan.outer is None:
        return ["goto judge"]
    for_this_host = f"fib daddr type {_TO_THIS_HOST} goto judge"
    if not plan.outer:
        return [for_this_host]
    return [for_this_host, f"iifname {_names(plan.outer)} goto judge", "jump midway_out"]


def _rules_for_delivered(plan: GatePlan) -> list[str]:
    """What of the packets for this host was not judged as `_rules_for_ours` has it.

    Of a VRF's packets the interface is the VRF's here, and `sdifname` that by which they entered.
    """
    if plan.outer is None:
        return ["accept"]  # all was judged; a base chain without rules is one that somebody emptied
    outer = _names(plan.outer) if plan.outer else ""
    judged = [f"iifname {outer} accept", f"meta sdifname {outer} accept"] if outer else []
    return [
        "iif lo accept",
        "meta l4proto != { tcp, udp, sctp, dccp, udplite } accept",
        *judged,
        "jump session",
        f"fib daddr type {_TO_THIS_HOST} accept",
        "ct status dnat accept",
        "goto judge",
    ]


def _rules_for_not_ours(plan: GatePlan) -> list[str]:
    """The same, the other way round."""
    if plan.outer is None:
        return []
    entered_elsewhere = f"iifname != {_names(plan.outer)} " if plan.outer else ""
    return [f"{entered_elsewhere}fib daddr type != {_TO_THIS_HOST} return"]


def _open_rule(rule: OpenPorts) -> str:
    ports = f"{rule.protocol.label} dport {_ports(rule.ports)}"
    if rule.is_from_anywhere:
        return f"meta nfproto ipv{rule.version} {ports} counter accept"
    source = "ip saddr" if rule.version == 4 else "ip6 saddr"
    networks = ", ".join(str(network) for network in rule.networks)
    return f"{ports} {source} {{ {networks} }} counter accept"


def _ports(ranges: tuple[PortRange, ...]) -> str:
    each = (f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
    return f"{{ {', '.join(each)} }}"


def _names(interfaces: tuple[str, ...]) -> str:
    quoted = ", ".join(f'"{name}"' for name in sorted(set(interfaces)))
    return f"{{ {quoted} }}"
