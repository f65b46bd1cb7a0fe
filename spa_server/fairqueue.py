"""The fair queue: who has much to ask waits behind who has little.

What the kernel hands over is put in here by *party*, an identity or an invite, and taken out one of
each in turn. So a person who floods with good knocks from many addresses, each opening hundreds of
holes, delays others by one turn, and not by everything that came before theirs.

A party's turn goes to its tags in turn, so that junk under a stolen tag delays nothing that comes
under a spare one. It is bounded: what waits under one tag beyond `OF_ONE` is dropped unread, as
docs/protocol.md section 10 has it.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, TypeAlias, TypeVar

from spa_protocol.layout import TAG_SIZE
from spa_server.capture.datagram import Datagram

OF_ONE: Final = 1024
AT_ONCE: Final = 256
_Lanes: TypeAlias = OrderedDict[bytes, deque[Datagram]]
_Name = TypeVar("_Name", str, bytes)
_Some = TypeVar("_Some", _Lanes, deque[Datagram])


class FairQueue:
    """Datagrams that wait to be judged. `party_of` names whose one is; "" for nobody's."""

    def __init__(self, party_of: Callable[[Datagram], str]) -> None:
        self._party_of = party_of
        self._waiting: OrderedDict[str, _Lanes] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __len__(self) -> int:
        return sum(len(lane) for lanes in self._waiting.values() for lane in lanes.values())

    def put(self, datagrams: Iterable[Datagram]) -> int:
        """They wait from now on; how many did not find room."""
        dropped = 0
        for datagram in datagrams:
            party = self._party_of(datagram)
            lanes = self._waiting.setdefault(party, OrderedDict())
            # Nobody's tags are of any number, and share a lane.
            lane = lanes.setdefault(datagram.payload[:TAG_SIZE] if party else b"", deque())
            if len(lane) < OF_ONE:
                lane.append(datagram)
            else:
                dropped += 1
        return dropped

    def take(self) -> list[Datagram]:
        """The next batch: one of each party, those first that have waited for longest.

        No more than one: a knock for 256 ports takes some ten milliseconds, and whoever comes next
        waits for the whole batch.
        """
        taken: list[Datagram] = []
        for party in tuple(islice(self._waiting, AT_ONCE)):
            lanes = self._waiting[party]
            tag, lane = next(iter(lanes.items()))
            taken.append(lane.popleft())
            _to_the_end(lanes, tag)
            _to_the_end(self._waiting, party)
        return taken


def _to_the_end(waiting: OrderedDict[_Name, _Some], name: _Name) -> None:
    """Whoever had a turn has the next one last, and none where nothing waits."""
    if waiting[name]:
        waiting.move_to_end(name)
    else:
        del waiting[name]
