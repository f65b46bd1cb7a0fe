"""How permitted connections end: one line for each, whatever happens in between.

1.  Conntrack tells an end once. What told of beginnings is read first, so that a connection that
    was over at once is known when its end is looked at.
2.  A beginning is looked up in conntrack a little later: where there is nothing, no end will be
    told. Another firewall dropped the packet, or the end was missed.
3.  When the kernel had to throw ends away it says so and not how many; then every connection that
    is thought to live is looked up. So is what the record knows of an earlier run.
4.  A connection whose end was not heard gets its line all the same, with a reason and without
    figures. Between the same ports the newest lives on.
"""

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from spa_server import attribution
from spa_server.attribution import Permitted
from spa_server.audit.record import Event, Record
from spa_server.conntrack import Told, ended_in
from spa_server.ctentry import Entry, key_in, reply_key_in
from spa_server.liveconnections import LiveConnections
from spa_server.netlink import NetlinkError
from spa_server.tally import Tally

CHECK_AFTER_US: Final = 2_000_000
SWEEP_EVERY_US: Final = 10_000_000
CHECKED_AT_ONCE: Final = 256
READ_AT_ONCE: Final = 4096
MOST_OF_A_FLOW: Final = 64
# How long after the first packet its line may be stamped, or before, when the clock is slewed.
_SLACK_US: Final = 2_000_000

NOTHING_CAME: Final = "conntrack has not got it: another firewall dropped it, or its end was missed"
MISSED: Final = "its end was missed: the kernel had to throw some away"
WHILE_DOWN: Final = "ended while the daemon was down"
REPLACED: Final = "another connection between the same ports took its place"


class Tracker(Protocol):
    """What is needed of conntrack (spa_server/conntrack.py)."""

    def read(self, limit: int) -> Told:
        """What has ended."""

    def get(self, key: bytes) -> Entry | None:
        """What has not. May raise NetlinkError."""


class _Check(NamedTuple):
    """A connection to be looked up, and what its end says if it is gone."""

    due_us: int
    key: bytes
    permitted: Permitted
    why: str


class Ends:
    """The ends of the connections in `live`. All times are microseconds of the wall clock.

    Nothing is read before it `is_complete`: what an earlier run let in is among the `live`.
    """

    def __init__(self, live: LiveConnections) -> None:
        self.live = live
        self.lost = 0
        self.has_more = False
        self.is_complete = False
        self._tracker: Tracker | None = None
        self._hear_beginnings: Callable[[], object] = lambda: None
        self._to_check: deque[_Check] = deque()
        self._overruns: Tally[str, str] = Tally(str)
        self._swept_at_us = 0
        self._sweep_wanted = False

    @property
    def tracker(self) -> Tracker | None:
        """Who tells of ends."""
        return self._tracker

    def follow(self, tracker: Tracker, hear_beginnings: Callable[[], object]) -> None:
        """From now on ends are heard; `hear_beginnings` enters the permits that wait (rule 1)."""
        self._tracker = tracker
        self._hear_beginnings = hear_beginnings

    def hear_beginnings(self) -> None:
        """Enters the permits that wait to be read."""
        self._hear_beginnings()

    def expect(self, permitted: Permitted, now_us: int) -> list[Record]:
        """Waits for the end of a connection; the end of one that cannot wait beside it any more.

        Whoever sends the same first packet again and again must not make the daemon slow.
        """
        key = self.live.add(permitted)
        if key is None:
            return []
        if self._tracker is not None:
            check = _Check(now_us + CHECK_AFTER_US, key, permitted, NOTHING_CAME)
            self._to_check.append(check)
        of_flow = self.live.at(key)
        if len(of_flow) <= MOST_OF_A_FLOW:
            return []
        self.live.forget(key, of_flow[0])
        return [attribution.ended(of_flow[0], None, now_us, REPLACED)]

    def adopt(self, permits: Iterable[Permitted], now_us: int) -> None:
        """Connections that an earlier run let in, and of whose end it said nothing (rule 3)."""
        for permitted in permits:
            key = self.live.add(permitted)
            if key is not None:
                self._to_check.appendleft(_Check(now_us, key, permitted, WHILE_DOWN))

    def read(self, now_us: int) -> list[Record]:
        """The ends that were told since, and what was lost of them. Never blocks."""
        if self._tracker is None or not self.is_complete:
            return []
        told = self._tracker.read(READ_AT_ONCE)
        self.has_more = told.has_more
        self.hear_beginnings()
        records = self._note_overruns(told.overruns, now_us) if told.overruns else []
        live = self.live
        ours = [m for m in told.messages if key_in(m) in live or reply_key_in(m) in live]
        for told_of in ended_in(ours):
            turned = told_of.key not in live
            entry = told_of.as_begun_by(told_of.reply_key) if turned else told_of
            permitted = live.take(entry.key, entry.begun_us)
            if permitted is not None:
                records.append(attribution.ended(permitted, entry, now_us))
        return records

    def due_at_us(self, now_us: int) -> int | None:
        """When `tend` has something to do."""
        dues = [self._overruns.due_at_us()]
        if self._to_check and self.is_complete:
            dues.append(min(self._to_check[0].due_us, now_us + CHECK_AFTER_US))
        if self._sweep_wanted:
            dues.append(min(self._swept_at_us, now_us) + SWEEP_EVERY_US)
        return min((due_us for due_us in dues if due_us is not None), default=None)

    def tend(self, now_us: int) -> list[Record]:
        """Looks up what is due, a few milliseconds' worth; what is more is due again at once."""
        records = []
        if self._overruns.is_due(now_us):
            further, _, _ = self._overruns.take()
            records += [_lost(count, now_us) for count in further.values()]
        self._sweep(now_us)
        if self.is_complete:
            with suppress(NetlinkError):
                records += self._check(self._take_due(now_us), now_us)
        return records

    def _take_due(self, now_us: int) -> list[_Check]:
        """Those of a moment far ahead are due as well: the clock was set back."""
        due: list[_Check] = []
        while self._to_check and len(due) < CHECKED_AT_ONCE:
            if now_us < self._to_check[0].due_us <= now_us + CHECK_AFTER_US:
                break
            due.append(self._to_check.popleft())
        return due

    def _check(self, due: list[_Check], now_us: int) -> list[Record]:
        """What is not there has ended, unless its end is told by now.

        To look for an entry whose time is over makes the kernel remove it, and tell.
        """
        found = [(check, self._look_up(check)) for check in due]
        records = self.read(now_us) if due else []
        while self.has_more:
            records += self.read(now_us)
        for check, entry in found:
            records += self._settle(check, entry, now_us)
        return records

    def _look_up(self, check: _Check) -> Entry | None:
        if self._tracker is None or check.permitted not in self.live.at(check.key):
            return None
        try:
            return self._tracker.get(check.key)
        except NetlinkError:
            self._sweep_wanted = True
            raise

    def _settle(self, check: _Check, entry: Entry | None, now_us: int) -> list[Record]:
        """Ends what is gone: all of a flow without an entry, and else all but the newest."""
        begun_us = entry.begun_us if entry is not None else None
        is_later = begun_us is not None and begun_us > check.permitted.at_us + _SLACK_US
        is_gone = entry is None or is_later
        gone = (check.permitted,) if is_gone else self.live.at(check.key)[:-1]
        return [
            attribution.ended(each, None, now_us, check.why if is_gone else REPLACED)
            for each in gone
            if self.live.forget(check.key, each)
        ]

    def _note_overruns(self, count: int, now_us: int) -> list[Record]:
        self.lost += count
        self._sweep_wanted = True
        return [_lost(count, now_us)] if self._overruns.is_first("end", now_us, count) else []

    def _sweep(self, now_us: int) -> None:
        """Every live connection is looked up, now and then while ends are being lost."""
        since_us = now_us - self._swept_at_us
        if self._sweep_wanted and not 0 <= since_us < SWEEP_EVERY_US:
            self._sweep_wanted, self._swept_at_us = False, now_us
            self._to_check.extendleft(
                _Check(now_us, key, each, MISSED) for key in self.live for each in self.live.at(key)
            )


def _lost(count: int, now_us: int) -> Record:
    detail = {"count": count, "of": "end", "at_least": True}
    return Record(Event.RECORDS_LOST, now_us, detail=detail)
