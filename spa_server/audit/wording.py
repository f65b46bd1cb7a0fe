"""Records of what the daemon did: each leads back to hole, knock, key, person and rule."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from keys.actor import Actor
from spa_protocol.access import HARMLESS, Access
from spa_protocol.knock import AuthenticKnock, Close, Join, Request
from spa_protocol.layout import Address, text_of
from spa_protocol.reason import Code
from spa_server.audit.record import Event, Record
from spa_server.capture.datagram import Datagram
from spa_server.doorkeeper import Verdict
from spa_server.grants import Grant
from spa_server.policy.decide import Decision
from spa_server.ruling import Owner, Ruling

TRIED: Final = "nothing: the key was tried"
_OPEN: Final = {Event.HOLE_OPENED, Event.HOLE_RENEWED}


def texts(accesses: Sequence[Access]) -> str | None:
    """Several accesses in one column."""
    return ", ".join(map(str, accesses)) or None


def not_accepted(verdict: Verdict, datagram: Datagram, owner: Owner | None, now_us: int) -> Record:
    """A datagram that the doorkeeper turned away."""
    request = verdict.knock.request if verdict.knock else None
    return Record(
        Event.KNOCK_REFUSED,
        now_us,
        identity=owner.identity if owner else None,
        key_id=verdict.sender.key_id if verdict.sender else None,
        source=text_of(datagram.source),
        target=text_of(datagram.target),
        access=_asked_for(request),
        reason=str(verdict.reason),
    )


def _asked_for(request: Request | None) -> str | None:
    return None if request is None or isinstance(request, Join) else texts(request.accesses)


class Repeated(NamedTuple):
    """Refusals that differ in nothing that is counted: `key_id` is the invite's of a join."""

    event: Event
    reason: str
    key_id: str = ""
    source: str = ""


def repeated(record: Record) -> Repeated:
    """What a refusal is one of many of."""
    key_id = record.detail.get("invite") or record.key_id or ""
    return Repeated(record.event, record.reason or "", str(key_id), record.source or "")


def closed_nothing(
    request: Close, owner: Owner, ends: tuple[Address, Address], now_us: int
) -> Record:
    """A close that ended nothing. Of one that asked for what nobody opens it says what it was for:
    else an auditor takes what `join` and `doctor` try a key with for somebody's search for ports.
    """
    is_trial = request.accesses == (HARMLESS,)
    detail: dict[str, object] = {"ended": TRIED if is_trial else "nothing"}
    asked = texts(request.accesses)
    return about(Event.CLOSE_ASKED, owner, ends, now_us, access=asked, detail=detail)


def further(kind: Repeated, owner: Owner | None, count: int, now_us: int) -> Record:
    """How many more there were of what was recorded once."""
    is_join = kind.event is Event.JOIN_REFUSED
    detail: dict[str, object] = {"further": count}
    if is_join:
        detail["invite"] = kind.key_id
    if kind.reason == TRIED:
        detail["ended"] = TRIED
    return Record(
        kind.event,
        now_us,
        identity=owner.identity if owner else None,
        key_id=None if is_join else kind.key_id or None,
        source=kind.source or None,
        reason=None if kind.reason == TRIED else kind.reason,
        detail=detail,
    )


def turned_away(
    knock: AuthenticKnock, owner: Owner | None, datagram: Datagram, now_us: int
) -> Record:
    """A close or a join that was one of too many."""
    sender = knock.sender
    return Record(
        Event.CLOSE_ASKED if isinstance(knock.request, Close) else Event.JOIN_REFUSED,
        now_us,
        identity=owner.identity if owner else None,
        key_id=None if sender.is_invite else sender.key_id,
        source=text_of(datagram.source),
        target=text_of(datagram.target),
        access=_asked_for(knock.request),
        reason=Code.TOO_MANY.sentence,
        detail={"invite": sender.key_id} if sender.is_invite else {},
    )


def ruled(
    owner: Owner,
    ruling: Ruling,
    grants: Sequence[Grant],
    now_us: int,
    *,
    renews: Callable[[Grant], bool],
) -> list[Record]:
    """A knock that was ruled on: a line for each access refused, and for each hole that opens, or
    that the same key has open already."""
    records = [
        _refused(owner, ruling, access, decision, now_us)
        for access, decision in ruling.decisions
        if not decision.granted
    ]
    if grants:
        asked = texts([grant.access for grant in grants])
        accepted = about(Event.KNOCK_ACCEPTED, owner, ruling, now_us, access=asked)
        records.append(accepted)
    events = (Event.HOLE_RENEWED if renews(grant) else Event.HOLE_OPENED for grant in grants)
    return records + [
        granted(event, grant, now_us) for event, grant in zip(events, grants, strict=True)
    ]


def _refused(
    owner: Owner, ruling: Ruling, access: Access, decision: Decision, now_us: int
) -> Record:
    return about(
        Event.KNOCK_REFUSED,
        owner,
        ruling,
        now_us,
        access=str(access),
        reason=_reason(decision),
        detail={"near": decision.sentence} if decision.near else {},
    )


def _reason(decision: Decision) -> str:
    """Of addresses that do not fit: which, and why."""
    is_addressing = decision.code is Code.NOT_A_TARGET and decision.why
    return decision.why if is_addressing else decision.code.sentence


def unavailable(owner: Owner, ruling: Ruling, why: str, now_us: int) -> Record:
    """A knock that would have been granted, had nothing failed."""
    accesses = texts([access for access, _ in ruling.decisions])
    return about(
        Event.KNOCK_REFUSED,
        owner,
        ruling,
        now_us,
        access=accesses,
        reason="unavailable",
        detail={"why": why},
    )


def about(
    event: Event,
    owner: Owner,
    ends: Ruling | tuple[Address, Address],
    now_us: int,
    *,
    access: str | None,
    reason: str | None = None,
    detail: dict[str, object] | None = None,
) -> Record:
    """A line about what somebody asked for, between two ends."""
    source, target = (ends.source, ends.target) if isinstance(ends, Ruling) else ends
    return Record(
        event,
        now_us,
        identity=owner.identity,
        key_id=owner.key_id,
        source=text_of(source),
        target=text_of(target),
        access=access,
        reason=reason,
        detail=detail or {},
    )


def granted(event: Event, grant: Grant, now_us: int, reason: str | None = None) -> Record:
    """A line about a grant, with everything that it leads back to."""
    lifetime_s = (grant.expires_at_us - grant.opened_at_us) // 1_000_000
    return Record(
        event,
        now_us,
        identity=grant.identity,
        key_id=grant.key_id,
        source=text_of(grant.source),
        target=text_of(grant.target),
        access=str(grant.access),
        reason=reason,
        rule=grant.rule,
        grant_id=grant.grant_id,
        detail={"lifetime_s": lifetime_s} if event in _OPEN else {},
    )


def severed(count: int, grants: Sequence[Grant], now_us: int, reason: str | None = None) -> Record:
    """How many sessions were destroyed when these grants, all of the same holes, had ended."""
    last = granted(Event.CONNECTION_SEVERED, grants[-1], now_us, reason)
    people = ", ".join(sorted({grant.identity for grant in grants}))
    return msgspec.structs.replace(last, identity=people, detail={"count": count})


def by(actor: Actor | None, records: Iterable[Record]) -> list[Record]:
    """The same lines, with who did it; None: nobody did."""
    if actor is None:
        return list(records)
    return [
        msgspec.structs.replace(record, detail={**record.detail, **actor.detail})
        for record in records
    ]
