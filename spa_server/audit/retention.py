"""Retention: old records go, by age and by size, and the chain stays whole.

Lines are removed from the beginning of the chain only, a few hundred in a transaction of some
milliseconds, so that no knock waits. The same transaction enters a signed *base*: the first id that
is left, the digest behind which it stands, and when this was (spa_server/audit/checkpoint.py). The
digest covers what was removed, so that a copy kept elsewhere can still be held against the chain.

Grants that ended before the oldest line that is left go too. The youngest line always stays.
"""

import sqlite3
from dataclasses import dataclass
from typing import Final

from spa_server.audit.checkpoint import RecordKey

SLICE: Final = 250
_DAY_US: Final = 86_400_000_000
_MB: Final = 1_000_000
_SAMPLE: Final = 200
# Besides its texts a line takes its digest, two keys of the time index, headers, and the share of
# pages that are not full; measured in tests/test_retention.py.
_BYTES_A_LINE: Final = 80


@dataclass(frozen=True, slots=True)
class Retention:
    """How long the record is kept (days), and how large it may grow (MB); None: without limit."""

    days: int | None = None
    mb: int | None = None

    @property
    def words(self) -> str:
        """For the record."""
        days = f"kept for {self.days} days" if self.days is not None else ""
        size = f"up to {self.mb} MB" if self.mb is not None else ""
        return ", ".join(filter(None, (days, size)))


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What one slice removed: `count` lines, the last of them of the time `until_us`."""

    count: int = 0
    until_us: int = 0


def trim(connection: sqlite3.Connection, keep: Retention, key: RecordKey, now_us: int) -> Trimmed:
    """Removes one slice of what need not be kept. Call it in a transaction, until it finds nothing.

    Raises sqlite3.Error.
    """
    oldest: list[tuple[int, int, bytes]] = connection.execute(
        "select id, at_us, digest from event order by id limit ?", (SLICE + 1,)
    ).fetchall()
    count = min(max(_too_old(oldest, keep, now_us), _too_many(connection, keep)), len(oldest) - 1)
    if count <= 0:
        return Trimmed()
    last_id, until_us, digest = oldest[count - 1]
    first_id = oldest[count][0]
    connection.execute("delete from event where id <= ?", (last_id,))
    connection.execute("delete from checkpoint where event_id < ?", (last_id,))
    connection.execute("delete from base")
    base = key.base(first_id, digest, at_us=now_us, until_us=until_us)
    connection.execute(
        "insert into base values (?, ?, ?, ?, ?, ?)",
        (base.first_id, base.at_us, base.until_us, base.digest, base.signer, base.signature),
    )
    return Trimmed(count, until_us)


def _too_old(oldest: list[tuple[int, int, bytes]], keep: Retention, now_us: int) -> int:
    """How many of the oldest are past their time; the first that is not ends it."""
    if keep.days is None:
        return 0
    limit_us = now_us - keep.days * _DAY_US
    young = (place for place, (_, at_us, _) in enumerate(oldest) if at_us >= limit_us)
    return next(young, len(oldest))


def _too_many(connection: sqlite3.Connection, keep: Retention) -> int:
    if keep.mb is None:
        return 0
    count, size = size_of(connection)
    return int(max(0, size - keep.mb * _MB) / max(1, size / max(1, count)))


def size_of(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many lines the record has, and about how many bytes they take. Raises sqlite3.Error."""
    first, last = connection.execute("select min(id), max(id) from event").fetchone()
    if first is None:
        return 0, 0
    count = last - first + 1
    texts = connection.execute(
        "select avg(length(event) + length(coalesce(identity, '')) + length(coalesce(key_id, ''))"
        " + length(coalesce(source, '')) + length(coalesce(target, ''))"
        " + length(coalesce(access, '')) + length(coalesce(reason, ''))"
        " + length(coalesce(rule, '')) + length(detail))"
        " from (select * from (select * from event order by id limit :n)"
        " union all select * from (select * from event order by id desc limit :n))",
        {"n": _SAMPLE},
    ).fetchone()[0]
    return count, int(count * (texts + _BYTES_A_LINE))


def trim_grants(connection: sqlite3.Connection, after_id: int) -> int | None:
    """Removes, of the next grants after an id, those that ended before the oldest line left.

    Returns the id to go on after, None when all have been looked at. The latest grant stays: its
    number is not to be given again. Call it in a transaction. Raises sqlite3.Error.
    """
    last_id, count = connection.execute(
        "select max(grant_id), count(*) from"
        " (select grant_id from hole_grant where grant_id > ? order by grant_id limit ?)",
        (after_id, SLICE),
    ).fetchone()
    connection.execute(
        "delete from hole_grant where grant_id > ? and grant_id <= ?"
        " and grant_id < (select max(grant_id) from hole_grant)"
        " and ended_at_us < (select at_us from event order by id limit 1)",
        (after_id, last_id),
    )
    return last_id if count == SLICE else None
