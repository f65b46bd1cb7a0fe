"""A damaged database: the daemon does not start with it, and nothing overwrites or deletes it."""

import json
import random
import re
import secrets
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keys import schema, serverkey
from keys.registry import Registry
from spa_protocol.publickey import PublicKey
from spa_protocol.seal import agreement_public, signing_public
from spa_protocol.sshsig import KeyType
from spa_server import clock
from spa_server.audit import aside, setaside
from spa_server.audit.asking import Filter, ask
from spa_server.cli import main
from tests.world import NOW_US

PEOPLE = [f"user{number}" for number in range(300)]


def public_key() -> PublicKey:
    signing = signing_public(secrets.token_bytes(32))
    return PublicKey(KeyType.ED25519, signing, agreement_public(secrets.token_bytes(32)))


class Site:
    """A host's files: a registry of many people."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "spa.db"
        self.config = path / "server.toml"
        self.config.write_text(
            'key = "server.key"\ndatabase = "spa.db"\ncontrol = "run/control.sock"\n',
            encoding="utf-8",
        )
        serverkey.save(serverkey.generate(), path / "server.key")
        with closing(schema.connect(self.database)) as connection:
            registry = Registry(connection)
            for person in PEOPLE:
                registry.enroll(person, public_key(), now_us=NOW_US, roles=["admin"], actor="x")
            connection.execute("pragma wal_checkpoint(truncate)")

    def run(self, *arguments: str, stdin: str | None = None) -> Result:
        argv = ["--config", str(self.config), *arguments]
        return CliRunner().invoke(main, argv, input=stdin)

    def damage(self, what: str, nth: int = 0) -> bytes:
        """Damages the file, and returns what is in it then. A page: the nth of user150's."""
        content = bytearray(self.database.read_bytes())
        match what:
            case "a page":
                places = [found.start() for found in re.finditer(b"user150", content)]
                place = places[nth % len(places)] // 4096 * 4096
                content[place : place + 4096] = random.Random(1).randbytes(4096)
            case "the head":
                content[:4096] = random.Random(1).randbytes(4096)
            case "the end":
                del content[len(content) // 2 :]
            case "nothing":
                content.clear()
            case "all":
                content[:] = b"x" * 5000
        self.database.write_bytes(content)
        return bytes(content)

    def people(self) -> set[str]:
        with closing(schema.connect(self.database, read_only=True)) as connection:
            return set(Registry(connection, read_only=True).identities())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "run").mkdir()
    return Site(tmp_path)


@pytest.mark.parametrize("what", ["a page", "the head", "the end", "all", "nothing"])
def test_it_is_set_aside_as_it_is_and_a_new_one_begun(site: Site, what: str) -> None:
    content = site.damage(what)
    before_us = clock.now_us()
    done = site.run("audit", "set-aside", "--yes")
    assert done.exit_code == 0, done.output
    [damaged] = site.path.glob("spa.db.damaged-*Z")
    assert damaged.read_bytes() == content
    assert str(damaged) in done.stderr
    assert site.people() == set()
    with closing(schema.connect(site.database, read_only=True)) as connection:
        [line] = ask(connection, Filter(), limit=10)
    assert line["event"] == "records.lost"
    assert damaged.name in line["reason"]
    floor_us = int((site.path / "run" / "unrecorded").read_text())
    assert floor_us >= before_us + 30_000_000
    told = json.loads(site.run("audit", "verify", "--json").stdout)
    assert told["sound"]


@pytest.mark.parametrize("nth", range(12))
def test_what_can_be_read_of_the_registry_is_kept_on_demand(site: Site, nth: int) -> None:
    """A damaged page costs those who are on it, an index nobody; and what is lost is told."""
    with closing(sqlite3.connect(site.database)) as connection:
        before = keys_of(connection)
    site.damage("a page", nth)
    done = site.run("audit", "set-aside", "--yes", "--keep-registry")
    assert done.exit_code == 0, done.output
    with closing(sqlite3.connect(site.database)) as connection:
        after = keys_of(connection)
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        assert connection.execute("pragma foreign_key_check").fetchall() == []
    assert set(after) <= set(before)
    assert len(after) > len(before) - 100
    if len(after) < len(before):
        assert "not all of it could be read" in done.stderr
    assert site.people() >= {identity for identity, _ in after}


def keys_of(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    return connection.execute("select identity, key_id from key order by key_id").fetchall()


def test_a_sound_registry_is_kept_whole(site: Site) -> None:
    with closing(sqlite3.connect(site.database)) as connection:
        before = connection.execute("select * from key order by key_id").fetchall()
    assert site.run("audit", "set-aside", "--yes", "--keep-registry").exit_code == 0
    with closing(sqlite3.connect(site.database)) as connection:
        assert connection.execute("select * from key order by key_id").fetchall() == before
    assert site.people() == set(PEOPLE)


def test_it_asks_and_says_that_a_sound_one_is_sound(site: Site) -> None:
    content = site.database.read_bytes()
    done = site.run("audit", "set-aside", stdin="n\n")
    assert done.exit_code == 1
    assert "seems to be SOUND" in done.stderr
    assert site.database.read_bytes() == content


def test_where_nobody_can_answer_it_says_how_to_go_on(site: Site) -> None:
    """A script, a cron job: not "interrupted"."""
    done = site.run("audit", "set-aside", stdin="")
    assert done.exit_code == 4
    assert done.stderr.endswith(
        "spa-server: nobody is there to answer; run this at a terminal, or give --yes\n"
    )
    assert site.database.exists()


def test_without_a_database_there_is_nothing_to_do(site: Site) -> None:
    site.database.unlink()
    assert site.run("audit", "set-aside", "--yes").exit_code == 1
    assert not list(site.path.glob("*.damaged*"))


def test_nothing_happens_while_the_daemon_may_hold_it_open(site: Site) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(site.path / "run" / "control.sock"))
        busy.listen()
        busy.settimeout(0)
        done = site.run("audit", "set-aside", "--yes")
    assert done.exit_code != 0
    assert not list(site.path.glob("*.damaged*"))


def test_two_in_the_same_second_have_two_names(tmp_path: Path) -> None:
    names = []
    for content in (b"one", b"two", b"three"):
        (tmp_path / "spa.db").write_bytes(content)
        (tmp_path / "spa.db-wal").write_bytes(content * 2)
        names.append(aside.move(tmp_path / "spa.db", NOW_US))
    assert len(set(names)) == 3
    for name, content in zip(names, (b"one", b"two", b"three"), strict=True):
        assert name.read_bytes() == content
        assert Path(f"{name}-wal").read_bytes() == content * 2
    assert not (tmp_path / "spa.db-wal").exists()


def test_a_directory_is_moved_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "spa.db").mkdir()
    (tmp_path / "spa.db" / "inside").touch()
    moved = aside.move(tmp_path / "spa.db", NOW_US)
    assert (moved / "inside").exists()
    assert not (tmp_path / "spa.db").exists()


@pytest.mark.parametrize("nth", range(12))
def test_a_damaged_page_of_the_registry_is_found(site: Site, nth: int) -> None:
    """Whichever it is; a sound file is found to be so."""
    schema.must_be_sound(site.database, schema.TABLES)
    content = site.damage("a page", nth)
    with pytest.raises(schema.Damaged), schema.explained(site.database):
        schema.must_be_sound(site.database, schema.TABLES)
    assert site.database.read_bytes() == content


def test_nothing_can_be_kept_of_a_directory(site: Site) -> None:
    site.database.unlink()
    site.database.mkdir()
    assert site.run("audit", "set-aside", "--yes", "--keep-registry").exit_code == 0
    assert site.people() == set()


def test_a_floor_never_sinks(tmp_path: Path) -> None:
    setaside.leave_floor(tmp_path / "unrecorded", NOW_US)
    setaside.leave_floor(tmp_path / "unrecorded", NOW_US - 1)
    assert (tmp_path / "unrecorded").read_text() == f"{NOW_US}\n"


@pytest.mark.parametrize("what", ["the head", "all"])
def test_the_record_of_a_damaged_one_is_not_asked(site: Site, what: str) -> None:
    site.damage(what)
    for command in (["audit"], ["audit", "verify"], ["audit", "checkpoint"]):
        done = site.run(*command)
        assert done.exit_code == 4
        assert len(done.stderr.splitlines()) == 1
