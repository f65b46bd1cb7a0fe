"""The chain of the record: what exactly the digests cover (docs/record.md, "The chain")."""

import hashlib
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
from hypothesis import given
from hypothesis import strategies as st

from keys import schema
from keys.when import rfc3339
from spa_server.audit import chain, tables
from spa_server.audit.asking import Filter, ask
from spa_server.audit.chain import COLUMNS, GENESIS, Head, canonical, digest_of, link
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from tests.test_ledger import Book, big, book
from tests.world import NOW_US

__all__ = ["book"]

OPENED = Record(
    Event.HOLE_OPENED,
    NOW_US,
    identity="zoë",
    key_id="abc",
    source="10.20.0.9",
    target="10.20.0.1",
    access="tcp/22",
    rule='roles."a\\b".allow[0]',
    grant_id=7,
    detail={"z": 1, "lifetime_s": 30},
)

DIGEST = "043a95c4e4d52756780f73d80ac87d7680a681665d0a17172bac051838b01db4"

texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63 - 1)
lines = st.tuples(
    numbers, numbers, st.text(st.characters(exclude_categories=["Cs"])), *[texts] * 7,
    st.none() | numbers, st.dictionaries(st.text(max_size=3), numbers, max_size=3).map(json.dumps),
)  # fmt: skip


def by_hand(columns: tuple[Any, ...]) -> bytes:
    """What docs/record.md says, by other means: Python's own JSON writer."""
    pairs = [(name, value) for name, value in zip(COLUMNS, columns, strict=True)]
    kept = {name: value for name, value in pairs[:-1] if value is not None}
    text = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
    return f'{text[:-1]},"detail":{columns[-1]}}}'.encode()


def test_a_line_and_its_digest_are_these_bytes() -> None:
    """The vector of docs/record.md."""
    [row], head = link(Head(), [OPENED])
    assert canonical(row[:-1]) == (
        b'{"id":1,"at_us":1795500000000000,"event":"hole.opened","identity":"zo\xc3\xab",'
        b'"key_id":"abc","source":"10.20.0.9","target":"10.20.0.1","access":"tcp/22",'
        b'"rule":"roles.\\"a\\\\b\\".allow[0]","grant_id":7,"detail":{"lifetime_s":30,"z":1}}'
    )
    assert head == Head(1, row[-1])
    assert head.digest.hex() == DIGEST


@given(lines)
def test_the_bytes_are_those_of_any_other_writer_of_json(columns: tuple[Any, ...]) -> None:
    assert canonical(columns) == by_hand(columns)


@given(lines, lines)
def test_two_lines_that_differ_have_other_bytes(
    one: tuple[Any, ...], other: tuple[Any, ...]
) -> None:
    assert (canonical(one) == canonical(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 2, "e", "a", None, *[None] * 6, "{}"), (1, 2, "e", None, "a", *[None] * 6, "{}")),
        (
            (1, 2, "e", 'a","key_id":"b', *[None] * 7, "{}"),
            (1, 2, "e", "a", "b", *[None] * 6, "{}"),
        ),
        ((1, 2, "e", *[None] * 7, 5, "{}"), (1, 2, "e", *[None] * 8, '{},"grant_id":5')),
        ((1, 2, "e", *[None] * 8, "{}"), (1, 2, 'e","detail":{}', *[None] * 8, "")),
    ],
)
def test_no_value_passes_for_another(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert len(one) == len(other) == len(COLUMNS)
    assert canonical(one) != canonical(other)


def test_the_digests_follow_each_other() -> None:
    rows, head = link(Head(4, b"x" * 32), [OPENED, OPENED])
    previous = b"x" * 32
    for event_id, row in enumerate(rows, start=5):
        assert row[0] == event_id
        hashed = hashlib.blake2b(digest_size=32, person=b"spa1 record")
        hashed.update(previous + by_hand(row[:-1]))
        previous = hashed.digest()
        assert row[-1] == previous
    assert head == Head(6, previous)


def test_text_that_is_no_utf8_is_escaped_and_does_not_stop_the_record() -> None:
    bad = Record(Event.GATE_FAILED, NOW_US, reason="/srv/\udcff", detail={"a\udc80": ["\udc81"]})
    [row], _ = link(Head(), [bad])
    assert row[8] == "/srv/\\udcff"
    assert json.loads(row[-2]) == {"a\\udc80": ["\\udc81"]}


def test_a_ledger_chains_what_it_writes_across_commits_and_runs(book: Book) -> None:
    for _ in range(3):
        book.ledger.note([OPENED, OPENED], NOW_US)
    book.open().note([OPENED], NOW_US)
    expected, head = link(Head(), [OPENED] * 7)
    assert book.connection.execute("select * from event order by id").fetchall() == expected
    assert book.open().head == head


def test_what_waited_is_chained_when_it_is_written(book: Book) -> None:
    book.fill_the_disk()
    book.ledger.note(big(), NOW_US)
    assert book.ledger.head == Head()
    book.make_room()
    book.ledger.note([OPENED], NOW_US)
    detail = {"count": len(big()), "granted": 0, "until": rfc3339(NOW_US)}
    late = Record(Event.RECORDS_LATE, NOW_US, reason="database or disk is full", detail=detail)
    rows, head = link(Head(), [late, *big(), OPENED])
    assert book.connection.execute("select * from event order by id").fetchall() == rows
    assert book.ledger.head == head


def test_a_ledger_does_not_adopt_what_another_program_wrote(book: Book) -> None:
    """It goes on behind its own last line: where the others stand the chain is broken."""
    book.ledger.note([OPENED], NOW_US)
    own = book.ledger.head
    foreign, _ = link(own, [Record(Event.HOLE_CLOSED, NOW_US, identity="eve")])
    book.connection.executemany(tables.INSERT_EVENT, foreign)
    book.ledger.note([OPENED], NOW_US)
    assert book.events() == ["hole.opened", "hole.closed", "hole.opened", "records.foreign"]
    row = book.connection.execute("select * from event where id = 3").fetchone()
    assert row[-1] == digest_of(own.digest, row[:-1])


# Databases of version 0.1


def old_database(path: Path, count: int) -> sqlite3.Connection:
    """As version 0.1 left it."""
    connection = schema.connect(path)
    db = sqlite_utils.Database(connection)
    tables.migrations.apply(db, stop_before="chain_the_record")
    rows = [(NOW_US + n, "hole.opened", "alice", f'{{"n": {n}}}') for n in range(count)]
    statement = "insert into event (at_us, event, identity, detail) values (?, ?, ?, ?)"
    connection.executemany(statement, rows)
    connection.execute("delete from event where id = 3")
    return connection


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_an_old_record_is_chained_where_it_is(tmp_path: Path, count: int) -> None:
    connection = old_database(tmp_path / "spa.db", count)
    before = ask(connection, Filter(), limit=10_000)
    ledger = Ledger(
        connection, lambda _seen: None, unrecorded=tmp_path / "unrecorded", boot_id="boot"
    )
    after = ask(connection, Filter(), limit=10_000)
    assert [line | {"id": 0} for line in after] == [line | {"id": 0} for line in before]
    assert [line["id"] for line in after] == list(range(1, len(before) + 1))
    digest = GENESIS
    for row in connection.execute("select * from event order by id"):
        assert row[-1] == digest_of(digest, row[:-1])
        digest = row[-1]
    assert ledger.head == Head(len(before), digest)
    assert tables.version_of(connection) == tables.VERSION
    assert connection.execute("pragma integrity_check").fetchone()[0] == "ok"
    connection.close()


def test_a_record_of_a_newer_version_is_left_alone(book: Book) -> None:
    book.connection.execute(f"pragma user_version = {tables.VERSION + 1}")
    with pytest.raises(Exception, match="newer version"):
        book.open()


def test_every_column_is_covered() -> None:
    """A column that is added to the record, and not to the chain, could be changed unseen."""
    columns = [*Record.__struct_fields__]
    assert ["event", "at_us", *columns[2:]] == columns
    assert set(COLUMNS) == {"id", *columns}
    assert chain._Line.__struct_fields__ == COLUMNS[:-1]


# docs/record.md

DOCUMENT = (Path(__file__).parent.parent / "docs" / "record.md").read_text(encoding="utf-8")


def test_every_event_is_in_the_schema_and_no_other() -> None:
    events = DOCUMENT.partition("## Events")[2].partition("## Denials")[0]
    first_cells = "".join(line.split("|")[1] for line in events.splitlines() if "|" in line)
    assert set(re.findall(r"`([a-z-]+\.[a-z-]+)`", first_cells)) == {event.value for event in Event}


def test_the_verifier_of_the_schema_verifies(book: Book) -> None:
    """As a stranger would run it, with Python and nothing of ours."""
    code = DOCUMENT.partition("```python\n")[2].partition("```")[0]
    book.ledger.note([OPENED, Record(Event.GATE_FAILED, NOW_US, reason='a\x1b\n"\\é')], NOW_US)
    argv = [sys.executable, "-I", "-c", code, str(book.path / "spa.db")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == f"the chain ends with {book.ledger.head.digest.hex()}\n"
    book.connection.execute("update event set identity = 'eve' where id = 2")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "AssertionError: line 2" in done.stderr


def test_the_vector_of_the_schema_is_the_one_here() -> None:
    lines = [line.strip() for line in DOCUMENT.splitlines() if line.startswith("    ")]
    assert DIGEST in lines
    start = next(n for n, line in enumerate(lines) if line.startswith('{"id":1'))
    [row], _ = link(Head(), [OPENED])
    assert "".join(lines[start : start + 3]).encode() == canonical(row[:-1])
