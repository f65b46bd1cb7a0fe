"""The export: nothing is left out or changed, a spreadsheet runs nothing, OCSF's schema is kept."""

import csv
import hashlib
import io
import json
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jsonschema
import ocsf_json_schema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import schema
from spa_server.audit import chain, ocsf, tables
from spa_server.audit.asking import Filter
from spa_server.audit.chain import Head
from spa_server.audit.denials import Denials
from spa_server.audit.export import Format, Line, cell, lines, written
from spa_server.audit.following import follow
from spa_server.audit.record import Event, Record
from tests.world import NOW_US, SECOND

GRANTED = {
    "identity": "alice",
    "key_id": "abcdefgh12345678",
    "source": "10.20.0.9",
    "target": "10.20.0.1",
    "access": "tcp/22",
    "rule": 'roles."d b".allow[0]',
    "grant_id": 7,
}
ENDED = {
    "source_port": 40000,
    "duration_s": 2.5,
    "bytes_in": 10,
    "bytes_out": 20,
    "packets_in": 3,
    "packets_out": 4,
}


def a_record_of_each(at_us: int = NOW_US) -> list[Record]:
    """A line of each event, as the daemon writes them, and odd ones besides."""
    plain = [Record(event, at_us + number, **GRANTED) for number, event in enumerate(Event)]  # type: ignore[arg-type]  # fields of a test
    odd = [
        Record(Event.CONNECTION_ENDED, at_us, **GRANTED, detail=ENDED),  # type: ignore[arg-type]  # as above
        Record(Event.CONNECTION_ENDED, at_us, detail={"bytes_in": None, "duration_s": None}),
        Record(Event.CONNECTION_DENIED, at_us, source="fd77::9", access="udp/53"),
        Record(Event.CONNECTION_DENIED, at_us, detail={"further": 12}),
        Record(Event.CONNECTION_DENIED, at_us, source="10.1.2.0/24", detail={"sources": 9}),
        Record(Event.CONNECTION_DENIED, at_us, source="10.1.2.3", access="47/0"),
        Record(Event.KNOCK_REFUSED, at_us, source="10.1.2.3", reason="unknown-key"),
        Record(Event.KNOCK_REFUSED, at_us, reason='=cmd|"/c calc"!A1\r\n"x",\u202e'),
        Record(Event.HOLE_OPENED, at_us, access="tcp/22-80, udp/53", detail={"lifetime_s": 30}),
        Record(Event.KEYS_CHANGED, at_us, identity="zoë", detail={"detail": "\x1b[31m"}),
    ]
    return plain + odd


def new_record(path: Path) -> sqlite3.Connection:
    connection = schema.connect(path)
    tables.prepare(connection)
    return connection


def enter(connection: sqlite3.Connection, records: list[Record]) -> None:
    rows, _ = chain.link(tables.head_of(connection), records)
    connection.execute("begin")
    connection.executemany(tables.INSERT_EVENT, rows)
    connection.execute("commit")


@pytest.fixture
def record(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(new_record(tmp_path / "spa.db")) as connection:
        enter(connection, a_record_of_each())
        yield connection


@pytest.fixture
def denials(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    path = tmp_path / "denials.db"
    kept = Denials(path)
    denied = Record(Event.CONNECTION_DENIED, NOW_US + 3, source="10.9.9.9", access="tcp/1")
    kept.add([denied], NOW_US + 3)
    kept.close(NOW_US + 3)
    with closing(schema.connect(path, read_only=True)) as connection:
        yield connection


def exported(form: Format, found: Iterator[Line]) -> str:
    return "".join(written(form, found))


# JSON lines


@pytest.mark.parametrize("form", list(Format))
def test_nothing_steers_the_terminal_that_an_export_is_shown_on(
    record: sqlite3.Connection, form: Format
) -> None:
    """Marks that turn the direction of writing, and C1, which some terminals obey as escapes."""
    evil = "a\u202eb\x9b31m\x1b[31m\U000e0041"
    enter(record, [Record(Event.KNOCK_REFUSED, NOW_US, source="::1", reason=evil)])
    text = exported(form, lines(record, Filter()))
    assert all(c.isprintable() or c in "\r\n" for c in text)
    if form is Format.JSONL:
        assert evil in [json.loads(line).get("reason") for line in text.splitlines()]


def test_jsonl_has_every_line_and_every_value(record: sqlite3.Connection) -> None:
    text = exported(Format.JSONL, lines(record, Filter()))
    got = [json.loads(line) for line in text.splitlines()]
    names = [*chain.COLUMNS, "digest"]
    kept = record.execute(f"select {', '.join(names)} from event order by id").fetchall()  # noqa: S608 - our own names
    assert len(got) == len(kept) == len(a_record_of_each())
    for line, row in zip(sorted(got, key=lambda line: line["id"]), kept, strict=True):
        expected = {
            name: value for name, value in zip(names, row, strict=True) if value is not None
        }
        expected["detail"] = json.loads(expected["detail"])
        expected["digest"] = expected["digest"].hex()
        assert line == expected


def test_the_chain_can_be_verified_from_the_export_alone(record: sqlite3.Connection) -> None:
    """By docs/record.md, without anything of ours: the detail is there byte for byte."""
    found = [
        json.loads(line) for line in exported(Format.JSONL, lines(record, Filter())).splitlines()
    ]
    digest = bytes(32)
    for line in sorted(found, key=lambda line: int(line["id"])):
        claimed, detail = line.pop("digest"), line.pop("detail")
        head = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        text = json.dumps(detail, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        whole = f'{head[:-1]},"detail":{text}}}'.encode()
        digest = hashlib.blake2b(digest + whole, digest_size=32, person=b"spa1 record").digest()
        assert claimed == digest.hex()


def test_denials_stand_among_the_lines_by_their_time(
    record: sqlite3.Connection, denials: sqlite3.Connection
) -> None:
    found = list(lines(record, Filter(), denials=denials))
    apart = [line for line in found if "digest" not in line]
    assert [(line["source"], line["count"]) for line in apart] == [("10.9.9.9", 1)]
    times = [line["at_us"] for line in found]
    assert times.index(NOW_US + 3) <= found.index(apart[0]) < times.index(NOW_US + 4)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Filter(identity="alice"), lambda line: line["identity"] == "alice"),
        (Filter(event="hole"), lambda line: line["event"].startswith("hole.")),
        (Filter(source="10.1.2.3"), lambda line: line["source"] == "10.1.2.3"),
        (Filter(access="udp/53"), lambda line: line["access"] == "udp/53"),
        (Filter(since_us=NOW_US + 5), lambda line: line["at_us"] >= NOW_US + 5),
    ],
)
def test_a_filter_takes_what_fits_and_nothing_else(
    record: sqlite3.Connection, wanted: Filter, fits: Any
) -> None:
    every = list(lines(record, Filter()))
    found = list(lines(record, wanted))
    assert found == [line for line in every if fits(line)]
    assert 0 < len(found) < len(every)


def test_until_leaves_out_what_came_later(record: sqlite3.Connection) -> None:
    found = list(lines(record, Filter(), until_us=NOW_US + 2))
    assert {line["at_us"] for line in found} == {NOW_US, NOW_US + 1}


def test_what_is_written_meanwhile_is_left_out_and_can_be_written(
    record: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spa_server.audit.export.PAGE", 5)
    found = lines(record, Filter())
    first = next(found)
    before = record.execute("select count(*) from event").fetchone()[0]
    enter(record, a_record_of_each(NOW_US + SECOND))
    assert len([first, *found]) == before


# Tables


def test_csv_gives_back_every_line(record: sqlite3.Connection) -> None:
    text = exported(Format.CSV, lines(record, Filter()))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(a_record_of_each())
    assert {row["event"] for row in rows} == {event.value for event in Event}
    assert all(row["at"].endswith("Z") for row in rows)


@given(st.text(max_size=40))
def test_no_cell_is_a_formula_or_leaves_its_line(text: str) -> None:
    made = str(cell(text))
    assert made.isprintable()
    assert not made.lstrip().startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1"])
def test_what_a_spreadsheet_would_run_stands_behind_an_apostrophe(text: str) -> None:
    assert str(cell(text)).startswith(("'", "\\"))


def test_numbers_stay_numbers_and_nothing_stays_empty() -> None:
    assert cell(-5) == -5
    assert cell(None) is None


# OCSF


@cache
def ocsf_validator(class_name: str, profiles: tuple[str, ...]) -> jsonschema.Draft202012Validator:
    published = ocsf_json_schema.get_ocsf_schema(ocsf.VERSION)
    made = ocsf_json_schema.OcsfJsonSchemaEmbedded(published)
    return jsonschema.Draft202012Validator(made.get_class_schema(class_name, list(profiles)))


def check(event: dict[str, Any]) -> None:
    name = {3002: "authentication", 4001: "network_activity"}[event["class_uid"]]
    profiles = tuple(event["metadata"].get("profiles", ()))
    ocsf_validator(name, profiles).validate(event)


def test_every_ocsf_event_fits_the_published_schema(
    record: sqlite3.Connection, denials: sqlite3.Connection
) -> None:
    text = exported(Format.OCSF, lines(record, Filter(), denials=denials))
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        check(event)
    named = {event["metadata"]["event_code"] for event in events}
    groups = ("knock.", "join.", "close.", "hole.", "connection.")
    assert named == {event.value for event in Event if event.startswith(groups)}
    assert len({event["metadata"]["uid"] for event in events}) == len(events)


def test_the_schema_finds_what_is_wrong() -> None:
    """Else the test above could not fail."""
    line = {"id": 1, "count": 1, "reason": None, "detail": "{}", "at_us": NOW_US, **GRANTED}
    event = ocsf.event_of({**line, "event": "connection.denied"})
    assert event is not None
    check(event)
    for broken in ({"time": "now"}, {"activity_id": 77}, {"severity_id": None}, {"bogus": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check({**event, **broken})


def test_an_ended_connection_carries_its_figures() -> None:
    line = {"id": 1, "reason": None, "detail": json.dumps(ENDED), "at_us": NOW_US, **GRANTED}
    event = ocsf.event_of({**line, "event": "connection.ended", "digest": b""})
    assert event is not None
    check(event)
    assert event["traffic"] == {
        "bytes_in": 10, "bytes_out": 20, "packets_in": 3, "packets_out": 4
    }  # fmt: skip
    assert event["duration"] == 2500
    assert event["time"] == NOW_US // 1000
    assert event["src_endpoint"] == {"ip": "10.20.0.9", "port": 40000}
    assert event["dst_endpoint"] == {"ip": "10.20.0.1", "port": 22}


texts = st.none() | st.text(max_size=20) | st.ip_addresses().map(str)
details = st.dictionaries(
    st.sampled_from(["source_port", "further", "bytes_in", "duration_s", "x"]),
    st.none() | st.integers() | st.text(max_size=5) | st.floats(0, 1e9),
    max_size=4,
)  # fmt: skip


@given(st.sampled_from(sorted(Event)), texts, texts, texts, texts, details)
def test_whatever_a_line_holds_its_event_has_what_the_class_requires(
    event: Event,
    identity: str | None,
    source: str | None,
    access: str | None,
    reason: str | None,
    detail: dict[str, Any],
) -> None:
    line = {
        "id": 1, "at_us": NOW_US, "event": event.value, "identity": identity, "key_id": None,
        "source": source, "target": None, "access": access, "reason": reason, "rule": None,
        "grant_id": None, "detail": json.dumps(detail), "digest": b"",
    }  # fmt: skip
    made = ocsf.event_of(line)
    if made is None:
        return
    required = {"activity_id", "category_uid", "class_uid", "type_uid", "severity_id", "time"}
    assert required | {"metadata", "unmapped"} <= made.keys()
    assert made["type_uid"] == made["class_uid"] * 100 + made["activity_id"]
    for end in ("src_endpoint", "dst_endpoint"):
        if end in made and "ip" in made[end]:
            ip_address(made[end]["ip"])
    json.dumps(made)


# Following


def test_a_follower_gets_each_new_line_once_and_none_of_the_old(
    record: sqlite3.Connection, tmp_path: Path
) -> None:
    """Also those of a denials file that is made, taken away and made again meanwhile."""
    path = tmp_path / "denials.db"
    knock = Record(Event.KNOCK_ACCEPTED, NOW_US + SECOND, identity="bob")
    kept = Denials(path)

    def deny(source: str) -> None:
        kept.add([Record(Event.CONNECTION_DENIED, NOW_US, source=source, access="tcp/1")], NOW_US)
        kept.flush(NOW_US)

    def drop() -> None:
        kept.drop()
        kept.is_paused = False

    steps: Iterator[Callable[[], object]] = iter(
        [
            lambda: enter(record, [knock]),
            lambda: None,
            lambda: deny("10.0.0.1"),
            lambda: deny("10.0.0.2"),
            drop,
            lambda: deny("10.0.0.3"),
            lambda: enter(record, [knock, knock]),
        ]
    )

    def pause(_seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    got: list[Line] = []
    with suppress(KeyboardInterrupt):
        for line in follow(tmp_path / "spa.db", path, Filter(), pause=pause):
            got.append(line)
    kept.close(NOW_US)
    count = len(a_record_of_each())
    assert [(line["id"], line["source"]) for line in got] == [
        (count + 1, None),
        (1, "10.0.0.1"),
        (2, "10.0.0.2"),
        (1, "10.0.0.3"),
        (count + 2, None),
        (count + 3, None),
    ]
    assert got[0]["identity"] == "bob"
    assert got[0]["at"].endswith("Z")


# As a command


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "spa_server", "--config", str(config), "audit", "export"]
    argv[1:3] = ["-c", "from spa_server.cli import main; main()"]
    return subprocess.run([*argv, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def config(tmp_path: Path, record: sqlite3.Connection) -> Path:
    path = tmp_path / "server.toml"
    path.write_text('database = "spa.db"\n')
    assert record is not None
    return path


def test_the_command_writes_a_file_whole_and_private(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = run(config, "--out", str(out))
    assert (done.returncode, done.stdout) == (0, "")
    count = len(a_record_of_each())
    assert done.stderr == f"{count} lines.\n"
    assert len(out.read_text().splitlines()) == count
    assert out.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.glob(".out*")] == []


def test_the_command_says_what_ocsf_leaves_out(config: Path) -> None:
    done = run(config, "--format", "ocsf", "--identity", "alice")
    assert done.returncode == 0
    assert "left out, which are of no such class" in done.stderr
    assert all(json.loads(line)["class_uid"] in {3002, 4001} for line in done.stdout.splitlines())


def test_without_a_database_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('database = "none.db"\n')
    done = run(tmp_path / "server.toml")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1


# A million


@pytest.mark.timeout(300)
def test_many_lines_are_streamed(tmp_path: Path) -> None:
    """200,000 lines take no more memory than 2,000 do; benchmarks are elsewhere."""
    count = 200_000
    with closing(new_record(tmp_path / "spa.db")) as connection:
        some = [Record(Event.KNOCK_ACCEPTED, NOW_US, **GRANTED, detail=ENDED)]  # type: ignore[arg-type]  # as above
        head = Head()
        connection.execute("begin")
        for _ in range(count // 1000):
            rows, head = chain.link(head, some * 1000)
            connection.executemany(tables.INSERT_EVENT, rows)
        connection.execute("commit")
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began_s = time.monotonic()
        size = sum(map(len, written(Format.JSONL, lines(connection, Filter()))))
        took_s = time.monotonic() - began_s
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    print(f"{count / took_s:,.0f} lines a second, {grown_kb} kB more")
    assert size > count * 200
    assert grown_kb < 40_000
