"""Sessions end by whose they are, whoever else holds their hole. Kernel and daemon are real."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from integration.attacks import protected_session
from integration.lab import Host, Lab, echoes
from integration.site import POLICY, Person, Site


def test_a_friend_s_hole_protects_nobody(lab: Lab) -> None:
    assert [str(figure) for figure in protected_session.run(lab) if not figure.holds] == []


@dataclass(frozen=True, slots=True)
class Office:
    """Two people at one address."""

    site: Site
    desk: Host
    alice: Person
    bob: Person


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    with Lab() as lab:
        site = Site(lab, lab.host("server"))
        lab_desk = lab.host("client")
        site.host.serve(5432)
        site.host.serve(22)
        site.apply_gate()
        alice, bob = site.enrol("alice", "ops", "dba"), site.enrol("bob", "ops", "dba")
        site.start()
        yield Office(site, lab_desk, alice, bob)


def _close(office: Office) -> None:
    office.alice.client(office.desk, "close", "site", "tcp/5432")


def _close_by_operator(office: Office) -> None:
    office.site.server("close", "--identity", "alice")


def _ungrant(office: Office) -> None:
    office.site.keys("ungrant", "alice", "dba")


def _expire(_office: Office) -> None:
    """By itself, after the 3 s of the knock."""


def _change_the_policy(office: Office) -> None:
    """The last of the ways: everybody is out, and the policy does not cut this port any more."""
    office.site.write_policy(POLICY.replace("tcp/5432", "tcp/5499"))
    office.site.server("reload")


@pytest.mark.parametrize(
    ("end", "lifetime"),
    [
        (_close, "1h"),
        (_close_by_operator, "1h"),
        (_expire, "3s"),
        (_ungrant, "1h"),
        (_change_the_policy, "1h"),
    ],
)
def test_however_a_grant_ends_what_it_may_have_let_in_is_cut(
    office: Office, end: Callable[[Office], None], lifetime: str
) -> None:
    site, desk = office.site, office.desk
    record = site.record_from_now()
    site.keys("grant", "alice", "dba")
    office.bob.knock(desk, "tcp/5432", "tcp/22", "--lifetime", "1h")
    with (
        desk.connection(site.host.v4, 5432) as bobs,
        desk.connection(site.host.v4, 22) as kept,
    ):
        assert echoes(bobs)
        office.alice.knock(desk, "tcp/5432", "--lifetime", lifetime)
        with desk.connection(site.host.v4, 5432) as either:
            assert echoes(either)
            end(office)
            line = record.line("connection.severed", access="tcp/5432", identity="alice, bob")
            assert line["detail"]["ambiguous"] == ["alice", "bob"]
            assert line["detail"]["count"] == 1
            assert not echoes(either)
        assert echoes(kept)
        is_out = end is _change_the_policy
        assert echoes(bobs) is not is_out
        assert bool(record.lines("connection.severed", identity="bob")) is is_out
    site.close_everything()
