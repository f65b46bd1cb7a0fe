"""The least policy that would have allowed what was used.

1.  What was connected to is allowed as it was knocked for: the same access, from the networks that
    were seen, for as long as was given at most, once where it was once each time.
2.  What came by a rule of the policy in force stays under that rule's conditions (`when`,
    `require`, `expires`): it never gets wider than the rule, and stays in a role of that name.
3.  Whoever used the same is put into one role. The role's name stays with most of its people; the
    others get a role beside it, unless roles are to be kept whole.
4.  What no rule of the policy in force would allow any more gets a role of its own.
5.  Ports that stand open without a knock need no rule. No rule is written that another one of its
    role makes needless: such a policy would be refused.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Final

from spa_protocol.access import Access
from spa_server.policy.difference.spans import within
from spa_server.policy.model import Allow, Policy, Role, Sessions, Sources
from spa_server.policy.suggest.attribution import Attribution, role_named
from spa_server.policy.suggest.naming import Names
from spa_server.policy.suggest.prefixes import Seen, seen_in, spans_of
from spa_server.policy.suggest.usage import Use

_USUAL_LIFETIME_S: Final = 30


@dataclass(frozen=True, slots=True)
class LeastAllow:
    """One allow: accesses from networks, under the conditions of `like` if it comes of a rule.

    `uses` are those it is for.
    """

    like: Allow | None
    accesses: tuple[Access, ...]
    seen: tuple[Seen, ...]
    lifetime_s: int
    max_lifetime_s: int
    once: bool
    sessions: Sessions
    uses: tuple[Use, ...]

    @property
    def hours(self) -> int:
        """A bit for each hour of UTC in which it was used."""
        return reduce(or_, (use.hours for use in self.uses))

    @property
    def days(self) -> int:
        """A bit for each day of the week, Monday first."""
        return reduce(or_, (use.days for use in self.uses))


@dataclass(frozen=True, slots=True)
class LeastRole:
    """A role, the one in force that it comes of, and who is to have it."""

    name: str
    like: Role | None
    allows: tuple[LeastAllow, ...]
    people: tuple[str, ...]


def least_roles(
    policy: Policy,
    identities: Mapping[str, frozenset[str]],
    uses: Iterable[Use],
    *,
    whole_roles: bool = False,
) -> list[LeastRole]:
    """The roles of the least policy; `whole_roles` splits none of those in force (rule 3)."""
    attribution = Attribution(policy, identities)
    found: dict[str, dict[str, list[_Traced]]] = {}
    for use in uses:
        if use.connections and not _stands_open(policy, use):
            traced = _Traced(use, attribution.rule_of(use))
            people = found.setdefault(traced.rule.role if traced.rule else "", {})
            people.setdefault(use.identity, []).append(traced)
    names = Names(policy.roles)
    roles = [
        role
        for name in (*policy.roles, "")
        if name in found
        for role in _roles(policy, name, found[name], names, whole_roles=whole_roles)
    ]
    return _agreeing(policy, roles)


@dataclass(frozen=True, slots=True)
class _Traced:
    """A use, and the rule in force that it came by."""

    use: Use
    rule: Allow | None


def _stands_open(policy: Policy, use: Use) -> bool:
    return any(
        use.source in rule.sources and any(use.access in access for access in rule.accesses)
        for rule in policy.always_open
    )


def _roles(
    policy: Policy,
    name: str,
    people: Mapping[str, list[_Traced]],
    names: Names,
    *,
    whole_roles: bool,
) -> Iterator[LeastRole]:
    """The roles that come of one in force, or of none: the one with most people first."""
    groups: dict[frozenset[Access], list[str]] = {}
    for person, traced in people.items():
        accesses = frozenset(each.use.access for each in traced)
        same = frozenset() if whole_roles and name else accesses
        groups.setdefault(same, []).append(person)
    ordered = sorted(groups.values(), key=lambda group: (-len(group), sorted(group)))
    for index, group in enumerate(ordered):
        traced = [each for person in group for each in people[person]]
        wanted = _wanted_name(policy, name, traced)
        own_name = name if name and not index else names.new(wanted)
        allows = tuple(_needed(_allows(traced)))
        yield LeastRole(own_name, policy.roles.get(name), allows, tuple(sorted(group)))


def _wanted_name(policy: Policy, name: str, traced: Sequence[_Traced]) -> str:
    """dba-ssh beside dba; the name that a role had; or ssh-users."""
    services = "-".join(sorted({_service(policy, each.use.access) for each in traced}))
    if name:
        return f"{name}-{services}"
    had = {role_named(each.use.rule) for each in traced}
    return had.pop() if len(had) == 1 and "" not in had else f"{services}-users"


def _service(policy: Policy, access: Access) -> str:
    named = (name for name, own in policy.services.items() if any(access in a for a in own))
    return next(named, str(access).replace("/", "-"))


def _allows(traced: Iterable[_Traced]) -> list[LeastAllow]:
    """What one role needs: accesses that need the same, of the same rule, are one allow."""
    by_access: dict[tuple[str, Access], list[_Traced]] = {}
    for each in traced:
        path = each.rule.path if each.rule else ""
        by_access.setdefault((path, each.use.access), []).append(each)
    same: dict[LeastAllow, list[LeastAllow]] = {}
    for alike in by_access.values():
        allow = _allow(alike)
        same.setdefault(replace(allow, accesses=(), uses=()), []).append(allow)
    return [_joined(allows) for allows in same.values()]


def _allow(alike: Sequence[_Traced]) -> LeastAllow:
    """For one access by one rule."""
    rule, uses = alike[0].rule, tuple(each.use for each in alike)
    lifetime_s, max_lifetime_s = _lifetimes(rule, uses)
    sessions = rule.sessions if rule else _last_sessions(uses)
    return LeastAllow(
        like=rule,
        accesses=(uses[0].access,),
        seen=tuple(seen_in((use.source for use in uses), rule.sources if rule else Sources())),
        lifetime_s=lifetime_s,
        max_lifetime_s=max_lifetime_s,
        once=all(use.once for use in uses),
        sessions=sessions,
        uses=uses,
    )


def _lifetimes(rule: Allow | None, uses: Iterable[Use]) -> tuple[int, int]:
    """What a knock gets and the most it may ask for: as long as was given, never more than the
    rule gives now."""
    known = [use.lifetimes_s for use in uses if use.lifetimes_s is not None]
    if not known:
        usual_s = rule.lifetime_s if rule else _USUAL_LIFETIME_S
        return usual_s, rule.max_lifetime_s if rule else usual_s
    longest_s = max(longest_s for _, longest_s in known)
    if rule is None:
        return min(shortest_s for shortest_s, _ in known), longest_s
    longest_s = min(longest_s, rule.max_lifetime_s)
    return min(rule.lifetime_s, longest_s), longest_s


def _last_sessions(uses: Iterable[Use]) -> Sessions:
    known = [use for use in uses if use.sessions is not None]
    last = max(known, key=lambda use: use.decided_us, default=None)
    return last.sessions if last and last.sessions else Sessions.KEEP


def _joined(allows: Sequence[LeastAllow]) -> LeastAllow:
    """Allows that differ in their accesses alone; one within another is not named."""
    accesses = [access for allow in allows for access in allow.accesses]
    outer = [a for a in accesses if not any(a in other for other in accesses if other != a)]
    uses = tuple(use for allow in allows for use in allow.uses)
    return replace(allows[0], accesses=tuple(sorted(outer)), uses=uses)


def _needed(allows: Sequence[LeastAllow]) -> Iterator[LeastAllow]:
    """Rule 5. Of two that are the same the later one is needless."""
    for index, allow in enumerate(allows):
        if not any(
            _gives_all(other, allow) and (before < index or not _gives_all(allow, other))
            for before, other in enumerate(allows)
            if before != index
        ):
            yield allow


def _gives_all(other: LeastAllow, allow: LeastAllow) -> bool:
    """Whether `other` gives all that `allow` gives, as long and under no more conditions."""
    return (
        all(any(access in wider for wider in other.accesses) for access in allow.accesses)
        and within(spans_of(allow.seen), spans_of(other.seen))
        and _is_no_stricter(other.like, allow.like)
        and other.sessions is allow.sessions
        and not (other.once and not allow.once)
        and other.lifetime_s >= allow.lifetime_s
        and other.max_lifetime_s >= allow.max_lifetime_s
    )


def _is_no_stricter(one: Allow | None, other: Allow | None) -> bool:
    """Whether the conditions of the one hold whenever those of the other do."""
    if one is None or one is other:
        return True
    if other is None:
        return one.when is None and not one.require and one.expires_at_us is None
    ends = one.expires_at_us, other.expires_at_us
    lasts = ends[0] is None or (ends[1] is not None and ends[0] >= ends[1])
    return lasts and one.when in (None, other.when) and one.require <= other.require


def _agreeing(policy: Policy, roles: Sequence[LeastRole]) -> list[LeastRole]:
    """The same roles, in which no port is cut by one rule and kept, or always open, by another.

    Rules in force agree already. The others follow them, and among themselves the one that cuts.
    """
    kept = {a for rule in policy.allows if rule.sessions is Sessions.KEEP for a in rule.accesses}
    kept |= {access for rule in policy.always_open for access in rule.accesses}
    loose = [allow for role in roles for allow in role.allows if allow.like is None]
    kept = _spread(kept, loose)
    free = [allow for allow in loose if not _touches(allow, kept)]
    cutting = [allow for allow in free if allow.sessions is Sessions.CUT]
    cut = _spread({*policy.cut, *(a for allow in cutting for a in allow.accesses)}, free)

    def agreed(allow: LeastAllow) -> LeastAllow:
        is_cut = allow.sessions is Sessions.CUT
        if allow.like is None:
            is_cut = not _touches(allow, kept) and _touches(allow, cut)
        sessions = Sessions.CUT if is_cut else Sessions.KEEP
        return replace(allow, sessions=sessions, once=allow.once and not is_cut)

    return [replace(r, allows=tuple(_needed([agreed(a) for a in r.allows]))) for r in roles]


def _spread(accesses: set[Access], allows: Sequence[LeastAllow]) -> set[Access]:
    """With those of every allow that overlaps one of them, and so on."""
    while True:
        more = {
            access for allow in allows if _touches(allow, accesses) for access in allow.accesses
        }
        if more <= accesses:
            return accesses
        accesses = accesses | more


def _touches(allow: LeastAllow, accesses: Iterable[Access]) -> bool:
    others = tuple(accesses)
    return any(access.overlaps(other) for access in allow.accesses for other in others)
