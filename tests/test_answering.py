"""The record for the group spa: what is asked is typed and bounded, and it can only be read."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keys import schema
from keys.registry import Registry
from spa_server.audit import answering, denials, tables
from spa_server.audit.denials import Denials
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from tests.world import NOW_US


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A record of two people and a denial."""
    path = tmp_path / "spa.db"
    with closing(schema.connect(path)) as connection:
        registry, apart = Registry(connection), Denials(denials.beside(path))
        ledger = Ledger(
            connection,
            registry.seen,
            unrecorded=tmp_path / "unrecorded",
            boot_id="a",
            denials=apart,
        )
        ledger.note([Record(Event.KNOCK_ACCEPTED, NOW_US, identity="alice")], NOW_US)
        ledger.note([Record(Event.HOLE_CLOSED, NOW_US + 1, identity="bob")], NOW_US)
        denied = Record(Event.CONNECTION_DENIED, NOW_US + 2, source="10.0.0.9", access="tcp/23")
        ledger.note([denied], NOW_US + 2)
        apart.close(NOW_US + 2)
    return path


def ask(database: Path, **request: Any) -> dict[str, Any]:
    return answering.answer(database, request)


def test_lines_and_denials_come_by_their_time(database: Path) -> None:
    answer = ask(database)
    events = ["knock.accepted", "hole.closed", "connection.denied"]
    assert [line["event"] for line in answer["lines"]] == events
    assert answer["heads"] == [2, 1]


def test_who_knows_how_far_it_went_gets_what_came_after(database: Path) -> None:
    assert [line["event"] for line in ask(database, after=[1, 1])["lines"]] == ["hole.closed"]
    assert [line["event"] for line in ask(database, after=[2, 0])["lines"]] == ["connection.denied"]
    assert ask(database, after=[2, 1])["lines"] == []


def test_a_filter_filters_and_nobody_is_nobody(database: Path) -> None:
    found = ask(database, wanted={"identity": "bob", "event": "hole"})
    assert [line["identity"] for line in found["lines"]] == ["bob"]
    assert ask(database, wanted={"identity": "mallory"}) == {
        "is_known": False,
        "lines": [],
        "heads": [0, 0],
    }


@pytest.mark.parametrize("limit", [-1, 0, 10**18])
def test_an_answer_has_so_many_lines_and_one_at_least(database: Path, limit: int) -> None:
    with closing(schema.connect(database)) as connection:
        _fill(connection, 3 * answering.AT_ONCE)
    count = len(ask(database, limit=limit)["lines"])
    assert count == (1 if limit < 1 else answering.AT_ONCE)


@pytest.mark.parametrize(
    "request_",
    [
        {"wanted": {"identity": 7}},
        {"wanted": {"identities": "alice"}},
        {"wanted": [["identity", "alice"]]},
        {"wanted": None},
        {"limit": "all"},
        {"after": [0]},
        {"after": "event"},
    ],
)
def test_what_is_not_understood_is_refused(database: Path, request_: dict[str, Any]) -> None:
    """Passed over, a filter would show everything."""
    with pytest.raises((ValueError, msgspec.ValidationError)):
        answering.answer(database, request_)


def test_what_takes_too_long_ends(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(schema.connect(database)) as connection:
        _fill(connection, 50_000)
    assert ask(database, wanted={"access": "tcp/1"})["lines"] == []
    monkeypatch.setattr(answering, "_WITHIN_S", -1.0)
    with pytest.raises(ValueError, match="ask with --since"):
        ask(database, wanted={"access": "tcp/1"})


def test_the_connection_can_only_read(database: Path) -> None:
    with (
        answering._reading(database) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("delete from event")


def _fill(connection: sqlite3.Connection, count: int) -> None:
    tables.prepare(connection)
    connection.execute(
        "with recursive n(i) as (select 3 union all select i + 1 from n where i < ?)"
        " insert into event (id, at_us, event, detail, digest)"
        " select i, i, 'clock.set', '{}', x'00' from n",
        (count + 2,),
    )
