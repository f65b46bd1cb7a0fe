"""What the record says of who used what: the uses that `suggest` and `least` judge a policy by.

A *use* is an identity, a rule, an address and an access that a hole was opened for, with what came
through it. Rows are put together by SQLite: a million lines of the record are a few thousand uses.
Times are microseconds since the Unix epoch.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final

from spa_protocol.access import Access
from spa_protocol.layout import Address, Malformed
from spa_server.policy.model import Sessions

# A line may have been tampered with: what is not JSON says nothing.
_READ: Final = "case when json_valid({0}) then cast(json_extract({0}, '$.{1}') as integer) end"
_USES: Final = f"""
    select e.event = 'connection.permitted', e.identity, e.rule, e.source, e.access,
        g.identity, g.access, g.once, g.sessions, count(*),
        max(e.at_us), max(coalesce(g.opened_at_us, e.at_us)),
        min(coalesce((g.expires_at_us - g.opened_at_us) / 1000000,
            {_READ.format("e.detail", "lifetime_s")})),
        max(coalesce((g.expires_at_us - g.opened_at_us) / 1000000,
            {_READ.format("e.detail", "lifetime_s")})),
        sum(distinct 1 << (e.at_us / 3600000000 % 24)),
        sum(distinct 1 << ((e.at_us / 86400000000 + 3) % 7))
    from event e left join hole_grant g on g.grant_id = e.grant_id
    where e.event in ('hole.opened', 'hole.renewed', 'connection.permitted') and e.at_us >= ?
    group by 4, 2, 5, 1, 3, 6, 7, 8, 9"""  # noqa: S608 - ours
_NAMELESS: Final = f"""
    select access, source, sum(coalesce({_READ.format("detail", "further")}, 1)), max(at_us)
    from event where event = ? and at_us >= ? and identity is null
    group by 1, 2"""  # noqa: S608 - ours
_DENIALS: Final = """
    select access, source, sum(count), max(at_us) from denial
    where event = ? and at_us >= ? and identity is null group by 1, 2"""
_UNITS_US: Final = (("day", 86_400_000_000), ("hour", 3_600_000_000), ("minute", 60_000_000))
_ACCESS, _OWNER = 2, 3  # columns of `_USES` after the first two
_PERIOD: Final = f"""
    select (select min(at_us) from event),
        (select coalesce(sum({_READ.format("detail", "count")}), 0) from event
            where event = 'records.lost' and at_us >= :since)"""  # noqa: S608 - ours
_LAST_USED: Final = """
    select access, max(at_us) from event
    where event in ('hole.opened', 'hole.renewed', 'connection.permitted') and at_us >= ?
    group by 1"""


@dataclass(frozen=True, slots=True)
class Period:
    """The time that is judged. `begins_us` is the record's first line, None for an empty record;
    `lost` is how many lines of the time could not be kept."""

    begins_us: int | None
    since_us: int
    until_us: int
    lost: int = 0

    def covers(self, since_us: int) -> bool:
        """Whether the record goes back as far as this."""
        return self.begins_us is not None and self.begins_us <= since_us

    def words(self, since_us: int) -> str:
        """How long a time is judged: `30 days`, or `the 3 days of the record`."""
        if self.covers(since_us):
            return in_words(self.until_us - since_us)
        return f"the {in_words(self.until_us - (self.begins_us or self.until_us))} of the record"


@dataclass(frozen=True, slots=True)
class Use:
    """What one identity did, by one rule, from one address, with one access.

    `rule` is the key path at that time, empty where it is not known. `access` is what the knock
    asked for, `ports` what of it was connected to, `opened` how many holes, `connections` how many
    came through. `decided_us` is the latest knock's time, `last_us` that of the latest line.
    `lifetimes_s` are the shortest and the longest that were given, None where that is not known;
    `hours` and `days` have a bit for each hour of UTC and each day of the week, Monday first.
    """

    identity: str
    rule: str
    source: Address
    access: Access
    once: bool
    sessions: Sessions | None
    opened: int
    connections: int
    ports: frozenset[Access]
    last_us: int
    decided_us: int
    lifetimes_s: tuple[int, int] | None
    hours: int
    days: int


@dataclass(frozen=True, slots=True)
class Nameless:
    """Connections that have no name: their access and source as the record has them.

    Where there were too many to keep apart, the source is a network, or there is none.
    """

    access: str | None
    source: str | None
    count: int
    last_us: int


def in_words(span_us: int) -> str:
    """A span of time in its largest unit of which there are two: `36 hours`, `30 days`."""
    for unit, size_us in _UNITS_US:
        count = round(span_us / size_us)
        if count > 1:
            return f"{count:,} {unit}s"
    return "1 minute"


def counted(count: int, noun: str) -> str:
    """`1 connection`, `1,200 connections`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def period_of(connection: sqlite3.Connection, since_us: int, until_us: int) -> Period:
    """How far the record goes back. Raises sqlite3.Error."""
    begins_us, lost = connection.execute(_PERIOD, {"since": since_us}).fetchone()
    return Period(begins_us, since_us, until_us, lost)


def uses(connection: sqlite3.Connection, since_us: int) -> list[Use]:
    """Every use since a time. Raises sqlite3.Error.

    A connection behind an address that several people hold open counts for each of them.
    """
    gathered: dict[tuple[object, ...], Use] = {}
    rows = connection.execute(_USES, (since_us,)).fetchall()
    for use in _opened(rows):
        _gather(gathered, use)
    opened: dict[tuple[str, Address], list[Use]] = {}
    for use in gathered.values():
        opened.setdefault((use.identity, use.source), []).append(use)
    for use in _connected(rows, opened):
        _gather(gathered, use)
    return list(gathered.values())


def _opened(rows: Iterable[tuple[Any, ...]]) -> Iterator[Use]:
    for is_connection, identity, *rest in rows:
        use = None if is_connection or not identity else _use(identity, rest)
        if use is not None:
            yield replace(use, opened=use.connections, connections=0, ports=frozenset())


def _connected(
    rows: Iterable[tuple[Any, ...]], opened: Mapping[tuple[str, Address], list[Use]]
) -> Iterator[Use]:
    """A row has the columns of the latest grant: for whom that is not, his own hole is looked for,
    and so it is where the grant is gone."""
    for is_connection, identities, *row in rows:
        names = identities.split(", ") if is_connection and identities else []
        for name in names:
            use = _use(name, row)
            if use is None:
                continue
            owner = row[_OWNER]
            if owner == name:
                yield use
            else:
                is_his_rule = owner is None and len(names) == 1
                port = Access.parse(row[_ACCESS])
                alone = replace(use, access=port, once=False, sessions=None, lifetimes_s=None)
                alone = alone if is_his_rule else replace(alone, rule="")
                yield _through(alone, opened.get((name, use.source), []))


def _through(use: Use, holes: Iterable[Use]) -> Use:
    """The use as one of the latest of these holes that its port, and its rule if known, is of."""
    fitting = [hole for hole in holes if use.access in hole.access and use.rule in ("", hole.rule)]
    if not fitting:
        return use
    hole = max(fitting, key=lambda hole: hole.decided_us)
    return replace(
        use,
        rule=hole.rule,
        access=hole.access,
        once=hole.once,
        sessions=hole.sessions,
        decided_us=hole.decided_us,
        lifetimes_s=hole.lifetimes_s,
    )


def _use(identity: str, row: list[Any]) -> Use | None:
    """A row of the record without its first two columns; None where it is about no port of ours."""
    rule, source, access, _, of_grant, once, sessions = row[:7]
    count, last_us, decided_us, shortest_s, longest_s, hours, days = row[7:]
    port = access_of(access)
    asked = access_of(of_grant or access)
    address = _address(source)
    if port is None or asked is None or address is None:
        return None
    return Use(
        identity=identity,
        rule=rule or "",
        source=address,
        access=asked,
        once=bool(once),
        sessions=None if sessions is None else Sessions(sessions),
        opened=0,
        connections=count,
        ports=frozenset({port}),
        last_us=last_us,
        decided_us=decided_us,
        lifetimes_s=None if longest_s is None else (max(1, shortest_s), max(1, longest_s)),
        hours=hours,
        days=days,
    )


def _gather(gathered: dict[tuple[object, ...], Use], use: Use) -> None:
    key = (use.identity, use.rule, use.source, use.access, use.once, use.sessions)
    known = gathered.get(key)
    gathered[key] = use if known is None else _together(known, use)


def _together(one: Use, other: Use) -> Use:
    spans = [each.lifetimes_s for each in (one, other) if each.lifetimes_s is not None]
    return replace(
        one,
        opened=one.opened + other.opened,
        connections=one.connections + other.connections,
        ports=one.ports | other.ports,
        last_us=max(one.last_us, other.last_us),
        decided_us=max(one.decided_us, other.decided_us),
        lifetimes_s=(min(s for s, _ in spans), max(s for _, s in spans)) if spans else None,
        hours=one.hours | other.hours,
        days=one.days | other.days,
    )


@lru_cache(maxsize=65536)
def access_of(text: str) -> Access | None:
    """The access in a column; None for what is none, such as `dccp/5` or several."""
    try:
        return Access.parse(text)
    except Malformed:
        return None


@lru_cache(maxsize=65536)
def _address(text: str | None) -> Address | None:
    try:
        return None if text is None else ip_address(text)
    except ValueError:
        return None


def nameless(connection: sqlite3.Connection, event: str, since_us: int) -> list[Nameless]:
    """The lines of an event without an identity. Raises sqlite3.Error."""
    return [Nameless(*row) for row in connection.execute(_NAMELESS, (event, since_us))]


def denials(connection: sqlite3.Connection, event: str, since_us: int) -> list[Nameless]:
    """The same of the file that denials are kept in (spa_server/audit/denials.py)."""
    return [Nameless(*row) for row in connection.execute(_DENIALS, (event, since_us))]


def last_used(connection: sqlite3.Connection, since_us: int) -> dict[Access, int]:
    """When each access was used for the last time. Raises sqlite3.Error."""
    found: dict[Access, int] = {}
    for text, at_us in connection.execute(_LAST_USED, (since_us,)):
        access = None if text is None else access_of(text)
        if access is not None:
            found[access] = at_us
    return found
