"""What the watcher costs: microseconds a knock, bytes a key."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.anomaly_world import world
from spa_server.anomaly.watcher import Watcher
from spa_server.audit.record import Event, Record

KEYS: Final = 100_000
_BEGIN_US: Final = 1_772_409_600_000_000
_HOUR_US: Final = 3_600_000_000
_SOME: Final = 1000


@dataclass(frozen=True, slots=True)
class Cost:
    """A figure with its unit."""

    name: str
    value: str


class _Memory(msgspec.Struct):
    """What a process of its own found."""

    rss_bytes: int
    us_a_knock: float
    state_bytes: float
    restore_s: float


def knock(number: int, at_us: int, *, network: int = 0, port: str = "tcp/22") -> list[Record]:
    """What the record has of one granted knock."""
    who = {
        "identity": f"person-{number}",
        "key_id": f"SPA:{number:024}",
        "source": f"10.{number % 200}.{(number // 200 + network) % 250}.7",
        "target": "192.0.2.1",
        "access": port,
    }
    return [Record(Event.KNOCK_ACCEPTED, at_us, **who), Record(Event.HOLE_OPENED, at_us, **who)]


def _us_a_pair(watcher: Watcher, records: Sequence[Record]) -> float:
    began_s = time.perf_counter()
    for record in records:
        watcher.see(record)
    return (time.perf_counter() - began_s) / len(records) * 2e6


def _at(day: int, hour: int, minute: int = 0) -> int:
    return _BEGIN_US + (day * 24 + hour) * _HOUR_US + minute * 60_000_000


def _speeds() -> Iterator[Cost]:
    """1,000 people with a month's habits."""
    watcher = Watcher()
    for day in range(30):
        for hour in (8, 9, 13, 15):
            for number in range(_SOME):
                for record in knock(number, _at(day, hour), port=("tcp/22", "tcp/443")[hour % 2]):
                    watcher.see(record)
    alike = [r for m in range(1, 10) for n in range(_SOME) for r in knock(n, _at(29, 15, m))]
    hours = [r for h in (8, 9, 13) for n in range(_SOME) for r in knock(n, _at(30, h))]
    moves = [
        r for m in (1, 2, 3) for n in range(_SOME) for r in knock(n, _at(30, 13, m), network=m)
    ]
    for name, records in (
        ("a knock like one within the hour, and its hole", alike),
        ("the first knock of an hour, and its hole", hours),
        ("a knock from a network that is new, and its hole", moves),
    ):
        yield Cost(name, f"{_us_a_pair(watcher, records):.1f} µs")


def _in_the_simulator() -> Cost:
    records = world(1).records
    knocks = sum(one.event is Event.KNOCK_ACCEPTED for one in records)
    watcher = Watcher()
    began_s = time.perf_counter()
    for record in records:
        watcher.see(record)
    took_us = (time.perf_counter() - began_s) / knocks * 1e6
    return Cost("in the simulator, everything, for each knock", f"{took_us:.1f} µs")


def _rss() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def _memory() -> _Memory:
    """100,000 keys, each heard on six days from three networks for three services."""
    ports = ("tcp/22", "tcp/443", "tcp/5432")
    watcher, before = Watcher(), _rss()
    began_s = time.perf_counter()
    for day in range(6):
        for number in range(KEYS):
            at_us = _at(day, 8 + day) + number
            watcher.see(knock(number, at_us, network=day % 3, port=ports[day % 3])[0])
    us_a_knock = (time.perf_counter() - began_s) / KEYS / 6 * 1e6
    rss_bytes = _rss() - before
    states = []
    while some := watcher.unsaved(_SOME):
        states += some
    sizes = [len(state) for _, state in states if state is not None]
    began_s = time.perf_counter()
    Watcher().restore((name, state) for name, state in states if state is not None)
    restore_s = time.perf_counter() - began_s
    return _Memory(rss_bytes, us_a_knock, sum(sizes) / len(sizes), restore_s)


def cost() -> list[Cost]:
    """All figures; memory is measured in a process of its own."""
    done = subprocess.run([sys.executable, "-m", __spec__.name], capture_output=True, check=True)
    memory = msgspec.json.decode(done.stdout, type=_Memory)
    return [
        *_speeds(),
        _in_the_simulator(),
        Cost(f"a knock of each of {KEYS:,} keys in turn", f"{memory.us_a_knock:.1f} µs"),
        Cost(f"memory for {KEYS:,} keys", f"{memory.rss_bytes / 1e6:.0f} MB"),
        Cost("memory for a key", f"{memory.rss_bytes / KEYS:.0f} bytes"),
        Cost("saved for a key", f"{memory.state_bytes:.0f} bytes"),
        Cost(f"restoring {KEYS:,} keys", f"{memory.restore_s:.1f} s"),
    ]


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_memory()))
