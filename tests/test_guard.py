"""The guard of a host, whole: real registry, record, policy and clock's arithmetic; no kernel.

In the kernel's place stand dictionaries (of holes, of tags) that refuse whatever comes before the
gate, as the kernel does where there is no table. Each test is somebody who means harm, and what
keeps them out; integration/ has the same with real packets.
"""

import errno
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest

from keys import serverkey
from keys.actor import Actor
from keys.identity import Identity
from keys.registry import Registry
from keys.tomlfile import FileProblem
from spa_protocol.access import Access
from spa_protocol.layout import EPOCH_S
from spa_protocol.reason import Status
from spa_protocol.reply import Reply
from spa_server import clock, marks
from spa_server.audit.asking import Filter, ask
from spa_server.audit.backlog import leave_note
from spa_server.audit.denials import beside
from spa_server.capture.datagram import Datagram
from spa_server.config import load_config
from spa_server.driftwatch import Drift
from spa_server.firewall.elements import HoleLease, TagLease
from spa_server.firewall.kernel import FirewallError
from spa_server.firewall.plan import GatePlan
from spa_server.guard import Guard
from spa_server.hole import Hole
from spa_server.sessions import Session
from tests.test_reception import Kernel
from tests.world import CLIENT, HOST, NOW_US, SECOND, SSH, World, knock_at

OPERATOR = Actor("root", 0)
SERVER = """\
policy = "policy.toml"
key = "server.key"
database = "spa.db"
control = "control.sock"
"""
POLICY = """\
[services]
ssh = "tcp/22"
postgres = "tcp/5432"

[roles.ops]
[[roles.ops.allow]]
services = ["ssh", "postgres"]
lifetime = "5m"
max_lifetime = "8h"
"""
NARROWER = POLICY.replace('"ssh", "postgres"', '"postgres"')
POSTGRES = Access.parse("tcp/5432")
HER_HOLE = Hole(CLIENT, HOST, SSH.protocol, 22)
A_DAY_S = 86_400


class Clock:
    """`time`, as far as spa_server/clock.py asks it."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self) -> None:
        self.now_us = NOW_US
        self.up_us = A_DAY_S * SECOND

    def time_ns(self) -> int:
        return self.now_us * 1000

    def monotonic_ns(self) -> int:
        return self.up_us * 1000

    def monotonic(self) -> float:
        return self.up_us / SECOND

    def clock_gettime_ns(self, which: int) -> int:
        assert which == self.CLOCK_BOOTTIME
        return self.up_us * 1000

    def passes(self, seconds: float) -> None:
        self.now_us += round(seconds * SECOND)
        self.up_us += round(seconds * SECOND)

    def is_set(self, *, by_s: int) -> None:
        self.now_us += by_s * SECOND


class Table(Kernel):
    """The table of the gate: holes as tests/test_reception.py has them, and tags; what was done."""

    def __init__(self) -> None:
        super().__init__(fails=True)
        self.tags: dict[bytes, int] = {}
        self.held_back: dict[bytes, int] = {}
        self.done: list[str] = []
        self.applies = True
        self.number: int | None = None
        self.backstop = SimpleNamespace(trouble=None, absence="", disarm=lambda _why: None)

    @property
    def order(self) -> list[str]:
        """What was done, in the order of its kinds."""
        return [what for what, _ in groupby(self.done)]

    def flush(self) -> None:
        """Somebody deletes the table, with all that is in it."""
        for what in (self.holes, self.tags, self.held_back):
            what.clear()
        self.fails = True

    def is_loaded(self) -> bool:
        return not self.fails

    def apply(self, plan: GatePlan) -> None:
        self.fails = not self.applies
        self._may()
        self.plan = plan
        self.done.append("the gate")

    def restore(self, ruleset: str) -> None:
        self.restored = ruleset
        self.done.append("the gate as it was")

    def ruleset(self) -> str:
        return "as nft lists it"

    def open(self, leases: Iterable[HoleLease]) -> None:
        leases = list(leases)
        super().open(leases)
        self.done += ["holes"] if leases else []

    def admit(self, leases: Iterable[TagLease]) -> None:
        self._may()
        if self.number is not None:
            raise FirewallError("the kernel would not", self.number)
        leases = list(leases)
        self.tags |= {lease.tag: lease.timeout_ms for lease in leases}
        self.done += ["tags"] if leases else []

    def hold_back(self, lease: TagLease) -> None:
        self._may()
        self.held_back[lease.tag] = lease.timeout_ms

    def withdraw(self, values: Iterable[bytes]) -> None:
        self._may()
        for value in values:
            self.tags.pop(value, None)


class Host:
    """A host with its files, and what its operator and its people do."""

    def __init__(self, path: Path, clock: Clock, table: Table) -> None:
        (path / "server.toml").write_text(SERVER)
        self.policy = path / "policy.toml"
        self.policy.write_text(POLICY)
        self.world = World(serverkey.generate())
        serverkey.save(self.world.server, path / "server.key")
        self.config = load_config(path / "server.toml")
        marks.want(self.config)
        self.clock, self.table = clock, table
        self.registry = Registry(self.config.database)
        self.answers: list[Reply] = []
        self.guards: list[Guard] = []

    def begin(self) -> Guard:
        """A daemon begins. The one before was killed."""
        made = Guard(self.config, lambda reply, *_: self.answers.append(reply))
        self.guards.append(made)
        made.start()
        for _ in made.load_tags():
            pass
        return made

    def wait(self) -> None:
        """What the daemon does when it wakes."""
        self.guard.tick()
        if self.guard.needs_tags():
            for _ in self.guard.load_tags():
                pass

    @property
    def guard(self) -> Guard:
        return self.guards[-1]

    def person(self, name: str, **fields: object) -> Identity:
        made = self.world.enrol()
        now_us, actor = self.clock.now_us, "an operator"
        self.registry.enroll(
            name,
            made.public,
            roles=["ops"],
            now_us=now_us,
            actor=actor,
            **fields,  # type: ignore[arg-type]  # of a test
        )
        return made

    def revoke(self, name: str) -> None:
        self.registry.revoke(name, now_us=self.clock.now_us, actor="an operator")

    def on_trial(self, *, before: str | None) -> None:
        """`gate apply --confirm-within` has set its mark."""
        trial = marks.Trial("token", before, was_wanted=True)
        marks.begin(self.config, trial)

    def knock(self, who: Identity, *accesses: Access, stamp_us: int | None = None) -> Datagram:
        at_us = self.clock.now_us if stamp_us is None else stamp_us
        return self.world.datagram(who, knock_at(at_us, *accesses))

    def passes(self, datagram: Datagram) -> bool:
        """Whether the kernel hands it over: the gate stands, and its tag is admitted."""
        return self.table.is_loaded() and datagram.payload[:8] in self.table.tags

    def hear(self, *datagrams: Datagram) -> list[Status]:
        """The daemon reads what the kernel has handed over; its answers."""
        before = len(self.answers)
        self.guard.hear(lambda _now_us: (list(datagrams), 0))
        return [reply.status for reply in self.answers[before:]]

    def tags_of(self, who: Identity) -> set[bytes]:
        """Which of a key's usual tags the kernel admits."""
        pair = who.pair_with(self.world.server.public)
        epoch = self.clock.now_us // SECOND // EPOCH_S
        return self.table.tags.keys() & {pair.tag_at(epoch + n) for n in range(-3, 4)}

    def recorded(self, event: str) -> list[str | None]:
        with closing(sqlite3.connect(self.config.database)) as connection:
            lines = ask(connection, Filter(), limit=1000)
        return [line["reason"] for line in lines if line["event"] == event]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    now, table = Clock(), Table()
    monkeypatch.setattr(clock, "time", now)
    monkeypatch.setattr("spa_server.marks.OF_THIS_BOOT", tmp_path / "run")
    monkeypatch.setattr("spa_server.guard.Gate", lambda: table)
    monkeypatch.setattr("spa_server.guard.routes.why_no_source", lambda _source: "")
    monkeypatch.setattr("spa_server.guard.sessions.sever", lambda *_: [])
    monkeypatch.setattr("spa_server.guard.sessions.served", list)
    monkeypatch.setattr("spa_server.gatehouse.accounting.switch_on", tuple)
    monkeypatch.setattr("spa_server.gatehouse.outer_interfaces", lambda: ("eth0",))
    made = Host(tmp_path, now, table)
    yield made
    for guard in made.guards:
        guard.denials.close(now.now_us)
        if guard.lookout is not None:
            guard.lookout.close(now.now_us)
        guard.registry.close()
        guard.enforcement.close()
    made.registry.close()


@pytest.fixture
def alice(host: Host) -> Identity:
    """She may use ssh, and the daemon runs."""
    made = host.person("alice")
    host.begin()
    return made


def test_whoever_may_is_let_in(host: Host, alice: Identity) -> None:
    """The host of these tests is one: what follows is not refused for want of anything."""
    knock = host.knock(alice)
    assert host.passes(knock)
    assert host.hear(knock) == [Status.GRANTED]
    assert host.table.holes == {HER_HOLE: 300_000}
    assert host.recorded("gate.failed") == []


# Replay


def test_after_a_boot_nothing_is_heard_that_could_have_been_heard_before_it(host: Host) -> None:
    """A crash of the kernel may lose what was burned last (spa_server/replay.py, rule 4)."""
    alice = host.person("alice")
    host.clock.up_us = 20 * SECOND
    host.begin()
    assert host.hear(host.knock(alice)) == []
    assert host.table.holes == {}
    assert host.recorded("knock.refused") == ["replayed"]
    host.clock.passes(9)  # 29 s after the boot: a request could have been stamped so ahead
    assert host.hear(host.knock(alice)) == []
    host.clock.passes(2)
    assert host.hear(host.knock(alice)) == [Status.GRANTED]


def test_what_an_earlier_run_could_not_record_is_not_heard_again(host: Host) -> None:
    """A recorded knock, sent again after a kill with a full disk."""
    alice = host.person("alice")
    leave_note(host.config.unrecorded, NOW_US)
    host.begin()
    assert host.hear(host.knock(alice, stamp_us=NOW_US)) == []
    assert host.hear(host.knock(alice, stamp_us=NOW_US + 1)) == [Status.GRANTED]


def test_what_an_earlier_run_heard_is_not_heard_again(host: Host, alice: Identity) -> None:
    knock = host.knock(alice)
    host.hear(knock)
    host.begin()
    assert host.hear(knock) == []


def test_where_an_older_copy_of_the_database_was_put_back_nothing_that_may_be_fresh_is_heard(
    host: Host, alice: Identity
) -> None:
    """It does not know what was burned since. Nor does a daemon that begins after this one."""
    older = host.config.path.parent / "older.db"
    host.registry.close()
    with (
        closing(sqlite3.connect(host.config.database)) as now,
        closing(sqlite3.connect(older)) as to,
    ):
        now.backup(to)
    knock = host.knock(alice)
    assert host.hear(knock) == [Status.GRANTED]
    host.guard.stop()
    host.guard.registry.close()
    older.replace(host.config.database)
    for of_it in ("-wal", "-shm"):
        host.config.database.with_name(f"spa.db{of_it}").unlink(missing_ok=True)
    ahead_us = host.clock.now_us + 30 * SECOND
    for _ in range(2):
        host.begin()
        assert host.hear(knock, host.knock(alice, stamp_us=ahead_us)) == []
    host.clock.passes(31)
    assert host.hear(host.knock(alice)) == [Status.GRANTED]


def test_a_clock_set_back_revives_nothing_that_was_forgotten(host: Host, alice: Identity) -> None:
    """Recorded, kept for 40 minutes, and sent when the clock shows that time again."""
    knock = host.knock(alice)
    host.hear(knock)
    for _ in range(8):
        host.clock.passes(300)
        host.wait()
    assert host.guard.snapshot().requests_remembered == 0
    host.clock.is_set(by_s=-2400)
    host.guard.tick()
    assert host.passes(knock)
    assert host.hear(knock) == []
    host.begin()
    assert host.hear(knock) == []


# Whoever may no longer


def test_the_tags_of_a_revoked_key_leave_the_kernel(host: Host, alice: Identity) -> None:
    """Else a thief of the key still wakes the daemon, and its tag still tells that it is good."""
    bob = host.person("bob")
    assert len(host.tags_of(alice)) == 6
    host.revoke("alice")
    host.guard.look_around()
    assert host.tags_of(alice) == set()
    assert not host.passes(host.knock(alice))
    assert len(host.tags_of(bob)) == 6
    assert host.recorded("keys.changed")[-1] == "key.revoked"


def test_a_revoked_key_opens_nothing_though_its_knock_is_on_its_way(
    host: Host, alice: Identity
) -> None:
    knock = host.knock(alice)
    assert host.passes(knock)
    host.revoke("alice")
    assert host.hear(knock) == []
    assert host.table.holes == {}


def test_a_key_that_was_revoked_before_the_start_is_not_heard(host: Host) -> None:
    alice = host.person("alice")
    host.revoke("alice")
    host.begin()
    assert host.tags_of(alice) == set()
    assert host.hear(host.knock(alice)) == []


def test_the_holes_of_a_revoked_key_close(host: Host, alice: Identity) -> None:
    bob = host.person("bob")
    host.hear(host.knock(alice), host.knock(bob, POSTGRES))
    host.revoke("alice")
    host.guard.look_around()
    assert [hole.port for hole in host.table.holes] == [5432]
    assert host.recorded("hole.closed") == ["the key was revoked or has expired"]


def test_the_holes_of_whoever_was_revoked_while_no_daemon_ran_close_at_the_start(
    host: Host, alice: Identity
) -> None:
    host.hear(host.knock(alice))
    host.revoke("alice")
    host.begin()
    assert host.table.holes == {}


def test_the_holes_of_a_role_that_was_taken_close(host: Host, alice: Identity) -> None:
    host.hear(host.knock(alice))
    host.registry.ungrant("alice", ["ops"], now_us=host.clock.now_us, actor="an operator")
    host.guard.look_around()
    assert host.table.holes == {}
    assert host.hear(host.knock(alice)) == [Status.REFUSED]


def test_a_key_that_expires_is_let_go_with_all_that_it_has(host: Host) -> None:
    alice = host.person("alice", expires_at_us=NOW_US + 60 * SECOND)
    host.begin()
    host.hear(host.knock(alice))
    assert host.table.holes == {HER_HOLE: 60_000}
    due_s = host.guard.next_wake_s() - host.clock.monotonic()
    assert due_s <= 60
    host.clock.passes(60)
    host.guard.tick()
    assert host.tags_of(alice) == set()
    assert len(host.guard.keeper.book) == 0
    assert host.hear(host.knock(alice)) == []


def test_a_key_that_is_replaced_ends_when_the_new_one_works(host: Host, alice: Identity) -> None:
    new = host.person("alice", replaces=alice.public.key_id, overlap_us=A_DAY_S * SECOND)
    host.hear(host.knock(alice))
    assert len(host.tags_of(alice)) == 6
    assert host.hear(host.knock(new, POSTGRES)) == [Status.GRANTED]
    assert host.tags_of(alice) == set()
    assert [hole.port for hole in host.table.holes] == [5432]


def test_a_key_that_is_replaced_ends_also_when_the_daemon_began_since(
    host: Host, alice: Identity
) -> None:
    new = host.person("alice", replaces=alice.public.key_id, overlap_us=A_DAY_S * SECOND)
    host.begin()
    assert host.hear(host.knock(new)) == [Status.GRANTED]
    assert host.hear(host.knock(alice)) == []


def test_the_holes_of_a_key_that_is_another_s_by_now_close(host: Host) -> None:
    host.begin()
    made = host.world.enrol()
    at_us = host.clock.now_us
    for name in ("mallory", "alice"):
        token = host.registry.create_invite(
            name, roles=["ops"], expires_at_us=at_us + SECOND, now_us=at_us, actor="root"
        )
        invite = Identity.from_invite(token).public.key_id
        host.registry.redeem(invite, made.public, at_us)
    assert host.hear(host.knock(made)) == [Status.GRANTED]
    host.registry.approve("alice", now_us=at_us, actor="root")
    host.guard.look_around()
    assert host.table.holes == {}
    assert host.recorded("hole.closed") == ["the key is another's by now"]


def test_what_is_over_when_the_daemon_begins_is_not_opened_again(
    host: Host, alice: Identity
) -> None:
    host.hear(host.knock(alice))
    host.table.holes.clear()
    host.table.done.clear()
    host.clock.passes(301)
    host.begin()
    assert "holes" not in host.table.done
    assert len(host.recorded("hole.expired")) == 1


def test_what_was_granted_before_a_reboot_is_over(
    host: Host, alice: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock by which it would end began anew."""
    host.hear(host.knock(alice))
    host.table.flush()
    monkeypatch.setattr(clock, "boot_id", lambda: "the next boot")
    host.clock.up_us = 60 * SECOND
    host.begin()
    assert host.table.holes == {}
    with closing(sqlite3.connect(host.config.database)) as connection:
        ended = connection.execute("select ended_why from hole_grant").fetchall()
    assert ended == [("reboot",)]


def test_what_is_over_is_entered_when_it_is(host: Host, alice: Identity) -> None:
    """Then the sessions end that may not outlive it."""
    host.hear(host.knock(alice))
    assert host.guard.next_wake_s() <= host.clock.monotonic() + 300
    host.clock.passes(300)
    host.guard.tick()
    assert len(host.recorded("hole.expired")) == 1


def test_a_policy_on_trial_gives_nothing_once_it_was_taken_back(
    host: Host, alice: Identity
) -> None:
    host.policy.write_text(NARROWER)
    host.guard.reload(OPERATOR)
    host.on_trial(before=None)
    host.policy.write_text(POLICY)
    host.guard.reload(OPERATOR)
    assert host.hear(host.knock(alice, SSH, POSTGRES)) == [Status.GRANTED]
    assert len(host.table.holes) == 2
    host.guard.take_back(OPERATOR)
    assert [hole.port for hole in host.table.holes] == [5432]
    assert host.hear(host.knock(alice)) == [Status.REFUSED]
    assert (host.config.database.parent / "policy.good.toml").read_text() == NARROWER
    assert "nobody confirmed it" in str(host.guard.rulebook.problem)


def test_a_host_that_a_trial_has_closed_is_as_open_again_as_it_was(
    host: Host, alice: Identity
) -> None:
    """An operator who is locked out by it cannot confirm it."""
    assert host.tags_of(alice)
    host.on_trial(before=None)
    path = host.config.path
    path.write_text('mode = "observe"\n' + SERVER)
    host.guard.reload(OPERATOR, gate_too=True)
    host.guard.confirm(OPERATOR)
    assert host.table.plan.observed.everything
    path.write_text(SERVER)
    host.guard.reload(OPERATOR, gate_too=True)
    assert not host.table.plan.observed.everything
    host.guard.take_back(OPERATOR)
    assert host.table.plan.observed.everything


def test_a_daemon_that_began_during_a_trial_goes_back_to_the_gate_before_it(
    host: Host, alice: Identity
) -> None:
    host.on_trial(before="the gate as nft listed it")
    host.begin()
    host.table.done.clear()
    host.guard.take_back(OPERATOR)
    assert host.table.restored == "the gate as nft listed it"
    assert host.table.order == ["the gate as it was", "tags"]
    assert len(host.tags_of(alice)) == 6


def test_with_a_policy_that_is_not_sound_at_the_start_the_last_good_one_counts(
    host: Host, alice: Identity
) -> None:
    host.policy.write_text("[roles")
    host.begin()
    assert len(host.recorded("policy.refused")) == 1
    assert host.hear(host.knock(alice)) == [Status.GRANTED]


def test_a_narrower_policy_ends_what_it_would_not_give(host: Host, alice: Identity) -> None:
    host.hear(host.knock(alice, SSH, POSTGRES))
    host.policy.write_text(NARROWER)
    host.guard.reload(OPERATOR)
    assert [hole.port for hole in host.table.holes] == [5432]
    assert host.recorded("hole.closed") == ["the policy or the roles no longer allow it"]
    assert host.hear(host.knock(alice, SSH)) == [Status.REFUSED]


def test_what_is_no_longer_always_open_is_closed_by_the_reload(host: Host, alice: Identity) -> None:
    assert host.tags_of(alice)
    opened = POLICY + '[[always_open]]\nservices = ["ssh"]\nfrom = "anywhere"\n'
    for text, count in ((opened, 2), (POLICY, 0)):
        host.policy.write_text(text)
        host.guard.reload(OPERATOR)
        assert len(host.table.plan.always_open) == count
    assert len(host.recorded("policy.loaded")) == 2


def test_a_policy_that_is_not_sound_changes_nothing(host: Host, alice: Identity) -> None:
    host.hear(host.knock(alice))
    host.policy.write_text("[roles")
    with pytest.raises(FileProblem):
        host.guard.reload(OPERATOR)
    assert list(host.table.holes) == [HER_HOLE]
    assert host.hear(host.knock(alice)) == [Status.GRANTED]
    assert len(host.recorded("policy.refused")) == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_who_asks_for_more_than_the_limit_does_not_get_it(
    host: Host, alice: Identity, *, at_once: bool
) -> None:
    """Neither one knock after the other, nor in one batch with others', nor with another key."""
    host.policy.write_text(POLICY + "[limits]\nmax_open = 1\n")
    host.guard.reload(OPERATOR)
    her_other = host.person("alice")
    knocks = [host.knock(alice), host.knock(her_other, POSTGRES)]
    answers = host.hear(*knocks) if at_once else [host.hear(each)[0] for each in knocks]
    assert answers == [Status.GRANTED, Status.REFUSED]
    assert list(host.table.holes) == [HER_HOLE]


def test_who_knocks_too_often_is_refused(host: Host, alice: Identity) -> None:
    host.policy.write_text(POLICY + "[limits]\nknocks_per_minute = 2\n")
    host.guard.reload(OPERATOR)
    answers = host.hear(*(host.knock(alice) for _ in range(3)))
    assert answers == [Status.GRANTED, Status.GRANTED, Status.REFUSED]
    host.clock.passes(61)
    assert host.hear(host.knock(alice)) == [Status.GRANTED]


def test_what_the_kernel_had_no_room_for_is_in_the_record(host: Host, alice: Identity) -> None:
    """A flood that keeps knocks from being heard does not go unnoticed."""
    knock = host.knock(alice)
    host.guard.hear(lambda _now_us: ([knock], 3))
    assert len(host.recorded("records.lost")) == 1


def test_the_record_tells_beginning_and_end_and_what_was_only_counted(
    host: Host, alice: Identity
) -> None:
    tag = host.knock(alice).payload[:8]
    junk = [tag + secrets.token_bytes(232) for _ in range(5)]
    host.hear(*(Datagram(each, CLIENT, 1, HOST, 62201, "udp", NOW_US) for each in junk))
    host.guard.stop()
    with closing(sqlite3.connect(beside(host.config.database))) as denials:
        counts = denials.execute("select reason, count from denial").fetchall()
    assert counts == [("not-authentic", 1), ("not-authentic", 4)]
    assert len(host.recorded("daemon.started")) == len(host.recorded("daemon.stopped")) == 1


# What cannot be read or told


def test_while_the_registry_cannot_be_read_nothing_is_granted(host: Host, alice: Identity) -> None:
    """Who knows whether it says that her key is revoked?"""
    bob = host.person("bob")
    host.registry.revoke("alice", now_us=host.clock.now_us, actor="an operator")
    with closing(sqlite3.connect(host.config.database)) as other:
        other.execute("alter table registry_change rename to away")
        assert host.hear(host.knock(alice)) == [Status.UNAVAILABLE]
        assert host.table.holes == {}
        other.execute("alter table away rename to registry_change")
    assert host.hear(host.knock(alice)) == []
    assert host.tags_of(alice) == set()
    assert host.hear(host.knock(bob)) == [Status.GRANTED]


def test_what_could_not_be_read_once_is_read_again(
    host: Host, alice: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the file does not change once more."""

    def is_locked(_since: int) -> None:
        raise sqlite3.OperationalError("database is locked")

    host.revoke("alice")
    with monkeypatch.context() as context:
        context.setattr(host.guard.registry, "changes_since", is_locked)
        host.guard.look_around()
    host.guard.tick()
    assert host.tags_of(alice) == set()


def test_a_revocation_that_the_kernel_could_not_be_told_is_told_later(
    host: Host, alice: Identity
) -> None:
    host.hear(host.knock(alice))
    host.revoke("alice")
    host.table.fails = True
    host.table.applies = False
    host.guard.look_around()
    assert host.guard.snapshot().gate_in_doubt
    host.table.applies = True
    assert host.guard.next_wake_s() <= host.clock.monotonic()
    host.guard.tick()
    assert not host.guard.snapshot().gate_in_doubt
    assert host.table.holes == {}
    assert host.tags_of(alice) == set()


# The gate comes first


@pytest.mark.parametrize("is_loaded", [True, False])
def test_at_the_start_the_gate_stands_before_any_hole_or_tag(
    host: Host, alice: Identity, *, is_loaded: bool
) -> None:
    """A table that stands may be one that somebody has emptied of its rules."""
    host.hear(host.knock(alice))
    host.table.holes.clear()
    if not is_loaded:
        host.table.flush()
    host.table.done.clear()
    host.begin()
    assert host.table.order == ["the gate", "holes", "tags"]
    assert list(host.table.holes) == [HER_HOLE]
    assert host.recorded("gate.failed") == []


def test_a_gate_that_was_taken_away_is_put_back_before_those_who_may_come_in(
    host: Host, alice: Identity
) -> None:
    host.hear(host.knock(alice))
    host.clock.passes(100)
    host.table.flush()
    host.table.done.clear()
    host.guard.ruleset_changed()
    assert host.table.order == ["the gate", "holes", "tags"]
    assert host.table.holes == {HER_HOLE: 200_000}
    assert len(host.tags_of(alice)) == 6
    assert host.recorded("gate.restored")[-1] == "somebody changed the ruleset"


def test_a_hole_that_nobody_granted_is_closed(host: Host, alice: Identity) -> None:
    host.hear(host.knock(alice))
    by_hand = Hole(ip_address("203.0.113.66"), HOST, SSH.protocol, 22)
    host.table.holes[by_hand] = 10**9
    host.guard.ruleset_changed()
    assert list(host.table.holes) == [HER_HOLE]


def test_a_gate_that_is_away_without_a_word_is_put_back(host: Host, alice: Identity) -> None:
    host.table.flush()
    host.guard.drifted(Drift(host.guard.policy, None, []))
    assert host.guard.snapshot().gate_in_doubt
    host.guard.tick()
    assert host.table.is_loaded()
    assert len(host.tags_of(alice)) == 6


def test_what_came_in_while_the_gate_was_away_goes_and_nothing_else(
    host: Host, alice: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what was there before, nor what a hole explains."""
    before, hers, his = (
        Session(SSH.protocol, 2, bytes(48), HOST, 22, ip_address(remote), port, 2)
        for remote, port in (("192.0.2.1", 1), (str(CLIENT), 2), ("203.0.113.66", 3))
    )
    served, gone = [before], list[Session]()
    monkeypatch.setattr("spa_server.guard.sessions.served", lambda: served)
    monkeypatch.setattr(
        "spa_server.guard.sessions.destroy", lambda unwanted: gone.extend(unwanted) or gone
    )
    host.begin()
    host.hear(host.knock(alice))
    host.table.flush()
    served += [hers, his]
    host.table.applies = False
    host.guard.ruleset_changed()
    assert gone == []  # the gate is away still: who knows who comes yet
    host.table.applies = True
    host.guard.tick()
    assert gone == [his]
    assert len(host.recorded("connection.severed")) == 1
    served.remove(his)
    served.append(replace(his, remote_port=4))
    host.guard.ruleset_changed()
    assert [session.remote_port for session in gone] == [3, 4]


def test_an_interface_that_leads_outside_is_judged_as_soon_as_it_does(
    host: Host, alice: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host.tags_of(alice)
    host.table.done.clear()
    host.guard.routes_changed()
    assert host.table.done == []
    outside = ("eth0", "wwan0")
    monkeypatch.setattr("spa_server.gatehouse.outer_interfaces", lambda: outside)
    host.guard.routes_changed()
    assert host.table.order == ["the gate", "tags"]


def test_a_capture_at_an_interface_hears_what_is_for_this_host_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also sees what is on its way to others."""
    own = {HOST}
    monkeypatch.setattr("spa_server.guard.is_local_unicast", own.__contains__)
    with host.config.path.open("a") as file:
        file.write('capture = "interface:eth0"\n')
    alice = host.person("alice")
    host.config = load_config(host.config.path)
    host.begin()
    assert host.hear(host.knock(alice)) == [Status.GRANTED]
    own.clear()
    host.guard.routes_changed()
    assert host.hear(host.knock(alice)) == []


def test_a_gate_that_cannot_be_put_in_force_is_said_to_who_wanted_it(
    host: Host, alice: Identity
) -> None:
    assert host.tags_of(alice)
    host.table.applies = False
    with pytest.raises(FirewallError):
        host.guard.reload(OPERATOR, gate_too=True)


def test_without_a_gate_nothing_is_granted(host: Host, alice: Identity) -> None:
    host.table.flush()
    host.table.applies = False
    assert host.hear(host.knock(alice)) == [Status.UNAVAILABLE]
    assert len(host.guard.keeper.book) == 0


# Tags and clocks


def test_a_tag_is_admitted_for_as_long_as_its_epoch_is_heard(host: Host, alice: Identity) -> None:
    """Of an epoch of 300 s and the two around it, and of the next that is laid beforehand."""
    epoch = NOW_US // SECOND // EPOCH_S
    pair = alice.pair_with(host.world.server.public)
    left_ms = (epoch + 1) * EPOCH_S * 1000 - NOW_US // 1000
    for ahead in range(-2, 4):
        assert host.table.tags[pair.tag_at(epoch + ahead)] == left_ms + (ahead + 2) * 300_000


def test_when_the_clock_was_set_the_tags_are_those_of_the_new_time(
    host: Host, alice: Identity
) -> None:
    before = host.tags_of(alice)
    host.clock.is_set(by_s=A_DAY_S)
    host.guard.look_around()
    assert len(host.tags_of(alice)) == 6
    assert not before & host.table.tags.keys()
    assert len(host.recorded("clock.set")) == 1
    assert host.hear(host.knock(alice)) == [Status.GRANTED]


def test_when_the_clock_was_set_a_little_the_same_tags_last_by_the_new_time(
    host: Host, alice: Identity
) -> None:
    """And where the kernel could not be told to let them go, nobody takes them away later."""
    host.person("bob")
    host.guard.look_around()
    before = dict(host.table.tags)
    host.table.fails = True
    host.clock.is_set(by_s=10)
    host.guard.look_around()
    host.table.fails = False
    host.guard.tick()
    assert host.table.tags == {tag: left_ms - 10_000 for tag, left_ms in before.items()}
    host.revoke("bob")
    host.guard.look_around()
    assert len(host.tags_of(alice)) == 6


def test_what_was_laid_anew_is_not_taken_away_with_what_could_not_be_let_go(
    host: Host, alice: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_values: Iterable[bytes]) -> None:
        raise FirewallError("too busy")

    host.person("bob")
    host.guard.look_around()
    host.clock.is_set(by_s=10)
    with monkeypatch.context() as context:
        context.setattr(host.table, "withdraw", cannot)
        host.guard.look_around()
    host.revoke("bob")
    host.guard.look_around()
    assert len(host.tags_of(alice)) == len(host.table.tags) == 6


@pytest.mark.parametrize("some_are_laid", [False, True])
def test_a_clock_that_is_set_while_tags_are_laid_has_them_laid_anew(
    host: Host, *, some_are_laid: bool
) -> None:
    """Those of the old time would last too long, or name nobody."""
    alice = host.person("alice")
    host.begin()
    host.clock.passes(6000)
    host.table.done.clear()
    laying = host.guard.load_tags()
    next(laying)
    while some_are_laid and not host.table.done:
        next(laying)
    host.clock.is_set(by_s=-A_DAY_S)
    host.table.tags.clear()
    for _ in laying:
        assert host.table.tags == {}
    assert not host.guard.needs_tags()  # not before somebody has looked at the clock
    host.wait()
    assert len(host.tags_of(alice)) == len(host.table.tags) == 6
    assert host.hear(host.knock(alice)) == [Status.GRANTED]


def test_the_tags_of_each_epoch_are_there_before_it_begins(host: Host, alice: Identity) -> None:
    for _ in range(4):
        host.clock.passes(300)
        host.wait()
        assert host.passes(host.knock(alice))
        assert host.hear(host.knock(alice)) == [Status.GRANTED]


@pytest.mark.parametrize(("number", "in_doubt"), [(errno.ENFILE, False), (errno.EPERM, True)])
def test_a_set_that_a_flood_has_filled_is_no_reason_to_load_the_gate_again(
    host: Host, alice: Identity, number: int, *, in_doubt: bool
) -> None:
    tag = host.knock(alice).payload[:8]
    junk = [tag + secrets.token_bytes(232) for _ in range(40)]
    host.table.number = number
    host.hear(*(Datagram(each, CLIENT, 1, HOST, 62201, "udp", NOW_US) for each in junk))
    assert host.guard.snapshot().gate_in_doubt is in_doubt


def test_a_clock_that_was_wrong_has_let_nobody_go_for_good(host: Host) -> None:
    alice = host.person("alice", expires_at_us=NOW_US + A_DAY_S * SECOND)
    host.begin()
    host.clock.is_set(by_s=2 * A_DAY_S)
    host.guard.tick()
    assert host.hear(host.knock(alice)) == []
    host.clock.is_set(by_s=-2 * A_DAY_S)
    host.guard.tick()
    assert len(host.tags_of(alice)) == 6
    assert host.hear(host.knock(alice, stamp_us=host.clock.now_us)) == [Status.GRANTED]


def test_whose_tag_is_flooded_has_others_and_the_flooded_one_is_held_back(
    host: Host, alice: Identity
) -> None:
    tag = host.knock(alice).payload[:8]
    junk = [tag + secrets.token_bytes(232) for _ in range(40)]
    spares = len(host.table.tags)
    host.hear(*(Datagram(each, CLIENT, 1, HOST, 62201, "udp", NOW_US) for each in junk))
    assert list(host.table.held_back) == [tag]
    assert len(host.table.tags) > spares
    assert len(host.recorded("tag.flooded")) == 1
    host.revoke("alice")
    host.guard.look_around()
    assert host.table.tags == {}
