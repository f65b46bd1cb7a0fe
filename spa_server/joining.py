"""Joining: a key that comes with an invite is enrolled, and the record is told."""

import sqlite3
from collections.abc import Callable
from typing import Any

from keys.registry import EnrolledInvite, JoinRefusal, Registry
from spa_protocol.knock import Join
from spa_protocol.publickey import Sender
from spa_protocol.reason import Status
from spa_server.audit.record import Event, Record
from spa_server.reception import Joined


def admit_key(
    registry: Registry,
    refresh: Callable[[int], None],
    sender: Sender,
    request: Join,
    now_us: int,
) -> Joined:
    """Enrols the key that an invite brings (docs/protocol.md section 4.4). Never raises.

    `refresh` has the daemon hear it.
    """
    invite_id, key_id = sender.key_id, request.key.key_id
    detail: dict[str, Any] = {"invite": invite_id}
    try:
        joined = registry.redeem(invite_id, request.key, now_us)
        invite = registry.invite(invite_id)
    except sqlite3.Error as error:
        record = Record(Event.JOIN_REFUSED, now_us, key_id=key_id, reason=str(error), detail=detail)
        return Joined(Status.UNAVAILABLE, "try again; the record says why", record)
    if isinstance(joined, JoinRefusal):
        return Joined(Status.JOIN_REFUSED, joined.value, _refused(joined, invite, key_id, now_us))
    refresh(now_us)
    detail["again"] = joined.again
    if joined.claimed_by:
        reason = f"the key joined for {joined.claimed_by} before; approve it for whose it is"
        detail["claimed_by"] = joined.claimed_by
        record = Record(
            Event.INVITE_ALARM,
            now_us,
            identity=joined.identity,
            key_id=key_id,
            reason=reason,
            detail=detail,
        )
        return Joined(Status.PENDING, "an operator has to approve the key", record)
    event = Event.JOIN_PENDING if joined.pending else Event.JOIN_ACCEPTED
    record = Record(event, now_us, identity=joined.identity, key_id=key_id, detail=detail)
    if joined.pending:
        return Joined(Status.PENDING, "an operator has to approve the key", record)
    no_role = "" if joined.roles else "; you have no role yet"
    return Joined(Status.JOINED, f"welcome, {joined.identity}{no_role}", record)


def _refused(
    refusal: JoinRefusal, invite: EnrolledInvite | None, key_id: str, now_us: int
) -> Record:
    """Where another key came with the invite before, it is an alarm that names both.

    For one of the two is not whom the invite was for.
    """
    event, reason = Event.JOIN_REFUSED, refusal.value
    if invite is None:
        return Record(event, now_us, key_id=key_id, reason=reason)
    detail = {"invite": invite.key_id, "redeemed_by": invite.redeemed_by}
    if refusal is JoinRefusal.USED and invite.redeemed_by != key_id:
        event, reason = Event.INVITE_ALARM, f"{reason}, by key {invite.redeemed_by}"
    return Record(
        event, now_us, identity=invite.identity, key_id=key_id, reason=reason, detail=detail
    )
