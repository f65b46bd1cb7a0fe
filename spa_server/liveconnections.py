"""The connections that were let in and have not ended: by conntrack's key, by source, by hole."""

from bisect import insort
from collections.abc import Iterator
from typing import Final, TypeAlias

from spa_protocol.layout import Address
from spa_server.attribution import Permitted
from spa_server.ctentry import key_of
from spa_server.flow import Flow
from spa_server.hole import Hole
from spa_server.link import link_of, off_link

MAX_REMEMBERED: Final = 65_536

_Place: TypeAlias = tuple[int, int, int, int, int, int]


class LiveConnections:
    """At most `limit` of them. `refused` counts those for which there was no room.

    Of one flow there may be several for a moment: the next connection between the same ports can be
    heard of before the end of the one before.
    """

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self.refused = 0
        self._limit = limit
        self._count = 0
        self._by_key: dict[bytes, list[Permitted]] = {}
        self._by_source: dict[tuple[Address, int], list[bytes]] = {}
        self._by_place: dict[_Place, dict[bytes, None]] = {}

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: bytes) -> bool:
        return key in self._by_key

    def __iter__(self) -> Iterator[bytes]:
        """Each flow's key once."""
        return iter(tuple(self._by_key))

    def at(self, key: bytes) -> tuple[Permitted, ...]:
        """The connections of one flow, the oldest first."""
        return tuple(self._by_key.get(key, ()))

    def from_source(self, source: Address, port: int) -> list[tuple[bytes, Permitted]]:
        """The latest connection of each flow from an address and port, with its key.

        A link-local address is looked for on every link.
        """
        keys = self._by_source.get((off_link(source), port), ())
        return [(key, self._by_key[key][-1]) for key in keys]

    def through(self, hole: Hole) -> list[tuple[bytes, Permitted]]:
        """The latest connection of each flow that may have come through a hole, with its key."""
        keys = self._by_place.get(_place(hole), ())
        return [(key, self._by_key[key][-1]) for key in keys]

    def add(self, permitted: Permitted) -> bytes | None:
        """Remembers a connection; its key, or None where there is no room."""
        if self._count >= self._limit:
            self.refused += 1
            return None
        flow = permitted.flow
        key = key_of(flow)
        of_flow = self._by_key.get(key)
        if of_flow is None:
            self._by_key[key] = [permitted]
            self._by_source.setdefault((off_link(flow.source), flow.source_port), []).append(key)
            self._by_place.setdefault(_place(flow), {})[key] = None
        else:
            insort(of_flow, permitted, key=lambda each: each.at_us)
        self._count += 1
        return key

    def take(self, key: bytes, begun_us: int | None) -> Permitted | None:
        """Forgets the connection of a flow that began nearest to a time, or the oldest."""
        of_flow = self._by_key.get(key)
        if of_flow is None:
            return None
        found = of_flow[0]
        if begun_us is not None:
            found = min(of_flow, key=lambda each: abs(each.at_us - begun_us))
        self.forget(key, found)
        return found

    def forget(self, key: bytes, permitted: Permitted) -> bool:
        """Forgets one connection; whether it was known."""
        of_flow = self._by_key.get(key, [])
        if permitted not in of_flow:
            return False
        of_flow.remove(permitted)
        self._count -= 1
        if not of_flow:
            del self._by_key[key]
            self._forget_source(key, permitted)
            self._forget_place(key, permitted)
        return True

    def _forget_source(self, key: bytes, permitted: Permitted) -> None:
        source = (off_link(permitted.flow.source), permitted.flow.source_port)
        keys = self._by_source[source]
        keys.remove(key)
        if not keys:
            del self._by_source[source]

    def _forget_place(self, key: bytes, permitted: Permitted) -> None:
        place = _place(permitted.flow)
        keys = self._by_place[place]
        del keys[key]
        if not keys:
            del self._by_place[place]


def _place(of: Flow | Hole) -> _Place:
    """What a flow has in common with its hole. `ipaddress` takes long to hash what it prints."""
    link = link_of(of.source, of.target)
    return of.source.version, int(of.source), int(of.target), link, of.protocol, of.port
