"""The daemon's clock against the kernel's own words, and its watch against a real setting."""

import select
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from spa_protocol.layout import epoch_of
from spa_server import clock
from spa_server.clock import ClockWatch
from tests.world import NOW_US, World

SECOND_US = 1_000_000
UNITS = Path(__file__).parent.parent / "packaging" / "systemd"


@pytest.fixture
def watch() -> Iterator[ClockWatch]:
    with closing(ClockWatch()) as made:
        yield made


def is_awake(watch: ClockWatch, within_s: float = 0.0) -> bool:
    return bool(select.select([watch], [], [], within_s)[0])


def set_the_clock_to_what_it_is() -> None:
    """A real call to clock_settime(2), by nothing. Skips where it is not allowed."""
    try:
        time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))
    except PermissionError:
        pytest.skip("setting the clock needs CAP_SYS_TIME")


def test_nothing_stamped_before_this_boot_and_half_a_minute_is_accepted() -> None:
    """/proc/uptime counts from the boot, and includes time asleep, as CLOCK_BOOTTIME does."""
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    booted_us = clock.now_us() - round(uptime_s * SECOND_US)
    floor_us = clock.boot_floor_us(freshness_s=30)
    assert abs(floor_us - (booted_us + 30 * SECOND_US)) < SECOND_US / 2


def test_the_wall_clock_counts_microseconds_since_1970() -> None:
    assert abs(clock.now_us() - time.time() * SECOND_US) < SECOND_US / 2


def test_the_offset_is_the_same_a_moment_later() -> None:
    before = clock.offset_us()
    time.sleep(0.05)
    assert abs(clock.offset_us() - before) < SECOND_US / 100


def test_the_boot_has_a_name_of_its_own() -> None:
    assert len(clock.boot_id()) == 36
    assert clock.boot_id() == clock.boot_id()


def test_a_unit_is_told_the_name_by_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container its own /proc has the kernel's, which is another than root sees there."""
    monkeypatch.setenv("SPA_BOOT_ID", "ff6882d4f87546ac9b245e0206b1845a")
    assert clock.boot_id() == "ff6882d4-f875-46ac-9b24-5e0206b1845a"


@pytest.mark.parametrize("unit", ["spa-gate", "spa-server"])
def test_each_unit_tells_the_name_of_the_boot(unit: str) -> None:
    told = (UNITS / f"{unit}.service").read_text(encoding="utf-8")
    assert "\nEnvironment=SPA_BOOT_ID=%b\n" in told


def test_the_watch_sleeps_while_nobody_sets_the_clock(watch: ClockWatch) -> None:
    assert not is_awake(watch, within_s=0.05)
    watch.drain()
    assert not is_awake(watch, within_s=0.05)


def test_the_watch_wakes_each_time_somebody_sets_the_clock(watch: ClockWatch) -> None:
    for _ in range(3):
        set_the_clock_to_what_it_is()
        assert is_awake(watch, within_s=1)
        watch.drain()
        assert not is_awake(watch)


def test_a_clock_that_is_set_while_the_watch_takes_note_is_no_trouble(watch: ClockWatch) -> None:
    """timerfd_settime(2) then says ECANCELED, and arms the timer all the same."""
    set_the_clock_to_what_it_is()
    watch._arm()
    watch.drain()
    set_the_clock_to_what_it_is()
    assert is_awake(watch, within_s=1)


def test_tags_that_are_being_loaded_when_the_clock_is_set_are_let_go() -> None:
    """Loading pauses after each thousand; in a pause the clock may be set, and all tags dropped."""
    world = World()
    people = [world.enrol() for _ in range(3)]
    world.admission.drop_all()
    loading = world.admission.load(epoch_of(NOW_US))
    assert next(loading).value
    world.admission.drop_all()
    assert list(loading) == []
    tags = {tag.value for tag in world.admission.load(epoch_of(NOW_US))}
    assert len(tags) == len(people)
