"""Grants, and the holes that they keep open.

A *grant* is one access of one knock: it belongs to a key, an identity and a rule. A *hole* is what
the kernel knows: source, target, protocol, port. Behind one NAT address a hole may be several
people's, so:

1.  A hole lives as long as its longest grant; a shorter one that comes later changes nothing.
2.  When a grant is ended, its holes close unless another grant holds them, and shorten to the
    longest that does.
3.  A `once` hole is a hole of its own: it does not hold an ordinary one open, nor the reverse.

Deadlines are seconds of CLOCK_MONOTONIC, which the kernel's set timeouts follow too, so that a step
of the wall clock neither opens a hole longer nor closes it early. Nothing here touches the kernel.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_server.hole import Hole
from spa_server.policy.model import Sessions


class Grant(msgspec.Struct, frozen=True):
    """One access that was granted. `grant_id` is the ledger's; `ends_at_s` is monotonic.

    `declared` and `touched` are what the knock brought: a policy that comes later may require it.
    """

    grant_id: int
    key_id: str
    identity: str
    rule: str
    source: Address
    target: Address
    access: Access
    once: bool
    sessions: Sessions
    opened_at_us: int
    expires_at_us: int
    ends_at_s: float
    declared: bool = False
    touched: bool = False

    @property
    def holes(self) -> Iterator[Hole]:
        """One hole for each port."""
        for port in self.access.ports:
            yield Hole(self.source, self.target, self.access.protocol, port, self.once)


class Change(msgspec.Struct, frozen=True):
    """What the kernel is to be told: holes to open until a time (monotonic), holes to close.

    No grant held those of `new` open before.
    """

    open_until_s: dict[Hole, float]
    close: tuple[Hole, ...] = ()
    new: frozenset[Hole] = frozenset()


class _Holders:
    """The grants that hold one hole open. The last to end is found without looking at the others:
    whoever knocks all day from one address may have thousands."""

    def __init__(self) -> None:
        self._ends_at_s: dict[int, float] = {}
        self._keys: Counter[str] = Counter()
        self._by_end: list[tuple[float, int]] = []  # the last first; those taken out stay a while

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._ends_at_s))

    def __bool__(self) -> bool:
        return bool(self._ends_at_s)

    def add(self, grant: Grant) -> None:
        self._ends_at_s[grant.grant_id] = grant.ends_at_s
        self._keys[grant.key_id] += 1
        heapq.heappush(self._by_end, (-grant.ends_at_s, grant.grant_id))

    def discard(self, grant: Grant) -> None:
        if self._ends_at_s.pop(grant.grant_id, None) is not None:
            self._keys[grant.key_id] -= 1

    def has(self, key_id: str) -> bool:
        return self._keys[key_id] > 0

    def last_end_s(self) -> float:
        """0 where there is none."""
        while self._by_end and self._by_end[0][1] not in self._ends_at_s:
            heapq.heappop(self._by_end)
        return -self._by_end[0][0] if self._by_end else 0.0


class GrantBook:
    """The grants in force, by hole and by the time they end."""

    def __init__(self) -> None:
        self._grants: dict[int, Grant] = {}
        self._by_hole: dict[Hole, _Holders] = {}
        self._of_identity: dict[str, Counter[Hole]] = {}
        self._by_end: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._grants)

    def __iter__(self) -> Iterator[Grant]:
        return iter(tuple(self._grants.values()))

    def add(self, grants: Iterable[Grant]) -> Change:
        """Enters new grants; the holes that open with them, or stay open longer for them."""
        opened: dict[Hole, float] = {}
        new: list[Hole] = []
        for grant in grants:
            self._grants[grant.grant_id] = grant
            of_identity = self._of_identity.setdefault(grant.identity, Counter())
            for hole in grant.holes:
                of_identity[hole] += 1
                holders = self._by_hole.get(hole)
                if holders is None:
                    holders = self._by_hole[hole] = _Holders()
                    new.append(hole)
                if grant.ends_at_s > holders.last_end_s():
                    opened[hole] = grant.ends_at_s
                holders.add(grant)
            heapq.heappush(self._by_end, (grant.ends_at_s, grant.grant_id))
        return Change(opened, new=frozenset(new))

    def end(self, grants: Sequence[Grant]) -> Change:
        """Takes grants out before their time (rule 2)."""
        before = {h: self._ends_at_s(h) for g in grants for h in g.holes if h in self._by_hole}
        self._take_out(grants)
        after = {hole: self._ends_at_s(hole) for hole in before}
        shorter = {h: until_s for h, until_s in after.items() if 0 < until_s < before[h]}
        closed = tuple(hole for hole, until_s in after.items() if until_s == 0)
        return Change(shorter, closed)

    def expire(self, now_s: float) -> list[Grant]:
        """Takes out the grants whose time is over; the kernel has closed their holes itself."""
        over: list[Grant] = []
        while self._by_end and self._by_end[0][0] <= now_s:
            _, grant_id = heapq.heappop(self._by_end)
            if grant_id in self._grants:
                over.append(self._grants[grant_id])
        self._take_out(over)
        return over

    def next_end_s(self) -> float | None:
        """When the next grant ends."""
        while self._by_end and self._by_end[0][1] not in self._grants:
            heapq.heappop(self._by_end)
        return self._by_end[0][0] if self._by_end else None

    def holes(self) -> dict[Hole, float]:
        """Every hole that should be open, and until when."""
        return {hole: self._ends_at_s(hole) for hole in self._by_hole}

    def holders(self, hole: Hole) -> list[Grant]:
        """The grants that hold a hole open."""
        return [self._grants[grant_id] for grant_id in self._by_hole.get(hole, ())]

    def renews(self, grant: Grant) -> bool:
        """Whether a grant's own key holds all its holes open already.

        A `once` hole is never the one before: that may have been used.
        """
        held = (self._by_hole.get(hole) for hole in grant.holes)
        return not grant.once and all(each is not None and each.has(grant.key_id) for each in held)

    def held_by(self, identity: str) -> AbstractSet[Hole]:
        """The holes that an identity holds open, as they are now and later."""
        return self._of_identity.get(identity, Counter()).keys()

    def where(self, wanted: Callable[[Grant], bool]) -> list[Grant]:
        """The grants for which something holds, oldest first."""
        return [grant for grant in self._grants.values() if wanted(grant)]

    def _ends_at_s(self, hole: Hole) -> float:
        holders = self._by_hole.get(hole)
        return holders.last_end_s() if holders is not None else 0.0

    def _take_out(self, grants: Iterable[Grant]) -> None:
        for grant in grants:
            if self._grants.pop(grant.grant_id, None) is None:
                continue
            of_identity = self._of_identity[grant.identity]
            for hole in grant.holes:
                of_identity[hole] -= 1
                if not of_identity[hole]:
                    del of_identity[hole]
                self._by_hole[hole].discard(grant)
                if not self._by_hole[hole]:
                    del self._by_hole[hole]
            if not of_identity:
                del self._of_identity[grant.identity]
