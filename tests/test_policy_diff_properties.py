"""What differs between two policies is what decide() answers differently, and nothing else."""

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spa_protocol.access import Access, Protocol
from spa_server.policy.decide import Question, decide
from spa_server.policy.difference.cells import position, stretches_of
from spa_server.policy.difference.diff import (
    ANYBODY,
    Difference,
    Kind,
    Subject,
    by_identity,
    compare,
)
from spa_server.policy.difference.offer import NOTHING
from spa_server.policy.difference.patches import Place, is_covered
from spa_server.policy.difference.portcells import (
    PortCell,
    longest_ranges,
    port_cells,
    put_together,
)
from spa_server.policy.difference.spans import Spans, elementary, holds, merged, within, without
from spa_server.policy.difference.timeline import HORIZON_US
from spa_server.policy.model import (
    Allow,
    AlwaysOpenRule,
    Limits,
    Policy,
    Requirement,
    Role,
    Sessions,
    Sources,
)
from spa_server.policy.schedule import Schedule
from tests.growth import growth
from tests.world import NOW_US

MINUTE_US = 60_000_000
DAY_US = 86_400_000_000
BEGIN_US = NOW_US - NOW_US % MINUTE_US
ROLES = ("a", "b", "c")
SUBJECTS = {
    Subject(Kind.IDENTITY, "none"): frozenset[str](),
    Subject(Kind.IDENTITY, "one"): frozenset({"a"}),
    Subject(Kind.IDENTITY, "two"): frozenset({"a", "b"}),
    Subject(Kind.IDENTITY, "all"): frozenset({*ROLES, "unknown to the policy"}),
}

# Each line says the same in different words, so that a pair of rules may differ in words alone.
SCHEDULES: tuple[tuple[Schedule | None, ...], ...] = (
    (None, Schedule("24/7"), Schedule("Mo-Su 00:00-24:00", "Europe/Berlin")),
    (
        Schedule("Mo-Fr 08:00-18:00", "Europe/Berlin"),
        Schedule("Mo,Tu 08:00-18:00; We-Fr 08:00-18:00", "Europe/Berlin"),
        Schedule("Mo-Fr 08:00-12:00,12:00-18:00", "Europe/Vienna"),
    ),
    (Schedule("Mo-Fr 07:00-18:00", "Europe/Berlin"),),
    (Schedule("Sa,Su", "UTC"), Schedule("Sa-Su 00:00-24:00", "UTC")),
    (Schedule("22:00-06:00", "America/New_York"),),
    (Schedule("2027-2029", "UTC"), Schedule("2027,2028,2029", "UTC")),
)
ALL_SCHEDULES = [schedule for same in SCHEDULES for schedule in same]
# Nested, neighbouring, apart, and of both families.
NETWORKS = [
    ip_network(text)
    for text in (
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.20.0.0/16",
        "10.20.0.0/17",
        "10.20.128.0/17",
        "10.20.3.0/24",
        "192.0.2.7/32",
        "::/0",
        "2001:db8::/32",
        "2001:db8:20::/48",
        "2001:db8:20::/49",
        "::a14:300/120",  # the numbers of 10.20.3.0/24, in the other family
    )
]
EXPIRIES = (None, BEGIN_US - DAY_US, BEGIN_US + 30 * DAY_US, BEGIN_US + HORIZON_US + 400 * DAY_US)
# Sessions are cut by port, and no port may be both: a policy cuts one of these stretches, or none.
STRETCHES = ((1, 12), (20, 320))


@st.composite
def accesses(draw: st.DrawFn, stretch: tuple[int, int]) -> Access:
    """A small range of ports, in one stretch, most often of TCP."""
    first = draw(st.integers(stretch[0], stretch[1]))
    last = draw(st.sampled_from([first, min(first + 3, stretch[1]), stretch[1]]))
    return Access(draw(st.sampled_from([Protocol.TCP, Protocol.TCP, Protocol.UDP])), first, last)


networks = st.lists(st.sampled_from(NETWORKS), max_size=3, unique=True).map(tuple)


@st.composite
def allows(draw: st.DrawFn, role: str, cut: int | None) -> Allow:
    """One rule. Lifetimes are under a minute, so that no end of a schedule cuts them short."""
    number = draw(st.integers(0, len(STRETCHES) - 1))
    lifetime_s = draw(st.sampled_from([10, 20, 30]))
    is_cut = number == cut
    return Allow(
        path="",
        role=role,
        services=("s",),
        accesses=tuple(draw(st.lists(accesses(STRETCHES[number]), min_size=1, max_size=2))),
        sources=Sources(draw(networks)),
        lifetime_s=lifetime_s,
        max_lifetime_s=lifetime_s + draw(st.sampled_from([0, 0, 20])),
        sessions=Sessions.CUT if is_cut else Sessions.KEEP,
        once=not is_cut and draw(st.booleans()),
        when=draw(st.sampled_from(ALL_SCHEDULES)),
        require=frozenset(draw(st.sets(st.sampled_from(Requirement)))),
        expires_at_us=draw(st.sampled_from(EXPIRIES)),
    )


limits = st.builds(
    Limits, st.sampled_from([None, None, 1, 5]), st.sampled_from([None, None, 10, 60])
)


def numbered(policy: Policy) -> Policy:
    """The same with key paths, as a file would give them."""
    roles = {
        name: replace(
            role,
            allows=tuple(
                replace(allow, path=f"roles.{name}.allow[{index}]", role=name)
                for index, allow in enumerate(role.allows)
            ),
        )
        for name, role in policy.roles.items()
    }
    always_open = tuple(
        replace(rule, path=f"always_open[{index}]") for index, rule in enumerate(policy.always_open)
    )
    return replace(policy, roles=roles, always_open=always_open)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A few roles whose rules overlap in every way."""
    cut = draw(st.sampled_from([None, 0, 1]))
    roles = {
        name: Role(name, "", tuple(draw(st.lists(allows(name, cut), max_size=3))), draw(limits))
        for name in draw(st.sets(st.sampled_from(ROLES)).map(sorted))
    }
    uncut = [stretch for number, stretch in enumerate(STRETCHES) if number != cut]
    open_to_all = [
        AlwaysOpenRule("", ("s",), (draw(accesses(uncut[0])),), Sources(draw(networks)))
        for _ in range(draw(st.integers(0, 2)))
    ]
    return numbered(Policy({}, roles, tuple(open_to_all), draw(limits)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Policy, Policy]:
    """Two policies, most often of a common origin: one rule of it is other than it was."""
    old = draw(policies())
    if draw(st.booleans()):
        return old, draw(policies())
    roles = dict(old.roles)
    for name, role in old.roles.items():
        kept = [allow for allow in role.allows if draw(st.integers(0, 3))]
        changed = [_changed(draw, allow) if draw(st.booleans()) else allow for allow in kept]
        roles[name] = replace(role, allows=tuple(changed), limits=draw(limits))
    return old, numbered(replace(old, roles=roles, always_open=old.always_open[:1]))


def _changed(draw: st.DrawFn, allow: Allow) -> Allow:
    """The rule with one thing changed."""
    more = allow.lifetime_s + 5
    field, values = draw(
        st.sampled_from(
            [
                ("sources", [Sources(), Sources((NETWORKS[2],))]),
                ("when", ALL_SCHEDULES),
                ("require", [frozenset(), frozenset({Requirement.TOUCH})]),
                ("expires_at_us", EXPIRIES),
                ("max_lifetime_s", [more, allow.lifetime_s]),
                ("accesses", [_cut(allow), (_inside(allow.accesses[0]),)]),
            ]
        )
    )
    return replace(allow, **{field: draw(st.sampled_from(values))})


def _cut(allow: Allow) -> tuple[Access, ...]:
    """Each range of a rule as two: every port stays, and no range across the middle does."""
    pieces = []
    for access in allow.accesses:
        middle = (access.first + access.last) // 2
        pieces.append(replace(access, last=middle))
        if middle < access.last:
            pieces.append(replace(access, first=middle + 1))
    return tuple(pieces)


SOURCES = [edge for network in NETWORKS for edge in (network[0], network[-1])]


def questions(old: Policy, new: Policy, seed: int, count: int = 40) -> Iterator[Question]:
    """Requests, most of them about a rule of either policy and near its edges; at whole minutes."""
    chance = random.Random(seed)
    rules = [*old.allows, *new.allows, *old.always_open, *new.always_open]
    ports = sorted({p for rule in rules for access in rule.accesses for p in _near(access)}) or [1]
    times = sorted({moment for rule in (*old.allows, *new.allows) for moment in _moments(rule)})
    for _ in range(count):
        sources, firsts, protocol = SOURCES, ports, chance.choice([Protocol.TCP, Protocol.UDP])
        if rules and chance.random() < 0.8:
            rule = chance.choice(rules)
            access = chance.choice(rule.accesses)
            firsts, protocol = _near(access), access.protocol
            sources = [e for n in rule.sources.networks for e in (n[0], n[-1])] or SOURCES
        first = chance.choice(firsts)
        last = chance.choice([first, *(p for p in ports if 0 <= p - first < 256)])
        any_time = BEGIN_US + chance.randrange(HORIZON_US // MINUTE_US) * MINUTE_US
        yield Question(
            frozenset(),
            chance.choice(sources),
            Access(protocol, first, last),
            chance.choice([any_time, any_time, *times]),
            chance.choice([0, 0, 5, 25, 45]),
            chance.random() < 0.3,
            declared=chance.random() < 0.6,
            touched=chance.random() < 0.6,
        )


def _near(access: Access) -> list[int]:
    return [p + d for p in (access.first, access.last) for d in (-1, 0, 1) if p + d >= 1]


def _moments(allow: Allow) -> list[int]:
    """The last minute before something changes, and the first one after it."""
    changes = [allow.expires_at_us, allow.when.changes_at_us(BEGIN_US) if allow.when else None]
    minutes = [m + d for m in changes if m is not None for d in (-MINUTE_US, 0)]
    return [minute for minute in minutes if minute >= BEGIN_US]


def asked_by(roles: frozenset[str], question: Question) -> Question:
    """The same question of somebody with these roles."""
    return msgspec.structs.replace(question, roles=roles)


def answer(policy: Policy, question: Question) -> tuple[bool, Sessions, int] | None:
    """What decide() says: (once, sessions, lifetime), or None for a refusal."""
    decision = decide(policy, (), question)
    if decision.rule is None:
        return None
    return decision.once, decision.rule.sessions, decision.lifetime_s


def is_open(policy: Policy, question: Question) -> bool:
    """Whether a port is open to an address without a knock."""
    return any(
        question.source in rule.sources and any(question.access in a for a in rule.accesses)
        for rule in policy.always_open
    )


def differs(old: Policy, new: Policy, question: Question) -> bool:
    """Whether it is answered differently by somebody who has no hole yet."""
    return answer(old, question) != answer(new, question)


COMMON = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class TestProperties:
    """Against decide() as the truth."""

    @settings(COMMON, max_examples=300)
    @given(pairs(), st.integers())
    @pytest.mark.once
    def test_a_decision_differs_if_and_only_if_the_diff_covers_it(
        self, both: tuple[Policy, Policy], seed: int
    ) -> None:
        difference = compare(*both, SUBJECTS, BEGIN_US)
        for question in questions(*both, seed):
            for subject, roles in SUBJECTS.items():
                asked = asked_by(roles, question)
                assert difference.covers(subject, asked) == differs(*both, asked)
            if question.access.size == 1:
                is_different = is_open(both[0], question) != is_open(both[1], question)
                assert difference.covers(ANYBODY, question) == is_different

    @COMMON
    @given(policies(), st.integers())
    def test_other_words_are_no_difference(self, policy: Policy, seed: int) -> None:
        reworded = Rewording(random.Random(seed)).of(policy)
        difference = compare(policy, reworded, SUBJECTS, BEGIN_US)
        assert not difference, difference

    @COMMON
    @given(pairs(), st.integers())
    def test_other_words_differ_as_the_same_words_do(
        self, both: tuple[Policy, Policy], seed: int
    ) -> None:
        old, new = both
        reworded = Rewording(random.Random(seed)).of(new)
        assert told(compare(old, reworded, SUBJECTS, BEGIN_US)) == told(
            compare(old, new, SUBJECTS, BEGIN_US)
        )

    @COMMON
    @given(pairs())
    def test_what_one_way_gains_the_other_loses(self, both: tuple[Policy, Policy]) -> None:
        there = compare(*both, SUBJECTS, BEGIN_US)
        back = compare(both[1], both[0], SUBJECTS, BEGIN_US)
        assert told(there) == {(s, region.reversed()) for s, region in told(back)}
        assert there.gaining == back.losing
        assert there.losing == back.gaining

    @COMMON
    @given(pairs(), st.integers())
    def test_what_a_person_reads_says_it_all(self, both: tuple[Policy, Policy], seed: int) -> None:
        """What differs for a port is in a change that is shown; for a range, in one like it."""
        difference = compare(*both, SUBJECTS, BEGIN_US)
        for question in questions(*both, seed):
            for change in difference.changes:
                if change.region.covers(question) and question.access.size == 1:
                    assert any(question.access in each for each in change.region.ranges)
        hidden = [c for c in difference.changes if not c.is_shown]
        for change in hidden:
            signs = {
                sign
                for other in difference.shown
                if set(change.subjects) <= set(other.subjects)
                for sign in other.region.signs
            }
            assert change.region.signs <= signs

    @COMMON
    @given(pairs())
    def test_limits_differ_where_somebody_has_access_by_both(
        self, both: tuple[Policy, Policy]
    ) -> None:
        old, new = both
        difference = compare(old, new, SUBJECTS, BEGIN_US)
        found = {s: (each.before, each.after) for each in difference.limits for s in each.subjects}
        for subject, roles in SUBJECTS.items():
            pair = old.limits_of(roles), new.limits_of(roles)
            has_access = all(any(a.role in roles for a in policy.allows) for policy in both)
            assert found.get(subject) == (pair if has_access and pair[0] != pair[1] else None)


def told(difference: Difference) -> set[tuple[Subject, Any]]:
    """A difference without the rules that make it."""
    return {(s, change.region) for change in difference.changes for s in change.subjects}


class Rewording:
    """Says the same policy in other words, at random."""

    def __init__(self, chance: random.Random) -> None:
        self._random = chance

    def of(self, policy: Policy) -> Policy:
        """Rules split, doubled and shuffled, roles in another order."""
        roles = [replace(r, allows=self._allows(r.allows)) for r in policy.roles.values()]
        self._random.shuffle(roles)
        always_open = [other for rule in policy.always_open for other in self._open(rule)]
        self._random.shuffle(always_open)
        renamed = {role.name: role for role in roles}
        return numbered(replace(policy, roles=renamed, always_open=tuple(always_open)))

    def _allows(self, rules: tuple[Allow, ...]) -> tuple[Allow, ...]:
        said = [other for rule in rules for other in self._split(self._same(rule))]
        said += [rule for rule in said if self._chance() == 0]
        self._random.shuffle(said)
        return tuple(said)

    def _chance(self) -> int:
        return self._random.randrange(3)

    def _same(self, rule: Allow) -> Allow:
        same = next(schedules for schedules in SCHEDULES if rule.when in schedules)
        return replace(
            rule,
            services=("renamed",),
            sources=self._networks(rule.sources),
            when=self._random.choice(same),
        )

    def _split(self, rule: Allow) -> list[Allow]:
        """One rule for each access, or for each network, or a weaker one beside it."""
        match self._random.randrange(4):
            case 0:
                return [replace(rule, accesses=(access,)) for access in rule.accesses]
            case 1 if rule.sources.networks:
                return [replace(rule, sources=Sources((n,))) for n in rule.sources.networks]
            case 2:
                weaker = replace(
                    rule,
                    sources=Sources(rule.sources.networks[:1] or (NETWORKS[1],)),
                    lifetime_s=rule.lifetime_s - 5,
                    require=rule.require | {Requirement.TOUCH},
                    accesses=tuple(_inside(access) for access in rule.accesses),
                )
                return [rule, weaker]
        return [rule]

    def _networks(self, sources: Sources) -> Sources:
        if not sources.networks:
            return Sources() if self._chance() else Sources((NETWORKS[0], NETWORKS[7]))
        said: list[IPv4Network | IPv6Network] = []
        for network in sources.networks:
            halves = network.prefixlen < network.max_prefixlen and self._chance() == 0
            said += network.subnets() if halves else [network]
        self._random.shuffle(said)
        return Sources(tuple(said))

    def _open(self, rule: AlwaysOpenRule) -> list[AlwaysOpenRule]:
        """Nobody asks for ranges here, so a range may be cut."""
        (access,) = rule.accesses
        middle = (access.first + access.last) // 2
        pieces = [access]
        if access.size > 1 and self._chance():
            pieces = [replace(access, last=middle), replace(access, first=middle + 1)]
        sources = self._networks(rule.sources)
        return [replace(rule, accesses=(piece,), sources=sources) for piece in pieces]


def _inside(access: Access) -> Access:
    return replace(access, last=access.first)


def ports(text: str) -> Access:
    return Access.parse(text)


class TestCells:
    """What the properties seldom reach."""

    def test_a_range_of_256_ports_can_be_asked_for_and_no_wider_one(self) -> None:
        cut = [(1, 2, 1), (2, 256, 1), (256, 257, 1), (257, 258, 1)]
        wide = {cell.hull for cell, _ in port_cells(Protocol.TCP, cut)}
        assert ports("tcp/1-256") in wide
        assert ports("tcp/2-257") in wide
        assert ports("tcp/1-257") not in wide

    def test_ranges_that_only_overlap_are_not_one(self) -> None:
        """tcp/1-5 and tcp/3-8, each whole, are not tcp/1-8."""
        cut = [(1, 3, 0b01), (3, 6, 0b11), (6, 9, 0b10)]
        cells = {cell for cell, _ in port_cells(Protocol.TCP, cut)}
        found = list(longest_ranges(cells, with_wide=True))
        assert found == [ports("tcp/1-5"), ports("tcp/3-8")]
        assert list(longest_ranges(cells, with_wide=False)) == [ports("tcp/1-8")]

    def test_wide_cells_are_put_together_where_they_touch(self) -> None:
        first, tcp = (1, 5), Protocol.TCP
        cells = [
            PortCell(tcp, first, (5, 8)),
            PortCell(tcp, first, (8, 9)),
            PortCell(tcp, first, (20, 22)),
        ]
        assert put_together(cells) == (
            PortCell(tcp, first, (5, 9)),
            PortCell(tcp, first, (20, 22)),
        )

    @given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6), st.data())
    def test_spans(self, drawn: list[tuple[int, int]], data: st.DataObject) -> None:
        one = [(begin, begin + size) for begin, size in drawn]
        other = data.draw(st.lists(st.sampled_from(one), unique=True)) if one else []
        numbers = {n for stretch in one for n in range(*stretch)}
        taken = {n for stretch in other for n in range(*stretch)}
        spans, rest = merged(one), without(merged(one), merged(other))
        assert [n for n in range(80) if holds(spans, n)] == sorted(numbers)
        assert [n for n in range(80) if holds(rest, n)] == sorted(numbers - taken)
        assert within(merged(other), spans)
        assert within(spans, merged(other)) == (numbers <= taken)
        cut = elementary((*stretch, 1 << k) for k, stretch in enumerate(one))
        for number in range(80):
            mask = sum(bits for begin, end, bits in cut if begin <= number < end)
            assert mask == sum(1 << k for k, (b, e) in enumerate(one) if b <= number < e)

    @pytest.mark.parametrize(
        ("others", "is_whole"),
        [
            ([], False),
            ([(((0, 9),), ((0, 9),))], True),
            ([(((0, 9),), ((0, 5),))], False),
            ([(((0, 5),), ((0, 9),))], False),
            ([(((0, 5),), ((0, 9),)), (((5, 9),), ((0, 9),))], True),
            ([(((0, 9),), ((0, 5),)), (((0, 9),), ((4, 9),))], True),
            ([(((0, 9),), ((0, 5),)), (((0, 8),), ((4, 9),))], False),
        ],
    )
    def test_a_place_is_covered_at_all_of_its_sources_and_times(
        self, others: list[tuple[Spans, Spans]], is_whole: bool
    ) -> None:
        """Each of the others as its sources and its times."""
        place = Place(NOTHING, NOTHING, ((1, 8),), ((0, 4), (5, 9)))
        by = [Place(NOTHING, NOTHING, times, sources) for sources, times in others]
        assert is_covered(place, by) is is_whole

    def test_the_two_families_never_meet(self) -> None:
        assert len(stretches_of(())) == 2
        assert position(ip_address("0.0.0.7")) != position(ip_address("::7"))


def test_a_thousand_rules_and_ten_thousand_identities_take_seconds() -> None:
    """Three rules changed of 1,000; nearly every identity has roles that nobody else has."""
    chance = random.Random(4)

    def rule(role: str, index: int) -> Allow:
        port = chance.randrange(1, 20_000)
        network = IPv4Network((10 << 24 | chance.randrange(1 << 16) << 8, 24))
        return Allow(
            f"roles.{role}.allow[{index}]",
            role,
            ("s",),
            (Access(Protocol.TCP, port, port + chance.choice([0, 0, 9])),),
            Sources((network,)),
            30,
            600,
            Sessions.KEEP,
            False,
            chance.choice(ALL_SCHEDULES),
        )

    names = [f"r{k}" for k in range(100)]
    old = Policy({}, {n: Role(n, "", tuple(rule(n, k) for k in range(10))) for n in names})
    roles = dict(old.roles)
    for name in names[:3]:
        first = replace(roles[name].allows[0], sources=Sources())
        roles[name] = replace(roles[name], allows=(first, *roles[name].allows[1:]))
    everybody = {f"u{k}": frozenset(chance.sample(names, 3)) for k in range(10_000)}

    def compared(count: int) -> tuple[dict[str, frozenset[str]], Difference]:
        people = dict(list(everybody.items())[:count])
        return people, compare(old, replace(old, roles=roles), by_identity(people), BEGIN_US)

    assert growth(compared, 1_000, times=10, attempts=2) < 3
    people, difference = compared(10_000)
    held = {f for f, has in people.items() if has & set(names[:3])}
    assert {subject.name for subject in difference.gaining} == held
    assert not difference.losing
