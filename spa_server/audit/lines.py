"""A line of the record for other programs' logs: its named values, its urgency, a sentence."""

from collections.abc import Iterator
from typing import Final

from keys.text import printable
from spa_server.audit import chain
from spa_server.audit.record import Event, Record

MAX_VALUE: Final = 1024
_COLUMNS: Final = (
    "identity",
    "key_id",
    "source",
    "target",
    "access",
    "reason",
    "rule",
    "grant_id",
)

# RFC 5424, section 6.2.1; the same numbers are journald's PRIORITY.
ERROR: Final = 3
WARNING: Final = 4
NOTICE: Final = 5
INFO: Final = 6

_URGENT: Final = {
    Event.GATE_FAILED: ERROR,
    Event.HOLE_FAILED: ERROR,
    Event.DISK_FULL: ERROR,
    Event.RECORDS_LATE: WARNING,
    Event.RECORDS_LOST: WARNING,
    Event.RECORDS_FOREIGN: WARNING,
    Event.GATE_RESTORED: WARNING,
    Event.POLICY_REFUSED: WARNING,
    Event.DRIFT_FOUND: WARNING,
    Event.BASELINES_LOST: WARNING,
    Event.ANSWERS_HINDERED: WARNING,
    Event.HOOK_FAILED: WARNING,
    Event.INVITE_ALARM: WARNING,
    Event.TAG_FLOODED: WARNING,
    Event.CLOCK_SET: NOTICE,
    Event.KNOCK_REFUSED: NOTICE,
    Event.JOIN_REFUSED: NOTICE,
    Event.CONNECTION_DENIED: NOTICE,
    Event.CONNECTION_WOULD_DENY: NOTICE,
    Event.CONNECTION_SEVERED: NOTICE,
    Event.KEYS_CHANGED: NOTICE,
}


def severity_of(event: Event) -> int:
    """How urgent an event is, from 3 (error) to 6 (informational)."""
    return WARNING if event.startswith("anomaly") else _URGENT.get(event, INFO)


def values_of(line_id: int, record: Record) -> Iterator[tuple[str, str]]:
    """Every value that a line has, under the name of its column; one line of text each, cut at
    1,024 characters. What steers a terminal, or ends a line, is escaped."""
    yield "event", record.event.value
    if line_id:
        yield "id", str(line_id)
    for name in _COLUMNS:
        value = getattr(record, name)
        if value is not None:
            yield name, _safe(str(value))
    if record.detail:
        yield "detail", _safe(chain.detail_text(record.detail))


def sentence_of(record: Record) -> str:
    """The line for a person: what happened, to whom, between which ends, and why."""
    ends = record.source or ""
    if record.source and record.target:
        ends = f"{record.source} -> {record.target}"
    actor = record.detail.get("actor")
    count = record.detail.get("further") or record.detail.get("count")
    parts = [
        record.event.value,
        record.identity or "",
        f"{ends} {record.access or ''}".strip(),
        record.reason or "",
        f"{count} of them" if count else "",
        f"by {actor}" if actor else "",
    ]
    return _safe("; ".join(part for part in parts if part))


def _safe(text: str) -> str:
    escaped = printable(text)
    return escaped if len(escaped) <= MAX_VALUE else escaped[: MAX_VALUE - 1] + "…"
