"""The difference between two policies, told to a person."""

from collections.abc import Iterator
from typing import Final

from spa_protocol.access import Access
from spa_server.policy.difference.diff import Change, Difference, Kind, LimitsChange, Subject, What
from spa_server.policy.difference.offer import BROUGHT, Aspect, Offer, Terms, all_signs, signs
from spa_server.policy.difference.words import (
    from_where,
    lasting,
    lifetimes,
    listed,
    moment,
    needed_bits,
    place,
    services_of,
    timed_rules,
)
from spa_server.policy.model import Allow, Policy, Sessions

_GAINS: Final = ("gains", "gain")
_LOSES: Final = ("loses", "lose")
_CHANGES: Final = ("changes", "change")
_VERBS: Final = {What.GAIN: _GAINS, What.LOSS: _LOSES, What.CHANGE: _CHANGES}
_MORE_OR_LESS: Final = {
    frozenset({True}): "more",
    frozenset({False}): "less",
    frozenset({True, False}): "more for some, less for others",
}
_ASPECTS: Final = (Aspect.ONCE, Aspect.SESSIONS, Aspect.LIFETIME, Aspect.MAX_LIFETIME)
_LIMITS: Final = (
    ("max_open", "holes at once"),
    ("knocks_per_minute", "knocks a minute"),
    ("max_key_age_s", "seconds of a key's age"),
)


class Teller:
    """Tells about a difference between these two policies."""

    def __init__(self, old: Policy, new: Policy, difference: Difference) -> None:
        self._old, self._new = old, new
        self._difference = difference

    def sentences(self) -> Iterator[tuple[str, list[str]]]:
        """For each change a sentence, and what more there is to say about it."""
        for change in self._difference.shown:
            yield self._sentence(change), list(self._more(change))
        for limits in self._difference.limits:
            yield f"{_does(limits.subjects, _CHANGES)} limits", list(_limits(limits))

    def summary(self) -> str:
        """The outcome in one line."""
        difference = self._difference
        if not difference:
            return "no difference in meaning"
        gaining, losing = len(difference.gaining), len(difference.losing)
        return f"gains for {gaining:,}, losses for {losing:,}"

    def _sentence(self, change: Change) -> str:
        region = change.region
        ranges = ", ".join(map(str, region.ranges))
        if not region.ranges:
            hulls = listed([str(each) for each in _hulls(change)])
            ranges = f"{hulls} as one range"
        names = services_named(self._old, self._new, change)
        what = f"{listed(names)} ({ranges})" if names else ranges
        return f"{self._does(change)} {what} {from_where(region.sources)}{self._when(change)}"

    def _does(self, change: Change) -> str:
        does = _does(change.subjects, _VERBS[change.what])
        if not self._is_about_time(change):
            return does
        return f"{does}{', at some times,' if change.what is What.CHANGE else ' time for'}"

    def _is_about_time(self, change: Change) -> bool:
        """Whether it is other hours for what both policies give."""
        is_partial = change.hours is None and change.region.times != self._difference.whole
        return is_partial and bool(change.old.about and change.new.about)

    def _when(self, change: Change) -> str:
        if change.region.times == self._difference.whole or self._is_about_time(change):
            return ""
        rules = change.old.about if change.what is What.LOSS else change.new.about
        return f", {timed_rules([change.hours] if change.hours else rules)}"

    def _more(self, change: Change) -> Iterator[str]:
        region = change.region
        if change.what is What.CHANGE:
            yield from _changes(region.before, region.after)
        elif change.subjects[0].kind is not Kind.ANYBODY:
            yield _gift(region.after if change.what is What.GAIN else region.before)
        if region.ranges and region.across:
            hulls = listed([str(each) for each in _hulls(change)])
            yield f"also as one range: {hulls}"
        yield from self._times(change)
        yield from _places(change)

    def _times(self, change: Change) -> Iterator[str]:
        if self._is_about_time(change):
            yield f"when: {timed_rules(change.old.about)} -> {timed_rules(change.new.about)}"
        first_us = change.region.times[0][0]
        if first_us != self._difference.whole[0][0]:
            yield f"first at {moment(first_us, _timezone(change))}"


def services_named(old: Policy, new: Policy, change: Change) -> list[str]:
    """The services that a change is about, by their names in the policy that gives them."""
    region = change.region
    ports = [*region.ranges, *(cell.hull for cell in region.across)]
    if change.what is What.LOSS:
        return services_of(old, change.old.about, ports)
    return services_of(new, change.new.about, ports)


def _does(subjects: tuple[Subject, ...], verb: tuple[str, str]) -> str:
    """`alice gains`, `alice, bob gain`, `roles admin, dba gain`."""
    is_one = len(subjects) == 1
    names = listed([subject.name for subject in subjects])
    if subjects[0].kind is Kind.ROLE:
        names = f"role{'' if is_one else 's'} {names}"
    return f"{names} {verb[0] if is_one else verb[1]}"


def _hulls(change: Change) -> list[Access]:
    """The ranges that requests across stretches are within, the widest alone."""
    hulls = sorted({cell.hull for cell in change.region.across})
    return [each for each in hulls if not any(each in other and each != other for other in hulls)]


def _timezone(change: Change) -> str:
    """That of a schedule which has to do with it."""
    rules = (*change.new.about, *change.old.about)
    schedules = (rule.when for rule in rules if isinstance(rule, Allow) and rule.when)
    return next((schedule.timezone for schedule in schedules), "UTC")


def _places(change: Change) -> Iterator[str]:
    for rules, side in ((change.old.different, "old"), (change.new.different, "new")):
        if rules:
            yield f"{side}: {listed([place(rule) for rule in rules], 3)}"


def _gift(offer: Offer) -> str:
    """What is given, to whom who brings what."""
    enough = _enough(offer)
    told = []
    first = next(terms for terms in offer if terms is not None)
    told.append(_terms(first))
    if enough != [0]:
        told.append(needed_bits(enough))
    for brings in BROUGHT:
        terms = offer[brings]
        part_of = [offer[less] for less in BROUGHT if less != brings and less & brings == less]
        if terms is not None and terms not in (first, *part_of):
            told.append(f"{_bringing(brings)}: {_terms(terms)}")
    return "; ".join(told)


def _enough(offer: Offer) -> list[int]:
    """The smallest sets of needs with which it is given."""
    given = [brings for brings in BROUGHT if offer[brings] is not None]
    return [
        brings
        for brings in given
        if not any(less != brings and less & brings == less for less in given)
    ]


def _bringing(brings: int) -> str:
    return needed_bits([brings]).replace("needs", "with", 1)


def _terms(terms: Terms) -> str:
    told = [lifetimes(terms.lifetime_s, terms.max_lifetime_s)]
    told += ["for one connection"] if terms.once else []
    told += ["sessions are cut"] if terms.sessions is Sessions.CUT else []
    return ", ".join(told)


def _changes(before: Offer, after: Offer) -> Iterator[str]:
    """What was, and what is instead, with `more` or `less`."""
    if _enough(before) != _enough(after):
        signs_of_all = all_signs(before, after)
        ways = frozenset(is_more for aspect, is_more in signs_of_all if aspect is Aspect.ACCESS)
        becomes = needed_bits(_enough(after)).removeprefix("needs ")
        yield f"{needed_bits(_enough(before))} -> {becomes} ({_MORE_OR_LESS[ways]})"
    seen: set[tuple[Terms, Terms]] = set()
    common = [k for k in BROUGHT if before[k] is not None and after[k] is not None]
    for brings in common:
        old, new = before[brings], after[brings]
        if old is None or new is None or old == new or (old, new) in seen:
            continue
        seen.add((old, new))
        to_whom = f"{_bringing(brings)}: " if brings != common[0] else ""
        yield to_whom + "; ".join(_aspects(old, new))


def _aspects(old: Terms, new: Terms) -> Iterator[str]:
    more = dict(signs(old, new))
    for aspect in _ASPECTS:
        if aspect in more:
            was, becomes = _aspect(aspect, old), _aspect(aspect, new)
            yield f"{was} -> {becomes} ({_MORE_OR_LESS[frozenset({more[aspect]})]})"


def _aspect(aspect: Aspect, terms: Terms) -> str:
    match aspect:
        case Aspect.ONCE:
            return "one connection" if terms.once else "any number of connections"
        case Aspect.SESSIONS:
            return f"sessions {'are cut' if terms.sessions is Sessions.CUT else 'live on'}"
        case Aspect.LIFETIME:
            return f"for {lasting(terms.lifetime_s)}"
        case _:
            return f"at most {lasting(terms.max_lifetime_s)}"


def _limits(limits: LimitsChange) -> Iterator[str]:
    for name, what in _LIMITS:
        old, new = getattr(limits.before, name), getattr(limits.after, name)
        if old != new:
            is_more = new is None or (old is not None and new > old)
            yield f"{what}: {_limit(old)} -> {_limit(new)} ({_MORE_OR_LESS[frozenset({is_more})]})"


def _limit(limit: int | None) -> str:
    return "no limit" if limit is None else f"{limit}"
