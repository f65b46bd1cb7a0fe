"""Who acted, by the kernel's word and a program's; and the policies that were in force."""

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from keys import schema
from keys.actor import Actor
from keys.trouble import Trouble
from spa_server.audit import acts, policytexts, tables
from spa_server.audit.ledger import Ledger
from spa_server.audit.policytexts import MOST, digest_of
from spa_server.audit.record import Event
from spa_server.commands import policy_history
from spa_server.config import Config, load_config
from spa_server.control import Request


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "server.toml").write_text("")
    config = replace(
        load_config(tmp_path / "server.toml"),
        database=tmp_path / "spa.db",
        control=tmp_path / "control.sock",
    )
    with closing(schema.connect(config.database)) as connection:
        tables.prepare(connection)
    return config


def ledger(config: Config, connection: sqlite3.Connection) -> Ledger:
    note = config.database.parent / "unrecorded"
    return Ledger(connection, lambda _seen: None, unrecorded=note, boot_id="a")


def test_a_program_cannot_say_whose_it_is() -> None:
    """Its name is a claim; the number is the kernel's, whatever else is claimed."""
    request = Request({"do": "close", "by": {"actor": "root\x1b[0m", "uid": 0, "tty": 7}}, 1000)
    assert request == {"do": "close"}
    assert request.by.detail == {"actor": "root[0m", "uid": 1000, "tty": "7"}


@pytest.mark.parametrize("said", [None, "root", [], {}, {"actor": "\n"}])
def test_who_says_nothing_of_use_is_a_number(said: object) -> None:
    assert Actor.of_request(said, 1000) == Actor("uid 1000", 1000)


def test_sudo_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "carol")
    assert Actor.here().name.endswith(" (sudo by carol)")
    assert Actor.here().uid == os.geteuid()


def test_an_act_is_entered_once_and_what_is_none_is_passed_over(config: Config) -> None:
    assert acts.leave(config, Event.BACKUP_MADE, "/root/a.tar")
    with closing(schema.connect(config.database)) as connection:
        for event, detail in (
            ("no.event", "{}"),
            ("gate.applied", "[]"),
            ("gate.applied", "{"),
            ("hole.opened", "{}"),
        ):
            connection.execute(
                "insert into operator_act (at_us, event, detail) values (1, ?, ?)", (event, detail)
            )
        entering = ledger(config, connection)
        entering.enter_acts(5)
        entering.enter_acts(6)
        found = connection.execute("select event, reason, detail from event").fetchall()
        assert [(event, reason) for event, reason, _ in found] == [("backup.made", "/root/a.tar")]
        assert str(os.geteuid()) in found[0][2]
        assert connection.execute("select count(*) from operator_act").fetchone() == (0,)


def test_where_word_cannot_be_left_the_command_goes_on(config: Config, tmp_path: Path) -> None:
    assert not acts.leave(replace(config, database=tmp_path / "none.db"), Event.GATE_APPLIED)
    config.database.write_bytes(b"no database")
    assert not acts.leave(config, Event.GATE_APPLIED)


def test_the_latest_policies_are_kept_and_no_more(config: Config) -> None:
    with closing(schema.connect(config.database)) as connection:
        keeping = ledger(config, connection)
        texts = [f"# {number}\n" for number in range(MOST + 10)]
        for at_us, text in enumerate(texts):
            keeping.keep_policy(digest_of(text), text, at_us)
        keeping.keep_policy(digest_of(texts[50]), None, 1000)  # in force again, after a trial
        keeping.keep_policy(digest_of("new"), "new", 1001)
        kept = policytexts.kept(connection)
        assert len(kept) == MOST
        assert {digest_of("new"), digest_of(texts[50]), digest_of(texts[-1])} <= kept
        assert digest_of(texts[10]) not in kept
        large = "#" * (20 << 20)
        keeping.keep_policy(digest_of(large), large, 1002)
        assert policytexts.kept(connection) == {digest_of(large)}  # whatever its size, the last one


def test_a_text_that_was_altered_is_not_shown(config: Config) -> None:
    digest = digest_of("sound = 1\n")
    with closing(schema.connect(config.database)) as connection:
        ledger(config, connection).keep_policy(digest, "sound = 1\n", 1)
        assert policytexts.text_of(connection, digest) == "sound = 1\n"
        connection.execute("update policy_text set text = 'open = 1'")
        assert policytexts.text_of(connection, digest) is None
        with pytest.raises(Trouble, match="somebody has altered it"):
            policy_history._text(connection, digest[:8])
