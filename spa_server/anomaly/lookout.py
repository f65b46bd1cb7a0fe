"""The lookout: hands the record to the watcher, and what is found to the record and to the hook.

Lines wait here until knocks are answered, and are looked at about a millisecond at a time. What was
learnt is saved within a minute, a slice at a time; while nothing is learnt nothing is due. No event
loop and no thread in here, but the hook's: `written` is an observer of the ledger, and whoever
keeps time calls `tend` when `due_at_us` says so.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

from spa_server.anomaly.finding import record_of
from spa_server.anomaly.hook import Hook
from spa_server.anomaly.settings import Watching
from spa_server.anomaly.store import SLICE, Store, StoreError, beside
from spa_server.anomaly.watcher import Watcher
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record

SAVE_AFTER_US: Final = 60_000_000
MAX_WAITING: Final = 20_000
_LOOK_S: Final = 0.001
_ENDING_S: Final = 5.0


class Lookout:
    """`note` enters records and never raises. `wake`, which other threads may call, has `tend`
    called soon."""

    def __init__(
        self, watching: Watching, store: Store, note: Callable[[Sequence[Record], int], None]
    ) -> None:
        self.wake: Callable[[], object] = lambda: None
        self._watcher = Watcher(watching.settings)
        self._store = store
        self._note = note
        self._waiting: deque[Record] = deque()
        self._overlooked = 0
        self._loaded_until: str | None = ""
        self._due_us: int | None = 0
        self._is_failing = False
        self._hook_words: deque[tuple[str, bool]] = deque()
        self._hook: Hook | None = None
        if watching.hook is not None:
            self._hook = Hook(watching.hook, self._hear_hook, timeout_s=watching.hook_timeout_s)
            self._look_at_hook(watching.hook)

    def _look_at_hook(self, program: Path) -> None:
        if not (program.is_file() and os.access(program, os.X_OK)):
            self._hear_hook(f"the hook {program} is no program that the daemon may execute", True)

    def _hear_hook(self, words: str, is_failing: bool) -> None:
        """Called from the hook's threads."""
        self._hook_words.append((words, is_failing))
        self.wake()

    def written(self, records: Sequence[Record], _first_id: int) -> None:
        """Lines that were just written. They wait; past `MAX_WAITING` they are only counted."""
        concerning = [one for one in records if one.event in self._watcher.concerns]
        room = MAX_WAITING - len(self._waiting)
        self._waiting += concerning[:room]
        self._overlooked += max(0, len(concerning) - room)

    # Time

    def due_at_us(self, now_us: int) -> int | None:
        """When `tend` has something to do; None while it has not."""
        is_loaded = self._loaded_until is None
        if self._hook_words or (is_loaded and (self._waiting or self._overlooked)):
            return now_us
        if self._due_us is not None and self._due_us - now_us > SAVE_AFTER_US:
            return now_us  # the clock was set back
        return self._due_us

    def tend(self, now_us: int) -> None:
        """Does a slice of what is due: about a millisecond."""
        self._tell_of_hook(now_us)
        due_us = self.due_at_us(now_us)
        if due_us is None or due_us > now_us:
            return
        if self._loaded_until is not None:
            self._load(now_us)
        elif self._waiting or self._overlooked:
            self._look(now_us, _LOOK_S)
        else:
            self._save(now_us)

    def close(self, now_us: int) -> None:
        """Looks at what waits, saves what was learnt, ends the hook; within some seconds."""
        ends_s = perf_counter() + _ENDING_S
        if self._loaded_until is None:
            self._look(now_us, _ENDING_S / 2)
            while self._due_us is not None and not self._is_failing and perf_counter() < ends_s:
                self._save(now_us)
        if self._hook is not None:
            self._hook.close()
        self._tell_of_hook(now_us)
        self._store.close()

    # What is found

    def _look(self, now_us: int, within_s: float) -> None:
        ends_s = perf_counter() + within_s
        found: list[Record] = []
        while self._waiting and perf_counter() < ends_s:
            seen = self._watcher.see(self._waiting.popleft())
            found += [record_of(anomaly, Event.ANOMALY) for anomaly in seen]
        if self._due_us is None:
            self._due_us = now_us + SAVE_AFTER_US
        if not self._waiting and self._overlooked:
            count, self._overlooked = self._overlooked, 0
            why = "lines of the record came faster than they could be looked at"
            found.append(Record(Event.BASELINES_LOST, now_us, reason=why, detail={"count": count}))
        if found:
            self._note(found, now_us)
        if self._hook is not None:
            for record in found:
                if record.event is Event.ANOMALY:
                    self._hook.tell(record)

    def _tell_of_hook(self, now_us: int) -> None:
        records = []
        while self._hook_words:
            words, is_failing = self._hook_words.popleft()
            event = Event.HOOK_FAILED if is_failing else Event.HOOK_WORKS
            records.append(Record(event, now_us, reason=words))
        if records:
            self._note(records, now_us)

    # What is kept

    def _load(self, now_us: int) -> None:
        """A slice. Where the file is damaged, what could be read of it is kept."""
        spoiled = 0
        try:
            states = self._store.after(self._loaded_until or "", now_us)
            spoiled = self._watcher.restore(states)
        except StoreError as error:
            self._failed(error, now_us)
            if error.aside is None:
                self._due_us = now_us + SAVE_AFTER_US
                return
            states = []
        if spoiled:
            why = "baselines could not be read, and are learnt anew"
            record = Record(Event.BASELINES_LOST, now_us, reason=why, detail={"count": spoiled})
            self._note([record], now_us)
        self._loaded_until = states[-1][0] if states else None
        self._due_us = now_us

    def _save(self, now_us: int) -> None:
        states = self._watcher.unsaved(SLICE)
        try:
            if states:
                self._store.save(states, now_us)
        except StoreError as error:
            self._watcher.put_back(name for name, _ in states)
            self._failed(error, now_us)
            self._due_us = now_us + SAVE_AFTER_US
            return
        self._is_failing = False
        self._due_us = now_us if len(states) >= SLICE else None

    def _failed(self, error: StoreError, now_us: int) -> None:
        """Recorded once, until it goes well again; a file set aside always."""
        if error.aside is not None:
            self._watcher.put_back_all()
        elif self._is_failing:
            return
        self._is_failing = True
        why = f"the baselines cannot be read or saved: {error}"
        if error.aside is not None:
            why = f"the baselines were set aside as {error.aside.name}: {error}"
        self._note([Record(Event.BASELINES_LOST, now_us, reason=why)], now_us)


def begin(watching: Watching, database: Path, ledger: Ledger) -> Lookout | None:
    """The lookout over what a ledger writes; None where nothing is to be looked for."""
    if not watching.watch:
        return None
    lookout = Lookout(watching, Store(beside(database)), ledger.note)
    ledger.observers.append(lookout.written)
    return lookout
