"""An invite becomes a key that knocks: by the programs, over the wire, with what goes wrong there.

What the client says is held against what the server has enrolled and recorded.
"""

import itertools
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from integration.lab import Host, Lab, Reach, Running, in_namespace, wait_until
from integration.site import PROGRAMS, RecordSince, Site
from keys import identity, poke
from keys.enrolled import LATE_US
from keys.identity import Identity
from keys.registry import opened
from spa_client import carriers
from spa_client.carriers import Answer
from spa_client.compose import Wish
from spa_client.join import JoinComposer
from spa_client.resolve import Target
from spa_protocol.keytext import Invite, ServerLine
from spa_protocol.layout import DEFAULT_PORT
from spa_protocol.publickey import PublicKey
from spa_protocol.reason import Status

AT_ONCE = 1000
AT_ONCE_WITHIN_S = 60.0
HASTE = ("--timeout", "1")
KNOCKS, REPLIES = f"dport {DEFAULT_PORT}", f"sport {DEFAULT_PORT}"


@dataclass
class Newcomer:
    """Somebody with an empty home directory."""

    home: Path

    def __post_init__(self) -> None:
        self.home.mkdir(exist_ok=True)
        self.env = {"HOME": str(self.home), "XDG_CONFIG_HOME": ""}

    def client(self, at: Host, *arguments: str, text: str | None = None) -> CompletedProcess[str]:
        argv = [PROGRAMS / "spa-client", *arguments]
        return at.run(argv, env=self.env, text=text, check=False)

    def join(self, at: Host, line: str, *more: str) -> CompletedProcess[str]:
        """Joins by a line from stdin, and calls the server `site`."""
        options = ("--name", "site", "--no-passphrase", *more)
        return self.client(at, "join", "-", *options, text=line + "\n")

    def start_to_join(self, at: Host, line: str) -> Running:
        argv = [PROGRAMS / "spa-client", "join", line, "--no-passphrase", "--name", "site"]
        return at.start(argv, env=self.env)

    def keys(self) -> list[str]:
        """The ids of the keys in the directory."""
        directory = self.home / ".config" / "spa" / "keys"
        files = directory.glob("*.key") if directory.exists() else ()
        return [identity.load_public(path)[0].key_id for path in files]


@dataclass
class Scene:
    """A guarded server, and hosts beside it."""

    lab: Lab
    site: Site
    client: Host
    other: Host

    def newcomer(self) -> Newcomer:
        return Newcomer(self.lab.new_file("home"))

    def invite(self, name: str, *options: str) -> str:
        """The line that an operator hands over."""
        host = str(self.site.host.v4)
        return self.site.keys(
            "invite", name, "--role", "ops", "--host", host, *options
        ).stdout.strip()

    def site_invite(self, token: bytes) -> str:
        """The line of a token that the registry made."""
        line = ServerLine.parse(self.site.line)
        return Invite(token, line.public, line.endpoint).reveal()

    def enrolled(self, name: str) -> list[dict[str, Any]]:
        return list(json.loads(self.site.keys("list", "--json", "--identity", name).stdout))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, other = map(lab.host, ("server", "client", "other"))
        server.serve(22)
        site = Site(lab, server)
        site.apply_gate()
        site.start()
        yield Scene(lab, site, client, other)


@pytest.fixture
def record(scene: Scene) -> RecordSince:
    """What is recorded during the test."""
    return scene.site.record_from_now()


_names = (f"person{number}" for number in itertools.count())


@pytest.fixture
def name() -> str:
    """An identity that nobody has had before."""
    return next(_names)


@contextmanager
def losing(at: Host, what: str) -> Iterator[None]:
    """Drops packets that arrive at a host, before anything else sees them: by an nft rule."""
    hook = "type filter hook prerouting priority -400;"
    at.run(["nft", f"table inet lossy {{ chain lose {{ {hook} udp {what} drop; }}; }}"])
    try:
        yield
    finally:
        at.run(["nft", "delete table inet lossy"])


def test_from_the_invite_to_an_open_port(scene: Scene, name: str, record: RecordSince) -> None:
    newcomer = scene.newcomer()
    line = scene.invite(name)
    assert scene.client.reach_tcp(scene.site.host.v4, 22) is Reach.SILENT
    joined = newcomer.join(scene.client, line)
    assert joined.returncode == 0, joined
    assert f"joined; the server says: welcome, {name}" in joined.stdout
    assert "the key works" in joined.stdout
    knocked = newcomer.client(scene.client, "knock", "site", "tcp/22")
    assert knocked.returncode == 0, knocked
    assert scene.client.reach_tcp(scene.site.host.v4, 22) is Reach.OPEN
    (key,) = scene.enrolled(name)
    assert [key["key"]] == newcomer.keys()
    assert key["roles"] == ["ops"]
    told = record.line("join.accepted", identity=name)
    assert (told["key_id"], told["source"]) == (key["key"], str(scene.client.v4))


def test_it_proves_itself_by_a_knock_where_one_is_asked_for(scene: Scene, name: str) -> None:
    joined = scene.newcomer().join(scene.client, scene.invite(name), "--access", "tcp/22")
    assert joined.returncode == 0, joined
    assert "tcp/22 open for" in joined.stdout
    refused = scene.newcomer().join(scene.client, scene.invite(name), "--access", "tcp/5432")
    assert refused.returncode == 1
    assert "joined, but not all that was asked for is allowed yet" in refused.stderr


def test_a_role_that_the_policy_does_not_have_is_told(scene: Scene, name: str) -> None:
    host = str(scene.site.host.v4)
    line = scene.site.keys("invite", name, "--host", host).stdout.strip()
    joined = scene.newcomer().join(scene.client, line)
    assert joined.returncode == 0, joined
    assert "you have no role yet" in joined.stdout


@pytest.mark.parametrize("family", [4, 6])
def test_over_both_families(scene: Scene, name: str, family: int) -> None:
    server = scene.site.host
    host = str(server.v4 if family == 4 else server.v6)
    line = scene.invite(name, "--host", f"[{host}]:62201" if family == 6 else host)
    joined = scene.newcomer().join(scene.client, line)
    assert joined.returncode == 0, joined


def test_an_answer_that_is_lost(scene: Scene, name: str, record: RecordSince) -> None:
    """The first reply alone is lost: the same run asks again, and is answered again."""
    newcomer = scene.newcomer()
    with losing(scene.client, f"{REPLIES} quota until 300 bytes"):
        joined = newcomer.join(scene.client, scene.invite(name))
    assert joined.returncode == 0, joined
    assert [key["key"] for key in scene.enrolled(name)] == newcomer.keys()
    wait_until(lambda: len(record.lines("join.accepted", identity=name)) >= 2)
    assert {told["key_id"] for told in record.lines("join.accepted", identity=name)} == set(
        newcomer.keys()
    )


def test_all_answers_are_lost(scene: Scene, name: str) -> None:
    """The same line, given again, means the same key."""
    newcomer, line = scene.newcomer(), scene.invite(name)
    with losing(scene.client, REPLIES):
        lost = newcomer.join(scene.client, line, *HASTE)
    assert lost.returncode == 3, lost
    assert "run this again, which is safe" in lost.stderr
    kept = newcomer.keys()
    assert [key["key"] for key in scene.enrolled(name)] == kept
    joined = newcomer.join(scene.client, line)
    assert joined.returncode == 0, joined
    assert newcomer.keys() == kept
    assert len(scene.enrolled(name)) == 1


def test_a_third_of_all_packets_is_lost(scene: Scene, name: str) -> None:
    third = "numgen inc mod 3 == 0"
    there = losing(scene.site.host, f"{KNOCKS} {third}")
    with there, losing(scene.other, f"{REPLIES} {third}"):
        for _ in range(5):
            newcomer = scene.newcomer()
            joined = newcomer.join(scene.other, scene.invite(name), "--timeout", "20")
            assert joined.returncode == 0, joined
    assert len(scene.enrolled(name)) == 5


def test_another_key_raises_an_alarm(scene: Scene, name: str, record: RecordSince) -> None:
    line, thief, owner = scene.invite(name), scene.newcomer(), scene.newcomer()
    assert thief.join(scene.other, line).returncode == 0
    refused = owner.join(scene.client, line)
    assert refused.returncode == 1
    assert "refused: the invite was used already" in refused.stderr
    assert owner.keys() == []
    (stolen,) = thief.keys()
    assert [key["key"] for key in scene.enrolled(name)] == [stolen]
    alarm = record.line("invite.alarm", identity=name)
    assert alarm["source"] == str(scene.client.v4)
    assert alarm["key_id"] not in (None, stolen)
    assert stolen in alarm["reason"]
    assert thief.join(scene.other, line).returncode == 0
    assert len(record.lines("invite.alarm", identity=name)) == 1


def test_of_two_that_race_exactly_one_wins(scene: Scene, record: RecordSince) -> None:
    for _ in range(5):
        name = next(_names)
        line, racers = scene.invite(name), [scene.newcomer(), scene.newcomer()]
        running = [
            racer.start_to_join(at, line)
            for racer, at in zip(racers, (scene.client, scene.other), strict=True)
        ]
        codes = [each.process.wait(20) for each in running]
        assert sorted(codes) == [0, 1], [each.output for each in running]
        (won,) = racers[codes.index(0)].keys()
        assert racers[codes.index(1)].keys() == []
        assert [key["key"] for key in scene.enrolled(name)] == [won]
        assert won in record.line("invite.alarm", identity=name)["reason"]


def test_expired(scene: Scene, name: str, record: RecordSince) -> None:
    line, newcomer = scene.invite(name, "--expires", "1s"), scene.newcomer()
    time.sleep(1.2)
    refused = newcomer.join(scene.client, line)
    assert refused.returncode == 1, refused
    assert "refused: the invite has expired" in refused.stderr
    assert newcomer.keys() == []
    assert record.line("join.refused", identity=name)["reason"] == "the invite has expired"
    assert scene.site.is_up()


def test_revoked(scene: Scene, name: str) -> None:
    line, newcomer = scene.invite(name), scene.newcomer()
    scene.site.keys("revoke", Identity.from_invite(Invite.parse(line).token).public.key_id)
    refused = newcomer.join(scene.client, line)
    assert refused.returncode == 1, refused
    assert "refused: the invite was revoked" in refused.stderr
    assert scene.enrolled(name) == []


def test_an_invite_of_long_ago_is_a_stranger(scene: Scene, name: str) -> None:
    """And so is one that nobody made: neither gets a byte."""
    now_us = time.time_ns() // 1000
    with opened(scene.site.database) as registry:
        token = registry.create_invite(
            name, expires_at_us=now_us - LATE_US, now_us=now_us - LATE_US - 1, actor="root"
        )
    poke.poke(scene.site.directory / "control.sock")
    made = Invite.parse(scene.site_invite(token))
    for invite in (made, Invite(secrets.token_bytes(32), made.server, made.endpoint)):
        newcomer = scene.newcomer()
        silent = newcomer.join(scene.client, invite.reveal(), *HASTE)
        assert silent.returncode == 3, silent
        assert "no answer from site" in silent.stderr
        assert len(newcomer.keys()) == 1


def test_altered(scene: Scene, name: str) -> None:
    newcomer, line = scene.newcomer(), scene.invite(name)
    torn = newcomer.join(scene.client, line[:-3])
    assert torn.returncode == 2
    assert "the invite is not whole" in torn.stderr
    assert newcomer.keys() == []
    assert newcomer.join(scene.client, line).returncode == 0


def test_approval(scene: Scene, name: str, record: RecordSince) -> None:
    line, newcomer = scene.invite(name, "--approve"), scene.newcomer()
    waiting = newcomer.join(scene.client, line)
    assert waiting.returncode == 1, waiting
    (key_id,) = newcomer.keys()
    assert f"waits for approval, key id {key_id}" in waiting.stderr
    assert record.line("join.pending", identity=name)["key_id"] == key_id
    (pending,) = json.loads(scene.site.keys("pending", "--json").stdout)
    assert (pending["identity"], pending["key"]) == (name, key_id)
    knock = ("knock", "site", "tcp/22")
    assert newcomer.client(scene.client, *knock, *HASTE).returncode == 3
    stranger = scene.newcomer()
    assert stranger.join(scene.other, line).returncode == 1
    assert key_id in record.line("invite.alarm", identity=name)["reason"]
    scene.site.keys("approve", name)
    assert newcomer.client(scene.client, *knock).returncode == 0
    assert newcomer.join(scene.client, line).returncode == 0
    assert [key["key"] for key in scene.enrolled(name)] == [key_id]


def test_rejection(scene: Scene, name: str) -> None:
    line, newcomer = scene.invite(name, "--approve"), scene.newcomer()
    assert newcomer.join(scene.client, line).returncode == 1
    scene.site.keys("reject", name)
    refused = newcomer.join(scene.client, line)
    assert refused.returncode == 1
    assert "refused: an operator rejected the key" in refused.stderr
    assert newcomer.keys() == []


@dataclass
class Joiner:
    """One of many that join at once, in a thread of its own."""

    name: str
    invite: Invite
    public: PublicKey
    answers: list[Answer]

    def run(self, at: Host, target: Target, gate: threading.Barrier) -> None:
        own = Identity.from_invite(self.invite.token)
        pair = own.pair_with(self.invite.server)
        composer = JoinComposer(own, self.invite.server, pair, Wish(()), brings=self.public)
        with in_namespace(at.namespace):
            gate.wait()
            results = carriers.exchange([target], composer, timeout_s=AT_ONCE_WITHIN_S)
            self.answers += [result for result in results if isinstance(result, Answer)]


def test_many_at_once(scene: Scene) -> None:
    """None lost, none doubled: as many keys as people, and each the one that its owner made."""
    now_us = time.time_ns() // 1000
    names = [f"crowd{number}" for number in range(AT_ONCE)]
    joiners = []
    with opened(scene.site.database) as registry, registry.at_once():
        for name in names:
            token = registry.create_invite(
                name, roles=["ops"], expires_at_us=now_us + 10**9, now_us=now_us, actor="root"
            )
            invite = Invite.parse(scene.site_invite(token))
            joiners.append(Joiner(name, invite, identity.generate().public, []))
    poke.poke(scene.site.directory / "control.sock", timeout_s=30)
    target, gate = Target(scene.site.host.v4, DEFAULT_PORT), threading.Barrier(AT_ONCE)
    threads = [
        threading.Thread(target=joiner.run, args=(scene.client, target, gate)) for joiner in joiners
    ]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{AT_ONCE} joins in {time.monotonic() - begun:.1f} s")
    assert Counter(a.reply.status for j in joiners for a in j.answers) == {Status.JOINED: AT_ONCE}
    with opened(scene.site.database) as registry:
        found = registry.keys()
        invites = {invite.identity: invite.redeemed_by for invite in registry.invites()}
    enrolled = [(key.identity, key.key_id) for key in found if key.identity in set(names)]
    assert sorted(enrolled) == sorted((j.name, j.public.key_id) for j in joiners)
    assert all(invites[j.name] == j.public.key_id for j in joiners)
    assert scene.site.is_up()
