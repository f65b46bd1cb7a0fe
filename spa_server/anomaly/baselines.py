"""The baselines of all keys and identities, and what they have in common."""

from typing import Final

import msgspec

from spa_server.anomaly import learning
from spa_server.anomaly.crowd import Crowd
from spa_server.anomaly.profile import DAY_US, HOUR_US, SETTLED_DAYS, Profile, days_of, new_profile
from spa_server.anomaly.shelf import Shelf
from spa_server.anomaly.sighting import Sighting
from spa_server.audit.record import Record

MAX_SERVICES: Final = 4096
_WEEK: Final = 7
_DEAF_US: Final = 4 * DAY_US
_ROLLED_OUT_BY: Final = 5
_MAX_FIRSTS: Final = 32
_NONE: Final[frozenset[str]] = frozenset()
_copy = msgspec.msgpack.Encoder().encode
_paste = msgspec.msgpack.Decoder(Profile).decode


class Common(msgspec.Struct, array_like=True):
    """What is known of all together. Times are microseconds since the Unix epoch.

    last_us           when anybody was last heard
    silence_us        how long nobody was heard for more than four days, in all: the daemon was down
    unsure_until_us   until when hours and silences mean little, since the clock was set
    firsts            for a service, the days on which somebody used it for the first time
    """

    last_us: int = 0
    silence_us: int = 0
    unsure_until_us: int = 0
    firsts: dict[str, list[int]] = {}


class Baselines:
    """An identity has a baseline of its own from its second key on: before, its key's is the same.

    `keys` are by key id, `people` by identity.
    """

    def __init__(self, *, at_hand: int) -> None:
        self.keys = Shelf(Profile, max_at_hand=at_hand)
        self.people = Shelf(Profile, max_at_hand=at_hand)
        self.common = Common()
        self._first_key: dict[str, str] = {}
        self._crowd = Crowd()

    def of(self, key_id: str, identity: str, at_us: int) -> tuple[Profile, Profile | None]:
        """The key's, made where it has none, and the identity's where that is another."""
        key = self.keys.get(key_id)
        if key is not None and key.identity != identity:
            self.forget(key_id)
            key = None
        if key is None:
            key = new_profile(identity, at_us)
            self.keys.put(key_id, key)
        first = self._first_key.setdefault(identity, key_id)
        if first == key_id and key.is_alone:
            return key, None
        person = self.people.get(identity)
        if person is None:
            person = self._begin_person(identity, first, at_us)
        key.is_alone = False
        return key, person

    def _begin_person(self, identity: str, first: str, at_us: int) -> Profile:
        known = self.keys.get(first)
        if known is None or known.identity != identity:
            person = new_profile(identity, at_us)
        else:
            known.is_alone = False
            self.keys.unsaved.add(first)
            person = _paste(_copy(known))
        self.people.put(identity, person)
        return person

    def sighting(self, record: Record, key: Profile, place: bytes, *, granted: bool) -> Sighting:
        """What there is to see in a knock that was ruled on."""
        at_us, common = record.at_us, self.common
        away_us = at_us - common.last_us
        if common.last_us and away_us > _DEAF_US:
            common.silence_us += away_us
        common.last_us = at_us
        access, day = record.access or "", at_us // DAY_US
        ports = access.split(", ") if ", " in access else [access]
        places, known = key.places, key.ports
        is_new_place = days_of(places.get(place, 0)) < SETTLED_DAYS
        new = [port for port in ports if port not in known and self._is_rolled_out(port, day)]
        return Sighting(
            at_us,
            place,
            at_us // HOUR_US,
            record.source or "",
            access,
            ports,
            granted,
            self._crowd.others_at(place, places) if is_new_place else 0,
            self._crowd.others_near(place, places) if is_new_place else 0,
            self._crowd.is_tunnel(place),
            frozenset(new) if new else _NONE,
            common.silence_us,
            at_us >= common.unsure_until_us,
        )

    def _is_rolled_out(self, port: str, day: int) -> bool:
        """Whether many began to use a service this week, and more than in the weeks before."""
        ages = [day - first for first in self.common.firsts.get(port, ())]
        lately = sum(0 <= age < _WEEK for age in ages)
        before = sum(_WEEK <= age < 4 * _WEEK for age in ages)
        return lately >= max(_ROLLED_OUT_BY, before)

    def learn(self, key_id: str, key: Profile, person: Profile | None, seen: Sighting) -> None:
        """All of them learn from a sighting."""
        widest = person or key
        if seen.granted and widest.days > 1:
            self._note_firsts(widest, seen)
        places, here, there = key.places, seen.place, key.place
        before = places.get(here, 0), places.get(there, 0)
        gone = learning.learn(key, seen)
        self.keys.unsaved.add(key_id)
        if gone is not None and gone[0] == there:
            gone = there, before[1]  # a hop of just now was not counted yet
        if not before[0]:
            self._crowd.enter(here, places, gone)
        elif before[0] != places[here]:
            self._crowd.hop(here, before[0], places[here])
        if there != here and there in places:
            self._crowd.hop(there, before[1], places[there])
        if person is not None:
            learning.learn(person, seen)
            self.people.unsaved.add(key.identity)

    def _note_firsts(self, widest: Profile, seen: Sighting) -> None:
        firsts = self.common.firsts
        for port in seen.ports:
            if port in widest.ports:
                continue
            if port not in firsts and len(firsts) >= MAX_SERVICES:
                del firsts[next(iter(firsts))]
            firsts[port] = [*firsts.get(port, []), seen.at_us // DAY_US][-_MAX_FIRSTS:]

    def forget(self, key_id: str) -> None:
        """A key is no more. What its identity is used to stays, where it has other keys."""
        key = self.keys.get(key_id)
        if key is None:
            return
        self._crowd.part(key.places)
        self.keys.drop(key_id)
        if self._first_key.get(key.identity) == key_id and key.is_alone:
            del self._first_key[key.identity]

    def restore_key(self, key_id: str, state: bytes) -> None:
        """Puts a key's baseline back. Raises msgspec.DecodeError."""
        key = self.keys.restore(key_id, state)
        self._first_key.setdefault(key.identity, key_id)
        self._crowd.join(key.places)
