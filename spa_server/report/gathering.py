"""Gathers the facts of a report, each from where it is kept. Nothing is written anywhere."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from keys.lookup import Lookup
from spa_protocol import __version__
from spa_server.audit.record import Event
from spa_server.config import Config
from spa_server.policy.load import load_policy
from spa_server.policy.suggest.finding import Finding
from spa_server.policy.suggest.findings import find, remark
from spa_server.policy.suggest.judging import Record, looked_at, people_of
from spa_server.report import keys, lines
from spa_server.report.access import Gathering
from spa_server.report.buckets import Buckets
from spa_server.report.facts import Advice, Facts
from spa_server.report.state import state


@dataclass(frozen=True, slots=True)
class Most:
    """How many lines of the record of a kind, rows of people or keys, and sources are gathered."""

    lines: int = 500
    rows: int = 2000
    sources: int = 50


ALL: Final = Most(*[sys.maxsize] * 3)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which report: of which host, for the time from `since_us` to `now_us`, and how much of it."""

    title: str
    host: str
    since_us: int
    now_us: int
    most: Most = Most()


def gather(config: Config, registry: Lookup, wanted: Wanted) -> Facts:
    """Everything that the page says.

    Raises sqlite3.Error, Trouble and FileProblem where a file cannot be used.
    """
    since_us, now_us = wanted.since_us, wanted.now_us
    with looked_at(config.database, now_us, since_us, since_us) as record:
        return _gather(config, registry, wanted, record)


def _gather(config: Config, registry: Lookup, wanted: Wanted, record: Record) -> Facts:
    since_us, now_us, most = wanted.since_us, wanted.now_us, wanted.most
    connection, apart, period = record.connection, record.denials, record.period
    buckets = Buckets.of(since_us, now_us)
    evidence = record.evidence(load_policy(config.policy), people_of(registry, now_us))
    gathering = Gathering(evidence)
    usage, enrolled = gathering.usage(), keys.keys(registry, since_us, now_us)
    told = lines.told(connection, since_us, most.lines)
    activity = lines.activity(connection, since_us, buckets)
    refusals = lines.refusals(connection, apart, since_us)
    denied, would_deny = (
        lines.denied(
            connection, apart, event.value, since_us=since_us, buckets=buckets, most=most.sources
        )
        for event in (Event.CONNECTION_DENIED, Event.CONNECTION_WOULD_DENY)
    )
    return Facts(
        title=wanted.title,
        host=wanted.host,
        version=__version__,
        made_at_us=now_us,
        since_us=since_us,
        until_us=now_us,
        begins_at_us=period.begins_us,
        lost=period.lost,
        warnings=tuple(_warnings(record, config)),
        buckets=buckets,
        state=state(config, connection),
        access=gathering.access(),
        findings=_advice(find(evidence)),
        remarks=_advice(remark(evidence)),
        usage=tuple(usage[: most.rows]),
        usage_left_out=max(0, len(usage) - most.rows),
        keys=tuple(enrolled[: most.rows]),
        keys_left_out=max(0, len(enrolled) - most.rows),
        ages=keys.ages(enrolled),
        counts={event: sum(counts) for event, counts in sorted(activity.items())},
        activity=activity,
        denied=denied,
        would_deny=would_deny,
        refusals=tuple(refusals[: most.sources]),
        refusals_left_out=max(0, len(refusals) - most.sources),
        anomalies=told.anomalies,
        anomalies_left_out=told.anomalies_left_out,
        policy_changes=told.policy,
        key_changes=keys.changes(registry, since_us, most.lines),
        host_events=told.host,
    )


def _warnings(record: Record, config: Config) -> Iterable[str]:
    if record.period.begins_us is None:
        yield "the record is empty: nothing can be judged by it"
    else:
        yield from record.warnings(config.policy)


def _advice(findings: Iterable[Finding]) -> tuple[Advice, ...]:
    """Reviews that are due have a table of their own."""
    return tuple(
        Advice(finding.where, finding.line, finding.what, finding.edit)
        for finding in findings
        if finding.name != "review-due"
    )
