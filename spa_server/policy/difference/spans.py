"""Stretches of a line of whole numbers: ports, addresses and moments alike.

A stretch is half open, (begin, end). Spans are stretches in order and apart: neither overlapping
nor touching, so that one set of numbers has one way to be written.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import TypeAlias

Stretch: TypeAlias = tuple[int, int]
Spans: TypeAlias = tuple[Stretch, ...]


def merged(stretches: Iterable[Stretch]) -> Spans:
    """The numbers of any of these, as spans."""
    found: list[Stretch] = []
    for begin, end in sorted(stretches):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return tuple(found)


def holds(spans: Spans, number: int) -> bool:
    """Whether the number is in one of them."""
    at = bisect_right(spans, number, key=lambda span: span[0]) - 1
    return at >= 0 and number < spans[at][1]


def within(inner: Spans, outer: Spans) -> bool:
    """Whether every number of the one is the other's."""
    return inner == outer or merged((*inner, *outer)) == outer


def without(spans: Spans, taken: Spans) -> Spans:
    """The numbers of the one that the other has not."""
    pieces = elementary([*((*span, 1) for span in spans), *((*span, 2) for span in taken)])
    return merged((begin, end) for begin, end, mask in pieces if mask == 1)


def elementary(pieces: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Cuts the line wherever something begins or ends.

    Takes (begin, end, bits) and gives, in order, each stretch that has any bits, with all of them.
    Pieces with a bit in common must not overlap.
    """
    toggled: dict[int, int] = {}
    for begin, end, bits in pieces:
        toggled[begin] = toggled.get(begin, 0) ^ bits
        toggled[end] = toggled.get(end, 0) ^ bits
    found: list[tuple[int, int, int]] = []
    mask = begun = 0
    for at in sorted(toggled):
        if mask:
            found.append((begun, at, mask))
        mask ^= toggled[at]
        begun = at
    return found


def bits_of(mask: int) -> Iterable[int]:
    """The positions of the ones, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
