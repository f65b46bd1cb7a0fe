"""What a process and the machine have used, from /proc."""

import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


def cpu_s(pid: int) -> float:
    """Processor time of all its threads, in seconds, to the nanosecond (schedstat)."""
    spent_ns = 0
    for stat in (_PROC / str(pid) / "task").glob("*/schedstat"):
        spent_ns += int(stat.read_text().split()[0])
    return spent_ns / 1e9


def wakeups(pid: int) -> int:
    """How often its threads went to sleep, each time to be woken: voluntary context switches."""
    threads = (_PROC / str(pid) / "task").glob("*/status")
    return sum(_field(thread, "voluntary_ctxt_switches") for thread in threads)


def memory_mb(pid: int) -> float:
    """Resident memory, in megabytes (10^6 bytes)."""
    return _field(_PROC / str(pid) / "status", "VmRSS") * 1024 / 1e6


def peak_memory_mb(pid: int) -> float:
    """The most resident memory it ever had."""
    return _field(_PROC / str(pid) / "status", "VmHWM") * 1024 / 1e6


def _field(status: Path, name: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"{status} has no {name}")


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the machine's processors were over a while, and how much another machine took."""

    busy_share: float
    stolen_share: float


def load_over(seconds: float) -> Load:
    """Watches the machine for so long."""
    before = _processor_times()
    time.sleep(seconds)
    spent = [after - was for was, after in zip(before, _processor_times(), strict=True)]
    total = sum(spent) or 1
    idle, stolen = spent[3] + spent[4], spent[7]
    return Load(1 - idle / total, stolen / total)


def _processor_times() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal (proc(5))."""
    first = (_PROC / "stat").read_text().splitlines()[0]
    return [int(ticks) for ticks in first.split()[1:9]]
