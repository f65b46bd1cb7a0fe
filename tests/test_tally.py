"""The tally: the first of a kind is written, the rest is counted."""

from spa_server.tally import CAP, INTERVAL_US, Tally


def test_the_first_of_a_kind_is_written_and_the_others_are_counted() -> None:
    tally: Tally[str] = Tally()
    assert [tally.is_first("a", 0), tally.is_first("a", 1), tally.is_first("b", 2)] == [
        True,
        False,
        True,
    ]
    assert tally.take() == ({"a": 1}, 0)
    assert tally.is_first("a", 3)


def test_kinds_past_the_cap_share_one_count() -> None:
    tally: Tally[int] = Tally()
    written = [tally.is_first(kind, 0) for kind in range(CAP + 50)]
    assert sum(written) == CAP
    assert tally.take() == ({}, 50)


def test_it_is_due_after_its_interval_and_when_the_clock_was_set_back() -> None:
    tally: Tally[str] = Tally()
    assert not tally.is_due(10 * INTERVAL_US)
    tally.is_first("a", 5 * INTERVAL_US)
    assert not tally.is_due(5 * INTERVAL_US + 1)
    assert tally.is_due(6 * INTERVAL_US)
    assert tally.is_due(4 * INTERVAL_US)
    assert tally.due_at_us() == 6 * INTERVAL_US
