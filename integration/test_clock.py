"""The server's wall clock is set while it guards: nobody is locked out, nothing comes back to life.

The daemon runs under libfaketime, so that its wall clock can be set while it runs, and this
machine's is left alone. The kernel does not see such a setting and so wakes nobody: unless a test
says otherwise, asking for the status makes the daemon look at its clock.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count, cycle
from pathlib import Path
from typing import Final

import pytest

from integration.lab import Host, Lab, Reach, wait_until
from integration.site import Person, Site
from integration.wire import (
    ACCEPTS_UNDECLARED,
    SECOND_US,
    Caller,
    Injector,
    KernelHole,
    Pen,
    Tap,
    faketime,
    holes_in_kernel,
    now_us,
    refusals,
    silent,
    tags_in_kernel,
)
from spa_client.compose import Datagram
from spa_protocol.layout import EPOCH_S, epoch_of
from spa_protocol.reason import Code, Status

MINUTE_S, HOUR_S = 60, 3600
STEPS_S: Final = (5, 45, 10 * MINUTE_S, 2 * HOUR_S)
EPOCH_US: Final = EPOCH_S * SECOND_US


@dataclass
class WallClock:
    """The server's wall clock, and how many seconds it is ahead of this machine's."""

    path: Path
    ahead_s: float = 0.0

    def __post_init__(self) -> None:
        self.set(0)

    def set(self, ahead_s: float) -> None:
        """In one go, so that no reader finds half of it."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{ahead_s:+.6f}\n")
        new.rename(self.path)
        self.ahead_s = ahead_s

    def set_into_epoch(self, seconds: float) -> None:
        """So that an epoch began this many seconds ago."""
        self.set(seconds - now_us() % EPOCH_US / SECOND_US)

    def now_us(self) -> int:
        return now_us() + round(self.ahead_s * SECOND_US)


@dataclass
class Scene:
    """A guarded server whose clock can be set, and two hosts with theirs right."""

    lab: Lab
    site: Site
    server: Host
    client: Host
    eve: Host
    clock: WallClock
    tap: Tap
    injector: Injector
    pens: list[Pen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = count(1)

    def start(self) -> None:
        self.site.start(env=faketime(self.lab, self.clock.path))

    def enrol(self, *roles: str, expires: str | None = None) -> Caller:
        """Somebody new, who knocks from the client."""
        name = f"person-{next(self._numbers)}"
        self.pens.append(Pen.enrolled(self.site, name, *roles, expires=expires))
        return Caller(self.pens[-1], self.client, self.server.v4)

    def person(self, name: str) -> Person:
        """Somebody new, who uses the programs."""
        person = self.site.enrol(f"{name}-{next(self._numbers)}", "ops")
        self.pens.append(Pen.of(person))
        return person

    def set_clock(self, ahead_s: float) -> None:
        """Sets the server's clock, and makes the daemon look at it."""
        self.clock.set(ahead_s)
        self.site.status()

    def settings(self) -> list[float]:
        """By how many seconds the clock was set each time, as the record has it."""
        return [line["detail"]["by_s"] for line in self.site.events("clock.set")]

    def admits_the_right_tags(self) -> bool:
        """Those of two epochs back to three ahead: the next one's are there before it begins.

        Each times out when its epoch is two epochs past.
        """
        now = self.clock.now_us()
        wanted = {
            pen.tag(epoch): ((epoch + 3) * EPOCH_US - now) / SECOND_US
            for pen in self.pens
            for epoch in range(epoch_of(now) - 2, epoch_of(now) + 4)
        }
        found = tags_in_kernel(self.server)
        return found.keys() == wanted.keys() and all(
            abs(found[tag] - lasts_s) < 5 for tag, lasts_s in wanted.items()
        )

    def serves(self, caller: Caller) -> bool:
        """Whether a knock by the server's own clock is granted."""
        reply = caller.ask("tcp/80", at_us=self.clock.now_us())
        return reply is not None and reply.status is Status.GRANTED

    def is_of_no_use(self, knock: Datagram, pen: Pen, clerk: Caller) -> None:
        """The bytes again, from their own address and from another, do nothing.

        Where the kernel admits their tag, they stand in the record as what they are.
        """
        holes = holes_in_kernel(self.server).keys()
        stranger = IPv4Address("198.18.0.0") + next(self._numbers)
        with silent(self.tap, self.client.v4), silent(self.tap, stranger):
            for source in (self.client.v4, stranger):
                self.injector.knock(knock.payload, source)
            assert self.serves(clerk)
        opened = holes_in_kernel(self.server).keys() - holes
        assert {hole.port for hole in opened} <= {80}
        recorded = [line["source"] for line in refusals(self.site, pen, "replayed")]
        assert (str(stranger) in recorded) is (knock.payload[:8] in tags_in_kernel(self.server))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, eve = lab.host("server"), lab.host("client"), lab.host("eve")
        clock = WallClock(lab.new_file("clock"))
        made = Scene(
            lab,
            Site(lab, server, settings=ACCEPTS_UNDECLARED),
            server,
            client,
            eve,
            clock,
            Tap(server),
            Injector(eve, server),
        )
        server.add_route("198.18.0.0/15", eve.v4)
        server.serve(22)
        made.site.apply_gate()
        made.start()
        yield made


@pytest.fixture
def clerk(scene: Scene) -> Caller:
    """Whose knocks show that the server serves; of times that no other test has seen."""
    return scene.enrol("ops")


@pytest.fixture(autouse=True)
def _the_clock_is_right_again_and_the_daemon_well(scene: Scene) -> Iterator[None]:
    yield
    scene.set_clock(0)
    scene.site.server("close", "--all", check=False)
    assert scene.site.daemon is not None
    assert scene.site.daemon.output == ""


@pytest.mark.parametrize("step_s", [sign * step for step in STEPS_S for sign in (1, -1)])
def test_a_step_of_the_clock_locks_nobody_out_and_revives_nothing(
    scene: Scene, clerk: Caller, step_s: int
) -> None:
    """Neither what was granted before nor what was refused then and would be granted now."""
    alice, bob = scene.enrol("ops"), scene.enrol()
    granted = alice.pen.write("tcp/22", lifetime_s=600)
    refused = bob.pen.write("tcp/22", lifetime_s=600)
    codes = [reply.outcomes[0].code for reply in (alice.send(granted), bob.send(refused)) if reply]
    assert codes == [Code.GRANTED, Code.NO_ROLE]
    scene.site.keys("grant", bob.pen.name, "ops")
    hole = KernelHole(scene.client.v4, scene.server.v4, "tcp", 22)
    ends_s = time.monotonic() + holes_in_kernel(scene.server)[hole]

    for ahead_s in (step_s, 0):
        by_s = ahead_s - scene.clock.ahead_s
        known = scene.settings()
        scene.set_clock(ahead_s)
        assert scene.settings() == [*known, pytest.approx(by_s, abs=0.5)]
        assert scene.admits_the_right_tags()
        scene.is_of_no_use(granted, alice.pen, clerk)
        scene.is_of_no_use(refused, bob.pen, clerk)
        assert scene.serves(alice)
        assert scene.serves(bob)
        # The hole is the kernel's, and ticks by a clock that nobody sets.
        left_s = ends_s - time.monotonic()
        assert holes_in_kernel(scene.server)[hole] == pytest.approx(left_s, abs=3)


def test_what_comes_before_the_daemon_has_seen_the_new_time_mixes_no_tags(scene: Scene) -> None:
    """A connection wakes it too, and asks for no look at the clock."""
    alice = scene.enrol("ops")
    assert alice.ask("tcp/22", lifetime_s=60) is not None

    def permitted() -> int:
        return len(scene.site.events("connection.permitted"))

    def set_and_connect(ahead_s: float) -> None:
        known = permitted()
        scene.clock.set(ahead_s)
        assert scene.client.reach_tcp(scene.server.v4, 22) is Reach.OPEN
        wait_until(lambda: permitted() > known)

    for ahead_s in (2 * HOUR_S, 0):
        set_and_connect(ahead_s)
        scene.site.status()
        assert scene.admits_the_right_tags()


@pytest.mark.parametrize("off_s", [45, -45, 10 * MINUTE_S, -10 * MINUTE_S])
def test_a_knock_that_was_stale_or_ahead_is_no_use_when_the_clock_comes_to_it(
    scene: Scene, clerk: Caller, off_s: int
) -> None:
    alice = scene.enrol("ops")
    knock = alice.pen.write("tcp/22", at_us=scene.clock.now_us() + off_s * SECOND_US)
    reply = alice.send(knock)
    assert reply is not None
    assert reply.status is Status.CLOCK
    side = "ahead of" if off_s > 0 else "behind"
    assert reply.message == f"your clock is {abs(off_s)} s {side} the server's"
    scene.set_clock(off_s)
    assert knock.payload[:8] in tags_in_kernel(scene.server)
    scene.is_of_no_use(knock, alice.pen, clerk)
    assert scene.serves(alice)


@pytest.mark.parametrize("off_s", [2 * HOUR_S, -2 * HOUR_S])
def test_a_knock_that_is_hours_off_was_never_heard_and_counts_once_when_it_is(
    scene: Scene, clerk: Caller, off_s: int
) -> None:
    """Its tag is not admitted, so to the server it is as if it had been held back on the way.

    That is the price for junk that costs nothing. As with any knock that is held back, whoever
    sends it delivers it, and no more, where it declares its source.
    """
    alice = scene.enrol("ops")
    knock = alice.pen.write(
        "tcp/22", at_us=scene.clock.now_us() + off_s * SECOND_US, source=scene.client.v4
    )
    assert alice.send(knock, within_s=0.3) is None
    assert knock.payload[:8] not in tags_in_kernel(scene.server)
    scene.set_clock(off_s)
    reply = alice.send(knock)
    assert reply is not None
    assert reply.status is Status.GRANTED
    scene.is_of_no_use(knock, alice.pen, clerk)


def test_an_open_hole_lives_by_a_clock_that_nobody_sets(scene: Scene) -> None:
    alice = scene.enrol("ops")
    assert alice.ask("tcp/22", lifetime_s=3) is not None
    opened_s = time.monotonic()
    for ahead_s in (2 * HOUR_S, -2 * HOUR_S):
        scene.set_clock(ahead_s)
        assert scene.client.reach_tcp(scene.server.v4, 22) is Reach.OPEN
    wait_until(lambda: scene.client.reach_tcp(scene.server.v4, 22) is Reach.SILENT)
    assert 2.5 < time.monotonic() - opened_s < 4.5
    wait_until(lambda: scene.site.audit("--event", "hole.expired", "--identity", alice.pen.name))


def test_a_replay_is_one_for_a_daemon_that_starts_with_the_clock_wrong(
    scene: Scene, clerk: Caller
) -> None:
    """A host whose hardware clock is hours off, until the network sets it right."""
    alice = scene.enrol("ops")
    knock = alice.pen.write("tcp/22", lifetime_s=1)
    assert alice.send(knock) is not None
    for wrong_s in (-2 * HOUR_S, 2 * HOUR_S):
        scene.site.stop()
        scene.clock.set(wrong_s)
        scene.start()
        assert scene.serves(alice)
        scene.set_clock(0)
        scene.is_of_no_use(knock, alice.pen, clerk)
        assert scene.admits_the_right_tags()
        assert scene.serves(alice)


def test_a_key_that_a_wrong_clock_had_expire_is_heard_again(scene: Scene) -> None:
    alice = scene.enrol("ops", expires="1h")
    assert scene.serves(alice)
    scene.set_clock(2 * HOUR_S)
    assert alice.ask("tcp/80", at_us=scene.clock.now_us(), within_s=0.3) is None
    scene.set_clock(0)
    assert scene.serves(alice)


@pytest.mark.alone
def test_the_kernel_wakes_the_daemon_when_the_clock_is_set(scene: Scene) -> None:
    """Nobody asks the daemon anything here, and no knock comes. The real clock is set to itself."""
    known = scene.settings()
    scene.clock.set(90)
    try:
        time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))
    except PermissionError:
        pytest.skip("setting the clock needs CAP_SYS_TIME")
    wait_until(lambda: scene.settings() == [*known, pytest.approx(90, abs=0.5)])
    assert scene.admits_the_right_tags()


# Clients


@pytest.mark.parametrize(("off_s", "side"), [(-94, "behind"), (94, "ahead of")])
def test_a_client_whose_clock_is_94_s_off_is_told_so(scene: Scene, off_s: int, side: str) -> None:
    """By the server, in a sealed answer: whoever has no key here hears nothing of its clock."""
    alice = scene.person("alice")
    told = alice.client(
        scene.client, "knock", "site", "tcp/22", check=False, env=faketime(scene.lab, f"{off_s:+d}")
    )
    assert told.returncode == 1
    assert told.stdout == ""
    assert f"your clock is 94 s {side} the server's; set the clock right" in told.stderr


@pytest.mark.parametrize(("off_s", "into_epoch_s"), [(-12 * MINUTE_S, 60), (17 * MINUTE_S, 240)])
def test_a_client_whose_clock_is_off_by_more_epochs_than_are_admitted_hears_nothing(
    scene: Scene, off_s: int, into_epoch_s: int
) -> None:
    """Its tag is like a stranger's. That is three epochs back, or four ahead, since the tags of the
    epoch that will be admitted next are in the kernel before it begins."""
    alice = scene.person("alice")
    scene.clock.set_into_epoch(into_epoch_s)
    scene.site.status()
    with silent(scene.tap):
        env = faketime(scene.lab, f"{scene.clock.ahead_s + off_s:+.3f}")
        told = alice.client(scene.client, "knock", "site", "tcp/22", check=False, env=env)
    assert told.returncode == 3
    assert "no answer from site" in told.stderr
    assert "this clock minutes off" in told.stderr


# Epochs


def test_a_change_of_epoch_loses_no_knock(scene: Scene) -> None:
    """The next epoch's tags are there before it begins, the last one's stay for two more."""
    callers = [scene.enrol("ops") for _ in range(3)]
    scene.clock.set_into_epoch(EPOCH_S - 3)
    boundary_us = (epoch_of(scene.clock.now_us()) + 1) * EPOCH_US
    scene.site.status()
    epochs = set()
    for caller in cycle(callers):
        now = scene.clock.now_us()
        if now > boundary_us + SECOND_US:
            break
        for at_us in (now, boundary_us - 1, boundary_us):
            reply = caller.ask("tcp/80", at_us=at_us)
            assert reply is not None
            assert reply.status is Status.GRANTED
            epochs.add((epoch_of(scene.clock.now_us()), epoch_of(at_us)))
        # Nobody is heard more than 20 times a second.
        time.sleep(0.06)
    epoch = epoch_of(boundary_us)
    assert epochs == {(now, at) for now in (epoch - 1, epoch) for at in (epoch - 1, epoch)}
    wait_until(scene.admits_the_right_tags, what="the tags of one epoch more, with nobody asking")
