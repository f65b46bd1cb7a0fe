"""The registry: its rules, its record, and what it does with damage, races and old databases."""

import contextlib
import itertools
import multiprocessing
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from keys import enrolled, identity, schema
from keys.identity import Identity
from keys.names import BadName, identity_name
from keys.registry import (
    JoinRefusal,
    Redeemed,
    Refused,
    Registry,
    RegistryError,
    State,
    opened,
)
from spa_protocol.publickey import PublicKey
from spa_protocol.seal import WeakKey
from spa_protocol.sshsig import KeyType
from tests.growth import growth

T0 = 1_800_000_000_000_000
DAY_US = 86_400_000_000
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away"
)


def new_key() -> PublicKey:
    return identity.generate().public


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spa.db"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    with opened(path, create=True) as registry:
        yield registry


def crowd(registry: Registry, count: int) -> None:
    """So many more keys of alice's."""
    publics = (PublicKey(KeyType.ED25519, os.urandom(32), os.urandom(32)) for _ in range(count))
    rows = ((p.key_id, "alice", 1, p.signing, p.agreement, "", T0) for p in publics)
    registry._connection.execute("BEGIN")
    registry._connection.executemany(
        'INSERT INTO "key" (key_id, identity, key_type, signing, agreement, comment, '
        "enrolled_at_us) VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    registry._connection.execute("COMMIT")


def everything(registry: Registry) -> list[enrolled.EnrolledKey]:
    return registry.keys()


def enroll(registry: Registry, name: str = "alice", public: PublicKey | None = None, **more):
    values = {"comment": "laptop", "roles": ["dba"], "now_us": T0, "actor": "root"} | more
    return registry.enroll(name, public or new_key(), **values)


def invite(registry: Registry, name: str = "bob", **more) -> str:
    """The id of a new invite's key."""
    values = {"roles": ["ops"], "expires_at_us": T0 + DAY_US, "now_us": T0, "actor": "root"}
    return Identity.from_invite(registry.create_invite(name, **(values | more))).public.key_id


def actions(registry: Registry, since: int = 0) -> list[tuple[str, str, str | None, str]]:
    return [(c.action, c.identity, c.key_id, c.detail) for c in registry.changes_since(since)]


def revoke(registry: Registry, what: str) -> list[str]:
    return [head.key_id for head in registry.revoke(what, now_us=T0 + 1, actor="root")]


class TestEnrolling:
    def test_what_is_enrolled_is_read_back(self, registry: Registry) -> None:
        public = new_key()
        made = enroll(registry, "alice", public, roles=["dba", "ops"], expires_at_us=T0 + DAY_US)
        assert made == enrolled.EnrolledKey(
            key_id=public.key_id,
            identity="alice",
            public=public,
            comment="laptop",
            enrolled_at_us=T0,
            expires_at_us=T0 + DAY_US,
            revoked_at_us=None,
            last_seen_us=None,
        )
        assert registry.keys() == registry.keys_of("alice") == [made]
        assert registry.key(made.key_id) == made
        assert registry.roles_of("alice") == {"dba", "ops"}
        assert registry.identities() == {"alice": {"dba", "ops"}}

    def test_it_is_all_there_after_a_restart(self, path: Path) -> None:
        with opened(path, create=True) as registry:
            made = enroll(registry)
        with opened(path, read_only=True) as registry:
            assert registry.keys() == [made]
            assert len(registry.changes_since(0)) == 2

    def test_a_security_key(self, registry: Registry) -> None:
        public = replace(new_key(), key_type=KeyType.SK_ED25519)
        assert enroll(registry, public=public).public.key_type is KeyType.SK_ED25519

    def test_an_identity_may_have_several(self, registry: Registry) -> None:
        first, second = enroll(registry), enroll(registry, now_us=T0 + 1)
        assert registry.keys_of("alice") == [first, second]

    def test_again_renews_it(self, registry: Registry) -> None:
        first = enroll(registry, expires_at_us=T0 + DAY_US, roles=["dba"])
        later = enroll(registry, public=first.public, comment="", roles=["ops"], now_us=T0 + 9)
        assert later == replace(first, expires_at_us=None)
        assert registry.roles_of("alice") == {"dba", "ops"}
        assert actions(registry, 2) == [
            ("key.renewed", "alice", first.key_id, "never expires"),
            ("role.granted", "alice", None, "ops"),
        ]

    def test_again_without_a_difference_changes_nothing(self, registry: Registry) -> None:
        first = enroll(registry)
        before = registry.last_change_id()
        assert enroll(registry, public=first.public) == first
        assert registry.last_change_id() == before

    def test_a_key_is_one_identitys(self, registry: Registry) -> None:
        first = enroll(registry)
        with pytest.raises(Refused, match="is enrolled for alice already"):
            enroll(registry, "bob", first.public)
        assert registry.keys() == [first]
        assert registry.identities() == {"alice": {"dba"}}

    def test_a_revoked_key_does_not_come_back(self, registry: Registry) -> None:
        key = enroll(registry)
        revoke(registry, key.key_id)
        with pytest.raises(Refused, match="does not come back"):
            enroll(registry, public=key.public)
        assert not registry.keys()[0].is_active(T0)

    def test_an_expired_key_may_be_renewed(self, registry: Registry) -> None:
        key = enroll(registry, expires_at_us=T0 + 1)
        assert not key.is_active(T0 + 1)
        assert enroll(registry, public=key.public, now_us=T0 + 5).is_active(T0 + 5)

    def test_an_invites_key_is_never_enrolled(self, registry: Registry) -> None:
        token = registry.create_invite("bob", expires_at_us=T0 + 1, now_us=T0, actor="root")
        with pytest.raises(Refused, match="is an invite's"):
            enroll(registry, "bob", Identity.from_invite(token).public)

    @pytest.mark.parametrize("field", ["signing", "agreement"])
    def test_a_weak_key_is_refused(self, registry: Registry, field: str) -> None:
        weak = replace(new_key(), **{field: bytes(32)})
        with pytest.raises(Refused, match="may not be enrolled"):
            enroll(registry, public=weak)
        assert registry.identities() == {}

    @pytest.mark.parametrize(
        "name", ["", "-a", ".a", "@a", "a b", "a/b", "a\n", "ä", "a" * 65, "a;b", "a\x1b"]
    )
    def test_names_that_nothing_has(self, registry: Registry, name: str) -> None:
        with pytest.raises(BadName):
            enroll(registry, name)
        with pytest.raises(BadName):
            enroll(registry, roles=[name])
        with pytest.raises(BadName):
            invite(registry, name)
        with pytest.raises(BadName):
            invite(registry, roles=[name])
        assert registry.last_change_id() == 0

    @pytest.mark.parametrize("name", ["a", "0", "alice@example.com", "a.b-c_d+e", "a" * 64])
    def test_names_that_may_be(self, name: str) -> None:
        assert identity_name(name) == name


class TestStates:
    def test_a_key_ends_when_it_expires(self, registry: Registry) -> None:
        key = enroll(registry, expires_at_us=T0 + 10)
        assert [key.state(T0 + t) for t in (9, 10, 11)] == [
            State.ACTIVE,
            State.EXPIRED,
            State.EXPIRED,
        ]

    def test_a_revoked_key_stays_so_when_the_clock_is_set_back(self, registry: Registry) -> None:
        key = enroll(registry)
        revoke(registry, "alice")
        (revoked,) = registry.keys()
        assert revoked.revoked_at_us == T0 + 1
        assert not any(revoked.is_active(at) for at in (0, T0 - DAY_US, T0, T0 + DAY_US))
        assert key.is_active(T0 + DAY_US * 1000)

    def test_an_invite_is_heard_until_it_expires_used_or_not(self, registry: Registry) -> None:
        invite_id = invite(registry)
        registry.redeem(invite_id, new_key(), T0)
        used = registry.invite(invite_id)
        assert used is not None
        assert used.state(T0) is State.REDEEMED
        assert (used.is_active(T0), used.is_active(T0 + DAY_US)) == (True, False)


class TestRevoking:
    def test_one_key(self, registry: Registry) -> None:
        first, second = enroll(registry), enroll(registry)
        assert revoke(registry, first.key_id) == [first.key_id]
        assert [k.key_id for k in everything(registry) if k.is_active(T0)] == [second.key_id]
        assert actions(registry)[-1] == ("key.revoked", "alice", first.key_id, "")

    @pytest.mark.parametrize("size", [6, 10, 16])
    def test_by_the_beginning_of_its_id(self, registry: Registry, size: int) -> None:
        key = enroll(registry)
        enroll(registry)
        assert revoke(registry, key.key_id[:size].upper()) == [key.key_id]

    def test_five_letters_are_too_few(self, registry: Registry) -> None:
        key = enroll(registry)
        with pytest.raises(Refused, match="no identity or key is called"):
            revoke(registry, key.key_id[:5])
        assert registry.keys() == [key]

    def test_a_beginning_that_two_share(self, registry: Registry) -> None:
        for key_id in ("aaaaaa2222222222", "aaaaaa3333333333"):
            insert(registry, key_id=key_id)
        with pytest.raises(Refused, match="2 keys begin with 'aaaaaa'; give more"):
            revoke(registry, "aaaaaa")
        assert revoke(registry, "aaaaaa3") == ["aaaaaa3333333333"]

    def test_an_identity_with_all_it_has(self, registry: Registry) -> None:
        keys = {enroll(registry).key_id, enroll(registry).key_id, invite(registry, "alice")}
        other = enroll(registry, "alice2")
        assert set(revoke(registry, "alice")) == keys
        assert [k for k in everything(registry) if k.is_active(T0)] == [other]
        assert [i for i in registry.invites() if i.is_active(T0)] == []
        assert registry.roles_of("alice") == {"dba"}

    def test_somebody_who_has_only_an_invite(self, registry: Registry) -> None:
        invite_id = invite(registry)
        assert revoke(registry, "bob") == [invite_id]
        assert actions(registry)[-1] == ("invite.revoked", "bob", invite_id, "")
        assert registry.redeem(invite_id, new_key(), T0) is JoinRefusal.REVOKED

    def test_expired_keys_are_revoked_too(self, registry: Registry) -> None:
        key = enroll(registry, expires_at_us=T0)
        assert revoke(registry, "alice") == [key.key_id]

    def test_twice_is_said(self, registry: Registry) -> None:
        key, _ = enroll(registry), enroll(registry)
        revoke(registry, key.key_id)
        before = registry.last_change_id()
        with pytest.raises(Refused, match=f"key {key.key_id} was revoked at 2027-01-1"):
            revoke(registry, key.key_id)
        assert len(revoke(registry, "alice")) == 1
        with pytest.raises(Refused, match="alice has no key left to revoke"):
            revoke(registry, "alice")
        assert registry.last_change_id() == before + 1

    @pytest.mark.parametrize("what", ["nobody", "", "aaaaaaaa", "%", "______"])
    def test_nothing_of_that_name(self, registry: Registry, what: str) -> None:
        enroll(registry)
        with pytest.raises(Refused, match="no identity or key is called"):
            revoke(registry, what)

    def test_a_name_goes_before_the_beginning_of_an_id(self, registry: Registry) -> None:
        key = enroll(registry)
        namesake = enroll(registry, key.key_id[:8])
        assert revoke(registry, key.key_id[:8]) == [namesake.key_id]
        assert revoke(registry, key.key_id[:9]) == [key.key_id]

    def test_a_key_that_this_version_does_not_understand(self, registry: Registry) -> None:
        """It may mean something to the daemon, if that is newer."""
        insert(registry, key_id="bbbbbbbbbbbbbbbb", identity="carol", key_type=9)
        assert registry.keys_of("carol") == []
        assert revoke(registry, "carol") == ["bbbbbbbbbbbbbbbb"]


class TestRoles:
    def test_granting(self, registry: Registry) -> None:
        enroll(registry, roles=[])
        assert registry.roles_of("alice") == frozenset()
        before = registry.last_change_id()
        now_has = registry.grant("alice", ["b", "a", "b"], now_us=T0 + 1, actor="carol")
        assert now_has == registry.roles_of("alice") == {"a", "b"}
        changes = registry.changes_since(before)
        assert [(c.action, c.detail, c.actor, c.at_us) for c in changes] == [
            ("role.granted", "a", "carol", T0 + 1),
            ("role.granted", "b", "carol", T0 + 1),
        ]
        registry.grant("alice", ["a"], now_us=T0 + 2, actor="carol")
        assert registry.last_change_id() == changes[-1].change_id

    def test_ungranting(self, registry: Registry) -> None:
        enroll(registry, roles=["a", "b", "c"])
        assert registry.ungrant("alice", ["b", "a"], now_us=T0, actor="root") == {"c"}
        assert [a[3] for a in actions(registry)[-2:]] == ["a", "b"]

    def test_ungranting_is_all_or_nothing(self, registry: Registry) -> None:
        enroll(registry, roles=["a"])
        before = registry.last_change_id()
        with pytest.raises(Refused, match="does not have the role b, c"):
            registry.ungrant("alice", ["a", "c", "b"], now_us=T0, actor="root")
        assert registry.roles_of("alice") == {"a"}
        assert registry.last_change_id() == before

    def test_only_of_somebody_who_is_known(self, registry: Registry) -> None:
        for change in (registry.grant, registry.ungrant):
            with pytest.raises(Refused, match="there is no identity 'bob'"):
                change("bob", ["a"], now_us=T0, actor="root")


class TestInvites:
    def test_only_the_public_half_is_kept(self, registry: Registry, path: Path) -> None:
        token = registry.create_invite("bob", expires_at_us=T0 + 1, now_us=T0, actor="root")
        key = Identity.from_invite(token)
        (kept,) = registry.invites()
        assert kept.public == key.public
        content = b"".join(p.read_bytes() for p in path.parent.iterdir())
        assert kept.public.signing in content
        for secret in (token, key._seed, key._agreement):
            assert secret not in content

    def test_joining(self, registry: Registry) -> None:
        invite_id = invite(registry, roles=["ops", "net"])
        before = registry.last_change_id()
        public = new_key()
        joined = registry.redeem(invite_id, public, T0 + 5)
        assert joined == Redeemed(public.key_id, "bob", frozenset({"ops", "net"}))
        (key,) = registry.keys_of("bob")
        assert (key.public, key.enrolled_at_us, key.is_active(T0 + 5)) == (public, T0 + 5, True)
        assert actions(registry, before) == [
            ("key.enrolled", "bob", public.key_id, "never expires"),
            ("role.granted", "bob", None, "net"),
            ("role.granted", "bob", None, "ops"),
            ("invite.redeemed", "bob", invite_id, public.key_id),
        ]
        assert registry.changes_since(before)[0].actor == f"invite:{invite_id}"
        used = registry.invite(invite_id)
        assert used is not None
        assert (used.redeemed_by, used.redeemed_at_us) == (public.key_id, T0 + 5)

    def test_the_same_key_again_is_answered_again(self, registry: Registry) -> None:
        invite_id, public = invite(registry), new_key()
        first = registry.redeem(invite_id, public, T0)
        before = registry.last_change_id()
        assert registry.redeem(invite_id, public, T0 + 1) == replace(first, again=True)
        assert registry.redeem(invite_id, public, T0 + 2 * DAY_US) == replace(first, again=True)
        assert registry.last_change_id() == before

    def test_another_key_is_refused(self, registry: Registry) -> None:
        invite_id = invite(registry)
        registry.redeem(invite_id, new_key(), T0)
        assert registry.redeem(invite_id, new_key(), T0) is JoinRefusal.USED
        assert len(registry.keys()) == 1

    def test_a_key_that_joined_and_was_revoked(self, registry: Registry) -> None:
        invite_id, public = invite(registry), new_key()
        registry.redeem(invite_id, public, T0)
        revoke(registry, public.key_id)
        assert registry.redeem(invite_id, public, T0) is JoinRefusal.USED

    def test_refusals(self, registry: Registry) -> None:
        invite_id = invite(registry, expires_at_us=T0 + 10)
        known = enroll(registry).public
        weak = replace(new_key(), agreement=bytes(32))
        invites_own = registry.invites()[0].public
        before = registry.last_change_id()
        assert registry.redeem("aaaaaaaaaaaaaaaa", new_key(), T0) is JoinRefusal.UNKNOWN
        assert registry.redeem(invite_id, new_key(), T0 + 10) is JoinRefusal.EXPIRED
        assert registry.redeem(invite_id, known, T0) is JoinRefusal.KEY_KNOWN
        assert registry.redeem(invite_id, invites_own, T0) is JoinRefusal.KEY_KNOWN
        assert registry.redeem(invite_id, weak, T0) is JoinRefusal.WEAK
        assert registry.last_change_id() == before
        assert isinstance(registry.redeem(invite_id, new_key(), T0 + 9), Redeemed)

    def test_a_used_invite_is_not_revoked_but_its_key(self, registry: Registry) -> None:
        invite_id, public = invite(registry), new_key()
        registry.redeem(invite_id, public, T0)
        with pytest.raises(Refused, match="was used already; revoke the key"):
            revoke(registry, invite_id)
        assert revoke(registry, "bob") == [public.key_id]

    def test_roles_add_to_those_the_identity_has(self, registry: Registry) -> None:
        enroll(registry, "bob", roles=["dba", "ops"])
        joined = registry.redeem(invite(registry, roles=["ops", "net"]), new_key(), T0)
        assert isinstance(joined, Redeemed)
        assert joined.roles == {"dba", "ops", "net"}


class TestSeen:
    def test_many_at_once_and_never_back(self, registry: Registry) -> None:
        first, second, third = (enroll(registry).key_id for _ in range(3))
        before = registry.last_change_id()
        registry.seen([(first, 5), (second, 7), (first, 3), ("unknown", 9)])
        registry.seen([(second, 6)])
        registry.seen([])
        seen = {key.key_id: key.last_seen_us for key in everything(registry)}
        assert seen == {first: 5, second: 7, third: None}
        assert registry.last_change_id() == before


def insert(registry: Registry, table: str = "key", **values: object) -> str:
    """A row that no method would write; whole but for the values given."""
    public = new_key()
    row = {
        "key_id": public.key_id,
        "identity": "alice",
        "signing": public.signing,
        "agreement": public.agreement,
        "expires_at_us": T0,
    }
    if table == "key":
        row |= {"key_type": 1, "comment": "", "enrolled_at_us": T0}
    else:
        row |= {"roles": "[]", "created_at_us": T0}
    row |= values
    connection = registry._connection
    connection.execute("PRAGMA foreign_keys=OFF")
    columns = ", ".join(row)
    marks = ", ".join("?" * len(row))
    connection.execute(f'INSERT INTO "{table}" ({columns}) VALUES ({marks})', list(row.values()))  # noqa: S608
    return str(row["key_id"])


class TestBrokenRows:
    """One bad key never stops the others from loading."""

    @pytest.mark.parametrize("table", ["key", "invite"])
    @pytest.mark.parametrize(
        ("values", "what"),
        [
            ({"signing": b"short"}, "the signing key is not 32 bytes"),
            ({"agreement": bytes(33)}, "the agreement key is not 32 bytes"),
            ({"signing": "text of exactly thirty-two chars"}, "the signing key is not 32 bytes"),
            ({"key_id": "aaaaaaaaaaaaaaaa"}, "the key id is another key's"),
            ({"identity": "evil\x1b[31m"}, "cannot name an identity"),
            ({"identity": b"\xff\xfe"}, "is not an identity"),
            ({"expires_at_us": "soon"}, "is not a time in microseconds"),
            ({"expires_at_us": -1}, "is not a time in microseconds"),
            ({"expires_at_us": 2**62}, "is not a time in microseconds"),
            ({"revoked_at_us": b"x"}, "is not a time in microseconds"),
        ],
    )
    def test_it_is_passed_over_and_reported(
        self, registry: Registry, table: str, values: dict[str, object], what: str
    ) -> None:
        good_key, good_invite = enroll(registry), invite(registry)
        bad = insert(registry, table, **values)
        assert [key.key_id for key in everything(registry)] == [good_key.key_id]
        assert [i.key_id for i in registry.invites()] == [good_invite]
        (broken,) = registry.broken()
        assert (broken.table, broken.key_id) == (table, bad)
        assert what in broken.what
        assert registry.key(bad) is None
        assert registry.invite(bad) is None

    def test_an_unknown_key_type(self, registry: Registry) -> None:
        insert(registry, key_type=77)
        assert registry.keys() == []
        assert registry.broken()[0].what == "key type 77 is not known"

    @pytest.mark.parametrize("roles", ["", "{", "7", '["a b"]', "[1]", "null"])
    def test_an_invite_with_torn_roles(self, registry: Registry, roles: str) -> None:
        bad = insert(registry, "invite", roles=roles)
        assert registry.invites() == []
        assert [b.key_id for b in registry.broken()] == [bad]
        assert registry.redeem(bad, new_key(), T0 - 1) is JoinRefusal.UNKNOWN

    def test_text_that_is_no_utf_8(self, registry: Registry) -> None:
        good = enroll(registry)
        insert(registry, comment=b"")
        registry._connection.execute(
            "UPDATE \"key\" SET comment = CAST(x'ff41' AS TEXT) WHERE key_id <> ?", [good.key_id]
        )
        assert [k.comment for k in everything(registry) if k.key_id != good.key_id] == ["\ufffdA"]

    @pytest.mark.parametrize("weak", sorted(enrolled._SMALL_ORDER))
    @pytest.mark.parametrize("top", [0x00, 0x80])
    def test_agreement_keys_of_small_order(self, registry: Registry, weak: bytes, top: int) -> None:
        """Each of them is one for libsodium as well, and none gets past either."""
        agreement = weak[:31] + bytes([weak[31] | top])
        public = replace(new_key(), agreement=agreement)
        with pytest.raises(WeakKey):
            public.check()
        insert(registry, key_id=public.key_id, signing=public.signing, agreement=agreement)
        assert registry.keys() == []
        assert registry.broken()[0].what == "the agreement key is of small order"

    def test_a_weak_signing_key_is_reported(self, registry: Registry) -> None:
        """It is loaded, since finding it costs too much at a start; nothing verifies with it."""
        public = replace(new_key(), signing=bytes([1]) + bytes(31))
        insert(registry, key_id=public.key_id, signing=public.signing, agreement=public.agreement)
        assert [b.key_id for b in registry.broken()] == [public.key_id]

    @given(
        st.lists(
            st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.floats()),
            min_size=11,
            max_size=11,
        )
    )
    @pytest.mark.once
    def test_no_row_raises_anything_but_broken_row(self, row: list[object]) -> None:
        for make in (enrolled.key_of, enrolled.invite_of):
            with pytest.raises(enrolled.BrokenRow):
                make(row)


class TestTheFile:
    @posix
    def test_it_is_private(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            with opened(tmp_path / "new" / "spa.db", create=True) as registry:
                enroll(registry)
                files = list((tmp_path / "new").iterdir())
                assert len(files) == 3
                assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700

    @as_root
    def test_what_root_makes_belongs_to_the_daemons_user(self, path: Path) -> None:
        os.chown(path.parent, 4242, 4343)
        with opened(path, create=True) as registry:
            enroll(registry)
            owners = {(f.stat().st_uid, f.stat().st_gid) for f in path.parent.iterdir()}
            assert len(list(path.parent.iterdir())) == 3
        assert owners == {(4242, 4343)}

    def test_its_modes_of_work(self, registry: Registry) -> None:
        def pragma(name: str) -> object:
            return registry._connection.execute(f"PRAGMA {name}").fetchone()[0]

        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 1
        assert pragma("foreign_keys") == 1
        assert pragma("busy_timeout") == 5000

    def test_it_is_in_wal_mode_before_it_has_its_name(self, path: Path) -> None:
        """Else of several processes that meet it new, some fail (SQLite file format, 1.3.3)."""
        schema._create(path)
        assert path.read_bytes()[18:20] == b"\2\2"

    def test_reading_only(self, path: Path, registry: Registry) -> None:
        key = enroll(registry)
        with opened(path, read_only=True) as reader:
            assert reader.keys() == [key]
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                enroll(reader)

    @pytest.mark.parametrize("options", [{"read_only": True}, {}])
    def test_one_that_is_not_there_is_not_made_by_looking(self, path: Path, options) -> None:
        with pytest.raises(RegistryError, match="there is no registry at"), opened(path, **options):
            pass
        assert not path.exists()

    def test_one_that_the_daemon_made_with_other_tables(self, path: Path) -> None:
        connection = schema.connect(path)
        connection.execute("CREATE TABLE burned (nonce BLOB)")
        with pytest.raises(RegistryError, match="not set up yet"), opened(path, read_only=True):
            pass
        registry = Registry(connection)
        enroll(registry)
        assert connection.execute("SELECT count(*) FROM burned").fetchone() == (0,)
        connection.close()

    def test_one_of_a_newer_version(self, path: Path, registry: Registry) -> None:
        registry._connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
            "VALUES ('keys', '0999_future', 'x'), ('daemon', '0999_other', 'x')"
        )
        with pytest.raises(RegistryError, match="made by a newer version"), opened(path):
            pass

    def test_a_connection_that_the_caller_owns(self, path: Path) -> None:
        """A default connection of Python's, which begins transactions by itself."""
        connection = sqlite3.connect(path)
        registry = Registry(connection)
        key = enroll(registry)
        connection.execute("BEGIN IMMEDIATE")
        registry.seen([(key.key_id, 5)])
        revoke(registry, "alice")
        assert connection.in_transaction
        connection.rollback()
        assert registry.keys() == [key]
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(Refused):
            revoke(registry, "nobody")
        registry.seen([(key.key_id, 5)])
        connection.commit()
        assert registry.keys() == [replace(key, last_seen_us=5)]
        connection.close()

    def test_another_process_is_noticed_by_the_data_version(
        self, path: Path, registry: Registry
    ) -> None:
        key = enroll(registry)
        before = (registry.data_version(), registry.last_change_id())
        registry.seen([(key.key_id, T0)])
        assert (registry.data_version(), registry.last_change_id()) == before
        with opened(path) as other:
            revoke(other, "alice")
        assert registry.data_version() != before[0]
        assert [c.action for c in registry.changes_since(before[1])] == ["key.revoked"]

    def test_a_failed_change_leaves_no_trace(self, registry: Registry) -> None:
        """The record cannot be written, so the key is not enrolled either."""
        registry._connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON registry_change WHEN NEW.action = 'role.granted' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(sqlite3.IntegrityError):
            enroll(registry)
        assert (registry.keys(), registry.identities(), registry.changes_since(0)) == ([], {}, [])
        assert not registry._connection.in_transaction

    @pytest.mark.once
    def test_of_many_keys_each_loads_as_fast_as_of_few(self, tmp_path: Path) -> None:
        """100,000 take less than a second by themselves."""
        with contextlib.ExitStack() as stack:
            crowds = {}
            for count in (2_000, 20_000):
                registry = stack.enter_context(opened(tmp_path / f"{count}.db", create=True))
                enroll(registry)
                crowd(registry, count - 1)
                crowds[count] = registry

            def load(count: int) -> None:
                assert len(crowds[count].keys()) == count

            assert growth(load, 2_000, times=10) < 3


class TestErrors:
    def said(self, path: Path, **options: bool) -> str:
        with pytest.raises(RegistryError) as error, opened(path, **options) as registry:
            enroll(registry)
        assert "\n" not in str(error.value)
        return str(error.value).replace(f"{path} ", "")

    def test_not_a_database(self, path: Path) -> None:
        path.write_text("nothing of the kind\n" * 100)
        assert self.said(path).startswith("is not a database")

    def test_a_damaged_database(self, path: Path, registry: Registry) -> None:
        for _ in range(200):
            enroll(registry)
        registry.close()
        content = bytearray(path.read_bytes())
        content[4096:] = os.urandom(len(content) - 4096)
        path.write_bytes(content)
        assert "is damaged" in self.said(path)

    def test_a_directory(self, tmp_path: Path) -> None:
        assert "is a directory" in self.said(tmp_path)

    def test_a_place_under_a_file(self, path: Path) -> None:
        path.touch()
        assert "not a directory" in self.said(path / "spa.db", create=True)

    def test_in_use(self, path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schema, "BUSY_TIMEOUT_S", 0.1)
        registry._connection.execute("BEGIN IMMEDIATE")
        assert self.said(path) == "is in use by another program; try again"
        registry._connection.execute("ROLLBACK")


SPAWN = multiprocessing.get_context("spawn")


def _enroll_one(path: Path, barrier, results) -> None:
    public = new_key()
    barrier.wait()
    try:
        with opened(path, create=True) as registry:
            results.put(enroll(registry, public=public).key_id)
    except Exception as error:
        results.put(repr(error))


def _redeem_one(path: Path, invite_id: str, barrier, results) -> None:
    public = new_key()
    with opened(path) as registry:
        barrier.wait()
        results.put((public.key_id, registry.redeem(invite_id, public, T0)))


def _race(work, *arguments: object, racers: int = 6) -> list:
    """What each of several real processes has to say that began at one moment."""
    barrier, results = SPAWN.Barrier(racers), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=work, args=(*arguments, barrier, results)) for _ in range(racers)
    ]
    for process in processes:
        process.start()
    said = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return said


class TestRaces:
    def test_all_enrol_into_a_registry_that_none_of_them_found(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "spa.db"
        key_ids = _race(_enroll_one, path)
        with opened(path) as registry:
            assert {key.key_id for key in everything(registry)} == set(key_ids)
            assert len(registry.changes_since(0)) == 7
        assert [p.name for p in path.parent.iterdir()] == ["spa.db"]

    def test_an_invite_enrols_exactly_one(self, path: Path) -> None:
        with opened(path, create=True) as registry:
            invite_id = invite(registry)
        outcomes = _race(_redeem_one, path, invite_id)
        winners = [key_id for key_id, said in outcomes if isinstance(said, Redeemed)]
        assert len(winners) == 1
        assert sum(said is JoinRefusal.USED for _, said in outcomes) == len(outcomes) - 1
        with opened(path) as registry:
            assert [key.key_id for key in everything(registry)] == winners
            assert [i.redeemed_by for i in registry.invites()] == winners


NAMES = st.sampled_from(["alice", "bob", "carol"])
ROLES = st.sets(st.sampled_from(["dba", "ops", "net"]))


class RegistryAgainstAModel(RuleBasedStateMachine):
    """Whatever is done in whatever order, the registry and its record say the same as a dict."""

    @initialize()
    def begin(self) -> None:
        self.registry = Registry(sqlite3.connect(":memory:"))
        self.clock = itertools.count(T0)
        self.keys: dict[str, tuple[str, bool]] = {}
        self.roles: dict[str, set[str]] = {}

    @rule(name=NAMES, roles=ROLES)
    def enroll(self, name: str, roles: set[str]) -> None:
        key = enroll(self.registry, name, roles=roles, now_us=next(self.clock))
        self.keys[key.key_id] = (name, True)
        self.roles.setdefault(name, set()).update(roles)

    @rule(name=NAMES)
    def revoke(self, name: str) -> None:
        left = {k for k, (owner, active) in self.keys.items() if owner == name and active}
        try:
            taken = self.registry.revoke(name, now_us=next(self.clock), actor="root")
        except Refused:
            taken = []
        assert {head.key_id for head in taken} == left
        self.keys |= dict.fromkeys(left, (name, False))

    @rule(name=NAMES, roles=ROLES)
    def grant(self, name: str, roles: set[str]) -> None:
        if name in self.roles:
            self.registry.grant(name, roles, now_us=next(self.clock), actor="root")
            self.roles[name] |= roles

    @rule(name=NAMES, roles=ROLES)
    def ungrant(self, name: str, roles: set[str]) -> None:
        if roles <= self.roles.get(name, set()) and name in self.roles:
            self.registry.ungrant(name, roles, now_us=next(self.clock), actor="root")
            self.roles[name] -= roles

    @rule(name=NAMES, roles=ROLES)
    def join(self, name: str, roles: set[str]) -> None:
        public = new_key()
        joined = self.registry.redeem(invite(self.registry, name, roles=roles), public, T0)
        assert isinstance(joined, Redeemed)
        self.keys[public.key_id] = (name, True)
        self.roles.setdefault(name, set()).update(roles)
        assert joined.roles == self.roles[name]

    @invariant()
    def same_as_the_model(self) -> None:
        if not hasattr(self, "registry"):
            return
        now = {k.key_id: (k.identity, k.is_active(T0)) for k in everything(self.registry)}
        assert now == self.keys
        assert self.registry.identities() == self.roles

    @invariant()
    def the_record_tells_it_all(self) -> None:
        """Who replays the record has the registry."""
        if not hasattr(self, "registry"):
            return
        keys: dict[str, tuple[str, bool]] = {}
        roles: dict[str, set[str]] = {}
        for action, name, key_id, detail in actions(self.registry):
            match action:
                case "key.enrolled":
                    keys[str(key_id)] = (name, True)
                    roles.setdefault(name, set())
                case "key.revoked":
                    keys[str(key_id)] = (name, False)
                case "role.granted":
                    assert detail not in roles[name]
                    roles[name].add(detail)
                case "role.ungranted":
                    roles[name].remove(detail)
        assert keys == self.keys
        assert roles == self.roles

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            self.registry.close()


TestAgainstAModel = RegistryAgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
