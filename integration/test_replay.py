"""A knock counts once: whoever recorded it on the wire has recorded nothing of use."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

import pytest

from integration.lab import Address, Host, Lab, Reach, wait_until
from integration.site import PROGRAMS, Person, Site
from integration.wire import (
    ACCEPTS_UNDECLARED,
    SECOND_US,
    Caller,
    Heard,
    Injector,
    Pen,
    Tap,
    faketime,
    holes_in_kernel,
    now_us,
    refusals,
    silent,
)
from spa_client.compose import SourceRule
from spa_protocol.layout import DEFAULT_FRESHNESS_S, DEFAULT_PORT
from spa_protocol.reason import Status
from spa_protocol.reply import Reply

SERVER_SIDE_PORTS: Final = (22, 80, 5432)


@dataclass
class Scene:
    """A guarded server, the host that people knock from, and the host of one who listens in."""

    lab: Lab
    site: Site
    server: Host
    client: Host
    eve: Host
    tap: Tap
    injector: Injector
    clerk: Pen

    def serves(self) -> None:
        """A valid knock, sent after everything else, is granted: so all of that was judged."""
        reply = Caller(self.clerk, self.client, self.server.v4).ask("tcp/80")
        assert reply is not None
        assert reply.status is Status.GRANTED

    def overheard(self, knock: Callable[[], object]) -> Heard:
        """What was on the wire while somebody knocked: the first of it."""
        self.tap.knocks()
        knock()
        return self.tap.knocks()[0]

    def holes(self) -> set[tuple[Address, int]]:
        return {(hole.source, hole.port) for hole in holes_in_kernel(self.server)}


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, eve = lab.host("server"), lab.host("client"), lab.host("eve")
        site = Site(lab, server, settings=ACCEPTS_UNDECLARED)
        clerk = Pen.enrolled(site, "clerk", "ops")
        for port in SERVER_SIDE_PORTS:
            server.serve(port)
        site.apply_gate()
        site.start()
        yield Scene(lab, site, server, client, eve, Tap(server), Injector(eve, server), clerk)


@pytest.fixture(autouse=True)
def _the_daemon_has_nothing_to_complain_of(scene: Scene) -> Iterator[None]:
    yield
    assert scene.site.daemon is not None
    assert scene.site.daemon.output == ""


_names = count(1)


@pytest.fixture
def alice(scene: Scene) -> Person:
    """Somebody whom no other test knows."""
    return scene.site.enrol(f"alice-{next(_names)}", "ops")


def assert_no_use(scene: Scene, pen: Pen, heard: Heard) -> None:
    """The bytes again, however eve may send them, do nothing but stand in the record."""
    known = len(refusals(scene.site, pen, "replayed"))
    holes = scene.holes()
    eve4, eve6 = scene.eve.v4, scene.eve.v6
    with silent(scene.tap, heard.source), silent(scene.tap, eve4), silent(scene.tap, eve6):
        for source in (heard.source, eve4, eve6):
            for port in (heard.source_port, 53, 0):
                scene.injector.knock(heard.payload, source, source_port=port)
        scene.injector.knock(heard.payload, eve4, port=DEFAULT_PORT + 1)
        scene.serves()
    assert scene.holes() - holes <= {(scene.client.v4, 80)}
    lines = refusals(scene.site, pen, "replayed")[known:]
    first = {line["source"] for line in lines if "further" not in line["detail"]}
    assert first == {str(heard.source), str(eve4), str(eve6)}


def test_a_replay_opens_nothing_and_gets_no_answer(scene: Scene, alice: Person) -> None:
    heard = scene.overheard(lambda: alice.knock(scene.client, "tcp/22", "--lifetime", "2s"))
    assert scene.client.reach_tcp(scene.server.v4, 22) is Reach.OPEN
    opened = holes_in_kernel(scene.server)
    assert_no_use(scene, Pen.of(alice), heard)
    (own,) = [hole for hole in opened if hole.port == 22]
    remaining_s = holes_in_kernel(scene.server).get(own, 0)
    assert remaining_s <= opened[own]
    assert scene.eve.reach_tcp(scene.server.v4, 22) is Reach.SILENT
    wait_until(lambda: own not in holes_in_kernel(scene.server), what="the end of the hole")
    scene.injector.knock(heard.payload, heard.source)
    scene.serves()
    assert scene.client.reach_tcp(scene.server.v4, 22) is Reach.SILENT


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_a_replay_is_one_for_the_next_daemon_too(
    scene: Scene, alice: Person, ended_by: signal.Signals
) -> None:
    """What was granted, and what was refused: both were on disk before anybody was answered."""
    pen = Pen.of(alice)
    granted = scene.overheard(lambda: alice.knock(scene.client, "tcp/22", "--lifetime", "1s"))
    refused = scene.overheard(lambda: alice.knock(scene.client, "tcp/5432", check=False))
    scene.site.restart(ended_by)
    for heard in (granted, refused):
        assert_no_use(scene, pen, heard)
        scene.site.restart(ended_by)
    assert Caller(pen, scene.client, scene.server.v4).ask("tcp/22") is not None


def test_a_knock_that_was_refused_is_no_use_once_it_would_be_allowed(scene: Scene) -> None:
    bob = scene.site.enrol("bob")
    heard = scene.overheard(lambda: bob.knock(scene.client, "tcp/22", check=False))
    scene.site.keys("grant", "bob", "ops")
    assert_no_use(scene, Pen.of(bob), heard)
    assert "open for" in bob.knock(scene.client, "tcp/22").stdout


def test_a_knock_that_came_too_early_is_no_use_in_its_time(scene: Scene, alice: Person) -> None:
    pen = Pen.of(alice)
    early_us = now_us() + (DEFAULT_FRESHNESS_S + 2) * SECOND_US
    early = pen.write("tcp/22", at_us=early_us, lifetime_s=1)
    caller = Caller(pen, scene.client, scene.server.v4)
    replies: list[Reply | None] = []
    heard = scene.overheard(lambda: replies.append(caller.send(early)))
    (reply,) = replies
    assert reply is not None
    assert (reply.status, reply.message) == (
        Status.CLOCK,
        "your clock is 32 s ahead of the server's",
    )
    in_time = early_us - (DEFAULT_FRESHNESS_S - 1) * SECOND_US
    wait_until(lambda: now_us() > in_time, what="the knock's own time")
    assert_no_use(scene, pen, heard)


def test_a_close_closes_nothing_when_it_is_replayed(scene: Scene, alice: Person) -> None:
    caller = Caller(Pen.of(alice), scene.client, scene.server.v4)
    caller.ask("tcp/22")
    heard = scene.overheard(lambda: caller.ask("tcp/22", closing=True))
    assert (scene.client.v4, 22) not in scene.holes()
    caller.ask("tcp/22", lifetime_s=60)
    assert_no_use(scene, caller.pen, heard)
    assert (scene.client.v4, 22) in scene.holes()
    scene.site.server("close", "--identity", alice.name)


def test_a_knock_that_eve_sends_first_opens_for_the_source_that_it_declares(
    scene: Scene, alice: Person
) -> None:
    """Eve holds alice's packet back and sends its bytes from her own address.

    Where the source is declared, all that eve does is to deliver it. Where it is not, the hole is
    for the address the packet came from: docs/threat-model.md says so, policies can ask for more.
    """
    pen = Pen.of(alice)
    for declared, opened, other in (
        (scene.client.v4, scene.client.v4, scene.eve.v4),
        (SourceRule.NONE, scene.eve.v4, scene.client.v4),
    ):
        held_back = pen.write("tcp/9091", source=declared)
        scene.injector.knock(held_back.payload, scene.eve.v4)
        scene.serves()
        assert (opened, 9091) in scene.holes()
        assert (other, 9091) not in scene.holes()
        assert Caller(pen, scene.client, scene.server.v4).send(held_back, within_s=0.3) is None
        scene.site.server("close", "--identity", alice.name)


def test_two_copies_in_one_batch_are_one_knock_and_one_replay(scene: Scene, alice: Person) -> None:
    """The daemon is stopped while they arrive, so that it reads both at once."""
    pen = Pen.of(alice)
    knock = pen.write("tcp/9090", lifetime_s=1)
    assert scene.site.daemon is not None
    pid = scene.site.daemon.pid
    scene.tap.answers()
    os.kill(pid, signal.SIGSTOP)
    try:
        for source in (scene.eve.v4, scene.client.v4, scene.eve.v4):
            scene.injector.knock(knock.payload, source)
    finally:
        os.kill(pid, signal.SIGCONT)
    scene.serves()
    own = [answer for answer in scene.tap.answers() if pen.read(answer.payload, knock)]
    assert [answer.target for answer in own] == [scene.eve.v4]
    assert (scene.client.v4, 9090) not in scene.holes()
    replayed = refusals(scene.site, pen, "replayed")
    assert [line["source"] for line in replayed] == [str(scene.client.v4), str(scene.eve.v4)]


def test_two_devices_of_one_person_are_both_heard(scene: Scene, alice: Person) -> None:
    first = Pen.of(alice)
    line = alice.generate("laptop")
    scene.site.enrol_key(alice.name, line)
    second = Pen.of(alice, "laptop")
    assert first.key_id != second.key_id
    at_us = now_us()
    for pen in (first, second, first, second):
        reply = Caller(pen, scene.client, scene.server.v4).ask("tcp/22", at_us=at_us)
        assert reply is not None
        assert reply.status is Status.GRANTED
    assert "open for" in alice.knock(scene.client, "tcp/22", "--key", "laptop").stdout
    accepted = scene.site.audit("--event", "knock.accepted", "--identity", alice.name)
    assert {line["key_id"] for line in accepted} == {first.key_id, second.key_id}


def test_ten_processes_on_one_key_are_all_heard_one_of_them_8_s_behind(
    scene: Scene, alice: Person
) -> None:
    """No order is asked of the times in knocks: each has a nonce of its own."""
    behind = scene.client.run(["date", "+%s"], env=faketime(scene.lab, "-8")).stdout
    assert 8 <= now_us() / SECOND_US - int(behind) < 10
    racing = [
        scene.client.start(
            [PROGRAMS / "spa-client", "knock", "site", f"tcp/{9090 + number}", "--timeout", "10s"],
            env={**alice.env, **(faketime(scene.lab, "-8") if number == 4 else {})},
        )
        for number in range(10)
    ]
    for number, running in enumerate(racing):
        running.wait_for(f"tcp/{9090 + number} open for {scene.client.v4}")
        assert running.process.wait(5) == 0
    accepted = scene.site.audit("--event", "knock.accepted", "--identity", alice.name)
    assert {line["access"] for line in accepted} == {f"tcp/{9090 + n}" for n in range(10)}
    assert refusals(scene.site, Pen.of(alice), "replayed") == []


def test_every_replay_is_in_the_record_or_in_its_count(scene: Scene, alice: Person) -> None:
    """One source is written down once in ten seconds; a daemon that ends counts the rest before."""
    pen = Pen.of(alice)
    knock = pen.write("tcp/22", lifetime_s=1)
    scene.injector.knock(knock.payload, scene.eve.v4)
    for _ in range(9):
        scene.injector.knock(knock.payload, scene.eve.v4)
    scene.serves()
    scene.site.restart()
    first, further = refusals(scene.site, pen, "replayed")
    assert (first["source"], first["detail"].get("further")) == (str(scene.eve.v4), None)
    assert (further["source"], further["detail"]["further"]) == (str(scene.eve.v4), 8)
