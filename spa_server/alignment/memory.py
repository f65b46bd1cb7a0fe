"""What runs remember for the next: whose the listeners were, and since when nobody used a port.

It is a file beside the database. Whoever may write there keeps it: the daemon, and root.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from keys.owner import as_owner
from keys.privatefile import new_file
from spa_server.config import Config

_NAME: Final = "alignment.json"
_MAX_SIZE: Final = 1 << 22


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """Whose a socket is. `program` None: it was not to be seen."""

    uid: int
    program: str | None = None

    def __str__(self) -> str:
        return f"{self.program or 'a program'} (user {self.uid})"

    def may_be(self, other: "Owner") -> bool:
        """Whether the two are the same, as far as both tell."""
        programs = {self.program, other.program}
        return self.uid == other.uid and (len(programs) == 1 or None in programs)


Owners: TypeAlias = Mapping[str, frozenset[Owner]]


@dataclass(frozen=True, slots=True)
class Memory:
    """`owners` by access (`tcp/22`); `unused_since_us` by the ports of an always open rule."""

    owners: Owners = field(default_factory=dict)
    unused_since_us: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OwnerChange:
    """A port that has an owner now that it had not before."""

    access: str
    before: frozenset[Owner]
    new: frozenset[Owner]


def compare(before: Owners, now: Owners) -> Iterator[OwnerChange]:
    """The ports of both whose owners have changed. Who is gone has not taken anybody's place."""
    for access, owners in now.items():
        known = before.get(access)
        if known is None:
            continue
        new = frozenset(o for o in owners if not any(o.may_be(other) for other in known))
        if new:
            yield OwnerChange(access, known, new)


def learn(before: Owners, now: Owners, accepted: Iterable[str] = ()) -> dict[str, frozenset[Owner]]:
    """What is known afterwards: ports not seen before, programs not seen before of owners that
    were, and whoever has the accepted ports now. A port that is gone keeps its owners."""
    learnt, anew = dict(before), set(accepted)
    for access, owners in now.items():
        if access not in before or access in anew:
            learnt[access] = owners
        else:
            learnt[access] = frozenset(o for known in before[access] for o in _named(known, owners))
    return learnt


def _named(known: Owner, owners: Iterable[Owner]) -> Iterable[Owner]:
    """Whoever it turns out to be: one user may have several programs on a port."""
    found = [o for o in owners if o.may_be(known)] if known.program is None else []
    return found or [known]


def still_unused(
    before: Mapping[str, int], packets: Mapping[str, int], now_us: int
) -> dict[str, int]:
    """Since when no packet came: by what the gate's counters read now. Those of a gate that was
    loaded anew begin at 0, so that only what was seen to be 0 each time counts as unused."""
    return {ports: before.get(ports, now_us) for ports, count in packets.items() if count == 0}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    owners: dict[str, list[tuple[int, str | None]]] = {}
    unused_since_us: dict[str, int] = {}


def place(config: Config) -> Path:
    """Where it is kept."""
    return config.database.parent / _NAME


def load(path: Path) -> Memory:
    """What was kept; nothing where no file is. Raises OSError and ValueError."""
    try:
        with as_owner(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Memory()
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no file")
        content = file.read(_MAX_SIZE + 1)
    if len(content) > _MAX_SIZE:
        raise ValueError("it is too large")
    read = msgspec.json.decode(content, type=_File)
    owners = {a: frozenset(Owner(*one) for one in some) for a, some in read.owners.items()}
    return Memory(owners, read.unused_since_us)


def save(path: Path, memory: Memory) -> None:
    """Replaces what was kept. Raises OSError."""
    owners = {
        access: [(owner.uid, owner.program) for owner in sorted(some, key=str)]
        for access, some in sorted(memory.owners.items())
    }
    content = msgspec.json.encode(_File(owners, dict(memory.unused_since_us)))
    with new_file(path, overwrite=True) as unnamed:
        unnamed.write_bytes(content)
