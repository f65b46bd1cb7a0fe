"""Ports that lead into containers: destination NAT, as Docker and others publish ports with it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from spa_protocol.access import Access
from spa_server.alignment.bypass import OURS, kinds
from spa_server.alignment.finding import Finding
from spa_server.alignment.matches import accesses_of
from spa_server.alignment.openings import Openings
from spa_server.alignment.ruleset import Rule, Ruleset

_DESTINATION: Final = re.compile(r"\bdnat to (\S+)")
_UNKNOWN: Final = "somewhere"


@dataclass(frozen=True, slots=True)
class Published:
    """A port of this host, and where packets to it go instead: `10.0.0.2:80`."""

    access: Access
    destination: str


def published_in(ruleset: Ruleset) -> list[Published]:
    """Every port that a chain at prerouting translates, for others than this host itself."""
    found: dict[Published, None] = {}
    for chain in ruleset.base_chains:
        if chain.hook != "prerouting" or (chain.family, chain.table) == OURS:
            continue
        for rule in ruleset.reached_from(chain):
            if "dnat" in kinds(rule) and not _is_for_loopback(rule):
                for access in accesses_of(rule):
                    found[Published(access, _destination(rule))] = None
    return list(found)


def check_published(published: Iterable[Published], openings: Openings) -> Iterator[Finding]:
    """What is published, and whether anybody can reach it."""
    for one in published:
        rules = openings.rules_for(one.access)
        if rules:
            what = f"which {', '.join(rules)} opens, leads to {one.destination}, not to this host"
            advice = "nothing, if the rule means it"
        else:
            what = f"published to {one.destination}, is opened by no rule: nobody reaches it"
            advice = "give a role an allow for it, or do not publish it"
        yield Finding(
            "docker-published", f"{one.access} {one.destination}", f"{one.access}, {what}", advice
        )


def _is_for_loopback(rule: Rule) -> bool:
    """Docker publishes to 127.0.0.1 by a rule for that address."""
    for kind, value in rule.statements:
        if kind == "match" and isinstance(value, dict) and value.get("op") == "==":
            left, right = value.get("left"), value.get("right")
            payload = left.get("payload") if isinstance(left, dict) else None
            if isinstance(payload, dict) and payload.get("field") == "daddr":
                return _is_loopback(right)
    return False


def _is_loopback(address: Any) -> bool:
    prefix = address.get("prefix") if isinstance(address, dict) else None
    text = prefix.get("addr") if isinstance(prefix, dict) else address
    try:
        return isinstance(text, str) and ip_address(text).is_loopback
    except ValueError:
        return False


def _destination(rule: Rule) -> str:
    """Where the rule sends a packet; what nft writes no plain address for is `somewhere`."""
    for kind, value in rule.statements:
        if kind == "dnat" and isinstance(value, dict) and isinstance(value.get("addr"), str):
            port = value.get("port")
            host = f"[{value['addr']}]" if ":" in value["addr"] else value["addr"]
            return f"{host}:{port}" if isinstance(port, int) else host
    told = _DESTINATION.search(rule.text)
    return told[1] if told else _UNKNOWN
