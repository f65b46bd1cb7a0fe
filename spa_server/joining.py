"""Joining: a key that comes with an invite is enrolled, and the record is told."""

import sqlite3
from collections.abc import Callable
from typing import Any

from keys.registry import JoinRefusal, Registry
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
    except sqlite3.Error as error:
        record = Record(Event.JOIN_REFUSED, now_us, key_id=key_id, reason=str(error), detail=detail)
        return Joined(Status.UNAVAILABLE, "try again; the record says why", record)
    if isinstance(joined, JoinRefusal):
        record = Record(
            Event.JOIN_REFUSED, now_us, key_id=key_id, reason=joined.value, detail=detail
        )
        return Joined(Status.JOIN_REFUSED, joined.value, record)
    refresh(now_us)
    record = Record(
        Event.JOIN_ACCEPTED, now_us, identity=joined.identity, key_id=key_id, detail=detail
    )
    return Joined(Status.JOINED, f"welcome, {joined.identity}", record)
