"""Folding: however many denials there are, a bounded number of lines tells of them.

They are counted by kind (who, whence, whereto, why). Kinds that are too many for the memory or for
the room that there is are folded, as far as needed:

1.  by source, then by network (/24 and /64);
2.  the networks with the most packets keep their line, the others share one;
3.  no count is ever lost: all lines together always tell of every packet that was added.

How many ports or sources a line stands for is exact up to `MAX_SEEN` of them, then "at least".
"""

import socket
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

# No knock waits for longer than some milliseconds, whatever comes in: 1,024 groups are folded in 3,
# 2,048 networks and 65,536 names are gone through and let go of in 4.
MAX_FINE: Final = 1024
MAX_GROUPS: Final = 2048
MAX_SEEN: Final = 65_536


class Kind(NamedTuple):
    """Denials that differ in nothing. Texts, as in the record; None where it is not known."""

    event: str
    source: str | None = None
    target: str | None = None
    access: str | None = None
    reason: str | None = None
    key_id: str | None = None
    identity: str | None = None


class Line(NamedTuple):
    """A line for the record of denials: so many packets, and the `detail` that says so.

    `at_us` is when the first of them came, where it was seen by itself.
    """

    kind: Kind
    packets: int
    detail: dict[str, Any]
    at_us: int | None = None


class Level(IntEnum):
    """How far the kinds are folded."""

    KIND = 0
    SOURCE = 1
    NETWORK = 2


Counted: TypeAlias = tuple[str | None, str | None, str | None, int]
"""Source, target, access, and how many packets."""
_Key: TypeAlias = tuple[str | None, ...]


def network_of(source: str | None) -> str | None:
    """The /24 or /64 that an address is in; what is no address is its own."""
    if source is None or "/" in source:
        return source
    if ":" not in source:
        return source.rpartition(".")[0] + ".0/24"
    try:
        packed = socket.inet_pton(socket.AF_INET6, source)
    except OSError:
        return source
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


class Folding:
    """Counts of denials. Bounded: `max_groups` networks, `MAX_FINE` groups before it comes to
    those, and `MAX_SEEN` names of what is in them."""

    def __init__(self, max_groups: int = MAX_GROUPS) -> None:
        self._max_groups = max_groups
        self._max_fine = min(max_groups, MAX_FINE)
        self.clear()

    def clear(self, level: Level = Level.KIND) -> None:
        """Forgets everything: it has been written. What comes next is folded to this level."""
        self.level = level
        self._counts: dict[_Key, int] = {}
        self._first: dict[_Key, Kind] = {}
        self._members: dict[_Key, int] = {}
        self._alone: dict[_Key, tuple[int, dict[str, Any]]] = {}
        self._rest: dict[_Key, list[int]] = {}
        self._seen: set[object] = set()
        self._bar = 0

    @property
    def overflows(self) -> bool:
        """Whether there are networks that share a line."""
        return bool(self._rest)

    def __bool__(self) -> bool:
        """Whether anything was counted."""
        return bool(self._counts or self._rest)

    def add(self, kind: Kind, count: int, alone: tuple[int, dict[str, Any]] | None = None) -> None:
        """Counts some more of a kind. `alone` is when one came that was seen by itself, and its
        detail."""
        if self.level is not Level.KIND:
            self._fold(kind, count)
            return
        known = self._counts.get(kind)
        if known is None and len(self._counts) >= self._max_fine:
            self._coarsen()
            self.add(kind, count)
            return
        self._counts[kind] = count + (known or 0)
        if alone is not None:
            self._alone.setdefault(kind, alone)

    def add_counts(self, event: str, counts: Iterable[Counted]) -> None:
        """Counts packets of one event, of which nothing else is known."""
        left = iter(counts)
        for counted in left:
            self.add(Kind(event, *counted[:3]), counted[3])
            if self.level is Level.NETWORK:
                break
        self._fold_networks(Kind(event), left)

    def _fold(self, kind: Kind, packets: int) -> None:
        if self.level is Level.NETWORK:
            self._fold_networks(kind, [(*kind[1:4], packets)])
            return
        key = (kind.event, kind.reason, kind.key_id, kind.source)
        if key in self._counts or len(self._counts) < self._max_fine:
            self._first.setdefault(key, kind)
            self._counts[key] = self._counts.get(key, 0) + packets
            self._members[key] = self._members.get(key, 0) + self._is_new(kind[1:4])
        else:
            self._coarsen()
            self._fold(kind, packets)

    def _is_new(self, member: object) -> bool:
        seen = self._seen
        if member in seen or len(seen) >= MAX_SEEN:
            return False
        seen.add(member)
        return True

    def _fold_networks(self, about: Kind, counts: Iterable[Counted]) -> None:
        """Many at once: this is where a flood comes in."""
        groups, members, seen = self._counts, self._members, self._seen
        event, reason, key_id = about.event, about.reason, about.key_id
        shared = shared_members = 0
        for counted in counts:
            source, packets = counted[0], counted[3]
            is_new = source not in seen and len(seen) < MAX_SEEN
            if is_new:
                seen.add(source)
            key = (event, reason, key_id, network_of(source))
            if key in groups:
                groups[key] += packets
                members[key] += is_new
            elif len(groups) >= self._max_groups and packets <= self._bar:
                shared += packets
                shared_members += is_new
            else:
                groups[key], members[key] = packets, is_new
                self._first[key] = Kind(event, *counted[:3], *about[4:])
                if len(groups) > self._max_groups:
                    self._keep(self._max_groups // 2)
        if shared:
            self._to_rest((event, reason), shared, shared_members)

    def _coarsen(self) -> None:
        """Everything that was counted, again, one level further. Two at once where one would not
        do: each takes as long as a knock may have to wait."""
        level, rest = Level(self.level + 1), self._rest
        if level is Level.SOURCE and self._sources() > self._max_fine // 2:
            level = Level.NETWORK
        counted = [(self._first.get(key, key), count) for key, count in self._counts.items()]
        self.clear(level)
        self._rest = rest
        for key, count in counted:
            kind = Kind(*key)  # type: ignore[arg-type]  # at the first level the key is the kind
            self._fold(kind, count)

    def _sources(self) -> int:
        return len({(kind[0], *kind[4:6], kind[1]) for kind in self._counts})

    def _keep(self, count: int) -> None:
        """The groups with the most packets stay; the others, and small newcomers, share a line."""
        ordered = sorted(self._counts, key=self._counts.__getitem__, reverse=True)
        for key in ordered[count:]:
            packets, members = self._counts.pop(key), self._members.pop(key)
            self._bar = max(self._bar, packets)
            del self._first[key]
            self._to_rest(key, packets, members)

    def _to_rest(self, key: _Key, count: int, members: int) -> None:
        rest = self._rest.setdefault(key[:2], [0, 0])
        rest[0] += count
        rest[1] += members

    def lines(self, at_most: int) -> list[Line]:
        """All that was counted, in so many lines, and one for each event and reason at most.

        It stays counted until `clear`.
        """
        while len(self._counts) > at_most and self.level is not Level.NETWORK:
            self._coarsen()
        if len(self._counts) > at_most:
            self._keep(at_most)
        return [*self._own_lines(), *self._shared_lines()]

    def _own_lines(self) -> Iterator[Line]:
        for key, count in self._counts.items():
            if self.level is Level.KIND:
                yield self._line_of_kind(Kind(*key), count)  # type: ignore[arg-type]  # a kind is its key
            else:
                yield self._line_of_group(key, count)

    def _line_of_group(self, key: _Key, count: int) -> Line:
        kind, members = self._first[key], self._members[key]
        by_source = self.level is Level.SOURCE
        is_alone = members == 1 and len(self._seen) < MAX_SEEN
        if is_alone and by_source:
            return Line(kind, count, {"count": count})
        source = kind.source if is_alone else key[-1]
        detail = {"count": count}
        if not is_alone:
            detail["ports" if by_source else "sources"] = members
        return Line(kind._replace(source=source, target=None, access=None), count, detail)

    def _line_of_kind(self, kind: Kind, count: int) -> Line:
        if kind not in self._alone:
            return Line(kind, count, {"further": count})
        at_us, detail = self._alone[kind]
        return Line(kind, count, detail | ({"further": count - 1} if count > 1 else {}), at_us)

    def _shared_lines(self) -> Iterator[Line]:
        for (event, reason), (count, members) in self._rest.items():
            kind = Kind(str(event), reason=reason)
            yield Line(kind, count, {"count": count, "sources": members})
