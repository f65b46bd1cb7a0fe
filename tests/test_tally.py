"""The tally: the first of a kind is written, the rest is counted, and nobody crowds others out."""

from spa_server.tally import INTERVAL_US, OF_ALL, OF_ONE, PARTIES, Tally

Tried = tuple[str, int]
"""A source and a port."""


def by_source() -> Tally[Tried, str]:
    return Tally(lambda kind: kind[0])


def test_the_first_of_a_kind_is_written_and_the_others_are_counted() -> None:
    tally: Tally[str, str] = Tally(str)
    assert [tally.is_first("a", 0), tally.is_first("a", 1), tally.is_first("b", 2)] == [
        True,
        False,
        True,
    ]
    assert tally.take() == ({"a": 1}, {}, 0)
    assert tally.is_first("a", 3)


def test_many_at_once_are_one_line_and_later_ones_a_count() -> None:
    tally: Tally[str, str] = Tally(str)
    assert tally.is_first("a", 0, 5)
    assert not tally.is_first("a", 0, 4)
    assert tally.take() == ({"a": 4}, {}, 0)


def test_kinds_of_one_party_past_its_budget_are_counted_for_it() -> None:
    tally = by_source()
    written = [tally.is_first(("eve", port), 0) for port in range(OF_ONE + 50)]
    assert sum(written) == OF_ONE
    assert tally.take() == ({}, {"eve": 50}, 0)


def test_a_scan_shows_every_port_beside_a_source_that_sprays() -> None:
    """The attack on 0.1.0: 200 kinds of anybody's, and then silence for everybody."""
    tally = by_source()
    shown = 0
    for port in range(1000):
        tally.is_first(("junk", port), 0)
        shown += port % 16 == 0 and tally.is_first(("scan", port), 0)
    assert shown == 63


def test_a_scan_shows_between_sources_that_are_forged() -> None:
    """Whose first line may be lost, and who is known by the second."""
    tally = by_source()
    shown = 0
    for number in range(60_000):
        tally.is_first((f"forged {number}", 1), 0)
        shown += number % 1000 == 999 and tally.is_first(("scan", number), 0)
    assert shown == 59
    _, by_party, beyond = tally.take()
    assert by_party["scan"] == 1
    assert sum(by_party.values()) + beyond == 60_060 - OF_ALL - 59


def test_parties_of_any_number_take_bounded_room_and_every_packet_is_counted() -> None:
    tally = by_source()
    written = sum(tally.is_first((str(n), 1), 0) for n in range(3 * PARTIES))
    further, by_party, beyond = tally.take()
    assert (written, further, len(by_party)) == (OF_ALL, {}, PARTIES)
    assert sum(by_party.values()) + beyond == 3 * PARTIES - OF_ALL


def test_it_is_due_after_its_interval_and_when_the_clock_was_set_back() -> None:
    tally: Tally[str, str] = Tally(str)
    assert not tally.is_due(10 * INTERVAL_US)
    tally.is_first("a", 5 * INTERVAL_US)
    assert not tally.is_due(5 * INTERVAL_US + 1)
    assert tally.is_due(6 * INTERVAL_US)
    assert tally.is_due(4 * INTERVAL_US)
    assert tally.due_at_us() == 6 * INTERVAL_US
