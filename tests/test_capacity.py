"""How many keys fit, and what becomes of the one that does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from keys import identity
from keys.capacity import DEFAULT_MAX_KEYS, NoRoom
from keys.enrolled import LATE_US
from keys.hostconfig import host_config
from keys.identity import Identity
from keys.registry import JoinRefusal, Redeemed, Registry, opened
from keys.tomlfile import FileProblem
from spa_protocol.publickey import PublicKey
from spa_server.admission import room_for
from spa_server.firewall.plan import GatePlan

T0 = 1_800_000_000_000_000
DAY_US = 86_400_000_000


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with opened(tmp_path / "spa.db", create=True, max_keys=3) as registry:
        yield registry


def new_key() -> PublicKey:
    return identity.generate().public


def enroll(registry: Registry, public: PublicKey, *, expires_at_us: int | None = None) -> None:
    registry.enroll("alice", public, expires_at_us=expires_at_us, now_us=T0, actor="root")


def invite(registry: Registry, *, days: int = 1, needs_approval: bool = False) -> str:
    token = registry.create_invite(
        "bob",
        expires_at_us=T0 + days * DAY_US,
        needs_approval=needs_approval,
        now_us=T0,
        actor="root",
    )
    return Identity.from_invite(token).public.key_id


@pytest.mark.parametrize("later_us", [0, 1, DAY_US, LATE_US, LATE_US + DAY_US, 2 * LATE_US])
def test_counted_is_what_is_heard(registry: Registry, later_us: int) -> None:
    registry.max_keys = None
    lasting, ending, revoked = new_key(), new_key(), new_key()
    for public, expires_at_us in ((lasting, None), (ending, T0 + DAY_US), (revoked, None)):
        enroll(registry, public, expires_at_us=expires_at_us)
    registry.revoke(revoked.key_id, now_us=T0, actor="root")
    ids = [invite(registry, days=days) for days in (1, 9, 9)]
    registry.revoke(ids[1], now_us=T0 + 1, actor="root")
    assert isinstance(registry.redeem(ids[2], new_key(), T0), Redeemed)
    now_us = T0 + later_us
    entries = [*registry.keys(), *registry.invites()]
    assert registry.heard(now_us) == sum(entry.is_heard(now_us) for entry in entries)


def enroll_together(registry: Registry, count: int) -> None:
    with registry.at_once(), registry.within_capacity(T0):
        for _ in range(count):
            enroll(registry, new_key())


def test_one_key_too_many_is_refused_and_none_of_its_list_is_enrolled(registry: Registry) -> None:
    enroll(registry, new_key())
    with pytest.raises(NoRoom, match="4 keys and invites would be heard") as refused:
        enroll_together(registry, 3)
    assert "max_keys" in refused.value.hint
    assert len(registry.keys()) == 1


def test_an_invite_that_does_not_fit_is_not_made(registry: Registry) -> None:
    for _ in range(3):
        invite(registry)
    with pytest.raises(NoRoom):
        invite(registry)
    assert len(registry.invites()) == 3


@pytest.mark.parametrize("needs_approval", [False, True])
def test_a_join_that_does_not_fit_is_refused_and_its_invite_stays_good(
    registry: Registry, needs_approval: bool
) -> None:
    invite_id, other = invite(registry, needs_approval=needs_approval), new_key()
    for public in (other, new_key()):
        enroll(registry, public)
    mine = new_key()
    assert registry.redeem(invite_id, mine, T0) is JoinRefusal.FULL
    registry.revoke(other.key_id, now_us=T0, actor="root")
    assert isinstance(registry.redeem(invite_id, mine, T0), Redeemed)
    again = registry.redeem(invite_id, mine, T0)
    assert isinstance(again, Redeemed)
    assert again.again


def test_where_there_are_too_many_already_those_can_be_renewed(registry: Registry) -> None:
    registry.max_keys = None
    known = [new_key() for _ in range(5)]
    for public in known:
        enroll(registry, public)
    registry.max_keys = 3
    with registry.at_once(), registry.within_capacity(T0):
        enroll(registry, known[0], expires_at_us=T0 + DAY_US)
    with pytest.raises(NoRoom):
        enroll_together(registry, 1)


def test_the_configuration_says_how_many(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("max_keys = 5000\n")
    assert host_config(file).max_keys == 5000
    file.write_text("")
    assert host_config(file).max_keys == DEFAULT_MAX_KEYS
    for wrong in ("true", "99", "2000001", '"many"', "1e6"):
        file.write_text(f"max_keys = {wrong}\n")
        with pytest.raises(FileProblem, match="max_keys: expected a number from 100 to 2000000"):
            host_config(file)


def test_the_usual_set_of_tags_is_as_large_as_ever() -> None:
    assert 0.99 * GatePlan().tags < room_for(DEFAULT_MAX_KEYS) <= GatePlan().tags
