"""How much it takes to raise an anomaly, and how long nothing is said twice."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """The defaults are those that benchmarks/anomaly.md measures.

    prior            how many nats of evidence make an intruder as likely as the owner (score 0.5)
    threshold        the score from which on an anomaly is raised
    gather_h         signs within so many hours are put together
    quiet_h          a subject's kind is told once in so many hours
    learning_days    so many active days, and a week, before a key is judged by its habits
    scan_things      closed ports, or targets, of one source within `scan_h` that make a scan
    scans_an_hour    so many scans are told in an hour, the others are counted
    trusted          networks whose scans are nobody's business (a scanner of one's own)
    """

    prior: float = 6.4
    threshold: float = 0.5
    gather_h: int = 24
    quiet_h: int = 24
    learning_days: int = 5
    scan_things: int = 12
    scan_h: int = 48
    scans_an_hour: int = 6
    trusted: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Watching:
    """What server.toml says of anomalies. `hook` is a program, or None."""

    watch: bool = True
    hook: Path | None = None
    hook_timeout_s: float = 10.0
    settings: Settings = Settings()
