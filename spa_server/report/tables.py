"""The tables of the page: captions, columns and cells as text, from the facts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from spa_server.report.facts import (
    Access,
    Advice,
    Denials,
    Denied,
    Facts,
    Found,
    Key,
    Listing,
    Refusal,
    Review,
    Rule,
    Usage,
)
from spa_server.report.values import moment

_T = TypeVar("_T")
MOST_ROWS: Final = 100
MOST_NAMES: Final = 100


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns by name and kind, and its rows.

    Kinds are `text`, `num`, `time`, `day`, `tag` (a word), `code`, and `id` (code in one piece). A
    cell that is empty has nothing to say. `left_out` rows more are in the database only. `anchor`:
    rows get names of their own, from their first cell.
    """

    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    left_out: int = 0
    anchor: str = ""


def tables(facts: Facts) -> dict[str, Table]:
    """By name; those without rows are there as well."""
    return {
        "rules": _rules(facts.access),
        "services": _services(facts.access),
        "reviews": _reviews(facts.access.reviews),
        "findings": _advice("What can be taken out or narrowed", facts.findings),
        "remarks": _advice("To be known besides", facts.remarks),
        "usage": _usage(facts.usage, facts.usage_left_out),
        "keys": _keys(facts.keys, facts.keys_left_out),
        "denied": _denied("Sources that were denied", facts.denied),
        "would_deny": _denied("Sources that would have been denied", facts.would_deny),
        "refusals": _refusals(facts.refusals, facts.refusals_left_out),
        "anomalies": _anomalies(facts.anomalies, facts.anomalies_left_out),
        "policy": _listing("Changes of the policy in force", facts.policy_changes, "Key"),
        "registry": _listing("Changes of the registry", facts.key_changes, "By"),
        "host": _listing("What happened to the host", facts.host_events, "Whose"),
        "events": _events(facts),
    }


def shortened(found: Mapping[str, Table]) -> dict[str, Table]:
    """The tables with as many rows as somebody reads, and the number of the others.

    That of the rules is whole: the matrix names them.
    """
    return {name: each if each.anchor else _first(each) for name, each in found.items()}


def _first(table: Table) -> Table:
    beyond = max(0, len(table.rows) - MOST_ROWS)
    return replace(table, rows=table.rows[:MOST_ROWS], left_out=table.left_out + beyond)


def minute(at_us: int | None) -> str:
    """`2026-11-24 09:00`, in UTC; empty for never."""
    return "" if at_us is None else moment(at_us)[:16].replace("T", " ")


def day(at_us: int | None) -> str:
    """`2026-11-24`, in UTC; empty for never."""
    return "" if at_us is None else moment(at_us)[:10]


def number(count: int) -> str:
    """`1,200`."""
    return f"{count:,}"


def _rules(access: Access) -> Table:
    columns = (
        ("No.", "num"),
        ("Rule", "code"),
        ("Services and conditions", "text"),
        ("People", "num"),
        ("Connections", "num"),
        ("Last used", "day"),
        ("Review by", "day"),
    )
    return Table("Rules", columns, [_rule(rule) for rule in access.rules], anchor="rule")


def _rule(rule: Rule) -> Sequence[str]:
    if rule.is_recorded:
        used = [number(rule.people), number(rule.connections), day(rule.last_at_us) or "never"]
    else:
        used = ["anybody", "not recorded", ""]
    return [
        str(rule.number),
        _place(rule.path, rule.line),
        rule.conditions,
        *used,
        rule.review_by.isoformat() if rule.review_by else "",
    ]


def _place(where: str, line: int) -> str:
    return f"{where} (line {line})" if line else where


def _services(access: Access) -> Table:
    rows = [list(pair) for pair in access.services.items()]
    return Table("Services", (("Service", "text"), ("Ports", "code")), rows)


def _reviews(reviews: Iterable[Review]) -> Table:
    columns = (("What", "code"), ("Review by", "day"), ("State", "text"))
    rows = [
        [_place(each.where, each.line), each.due.isoformat(), _due(each.days)] for each in reviews
    ]
    return Table("Reviews that are due", columns, rows)


def _due(days: int) -> str:
    if days > 0:
        return f"due in {_days(days)}"
    return f"overdue by {_days(-days)}" if days else "due today"


def _days(days: int) -> str:
    return "1 day" if days == 1 else f"{days:,} days"


def _advice(caption: str, found: Iterable[Advice]) -> Table:
    columns = (("Where", "code"), ("What", "text"), ("What to do", "text"))
    rows = [[_place(each.where, each.line), each.what, each.edit] for each in found]
    return Table(caption, columns, rows)


def _usage(found: Iterable[Usage], left_out: int) -> Table:
    columns = (
        ("Identity", "text"),
        ("Service", "text"),
        ("Addresses", "num"),
        ("Holes", "num"),
        ("Connections", "num"),
        ("Last", "time"),
    )
    rows = [
        [
            each.identity,
            each.service,
            number(each.sources),
            number(each.holes),
            number(each.connections),
            minute(each.last_at_us),
        ]
        for each in found
    ]
    return Table("Who reached what", columns, rows, left_out)


def _keys(found: Iterable[Key], left_out: int) -> Table:
    columns = (
        ("Identity", "text"),
        ("Key", "id"),
        ("Kind", "tag"),
        ("State", "tag"),
        ("Enrolled", "day"),
        ("Age in days", "num"),
        ("Last heard", "day"),
        ("Expires", "day"),
        ("Comment", "text"),
    )
    rows = [
        [
            key.identity,
            key.key_id,
            key.kind,
            key.state,
            day(key.enrolled_at_us),
            number(key.age_days),
            day(key.last_seen_at_us) or "never",
            day(key.expires_at_us) or "never",
            key.comment,
        ]
        for key in found
    ]
    return Table("Keys, the oldest first", columns, rows, left_out)


def _denied(caption: str, found: Denials) -> Table:
    columns = (
        ("Source", "code"),
        ("Packets", "num"),
        ("Ports", "num"),
        ("Most often", "text"),
        ("First", "time"),
        ("Last", "time"),
    )
    return Table(caption, columns, [_source(each) for each in found.sources], found.left_out)


def _source(each: Denied) -> Sequence[str]:
    return [
        each.source or "many sources, counted together",
        number(each.packets),
        number(each.port_count),
        ", ".join(each.ports),
        minute(each.first_at_us),
        minute(each.last_at_us),
    ]


def _refusals(found: Iterable[Refusal], left_out: int) -> Table:
    columns = (("Reason", "text"), ("Knocks", "num"), ("Identities", "num"), ("Last", "time"))
    rows = [
        [each.reason, number(each.knocks), number(each.people), minute(each.last_at_us)]
        for each in found
    ]
    return Table("Refused knocks", columns, rows, left_out)


def _anomalies(found: Iterable[Found], left_out: int) -> Table:
    columns = (
        ("When (UTC)", "time"),
        ("What", "tag"),
        ("About", "text"),
        ("Score", "num"),
        ("Why", "text"),
    )
    rows = [
        [minute(each.at_us), each.name, each.subject, _score(each.score), each.reason]
        for each in found
    ]
    return Table("Anomalies, the latest first", columns, rows, left_out)


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def _listing(caption: str, found: Listing, who: str) -> Table:
    """Without the column of who it was, where nobody was."""
    columns = [("When (UTC)", "time"), ("What", "tag"), (who, "text"), ("More", "text")]
    rows = [[minute(line.at_us), line.event, line.who, line.what] for line in found.lines]
    if not any(line.who for line in found.lines):
        columns, rows = _without(2, columns), [_without(2, row) for row in rows]
    return Table(f"{caption}, the latest first", columns, rows, found.left_out)


def _without(index: int, cells: list[_T]) -> list[_T]:
    return cells[:index] + cells[index + 1 :]


def _events(facts: Facts) -> Table:
    rows = [[event, number(count)] for event, count in facts.counts.items()]
    return Table("Lines of the record by event", (("Event", "code"), ("Lines", "num")), rows)
