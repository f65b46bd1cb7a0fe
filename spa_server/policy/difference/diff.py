"""The difference between two policies in meaning: who gains, loses or changes which access.

1.  What is compared is what decide.py would answer to every request that can be made, by each
    subject, over the time of timeline.py. Names, order, and how rules, ranges, networks and
    schedules are written make no difference.
2.  Lifetimes are those of the rules, not what is left of them when `when` or `expires` ends.
3.  A subject is an identity with all its roles, or one role, or anybody: whoever needs no knock
    because of `always_open`.
4.  Identities with the same roles are one group, and what is the same for several groups is one
    change.
5.  Limits are compared for whoever has access by both policies.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import inf
from typing import Final

from spa_server.policy.decide import Question
from spa_server.policy.difference.cells import EVERYBODY, Rule, Side, Space, clock_of
from spa_server.policy.difference.offer import NOTHING
from spa_server.policy.difference.regions import Found, Region, Surveyor
from spa_server.policy.difference.spans import Spans
from spa_server.policy.difference.timeline import Timeline
from spa_server.policy.model import Limits, Policy


class Kind(StrEnum):
    """What a subject is."""

    ANYBODY = "anybody"
    IDENTITY = "identity"
    ROLE = "role"


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """Somebody whose access is compared."""

    kind: Kind
    name: str


ANYBODY: Final = Subject(Kind.ANYBODY, "anybody")
Subjects = Mapping[Subject, frozenset[str]]


class What(StrEnum):
    """What becomes of a subject's access: given where there was none, taken, or other than it was.

    A change may be more in one way and less in another.
    """

    GAIN = "gain"
    CHANGE = "change"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Cause:
    """The rules of one policy that a change is about.

    `different` are those that the other policy does not have: they make the difference. `about` are
    all that are for these ports and sources, be it at another time.
    """

    different: tuple[Rule, ...] = ()
    about: tuple[Rule, ...] = ()

    def __or__(self, other: "Cause") -> "Cause":
        return Cause(_united(self.different, other.different), _united(self.about, other.about))


@dataclass(frozen=True, slots=True)
class Change:
    """One region of requests to which these subjects are answered differently.

    `hours` is a rule that holds exactly at the region's times, where there is one.
    """

    subjects: tuple[Subject, ...]
    region: Region
    old: Cause
    new: Cause
    hours: Rule | None = None

    @property
    def what(self) -> What:
        """Whether it is access itself that is gained or lost."""
        if self.region.before == NOTHING:
            return What.GAIN
        return What.LOSS if self.region.after == NOTHING else What.CHANGE

    @property
    def is_gain(self) -> bool:
        """Whether anything is more than it was."""
        return any(is_more for _, is_more in self.region.signs)

    @property
    def is_loss(self) -> bool:
        """Whether anything is less than it was."""
        return any(not is_more for _, is_more in self.region.signs)

    @property
    def is_shown(self) -> bool:
        """Whether it says anything that another change does not say already."""
        return bool(self.region.ranges or self.region.across)


@dataclass(frozen=True, slots=True)
class LimitsChange:
    """Other limits for these subjects."""

    subjects: tuple[Subject, ...]
    before: Limits
    after: Limits

    @property
    def is_gain(self) -> bool:
        """Whether one of the limits is wider."""
        return any(old < new for old, new in _limit_pairs(self.before, self.after))

    @property
    def is_loss(self) -> bool:
        """Whether one of the limits is narrower."""
        return any(old > new for old, new in _limit_pairs(self.before, self.after))


@dataclass(frozen=True)
class Difference:
    """Everything in which two policies differ. `whole` is the time that was looked at."""

    changes: tuple[Change, ...]
    limits: tuple[LimitsChange, ...]
    whole: Spans = field(repr=False)

    def __bool__(self) -> bool:
        return bool(self.changes or self.limits)

    @property
    def concerned(self) -> frozenset[Subject]:
        """Everybody for whom anything is different."""
        return frozenset(subject for each in self._all for subject in each.subjects)

    @property
    def gaining(self) -> frozenset[Subject]:
        """Everybody for whom anything is more."""
        return frozenset(s for each in self._all if each.is_gain for s in each.subjects)

    @property
    def losing(self) -> frozenset[Subject]:
        """Everybody for whom anything is less."""
        return frozenset(s for each in self._all if each.is_loss for s in each.subjects)

    @property
    def _all(self) -> tuple[Change | LimitsChange, ...]:
        return *self.changes, *self.limits

    @property
    def shown(self) -> tuple[Change, ...]:
        """The changes that a person is to see."""
        return tuple(change for change in self.changes if change.is_shown)

    def covers(self, subject: Subject, question: Question) -> bool:
        """Whether the two policies answer this question of the subject's differently.

        The question's roles, holes, knocks and key are not looked at; it must lie in `whole`. A
        question of anybody's is for a single port.
        """
        return any(change.region.covers(question) for change in self._of.get(subject, ()))

    @cached_property
    def _of(self) -> Mapping[Subject, list[Change]]:
        found: dict[Subject, list[Change]] = {}
        for change in self.changes:
            for subject in change.subjects:
                found.setdefault(subject, []).append(change)
        return found


def by_identity(identities: Mapping[str, frozenset[str]]) -> Subjects:
    """The identities of a registry, with their roles."""
    return {Subject(Kind.IDENTITY, name): roles for name, roles in identities.items()}


def by_role(old: Policy, new: Policy) -> Subjects:
    """Each role of either policy, as if somebody had it alone."""
    names = (*old.roles, *(name for name in new.roles if name not in old.roles))
    return {Subject(Kind.ROLE, name): frozenset({name}) for name in names}


def compare(old: Policy, new: Policy, subjects: Subjects, begin_us: int) -> Difference:
    """What `new` gives these subjects, and anybody, other than `old`, from `begin_us` on."""
    space = Space(old, new)
    timeline = Timeline(begin_us, {slot.clock for slot in space.slots})
    surveyor = Surveyor(space, timeline)
    gathering = _Gathering(space, timeline)
    limits: dict[tuple[Limits, Limits], list[Subject]] = {}
    for roles, group in _groups(old, new, subjects).items():
        slots = space.old.mask(roles), space.new.mask(roles)
        for found in surveyor.find(*slots, asks_for_ranges=roles != EVERYBODY):
            gathering.add(found, roles, group)
        before, after = old.limits_of(roles), new.limits_of(roles)
        if all(slots) and before != after and roles != EVERYBODY:
            limits.setdefault((before, after), []).extend(group)
    changed_limits = (LimitsChange(tuple(sorted(group)), *pair) for pair, group in limits.items())
    return Difference(gathering.changes(), tuple(changed_limits), timeline.whole)


def _groups(old: Policy, new: Policy, subjects: Subjects) -> Mapping[frozenset[str], list[Subject]]:
    """Subjects by the roles that one of the policies knows."""
    known = {*old.roles, *new.roles}
    groups: dict[frozenset[str], list[Subject]] = {EVERYBODY: [ANYBODY]}
    for subject, roles in subjects.items():
        groups.setdefault(roles & known, []).append(subject)
    return groups


@dataclass(slots=True)
class _Draft:
    """A change in the making."""

    subjects: list[Subject] = field(default_factory=list)
    old: Cause = Cause()
    new: Cause = Cause()


class _Gathering:
    """Puts the same change of several groups together."""

    def __init__(self, space: Space, timeline: Timeline) -> None:
        self._space = space
        self._timeline = timeline
        self._drafts: dict[Region, _Draft] = {}

    def add(self, found: Found, roles: frozenset[str], group: Iterable[Subject]) -> None:
        """One group's."""
        draft = self._drafts.setdefault(found.region, _Draft())
        draft.subjects.extend(group)
        draft.old |= self._cause(found, self._space.old, self._space.new, roles)
        draft.new |= self._cause(found, self._space.new, self._space.old, roles)

    def changes(self) -> tuple[Change, ...]:
        """Gains first, then what is otherwise, then losses; each in the order of who it is for."""
        found = [
            Change(
                tuple(sorted(draft.subjects)),
                region,
                draft.old,
                draft.new,
                self._hours(region, draft),
            )
            for region, draft in self._drafts.items()
        ]
        return tuple(sorted(found, key=_order))

    def _cause(self, found: Found, side: Side, other: Side, roles: frozenset[str]) -> Cause:
        own = side.mask(roles)
        different = own & ~other.mask(roles)
        making = found.fitting & different or found.about & different
        return Cause(side.rules(making, roles), side.rules(found.about & own, roles))

    def _hours(self, region: Region, draft: _Draft) -> Rule | None:
        for rule in (*draft.new.about, *draft.old.about):
            if self._timeline.spans(clock_of(rule)) == region.times:
                return rule
        return None


def _united(one: Iterable[Rule], other: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple({rule.path: rule for rule in (*one, *other)}.values())


def _order(change: Change) -> tuple[object, ...]:
    region = change.region
    return (
        list(What).index(change.what),
        change.subjects[:1],
        region.ranges,
        region.across,
        region.sources,
        region.times[:1],
    )


def _limit_pairs(before: Limits, after: Limits) -> Iterable[tuple[float, float]]:
    yield _number(before.max_open), _number(after.max_open)
    yield _number(before.knocks_per_minute), _number(after.knocks_per_minute)
    yield _number(before.max_key_age_s), _number(after.max_key_age_s)


def _number(limit: int | None) -> float:
    return inf if limit is None else limit
