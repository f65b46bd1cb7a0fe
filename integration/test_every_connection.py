"""A thousand connections, each accounted for exactly once against tcpdump at the server's veth.

Three people, two of them behind one address: alice beside the server, bob and carol behind a router
that masquerades. Bob alone opens web, carol alone postgres, and both open vote: there nobody can
tell them apart. What nobody opened is denied.
"""

import json
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from integration.lab import Host, Lab, Running, wait_until
from integration.pcap import Ends, Seen, Tcpdump
from integration.site import Person, Site
from integration.test_connections import MASQUERADE, SHORT, figures_in
from keys.when import parse_moment

SSH: Final = 22
WEB: Final = 80
POSTGRES: Final = 5432
VOTE: Final = 7000
OPEN: Final = (SSH, WEB, POSTGRES, VOTE)
CLOSED: Final = range(10_000, 10_090)  # 90 from each of two: fewer than are written one by one
AGAIN: Final = 5
STAY: Final = 10
# How much later than a packet the line of another may be stamped (microseconds).
SLACK_US: Final = 100_000
POLICY: Final = """
[services]
ssh = "tcp/22"
web = "tcp/80"
postgres = "tcp/5432"
vote = "tcp/7000"

[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
max_lifetime = "1h"

[roles.author]
[[roles.author.allow]]
services = ["web", "vote"]
max_lifetime = "1h"

[roles.dba]
[[roles.dba.allow]]
services = ["postgres", "vote"]
max_lifetime = "1h"
"""


@dataclass
class Scene:
    """A guarded host, somebody beside it, and two behind one address."""

    site: Site
    server: Host
    client: Host
    router: Host
    inner: Host
    people: dict[str, Person]

    def knock(self) -> None:
        """Everybody opens what is theirs."""
        self.people["alice"].knock(self.client, "tcp/22", "--lifetime", "10m")
        behind = ("--source", str(self.router.v4), "--lifetime", "10m")
        self.people["bob"].knock(self.inner, "tcp/80", "tcp/7000", *behind)
        self.people["carol"].knock(self.inner, "tcp/5432", "tcp/7000", *behind)

    def crowd(self, at: Host, *jobs: tuple[int, int, int, float]) -> Running:
        """Connections from a host: see integration/crowd.py."""
        argv = [sys.executable, "-m", "integration.crowd", str(self.server.v4), json.dumps(jobs)]
        return at.start(argv)

    def whose(self, ends: Ends) -> tuple[Any, ...]:
        """Identity, rule and who it may have been, of a connection to an open port."""
        if ends.port == VOTE:
            return "bob, carol", "roles.dba.allow[0]", ["bob", "carol"]
        name, role = {SSH: ("alice", "ops"), WEB: ("bob", "author"), POSTGRES: ("carol", "dba")}[
            ends.port
        ]
        return name, f"roles.{role}.allow[0]", None

    def is_over(self) -> bool:
        self.server.run(["conntrack", "-L"])
        return bool(self.site.status()["connections"] == 0)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        router, inner = lab.host("router", "lan", "far"), lab.host("inner", "far")
        router.forward()
        inner.default_route(router, "far")
        router.run(["nft", "-f", "-"], text=MASQUERADE)
        for port in OPEN:
            server.serve(port)
        site = Site(lab, server, policy=POLICY)
        roles = {"alice": "ops", "bob": "author", "carol": "dba"}
        people = {name: site.enrol(name, role) for name, role in roles.items()}
        site.apply_gate()
        server.sysctl(**SHORT)
        site.start()
        yield Scene(site, server, client, router, inner, people)


def ends_of(line: dict[str, Any]) -> Ends:
    port = int(line["access"].removeprefix("tcp/"))
    return Ends(line["source"], line["detail"]["source_port"], line["target"], port)


def split(seen: Seen) -> tuple[set[Ends], dict[tuple[str, int], list[Ends]]]:
    """Who came to a port that was open; and, by source and port, who did not, the first first."""
    closed: dict[tuple[str, int], list[Ends]] = defaultdict(list)
    for ends in sorted(seen.begun, key=lambda each: seen.begun[each]):
        if ends.port not in OPEN:
            closed[ends.source, ends.port].append(ends)
    return {ends for ends in seen.begun if ends.port in OPEN}, closed


def assert_permitted_are_right(scene: Scene, lines: list[dict[str, Any]]) -> None:
    keys = {name: person.key_id() for name, person in scene.people.items()}
    for line in lines:
        identity, rule, several = scene.whose(ends_of(line))
        assert (line["identity"], line["rule"]) == (identity, rule)
        assert line["detail"].get("ambiguous") == several
        assert line["key_id"] == keys["carol" if several else identity]


def first_of(lines: list[dict[str, Any]]) -> list[Ends]:
    """Those denials that are told by themselves."""
    return [ends_of(line) for line in lines if "source_port" in line["detail"]]


def assert_denied_are_right(
    lines: list[dict[str, Any]], closed: dict[tuple[str, int], list[Ends]]
) -> None:
    """The first of a kind is told by itself; further ones are counted, at least."""
    assert Counter(first_of(lines)) == Counter(came[0] for came in closed.values())
    told: Counter[tuple[str, int]] = Counter()
    for line in lines:
        assert line["identity"] is None
        detail = line["detail"]
        count = detail.get("count", detail.get("further", 1))
        told[line["source"], int(line["access"].removeprefix("tcp/"))] += count
    assert all(1 <= told[kind] <= len(came) for kind, came in closed.items())


def test_a_thousand_connections_each_exactly_once(scene: Scene) -> None:
    scene.knock()
    record = scene.site.record_from_now()
    once = [(port, 1, 0, 1.0) for port in CLOSED]
    with Tcpdump(scene.server) as tcpdump:
        crowds = [
            scene.crowd(scene.client, (SSH, 400, STAY, 3.0), *once),
            scene.crowd(
                scene.inner,
                (WEB, 140, STAY, 3.0),
                (POSTGRES, 140, STAY, 3.0),
                (VOTE, 140, STAY, 3.0),
                *once,
                *[(port, 1, 0, 1.0) for port in CLOSED[:AGAIN]] * 2,
            ),
        ]
        for crowd in crowds:
            crowd.wait_for("done", within_s=20)
        wait_until(lambda: len(record.lines("connection.permitted")) >= 820, within_s=10)
        time.sleep(2.5)
        open_still = scene.site.status()["connections"]
        for crowd in crowds:
            crowd.stop()
        wait_until(scene.is_over, within_s=20, what="every connection to end")
        time.sleep(0.2)
    seen = tcpdump.seen()
    opened, closed = split(seen)
    assert (len(opened), len(closed)) == (820, 2 * len(CLOSED))
    assert sum(map(len, closed.values())) == 2 * len(CLOSED) + 2 * AGAIN
    assert open_still >= 4 * STAY

    permitted, ended = (record.lines(f"connection.{what}") for what in ("permitted", "ended"))
    assert Counter(map(ends_of, permitted)) == Counter(opened)
    assert_permitted_are_right(scene, permitted)
    assert Counter(map(ends_of, ended)) == Counter(opened)
    assert_permitted_are_right(scene, ended)
    for line in ended:
        assert figures_in(line) == seen.figures(ends_of(line)), line
    assert_denied_are_right(record.lines("connection.denied"), closed)
    assert record.lines("records.lost") == []


def test_killed_in_the_middle_nothing_is_doubled_and_the_gap_is_named(scene: Scene) -> None:
    """What is missing came between the two times that the new daemon names, and nothing else is."""
    scene.knock()
    record = scene.site.record_from_now()
    with Tcpdump(scene.server) as tcpdump:
        crowds = [
            scene.crowd(scene.client, (SSH, 500, STAY, 7.0), *[(p, 1, 0, 1.0) for p in CLOSED]),
            scene.crowd(scene.inner, (WEB, 250, STAY, 7.0), (VOTE, 250, STAY, 7.0)),
        ]
        wait_until(lambda: len(record.lines("connection.permitted")) >= 150)
        scene.site.stop(signal.SIGKILL)
        time.sleep(0.5)
        scene.site.start()
        for crowd in crowds:
            crowd.wait_for("done", within_s=30)
        time.sleep(1)
        for crowd in crowds:
            crowd.stop()
        wait_until(scene.is_over, within_s=20, what="every connection to end")
    seen = tcpdump.seen()
    opened, closed = split(seen)
    assert len(opened) == 1000
    [started] = record.lines("daemon.started")
    assert "did not end in good order" in started["reason"]
    gap_us = moment_us(started["detail"]["since"]) - SLACK_US, moment_us(started["at"])

    permitted, ended = (record.lines(f"connection.{what}") for what in ("permitted", "ended"))
    told = Counter(map(ends_of, permitted))
    assert max(told.values()) == 1
    assert set(told) <= opened
    denied = Counter(first_of(record.lines("connection.denied")))
    assert max(denied.values()) == 1
    came = {ends for [ends] in closed.values()}
    assert set(denied) <= came
    missing = opened - set(told)
    assert 0 < len(missing) < 700
    for ends in missing | (came - set(denied)):
        assert gap_us[0] <= seen.begun[ends][0] <= gap_us[1], ends
    assert_permitted_are_right(scene, permitted)
    assert Counter(map(ends_of, ended)) == told
    for line in ended:
        assert (
            line["detail"]["bytes_in"] is not None or "while the daemon was down" in line["reason"]
        )
        if line["detail"]["bytes_in"] is not None:
            assert figures_in(line) == seen.figures(ends_of(line)), line
    assert scene.site.server("audit", "verify").returncode == 0


def moment_us(text: str) -> int:
    """Of RFC 3339, in microseconds since the Unix epoch."""
    return parse_moment(text, 0)


def test_a_daemon_that_was_stopped_leaves_no_gap_to_name(scene: Scene) -> None:
    scene.site.restart()
    assert [line["reason"] for line in scene.site.events("daemon.started")] == [None, None]
