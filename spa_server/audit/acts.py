"""What operators do to a host beside its daemon, for the record: the daemon enters it as lines.

Only the daemon writes the record, since only it knows where the chain ends. So a command that does
something while no daemon runs, or that needs none, leaves a row in the table `operator_act`, with
who did it and when. A daemon takes the rows over when it starts, or notices that they are there.
"""

import json
import sqlite3
from contextlib import closing, suppress
from typing import Final

from keys import schema
from keys.actor import Actor
from keys.poke import poke
from keys.trouble import Trouble
from spa_server import clock
from spa_server.audit import tables
from spa_server.audit.record import Event, Record
from spa_server.config import Config

_AT_ONCE: Final = 1000
_ACTS: Final = {
    Event.GATE_APPLIED,
    Event.GATE_CONFIRMED,
    Event.GATE_REMOVED,
    Event.KEY_ADOPTED,
    Event.BACKUP_MADE,
}


def leave(config: Config, event: Event, reason: str | None = None) -> bool:
    """Leaves word of what was just done; whether it could. It never raises: it is done already."""
    if not config.database.exists():
        return False
    row = (clock.now_us(), event.value, reason, json.dumps(Actor.here().detail))
    with suppress(sqlite3.Error, OSError, Trouble):
        with closing(schema.connect(config.database)) as connection:
            tables.prepare(connection)
            connection.execute(
                "insert into operator_act (at_us, event, reason, detail) values (?, ?, ?, ?)", row
            )
        poke(config.control)
        return True
    return False


def unread(connection: sqlite3.Connection) -> tuple[int, list[Record]]:
    """What was left, and the number of the last row. Raises sqlite3.Error.

    A row that is none of these acts is passed over: nobody's hole is opened by it.
    """
    last, records = 0, []
    rows = connection.execute(
        "select id, at_us, event, reason, detail from operator_act order by id limit ?",
        (_AT_ONCE,),
    )
    for last, at_us, event, reason, detail in rows:  # noqa: B007 - the last is wanted below
        with suppress(ValueError):
            values = json.loads(detail)
            if isinstance(values, dict) and event in _ACTS:
                records.append(Record(Event(event), at_us, reason=reason, detail=values))
    return last, records
