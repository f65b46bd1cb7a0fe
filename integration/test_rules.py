"""What a rule says flips a real connection: role, source, protocol, port, hour, expiry, limits.

The daemon runs under libfaketime, so that its week has Mondays and nights when a test needs them.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest

from integration.lab import Host, Lab, Reach, wait_until
from integration.site import Site
from integration.wire import ACCEPTS_UNDECLARED, SECOND_US, Caller, Pen, faketime, now_us
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Reply

BERLIN: Final = ZoneInfo("Europe/Berlin")
RATE_PER_S: Final = 200
KNOCKERS: Final = 16

POLICY: Final = """
[services]
ssh = "tcp/22"
postgres = "tcp/5432"
dns = "udp/5353"
console = "tcp/9090-9099"

[roles.office]
[[roles.office.allow]]
services = ["postgres"]
from = ["{client}/32", "{client6}/128"]
when = "Mo-Fr 08:00-18:00; PH off"
timezone = "Europe/Berlin"
country = "DE"
lifetime = "1h"

[roles.leaving]
expires = 2027-03-01
[[roles.leaving.allow]]
services = ["ssh"]
lifetime = "1h"

[roles.plain]
[roles.plain.limits]
knocks_per_minute = 100_000
[[roles.plain.allow]]
services = ["ssh", "dns"]
lifetime = "1h"

[roles.careful]
[[roles.careful.allow]]
services = ["console"]
require = ["declared-source"]
lifetime = "1h"

[roles.few]
[roles.few.limits]
max_open = 2
knocks_per_minute = 4
[[roles.few.allow]]
services = ["console", "ssh"]
lifetime = "1h"

[[tests]]
name = "the office is open on a Tuesday"
role = "office"
access = "tcp/5432"
from = "{client}"
at = 2026-11-24T09:00:00+01:00
expect = "allow"
"""
MONDAY: Final = datetime(2026, 11, 30, 9, 0, tzinfo=BERLIN)
NIGHT: Final = datetime(2026, 11, 30, 20, 0, tzinfo=BERLIN)
CHRISTMAS: Final = datetime(2026, 12, 25, 9, 0, tzinfo=BERLIN)


@dataclass
class Scene:
    """A guarded server whose clock can be set, a client with two addresses, and a stranger."""

    site: Site
    server: Host
    client: Host
    other: Host
    clock: Path
    env: dict[str, str]

    def __post_init__(self) -> None:
        self._names = count(1)

    def set(self, moment: datetime) -> None:
        """Sets the server's clock, and has the daemon look at it."""
        new = self.clock.with_suffix(".new")
        new.write_text(f"{moment.timestamp() - time.time():+.6f}\n")
        new.rename(self.clock)
        self.site.status()

    def now_us(self) -> int:
        return now_us() + round(float(self.clock.read_text()) * SECOND_US)

    def enrol(self, *roles: str, at: Host | None = None, v6: bool = False) -> Caller:
        name = f"person-{next(self._names)}"
        pen = Pen.enrolled(self.site, name, *roles)
        return Caller(pen, at or self.client, self.server.v6 if v6 else self.server.v4)

    def ask(self, caller: Caller, access: str, **how: Any) -> Reply:
        reply = caller.ask(access, at_us=self.now_us(), **how)
        assert reply is not None
        return reply

    def code(self, caller: Caller, access: str, **how: Any) -> Code:
        return self.ask(caller, access, **how).outcomes[0].code


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, other = lab.host("server"), lab.host("client"), lab.host("other")
        policy = POLICY.format(client=client.v4, client6=client.v6)
        clock = lab.new_file("clock")
        env = faketime(lab, clock)
        made = Scene(
            Site(lab, server, policy=policy, settings=ACCEPTS_UNDECLARED),
            server,
            client,
            other,
            clock,
            env,
        )
        clock.write_text("+0\n")
        for port in (22, 5432, 9090, 5353):
            server.serve(port)
        made.site.apply_gate()
        made.site.start(env=env)
        made.set(MONDAY)
        yield made


@pytest.fixture(autouse=True)
def _monday_again_and_everything_closed(scene: Scene) -> Iterator[None]:
    scene.set(MONDAY)
    yield
    scene.site.server("close", "--all", check=False)
    assert scene.site.daemon is not None
    told = scene.site.daemon.output.splitlines()
    assert [line for line in told if "the policy in force stays" not in line] == []


@pytest.mark.parametrize("v6", [False, True])
def test_role_and_source_and_port_and_protocol_each_flip_a_connection(
    scene: Scene, v6: bool
) -> None:
    target = scene.server.v6 if v6 else scene.server.v4
    alice = scene.enrol("office", v6=v6)
    assert scene.client.reach_tcp(target, 5432) is Reach.SILENT

    nobody = scene.enrol(v6=v6)
    assert scene.code(nobody, "tcp/5432") is Code.NO_ROLE
    elsewhere = Caller(alice.pen, scene.other, target)
    assert scene.code(elsewhere, "tcp/5432") is Code.NOT_FROM_HERE
    assert scene.code(alice, "tcp/22") is Code.NO_ROLE
    assert scene.code(alice, "udp/5432") is Code.NO_ROLE
    assert scene.client.reach_tcp(target, 5432) is Reach.SILENT
    assert scene.other.reach_tcp(target, 5432) is Reach.SILENT

    assert scene.code(alice, "tcp/5432") is Code.GRANTED
    assert scene.client.reach_tcp(target, 5432) is Reach.OPEN
    assert scene.client.reach_tcp(target, 22) is Reach.SILENT
    assert scene.client.reach_udp(target, 5432) is Reach.SILENT
    assert scene.other.reach_tcp(target, 5432) is Reach.SILENT


@pytest.mark.parametrize(
    ("moment", "again"),
    [(NIGHT, "opens again Tue 08:00"), (CHRISTMAS, "opens again Mon 08:00")],
    ids=["night", "holiday"],
)
def test_the_hour_flips_a_connection_and_the_client_is_told_when_it_opens(
    scene: Scene, moment: datetime, again: str
) -> None:
    alice = scene.enrol("office")
    scene.set(moment)
    reply = scene.ask(alice, "tcp/5432")
    assert reply.outcomes[0].code is Code.NOT_NOW
    assert reply.message == f"{again} Europe/Berlin"
    assert scene.client.reach_tcp(scene.server.v4, 5432) is Reach.SILENT
    scene.set(MONDAY)
    assert scene.code(alice, "tcp/5432") is Code.GRANTED
    assert scene.client.reach_tcp(scene.server.v4, 5432) is Reach.OPEN


def test_a_hole_ends_with_the_hours_of_its_rule(scene: Scene) -> None:
    alice = scene.enrol("office")
    scene.set(datetime(2026, 11, 30, 17, 59, 57, tzinfo=BERLIN))
    reply = scene.ask(alice, "tcp/5432")
    assert reply.status is Status.GRANTED
    assert 1 <= reply.outcomes[0].lifetime_s <= 3
    assert scene.client.reach_tcp(scene.server.v4, 5432) is Reach.OPEN
    wait_until(
        lambda: scene.client.reach_tcp(scene.server.v4, 5432) is Reach.SILENT,
        what="the hole to end at six",
    )


def test_expiry_flips_a_connection(scene: Scene) -> None:
    alice = scene.enrol("leaving")
    assert scene.code(alice, "tcp/22") is Code.GRANTED
    assert scene.client.reach_tcp(scene.server.v4, 22) is Reach.OPEN
    scene.site.server("close", "--all")
    scene.set(datetime(2027, 3, 1, 0, 0, 1, tzinfo=UTC))
    reply = scene.ask(alice, "tcp/22")
    assert reply.outcomes[0].code is Code.EXPIRED
    assert reply.message == "expired on 2027-03-01"
    assert scene.client.reach_tcp(scene.server.v4, 22) is Reach.SILENT


def test_a_source_that_must_be_declared(scene: Scene) -> None:
    alice = scene.enrol("careful")
    reply = scene.ask(alice, "tcp/9090")
    assert reply.outcomes[0].code is Code.DECLARE_SOURCE
    assert str(scene.client.v4) in reply.message
    assert scene.client.reach_tcp(scene.server.v4, 9090) is Reach.SILENT
    assert scene.code(alice, "tcp/9090", source=scene.client.v4) is Code.GRANTED
    assert scene.client.reach_tcp(scene.server.v4, 9090) is Reach.OPEN


def test_limits_count_holes_and_knocks(scene: Scene) -> None:
    alice = scene.enrol("few")
    assert scene.code(alice, "tcp/9090") is Code.GRANTED
    assert scene.code(alice, "tcp/9090") is Code.GRANTED  # the same hole again is no other one
    assert scene.code(alice, "tcp/9091-9092") is Code.TOO_MANY
    assert scene.code(alice, "tcp/22") is Code.GRANTED
    reply = scene.ask(alice, "tcp/22")
    assert reply.outcomes[0].code is Code.TOO_MANY
    assert reply.message == "at most 4 knocks a minute; wait"
    assert len(scene.site.holes()) == 3


def test_a_policy_that_fails_its_own_test_is_not_put_in_force(scene: Scene) -> None:
    alice = scene.enrol("office")
    wrong = scene.site.policy.replace('expect = "allow"', 'expect = "deny"')
    scene.site.write_policy(wrong)
    refused = scene.site.server("reload", check=False)
    assert refused.returncode == 4
    assert "tests[0]" in refused.stderr
    assert scene.code(alice, "tcp/5432") is Code.GRANTED
    scene.site.write_policy(scene.site.policy)
    scene.site.server("reload")
    told = scene.site.events("policy.refused")
    assert "tests[0]" in told[0]["reason"]


def test_a_daemon_that_starts_with_a_broken_policy_takes_the_last_good_one(scene: Scene) -> None:
    alice = scene.enrol("office")
    scene.site.stop()
    scene.site.write_policy(scene.site.policy.replace("[services]", "[services"))
    scene.site.start(env=scene.env)
    assert scene.site.status()["policy"].startswith("the last good one")
    digest = blake2b(scene.site.policy.encode(), digest_size=32).hexdigest()
    assert scene.site.events("daemon.started")[-1]["detail"]["digest"] == digest
    assert scene.site.status()["policy_digest"] == digest
    scene.set(MONDAY)
    assert scene.code(alice, "tcp/5432") is Code.GRANTED
    scene.site.write_policy(scene.site.policy)
    scene.site.server("reload")
    assert scene.site.status()["policy"] == "as in its file when it was read"
    assert scene.site.events("policy.loaded")[-1]["detail"]["digest"] == digest
    file = scene.site.directory / "policy.toml"
    told = scene.server.run(["b2sum", "-l", "256", file]).stdout
    assert told.split()[0] == digest


@pytest.mark.alone
def test_reloading_under_load_loses_no_knock_and_opens_none_wrongly(scene: Scene) -> None:
    """200 knocks a second, half of them for what only every second policy allows.

    From as many keys as the kernel's limit for each source and tag asks for.
    """
    callers = [scene.enrol("plain") for _ in range(KNOCKERS)]
    without_dns = scene.site.policy.replace('services = ["ssh", "dns"]', 'services = ["ssh"]')
    answers: list[tuple[str, Reply | None]] = []
    ended = threading.Event()

    def knock(number: int, caller: Caller) -> None:
        access = ("tcp/22", "udp/5353")[number % 2]
        due_s = time.monotonic() + number / RATE_PER_S
        while not ended.is_set():
            answers.append((access, caller.ask(access, at_us=scene.now_us(), within_s=5)))
            due_s += KNOCKERS / RATE_PER_S
            time.sleep(max(0.0, due_s - time.monotonic()))

    threads = [threading.Thread(target=knock, args=pair) for pair in enumerate(callers)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        for policy in (without_dns, scene.site.policy):
            scene.site.write_policy(policy)
            scene.site.server("reload")
            if policy is without_dns:
                held = {hole["access"] for hole in scene.site.holes()}
                assert "udp/5353" not in held
                assert scene.client.reach_udp(scene.server.v4, 5353) is Reach.SILENT
    ended.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 500
    codes: dict[str, set[Code]] = {"tcp/22": set(), "udp/5353": set()}
    for access, reply in answers:
        assert reply is not None
        codes[access].add(reply.outcomes[0].code)
    assert codes == {"tcp/22": {Code.GRANTED}, "udp/5353": {Code.GRANTED, Code.NO_ROLE}}
