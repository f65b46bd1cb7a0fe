"""How near to its limits each identity came: what the record says of holes and knocks at once."""

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, TypeAlias

from spa_protocol.reason import Code
from spa_server.policy.suggest.usage import access_of

_Hole: TypeAlias = tuple[str, str, str]
_PEAK_KNOCKS: Final = """
    select identity, max(knocks) from (
        select identity, count(*) as knocks from event
        where event in ('knock.accepted', 'knock.refused') and identity is not null and at_us >= ?
        group by identity, at_us / 60000000)
    group by 1"""
_TOO_MANY: Final = """
    select distinct identity from event
    where event = 'knock.refused' and reason = ? and identity is not null and at_us >= ?"""
_OPENINGS: Final = """
    select identity, source, target, access, opened_at_us, coalesce(ended_at_us, expires_at_us)
    from hole_grant where opened_at_us >= ? order by identity, opened_at_us"""


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most that each identity had: holes at once, knocks in a minute of the clock; and who was
    refused because of it."""

    open: Mapping[str, int]
    knocks: Mapping[str, int]
    refused: frozenset[str]


NO_PEAKS: Final = Peaks({}, {}, frozenset())


def peaks(connection: sqlite3.Connection, since_us: int) -> Peaks:
    """Of everybody since a time. Raises sqlite3.Error."""
    refused = connection.execute(_TOO_MANY, (Code.TOO_MANY.sentence, since_us))
    return Peaks(
        open=_peak_open(connection.execute(_OPENINGS, (since_us,))),
        knocks=dict(connection.execute(_PEAK_KNOCKS, (since_us,)).fetchall()),
        refused=frozenset(name for (name,) in refused),
    )


def _peak_open(rows: Iterable[tuple[str, str, str, str, int, int]]) -> dict[str, int]:
    """Rows stand together by identity, in the order of time. A hole that is opened anew while it
    is open is one hole."""
    peak: dict[str, int] = {}
    whose, now_open = "", 0
    until_us: dict[_Hole, int] = {}
    ends: list[tuple[int, _Hole]] = []
    for identity, source, target, access, opened_us, ended_us in rows:
        if identity != whose:
            whose, now_open, until_us, ends = identity, 0, {}, []
        while ends and ends[0][0] <= opened_us:
            ended = heappop(ends)[1]
            if until_us.get(ended, opened_us + 1) <= opened_us:
                del until_us[ended]
                now_open -= _size(ended[2])
        hole = (source, target, access)
        if hole not in until_us:
            now_open += _size(hole[2])
        until_us[hole] = max(until_us.get(hole, 0), ended_us)
        heappush(ends, (ended_us, hole))
        peak[identity] = max(peak.get(identity, 0), now_open)
    return peak


def _size(text: str) -> int:
    access = access_of(text)
    return 0 if access is None else access.size
