"""Scans: many closed ports, or many targets, of one source; and floods from forged addresses."""

from ipaddress import ip_network
from itertools import pairwise

from spa_server.anomaly import scans
from spa_server.anomaly.finding import Kind
from spa_server.anomaly.settings import Settings
from spa_server.anomaly.watcher import Watcher
from tests.anomaly_life import at, denial, see

SCANNER = "198.51.100.66"


def test_many_ports_of_one_source_quickly_or_slowly() -> None:
    for pause_h in (0.0001, 0.5, 3.0):
        told = see(
            Watcher(), [denial(at(0, n * pause_h), SCANNER, f"tcp/{n}") for n in range(1, 30)]
        )
        assert [(one.name, one.source) for one in told] == [(Kind.SCAN, SCANNER)]
        assert "denied at 12 closed ports within " in told[0].reason
        assert told[0].identity is None


def test_one_port_of_many_targets() -> None:
    told = see(
        Watcher(), [denial(at(0, n / 60), SCANNER, "tcp/22", f"192.0.2.{n}") for n in range(30)]
    )
    assert [one.name for one in told] == [Kind.SCAN]
    assert "12 targets" in told[0].reason


def test_a_few_ports_are_none_however_often() -> None:
    records = [denial(at(0, n / 6), "10.9.0.5", f"tcp/{9100 + n % 3}") for n in range(500)]
    assert see(Watcher(), records) == []


def test_many_ports_over_weeks_are_none() -> None:
    assert see(Watcher(), [denial(at(n), SCANNER, f"tcp/{n}") for n in range(60)]) == []


def test_one_that_goes_on_is_told_once_a_day() -> None:
    records = [denial(at(0, n / 4), SCANNER, f"tcp/{n}") for n in range(4 * 24 * 3)]
    told = see(Watcher(), records)
    assert len(told) == 3
    assert all(b.at_us - a.at_us >= at(1) - at(0) for a, b in pairwise(told))


def test_one_that_has_ended_is_not_told_again_for_a_stray_packet() -> None:
    watcher = Watcher()
    assert len(see(watcher, [denial(at(0, n / 60), SCANNER, f"tcp/{n}") for n in range(40)])) == 1
    assert see(watcher, [denial(at(1, 12), SCANNER, "tcp/4000")]) == []


def test_a_flood_from_forged_addresses_hides_no_scan_that_goes_on() -> None:
    watcher = Watcher()
    told = []
    for n in range(14):
        flood = [
            denial(at(0, n), f"10.{k % 200}.{k // 200 % 250}.{n}", "tcp/80") for k in range(20_000)
        ]
        told += see(watcher, [*flood, denial(at(0, n + 0.5), SCANNER, f"tcp/{n}")])
        told += see(watcher, [denial(at(0, n + 0.6), SCANNER, f"tcp/{100 + n}")])
    assert [one.source for one in told] == [SCANNER]


def test_many_scanners_are_counted_and_memory_is_bounded() -> None:
    watcher = Watcher(Settings(scans_an_hour=3))
    told = []
    for k in range(scans.MAX_SOURCES + 100):
        source = f"10.{k % 200}.{k // 200}.9"
        told += see(watcher, [denial(at(0, 0.1) + k, source, f"tcp/{n}") for n in range(13)])
    assert len(told) == 3
    assert len(watcher._scans.tracks) <= scans.MAX_SOURCES
    assert len(watcher._scans._strangers) <= scans.MAX_STRANGERS
    later = see(watcher, [denial(at(0, 2), SCANNER, f"tcp/{n}") for n in range(13)])
    assert "2145 other sources did the like, untold" in later[0].reason


def test_a_scanner_of_one_s_own() -> None:
    trusting = Watcher(Settings(trusted=(ip_network("198.51.100.64/29"),)))
    records = [denial(at(0), SCANNER, f"tcp/{n}") for n in range(50)]
    assert see(trusting, records) == []


def test_lines_without_an_address_are_passed_over() -> None:
    records = [denial(at(0), "203.0.113.0/24", f"tcp/{n}") for n in range(50)]
    assert see(Watcher(), records) == []
