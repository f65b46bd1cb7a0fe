"""Whose a connection is: the grants that let it in, at that time, and the lines that say so.

1.  What held the hole open when the connection was let in counts, and nothing that came later: not
    a renewal, not the hole's end. It is let in by the packet that completes its handshake.
2.  A `once` hole is used before an ordinary one, as the gate asks for them in this order.
3.  Of several grants of one identity the latest counts. Where several identities share the source
    address nobody can tell them apart: the line names all (`ambiguous`, and their `grants`), and
    key, rule and grant are those of the latest.
4.  A connection has one beginning in the record and one end, which says the same of it.
5.  Every key that held the hole then may have begun it, whoever is named. One of a `cut` service
    lives for as long as all of them hold it: spa_server/severance.py.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from spa_protocol.access import Protocol
from spa_protocol.layout import text_of
from spa_server.audit import wording
from spa_server.audit.record import Event, Record
from spa_server.ctentry import Entry
from spa_server.flow import Flow
from spa_server.grants import Grant
from spa_server.hole import Hole
from spa_server.policy.model import Sessions


class Permitted(msgspec.Struct, frozen=True, gc=False):
    """A connection that was let in, when, and whose it was then.

    `identity` names all where there are several; `ambiguous` and `grants` are then theirs. `keys`
    are those that held the hole (rule 5); `cut`: whether the service's connections end with it.
    """

    flow: Flow
    at_us: int
    identity: str | None = None
    key_id: str | None = None
    rule: str | None = None
    grant_id: int | None = None
    ambiguous: tuple[str, ...] = ()
    grants: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    cut: bool = False


def holes_of(flow: Flow) -> tuple[Hole, ...]:
    """The holes that may have let a flow in, in the order in which the gate asks for them."""
    if flow.protocol not in set(Protocol):
        return ()
    ordinary = Hole(flow.source, flow.target, Protocol(flow.protocol), flow.port)
    return msgspec.structs.replace(ordinary, once=True), ordinary


def candidates(grants: Sequence[Grant]) -> list[Grant]:
    """The latest grant of each identity, in the order in which they were given (rule 3)."""
    latest = {grant.identity: grant for grant in sorted(grants, key=lambda each: each.grant_id)}
    return sorted(latest.values(), key=lambda each: each.grant_id)


def permitted(flow: Flow, grants: Sequence[Grant], now_us: int) -> Permitted:
    """`grants` are those by which the gate let it in."""
    if not grants:
        return Permitted(flow, now_us)
    chosen = candidates(grants)
    last = chosen[-1]
    identities = tuple(sorted(grant.identity for grant in chosen))
    is_ambiguous = len(chosen) > 1
    return Permitted(
        flow,
        now_us,
        ", ".join(identities),
        last.key_id,
        last.rule,
        last.grant_id,
        identities if is_ambiguous else (),
        tuple(grant.grant_id for grant in chosen) if is_ambiguous else (),
        tuple(sorted({grant.key_id for grant in grants})),
        any(grant.sessions is Sessions.CUT for grant in grants),
    )


def line(event: Event, of: Permitted, now_us: int, **detail: Any) -> Record:
    """A line about a connection. What decides how long it may live stands at its beginning."""
    if event is Event.CONNECTION_PERMITTED:
        detail = {**_bound(of), **detail}
    return Record(
        event,
        now_us,
        identity=of.identity,
        key_id=of.key_id,
        source=text_of(of.flow.source),
        target=text_of(of.flow.target),
        access=of.flow.access,
        rule=of.rule,
        grant_id=of.grant_id,
        detail={"source_port": of.flow.source_port, **_several(of), **detail},
    )


def _bound(of: Permitted) -> dict[str, Any]:
    keys = {"keys": list(of.keys)} if len(of.keys) > 1 else {}
    return {**keys, "cut": True} if of.cut else keys


def _several(of: Permitted) -> dict[str, Any]:
    if not of.ambiguous:
        return {}
    return {"ambiguous": list(of.ambiguous), "grants": list(of.grants)}


def ended(of: Permitted, entry: Entry | None, now_us: int, why: str | None = None) -> Record:
    """The end of a connection, with what conntrack counted; without an entry nothing is known.

    Where conntrack does not note the time, the duration is from when its beginning was recorded.
    """
    figures = figures_of(entry)
    duration_s = None if entry is None else _duration_s(of, entry, now_us)
    state = {"state": entry.state} if entry is not None and entry.state else {}
    record = line(
        Event.CONNECTION_ENDED,
        of,
        now_us,
        permitted_at_us=of.at_us,
        duration_s=duration_s,
        **figures,
        **state,
    )
    return record if why is None else msgspec.structs.replace(record, reason=why)


def figures_of(entry: Entry | None) -> dict[str, int | None]:
    """Packets and bytes from who began the connection (`in`) and back (`out`); None: unknown."""
    there = entry.there if entry is not None else None
    back = entry.back if entry is not None else None
    return {
        "packets_in": there.packets if there else None,
        "bytes_in": there.bytes if there else None,
        "packets_out": back.packets if back else None,
        "bytes_out": back.bytes if back else None,
    }


def _duration_s(of: Permitted, entry: Entry, now_us: int) -> float:
    """From the first packet to the last."""
    begun_us = of.at_us if entry.begun_us is None else entry.begun_us
    ended_us = now_us if entry.ended_us is None else entry.ended_us
    return round(max(0.0, (ended_us - begun_us) / 1_000_000 - entry.idle_s), 3)


def used(grant: Grant, of: Permitted) -> Record:
    """The first connection that came through a grant's hole."""
    record = wording.granted(Event.HOLE_USED, grant, of.at_us)
    detail = {"source_port": of.flow.source_port, "port": of.flow.port, **_several(of)}
    return msgspec.structs.replace(record, detail=detail)
