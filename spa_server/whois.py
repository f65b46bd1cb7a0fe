"""Who is behind a connection, as a running daemon knows it."""

from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final

from keys.when import rfc3339
from spa_protocol.access import Access
from spa_protocol.layout import Address, unmapped
from spa_server import attribution
from spa_server.attribution import Permitted
from spa_server.connections import ConnectionLog
from spa_server.ctentry import Entry
from spa_server.firewall.plan import Observed
from spa_server.flow import Flow
from spa_server.grants import Grant
from spa_server.hole import Hole
from spa_server.policy.model import Policy

UNKNOWN: Final = (
    "no knock that is known here opened it; it was there before the gate, or came while no daemon"
    " ran"
)


def answer(
    asked: Mapping[str, Any],
    log: ConnectionLog,
    holders: Callable[[Hole], list[Grant]],
    policy: Policy,
    observed: Observed,
) -> dict[str, Any]:
    """Every live connection from the `source` and `port` asked for, `to` one access or any.

    Where there is none, `remarks` say why it may be unknown, and for the `target` and `to` of a
    connection that conntrack has, `why` says how it may have come in. Raises ValueError, KeyError,
    TypeError for what is no question, NetlinkError.
    """
    source, port = ip_address(str(asked["source"])), int(asked["port"])
    to = None if asked.get("to") is None else parse_access(str(asked["to"]))
    connections = list(_live(log, holders, source, port, to))
    found: dict[str, Any] = {"connections": connections, "remarks": list(_remarks(log))}
    if not connections and to is not None and asked.get("target") is not None:
        flow = Flow(source, port, ip_address(str(asked["target"])), to.protocol, to.first)
        found["why"] = explained(flow, policy, observed)
    return found


def _live(
    log: ConnectionLog,
    holders: Callable[[Hole], list[Grant]],
    source: Address,
    port: int,
    to: Access | None,
) -> Iterator[dict[str, Any]]:
    tracker = log.ends.tracker
    if tracker is None:
        return
    for key, permitted in log.live.from_source(source, port):
        if to is None or str(to) == permitted.flow.access:
            entry = tracker.get(key)
            if entry is not None:
                yield _described(permitted, entry, holders)


def _described(
    of: Permitted, entry: Entry, holders: Callable[[Hole], list[Grant]]
) -> dict[str, Any]:
    flow = of.flow
    return {
        "source": str(flow.source),
        "source_port": flow.source_port,
        "target": str(flow.target),
        "access": flow.access,
        "identity": of.identity,
        "ambiguous": list(of.ambiguous),
        "key_id": of.key_id,
        "rule": of.rule,
        "grant": of.grant_id,
        "since": rfc3339(of.at_us),
        "open_until": _open_until(flow, holders),
        "state": entry.state or None,
        **attribution.figures_of(entry),
    }


def _open_until(flow: Flow, holders: Callable[[Hole], list[Grant]]) -> str | None:
    """When the hole closes through which it came, if it is open; renewals count."""
    grants = (grant for hole in attribution.holes_of(flow) for grant in holders(hole))
    last_us = max((grant.expires_at_us for grant in grants), default=None)
    return None if last_us is None else rfc3339(last_us)


def _remarks(log: ConnectionLog) -> Iterator[str]:
    """Why a connection may be unknown although a knock opened it."""
    if not log.ends.is_complete:
        yield "the record of earlier connections is still being read; ask again in a moment"
    if log.live.refused:
        yield f"{len(log.live)} connections are remembered, {log.live.refused} more are not"


def explained(flow: Flow, policy: Policy, observed: Observed) -> str:
    """How a connection may have come in that nobody is known to have knocked for."""
    access = Access.parse(flow.access)
    for rule in policy.always_open:
        if flow.source in rule.sources and any(access in each for each in rule.accesses):
            return f"no knock is needed: {rule.path} lets {access} in from {flow.source}"
    if access in observed:
        return f"{access} is observed: whoever has no hole is let in and recorded"
    if flow.source.is_loopback or flow.source == flow.target:
        return "this host speaks with itself, which the gate does not judge"
    return UNKNOWN


def parse_source(text: str) -> tuple[Address, int]:
    """An address and port from `10.0.0.9:40000` or `[2001:db8::9]:40000`. Raises ValueError.

    A scope (`fe80::9%eth0`) is left out: a link-local address is looked for on every link.
    """
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed):
        raise ValueError(f"{text!r} is no address and port; write 10.0.0.9:40000 or [fd00::9]:5000")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r} has no port from 1 to 65535 after the colon")
    bare = host[1:-1] if bracketed else host
    return unmapped(ip_address(bare.partition("%")[0])), int(port)


def parse_access(text: str) -> Access:
    """One port: `tcp/5432`. Raises ValueError."""
    access = Access.parse(text)
    if access.size != 1:
        one = Access(access.protocol, access.first, access.first)
        raise ValueError(f"{text!r} is more than one port; write it like {one}")
    return access
