"""When a tag counts as flooded."""

from itertools import pairwise

from spa_server.floods import LEASE_S, Floods

TAG = b"8 bytes!"


def told(floods: Floods, times: list[float], tag: bytes = TAG) -> list[float]:
    return [at_s for at_s in times if floods.junk(tag, at_s)]


def test_what_a_network_repeats_by_itself_is_no_flood() -> None:
    assert told(Floods(), [0.0] * 10) == []
    assert told(Floods(), [10.0 * n for n in range(1000)]) == []


def test_the_eleventh_at_once_is_one() -> None:
    assert told(Floods(), [0.0] * 11) == [0.0]


def test_it_is_told_once_and_again_before_its_lease_ends() -> None:
    times = [n / 20 for n in range(20 * 200)]
    found = told(Floods(), times)
    assert len(found) == 7
    assert all(later - earlier < LEASE_S for earlier, later in pairwise(found))


def test_one_that_is_over_is_forgiven() -> None:
    floods = Floods()
    assert told(floods, [0.0] * 1000) == [0.0]
    assert told(floods, [300.0] * 10) == []
    assert told(floods, [301.0]) == [301.0]


def test_each_tag_has_an_account_of_its_own() -> None:
    floods = Floods()
    assert told(floods, [0.0] * 100)
    assert told(floods, [0.0] * 10, b"another!") == []


def test_many_tags_take_no_more_memory() -> None:
    floods = Floods()
    for number in range(70_000):
        floods.junk(number.to_bytes(8), 0.0)
    assert len(floods._accounts) <= 65_536
    assert told(floods, [0.0] * 11) == [0.0]
