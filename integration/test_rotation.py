"""Whose a `cut` session is when its key was replaced, and what a thief of the old key has of it."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from signal import SIGKILL
from socket import socket

import pytest

from integration.lab import Host, Lab, echoes
from integration.site import Person, RecordSince, Site
from spa_protocol.keytext import parse_key

PORT = "tcp/5432"
_names = (f"person{number}" for number in count())


@dataclass
class Desk:
    """One guarded host, somebody at a desk, and a thief elsewhere or at the same address."""

    site: Site
    client: Host
    elsewhere: Host
    sessions: ExitStack

    def connect(self, at: Host | None = None) -> socket:
        return self.sessions.enter_context((at or self.client).connection(self.site.host.v4, 5432))

    def rotate(self, person: Person, old: str, name: str) -> str:
        """The id of a key that is to replace another of theirs."""
        line = person.generate(name)
        self.site.keys("enroll", person.name, "--key", line, "--replaces", old)
        return parse_key(line)[0].key_id

    def knock(self, person: Person, key: str = "default", at: Host | None = None) -> None:
        person.knock(at or self.client, PORT, "--lifetime", "1h", "--key", key)


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Site, Host, Host]]:
    with Lab() as lab:
        site = Site(lab, lab.host("server"))
        site.host.serve(5432)
        site.apply_gate()
        site.start()
        yield site, lab.host("client"), lab.host("elsewhere")


@pytest.fixture
def desk(place: tuple[Site, Host, Host]) -> Iterator[Desk]:
    with ExitStack() as sessions:
        yield Desk(*place, sessions)
    place[0].close_everything()


@pytest.fixture
def person(desk: Desk) -> Person:
    return desk.site.enrol(next(_names), "dba")


@pytest.fixture
def record(desk: Desk) -> RecordSince:
    return desk.site.record_from_now()


def test_it_goes_on_along_a_chain_of_rotations_and_over_the_end_of_a_daemon(
    desk: Desk, person: Person, record: RecordSince
) -> None:
    first = person.key_id()
    desk.knock(person)
    session = desk.connect()
    assert echoes(session)
    second = desk.rotate(person, first, "second")
    desk.knock(person, "second")
    desk.site.restart(SIGKILL)
    assert echoes(session)
    desk.rotate(person, second, "third")
    desk.knock(person, "third")
    desk.site.restart()
    assert echoes(session)
    assert record.lines("connection.severed") == []
    desk.site.keys("revoke", "--yes", person.name)
    record.line("connection.severed", identity=person.name)
    assert not echoes(session)


@pytest.mark.parametrize("which", ["first", "second"])
def test_who_says_that_a_replaced_key_was_stolen_ends_what_it_began(
    desk: Desk, person: Person, record: RecordSince, which: str
) -> None:
    """Also of one further back in the chain; what the newest key began goes on."""
    keys = {"first": person.key_id()}
    desk.knock(person)
    session = desk.connect()
    keys["second"] = desk.rotate(person, keys["first"], "second")
    desk.knock(person, "second")
    desk.rotate(person, keys["second"], "third")
    desk.knock(person, "third")
    newest = desk.connect()
    assert echoes(session)
    assert echoes(newest)
    desk.site.keys("revoke", keys[which])
    line = record.line("connection.severed", identity=person.name, key_id=keys["first"])
    assert line["reason"] == "the key was revoked"
    assert not echoes(session)
    assert echoes(newest)
    desk.knock(person, "third")  # stays over
    assert not echoes(session)
    again = desk.site.keys("revoke", keys[which], check=False)
    assert "was revoked at" in again.stderr


def test_a_key_revoked_before_its_replacement_was_used_has_no_heir(
    desk: Desk, person: Person, record: RecordSince
) -> None:
    old = person.key_id()
    desk.knock(person)
    session = desk.connect()
    desk.rotate(person, old, "second")
    desk.site.keys("revoke", old)
    record.line("connection.severed", key_id=old)
    desk.knock(person, "second")
    assert not echoes(session)


def test_a_thief_of_the_old_key_keeps_nothing_elsewhere(
    desk: Desk, person: Person, record: RecordSince
) -> None:
    """The new key holds its own holes, at its own address."""
    old = person.key_id()
    desk.rotate(person, old, "second")
    desk.knock(person, at=desk.elsewhere)
    theft = desk.connect(desk.elsewhere)
    assert echoes(theft)
    desk.knock(person, "second")
    record.line("connection.severed", source=desk.elsewhere.v4, key_id=old)
    assert not echoes(theft)
    stale = person.knock(desk.elsewhere, PORT, "--timeout", "0.5", check=False)
    assert stale.returncode == 3


def test_nor_does_a_thief_who_was_enrolled_beside_the_owner(
    desk: Desk, person: Person, record: RecordSince
) -> None:
    """A key of the same person that replaces none, as an invite brings it, stands for none."""
    old = person.key_id()
    desk.knock(person)
    session = desk.connect()
    second = person.generate("second")
    desk.site.enrol_key(person.name, second)
    desk.knock(person, "second")
    assert echoes(session)
    desk.site.keys("revoke", old)
    record.line("connection.severed", key_id=old)
    assert not echoes(session)
