"""The drift watch says what is new or gone, and a daemon that starts does not say it all again."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from keys import schema
from spa_server.alignment.finding import Finding
from spa_server.audit import tables
from spa_server.audit.ledger import Ledger
from spa_server.driftwatch import Drift, DriftWatch
from spa_server.gatehouse import Gatehouse
from spa_server.policy.model import Policy

POLICY = Policy()
UNUSED = Finding("role-unused", "dba", "nobody has the role dba", "give it")
QUIET = Finding("rule-without-listener", "tcp/22", "nobody listens", "start it")

Start = Callable[[], DriftWatch]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(schema.connect(tmp_path / "spa.db")) as connection:
        tables.prepare(connection)
        yield connection


@pytest.fixture
def start(database: sqlite3.Connection, tmp_path: Path) -> Start:
    """A daemon's watch, as one that starts makes it."""

    def make() -> DriftWatch:
        ledger = Ledger(
            database, lambda _seen: None, unrecorded=tmp_path / "unrecorded", boot_id="a"
        )
        return DriftWatch(cast(Gatehouse, SimpleNamespace(listed="the gate")), ledger)

    return make


def told(watch: DriftWatch, *findings: Finding) -> list[tuple[str, str]]:
    records = watch.changed(Drift(POLICY, "the gate", list(findings)), POLICY, 1)
    return [(record.event.value, record.detail["name"]) for record in records]


def test_a_restart_says_only_what_has_changed_meanwhile(start: Start) -> None:
    first = start()
    assert told(first, UNUSED, QUIET) == [
        ("drift.found", "role-unused"),
        ("drift.found", "rule-without-listener"),
    ]
    assert told(first, UNUSED, QUIET) == []
    assert told(start(), UNUSED, QUIET) == []
    assert told(start(), UNUSED) == [("drift.gone", "rule-without-listener")]
    assert told(start(), UNUSED, QUIET) == [("drift.found", "rule-without-listener")]


def test_what_an_other_version_found_is_no_finding(
    start: Start, database: sqlite3.Connection
) -> None:
    database.execute("insert into drift_told values ('of-tomorrow', 'x', 'y', 'z')")
    assert told(start(), UNUSED) == [("drift.found", "role-unused")]
