"""Places at the control socket: who is answered, and who has to come again.

A place is held from the moment at which somebody connects, and whoever says nothing holds it as
well. So, in this order:

1.  Root and the daemon's own user have places of their own, which nobody else can take. Where these
    are all taken, the one that was taken first is given to whoever comes.
2.  Any other user, a member of the group spa, has so many and no more.
3.  Where all that there are for members are taken, whoever has the most of them loses the one that
    was taken first, to whoever has fewer.
"""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

OF_ROOT: Final = 32
OF_A_USER: Final = 16
OF_MEMBERS: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Held by a user; `lose` is called when it is given to somebody else."""

    user: int
    lose: Callable[[], object]


class Places:
    """`trusted` are the ids of the users whom rule 1 is about."""

    def __init__(self, trusted: Collection[int]) -> None:
        self._trusted = trusted
        self._roots: list[Place] = []
        self._members: defaultdict[int, list[Place]] = defaultdict(list)

    def take(self, user: int, lose: Callable[[], object]) -> Place | None:
        """A place for this user; None where there is none."""
        held = self._held_with(user)
        if user in self._trusted:
            if len(held) >= OF_ROOT:
                held.pop(0).lose()
        elif len(held) >= OF_A_USER:
            return None
        elif sum(map(len, self._members.values())) >= OF_MEMBERS:
            most = max(self._members.values(), key=len)
            if len(most) <= len(held) + 1:  # else two would take it from each other in turn
                return None
            most.pop(0).lose()
        place = Place(user, lose)
        held.append(place)
        return place

    def leave(self, place: Place) -> None:
        """It is free again; no matter if it was lost before."""
        held = self._held_with(place.user)
        if place in held:
            held.remove(place)
        if not held:
            self._members.pop(place.user, None)

    def _held_with(self, user: int) -> list[Place]:
        return self._roots if user in self._trusted else self._members[user]
