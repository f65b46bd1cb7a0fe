"""Which lines are in the chain: nobody pushes out what others did by being refused."""

import pytest

from spa_server.audit.record import Event, Record
from spa_server.audit.sorting import AN_HOUR, OF_ONE, Sorting

HOUR_US = 3_600_000_000


def refused(who: str = "mallory", reason: str = "no role allows it") -> Record:
    return Record(Event.KNOCK_REFUSED, 0, identity=who, key_id="k", reason=reason)


def kept(sorting: Sorting, record: Record, now_us: int, times: int) -> int:
    return sum(not sorting.is_apart(record, now_us) for _ in range(times))


@pytest.mark.parametrize(
    "record",
    [
        refused(),
        refused(reason="replayed"),
        Record(Event.CLOSE_ASKED, 0, identity="mallory", reason="too many at once"),
        Record(Event.JOIN_REFUSED, 0, reason="used", detail={"invite": "i"}),
        Record(Event.INVITE_ALARM, 0, reason="used", detail={"invite": "i"}),
    ],
)
def test_refusals_are_in_the_chain_until_they_are_many(record: Record) -> None:
    sorting = Sorting()
    assert kept(sorting, record, 0, 5000) == OF_ONE
    assert kept(sorting, record, HOUR_US // 2, 5000) == AN_HOUR // 2
    assert kept(sorting, record, 30 * HOUR_US, 5000) == OF_ONE
    assert kept(sorting, record, 0, 5000) == OF_ONE, "the clock was set back"


def test_nobody_uses_up_what_another_has() -> None:
    """Nor do replays of somebody's knocks, or the joins of an invite hide its alarm."""
    sorting = Sorting()
    kept(sorting, refused(), 0, 5000)
    kept(sorting, refused("alice", "replayed"), 0, 5000)
    assert not sorting.is_apart(refused("alice"), 0)
    join = Record(Event.JOIN_REFUSED, 0, reason="used", detail={"invite": "i"})
    kept(sorting, join, 0, 5000)
    alarm = Record(Event.INVITE_ALARM, 0, reason="used", detail={"invite": "i"})
    assert not sorting.is_apart(alarm, 0)


def test_what_was_granted_or_closed_is_always_in_the_chain() -> None:
    sorting = Sorting()
    for event in (Event.KNOCK_ACCEPTED, Event.HOLE_OPENED, Event.CLOSE_ASKED, Event.KEYS_CHANGED):
        assert kept(sorting, Record(event, 0, identity="mallory"), 0, 5000) == 5000


def test_what_anybody_can_cause_never_is() -> None:
    sorting = Sorting()
    assert kept(sorting, Record(Event.CONNECTION_DENIED, 0), 0, 1) == 0
    assert kept(sorting, refused(reason="bad-signature"), 0, 1) == 0
