"""What a rule is about: the ports that it names, and how many packets it has met."""

from collections import Counter
from typing import Any

from spa_protocol.access import Access, Protocol
from spa_protocol.layout import Malformed
from spa_server.alignment.bypass import OURS
from spa_server.alignment.ruleset import Rule, Ruleset


def always_open_packets(ruleset: Ruleset) -> dict[str, int]:
    """The packets that each rule of the gate's `always_open` chain let in, by its ports.

    Rules for one list of ports, of either family, count together. Empty where they do not count.
    """
    packets: Counter[str] = Counter()
    for rule in ruleset.rules_of(*OURS, "always_open"):
        for kind, value in rule.statements:
            if kind == "counter" and isinstance(value, dict):
                ports = ", ".join(map(str, sorted(accesses_of(rule))))
                packets[ports] += int(value.get("packets", 0))
    return dict(packets)


def accesses_of(rule: Rule) -> list[Access]:
    """The protocols and destination ports that a rule is about; empty where it names no port."""
    protocols: set[Protocol] = set()
    of_any_protocol: list[tuple[int, int]] = []
    found: list[Access] = []
    for kind, value in rule.statements:
        if kind != "match" or not isinstance(value, dict) or value.get("op") not in {"==", "in"}:
            continue
        left = value.get("left")
        if not isinstance(left, dict):
            continue
        payload, right = left.get("payload"), value.get("right")
        if left.get("meta") == {"key": "l4proto"}:
            protocols |= {p for label in _items(right) if (p := _protocol(label))}
        elif isinstance(payload, dict) and payload.get("field") == "dport":
            ranges = [r for item in _items(right) if (r := _range(item))]
            protocol = _protocol(payload.get("protocol"))
            if protocol is None:
                of_any_protocol += ranges
            else:
                found += [a for first, last in ranges if (a := _access(protocol, first, last))]
    for protocol in sorted(protocols):
        found += [a for first, last in of_any_protocol if (a := _access(protocol, first, last))]
    return found


def _items(right: Any) -> list[Any]:
    """The members of a set, or the one value."""
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return list(right["set"])
    return list(right) if isinstance(right, list) else [right]


def _range(item: Any) -> tuple[int, int] | None:
    if isinstance(item, dict) and isinstance(item.get("range"), list):
        item = item["range"]
    ends = item if isinstance(item, list) else [item, item]
    if len(ends) == 2 and all(type(end) is int for end in ends):
        return ends[0], ends[1]
    return None


def _access(protocol: Protocol, first: int, last: int) -> Access | None:
    try:
        return Access(protocol, first, last)
    except Malformed:
        return None


def _protocol(label: Any) -> Protocol | None:
    return next((p for p in Protocol if label in (p.label, int(p))), None)
