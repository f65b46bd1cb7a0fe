"""Invites: the registry's rules for them, the line that is handed over, and its commands."""

import base64
import builtins
import json
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import identity, invite, keyfile, qr, schema, serverkey
from keys.enrolled import LATE_US, State
from keys.identity import Identity
from keys.invite import WrittenHost
from keys.registry import (
    EnrolledInvite,
    JoinRefusal,
    Redeemed,
    Refused,
    Registry,
    RegistryError,
    opened,
)
from keys.trouble import ExitCode, Trouble
from spa_protocol import seal
from spa_protocol.keytext import Endpoint, Invite
from spa_protocol.publickey import PublicKey, Sender
from tests.test_spa_keys import Ended, Host

T0 = 1_800_000_000_000_000
DAY_US = 86_400_000_000


def new_key() -> PublicKey:
    return identity.generate().public


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry" / "spa.db"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    with opened(path, create=True) as registry:
        yield registry


def make(registry: Registry, name: str = "bob", **more: object) -> str:
    """The id of a new invite's key."""
    values = {"roles": ["ops"], "expires_at_us": T0 + DAY_US, "now_us": T0, "actor": "root"}
    return Identity.from_invite(registry.create_invite(name, **(values | more))).public.key_id


def found(registry: Registry, invite_id: str) -> EnrolledInvite:
    kept = registry.invite(invite_id)
    assert kept is not None
    return kept


def record(registry: Registry, since: int) -> list[tuple[str, str, str | None, str]]:
    return [(c.action, c.identity, c.key_id, c.detail) for c in registry.changes_since(since)]


class TestApproval:
    def test_a_key_waits_and_may_do_nothing(self, registry: Registry) -> None:
        invite_id, public = make(registry, needs_approval=True), new_key()
        before = registry.last_change_id()
        joined = registry.redeem(invite_id, public, T0 + 1)
        assert joined == Redeemed(public.key_id, "bob", frozenset(), pending=True)
        (key,) = registry.keys_of("bob")
        assert key.state(T0 + 1) is State.PENDING
        assert (key.is_active(T0 + 1), key.is_heard(T0 + 1)) == (False, False)
        assert registry.roles_of("bob") == frozenset()
        assert record(registry, before) == [
            ("key.asked", "bob", public.key_id, "never expires"),
            ("invite.redeemed", "bob", invite_id, public.key_id),
        ]
        ((waiting),) = registry.waiting()
        assert (waiting.key, waiting.invite) == (key, found(registry, invite_id))

    def test_it_gets_no_roles_for_the_keys_that_are_there(self, registry: Registry) -> None:
        registry.enroll("bob", new_key(), roles=["dba"], now_us=T0, actor="root")
        registry.redeem(make(registry, needs_approval=True), new_key(), T0)
        assert registry.roles_of("bob") == {"dba"}

    def test_approving(self, registry: Registry) -> None:
        invite_id, public = make(registry, needs_approval=True), new_key()
        registry.redeem(invite_id, public, T0 + 1)
        before = registry.last_change_id()
        registry.approve("bob", expires_at_us=T0 + 9 * DAY_US, now_us=T0 + 2, actor="carol")
        (key,) = registry.keys_of("bob")
        assert key.is_active(T0 + 2)
        assert (key.enrolled_at_us, key.expires_at_us) == (T0 + 2, T0 + 9 * DAY_US)
        assert record(registry, before) == [
            ("key.approved", "bob", public.key_id, "expires 2027-01-24T08:00:00Z"),
            ("role.granted", "bob", None, "ops"),
        ]
        assert registry.changes_since(before)[0].actor == "carol"
        again = registry.redeem(invite_id, public, T0 + 3)
        assert again == Redeemed(public.key_id, "bob", frozenset({"ops"}), again=True)
        assert registry.waiting() == []
        with pytest.raises(Refused, match="nothing called 'bob' waits for approval"):
            registry.approve("bob", now_us=T0, actor="root")

    def test_asking_again_while_it_waits(self, registry: Registry) -> None:
        invite_id, public = make(registry, needs_approval=True), new_key()
        registry.redeem(invite_id, public, T0)
        before = registry.last_change_id()
        again = registry.redeem(invite_id, public, T0 + 1)
        assert again == Redeemed(public.key_id, "bob", frozenset(), again=True, pending=True)
        assert registry.redeem(invite_id, new_key(), T0 + 1) is JoinRefusal.USED
        assert registry.last_change_id() == before

    @pytest.mark.parametrize("how", ["reject", "revoke"])
    def test_turning_it_away(self, registry: Registry, how: str) -> None:
        invite_id, public = make(registry, needs_approval=True), new_key()
        registry.redeem(invite_id, public, T0)
        before = registry.last_change_id()
        getattr(registry, how)(public.key_id, now_us=T0 + 1, actor="root")
        action = {"reject": "key.rejected", "revoke": "key.revoked"}[how]
        assert record(registry, before) == [(action, "bob", public.key_id, "")]
        assert registry.redeem(invite_id, public, T0 + 2) is JoinRefusal.REJECTED
        assert registry.redeem(invite_id, new_key(), T0 + 2) is JoinRefusal.USED
        with pytest.raises(Refused, match="nothing called"):
            registry.approve(public.key_id, now_us=T0, actor="root")
        with pytest.raises(Refused, match="does not come back"):
            registry.enroll("bob", public, now_us=T0, actor="root")

    def test_which_of_several(self, registry: Registry) -> None:
        first, second = new_key(), new_key()
        for public in (first, second):
            registry.redeem(make(registry, needs_approval=True), public, T0)
        with pytest.raises(Refused, match=r"2 keys of 'bob' wait for approval: .*; name one"):
            registry.approve("bob", now_us=T0, actor="root")
        assert len(registry.waiting()) == 2
        registry.approve(second.key_id[:8].upper(), now_us=T0, actor="root")
        assert [w.key.public for w in registry.waiting()] == [first]
        with pytest.raises(Refused, match="nothing called"):
            registry.approve(first.key_id[:5], now_us=T0, actor="root")

    def test_one_that_waits_cannot_be_enrolled_past_its_approval(self, registry: Registry) -> None:
        public = new_key()
        registry.redeem(make(registry, needs_approval=True), public, T0)
        with pytest.raises(Refused, match="waits for approval; approve it: spa-keys approve"):
            registry.enroll("bob", public, now_us=T0, actor="root")
        assert registry.redeem(make(registry), public, T0) is JoinRefusal.KEY_KNOWN

    def test_one_transaction_may_hold_many_changes(self, registry: Registry) -> None:
        def one_good_one_bad() -> None:
            with registry.at_once():
                registry.enroll("bob", new_key(), now_us=T0, actor="root")
                registry.revoke("nobody", now_us=T0, actor="root")

        with pytest.raises(Refused):
            one_good_one_bad()
        assert (registry.keys(), registry.changes_since(0)) == ([], [])


class TestHearing:
    """An invite is heard for a week after its end, and enrols nothing in that time."""

    def test_expired(self, registry: Registry) -> None:
        invite_id = make(registry)
        kept = found(registry, invite_id)
        assert kept.heard_until_us == T0 + DAY_US + LATE_US
        for at_us, heard in ((T0, True), (T0 + DAY_US, True), (T0 + DAY_US + LATE_US, False)):
            assert kept.is_heard(at_us) is heard
        for late_us in (0, LATE_US):
            joined = registry.redeem(invite_id, new_key(), T0 + DAY_US + late_us)
            assert joined is JoinRefusal.EXPIRED

    def test_revoked(self, registry: Registry) -> None:
        invite_id = make(registry)
        registry.revoke(invite_id, now_us=T0 + 5, actor="root")
        assert found(registry, invite_id).heard_until_us == T0 + 5 + LATE_US
        assert registry.redeem(invite_id, new_key(), T0 + 6) is JoinRefusal.REVOKED

    def test_a_key_is_heard_while_it_may_knock(self, registry: Registry) -> None:
        registry.enroll("bob", new_key(), expires_at_us=T0 + 9, now_us=T0, actor="root")
        (key,) = registry.keys()
        assert key.heard_until_us == T0 + 9
        assert [key.is_heard(at_us) for at_us in (T0, T0 + 8, T0 + 9)] == [True, True, False]


class TestTheAlarm:
    def test_both_keys_are_there_to_be_named(self, registry: Registry) -> None:
        """The refusal says that it was used; the invite says by whom, and whose it is."""
        invite_id, first, second = make(registry), new_key(), new_key()
        registry.redeem(invite_id, first, T0)
        assert registry.redeem(invite_id, second, T0 + 1) is JoinRefusal.USED
        kept = found(registry, invite_id)
        assert (kept.redeemed_by, kept.identity) == (first.key_id, "bob")
        assert registry.key(second.key_id) is None

    def test_the_same_key_is_answered_again_for_as_long_as_it_is_good(
        self, registry: Registry
    ) -> None:
        """docs/protocol.md 4.4: also when the invite is over, and not when the key is."""
        invite_id, public = make(registry), new_key()
        registry.redeem(invite_id, public, T0)
        ends_us = found(registry, invite_id).expires_at_us
        again = registry.redeem(invite_id, public, ends_us + 1)
        assert isinstance(again, Redeemed)
        assert again.again
        registry.revoke(public.key_id, now_us=ends_us + 2, actor="test")
        assert registry.redeem(invite_id, public, ends_us + 3) is JoinRefusal.USED

    @pytest.mark.parametrize("needs_approval", [False, True])
    def test_of_two_connections_that_race_one_wins(
        self, path: Path, registry: Registry, needs_approval: bool
    ) -> None:
        for _ in range(10):
            invite_id = make(registry, needs_approval=needs_approval)
            barrier, said = threading.Barrier(2), []

            def redeem(invite_id=invite_id, barrier=barrier, said=said) -> None:
                with opened(path) as own:
                    public = new_key()
                    barrier.wait()
                    said.append((public.key_id, own.redeem(invite_id, public, T0)))

            racers = [threading.Thread(target=redeem) for _ in range(2)]
            for racer in racers:
                racer.start()
            for racer in racers:
                racer.join()
            winners = [key_id for key_id, joined in said if isinstance(joined, Redeemed)]
            assert [joined for _, joined in said if not isinstance(joined, Redeemed)] == [
                JoinRefusal.USED
            ]
            assert winners == [found(registry, invite_id).redeemed_by]


class TestStolenDatabase:
    """Whoever has a copy of the registry's files can join with nothing that is in them."""

    def files(self, path: Path) -> bytes:
        return b"".join(p.read_bytes() for p in sorted(path.parent.iterdir()))

    def test_no_form_of_a_secret_is_in_its_files(self, registry: Registry, path: Path) -> None:
        token = registry.create_invite(
            "bob", roles=["ops"], expires_at_us=T0 + DAY_US, now_us=T0, actor="root"
        )
        own = Identity.from_invite(token)
        registry.redeem(own.public.key_id, new_key(), T0)
        content = self.files(path)
        assert own.public.signing in content
        for secret in (token, *seal.invite_secrets(token)):
            forms = (
                secret,
                secret.hex().encode(),
                base64.b64encode(secret)[:-2],
                base64.urlsafe_b64encode(secret)[:-2],
                secret[:12],
                secret[-12:],
            )
            assert not any(form in content for form in forms)

    def test_no_32_bytes_of_it_are_a_token_or_a_secret_of_an_invite(
        self, registry: Registry, path: Path
    ) -> None:
        make(registry)
        kept = registry.invites()[0].public
        content = self.files(path)
        at = content.index(kept.signing)
        for begin in range(max(0, at - 200), at + 200):
            taken = content[begin : begin + 32]
            assert Identity.from_invite(taken).public != kept
            assert seal.signing_public(taken) != kept.signing
            assert seal.agreement_public(taken) != kept.agreement

    def test_its_public_half_makes_no_box(self, registry: Registry) -> None:
        """The thief has the invite's public keys and the server's, and so no shared secret."""
        make(registry)
        public = registry.invites()[0].public
        server = serverkey.generate()
        right = Sender.known_to(server.secret, public, is_invite=True).pair
        for own in (public.signing, public.agreement, server.public, bytes(32)):
            made = seal.pair_keys(
                own,
                server.public,
                agreement=public.agreement,
                server=server.public,
                signing=public.signing,
            )
            assert made != right


class TestAnOlderRegistry:
    def old(self, path: Path) -> None:
        """One as it was before there was approval, with a key and an invite in it."""
        with opened(path, create=True) as registry:
            registry.enroll("alice", new_key(), now_us=T0, actor="root")
            make(registry)
        connection = sqlite3.connect(path)
        for statement in (
            "DROP INDEX key_pending",
            "DROP INDEX invite_redeemed_by",
            'ALTER TABLE "key" DROP COLUMN is_pending',
            "ALTER TABLE invite DROP COLUMN needs_approval",
            "DELETE FROM _sqlite_migrations WHERE name = '0002_approval'",
        ):
            connection.execute(statement)
        connection.commit()
        connection.close()

    def test_it_is_brought_up_to_date(self, path: Path) -> None:
        self.old(path)
        with opened(path) as registry:
            (key,) = registry.keys_of("alice")
            assert key.state(T0) is State.ACTIVE
            assert [i.needs_approval for i in registry.invites()] == [False]

    def test_who_may_only_read_is_told(self, path: Path) -> None:
        self.old(path)
        with (
            pytest.raises(RegistryError, match="by an older version; restart spa-server"),
            opened(path, read_only=True),
        ):
            pass

    def test_the_migrations_make_the_same_tables(self, path: Path, tmp_path: Path) -> None:
        self.old(path)
        with opened(path), opened(tmp_path / "new.db", create=True):
            pass
        shapes = []
        for each in (path, tmp_path / "new.db"):
            connection = schema.connect(each)
            sql = "SELECT name, type FROM pragma_table_info('key') ORDER BY name"
            shapes.append(connection.execute(sql).fetchall())
            connection.close()
        assert shapes[0] == shapes[1]


def serverkey_file(key: serverkey.ServerKey) -> keyfile.KeyFile:
    """A key file whose halves do not belong together."""
    return keyfile.KeyFile(
        keyfile.Kind.SERVER, "", serverkey.generate().public, "none", None, key.secret
    )


class TestTheServerThatALineNames:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        self.key = serverkey.generate()
        serverkey.save(self.key, tmp_path / "server.key")
        (tmp_path / "server.toml").write_text('key = "server.key"\nknock_port = 7000\n')
        return tmp_path / "server.toml"

    @pytest.mark.parametrize(
        ("host", "endpoint"),
        [
            ("db1.example", Endpoint("db1.example", 7000)),
            ("db1.example:62201", Endpoint("db1.example", 62201)),
            ("10.0.0.5", Endpoint("10.0.0.5", 7000)),
            ("2001:db8::5", Endpoint("2001:db8::5", 7000)),
            ("[2001:db8::5]", Endpoint("2001:db8::5", 7000)),
            ("[2001:db8::5]:9", Endpoint("2001:db8::5", 9)),
        ],
    )
    def test_the_port_is_the_one_of_its_configuration(
        self, config: Path, host: str, endpoint: Endpoint
    ) -> None:
        here = invite.server_here(config, WrittenHost.parse(host))
        assert (here.public, here.endpoint) == (self.key.public, endpoint)
        line = here.invite(bytes(32)).reveal()
        assert Invite.parse(line) == Invite(bytes(32), self.key.public, endpoint)

    def test_its_own_name(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("socket.getfqdn", lambda: "db1.example")
        assert invite.server_here(config, None).endpoint == Endpoint("db1.example", 7000)
        monkeypatch.setattr("socket.getfqdn", lambda: "localhost.localdomain")
        with pytest.raises(Trouble, match="has no name of its own; say where clients knock"):
            invite.server_here(config, None)

    @pytest.mark.parametrize(
        ("written", "said"),
        [
            ("key = 7", "key: expected text"),
            ('key = "server.key"\nknock_port = "x"', "knock_port: expected a number"),
            ('key = "server.key"\nknock_port = 0', "knock_port: expected a number"),
            ('key = "gone.key"', "gone.key does not exist; set this host up: spa-server init"),
            ("oops", "not TOML"),
        ],
    )
    def test_a_configuration_that_will_not_do(self, config: Path, written: str, said: str) -> None:
        config.write_text(written)
        with pytest.raises(Trouble) as told:
            invite.server_here(config, WrittenHost("db1", None))
        assert said in str(told.value)

    @pytest.mark.skipif(
        sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away"
    )
    def test_root_uses_the_key_of_the_daemons_user(self, config: Path) -> None:
        os.chown(config.with_name("server.key"), 4242, 4242)
        assert invite.server_here(config, WrittenHost("db1", None)).public == self.key.public

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda key: key.replace(b"none", b"nine"), "is not a whole key file"),
            (lambda key: key[:-20], "is not a whole key file"),
            (lambda key: key.replace(b"server", b"client"), "holds the key of a client"),
            (lambda _: b"hello", "is no private key of this program"),
            (lambda _: bytes(serverkey_file(serverkey.generate())), "its public key is another's"),
        ],
    )
    def test_a_key_that_will_not_do(
        self, config: Path, spoil: Callable[[bytes], bytes], said: str
    ) -> None:
        path = config.with_name("server.key")
        path.write_bytes(spoil(path.read_bytes()))
        with pytest.raises(Trouble) as told:
            invite.server_here(config, WrittenHost("db1", None))
        assert str(path) in told.value.message
        assert said in told.value.message

    def test_one_that_was_named_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(Trouble, match="no such file"):
            invite.server_here(tmp_path / "none.toml", WrittenHost("db1", None))


class TestQr:
    LINE = Invite(bytes(range(32)), bytes(range(32, 64)), Endpoint("db1.example")).reveal()

    @pytest.mark.parametrize("coloured", [True, False])
    def test_it_is_the_code_of_the_line(self, coloured: bool) -> None:
        segno = pytest.importorskip("segno")
        drawn = qr.drawn(self.LINE, coloured=coloured)
        assert drawn is not None
        rows = [self.modules(line, coloured=coloured) for line in drawn.splitlines()]
        shown = [row for pair in rows for row in pair]
        border = 2
        code = segno.make(self.LINE, error="l", micro=False)
        inner = [row[border:-border] for row in shown[border : border + len(code.matrix)]]
        assert inner == [[bool(module) for module in row] for row in code.matrix]
        assert len(shown[0]) <= 80
        assert len(rows) <= 24

    def modules(self, line: str, *, coloured: bool) -> tuple[list[bool], list[bool]]:
        if coloured:
            assert line.startswith("\x1b[30;107m")
            assert line.endswith("\x1b[0m")
            line = line.removeprefix("\x1b[30;107m").removesuffix("\x1b[0m")
        return [c in "▀█" for c in line], [c in "▄█" for c in line]

    def test_without_segno(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def absent(name: str, *rest: object) -> object:
            if name == "segno":
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr("builtins.__import__", absent)
        assert qr.drawn(self.LINE, coloured=True) is None


class Site(Host):
    """A host that `spa-server init` has set up."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.key = serverkey.generate()
        serverkey.save(self.key, directory / "server.key")
        self.config = directory / "server.toml"
        self.config.write_text(
            'key = "server.key"\ndatabase = "registry/spa.db"\ncontrol = "control.sock"\n'
        )
        self.environment["SPA_SERVER_CONFIG"] = str(self.config)

    def invite(self, name: str, *options: str) -> tuple[Ended, Invite]:
        ended = self.run("invite", name, "--host", "db1.example", *options)
        assert ended.code == 0, ended
        return ended, Invite.parse(ended.out.splitlines()[0])

    def join(self, made: Invite) -> PublicKey:
        """Enrols a key by it, as the daemon does."""
        public = new_key()
        with opened(self.database) as registry:
            joined = registry.redeem(
                Identity.from_invite(made.token).public.key_id, public, time.time_ns() // 1000
            )
        assert isinstance(joined, Redeemed), joined
        return public


@pytest.fixture
def host(tmp_path: Path) -> Site:
    return Site(tmp_path)


class TestInviteCommand:
    def test_the_line(self, host: Site) -> None:
        ended, made = host.invite("alice", "--role", "dba", "--role", "ops")
        assert ended.out.count("\n") == 1
        assert (made.server, made.endpoint) == (host.key.public, Endpoint("db1.example", 62201))
        with opened(host.database) as registry:
            (kept,) = registry.invites()
        assert kept.public == Identity.from_invite(made.token).public
        assert (kept.identity, kept.roles, kept.needs_approval) == (
            "alice",
            {"dba", "ops"},
            False,
        )
        assert abs(kept.expires_at_us - kept.created_at_us - DAY_US) < 10_000_000
        first, second, third = ended.err.splitlines()
        assert first.startswith("For alice, roles dba, ops; good for one key until 2")
        assert kept.key_id in first
        assert "Clients knock at db1.example:62201" in second
        assert "spa-client join -, and paste it" in third
        assert "join '" not in third

    def test_the_token_is_in_the_line_alone(self, host: Site) -> None:
        ended, made = host.invite("alice")
        files = b"".join(p.read_bytes() for p in host.directory.rglob("*") if p.is_file())
        packed = made.reveal().rpartition("/")[2]
        assert made.token not in files
        assert packed.encode() not in files
        assert packed not in ended.err

    def test_without_a_role_it_says_so(self, host: Site) -> None:
        ended, _ = host.invite("alice")
        assert "For alice, no role, so nothing is allowed" in ended.err

    def test_json(self, host: Site) -> None:
        ended = host.run("invite", "alice", "--host", "db1", "--json", "--approve", "--role", "dba")
        told = json.loads(ended.out)
        assert (ended.code, ended.err) == (0, "")
        made = Invite.parse(told.pop("line"))
        assert told.pop("invite") == Identity.from_invite(made.token).public.key_id
        assert told.pop("expires_at").endswith("Z")
        assert told == {
            "identity": "alice",
            "roles": ["dba"],
            "needs_approval": True,
            "host": "db1",
            "port": 62201,
        }

    def test_a_qr_code_only_when_asked_or_at_a_terminal(self, host: Site) -> None:
        pytest.importorskip("segno")
        assert "█" not in host.invite("alice")[0].out
        ended, made = host.invite("alice", "--qr")
        drawn = qr.drawn(made.reveal(), coloured=False)
        assert ended.out == f"{made.reveal()}\n{drawn}\n"
        ended = host.run("invite", "alice", "--host", "db1", "--qr", PYTHONIOENCODING="latin-1")
        assert (ended.code, ended.out.count("\n")) == (0, 1)
        assert "this terminal's encoding has no blocks" in ended.err

    @pytest.mark.parametrize(
        ("options", "code", "said"),
        [
            (("alice", "--expires", "2020-01-01"), ExitCode.USAGE, "is past"),
            (("a b",), ExitCode.USAGE, "cannot name an identity"),
            (("alice", "--role", "a/b"), ExitCode.USAGE, "cannot name a role"),
            (("alice", "--host", "a b"), ExitCode.USAGE, "no host is named"),
            (("alice", "--host", "db1:0"), ExitCode.USAGE, "the port is no number"),
            (("alice", "--json", "--qr"), ExitCode.USAGE, "exclude each other"),
            (("alice", "--server-config", "/nowhere"), ExitCode.TROUBLE, "no such file"),
        ],
    )
    def test_what_will_not_do(
        self, host: Site, options: tuple[str, ...], code: int, said: str
    ) -> None:
        assert said in host.run("invite", *options).trouble(code)
        assert not host.database.exists()

    def test_a_server_that_is_not_set_up(self, host: Site) -> None:
        (host.directory / "server.key").unlink()
        line = host.run("invite", "alice", "--host", "db1").trouble()
        assert "does not exist; set this host up: spa-server init" in line


class TestLists:
    def test_invites_in_every_state(self, host: Site) -> None:
        _, used = host.invite("used", "--role", "dba")
        key_id = host.join(used).key_id
        host.invite("fresh", "--approve")
        host.invite("late", "--expires", "1s")
        host.invite("taken")
        assert host.run("revoke", "taken").code == 0
        time.sleep(1.1)
        told = json.loads(host.run("list", "--invites", "--json", "--all").out)
        states = {each["identity"]: each["state"] for each in told}
        assert states == {
            "used": "redeemed",
            "fresh": "active",
            "late": "expired",
            "taken": "revoked",
        }
        by_name = {each["identity"]: each for each in told}
        assert by_name["used"]["redeemed_by"] == key_id
        assert by_name["fresh"]["needs_approval"] is True
        lines = host.run("list", "--invites").out.splitlines()
        assert lines[0].split() == ["IDENTITY", "INVITE", "STATE", "EXPIRES"]
        assert "taken" not in "".join(lines)
        assert max(map(len, lines)) <= 80
        of_used = next(i for i, line in enumerate(lines) if line.startswith("used"))
        assert "role dba; made 2" in lines[of_used + 1]
        assert f"used by {key_id}" in lines[of_used + 1]
        one = host.run("list", "--invites", "--identity", "late").out
        assert (one.count("\n"), "expired" in one) == (3, True)

    def test_none(self, host: Site) -> None:
        _, _ = host.invite("alice")
        assert host.run("revoke", "alice").code == 0
        assert "No invite but revoked ones" in host.run("list", "--invites").err
        ended = host.run("list", "--invites", "--identity", "bob")
        assert (ended.code, ended.err) == (0, "No invite was made.\n")

    def test_an_invite_is_revoked_by_its_id(self, host: Site) -> None:
        _, made = host.invite("alice")
        invite_id = Identity.from_invite(made.token).public.key_id
        assert host.run("revoke", invite_id[:8]).out == f"revoked invite {invite_id} of alice\n"


class TestApproveCommands:
    def test_from_pending_to_approved(self, host: Site) -> None:
        ended, made = host.invite("alice", "--role", "dba", "--approve")
        assert "The key that joins waits for: spa-keys approve alice" in ended.err
        assert host.run("pending").err == "No key waits for approval.\n"
        key_id = host.join(made).key_id
        (told,) = json.loads(host.run("pending", "--json").out)
        assert (told["identity"], told["key"], told["roles"]) == ("alice", key_id, ["dba"])
        table = host.run("pending").out.splitlines()
        assert table[0].split() == ["IDENTITY", "KEY", "ASKED"]
        assert table[1].split()[:2] == ["alice", key_id]
        (listed,) = host.listed()
        assert (listed["key"], listed["state"]) == (key_id, "pending")
        ended = host.run("approve", "alice", "--expires", "2199-01-31")
        assert ended.out == f"alice may knock with {key_id}, until 2199-01-31T00:00; role dba\n"
        (listed,) = host.listed()
        assert (listed["state"], listed["roles"]) == ("active", ["dba"])

    def test_rejecting(self, host: Site) -> None:
        _, made = host.invite("alice", "--approve")
        key_id = host.join(made).key_id
        assert host.run("reject", key_id[:6]).out == f"rejected {key_id} of alice\n"
        assert host.listed() == []
        (listed,) = host.listed("--all")
        assert listed["state"] == "revoked"
        line = host.run("approve", "alice").trouble(ExitCode.REFUSED)
        assert line == "nothing called 'alice' waits for approval; see: spa-keys pending"

    def test_the_registry_stays_private(self, host: Site) -> None:
        host.invite("alice")
        assert stat.S_IMODE(host.database.stat().st_mode) == 0o600


@given(st.sampled_from(["db1", "db1.example", "10.0.0.5", "2001:db8::1"]), st.integers(1, 65535))
def test_a_written_host_says_whether_it_names_a_port(name: str, port: int) -> None:
    bare = WrittenHost.parse(name)
    assert (bare.host, bare.port) == (name, None)
    full = WrittenHost.parse(str(Endpoint(name, port)))
    assert (full.host, full.port) == (name, port)


class TestAKeyThatTwoInvitesBring:
    """A join's new key signs nothing: whoever knows a public key may bring it as their own."""

    def test_the_owner_waits_and_is_not_refused(self, registry: Registry) -> None:
        public, squatters, owners = new_key(), make(registry, "mallory"), make(registry, "alice")
        registry.redeem(squatters, public, T0)
        redeemed = registry.redeem(owners, public, T0 + 1)
        assert isinstance(redeemed, Redeemed)
        assert (redeemed.pending, redeemed.claimed_by) == (True, "mallory")
        again = registry.redeem(owners, public, T0 + 2)
        assert isinstance(again, Redeemed)
        assert (again.pending, again.again, again.claimed_by) == (True, True, "")
        [waiting] = registry.waiting()
        assert (waiting.key.identity, waiting.key.key_id) == ("alice", public.key_id)

    def test_a_claim_takes_nothing_from_who_came_first(self, registry: Registry) -> None:
        public, owners, thiefs = new_key(), make(registry, "alice"), make(registry, "mallory")
        registry.redeem(owners, public, T0)
        before = registry.key(public.key_id)
        assert before is not None
        registry.redeem(thiefs, public, T0 + 1)
        assert registry.key(public.key_id) == before
        assert before.is_active(T0 + 1)
        assert registry.roles_of("mallory") == frozenset()
        registry.reject("mallory", now_us=T0 + 2, actor="root")
        assert registry.key(public.key_id) == before
        assert registry.waiting() == []
        assert registry.redeem(thiefs, public, T0 + 3) is JoinRefusal.REJECTED
        assert isinstance(registry.redeem(owners, public, T0 + 3), Redeemed)

    def test_what_is_approved_is_the_owners_alone(self, registry: Registry) -> None:
        public = new_key()
        squatters = make(registry, "mallory", roles=["dba"])
        registry.redeem(squatters, public, T0)
        registry.redeem(make(registry, "alice"), public, T0 + 1)
        registry.approve("alice", now_us=T0 + 2, actor="root")
        key = registry.key(public.key_id)
        assert key is not None
        assert (key.identity, key.is_active(T0 + 2)) == ("alice", True)
        assert registry.roles_of("alice") == {"ops"}
        assert registry.waiting() == []
        assert registry.redeem(squatters, public, T0 + 3) is JoinRefusal.REJECTED

    def test_a_squatter_who_needs_approval_is_one_of_two(self, registry: Registry) -> None:
        public = new_key()
        registry.redeem(make(registry, "mallory", needs_approval=True), public, T0)
        registry.redeem(make(registry, "alice"), public, T0 + 1)
        assert [w.key.identity for w in registry.waiting()] == ["mallory", "alice"]
        with pytest.raises(Refused, match="is claimed by mallory, alice"):
            registry.approve(public.key_id, now_us=T0 + 2, actor="root")
        with pytest.raises(Refused, match="claimed by alice too"):
            registry.reject("mallory", now_us=T0 + 2, actor="root")
        registry.approve("alice", now_us=T0 + 2, actor="root")
        key = registry.key(public.key_id)
        assert key is not None
        assert key.identity == "alice"

    def test_what_an_operator_enrolled_is_not_to_be_claimed(self, registry: Registry) -> None:
        public = new_key()
        registry.enroll("alice", public, now_us=T0, actor="root")
        assert registry.redeem(make(registry, "mallory"), public, T0) is JoinRefusal.KEY_KNOWN

    def test_nor_is_what_an_operator_approved(self, registry: Registry) -> None:
        public = new_key()
        registry.redeem(make(registry, "alice", needs_approval=True), public, T0)
        registry.approve("alice", now_us=T0, actor="root")
        assert registry.redeem(make(registry, "mallory"), public, T0) is JoinRefusal.KEY_KNOWN

    @pytest.mark.parametrize("is_old", [True, False])
    def test_what_a_claimed_key_was_to_replace_is_forgotten(
        self, registry: Registry, is_old: bool
    ) -> None:
        """Else mallory's next knock would revoke alice's key, or alice's first one of mallory's."""
        claimed, others = new_key(), new_key()
        registry.redeem(make(registry, "mallory"), claimed, T0)
        old, new = (claimed, others) if is_old else (others, claimed)
        registry.enroll("mallory", others, now_us=T0, actor="root")
        registry.enroll("mallory", new, replaces=old.key_id, now_us=T0, actor="root")
        registry.redeem(make(registry, "alice"), claimed, T0 + 1)
        registry.approve("alice", now_us=T0 + 2, actor="root")
        assert registry.replacements() == registry.successions() == {}
        assert registry.replaced(new.key_id, T0 + 3) == []
