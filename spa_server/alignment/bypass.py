"""Findings about what else handles packets: what lets them by the gate, and what stops them.

In words:

1.  nftables asks every base chain of a hook, in the order of their priorities. An `accept` ends its
    own chain only: the gate judges the packet all the same. A `drop` ends everything.
2.  So an earlier chain lets nothing by the gate by accepting. What does: handing packets to a
    program (which may answer NF_STOP), rewriting the port before the gate sees it, keeping packets
    from conntrack, and whatever takes packets at ingress, before any of this.
    Destination NAT is not among these: whatever its chain's priority, it is done at -100.
3.  A flowtable forwards what is established past every hook: a hole's end cuts nothing there.
4.  Another firewall, earlier or later, may stop what the gate lets through.
"""

from collections.abc import Iterator
from typing import Final

from spa_server.alignment.finding import Finding
from spa_server.alignment.ruleset import BaseChain, Rule, Ruleset, verdicts
from spa_server.firewall import backstop
from spa_server.firewall.gate import TABLE

OURS: Final = ("inet", TABLE)
_BACKSTOP: Final = ("inet", backstop.TABLE)
_GATE_PRIORITY: Final = -150
_IP_FAMILIES: Final = frozenset({"ip", "ip6", "inet"})
_STOPPING: Final = frozenset({"drop", "reject"})
_WAYS_IN: Final = frozenset({"prerouting", "input"})
# Targets of iptables that nft's JSON only names, by what they do.
_TARGETS: Final = {
    "DNAT": "dnat",
    "REDIRECT": "redirect",
    "NETMAP": "dnat",
    "NOTRACK": "notrack",
    "NFQUEUE": "queue",
    "REJECT": "reject",
    "DROP": "drop",
}
# What does not narrow down which packets a rule is about.
_ABOUT_ALL: Final = frozenset({"counter", "log", "limit", "drop", "reject", "comment"})


def check_bypass(ruleset: Ruleset) -> Iterator[Finding]:
    """Every chain and flowtable that is not the gate's."""
    for chain in ruleset.base_chains:
        if (chain.family, chain.table) in {OURS, _BACKSTOP}:
            continue
        if chain.hook == "ingress":
            yield from _at_ingress(chain, ruleset)
        elif chain.family in _IP_FAMILIES:
            if _is_before_the_gate(chain):
                yield from _before_the_gate(chain, ruleset)
            yield from _stopping(chain, ruleset)
    for flowtable in ruleset.flowtables:
        devices = ", ".join(flowtable.devices) or "some interfaces"
        where = f"{flowtable.family} {flowtable.table} {flowtable.name}"
        yield Finding(
            "flowtable",
            where,
            f"flowtable {where} carries established connections between {devices} past the gate: "
            "no end of a hole cuts them",
            "keep ports with sessions = 'cut' out of it, or delete it",
        )


def kinds(rule: Rule) -> frozenset[str]:
    """What a rule does, in nft's words, the targets of iptables translated."""
    return frozenset(_kind(kind, value, rule.text) for kind, value in verdicts(rule))


def _kind(kind: str, value: object, text: str) -> str:
    if kind == "mangle" and isinstance(value, dict) and "payload" in value.get("key", {}):
        return "rewrite"
    if kind != "xt" or not isinstance(value, dict) or value.get("type") != "target":
        return kind
    if value.get("name") == "CT":
        return "notrack" if text.endswith(("notrack", "CT --notrack")) else "ct"
    return _TARGETS.get(str(value.get("name")), "xt")


def _does(chain: BaseChain, ruleset: Ruleset) -> frozenset[str]:
    return frozenset[str]().union(*map(kinds, ruleset.reached_from(chain)))


def _is_before_the_gate(chain: BaseChain) -> bool:
    return chain.hook == "prerouting" and chain.type == "filter" and chain.prio <= _GATE_PRIORITY


def _before_the_gate(chain: BaseChain, ruleset: Ruleset) -> Iterator[Finding]:
    """Rule 2."""
    does, where = _does(chain, ruleset), _where(chain)
    worse = False
    if "queue" in does:
        worse = True
        yield Finding(
            "earlier-queue",
            where,
            f"{_named(chain)} hands packets to a program before the gate sees them, and the "
            "program may let them past it",
            f"queue them after the gate, at a priority above {_GATE_PRIORITY}",
        )
    if "notrack" in does:
        worse = True
        yield Finding(
            "earlier-notrack",
            where,
            f"{_named(chain)} keeps packets from conntrack: the gate cannot know what is "
            "established there",
            "delete the notrack rules, or be sure that no port of the policy is among them",
        )
    if "rewrite" in does:
        worse = True
        yield Finding(
            "earlier-rewrite",
            where,
            f"{_named(chain)} rewrites packets before the gate sees them: a rule for one port may "
            "open another",
            f"rewrite after the gate, at a priority above {_GATE_PRIORITY}",
        )
    if does and not worse and not does & _STOPPING:
        yield Finding(
            "earlier-hook",
            where,
            f"{_named(chain)} sees packets before the gate; what it accepts is still judged",
            "nothing, if you know it",
        )


def _at_ingress(chain: BaseChain, ruleset: Ruleset) -> Iterator[Finding]:
    """Before every hook of the IP families, and so before the gate."""
    does = _does(chain, ruleset)
    if "fwd" in does:
        yield Finding(
            "ingress-redirect",
            _where(chain),
            f"{_named(chain)} sends packets on at ingress: they never meet the gate",
            f"delete its fwd rules: nft --handle list table {chain.family} {chain.table}",
        )
    if does & _STOPPING or chain.policy == "drop":
        yield _drops(chain)


def _stopping(chain: BaseChain, ruleset: Ruleset) -> Iterator[Finding]:
    """Rule 4. Forwarding that is closed unless allowed is how containers are set up."""
    if chain.type != "filter":
        return
    own = ruleset.rules_of(chain.family, chain.table, chain.name)
    is_closed = chain.policy == "drop" or any(map(_stops_all, own))
    if is_closed and chain.hook in _WAYS_IN:
        yield Finding(
            "another-firewall",
            _where(chain),
            f"{_named(chain)} is closed by default as well: what the gate lets through may end "
            "there",
            "let the ports of the policy through there too, or delete the chain",
        )
    elif is_closed or _does(chain, ruleset) & _STOPPING:
        yield _drops(chain)


def _drops(chain: BaseChain) -> Finding:
    before = chain.hook == "ingress" or _is_before_the_gate(chain)
    what = "knocks too, if they are among them" if before else "whatever the gate let through"
    return Finding(
        "other-drops",
        _where(chain),
        f"{_named(chain)} drops or rejects some packets, {what}",
        f"nothing, if you know it; look: nft list table {chain.family} {chain.table}",
    )


def _stops_all(rule: Rule) -> bool:
    does = kinds(rule)
    return bool(does & _STOPPING) and does <= _ABOUT_ALL


def _where(chain: BaseChain) -> str:
    return f"{chain.family} {chain.table} {chain.name}"


def _named(chain: BaseChain) -> str:
    return f"chain {_where(chain)} ({chain.hook} {chain.prio})"
