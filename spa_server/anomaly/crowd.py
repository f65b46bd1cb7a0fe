"""Which networks are everybody's: the office, a provider's region, a tunnel. Counts of keys."""

from typing import Final

from spa_server.anomaly.places import region_of
from spa_server.anomaly.profile import is_hopped
from spa_server.anomaly.sighting import OTHERS

MAX_NAMES: Final = 200_000
_ONE_IN: Final = 3


class Crowd:
    """How many keys know a network or a region, and how many hop between it and another.

    `places` is always a key's: its networks, with what its profile has of them.
    """

    def __init__(self) -> None:
        self._keys: dict[bytes, int] = {}
        self._hoppers: dict[bytes, int] = {}

    def others_at(self, place: bytes, places: dict[bytes, int]) -> int:
        """How many keys besides this one know a network."""
        return self._keys.get(place, 0) - (place in places)

    def others_near(self, place: bytes, places: dict[bytes, int]) -> int:
        """How many keys besides this one know a network's region."""
        region = region_of(place)
        return self._keys.get(region, 0) - _is_in(region, places)

    def is_tunnel(self, place: bytes) -> bool:
        """Whether it is no place: many of those who know it hop to it and back within minutes."""
        hoppers = self._hoppers.get(place, 0)
        return hoppers >= OTHERS and hoppers * _ONE_IN >= self._keys.get(place, 0)

    def join(self, places: dict[bytes, int]) -> None:
        """A key with its networks."""
        for place, seen in places.items():
            self._change(place, is_hopped(seen), 1)
        for region in {region_of(place) for place in places}:
            _add(self._keys, region, 1)

    def part(self, places: dict[bytes, int]) -> None:
        """A key is no more."""
        for place, seen in places.items():
            self._change(place, is_hopped(seen), -1)
        for region in {region_of(place) for place in places}:
            _add(self._keys, region, -1)

    def enter(
        self, place: bytes, places: dict[bytes, int], gone: tuple[bytes, int] | None = None
    ) -> None:
        """A key has come to know a network, which is among its `places` already.

        `gone`: the one that made room for it, which is not, and what was counted of that. Both at
        once: where they lie in one region, the key knew that before and knows it still.
        """
        region = region_of(place)
        self._change(place, is_hopped(places[place]), 1)
        is_known = _is_in(region, places, but=place)
        if gone is not None:
            left = region_of(gone[0])
            self._change(gone[0], is_hopped(gone[1]), -1)
            is_known = is_known or left == region
            _add(self._keys, left, -(not _is_in(left, places)))
        _add(self._keys, region, not is_known)

    def hop(self, place: bytes, before: int, seen: int) -> None:
        """What a key's profile has of a network is another now."""
        _add(self._hoppers, place, is_hopped(seen) - is_hopped(before))

    def _change(self, place: bytes, hopped: bool, by: int) -> None:
        _add(self._keys, place, by)
        _add(self._hoppers, place, by * hopped)


def _is_in(region: bytes, places: dict[bytes, int], but: bytes = b"") -> bool:
    return any(region_of(place) == region for place in places if place != but)


def _add(counts: dict[bytes, int], name: bytes, by: int) -> None:
    if not by:
        return
    count = counts.get(name, 0) + by
    if count <= 0:
        counts.pop(name, None)
    elif name in counts or len(counts) < MAX_NAMES:
        counts[name] = count
