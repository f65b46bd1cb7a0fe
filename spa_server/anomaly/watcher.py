"""The watcher: is handed every record as it is written, and says what is out of the ordinary.

Pure: no clock (a record's own time is the time), no file, no socket. A knock like the last one
costs a microsecond. Nothing here raises for what a record holds.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from typing import Final

import msgspec

from spa_server.anomaly import refusals, signs
from spa_server.anomaly.baselines import Baselines, Common
from spa_server.anomaly.case import Case, score_of
from spa_server.anomaly.finding import Anomaly, Sign
from spa_server.anomaly.places import place_of
from spa_server.anomaly.profile import DAY_US, HOUR_US, Profile, is_of_today
from spa_server.anomaly.scans import Scans
from spa_server.anomaly.settings import Settings
from spa_server.anomaly.shelf import MAX_AT_HAND, Shelf
from spa_server.audit.record import Event, Record

State = tuple[str, bytes | None]
"""A name, and its state to be saved; None: it is to be forgotten."""

_WEEK_US: Final = 7 * DAY_US
_CLOCK_STEP_S: Final = 1800
_OF_ONE_KEY: Final = 0.3
_ROLE_GRANTED: Final = "role.granted"
_GONE: Final = frozenset({"key.revoked", "key.rejected"})
_MAX_CASES: Final = 20_000
_COMMON: Final = "all"


class Watcher:
    """Baselines of all keys and identities, and what is open about them.

    `at_hand` baselines are kept unpacked: about so many keys as knock within minutes of each other.
    """

    def __init__(self, settings: Settings | None = None, *, at_hand: int = MAX_AT_HAND) -> None:
        self._settings = settings or Settings()
        self._baselines = Baselines(at_hand=at_hand)
        self._cases = Shelf(Case, max_at_hand=at_hand, max_kept=_MAX_CASES)
        self._scans = Scans(self._settings)
        self._at_hand = self._baselines.keys.at_hand
        self._unsaved_keys = self._baselines.keys.unsaved
        self._common_changed = False
        self._looks: Final[dict[Event, Callable[[Record], list[Anomaly]]]] = {
            Event.KNOCK_ACCEPTED: self._accepted,
            Event.KNOCK_REFUSED: self._refused,
            Event.CONNECTION_DENIED: self._denied,
            Event.KEYS_CHANGED: self._keys_changed,
            Event.CLOCK_SET: self._clock_set,
        }

    @property
    def concerns(self) -> Set[Event]:
        """The events that it learns from; records of others need not be shown."""
        return self._looks.keys()

    def see(self, record: Record) -> list[Anomaly]:
        """One record; what it makes worth telling, in general nothing."""
        look = self._looks.get(record.event)
        return look(record) if look is not None else []

    # Knocks

    def _accepted(self, record: Record) -> list[Anomaly]:
        at_us = record.at_us
        profile = self._at_hand.get(record.key_id)  # type: ignore[arg-type]  # None is no key there
        if (
            profile is not None
            and profile.is_alone
            and profile.source == record.source
            and profile.hour == at_us // HOUR_US
            and (profile.access == record.access or is_of_today(profile, record.access))
            and profile.in_hour < profile.ask_hour
            and profile.in_day < profile.ask_day
            and profile.identity == record.identity
        ):
            profile.knocks += 1
            profile.in_hour += 1
            profile.in_day += 1
            profile.last_us = at_us
            self._unsaved_keys.add(record.key_id)  # type: ignore[arg-type]  # it has a profile
            return []
        return self._told(self._ruled_on(record, granted=True), record)

    def _ruled_on(self, record: Record, *, granted: bool) -> list[Sign]:
        place = place_of(record.source)
        key_id, identity = record.key_id, record.identity
        if key_id is None or identity is None or place is None or not record.access:
            return []
        key, person = self._baselines.of(key_id, identity, record.at_us)
        seen = self._baselines.sighting(record, key, place, granted=granted)
        self._common_changed = True
        ready = self._is_ready(key, record.at_us)
        found: list[Sign] = signs.judge(key, seen) if ready else []
        if person is not None and self._is_ready(person, record.at_us):
            by_person = signs.judge(person, seen)
            found = _together(found, by_person) if ready else by_person
        self._baselines.learn(key_id, key, person, seen)
        return found + signs.rate(key) if ready else found

    def _is_ready(self, profile: Profile, at_us: int) -> bool:
        is_old = at_us - profile.first_us >= _WEEK_US
        return is_old and profile.days >= self._settings.learning_days

    def _refused(self, record: Record) -> list[Anomaly]:
        group = refusals.class_of(record.reason)
        key_id = record.key_id
        if group is None or key_id is None:
            return []
        further = record.detail.get("further", 1)
        number = further if isinstance(further, int) and further > 0 else 1
        case = self._case(self._subject(record))
        hour = record.at_us // HOUR_US
        found = refusals.count(case, record.reason or "", group, number, hour)
        if group == "policy":
            found += self._ruled_on(record, granted=False)
        return self._told(found, record)

    def _subject(self, record: Record) -> str:
        """Whom signs are gathered about. A count of further refusals names the key only."""
        if record.identity is not None or record.key_id is None:
            return record.identity or ""
        profile = self._baselines.keys.get(record.key_id)
        return profile.identity if profile is not None else record.key_id

    def _case(self, subject: str) -> Case:
        case = self._cases.get(subject)
        if case is None:
            case = Case()
            self._cases.put(subject, case)
        self._cases.unsaved.add(subject)
        return case

    def _told(self, found: list[Sign], record: Record) -> list[Anomaly]:
        if not found:
            return []
        subject = self._subject(record)
        case = self._case(subject)
        told = case.enter(found, record.at_us, self._settings)
        if not told:
            return []
        return [
            Anomaly(
                told[0].kind,
                score_of(sum(sign.weight for sign in told), self._settings),
                record.at_us,
                told,
                identity=record.identity or (subject if subject != record.key_id else None),
                key_id=record.key_id,
                source=record.source,
                target=record.target,
                access=record.access,
            )
        ]

    # Other events

    def _denied(self, record: Record) -> list[Anomaly]:
        anomaly = self._scans.see(record)
        return [anomaly] if anomaly is not None else []

    def _keys_changed(self, record: Record) -> list[Anomaly]:
        if record.reason in _GONE and record.key_id is not None:
            self._baselines.forget(record.key_id)
        if record.reason == _ROLE_GRANTED and record.identity is not None:
            self._case(record.identity).role_us = record.at_us
        return []

    def _clock_set(self, record: Record) -> list[Anomaly]:
        by_s = record.detail.get("by_s", 0)
        if isinstance(by_s, int | float) and abs(by_s) >= _CLOCK_STEP_S:
            self._baselines.common.unsure_until_us = record.at_us + DAY_US
        return []

    # What is saved

    def unsaved(self, most: int) -> list[State]:
        """Some of what changed since it was saved. Ask until there is nothing left."""
        states: list[State] = []
        for prefix, shelf in self._shelves():
            for name, state in shelf.take_unsaved(most - len(states)):
                states.append((f"{prefix}/{name}", state))
        states += self._scans.take_unsaved(most - len(states))
        if self._common_changed and len(states) < most:
            self._common_changed = False
            states.append((f"{_COMMON}/", msgspec.msgpack.encode(self._baselines.common)))
        return states

    def put_back(self, names: Iterable[str]) -> None:
        """What could not be saved after all."""
        unsaved = {prefix: shelf.unsaved for prefix, shelf in self._shelves()}
        unsaved["from"] = self._scans.unsaved
        for name in names:
            prefix, _, rest = name.partition("/")
            if prefix == _COMMON:
                self._common_changed = True
            else:
                unsaved[prefix].add(rest)

    def put_back_all(self) -> None:
        """Nothing is saved any more: the file is gone."""
        for _, shelf in self._shelves():
            shelf.unsaved.update(shelf.names())
        self._scans.unsaved.update(self._scans.tracks)
        self._common_changed = True

    def restore(self, states: Iterable[tuple[str, bytes]]) -> int:
        """Goes on where an earlier watcher ended; how many states were not sound and are left out.

        Hand it the keys' states before it sees a record.
        """
        spoiled = 0
        for name, state in states:
            prefix, _, rest = name.partition("/")
            try:
                self._restore(prefix, rest, state)
            except (msgspec.DecodeError, ValueError):
                spoiled += 1
        return spoiled

    def _restore(self, prefix: str, name: str, state: bytes) -> None:
        match prefix:
            case "key":
                self._baselines.restore_key(name, state)
            case "who":
                self._baselines.people.restore(name, state)
            case "case":
                self._cases.restore(name, state)
            case "from":
                self._scans.restore(name, state)
            case "all":
                self._baselines.common = msgspec.msgpack.decode(state, type=Common)
            case _:
                raise ValueError(f"{prefix!r} is no state of this version")

    def _shelves(self) -> Iterator[tuple[str, Shelf[Profile] | Shelf[Case]]]:
        yield "key", self._baselines.keys
        yield "who", self._baselines.people
        yield "case", self._cases


def _together(by_key: list[Sign], by_person: list[Sign]) -> list[Sign]:
    """What is new for one key of a person but not for the person is a weak sign."""
    kept = {sign.kind: sign for sign in by_person}
    for sign in by_key:
        known = kept.get(sign.kind)
        base = known.weight if known is not None else 0.0
        weight = base + _OF_ONE_KEY * (sign.weight - base)
        named = known or sign
        words = named.words if known is not None else f"{sign.words} (by this key)"
        kept[sign.kind] = Sign(sign.kind, weight, words, named.values)
    return list(kept.values())
