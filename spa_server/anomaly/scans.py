"""Sources that try closed ports, or one port of many targets.

A source that was denied once is remembered only that far: a flood from forged addresses pushes out
others like itself, and not those that went on. Addresses of denied packets are not proven.
"""

import math
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

import msgspec

from spa_server.anomaly.finding import Anomaly, Kind, Sign
from spa_server.anomaly.places import place_of
from spa_server.anomaly.profile import DAY_US, HOUR_US
from spa_server.anomaly.settings import Settings
from spa_server.audit.record import Record

MAX_SOURCES: Final = 2048
MAX_STRANGERS: Final = 8192
MAX_THINGS: Final = 64
_MINUTE_US: Final = 60_000_000
_PER_THING: Final = 0.15


class Track(msgspec.Struct, array_like=True, gc=False):
    """What one source tried: ports and targets, each with when it was last."""

    since_us: int
    ports: dict[str, int] = {}
    targets: dict[str, int] = {}
    told_us: int = 0


class Scans:
    """Tracks of the latest sources. `unsaved` are those that changed since they were saved."""

    def __init__(self, settings: Settings) -> None:
        self.tracks: dict[str, Track] = {}
        self.unsaved: set[str] = set()
        self._saved: set[str] = set()
        self._settings = settings
        self._strangers: dict[str, tuple[str, str, int]] = {}
        self._told_in_hour = 0
        self._hour = 0
        self._untold = 0

    def see(self, record: Record) -> Anomaly | None:
        """A denied connection. A count without a port shows nothing."""
        source, access, target = record.source, record.access or "", record.target or ""
        if source is None or not access or place_of(source) is None:
            return None
        track = self.tracks.get(source)
        if track is None:
            once = self._strangers.get(source)
            if once is None or once[:2] == (access, target):
                self._remember(source, access, target, record.at_us)
                return None
            track = self._begin(source, once)
        self._enter(track, access, target, record.at_us)
        self.unsaved.add(source)
        return self._judge(source, track, record)

    def _remember(self, source: str, access: str, target: str, at_us: int) -> None:
        if len(self._strangers) >= MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[source] = (access, target, at_us)

    def _begin(self, source: str, once: tuple[str, str, int]) -> Track:
        del self._strangers[source]
        if len(self.tracks) >= MAX_SOURCES:
            self._forget(next(iter(self.tracks)))
        access, target, at_us = once
        track = self.tracks[source] = Track(at_us, {access: at_us}, {target: at_us})
        return track

    def _forget(self, source: str) -> None:
        """Only what was saved has to be deleted: a flood must not make a list of its sources."""
        del self.tracks[source]
        if source in self._saved:
            self.unsaved.add(source)
        else:
            self.unsaved.discard(source)

    def _enter(self, track: Track, access: str, target: str, at_us: int) -> None:
        since_us = at_us - self._settings.scan_h * HOUR_US
        for things, name in ((track.ports, access), (track.targets, target)):
            if name not in things and len(things) >= MAX_THINGS:
                del things[next(iter(things))]
            things[name] = at_us
            for old in [thing for thing, last_us in things.items() if last_us < since_us]:
                del things[old]
        track.since_us = max(track.since_us, since_us)

    def _judge(self, source: str, track: Track, record: Record) -> Anomaly | None:
        at_us, settings = record.at_us, self._settings
        count = max(len(track.ports), len(track.targets))
        score = 1 - 0.5 * math.exp(-_PER_THING * (count - settings.scan_things))
        if count < settings.scan_things or score < settings.threshold or self._is_trusted(source):
            return None
        if track.told_us and not self._is_again(track, at_us):
            return None
        track.told_us = at_us
        if not self._may_tell(at_us // HOUR_US):
            return None
        sign = self._sign(track, count, at_us)
        return Anomaly(Kind.SCAN, score, at_us, (sign,), source=source, target=record.target)

    def _is_again(self, track: Track, at_us: int) -> bool:
        """Whether what was told goes on, after the quiet time, with as many again."""
        if 0 <= at_us - track.told_us < self._settings.quiet_h * HOUR_US:
            return False
        since_us = max(track.told_us, at_us - self._settings.quiet_h * HOUR_US)
        fresh = (
            sum(last_us > since_us for last_us in things.values())
            for things in (track.ports, track.targets)
        )
        return max(fresh) >= self._settings.scan_things

    def _sign(self, track: Track, count: int, at_us: int) -> Sign:
        things, what = track.ports, "closed ports"
        if len(track.targets) > len(track.ports):
            things, what = track.targets, "targets"
        some = ", ".join(list(things)[:5])
        words = f"denied at {count} {what} within {_span(track.since_us, at_us)}: {some}, ..."
        if self._untold:
            words += f"; {self._untold} other sources did the like, untold"
        values = {"ports": len(track.ports), "targets": len(track.targets)}
        self._untold = 0
        return Sign(Kind.SCAN, self._settings.prior, words, values)

    def _is_trusted(self, source: str) -> bool:
        return bool(self._settings.trusted) and any(
            ip_address(source) in network for network in self._settings.trusted
        )

    def _may_tell(self, hour: int) -> bool:
        if hour != self._hour:
            self._hour, self._told_in_hour = hour, 0
        self._told_in_hour += 1
        if self._told_in_hour <= self._settings.scans_an_hour:
            return True
        self._untold += 1
        return False

    def take_unsaved(self, most: int) -> Iterator[tuple[str, bytes | None]]:
        """Some of what changed since it was saved; None is what was forgotten."""
        for _ in range(min(most, len(self.unsaved))):
            source = self.unsaved.pop()
            track = self.tracks.get(source)
            if track is None:
                self._saved.discard(source)
                yield f"from/{source}", None
            else:
                self._saved.add(source)
                yield f"from/{source}", msgspec.msgpack.encode(track)

    def restore(self, source: str, state: bytes) -> None:
        """Puts back what was saved of a source. Raises msgspec.DecodeError."""
        track = msgspec.msgpack.decode(state, type=Track)
        self._saved.add(source)
        if len(self.tracks) < MAX_SOURCES:
            self.tracks[source] = track
        else:
            self.unsaved.add(source)


def _span(since_us: int, at_us: int) -> str:
    """How long something took: 12 min, 5 h, 3 days."""
    took_us = max(0, at_us - since_us)
    if took_us < 2 * HOUR_US:
        return f"{max(1, took_us // _MINUTE_US)} min"
    return f"{took_us // HOUR_US} h" if took_us < 2 * DAY_US else f"{took_us // DAY_US} days"
