"""One line of the record."""

from enum import StrEnum
from typing import Any

import msgspec


class Event(StrEnum):
    """What happened. The part before the dot is what it happened to."""

    KNOCK_ACCEPTED = "knock.accepted"
    KNOCK_REFUSED = "knock.refused"
    CLOSE_ASKED = "close.asked"
    JOIN_ACCEPTED = "join.accepted"
    JOIN_REFUSED = "join.refused"
    JOIN_PENDING = "join.pending"
    INVITE_ALARM = "invite.alarm"
    HOLE_OPENED = "hole.opened"
    HOLE_RENEWED = "hole.renewed"
    HOLE_USED = "hole.used"
    HOLE_CLOSED = "hole.closed"
    HOLE_EXPIRED = "hole.expired"
    HOLE_FAILED = "hole.failed"
    CONNECTION_PERMITTED = "connection.permitted"
    CONNECTION_ENDED = "connection.ended"
    CONNECTION_DENIED = "connection.denied"
    CONNECTION_WOULD_DENY = "connection.would-deny"
    CONNECTION_SEVERED = "connection.severed"
    TAG_FLOODED = "tag.flooded"
    KEYS_CHANGED = "keys.changed"
    POLICY_LOADED = "policy.loaded"
    POLICY_REFUSED = "policy.refused"
    GATE_APPLIED = "gate.applied"
    GATE_CONFIRMED = "gate.confirmed"
    GATE_REMOVED = "gate.removed"
    GATE_RESTORED = "gate.restored"
    GATE_FAILED = "gate.failed"
    ANSWERS_HINDERED = "answers.hindered"
    ANSWERS_FREE = "answers.free"
    DRIFT_FOUND = "drift.found"
    DRIFT_GONE = "drift.gone"
    ANOMALY = "anomaly.found"
    BASELINES_LOST = "baselines.lost"
    HOOK_FAILED = "hook.failed"
    HOOK_WORKS = "hook.works"
    CLOCK_SET = "clock.set"
    RECORDS_LATE = "records.late"
    RECORDS_LOST = "records.lost"
    RECORDS_TRIMMED = "records.trimmed"
    RECORDS_FOREIGN = "records.foreign"
    DISK_FULL = "disk.full"
    DISK_FREE = "disk.free"
    KEY_ADOPTED = "server-key.adopted"
    BACKUP_MADE = "backup.made"
    DAEMON_STARTED = "daemon.started"
    DAEMON_STOPPED = "daemon.stopped"


class Record(msgspec.Struct, frozen=True):
    """An event, when it was, and whatever is known of who, whence, whereto and why.

    `at_us` is microseconds since the Unix epoch; addresses and accesses are in their usual text.
    `detail` holds what has no column of its own, in JSON's types.
    """

    event: Event
    at_us: int
    identity: str | None = None
    key_id: str | None = None
    source: str | None = None
    target: str | None = None
    access: str | None = None
    reason: str | None = None
    rule: str | None = None
    grant_id: int | None = None
    detail: dict[str, Any] = msgspec.field(default_factory=dict)
