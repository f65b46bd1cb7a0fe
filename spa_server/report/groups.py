"""The rows of the matrix: each person by name; where they are many, who reaches the same in one.

Of ten thousand people nobody reads ten thousand rows. Whoever has the same roles and reaches the
same services by the same rules is one row, with how many of them used each; who is alone in that
keeps a row and a name, so that the exceptions stand out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from spa_server.report.facts import Cell, Person

MOST_PEOPLE: Final = 100
MOST_GROUPS: Final = 100


@dataclass(frozen=True, slots=True)
class GroupCell:
    """How the people of a group reach one service: see `Cell`. `used_by` of them connected."""

    rules: tuple[int, ...]
    partial: tuple[int, ...]
    connections: int
    holes: int
    used_by: int


@dataclass(frozen=True, slots=True)
class Group:
    """A row of the matrix: `names` of whom, at least one; see `Person` for the rest."""

    names: tuple[str, ...]
    roles: tuple[str, ...]
    has_key: bool | None
    cells: Mapping[str, GroupCell]


@dataclass(frozen=True, slots=True)
class Grouping:
    """The rows to be shown, and how many groups and people are not."""

    groups: tuple[Group, ...]
    is_summed: bool = False
    groups_left_out: int = 0
    people_left_out: int = 0


def grouped(people: Sequence[Person], *, full: bool) -> Grouping:
    """One row each, in their order, as long as they are few or `full`; else one for each group.

    Groups with somebody who was let in by no rule of today come first, then the largest.
    """
    if full or len(people) <= MOST_PEOPLE:
        return Grouping(tuple(_group([person]) for person in people))
    found: dict[object, list[Person]] = {}
    for person in people:
        found.setdefault(_likeness(person), []).append(person)
    groups = sorted(map(_group, found.values()), key=_rank)
    left_out = groups[MOST_GROUPS:]
    return Grouping(
        tuple(groups[:MOST_GROUPS]),
        is_summed=True,
        groups_left_out=len(left_out),
        people_left_out=sum(len(group.names) for group in left_out),
    )


def _likeness(person: Person) -> object:
    """Equal for people who stand in the same row."""
    reached = frozenset((name, c.rules, c.partial) for name, c in person.cells.items())
    return person.has_key, person.roles, reached


def _rank(group: Group) -> tuple[bool, bool, int, str]:
    is_past = any(not cell.rules for cell in group.cells.values())
    return not is_past, group.has_key is not None, -len(group.names), group.names[0]


def _group(people: Sequence[Person]) -> Group:
    first = people[0]
    cells = {name: _cell(p.cells[name] for p in people) for name in first.cells}
    return Group(tuple(person.name for person in people), first.roles, first.has_key, cells)


def _cell(of: Iterable[Cell]) -> GroupCell:
    cells = list(of)
    return GroupCell(
        cells[0].rules,
        cells[0].partial,
        connections=sum(cell.connections for cell in cells),
        holes=sum(cell.holes for cell in cells),
        used_by=sum(cell.connections > 0 for cell in cells),
    )
