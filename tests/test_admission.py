"""Admission: which tags are heard, and for how long."""

from keys.identity import Identity
from spa_protocol.layout import EPOCH_S, TAGS, epoch_of
from spa_server.admission import (
    SPARED_AT_ONCE,
    Admission,
    admitted_until_us,
    load_all,
    room_for,
    window,
)
from tests.world import NOW_US, World

EPOCH_US = EPOCH_S * 1_000_000


def test_a_key_is_found_by_its_tags_of_five_epochs_and_no_other() -> None:
    world = World()
    alice = world.enrol()
    pair = alice.pair_with(world.server.public)
    now = epoch_of(NOW_US)
    found = [by for by in range(-4, 5) if world.admission.find(pair.tag_at(now + by))]
    assert found == [-2, -1, 0, 1, 2]


def test_each_tag_is_admitted_until_its_epoch_has_left_the_window() -> None:
    world = World()
    world.enrol()
    for tag in world.admission.tags():
        assert tag.until_us % EPOCH_US == 0
    last = epoch_of(NOW_US) + 2
    assert last in window(admitted_until_us(last) - 1)
    assert last not in window(admitted_until_us(last))


def test_the_next_epoch_is_loaded_ahead_of_its_time() -> None:
    world = World()
    world.enrol()
    epoch = epoch_of(NOW_US)
    assert world.admission.missing_epochs(NOW_US) == []
    assert world.admission.missing_epochs(NOW_US, ahead=1) == [epoch + 3]
    assert len(load_all(world.admission, [epoch + 3])) == 1


def test_a_key_that_joins_late_is_named_in_every_loaded_epoch() -> None:
    world = World()
    world.enrol()
    bob = World().enrol()
    tags = world.admission.add(bob.public.key_id, world.sender(bob))
    assert len(tags) == 5
    assert all(world.admission.find(tag.value) is not None for tag in tags)


def test_a_removed_key_is_heard_no_more() -> None:
    world = World()
    alice = world.enrol()
    tags = [tag.value for tag in world.admission.tags()]
    assert sorted(world.admission.remove(alice.public.key_id)) == sorted(tags)
    assert [world.admission.find(tag) for tag in tags] == [None] * 5
    assert world.admission.remove(alice.public.key_id) == []


def test_a_key_removed_while_an_epoch_loads_is_not_named_in_it() -> None:
    world = World()
    alice, bob = world.enrol(), world.enrol()
    loading = world.admission.load(epoch_of(NOW_US) + 3)
    next(loading)
    world.admission.remove(bob.public.key_id)
    assert list(loading) == []
    assert alice.public.key_id in world.admission


def test_a_clock_that_was_set_drops_the_epochs_that_are_far_away() -> None:
    world = World()
    world.enrol()
    later_us = NOW_US + 2 * 3600 * 1_000_000
    world.admission.drop_outside(later_us)
    assert list(world.admission.tags()) == []
    assert len(world.admission.missing_epochs(later_us)) == 5


def test_an_empty_table_finds_nothing() -> None:
    assert Admission().find(bytes(8)) is None


# Spare tags


def spare_tags(who: Identity, world: World, epoch: int) -> list[bytes]:
    pair = who.pair_with(world.server.public)
    return [pair.tag_at(epoch, number) for number in range(1, TAGS)]


def test_spare_tags_are_not_heard_until_they_are_needed() -> None:
    world = World()
    alice, bob = world.enrol(), world.enrol()
    epoch = epoch_of(NOW_US)
    assert not any(map(world.admission.find, spare_tags(alice, world, epoch)))
    before = world.admission.tag_count
    tags = world.admission.spare(alice.public.key_id, NOW_US)
    for near in range(epoch - 2, epoch + 2):
        for tag in spare_tags(alice, world, near):
            found = world.admission.find(tag)
            assert found is not None
            assert found.key_id == alice.public.key_id
            assert tag in {named.value for named in tags}
    assert not any(map(world.admission.find, spare_tags(bob, world, epoch)))
    assert world.admission.spare(alice.public.key_id, NOW_US) == []
    assert world.admission.tag_count <= before + 5 * (TAGS - 1)


def test_an_epoch_that_is_loaded_later_has_them_while_the_flood_lasts() -> None:
    world = World()
    alice = world.enrol()
    world.admission.spare(alice.public.key_id, NOW_US)
    epoch = epoch_of(NOW_US)
    later_us = NOW_US + 3 * EPOCH_US
    for number in (3, 4):
        load_all(world.admission, [epoch + number])
        assert not any(map(world.admission.find, spare_tags(alice, world, epoch + number)))
    assert world.admission.spare(alice.public.key_id, later_us)
    for number in (3, 4):
        assert all(map(world.admission.find, spare_tags(alice, world, epoch + number)))


def test_a_revoked_key_is_not_heard_by_its_spare_tags_either() -> None:
    world = World()
    alice = world.enrol()
    world.admission.spare(alice.public.key_id, NOW_US)
    bob = world.enrol()
    tags = {tag.value for tag in world.admission.tags()}
    much_later_us = NOW_US + 2 * EPOCH_US + 1
    world.admission.spare(bob.public.key_id, much_later_us)
    gone = set(world.admission.remove(alice.public.key_id))
    epoch = epoch_of(NOW_US)
    assert set(spare_tags(alice, world, epoch)) <= gone <= tags
    assert not any(map(world.admission.find, gone))
    assert world.admission.spare(alice.public.key_id, NOW_US) == []


def test_no_thief_of_all_tags_fills_the_set_with_spare_ones() -> None:
    world = World()
    everybody = [world.enrol() for _ in range(SPARED_AT_ONCE + 1)]
    load_all(world.admission, [epoch_of(NOW_US) + 3])
    *most, last = [world.admission.spare(who.public.key_id, NOW_US) for who in everybody]
    assert all(most)
    assert last == []
    assert world.admission.tag_count <= room_for(len(everybody))
    over_us = NOW_US + 8 * EPOCH_US
    assert world.admission.spare(everybody[-1].public.key_id, over_us) != []


def test_a_clock_that_is_set_forgets_them_with_all_tags() -> None:
    world = World()
    alice = world.enrol()
    world.admission.spare(alice.public.key_id, NOW_US)
    world.admission.drop_all()
    epoch = epoch_of(NOW_US)
    assert len(load_all(world.admission, [epoch])) == 1
