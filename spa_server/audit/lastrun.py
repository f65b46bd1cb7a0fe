"""How the daemon before this one ended, by the record: the first line of a new one says so.

One that is stopped writes `daemon.stopped` last. Behind anything else nobody knows what was missed:
what the kernel told a daemon that was killed, and what came before the next one listened. A restore
writes the last line of the database that it puts in place, and that says itself what is missing.
"""

import json
import sqlite3
from typing import Final

from keys.when import rfc3339
from spa_server.audit.record import Event, Record

RESTORE: Final = "restore"
BROKEN_OFF: Final = "the one before did not end in good order; what happened since may be missing"


def broken_off_at_us(connection: sqlite3.Connection) -> int | None:
    """The time of the last line, where a daemon wrote it that was not stopped.

    Microseconds since the Unix epoch. Raises sqlite3.Error.
    """
    last = "select event, at_us, detail from event order by id desc limit 1"
    row = connection.execute(last).fetchone()
    if row is None or row[0] == Event.DAEMON_STOPPED:
        return None
    if row[0] == Event.RECORDS_LOST and _of(row[2]) == RESTORE:
        return None
    ever = "select exists (select 1 from event where event = ?)"
    (has_run,) = connection.execute(ever, (Event.DAEMON_STARTED.value,)).fetchone()
    return int(row[1]) if has_run else None


def _of(detail: object) -> object:
    """What a line is about; None where it does not say, or is somebody else's."""
    try:
        return json.loads(str(detail))["of"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def started(now_us: int, since_us: int | None, digest: str = "") -> Record:
    """The line of a daemon that begins; `since_us` is what `broken_off_at_us` found.

    `digest` is that of the policy in force.
    """
    detail = {"digest": digest} if digest else {}
    if since_us is None:
        return Record(Event.DAEMON_STARTED, now_us, detail=detail)
    try:
        since = rfc3339(since_us)
    except (ValueError, OverflowError):  # somebody else wrote that line
        since = str(since_us)
    detail["since"] = since
    return Record(Event.DAEMON_STARTED, now_us, reason=BROKEN_OFF, detail=detail)
