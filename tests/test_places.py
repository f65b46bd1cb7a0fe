"""Places at the control socket: nobody takes root's, and nobody all that there are."""

import pytest

from spa_server.places import OF_A_USER, OF_MEMBERS, OF_ROOT, Place, Places

ROOT, DAEMON = 0, 990


class Room:
    """Places, and who has lost theirs, in order."""

    def __init__(self) -> None:
        self.places = Places({ROOT, DAEMON})
        self.lost: list[int] = []

    def take(self, user: int) -> Place | None:
        return self.places.take(user, lambda: self.lost.append(user))

    def fill(self, users: range) -> None:
        for user in users:
            while self.take(user) is not None and not self.lost:
                pass


@pytest.fixture
def room() -> Room:
    return Room()


def test_a_user_has_so_many(room: Room) -> None:
    taken = [room.take(1000) for _ in range(OF_A_USER)]
    assert None not in taken
    assert room.take(1000) is None
    assert taken[3] is not None
    room.places.leave(taken[3])
    room.places.leave(taken[3])  # twice is no error, and frees one
    assert room.take(1000) is not None
    assert room.take(1000) is None
    assert room.lost == []


@pytest.mark.parametrize("user", [ROOT, DAEMON])
def test_members_take_no_place_of_roots(room: Room, user: int) -> None:
    for member in range(1000, 1100):
        for _ in range(OF_A_USER):
            room.take(member)
    lost = list(room.lost)
    assert all(room.take(user) is not None for _ in range(OF_ROOT))
    assert room.lost == lost


def test_roots_oldest_makes_way(room: Room) -> None:
    for _ in range(OF_ROOT // 2):
        room.take(DAEMON)
    for _ in range(OF_ROOT // 2):
        room.take(ROOT)
    assert room.lost == []
    assert room.take(ROOT) is not None
    assert room.lost == [DAEMON]


def test_whoever_has_most_makes_way_for_whoever_has_fewer(room: Room) -> None:
    for member in range(OF_MEMBERS // OF_A_USER):
        for _ in range(OF_A_USER):
            assert room.take(member + 1) is not None
    assert room.take(7) is not None
    assert len(room.lost) == 1
    assert all(room.take(7) is not None for _ in range(OF_A_USER // 2))
    # With as many of them as members, each has an equal part, and takes none from another.
    before = list(room.lost)
    while room.take(7) is not None:
        pass
    assert len(room.lost) - len(before) <= OF_A_USER // 2
    lost = len(room.lost)
    assert room.take(7) is None
    assert room.take(1) is None
    assert len(room.lost) == lost


def test_however_many_users_there_are_the_sum_stays(room: Room) -> None:
    held: list[Place] = []
    for member in range(1000, 1300):
        place = room.take(member)
        if place is not None:
            held.append(place)
    assert len(held) - len(room.lost) == OF_MEMBERS
    for place in held:
        room.places.leave(place)
    assert all(room.take(5) is not None for _ in range(OF_A_USER))
