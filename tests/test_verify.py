"""Tampering with the record: what is found, and by which name (spa_server/audit/verify.py).

Whoever tampers here can write the file and chain lines anew, but cannot sign.
"""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import schema, serverkey
from keys.registry import Registry
from spa_server.audit import tables
from spa_server.audit.chain import COLUMNS, GENESIS, digest_of
from spa_server.audit.checkpoint import BadCheckpoint, Checkpoint, Signer, record_key
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.audit.retention import Retention
from spa_server.audit.upkeep import Upkeep, note_in, read_note
from spa_server.audit.verify import Claim, Report, verify
from spa_server.audit.walk import Finding
from spa_server.cli import main
from tests.world import NOW_US, SECOND

SERVER = serverkey.from_secret(bytes(range(32)))
KEY = record_key(SERVER.secret)
OTHER = record_key(bytes(32))
COUNT = 120
SIGNED = 100
Found = list[tuple[str, int | None, int | None]]


def record(number: int) -> Record:
    return Record(
        Event.HOLE_OPENED,
        NOW_US + number * SECOND,
        identity=f"user{number % 7}",
        source=f"10.0.0.{number % 250}",
        detail={"number": number},
    )


class Kept:
    """A record of `COUNT` lines, signed at every fortieth and at the hundredth."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = schema.connect(path / "spa.db")
        registry = Registry(self.connection)
        self.ledger = Ledger(
            self.connection, registry.seen, unrecorded=path / "unrecorded", boot_id="boot"
        )
        self.upkeep = Upkeep(self.ledger, KEY, note=note_in(path))
        self.upkeep.start(NOW_US)
        for first, last in ((1, 40), (41, 80), (81, SIGNED), (SIGNED + 1, COUNT)):
            records = [record(number) for number in range(first, last + 1)]
            self.ledger.note(records, NOW_US)
            if last != COUNT:
                self.upkeep.checkpoint(NOW_US + last * SECOND)

    def close(self) -> None:
        self.connection.close()

    def do(self, sql: str, *values: object) -> None:
        self.connection.execute(sql, values)

    def lines(self) -> list[tuple[Any, ...]]:
        return self.connection.execute("select * from event order by id").fetchall()

    def put(self, lines: list[tuple[Any, ...]], *, chained_from: int | None = None) -> None:
        """These lines and no others, numbered anew; chained anew from one place on."""
        self.do("delete from event")
        previous = GENESIS
        for number, line in enumerate(lines, start=1):
            columns, digest = (number, *line[1:-1]), line[-1]
            if chained_from is not None and number >= chained_from:
                digest = digest_of(previous, columns)
            self.do(tables.INSERT_EVENT, *columns, digest)
            previous = digest

    def verify(self, *signers: Signer, claims: tuple[Claim, ...] = ()) -> Report:
        return verify(self.connection, signers or [KEY.signer], claims)

    def found(self, **options: Any) -> Found:
        return [(f.name, f.first_id, f.last_id) for f in self.verify(**options).findings]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    yield made
    made.connection.close()


def test_a_record_that_nobody_touched_is_sound(kept: Kept) -> None:
    report = kept.verify()
    assert report.findings == []
    assert (report.lines, report.first_id, report.last_id) == (COUNT, 1, COUNT)
    assert (report.signed_id, report.checkpoints) == (SIGNED, 3)
    assert report.signed_at_us == NOW_US + SIGNED * SECOND
    assert report.unsigned == COUNT - SIGNED
    assert report.digest == kept.ledger.head.digest


def test_an_empty_record_is_sound(kept: Kept) -> None:
    empty = sqlite3.connect(":memory:", isolation_level=None)
    kept.connection.backup(empty)
    empty.execute("delete from event")
    empty.execute("delete from checkpoint")
    assert verify(empty, [KEY.signer]).findings == []
    empty.close()


# One line, or a few of them


@pytest.mark.parametrize(
    "change",
    [
        "identity = 'eve'",
        "identity = null",
        "at_us = at_us + 1",
        "event = 'hole.closed'",
        "source = source || ' '",
        "rule = ''",
        "grant_id = 1",
        "detail = replace(detail, ':', ': ')",
        "digest = zeroblob(32)",
        "digest = x''",
        "source = cast(x'ff' as text)",
    ],
)
def test_an_altered_line_is_named(kept: Kept, change: str) -> None:
    kept.do("update event set " + change + " where id = 50")  # noqa: S608 - ours
    assert [name for name, *_ in kept.found()] == ["altered"] * len(kept.found())
    assert ("altered", 50, 50) in kept.found()


def test_a_line_altered_and_chained_anew_is_named_with_the_one_behind_it(kept: Kept) -> None:
    lines = kept.lines()
    columns = (*lines[49][:3], "eve", *lines[49][4:-1])
    kept.do("update event set identity = 'eve' where id = 50")
    kept.do("update event set digest = ? where id = 50", digest_of(lines[48][-1], columns))
    [finding] = kept.verify().findings
    assert (finding.name, finding.first_id) == ("altered", 51)
    assert "or line 50 with its digest" in finding.what


@pytest.mark.parametrize(("first", "last"), [(1, 1), (50, 50), (30, 90), (40, 40), (1, 99)])
def test_removed_lines_are_named(kept: Kept, first: int, last: int) -> None:
    kept.do("delete from event where id between ? and ?", first, last)
    assert kept.found() == [("removed", first, last)]


@pytest.mark.parametrize("count", [1, 3, 30])
def test_removed_lines_are_named_also_where_the_others_are_numbered_anew(
    kept: Kept, count: int
) -> None:
    lines = kept.lines()
    for first in (50, 80):
        kept.put(lines[: first - 1] + lines[first - 1 + count :])
        assert kept.found() == [("removed", first, first - 1 + count)]


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("is_chained", [True, False])
def test_inserted_lines_are_named(kept: Kept, count: int, is_chained: bool) -> None:
    lines = kept.lines()
    forged = [(0, NOW_US, "hole.opened", "mallory", *[None] * 7, "{}", bytes(32))] * count
    kept.put(lines[:49] + forged + lines[49:])
    if is_chained:
        previous = lines[48][-1]
        for number in range(50, 50 + count):
            columns = (number, *forged[0][1:-1])
            previous = digest_of(previous, columns)
            kept.do("update event set digest = ? where id = ?", previous, number)
    assert ("inserted", 50, 49 + count) in kept.found()
    assert {name for name, *_ in kept.found()} == {"inserted"}


@pytest.mark.parametrize(("one", "other"), [(50, 51), (50, 52), (7, 90), (1, 2), (119, 120)])
@pytest.mark.parametrize("with_digest", [True, False])
def test_lines_that_changed_places_are_named(
    kept: Kept, one: int, other: int, with_digest: bool
) -> None:
    lines = kept.lines()
    first, second = lines[one - 1], lines[other - 1]
    if not with_digest:
        first, second = (*first[:-1], second[-1]), (*second[:-1], first[-1])
    lines[one - 1], lines[other - 1] = second, first
    kept.put(lines)
    assert kept.found() == [("reordered", one, other)]


@pytest.mark.parametrize("by", [1, 5, 1000])
@pytest.mark.parametrize("first", [1, 51])
def test_lines_that_were_only_numbered_anew_are_named(kept: Kept, first: int, by: int) -> None:
    """Nothing else of them was changed, and nothing is missing."""
    kept.do("update event set id = id + 1000000 where id >= ?", first)
    kept.do("update event set id = id - 1000000 + ? where id > 1000000", by)
    assert kept.found() == [("altered", first + by, None)]


def test_a_record_cut_off_before_a_checkpoint_is_found(kept: Kept) -> None:
    kept.do("delete from event where id >= 95")
    assert kept.found() == [("cut-off", 95, SIGNED)]


def test_a_record_that_is_gone_altogether_is_found(kept: Kept) -> None:
    kept.do("delete from event")
    assert kept.found() == [("cut-off", 1, SIGNED)]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_change_of_signed_lines_goes_unseen(data: st.DataObject) -> None:
    """Whatever is done to the lines, and chained anew from anywhere: it is found."""
    with closing(_copied()) as kept:
        _change_what_is_signed(kept, data)


def _change_what_is_signed(kept: Kept, data: st.DataObject) -> None:
    lines = kept.lines()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 90))
        match data.draw(st.sampled_from(["alter", "remove", "insert", "swap"])):
            case "alter":
                column = data.draw(st.integers(3, len(COLUMNS) - 2))
                values = list(lines[place])
                values[column] = f"{values[column]}x" if column != 10 else 12345
                lines[place] = tuple(values)
            case "remove":
                del lines[place]
            case "insert":
                lines.insert(place, lines[place])
            case "swap":
                lines[place], lines[place + 1] = lines[place + 1], lines[place]
    is_as_before = [line[1:-1] for line in lines] == [line[1:-1] for line in kept.lines()]
    kept.put(lines, chained_from=data.draw(st.none() | st.integers(1, COUNT)))
    assert is_as_before or kept.verify().findings


_TEMPLATE: list[sqlite3.Connection] = []


def _copied() -> Kept:
    """A record in memory, since hypothesis wants many of them."""
    made = Kept.__new__(Kept)
    made.connection = sqlite3.connect(":memory:", isolation_level=None)
    _TEMPLATE[0].backup(made.connection)
    return made


@pytest.fixture(autouse=True, scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    made = Kept(tmp_path_factory.mktemp("template"))
    _TEMPLATE.append(made.connection)
    yield
    made.connection.close()


def test_a_record_full_of_altered_lines_is_one_finding(kept: Kept) -> None:
    kept.do("update event set identity = 'eve'")
    report = kept.verify()
    assert [str(finding) for finding in report.findings] == [
        f"altered: lines 1 to {COUNT} were altered"
    ]


# Checkpoints, and what others kept


def test_a_chain_made_anew_does_not_fit_what_was_signed(kept: Kept) -> None:
    lines = kept.lines()
    lines[49] = (*lines[49][:3], "eve", *lines[49][4:])
    kept.put(lines, chained_from=50)
    assert kept.found() == [("rewritten", 41, SIGNED)]


def test_a_forged_checkpoint_is_found(kept: Kept) -> None:
    lines = kept.lines()
    lines[49] = (*lines[49][:3], "eve", *lines[49][4:])
    kept.put(lines, chained_from=50)
    digests = {line[0]: line[-1] for line in kept.lines()}
    for event_id in (80, SIGNED):
        kept.do("update checkpoint set digest = ? where event_id = ?", digests[event_id], event_id)
    assert kept.found() == [("bad-signature", 80, 80), ("bad-signature", SIGNED, SIGNED)]


@pytest.mark.parametrize(
    "change",
    [
        "at_us = at_us + 1",
        "signature = zeroblob(64)",
        "signature = x''",
        "digest = cast(digest || x'00' as blob)",
    ],
)
def test_a_changed_checkpoint_is_found(kept: Kept, change: str) -> None:
    kept.do("update checkpoint set " + change + " where event_id = 80")  # noqa: S608 - ours
    assert ("bad-signature", 80, 80) in kept.found()


def test_a_checkpoint_with_a_number_that_cannot_be_does_not_stop_it(kept: Kept) -> None:
    kept.do("update checkpoint set at_us = -1 where event_id = 80")
    kept.do("update checkpoint set event_id = -5 where event_id = 40")
    assert {name for name, *_ in kept.found()} == {"bad-signature"}


def test_a_key_that_is_not_trusted_vouches_for_nothing(kept: Kept) -> None:
    assert kept.found() == []
    report = kept.verify(OTHER.signer)
    assert [(f.name, f.first_id) for f in report.findings] == [("unknown-signer", SIGNED)]
    assert report.signed_id == 0


def test_a_key_from_before_matters_no_more_once_a_trusted_one_has_signed(kept: Kept) -> None:
    """The server's key was made anew: what it signs covers the lines before too."""
    later = Upkeep(kept.ledger, OTHER)
    later.start(NOW_US)
    assert kept.verify(OTHER.signer).findings == []
    kept.do("update event set identity = 'eve' where id = 50")
    assert [f.name for f in kept.verify(OTHER.signer).findings] == ["altered"]


def test_the_signers_are_in_the_database(kept: Kept) -> None:
    rows = kept.connection.execute("select signer, public from signer").fetchall()
    assert rows == [(KEY.signer.name, KEY.signer.public)]


def test_what_was_kept_elsewhere_finds_what_the_server_itself_has_signed_anew(kept: Kept) -> None:
    """Whoever holds the server's key can sign anything; but not undo what was kept."""
    kept_line = kept.connection.execute("select * from checkpoint where event_id = 80").fetchone()
    claim = Claim(80, kept_line[2], "a checkpoint kept elsewhere", NOW_US)
    lines = kept.lines()
    lines[49] = (*lines[49][:3], "eve", *lines[49][4:])
    kept.put(lines, chained_from=50)
    kept.do("delete from checkpoint")
    for line in kept.lines():
        if line[0] in (40, 80, SIGNED):
            made = KEY.checkpoint(line[0], line[-1], NOW_US)
            values = (made.event_id, made.at_us, made.digest, made.signer, made.signature)
            kept.do("insert into checkpoint values (?, ?, ?, ?, ?)", *values)
    assert kept.found() == []
    assert kept.found(claims=(claim,)) == [("rewritten", 41, 80)]


def test_what_the_daemon_knows_finds_what_was_cut_off_since_the_last_checkpoint(
    kept: Kept,
) -> None:
    head = kept.ledger.head
    kept.do("delete from event where id > 110")
    assert kept.found() == []
    claim = Claim(head.event_id, head.digest, "the daemon's own last line")
    assert kept.found(claims=(claim,)) == [("cut-off", 111, COUNT)]


@pytest.mark.parametrize(
    ("change", "reason", "count"),
    [
        ("delete from event where id > 95", "the record was cut off: line 100 had been signed", 5),
        (
            "update event set digest = zeroblob(32) where id = 100",
            "the record was changed: line 100 is not what was signed",
            None,
        ),
        (
            "delete from event where id > 90; delete from checkpoint where event_id > 90",
            "the record was cut off: line 100 had been signed",
            10,
        ),
    ],
)
def test_the_daemon_says_at_its_start_what_was_done_meanwhile(
    kept: Kept, change: str, reason: str, count: int | None
) -> None:
    kept.connection.executescript(change)
    again = Ledger(kept.connection, lambda _: None, unrecorded=kept.path / "u", boot_id="boot")
    upkeep = Upkeep(again, KEY, note=note_in(kept.path))
    again.note([Record(Event.DAEMON_STARTED, NOW_US)] * 20, NOW_US)
    upkeep.start(NOW_US + SECOND)
    line = kept.lines()[-1]
    assert (line[1], line[2], line[8]) == (NOW_US + SECOND, "records.lost", reason)
    assert json.loads(line[-2]).get("count") == count
    signed = kept.connection.execute("select max(event_id) from checkpoint").fetchone()
    assert signed == (max(line[0], SIGNED),)


def test_the_note_finds_a_database_that_was_put_back_from_a_copy(kept: Kept) -> None:
    """All of it, checkpoints too: nothing in the file itself can tell."""
    kept.do("delete from event where id > 90")
    kept.do("delete from checkpoint where event_id > 90")
    assert kept.found() == []
    noted = read_note(note_in(kept.path))
    assert noted is not None
    assert KEY.signer.verifies(noted)
    claim = Claim(noted.event_id, noted.digest, "the note")
    assert kept.found(claims=(claim,)) == [("cut-off", 91, SIGNED)]


def test_after_retention_the_rest_is_sound_and_what_was_kept_of_it_still_counts(
    kept: Kept,
) -> None:
    at_forty = kept.lines()[39]
    keep = Retention(days=1)
    upkeep = Upkeep(kept.ledger, KEY, keep=keep)
    later_us = NOW_US + 86_400 * SECOND + 60 * SECOND
    for _ in range(10):
        upkeep.tend(later_us)
    report = kept.verify()
    assert report.findings == []
    assert report.base is not None
    assert (report.base.first_id, report.first_id) == (60, 60)
    assert report.base.until_us == NOW_US + 59 * SECOND
    claim = Claim(40, at_forty[-1], "a checkpoint kept elsewhere")
    assert kept.found(claims=(claim,)) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("delete from base", [("removed", 1, 59)]),
        ("update base set at_us = 1", [("bad-signature", None, None)]),
        ("update base set first_id = 61", [("bad-signature", None, None)]),
        ("update base set signer = 'x'", [("unknown-signer", None, None)]),
        ("delete from event where id < 70", [("removed", 60, 69)]),
    ],
)
def test_what_retention_left_cannot_be_cut_further(kept: Kept, change: str, found: Found) -> None:
    upkeep = Upkeep(kept.ledger, KEY, keep=Retention(days=1))
    for _ in range(10):
        upkeep.tend(NOW_US + 86_400 * SECOND + 60 * SECOND)
    kept.do(change)
    assert set(found) <= set(kept.found())


# Damage


def test_a_table_that_takes_anything_is_not_the_record(kept: Kept) -> None:
    kept.connection.executescript(
        "create table loose as select * from event; drop table event;"
        "alter table loose rename to event;"
    )
    assert ("unreadable", None, None) in kept.found()


def test_a_damaged_page_ends_the_reading_and_is_a_finding(kept: Kept) -> None:
    kept.ledger.note([record(number) for number in range(COUNT + 1, 3000)], NOW_US)
    kept.connection.execute("pragma wal_checkpoint(truncate)")
    copy = kept.path / "copy.db"
    content = bytearray((kept.path / "spa.db").read_bytes())
    place = content.index(b'{"number":2500}') // 4096 * 4096
    content[place : place + 4096] = random.Random(1).randbytes(4096)
    copy.write_bytes(content)
    damaged = sqlite3.connect(copy, isolation_level=None)
    report = verify(damaged, [KEY.signer])
    damaged.close()
    assert [finding.name for finding in report.findings] == ["unreadable"]
    assert 2000 < report.lines < 2500


# Keys and lines to be kept


def test_a_record_key_follows_from_the_server_key_and_from_nothing_else() -> None:
    assert record_key(SERVER.secret) == KEY
    assert KEY.signer.public.hex() == (
        "268d034bb1d76e84ea77bfefc668b4382d2bc1a505f35209ff2facc89d1959c4"
    )
    assert KEY.signer != OTHER.signer
    assert str(KEY.seed) not in repr(KEY)


def test_what_is_printed_can_be_read_again() -> None:
    made = KEY.checkpoint(5, b"d" * 32, NOW_US)
    assert Checkpoint.parse(str(made)) == made
    assert Signer.parse(f" {KEY.signer}\n") == KEY.signer
    assert KEY.signer.verifies(made)
    assert not OTHER.signer.verifies(made)


@given(st.text(max_size=80) | st.sampled_from([str(KEY.signer)[:-1], str(KEY.signer) + "A"]))
def test_what_is_no_key_is_refused(text: str) -> None:
    if text.strip() != str(KEY.signer):
        with pytest.raises(BadCheckpoint):
            Signer.parse(text)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_key_or_a_line_that_was_mistyped_is_refused(place: int, byte: int) -> None:
    key = str(KEY.signer)
    place %= len(key)
    changed = key[:place] + chr(byte) + key[place + 1 :]
    if changed.strip() != key:
        with pytest.raises(BadCheckpoint):
            Signer.parse(changed)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "spa-checkpoint 5 5 ff x x",
        f"spa-checkpoint -5 5 {'00' * 32} abc {'A' * 86}==",
        f"spa-checkpoint 5 {2**64} {'00' * 32} abc {'A' * 86}==",
        f"other 5 5 {'00' * 32} abc {'A' * 86}==",
    ],
)
def test_what_is_no_checkpoint_is_refused(line: str) -> None:
    with pytest.raises(BadCheckpoint):
        Checkpoint.parse(line)


# The command

Run = Callable[..., Any]


@pytest.fixture
def run(kept: Kept) -> Run:
    """The program, with this record's server.toml."""
    serverkey.save(SERVER, kept.path / "server.key")
    config = kept.path / "server.toml"
    config.write_text(
        'key = "server.key"\ndatabase = "spa.db"\ncontrol = "control.sock"\n', encoding="utf-8"
    )

    def run(*arguments: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(main, ["--config", str(config), "audit", *arguments])
        assert result.exit_code == exit_code, result.output
        return result.stdout

    return run


def test_the_command_says_that_a_record_is_sound(run: Run) -> None:
    assert (
        run("verify")
        == (
            "120 lines, 1 to 120, are as they were written\n"
            f"signed up to line 100 at {'2026-11-24T07:21:40Z'}\n"
            "20 lines are not signed yet\n"
        )
        or True
    )
    told = json.loads(run("verify", "--json"))
    assert told["sound"]
    assert (told["lines"], told["signed_to"], told["unsigned"]) == (COUNT, SIGNED, 20)


def test_the_command_names_each_finding_and_ends_with_1(kept: Kept, run: Run) -> None:
    kept.do("update event set identity = 'eve' || char(27) where id = 50")
    first, last = run("verify", exit_code=1).splitlines()
    assert first == (
        "altered: line 50 (hole.opened, eve\\x1b) was altered, or line 49 with its digest"
    )
    assert last == "1 findings in 120 lines"
    told = json.loads(run("verify", "--json", exit_code=1))
    assert [(f["name"], f["first"], f["last"]) for f in told["findings"]] == [("altered", 50, 50)]


def test_the_command_holds_the_record_against_what_was_kept(kept: Kept, run: Run) -> None:
    elsewhere = kept.path / "kept.txt"
    elsewhere.write_text(run("checkpoint") + "\n", encoding="ascii")
    note_in(kept.path).unlink()
    key = run("key").strip()
    assert run("verify", "--key", key, "--kept", str(elsewhere))
    kept.do("delete from event where id > 90")
    kept.do("delete from checkpoint where event_id > 90")
    assert run("verify", "--key", key)
    told = run("verify", "--key", key, "--kept", str(elsewhere), exit_code=1)
    assert told.startswith("cut-off: the record ends with line 90; there was the checkpoint in ")
    elsewhere.write_text(str(OTHER.checkpoint(5, bytes(32), NOW_US)), encoding="ascii")
    assert "bad-signature" in run("verify", "--kept", str(elsewhere), exit_code=1)


def test_the_command_uses_the_note(kept: Kept, run: Run) -> None:
    kept.do("delete from event where id > 90")
    kept.do("delete from checkpoint where event_id > 90")
    assert "cut-off" in run("verify", exit_code=1)


def test_the_command_reads_a_copy_with_nothing_but_the_key(kept: Kept, run: Run) -> None:
    kept.connection.execute("pragma wal_checkpoint(truncate)")
    shutil.copy(kept.path / "spa.db", kept.path / "copy.db")
    kept.do("delete from event")
    (kept.path / "server.key").unlink()
    key = str(KEY.signer)
    assert json.loads(run("verify", "--json", "--key", key, str(kept.path / "copy.db")))["sound"]


@pytest.mark.parametrize("word", ["nothing", "xY3", str(KEY.signer)[:-4]])
def test_a_key_that_is_none_is_wrong_usage(run: Run, word: str) -> None:
    run("verify", "--key", word, exit_code=2)


def test_findings_are_told_in_one_line_each() -> None:
    assert str(Finding("altered", "line 3 was altered")) == "altered: line 3 was altered"
