"""Uses, read from a record that somebody has tampered with: what says nothing stops nobody."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from keys import schema
from keys.registry import Registry
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.policy.suggest import usage
from tests.world import NOW_US

TAMPERED = ["", "{", "no json", '"text"', "[1]", '{"lifetime_s":"soon","count":"many"}', "null"]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[tuple[Ledger, Path]]:
    with closing(schema.connect(tmp_path / "spa.db")) as connection:
        seen = Registry(connection).seen
        made = Ledger(connection, seen, unrecorded=tmp_path / "unrecorded", boot_id="b")
        yield made, tmp_path / "spa.db"


@pytest.mark.parametrize("detail", TAMPERED)
def test_a_detail_that_is_none_says_nothing(ledger: tuple[Ledger, Path], detail: str) -> None:
    book, path = ledger
    opened = Record(
        Event.HOLE_OPENED,
        NOW_US,
        identity="alice",
        source="10.20.0.9",
        target="10.20.0.1",
        access="tcp/22",
        rule="roles.ops.allow[0]",
        detail={"lifetime_s": 30},
    )
    lost = Record(Event.RECORDS_LOST, NOW_US, detail={"count": 5})
    nameless = Record(Event.CONNECTION_PERMITTED, NOW_US, source="10.20.0.8", access="tcp/22")
    book.note([opened, opened, lost, lost, nameless], NOW_US)
    with closing(schema.connect(path)) as connection:
        connection.execute("update event set detail = ? where id in (2, 4, 5)", (detail,))
        [use] = usage.uses(connection, NOW_US)
        period = usage.period_of(connection, NOW_US, NOW_US)
        [other] = usage.nameless(connection, "connection.permitted", NOW_US)
    assert (use.identity, use.opened) == ("alice", 2)
    assert use.lifetimes_s is not None
    assert use.lifetimes_s[1] == 30
    assert period.lost == 5
    assert other.count == 1
