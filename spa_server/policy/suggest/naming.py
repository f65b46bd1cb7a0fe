"""Names for services and roles that a suggestion adds: sound, and like no other."""

import re
from collections.abc import Iterable
from itertools import count
from typing import Final

from spa_protocol.access import Access

_UNFIT: Final = re.compile(r"[^A-Za-z0-9._@+-]+")
_ROOM: Final = 56  # what is left is for a number


class Names:
    """Names that are taken; two that differ in upper and lower case alone are the same."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {name.lower() for name in taken}

    def new(self, wanted: str) -> str:
        """A name that is free, and taken from now on."""
        base = _UNFIT.sub("-", wanted).strip("-._@+")[:_ROOM] or "new"
        numbered = (f"{base}-{number}" for number in count(2))
        name = base if base.lower() not in self._taken else ""
        while not name:
            candidate = next(numbered)
            name = candidate if candidate.lower() not in self._taken else ""
        self._taken.add(name.lower())
        return name


class Services:
    """The services that accesses are named by: those of a policy, and new ones where it has none.

    `used` has, by name, what a policy needs to define.
    """

    def __init__(self, defined: dict[str, tuple[Access, ...]]) -> None:
        self._defined = defined
        self._names = Names(defined)
        self._new: dict[Access, str] = {}
        self.used: dict[str, tuple[Access, ...]] = {}

    def named(self, accesses: Iterable[Access], preferred: Iterable[str] = ()) -> list[str]:
        """Names whose ports are exactly these; services of `preferred` names come first."""
        left = set(accesses)
        found: list[str] = []
        for name in dict.fromkeys((*preferred, *self._defined)):
            own = set(self._defined[name])
            if own <= left:
                found.append(name)
                left -= own
                self.used[name] = self._defined[name]
        return found + [self._named_anew(access, preferred) for access in sorted(left)]

    def alone(self, access: Access) -> str:
        """The name for one access, without defining it."""
        for name, own in self._defined.items():
            if own == (access,):
                return name
        return self._new.get(access, "") or self._name_anew(access, ())

    def _named_anew(self, access: Access, preferred: Iterable[str]) -> str:
        name = self._new.get(access) or self._name_anew(access, preferred)
        self.used[name] = (access,)
        return name

    def _name_anew(self, access: Access, preferred: Iterable[str]) -> str:
        """console-tcp-9091, for a part of console."""
        names = dict.fromkeys((*preferred, *self._defined))
        whole = (n for n in names if any(access in each for each in self._defined[n]))
        parts = [next(whole, ""), str(access).replace("/", "-")]
        name = self._names.new("-".join(filter(None, parts)))
        self._new[access] = name
        return name
