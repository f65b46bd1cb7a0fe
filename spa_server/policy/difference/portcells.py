"""Requests for ports, as a space to be cut: a request is a first port and a last one.

A rule covers a request when one of its accesses has all of its ports. Stretches of ports are half
open, as all stretches here.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from spa_protocol.access import Access, Protocol
from spa_protocol.layout import MAX_PORTS
from spa_server.policy.difference.spans import Stretch, merged


@dataclass(frozen=True, slots=True, order=True)
class PortCell:
    """Requests whose first port is in one stretch and whose last port is in another.

    Where the two are the same stretch, they are all the requests within it.
    """

    protocol: Protocol
    first: Stretch
    last: Stretch

    @property
    def hull(self) -> Access:
        """The range from its first possible port to its last."""
        return Access(self.protocol, self.first[0], self.last[1] - 1)

    @property
    def is_wide(self) -> bool:
        """Whether its requests are for ranges only."""
        return self.first != self.last

    def __contains__(self, access: Access) -> bool:
        return (
            access.protocol is self.protocol
            and self.first[0] <= access.first < self.first[1]
            and self.last[0] <= access.last < self.last[1]
        )


def port_cells(
    protocol: Protocol, cut: list[tuple[int, int, int]]
) -> Iterator[tuple[PortCell, int]]:
    """Every cell that a knock can ask for, with the slots that cover it.

    `cut` are the elementary stretches of ports, in order, with the slots that each is in: (begin,
    end, slots). A slot is one access, so one that has both ends of a range has all of it.
    """
    for index, (begin, end, mask) in enumerate(cut):
        yield PortCell(protocol, (begin, end), (begin, end)), mask
        for other_begin, other_end, other in cut[index + 1 :]:
            if not mask & other or _is_too_wide(end - 1, other_begin):
                break
            yield PortCell(protocol, (begin, end), (other_begin, other_end)), mask & other


def longest_ranges(cells: Collection[PortCell], *, with_wide: bool) -> Iterator[Access]:
    """The longest ranges of which every request, for one port or for several, is in a cell.

    Without `with_wide` only single ports are asked for, so what touches is one range.
    """
    for protocol in Protocol:
        singles = sorted(c.first for c in cells if c.protocol is protocol and not c.is_wide)
        begin = 0
        for index in range(1, len(singles)):
            back = _reaches_back(cells, protocol, singles, index, with_wide=with_wide)
            if back > begin:
                yield Access(protocol, singles[begin][0], singles[index - 1][1] - 1)
                begin = back
        if singles:
            yield Access(protocol, singles[begin][0], singles[-1][1] - 1)


def _reaches_back(
    cells: Collection[PortCell],
    protocol: Protocol,
    singles: list[Stretch],
    index: int,
    *,
    with_wide: bool,
) -> int:
    """The first stretch from which all requests that end in the one at `index` are in a cell."""
    last = singles[index]
    if singles[index - 1][1] != last[0]:
        return index
    for back in range(index - 1, -1, -1):
        if not with_wide or _is_too_wide(singles[back][1] - 1, last[0]):
            return 0
        if PortCell(protocol, singles[back], last) not in cells:
            return back + 1
    return 0


def put_together(cells: Iterable[PortCell]) -> tuple[PortCell, ...]:
    """The same requests in fewer cells, which do not depend on how they were cut."""
    by_first: dict[tuple[Protocol, Stretch], list[Stretch]] = {}
    for cell in cells:
        by_first.setdefault((cell.protocol, cell.first), []).append(cell.last)
    by_last: dict[tuple[Protocol, Stretch], list[Stretch]] = {}
    for (protocol, first), lasts in by_first.items():
        for last in merged(lasts):
            by_last.setdefault((protocol, last), []).append(first)
    return tuple(
        sorted(
            PortCell(protocol, first, last)
            for (protocol, last), firsts in by_last.items()
            for first in merged(firsts)
        )
    )


def _is_too_wide(first: int, last: int) -> bool:
    return last - first + 1 > MAX_PORTS
