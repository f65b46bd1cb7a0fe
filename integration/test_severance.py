"""Sessions end by whose they are, whoever else holds their hole. Kernel and daemon are real."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from signal import SIGINT
from typing import Any

import pytest

from integration.attacks import protected_session
from integration.lab import Host, Lab, echoes, wait_until
from integration.site import POLICY, PROGRAMS, Person, Site


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


def test_sessions_are_listed_and_cut(lab: Lab) -> None:
    site, client, _ = protected_session.site(lab)
    alice, bob = site.enrol("alice", "dba", "ops"), site.enrol("bob", "dba")
    site.start()
    record = site.record_from_now()
    alice.knock(client, "tcp/22", "tcp/5434", "--lifetime", "1h")
    kept, published = (client.connection(site.host.v4, port) for port in (22, 5434))
    bob.knock(client, "tcp/5432", "--lifetime", "1h")
    bobs = client.connection(site.host.v4, 5432)
    assert all(map(echoes, (kept, published, bobs)))

    def listed(*options: str) -> dict[str, dict[str, Any]]:
        found = json.loads(site.server("sessions", "--json", *options).stdout)
        return {each["access"]: each for each in found["sessions"]}

    wait_until(lambda: len(listed()) == 3)
    site.restart()
    wait_until(lambda: len(listed()) == 3)
    found = listed()
    assert [found[to]["identity"] for to in ("tcp/22", "tcp/5432")] == ["alice", "bob"]
    assert [found[to]["sessions"] for to in ("tcp/22", "tcp/5432")] == ["keep", "cut"]
    assert found["tcp/5432"]["ends_at"] == found["tcp/5432"]["held_until"]
    assert found["tcp/22"]["ends_at"] is None
    assert found["tcp/22"]["bytes_in"] > 0
    for options in (
        ("--identity", "bob"),
        ("--key", bob.key_id()),
        ("--to", "tcp/5400-5432"),
        ("--grant", str(found["tcp/5432"]["grant"])),
        ("--from", f"{client.v4}:{bobs.getsockname()[1]}"),
    ):
        assert set(listed(*options)) == {"tcp/5432"}
    assert len(listed("--from", str(client.v4))) == 3
    table = site.server("sessions").stdout
    assert re.search(
        rf"^alice +{client.v4}:\d+ +{site.host.v4} tcp/22 .* by itself *$", table, re.M
    )

    site.keys("revoke", "alice", "--yes")
    assert echoes(kept)
    assert echoes(published)
    done = site.server("sessions", "--cut", "--identity", "alice")
    assert done.stderr.strip().endswith("2 cut.")
    assert not echoes(kept)
    assert not echoes(published)
    line = record.line("connection.severed", identity="alice", access="tcp/22")
    assert line["reason"] == "cut by the operator"
    assert echoes(bobs)
    assert site.server("sessions", "--cut", "--identity", "alice", check=False).returncode == 1
    assert site.server("sessions", "--cut", check=False).returncode == 2
    site.server("sessions", "--cut", "--all")
    assert not echoes(bobs)


def test_a_client_is_told_before_and_may_hold(lab: Lab) -> None:
    """The hole is open for 3 s; 4 s later the connection is over, unless it was held."""
    site, client = Site(lab, lab.host("server")), lab.host("client")
    site.host.serve(5432)
    site.apply_gate()
    alice = site.enrol("alice", "ops", "dba")
    site.start()
    notice = "the server says: tcp/5432: connections are cut when it closes; hold it open"

    def talks_on(*options: str) -> bool:
        argv = [PROGRAMS / "spa-client", "forward", "0:site:5432", "--lifetime", "3s", *options]
        running = client.start(argv, env=alice.env)
        running.wait_for("leads to")
        port = int(re.findall(r"127\.0\.0\.1:(\d+)", running.output)[0])
        with client.connection(IPv4Address("127.0.0.1"), port) as stream:
            wait_until(lambda: echoes(stream))
            running.wait_for(notice)
            time.sleep(4)
            lives = echoes(stream)
        running.stop(SIGINT)
        return lives

    assert not talks_on()
    assert talks_on("--hold")
    for way in (("exec", "site", "tcp/5432", "--", "true"), ("knock", "site", "tcp/5432")):
        assert notice in (done := alice.client(client, *way)).stdout + done.stderr
    assert "the server says" not in alice.knock(client, "tcp/22").stderr
