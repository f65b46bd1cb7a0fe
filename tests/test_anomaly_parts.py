"""The parts of the watcher: places, habits of time, usual ranges, what is shared, what is kept."""

import math
import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_server.anomaly import week
from spa_server.anomaly.crowd import Crowd
from spa_server.anomaly.places import place_of, region_of, text_of
from spa_server.anomaly.profile import (
    MAX_PLACES,
    Profile,
    day_of,
    days_of,
    hops_of,
    is_hopped,
    is_stray,
    new_profile,
    note,
    note_hop,
)
from spa_server.anomaly.shelf import Shelf
from spa_server.anomaly.usual import Usual

ADDRESSES = st.ip_addresses().filter(lambda one: getattr(one, "scope_id", None) is None)


class TestPlaces:
    @given(ADDRESSES)
    def test_they_are_the_networks_that_ipaddress_knows(
        self, address: IPv4Address | IPv6Address
    ) -> None:
        is_v4 = address.version == 4
        place = place_of(str(address))
        assert place is not None
        network = ip_network(f"{address}/{24 if is_v4 else 48}", strict=False)
        region = ip_network(f"{address}/{16 if is_v4 else 32}", strict=False)
        assert ip_network(text_of(place)) == network
        assert ip_network(text_of(region_of(place))) == region

    @pytest.mark.parametrize("text", [None, "", "1", "10.1.1", "10.1.1.0/24", "::/0", "x\0y", "é"])
    def test_what_is_no_address_is_no_place(self, text: str | None) -> None:
        assert place_of(text) is None


class TestWeek:
    def test_its_first_hour_is_monday_s(self) -> None:
        assert week.words(week.slot_of(0)) == "Thursday 00 h UTC"
        assert week.words(week.slot_of(1_772_409_600 // 3600)) == "Monday 00 h UTC"

    def test_who_comes_at_any_hour_surprises_at_none(self) -> None:
        always = bytearray([40] * week.HOURS)
        assert max(week.surprise(always, slot) for slot in range(week.HOURS)) < 0.01

    def test_office_hours(self) -> None:
        rng = random.Random(1)
        hours = bytearray(week.HOURS)
        for _ in range(300):
            week.add(hours, rng.randrange(5) * 24 + rng.randrange(8, 17))
        at_work, at_night = week.surprise(hours, 2 * 24 + 10), week.surprise(hours, 2 * 24 + 3)
        early, sunday = week.surprise(hours, 2 * 24 + 7), week.surprise(hours, 6 * 24 + 10)
        assert at_work == 0
        assert early < at_night
        assert at_night > 3
        assert sunday > 3

    @given(st.integers(0, 167), st.integers(1, 2000))
    def test_a_count_that_is_full_halves_them_all(self, slot: int, times: int) -> None:
        hours = bytearray([10] * week.HOURS)
        for _ in range(times):
            week.add(hours, slot)
        assert max(hours) == hours[slot] <= 250


class TestUsual:
    def test_it_learns_a_range_and_forgets_an_old_one(self) -> None:
        rng = random.Random(2)
        usual = Usual()
        for _ in range(100):
            usual.learn(max(0, round(rng.gauss(20, 4))))
        assert usual.up_to(0) == pytest.approx(20, rel=0.15)
        assert 25 < usual.up_to(3) < 60
        for _ in range(300):
            usual.learn(200)
        assert usual.up_to(0) == pytest.approx(200, rel=0.1)

    @given(st.lists(st.integers(0, 10**9), max_size=80))
    def test_it_is_finite_and_in_order(self, counts: list[int]) -> None:
        usual = Usual()
        for count in counts:
            usual.learn(count)
        assert math.isfinite(usual.up_to(3))
        assert usual.up_to(0) <= usual.up_to(1) <= usual.up_to(3)


class TestSeen:
    def test_days_are_counted_once_each(self) -> None:
        seen: dict[str, int] = {}
        for day in (100, 100, 101, 101, 99, 105):
            note(seen, "a", day, 5)
        assert (day_of(seen["a"]), days_of(seen["a"])) == (105, 3)

    def test_the_one_seen_longest_ago_makes_room(self) -> None:
        seen: dict[str, int] = {}
        for day, name in enumerate("abca"):
            note(seen, name, day, 3)
        gone = note(seen, "d", 9, 3)
        assert gone is not None
        assert gone[0] == "b"
        assert set(seen) == set("cad")

    def test_a_stray_that_stays_is_none(self) -> None:
        seen: dict[bytes, int] = {}
        note(seen, b"abc", 1, 5, stray=True)
        assert is_stray(seen[b"abc"])
        for day in range(2, 7):
            note(seen, b"abc", day, 5)
        assert not is_stray(seen[b"abc"])
        assert days_of(seen[b"abc"]) == 6

    def test_hops_are_counted_once_a_day_and_have_no_influence_on_the_rest(self) -> None:
        seen: dict[bytes, int] = {}
        for day in range(1, 41):
            note(seen, b"abc", day, 5, stray=True)
            if day % 2:
                note_hop(seen, b"abc")
                note_hop(seen, b"abc")
            assert (day_of(seen[b"abc"]), days_of(seen[b"abc"])) == (day, day)
            assert hops_of(seen[b"abc"]) == min(15, (day + 1) // 2)
        assert is_hopped(seen[b"abc"])
        note_hop(seen, b"new")
        assert b"new" not in seen

    def test_a_profile_is_of_a_bounded_size(self) -> None:
        profile = new_profile("alice", 0)
        for day in range(500):
            note(profile.places, day.to_bytes(3, "big"), day, MAX_PLACES)
        assert len(profile.places) == MAX_PLACES


class TestCrowd:
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=80))
    def test_it_counts_as_if_it_were_counted_anew(self, steps: list[tuple[int, int]]) -> None:
        """Keys come to know networks, forget the oldest of more than four, and hop at times."""
        crowd = Crowd()
        keys: dict[int, dict[bytes, int]] = {}
        for day, (key, number) in enumerate(steps):
            places = keys.setdefault(key, {})
            place = bytes([number // 4, 1, number])
            before = places.get(place, 0)
            gone = note(places, place, day, 4)
            if number % 3 == 0:
                note_hop(places, place)
            if before:
                crowd.hop(place, before, places[place])
            else:
                crowd.enter(place, places, gone)
        anew = Crowd()
        for places in keys.values():
            anew.join(places)
        assert (crowd._keys, crowd._hoppers) == (anew._keys, anew._hoppers)
        for places in keys.values():
            anew.part(places)
        assert (anew._keys, anew._hoppers) == ({}, {})

    def test_a_key_is_not_its_own_neighbour(self) -> None:
        crowd = Crowd()
        mine = {b"\x0a\x01\x01": 1, b"\x0a\x01\x02": 1}
        crowd.join(mine)
        assert crowd.others_at(b"\x0a\x01\x01", mine) == 0
        assert crowd.others_near(b"\x0a\x01\x03", mine) == 0
        assert crowd.others_near(b"\x0a\x01\x03", {}) == 1


class TestShelf:
    def test_what_is_packed_comes_back_as_it_was(self) -> None:
        shelf = Shelf(Profile, max_at_hand=2)
        made = {f"key-{n}": new_profile(f"person-{n}", n) for n in range(9)}
        for name, profile in made.items():
            profile.places[name.encode()] = 7
            shelf.put(name, profile)
        assert len(shelf) == 9
        assert len(shelf.at_hand) == 2
        assert all(shelf.get(name) == profile for name, profile in made.items())
        assert shelf.get("key-99") is None

    def test_past_its_size_the_oldest_are_forgotten_and_that_is_saved(self) -> None:
        shelf = Shelf(Profile, max_at_hand=2, max_kept=5)
        for n in range(12):
            shelf.put(f"key-{n}", new_profile("x", n))
        assert len(shelf) == 5
        states = dict(shelf.take_unsaved(100))
        assert [name for name, state in states.items() if state is not None] != []
        assert sum(state is None for state in states.values()) == 7

    def test_what_is_not_sound_is_not_taken(self) -> None:
        shelf = Shelf(Profile)
        with pytest.raises(msgspec.DecodeError):
            shelf.restore("key", b"\x93\x01\x02\x03")
        assert len(shelf) == 0


def test_addresses_of_the_tests_are_what_they_seem() -> None:
    assert place_of("198.51.100.23") == ip_address("198.51.100.0").packed[:3]
