"""Stanzas of access.conf into roles, people and notes. Pure: no file, no clock.

1.  A stanza becomes a role. It allows what fwknopd could have opened on this host, and no more:
    those ports, from those IPv4 addresses, as long, until the same moment. Only DESTINATION has no
    counterpart, and is told.
2.  A stanza without OPEN_PORTS let its client choose any port. Its role allows nothing, and a note
    says what to write. So too where it forwarded (FORCE_NAT) or ran a command (CMD_CYCLE_OPEN).
3.  People are told apart by REQUIRE_USERNAME; else by the GnuPG keys that may sign; else by the
    shared key, so that two stanzas with one key are one person's. Who has no name is `stanza` and
    a number.
4.  A stanza that has expired, and one that repeats an earlier one, are left out.
5.  Whatever a policy cannot say is a note.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from ipaddress import IPv4Network
from typing import Final, TypeAlias

from keys.names import MAX_NAME
from spa_protocol.access import Access
from spa_server.fwknop import values, variables
from spa_server.fwknop.reading import PLACEHOLDER, likely, shown
from spa_server.fwknop.stanza import Place, Setting, Stanza
from spa_server.fwknop.variables import Loss

DEFAULT_LIFETIME_S: Final = 30
DEFAULT_MAX_LIFETIME_S: Final = 300

_Who: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Note:
    """Something that is not carried over, and what to do about it; each a phrase in lower case."""

    place: Place
    variable: str
    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.place}: {self.variable}: {self.what}; {self.hint}"


@dataclass(frozen=True, slots=True)
class Rule:
    """The one allow of a role."""

    accesses: tuple[Access, ...]
    sources: tuple[IPv4Network, ...]
    lifetime_s: int
    max_lifetime_s: int
    declared: bool
    expires_at_us: int | None


@dataclass(frozen=True, slots=True)
class TranslatedRole:
    """What a stanza became.

    Where `why_empty` says why, the role allows nothing, and its rule is not to be written.
    """

    name: str
    place: Place
    people: tuple[str, ...]
    rule: Rule
    why_empty: str = ""


@dataclass(frozen=True, slots=True)
class Translation:
    """The roles in the order of the stanzas, and each person with the roles that they get."""

    roles: tuple[TranslatedRole, ...]
    people: dict[str, tuple[str, ...]]
    notes: tuple[Note, ...]


def translate(stanzas: Sequence[Stanza], now_us: int, zone: tzinfo | None = None) -> Translation:
    """Raises AccessProblem for the first value that fwknopd would not take either.

    `zone` is where ACCESS_EXPIRE's days begin, by default the system's.
    """
    translator = _Translator(now_us, zone)
    for number, stanza in enumerate(stanzas, 1):
        translator.take(number, stanza)
    return translator.result()


@dataclass(slots=True)
class _Names:
    """Names that no two have, upper and lower case apart: a policy refuses names so alike."""

    _taken: set[str] = field(default_factory=set)
    _next: dict[str, int] = field(default_factory=dict)

    def new(self, wanted: str) -> str:
        number = self._next.get(wanted.lower(), 1)
        name = wanted
        while number > 1 or name.lower() in self._taken:
            number += 1
            name = f"{wanted[: MAX_NAME - 8]}-{number}"
            if name.lower() not in self._taken:
                break
        self._next[wanted.lower()] = number
        self._taken.add(name.lower())
        return name


class _Translator:
    def __init__(self, now_us: int, zone: tzinfo | None) -> None:
        self._now_us = now_us
        self._zone = zone
        self._roles: list[TranslatedRole] = []
        self._notes: list[Note] = []
        self._told: set[Loss] = set()
        self._people: dict[_Who, str] = {}
        self._roles_of: dict[str, list[str]] = {}
        self._role_names = _Names()
        self._people_names = _Names()
        self._seen: dict[frozenset[tuple[str, str]], Place] = {}

    def result(self) -> Translation:
        people = {name: tuple(roles) for name, roles in self._roles_of.items()}
        return Translation(tuple(self._roles), people, tuple(self._notes))

    def take(self, number: int, stanza: Stanza) -> None:
        rule, why_empty = self._rule(stanza)
        if self._is_left_out(stanza):
            return
        first_note = len(self._notes)
        people = self._people_of(number, stanza)
        name = self._role_names.new(people[0] if len(people) == 1 else f"stanza{number}")
        for person in people:
            self._roles_of.setdefault(person, []).append(name)
        place = stanza.source.place
        self._roles.append(TranslatedRole(name, place, people, rule, why_empty))
        self._notes += self._losses(stanza)
        if why_empty and not any(map(stanza.get, variables.ELSEWHERE)):
            variable = "RESTRICT_PORTS" if stanza.get("OPEN_PORTS") else "OPEN_PORTS"
            what, hint = f"{why_empty}; the role allows nothing", f"write what it needs in {name}"
            self._note(stanza.get(variable) or stanza.source, what, hint, variable)
        self._notes[first_note:] = sorted(self._notes[first_note:], key=lambda n: n.place.line)

    def _note(self, at: Setting, what: str, hint: str, variable: str = "") -> None:
        self._notes.append(Note(at.place, variable or at.variable, what, hint))

    def _is_left_out(self, stanza: Stanza) -> bool:
        """Rule 4."""
        ends = stanza.get("ACCESS_EXPIRE", "ACCESS_EXPIRE_EPOCH")
        if ends is not None:
            ends_us = values.expiry_us(ends, self._zone)
            if ends_us is not None and ends_us <= self._now_us:
                self._note(ends, "the stanza has expired, and is left out", "nothing to do")
                return True
        if _key_of(stanza) is None:
            return False
        said = frozenset((s.variable, s.value) for s in stanza.last.values())
        first = self._seen.setdefault(said, stanza.source.place)
        if first == stanza.source.place:
            return False
        self._note(stanza.source, f"the same as {first}, and left out", "nothing to do")
        return True

    def _rule(self, stanza: Stanza) -> tuple[Rule, str]:
        """Rules 1 and 2. Each value is read, whether or not it comes to anything."""
        opened, restricted = stanza.get("OPEN_PORTS"), stanza.get("RESTRICT_PORTS")
        ports = values.accesses(opened) if opened else ()
        closed = frozenset(values.accesses(restricted)) if restricted else frozenset()
        lifetime_s = _seconds(stanza, "FW_ACCESS_TIMEOUT", DEFAULT_LIFETIME_S)
        max_lifetime_s = _seconds(stanza, "MAX_FW_TIMEOUT", DEFAULT_MAX_LIFETIME_S)
        ends = stanza.get("ACCESS_EXPIRE", "ACCESS_EXPIRE_EPOCH")
        declared = stanza.get("REQUIRE_SOURCE_ADDRESS", "REQUIRE_SOURCE")
        rule = Rule(
            tuple(port for port in ports if port not in closed),
            values.networks(stanza.source),
            min(lifetime_s, max_lifetime_s),
            max_lifetime_s,
            declared is not None and values.is_yes(declared),
            values.expiry_us(ends, self._zone) if ends else None,
        )
        if any(map(stanza.get, variables.ELSEWHERE)):
            return rule, "it opened no port of this host by itself"
        if opened is None:
            return rule, "fwknopd opened whatever port was asked for"
        if not rule.accesses:
            return rule, "no port is left of OPEN_PORTS"
        return rule, ""

    def _people_of(self, number: int, stanza: Stanza) -> tuple[str, ...]:
        """Rule 3."""
        username = stanza.get("REQUIRE_USERNAME")
        if username is not None:
            return (self._person(("user", username.value), username.value, username),)
        signers = stanza.get("GPG_FINGERPRINT_ID"), stanza.get("GPG_REMOTE_ID")
        signed_by = next(filter(None, signers), None)
        if signed_by is not None:
            ids = [part for each in signed_by.value.split(",") if (part := each.strip())]
            named = (self._person(("gpg", i.lower()), _of_gpg(i), signed_by) for i in ids)
            if people := tuple(dict.fromkeys(named)):
                return people
        key = _key_of(stanza)
        who = ("key", key.value) if key is not None else ("stanza", str(number))
        return (self._person(who, f"stanza{number}", stanza.source),)

    def _person(self, who: _Who, wanted: str, at: Setting) -> str:
        known = self._people.get(who)
        if known is not None:
            return known
        usable = re.sub(r"[^A-Za-z0-9._@+-]", "-", wanted).lstrip("._@+-")[:MAX_NAME] or "someone"
        name = self._people[who] = self._people_names.new(usable)
        if name != wanted:
            self._note(at, f"the name is taken as {name}", "invite them by that name")
        return name

    def _losses(self, stanza: Stanza) -> Iterator[Note]:
        """Rule 5."""
        for setting in stanza.settings:
            last = stanza.last[setting.variable]
            if last is not setting:
                what = f"set again in line {last.place.line}, and fwknopd takes the last"
                yield Note(setting.place, shown(setting.variable), what, "nothing to do")
            elif setting.variable not in variables.KNOWN:
                yield _unknown(setting)
            else:
                yield from self._loss(setting)
        yield from _shortened(stanza)

    def _loss(self, setting: Setting) -> Iterable[Note]:
        loss = variables.LOST.get(setting.variable)
        if loss is None or loss in self._told:
            return ()
        if loss.switch and not values.is_yes(setting):
            return ()
        if setting.variable == "DESTINATION" and values.is_anywhere(setting):
            return ()
        if loss.once:
            self._told.add(loss)
        return (Note(setting.place, setting.variable, loss.what, loss.hint),)


def _key_of(stanza: Stanza) -> Setting | None:
    """Two stanzas whose keys were taken out before, or never put in, are not one person's."""
    key = stanza.get("KEY", "KEY_BASE64")
    return None if key is None or key.value == PLACEHOLDER else key


def _seconds(stanza: Stanza, variable: str, default_s: int) -> int:
    setting = stanza.get(variable)
    return (values.seconds(setting) if setting else 0) or default_s


def _of_gpg(key_id: str) -> str:
    """An address names somebody by itself."""
    return key_id if "@" in key_id else f"gpg-{key_id}"


def _unknown(setting: Setting) -> Note:
    meant = likely(setting.variable)
    hint = f"was {meant} meant?" if meant else "where it was to restrict something, write that"
    return Note(setting.place, shown(setting.variable), "not known, also to fwknopd 2.6", hint)


def _shortened(stanza: Stanza) -> Iterator[Note]:
    asked = stanza.get("FW_ACCESS_TIMEOUT")
    max_s = _seconds(stanza, "MAX_FW_TIMEOUT", DEFAULT_MAX_LIFETIME_S)
    if asked is not None and values.seconds(asked) > max_s:
        what = f"longer than MAX_FW_TIMEOUT, which is {max_s} s"
        yield Note(asked.place, asked.variable, what, "write a longer lifetime, if it is meant")
