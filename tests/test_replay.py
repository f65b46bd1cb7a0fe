"""The replay window, rule by rule (spa_server/replay.py)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_server.replay import REMEMBER_US, Burn, ReplayWindow

T = 1_795_500_000_000_000
SECOND = 1_000_000
MINUTE = 60 * SECOND


def burn(sent_at_us: int, nonce: int = 1, key_id: str = "alice") -> Burn:
    return Burn(key_id, nonce.to_bytes(24), sent_at_us)


# What was burned at T, the time at which the window last forgot, and what is asked about then.
TABLE = [
    ("the same again at once", T, burn(T), True),
    ("the same again after 29 min", T + 29 * MINUTE, burn(T), True),
    ("the same again after 31 min, when it is forgotten", T + 31 * MINUTE, burn(T), True),
    ("an older one of the same key after that", T + 31 * MINUTE, burn(T - 1, 2), True),
    ("a newer one of the same key after that", T + 31 * MINUTE, burn(T + 1, 2), False),
    ("another nonce stamped the same", T, burn(T, 2), False),
    ("another nonce stamped earlier", T, burn(T - 8 * SECOND, 2), False),
    ("the same nonce of another key", T, burn(T, 1, "bob"), False),
    ("another key is under no floor", T + 31 * MINUTE, burn(T, 1, "bob"), False),
    ("the same nonce with another stamp", T, burn(T + 5, 1), True),
]


def forget(window: ReplayWindow, now_us: int) -> dict[str, int]:
    """Forgets all there is to forget; the floors that have risen."""
    return {key: floor for some in window.forget(now_us) for key, floor in some.floors.items()}


@pytest.mark.parametrize(
    ("forgotten_at_us", "asked", "burned"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_table(forgotten_at_us: int, asked: Burn, burned: bool) -> None:
    window = ReplayWindow()
    window.add(burn(T))
    forget(window, forgotten_at_us)
    assert window.is_burned(asked) is burned


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 7))
def test_forgetting_goes_in_slices_that_cut_no_stamp_in_two(
    stamps: list[int], at_once: int
) -> None:
    window = ReplayWindow([burn(T + stamp, number) for number, stamp in enumerate(stamps)])
    now_us = T + 20 + REMEMBER_US
    kept = sorted(stamps)
    for slice_ in window.forget(now_us, at_once):
        gone = [stamp for stamp in kept if T + stamp < slice_.until_us]
        kept = kept[len(gone) :]
        assert len(gone) - gone.count(gone[-1]) < at_once
        assert slice_.floors == {"alice": T + gone[-1]}
        assert len(window) == len(kept)
    assert all(stamp >= 20 for stamp in kept)


def test_a_clock_set_back_revives_nothing() -> None:
    """Two hours forward, everything is forgotten; two hours back, the floor holds."""
    window = ReplayWindow()
    window.add(burn(T))
    assert forget(window, T + 120 * MINUTE) == {"alice": T}
    assert len(window) == 0
    assert window.is_burned(burn(T))
    assert not window.is_burned(burn(T + SECOND, 2))


def test_the_floor_never_sinks() -> None:
    window = ReplayWindow(floors=[("alice", T)])
    window.add(burn(T - MINUTE, 2))
    assert forget(window, T + 60 * MINUTE) == {"alice": T}


def test_a_floor_for_all_keys() -> None:
    window = ReplayWindow()
    assert window.is_burned(burn(T), floor_us=T)
    assert not window.is_burned(burn(T + 1), floor_us=T)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9), st.sampled_from("ab"))),
    st.lists(st.integers(0, 300), max_size=5),
)
def test_what_was_burned_stays_burned(
    stamps: list[tuple[int, int, str]], forgettings: list[int]
) -> None:
    """Whatever is forgotten in between, and whichever way the clock goes."""
    window = ReplayWindow()
    burned = []
    for minute, nonce, key in stamps:
        one = burn(T + minute * MINUTE, nonce, key)
        if not window.is_burned(one):
            window.add(one)
            burned.append(one)
    for minute in forgettings:
        forget(window, T + minute * MINUTE)
        assert all(window.is_burned(one) for one in burned)
        assert all(one[0] >= T + minute * MINUTE - REMEMBER_US for one in window._by_age)
