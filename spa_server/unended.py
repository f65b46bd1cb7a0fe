"""What the record says of connections that have begun, for a daemon that takes over.

A beginning and its end are told to belong together by the time of the beginning and the flow. The
record is read backwards, a slice at a time: ends come first and wait for their beginnings.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any, Final, TypeAlias

import msgspec

from spa_protocol.access import Access
from spa_server.attribution import Permitted
from spa_server.audit.record import Event, Record
from spa_server.ends import Ends
from spa_server.flow import Flow
from spa_server.grants import Grant

SLICE: Final = 500

_SELECT: Final = (
    "select event, at_us, identity, key_id, source, target, access, rule, grant_id, detail"
    " from event where id > ? and id <= ? and event in (?, ?) order by id desc"
)
_EVENTS: Final = (Event.CONNECTION_PERMITTED.value, Event.CONNECTION_ENDED.value)
# When it began, its source and port, its target and access.
_Name: TypeAlias = tuple[int | None, str, int, str, str]


class _Detail(msgspec.Struct):
    source_port: int
    permitted_at_us: int | None = None
    ambiguous: tuple[str, ...] = ()
    grants: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    cut: bool = False


_decoder = msgspec.json.Decoder(_Detail)


def unended(connection: sqlite3.Connection, last_id: int) -> Iterator[list[Permitted]]:
    """Connections of the lines up to `last_id` of whose end there is no line, a slice at a time.

    A line that is not as this program writes it is passed over. Raises sqlite3.Error.
    """
    first_id = connection.execute("select min(id) from event").fetchone()[0] or last_id + 1
    ended: dict[_Name, int] = {}
    for until_id in range(last_id, first_id - 1, -SLICE):
        rows = connection.execute(_SELECT, (until_id - SLICE, until_id, *_EVENTS)).fetchall()
        yield list(_without_end(rows, ended))


def _without_end(rows: Iterable[tuple[Any, ...]], ended: dict[_Name, int]) -> Iterator[Permitted]:
    for event, at_us, identity, key_id, source, target, access, rule, grant_id, detail in rows:
        try:
            more = _decoder.decode(str(detail))
        except msgspec.MsgspecError:
            continue
        where = (str(source), more.source_port, str(target), str(access))
        if event == Event.CONNECTION_ENDED:
            name = (more.permitted_at_us, *where)
            ended[name] = ended.get(name, 0) + 1
            continue
        name = (at_us, *where)
        if left := ended.pop(name, 0):
            if left > 1:
                ended[name] = left - 1
            continue
        flow = _flow(*where)
        if flow is not None:
            yield Permitted(
                flow,
                at_us,
                _text(identity),
                _text(key_id),
                _text(rule),
                grant_id if isinstance(grant_id, int) else None,
                more.ambiguous,
                more.grants,
                more.keys or ((key_id,) if isinstance(key_id, str) else ()),
                more.cut,
            )


def _flow(source: str, source_port: int, target: str, access: str) -> Flow | None:
    try:
        to = Access.parse(access)
        ends = ip_address(source), ip_address(target)
    except ValueError:
        return None
    if ends[0].version != ends[1].version or not 0 <= source_port <= 65535:
        return None
    return Flow(ends[0], source_port, ends[1], to.protocol, to.first)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def recollect(
    connection: sqlite3.Connection, last_id: int, ends: Ends, clock_us: Callable[[], int]
) -> Iterator[list[Record]]:
    """Hands to `ends` what lives on from an earlier run, a slice of the record at a time.

    Yields, after each, what is to be recorded: nothing, unless the record cannot be read.
    """
    try:
        for permits in unended(connection, last_id):
            ends.adopt(permits, clock_us())
            yield []
    except sqlite3.Error as error:
        yield [Record(Event.RECORDS_LOST, clock_us(), reason=str(error), detail={"of": "end"})]
    ends.is_complete = True


def used_grants(connection: sqlite3.Connection, grants: Sequence[Grant]) -> list[Grant]:
    """Those of the grants that the record calls used. Raises sqlite3.Error."""
    since_us = min((grant.opened_at_us for grant in grants), default=None)
    rows = connection.execute(
        "select grant_id from event where event = ? and at_us >= ?",
        (Event.HOLE_USED.value, since_us),
    )
    used = {grant_id for (grant_id,) in rows}
    return [grant for grant in grants if grant.grant_id in used]
