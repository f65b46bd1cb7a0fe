"""The policy: what is read, what is refused with which words, and what follows from it."""

import tomllib
from collections.abc import Iterable
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.tomlfile import FileProblem
from spa_protocol.access import Access, Protocol
from spa_protocol.reason import Code
from spa_protocol.reply import clip
from spa_server.policy.decide import Decision, Question, _failures, _fits, decide
from spa_server.policy.load import load_policy, parse_network, parse_policy
from spa_server.policy.model import (
    Allow,
    Limits,
    Policy,
    Requirement,
    Role,
    Sessions,
    Sources,
)
from spa_server.policy.schedule import Schedule

quick = settings(deadline=None)

GOOD = """
[services]
ssh = "tcp/22"
postgres = "tcp/5432"
console = ["tcp/8443", "tcp/9090-9099"]

[roles.dba]
description = "Database operators"
[[roles.dba.allow]]
services = ["postgres"]
from = ["10.20.0.0/16", "2001:db8:20::/48"]
lifetime = "30s"
max_lifetime = "8h"
sessions = "cut"
[[roles.dba.allow]]
services = ["console"]

[roles.ops]
[[roles.ops.allow]]
services = ["ssh", "console"]
lifetime = "1m"
[[roles.ops.allow]]
services = ["ssh"]
lifetime = "2m"
once = true

[[always_open]]
services = ["console"]
from = ["10.9.0.0/24"]
"""

# Every condition that a rule can have, in one.
STRICT = """
[services]
db = "tcp/5432"
web = "tcp/8000-8099"

[limits]
max_open = 2
knocks_per_minute = 3

[roles.dba]
expires = 2027-06-01
[[roles.dba.allow]]
services = ["db", "web"]
from = ["10.20.0.0/16", "2001:db8:20::/48"]
when = "Mo-Fr 08:00-18:00; PH off"
timezone = "Europe/Berlin"
country = "DE"
lifetime = "10m"
max_lifetime = "4h"
require = ["declared-source", "touch"]
expires = 2027-03-01T12:00:00+01:00

[roles.cutter]
[[roles.cutter.allow]]
services = ["db"]
sessions = "keep"
"""


def policy(text: str = GOOD) -> Policy:
    return parse_policy(tomllib.loads(text), Path("policy.toml"))


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000)


TUESDAY = us("2026-11-24T10:00:00+01:00")


def ask(access: str, source: str = "10.20.0.9", roles: str = "dba", **fields: Any) -> Decision:
    question = Question(
        frozenset(roles.split()),
        ip_address(source),
        Access.parse(access),
        **{"at_us": TUESDAY, **fields},
    )
    return decide(policy(), (ip_network("10.66.0.0/24"),), question)


def test_what_a_policy_says() -> None:
    read = policy()
    first = read.roles["dba"].allows[0]
    assert first.path == "roles.dba.allow[0]"
    assert (first.lifetime_s, first.max_lifetime_s) == (30, 8 * 3600)
    assert first.sessions is Sessions.CUT
    assert read.roles["dba"].allows[1].max_lifetime_s == 30
    assert read.roles["dba"].description == "Database operators"
    assert read.cut == (Access.parse("tcp/5432"),)
    assert str(read.always_open[0].sources) == "10.9.0.0/24"


def test_everything_that_a_rule_can_say() -> None:
    read = policy(STRICT)
    rule = read.roles["dba"].allows[0]
    assert rule.accesses == (Access.parse("tcp/5432"), Access.parse("tcp/8000-8099"))
    assert rule.sources.networks == (
        IPv4Network("10.20.0.0/16"),
        IPv6Network("2001:db8:20::/48"),
    )
    assert rule.when == Schedule("Mo-Fr 08:00-18:00; PH off", "Europe/Berlin", "DE")
    assert rule.require == {Requirement.DECLARED_SOURCE, Requirement.TOUCH}
    assert rule.expires_at_us == us("2027-03-01T11:00:00+00:00")
    assert read.roles["dba"].expires_at_us == us("2027-06-01T00:00:00+00:00")
    assert read.limits == Limits(2, 3)


def test_a_rule_expires_with_its_role() -> None:
    text = STRICT.replace("expires = 2027-03-01T12:00:00+01:00\n", "")
    assert policy(text).allows[0].expires_at_us == us("2027-06-01T00:00:00+00:00")


def test_an_empty_policy_allows_nothing() -> None:
    assert not policy("").allows


DECISIONS = [
    ("in the role, from there", ask("tcp/5432"), Code.GRANTED, 30),
    ("over IPv6 too", ask("tcp/5432", "2001:db8:20::9"), Code.GRANTED, 30),
    ("from elsewhere", ask("tcp/5432", "192.0.2.1"), Code.NOT_FROM_HERE, 0),
    ("over another protocol", ask("udp/5432"), Code.NO_ROLE, 0),
    ("another port", ask("tcp/5433"), Code.NO_ROLE, 0),
    ("another role's", ask("tcp/22"), Code.NO_ROLE, 0),
    ("no role at all", ask("tcp/5432", roles=""), Code.NO_ROLE, 0),
    ("a role that nobody defined", ask("tcp/5432", roles="king"), Code.NO_ROLE, 0),
    ("a part of a range", ask("tcp/9091-9093", "192.0.2.1"), Code.GRANTED, 30),
    ("past the end of a range", ask("tcp/9098-9100"), Code.NO_ROLE, 0),
    ("longer than usual", ask("tcp/5432", lifetime_s=600), Code.GRANTED, 600),
    ("longer than the most", ask("tcp/5432", lifetime_s=10**6), Code.GRANTED, 8 * 3600),
    ("longer where there is no more", ask("tcp/8443", lifetime_s=600), Code.GRANTED, 30),
    ("past the key's end", ask("tcp/5432", key_lives_s=7.9), Code.GRANTED, 7),
    ("at the key's end", ask("tcp/5432", key_lives_s=0.5), Code.EXPIRED, 0),
    ("from a source that many share", ask("tcp/8443", "10.66.0.1"), Code.SHARED_SOURCE, 0),
    ("of two roles, the longer", ask("tcp/8443", roles="dba ops"), Code.GRANTED, 60),
    ("not once rather than longer", ask("tcp/22", roles="ops"), Code.GRANTED, 60),
    ("once where sessions are cut", ask("tcp/5432", once=True), Code.NO_ROLE, 0),
]


@pytest.mark.parametrize(
    ("decision", "code", "lifetime_s"),
    [row[1:] for row in DECISIONS],
    ids=[r[0] for r in DECISIONS],
)
def test_decisions(decision: Decision, code: Code, lifetime_s: int) -> None:
    assert (decision.code, decision.lifetime_s) == (code, lifetime_s)
    assert (decision.rule is not None) is decision.granted
    assert bool(decision.short) is not decision.granted
    assert clip(decision.short) == decision.short


def test_once_when_the_request_says_so() -> None:
    assert ask("tcp/8443", once=True).once
    assert not ask("tcp/8443").once


def test_a_refusal_names_the_rule_that_came_near_and_what_failed() -> None:
    decision = ask("tcp/5432", "192.0.2.1")
    assert decision.sentence == (
        "roles.dba.allow[0]: only from 10.20.0.0/16, 2001:db8:20::/48, not 192.0.2.1"
    )
    assert decision.short == "only from 10.20.0.0/16, 2001:db8:20::/48, not 192.0.2.1"


# What is granted by the strict rule, and each one thing that makes it a refusal.
FITTING = Question(
    frozenset(["dba"]),
    ip_address("10.20.3.4"),
    Access.parse("tcp/5432"),
    TUESDAY,
    declared=True,
    touched=True,
    holes=2,
    knocks=3,
)
RULE = "roles.dba.allow[0]: "
FROM = "only from 10.20.0.0/16, 2001:db8:20::/48, not "
FLIPS: list[tuple[str, dict[str, Any], Code, str, str]] = [
    ("role", {"roles": frozenset(["cutters"])}, Code.NO_ROLE, "no role allows it", ""),
    (
        "source",
        {"source": ip_address("10.21.0.1")},
        Code.NOT_FROM_HERE,
        f"{FROM}10.21.0.1",
        RULE,
    ),
    (
        "source, v6",
        {"source": ip_address("2001:db8:21::1")},
        Code.NOT_FROM_HERE,
        f"{FROM}2001:db8:21::1",
        RULE,
    ),
    ("protocol", {"access": Access.parse("udp/5432")}, Code.NO_ROLE, "no role allows it", ""),
    ("port", {"access": Access.parse("tcp/5433")}, Code.NO_ROLE, "no role allows it", ""),
    ("range", {"access": Access.parse("tcp/8098-8100")}, Code.NO_ROLE, "no role allows it", ""),
    (
        "time",
        {"at_us": us("2026-11-24T18:00:00+01:00")},
        Code.NOT_NOW,
        "opens again Wed 08:00 Europe/Berlin",
        RULE,
    ),
    (
        "weekend",
        {"at_us": us("2026-11-28T10:00:00+01:00")},
        Code.NOT_NOW,
        "opens again Mon 08:00 Europe/Berlin",
        RULE,
    ),
    (
        "holiday",
        {"at_us": us("2026-12-25T10:00:00+01:00")},
        Code.NOT_NOW,
        "opens again Mon 08:00 Europe/Berlin",
        RULE,
    ),
    (
        "expiry",
        {"at_us": us("2027-03-01T12:00:00+01:00")},
        Code.EXPIRED,
        "expired on 2027-03-01",
        RULE,
    ),
    (
        "declared source",
        {"declared": False},
        Code.DECLARE_SOURCE,
        "declare your source: 10.20.3.4",
        RULE,
    ),
    ("touch", {"touched": False}, Code.TOUCH, "touch your security key", RULE),
    (
        "max_open",
        {"holes": 3},
        Code.TOO_MANY,
        "at most 2 holes at once; close one",
        "",
    ),
    (
        "knocks_per_minute",
        {"knocks": 4},
        Code.TOO_MANY,
        "at most 3 knocks a minute; wait",
        "",
    ),
    ("key", {"key_lives_s": 0.9}, Code.EXPIRED, "the key expires within a second", ""),
    (
        "end of the time",
        {"at_us": us("2026-11-24T18:00:00+01:00") - 1},
        Code.NOT_NOW,
        "its time ends within a second",
        RULE,
    ),
]


def test_what_fits_in_every_way_is_granted() -> None:
    decision = decide(policy(STRICT), (), FITTING)
    assert decision.granted
    assert decision.rule is not None
    assert decision.sentence == "allowed by roles.dba.allow[0] for 600 s"
    assert decision.short == ""


@pytest.mark.parametrize("flip", FLIPS, ids=[row[0] for row in FLIPS])
def test_each_condition_alone_turns_it_into_a_refusal(
    flip: tuple[str, dict[str, Any], Code, str, str],
) -> None:
    _, changes, code, short, rule = flip
    decision = decide(policy(STRICT), (), msgspec.structs.replace(FITTING, **changes))
    assert (decision.code, decision.short) == (code, short)
    assert decision.sentence == rule + short
    assert decision.rule is None
    assert clip(decision.short) == decision.short


def test_once_cannot_be_had_where_sessions_are_cut() -> None:
    text = STRICT.replace('require = ["declared-source", "touch"]', 'sessions = "cut"')
    text = text.replace('sessions = "keep"', 'sessions = "cut"')
    question = msgspec.structs.replace(FITTING, once=True)
    decision = decide(policy(text), (), question)
    assert decision.code is Code.NO_ROLE
    assert decision.short == "once cannot be had where sessions are cut with their hole"
    assert decide(policy(STRICT), (), question).once


def test_all_that_fails_is_told_and_the_nearest_rule_first() -> None:
    text = STRICT + "[[roles.dba.allow]]\nservices = ['db']\nfrom = ['10.30.0.0/16']\n"
    far = {"source": ip_address("192.0.2.1"), "declared": False, "touched": False}
    decision = decide(policy(text), (), msgspec.structs.replace(FITTING, **far))
    assert decision.sentence == (
        "roles.dba.allow[1]: only from 10.30.0.0/16, not 192.0.2.1; "
        f"roles.dba.allow[0]: {FROM}192.0.2.1, and declare your source: 192.0.2.1, "
        "and touch your security key"
    )
    assert decision.short == "only from 10.30.0.0/16, not 192.0.2.1"
    assert [len(miss.failed) for miss in decision.near] == [1, 3]


LIFETIMES = [
    ("what the rule gives", {}, 600),
    ("what is asked", {"lifetime_s": 60}, 60),
    ("no more than the most", {"lifetime_s": 10**6}, 4 * 3600),
    ("not past the key's end", {"key_lives_s": 59.9}, 59),
    ("not past closing time", {"at_us": us("2026-11-24T17:55:00+01:00")}, 300),
    ("to the very second", {"at_us": us("2026-11-24T17:59:58.500000+01:00")}, 1),
    ("not past the expiry", {"at_us": us("2027-03-01T11:59:00+01:00")}, 60),
    ("the soonest of all", {"at_us": us("2027-03-01T11:59:00+01:00"), "key_lives_s": 7.0}, 7),
]


@pytest.mark.parametrize(
    ("changes", "lifetime_s"), [row[1:] for row in LIFETIMES], ids=[row[0] for row in LIFETIMES]
)
def test_a_hole_lives_no_longer_than(changes: dict[str, Any], lifetime_s: int) -> None:
    decision = decide(policy(STRICT), (), msgspec.structs.replace(FITTING, **changes))
    assert decision.granted
    assert decision.lifetime_s == lifetime_s


def test_the_widest_limit_of_ones_roles_counts_and_else_everybodys() -> None:
    text = STRICT
    for role, most in (("few", 1), ("many", 50)):
        text += f"[[roles.{role}.allow]]\nservices = ['db']\n[roles.{role}.limits]\n"
        text += f"max_open = {most}\n"
    read = policy(text)
    assert read.limits_of(["dba"]) == Limits(2, 3)
    assert read.limits_of(["dba", "few"]) == Limits(1, 3)
    assert read.limits_of(["few", "many", "gone"]) == Limits(50, 3)


# The two ways in which a rule is judged, quickly and in words, must not part.

ACCESSES = st.tuples(
    st.sampled_from(Protocol), st.integers(1, 12), st.integers(0, 5), st.booleans()
).map(lambda a: Access(a[0], a[1] + 65500 * a[3], a[1] + 65500 * a[3] + a[2]))
SCHEDULES = [Schedule("Mo-Fr 08:00-18:00", "Europe/Berlin"), Schedule("24/7"), Schedule("Su")]
SOURCES = [
    Sources(),
    Sources((IPv4Network("10.0.0.0/8"),)),
    Sources((IPv6Network("2001:db8::/32"), IPv4Network("10.1.0.0/16"))),
    Sources((IPv4Network("0.0.0.0/0"),)),
    Sources((IPv6Network("::/0"),)),
]
EDGES_US = [
    us("2026-11-24T08:00:00+01:00"),
    us("2026-11-24T18:00:00+01:00"),
    us("2026-11-29T00:00Z"),
]
MOMENTS = st.builds(
    lambda edge, off: edge + off,
    st.sampled_from(EDGES_US),
    st.sampled_from([-(10**9), -1_000_001, -1_000_000, -1, 0, 1, 999_999, 10**9]),
)


@st.composite
def rules(draw: st.DrawFn, path: str = "roles.r.allow[0]") -> Allow:
    accesses = tuple(dict.fromkeys(draw(st.lists(ACCESSES, min_size=1, max_size=4))))
    cut = draw(st.booleans())
    lifetime_s = draw(st.integers(1, 5))
    return Allow(
        path=path,
        role="r",
        services=("s",),
        accesses=accesses,
        sources=draw(st.sampled_from(SOURCES)),
        lifetime_s=lifetime_s,
        max_lifetime_s=lifetime_s + draw(st.integers(0, 5)),
        sessions=Sessions.CUT if cut else Sessions.KEEP,
        once=draw(st.booleans()) and not cut,
        when=draw(st.none() | st.sampled_from(SCHEDULES)),
        require=draw(st.frozensets(st.sampled_from(Requirement))),
        expires_at_us=draw(st.none() | MOMENTS),
    )


QUESTIONS = st.builds(
    Question,
    roles=st.just(frozenset(["r"])),
    source=st.sampled_from(["10.1.2.3", "10.2.2.3", "192.0.2.1", "2001:db8::1", "2001:db9::1"]).map(
        ip_address
    ),
    access=ACCESSES,
    at_us=MOMENTS,
    lifetime_s=st.integers(0, 12),
    once=st.booleans(),
    key_lives_s=st.none() | st.floats(1, 10),
    declared=st.booleans(),
    touched=st.booleans(),
)


def numbered(allows: Iterable[Allow]) -> tuple[Allow, ...]:
    return tuple(
        Allow(**{**{f: getattr(allow, f) for f in allow.__slots__}, "path": f"roles.r.allow[{n}]"})
        for n, allow in enumerate(allows)
    )


@quick
@given(rules(), QUESTIONS)
def test_a_rule_fits_if_and_only_if_nothing_of_it_failed(rule: Allow, question: Question) -> None:
    assert _fits(rule, question) == (not list(_failures(rule, question)))


@quick
@given(st.lists(rules(), max_size=6), ACCESSES)
def test_the_rules_about_an_access_are_those_that_cover_it(
    allows: list[Allow], access: Access
) -> None:
    role = Role("r", "", numbered(allows))
    assert list(role.about(access)) == [allow for allow in role.allows if allow.covers(access)]
    for edge in {a.first for allow in allows for a in allow.accesses}:
        asked = Access(access.protocol, edge, edge)
        assert list(role.about(asked)) == [allow for allow in role.allows if allow.covers(asked)]


@quick
@given(st.lists(rules(), max_size=5), QUESTIONS)
def test_a_decision_is_what_the_rules_in_words_say(allows: list[Allow], question: Question) -> None:
    role = Role("r", "", numbered(allows))
    decision = decide(Policy(roles={"r": role}), (), question)
    about = [allow for allow in role.allows if allow.covers(question.access)]
    fitting = [allow for allow in about if not list(_failures(allow, question))]
    assert decision.granted is bool(fitting)
    if not decision.granted:
        assert {miss.rule.path for miss in decision.near} == {allow.path for allow in about}
        assert decision.code is (decision.near[0].code if about else Code.NO_ROLE)
        return
    assert decision.rule in fitting
    assert decision.rule is not None
    assert 1 <= decision.lifetime_s <= decision.rule.max_lifetime_s
    assert decision.lifetime_s <= (question.lifetime_s or decision.rule.lifetime_s)
    assert question.key_lives_s is None or decision.lifetime_s <= question.key_lives_s
    ends_us = question.at_us + decision.lifetime_s * 1_000_000
    assert decision.rule.expires_at_us is None or ends_us <= decision.rule.expires_at_us
    when = decision.rule.when
    assert when is None or when.is_open(ends_us - 1)
    assert decision.once is (decision.rule.once or question.once)
    assert not decision.rule.once or all(allow.once for allow in fitting)


# What is refused: file, key path, what was expected.

SSH = "[services]\nssh = 'tcp/22'\n[[roles.ops.allow]]\nservices = ['ssh']\n"
TWO = "[services]\nssh = 'tcp/22'\nweb = 'tcp/80-90'\n"
ALLOW = "roles.ops.allow[0]"
TIMED = f"{SSH}when = 'Mo-Fr 08:00-18:00'\n"
ASKED = "[[tests]]\nrole = 'ops'\naccess = 'tcp/22'\nfrom = '10.0.0.1'\nexpect = 'allow'\n"

BROKEN = [
    ("[services]\nssh = 22", 'services.ssh: expected "tcp/22"'),
    ("[services]\nssh = []", "services.ssh: expected"),
    ("[services]\nssh = [22]", 'services.ssh: expected text like "tcp/22"'),
    ('[services]\nssh = "icmp/1"', "services.ssh: 'icmp/1' is no access"),
    ('[services]\nssh = "tcp/0"', "services.ssh: 0 is no port from 1 to 65535"),
    ('[services]\nssh = "tcp/9-3"', "services.ssh: 9-3 is no range of ports; write it 3-9"),
    ('[services]\nssh = ["tcp/22", "tcp/20-30"]', "services.ssh: tcp/20-30 overlaps"),
    ('[services]\n"a b" = "tcp/22"', 'services."a b": a name is'),
    ('[services]\n"" = "tcp/22"', 'services."": a name is'),
    ('[services]\nSSH = "tcp/22"\nssh = "tcp/23"', "services.ssh: too like services.SSH"),
    ("services = 3", "services: expected a table"),
    ("[service]", "service: is not known; expected services, roles, always_open"),
    ("[roles]\nops = 3", "roles.ops: expected a table, got a number"),
    ("[roles.ops]\n[roles.OPS]", "roles.OPS: too like roles.ops; give it another name"),
    ('[roles.ops]\nalow = "x"', "roles.ops.alow: is not known; expected description, expires"),
    ("[roles.ops]\nallow = 3", "roles.ops.allow: expected a list, got a number"),
    ("[roles.ops]\nallow = [3]", "roles.ops.allow[0]: expected a table, got a number"),
    ('[roles.ops]\ndescription = "a\\nb"', "roles.ops.description: expected one line"),
    ('[roles.ops]\ndescription = "\\u202eb"', "roles.ops.description: expected one line"),
    ("[roles.ops]\ndescription = 2027-01-01", "roles.ops.description: expected text, got date"),
    ("[roles.ops]\nexpires = 07:00:00", "roles.ops.expires: expected a day, 2027-02-01"),
    ("[roles.ops]\nexpires = 0001-01-01", "roles.ops.expires: out of range"),
    ("[roles.ops]\nexpires = 9999-12-31T23:59:59-14:00", "roles.ops.expires: out of range"),
    ("[roles.ops]\nreview_by = 2027-01-01T00:00:00Z", "roles.ops.review_by: expected date"),
    ("[roles.ops]\nexpires = 2027-01-01", "roles.ops.expires: means nothing without an allow; is"),
    ("[roles.ops.limits]\nmax_open = 1", "roles.ops.limits: means nothing without an allow"),
    ("[roles.ops.limits]\nmax_open = 0", "roles.ops.limits.max_open: expected a number >= 1"),
    ("[limits]\nmax_open = nan", "limits.max_open: expected a number, got"),
    (f"[limits]\nmax_open = {'9' * 40}", "limits.max_open: expected a number <= 1000000"),
    (f"[limits]\nmax_open = {'9' * 5000}", "not TOML: exceeds the limit"),
    ("[limits]\nmax_holes = 1", "limits.max_holes: is not known; expected max_open"),
    ('[[roles.ops.allow]]\nservices = ["ssh"]', f"{ALLOW}.services: no service 'ssh'; known: none"),
    ("[[roles.ops.allow]]\nservices = []", f"{ALLOW}.services: expected"),
    ("[[roles.ops.allow]]", f"{ALLOW}.services: is missing"),
    (f"{TWO}[[roles.ops.allow]]\nservices = ['ssh', 'ssh']", f"{ALLOW}.services: 'ssh' is named"),
    (f"{SSH}when = 'Mon-Fri'", f"{ALLOW}.when: 'Mon-Fri': at character 3: days are Mo Tu We"),
    (f"{SSH}when = 3", f"{ALLOW}.when: expected text"),
    (f"{SSH}when = 'PH off'\ncountry = 'DE'", f"{ALLOW}.when: 'PH off' is never open"),
    (f"{SSH}when = '24/7; PH off'", f"{ALLOW}.country: say whose public holidays"),
    (f"{SSH}when = '24/7; PH off'\ncountry = 'de'", f"{ALLOW}.country: 'de' is no country"),
    (f"{SSH}when = '24/7'\ntimezone = 'CEST'", f"{ALLOW}.timezone: 'CEST' is no time zone"),
    (f"{SSH}when = '24/7'\ntimezone = ''", f"{ALLOW}.timezone: '' is no time zone"),
    (f"{SSH}timezone = 'UTC'", f"{ALLOW}.timezone: means nothing without when"),
    (f"{SSH}country = 'DE'", f"{ALLOW}.country: means nothing without when"),
    (f"{SSH}from = ['10.0.0.1/8']", f"{ALLOW}.from: '10.0.0.1/8' has host bits set; write 10.0.0"),
    (f"{SSH}from = ['office']", f"{ALLOW}.from: 'office' is no network"),
    (f"{SSH}from = ['10.0.0.0/255.0.0.0']", f"{ALLOW}.from: '10.0.0.0/255.0.0.0' is no network"),
    (f"{SSH}from = ['10.0.0.0/0.255.255.255']", f"{ALLOW}.from: '10.0.0.0/0.255.255.255' is no"),
    (f"{SSH}from = ['::ffff:10.0.0.0/104']", f"{ALLOW}.from: '::ffff:10.0.0.0/104' is IPv4"),
    (f"{SSH}from = []", f"{ALLOW}.from: expected"),
    (f"{SSH}from = '10.0.0.0/8'", f"{ALLOW}.from: expected a list, got"),
    (
        f"{SSH}from = ['10.1.0.0/16', '2001:db8::/32', '10.0.0.0/8']",
        f"{ALLOW}.from: 10.1.0.0/16 is in 10.0.0.0/8 already; take it out",
    ),
    (f"{SSH}from = ['10.0.0.0/8', '10.0.0.0/8']", f"{ALLOW}.from: 10.0.0.0/8 is named twice"),
    (f"{SSH}lifetime = '30'", f"{ALLOW}.lifetime: '30' is no duration"),
    (f"{SSH}lifetime = 30", f"{ALLOW}.lifetime: expected text"),
    (f"{SSH}lifetime = '0s'", f"{ALLOW}.lifetime: '0s' is not a number of whole"),
    (f"{SSH}lifetime = '500ms'", f"{ALLOW}.lifetime: '500ms' is not"),
    (f"{SSH}max_lifetime = ''", f"{ALLOW}.max_lifetime: '' is no duration"),
    (f"{SSH}max_lifetime = '10s'", f"{ALLOW}.max_lifetime: shorter than"),
    (f"{SSH}sessions = 'kill'", f'{ALLOW}.sessions: expected "keep" or "cut", got \'kill\''),
    (f"{SSH}once = true\nsessions = 'cut'", f"{ALLOW}.once: a single connection"),
    (f"{SSH}once = 1", f"{ALLOW}.once: expected true or false"),
    (
        f"{SSH}require = ['declared']",
        f'{ALLOW}.require: expected "declared-source" or "touch", got \'declared\'',
    ),
    (f"{SSH}require = ['touch', 'touch']", f'{ALLOW}.require: "touch" is named twice'),
    (
        f"{SSH}expires = '2027-01-01'",
        f"{ALLOW}.expires: expected a day, 2027-02-01, or a time with",
    ),
    (f"{SSH}expires = 2027-01-01T00:00:00", f"{ALLOW}.expires: expected a day, 2027-02-01, or a"),
    (
        f"{SSH}expires = 2028-01-01\n[roles.ops]\nexpires = 2027-01-01",
        f"{ALLOW}.expires: its role expires before that, on 2027-01-01; take it out",
    ),
    (
        f"{SSH}[[roles.dba.allow]]\nservices = ['ssh']\nsessions = 'cut'",
        "roles.dba.allow[0].sessions: cuts the sessions of tcp/22, which roles.ops.allow[0] keeps",
    ),
    (
        f"{SSH}sessions = 'cut'\n[[always_open]]\nservices = ['ssh']\nfrom = 'anywhere'",
        "always_open[0]: tcp/22 cannot be always open",
    ),
    (
        f"{TWO}[[always_open]]\nservices = ['web']",
        'always_open[0].from: needs no knock from whom? write from = ["10.9.0.0/24"], or from = '
        '"anywhere" where it is for everybody',
    ),
    (f"{TWO}[[always_open]]\nservices = ['web']\nfrom = 'all'", "always_open[0].from: needs no"),
    ("[[always_open]]\nservices = ['x']", "always_open[0].services: no service 'x'; known: none"),
    ("always_open = 1", "always_open: expected a list"),
    (
        f"{SSH}[[always_open]]\nservices = ['ssh']\nfrom = 'anywhere'",
        f"{ALLOW}: has no port left: always_open opens all of them to its sources; take it out",
    ),
    (
        f"{TWO}[[always_open]]\nservices = ['ssh', 'web']\nfrom = 'anywhere'\n"
        "[[always_open]]\nservices = ['web']\n"
        "from = ['10.0.0.0/8']",
        "always_open[1]: unreachable: its ports are always open without it; take it out",
    ),
    (
        f"{SSH}[[roles.ops.allow]]\nservices = ['ssh']",
        "roles.ops.allow[1]: unreachable: roles.ops.allow[0] gives all of it already; take it out",
    ),
    (
        f"{SSH}from = ['10.1.0.0/16']\n[[roles.ops.allow]]\nservices = ['ssh']\n"
        "from = ['10.0.0.0/8']\nlifetime = '1h'",
        "roles.ops.allow[0]: unreachable: roles.ops.allow[1] gives all of it already",
    ),
    (f"{SSH}{ASKED}identity = 'alice'", "tests[0]: expected either identity or role, and not both"),
    (f"{SSH}{ASKED.replace('role', '# role')}", "tests[0]: expected either identity or role"),
    (f"{SSH}{ASKED.replace('ops', 'opps')}", "tests[0].role: no role 'opps'; known: ops"),
    (
        f"{SSH}{ASKED}".replace("role = 'ops'", 'identity = "a\\u001bb"'),
        "tests[0].identity: a name is 1 to 64",
    ),
    (f'{SSH}{ASKED}name = "a\\nb"', "tests[0].name: expected one line"),
    (f"{SSH}{ASKED.replace('tcp/22', '22')}", "tests[0].access: '22' is no access"),
    (f"{SSH}{ASKED.replace('tcp/22', 'tcp/1-300')}", "tests[0].access: more than 256 ports"),
    (f"{SSH}{ASKED.replace('10.0.0.1', '10.0.0.0/8')}", "tests[0].from: '10.0.0.0/8' is no addr"),
    (f"{SSH}{ASKED.replace('10.0.0.1', 'fe80::1%eth0')}", "tests[0].from: 'fe80::1%eth0' is no"),
    (f"{SSH}{ASKED.replace('10.0.0.1', '::ffff:10.0.0.1')}", "is IPv4; write 10.0.0.1"),
    (f"{SSH}{ASKED.replace('allow', 'maybe')}", 'tests[0].expect: expected "allow" or "deny"'),
    (f"{SSH}{ASKED}at = 2026-11-24T09:00:00", "tests[0].at: expected a time with its offset"),
    (f"{SSH}{ASKED}at = 2026-11-24", "tests[0].at: expected a time with its offset"),
    (f"{SSH}{ASKED}at = 0001-01-01T00:00:00+14:00", "tests[0].at: out of range; write a year"),
    (f"{SSH}{ASKED}name = 'x'\n{ASKED}name = 'x'", "tests[1].name: tests[0] has it too"),
    (f"{TIMED}{ASKED}", f"tests[0].at: needed, since {ALLOW} has a time; write it like 2026-11-24"),
    (f"{SSH}expires = 2030-01-01\n{ASKED}", f"tests[0].at: needed, since {ALLOW} has a time"),
    (
        f"{TIMED}{ASKED}".replace("role = 'ops'", "identity = 'alice'"),
        f"tests[0].at: needed, since {ALLOW} has a time",
    ),
]


@pytest.mark.parametrize(("text", "words"), BROKEN, ids=[f"{n}" for n in range(len(BROKEN))])
def test_a_broken_policy_is_refused_with_its_key_path(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(FileProblem) as refused:
        load_policy(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)
    assert str(refused.value).isprintable()


SOUND = [
    # Each looks like one of the above, and is meant.
    f"{SSH}from = ['10.0.0.0/8', '2001:db8::/32', '11.0.0.0/8']",
    f"{SSH}[[roles.dba.allow]]\nservices = ['ssh']",
    f"{SSH}[[roles.ops.allow]]\nservices = ['ssh']\nlifetime = '1m'\nfrom = ['10.0.0.0/8']",
    f"{SSH}require = ['touch']\n[[roles.ops.allow]]\nservices = ['ssh']\nfrom = ['10.0.0.0/8']",
    f"{TIMED}[[roles.ops.allow]]\nservices = ['ssh']\nfrom = ['10.0.0.0/8']",
    f"{SSH}once = true\n[[roles.ops.allow]]\nservices = ['ssh']\nfrom = ['10.0.0.0/8']",
    f"{SSH}expires = 2027-01-01\n[[roles.ops.allow]]\nservices = ['ssh']\nfrom = ['10.0.0.0/8']",
    f"{SSH}expires = 9999-12-31",
    f"{SSH}expires = 2026-01-01\n[roles.ops]\nexpires = 2027-01-01",
    f"{SSH}[[always_open]]\nservices = ['ssh']\nfrom = ['10.0.0.0/8']",
    f"{TWO}[[roles.ops.allow]]\nservices = ['ssh', 'web']\n"
    "[[always_open]]\nservices = ['web']\nfrom = 'anywhere'",
    # Without `at`, but the clock has no say in them.
    f"{SSH}{ASKED}",
    f"{TIMED}from = ['192.0.2.0/24']\n{ASKED.replace('allow', 'deny')}",
    f"{TIMED}require = ['touch']\n{ASKED.replace('allow', 'deny')}",
    f"{TIMED}[[roles.ops.allow]]\nservices = ['ssh']\nfrom = ['10.0.0.0/8']\n{ASKED}",
    f"{TIMED}{ASKED}at = 2026-11-24T09:00:00+01:00",
    f"{SSH}{ASKED}{ASKED}",
    "[roles.ops]\ndescription = 'Größe und 東京'",
]


@pytest.mark.parametrize("text", SOUND, ids=[f"{n}" for n in range(len(SOUND))])
def test_what_is_meant_is_not_refused(text: str) -> None:
    assert policy(text).services is not None


def test_the_list_of_what_is_known_is_not_endless() -> None:
    services = "".join(f"s{n} = 'tcp/{n + 1}'\n" for n in range(500))
    with pytest.raises(FileProblem, match=r"known: s0, s1, s10, .*, \.\.\.$") as refused:
        policy(f"[services]\n{services}[[roles.ops.allow]]\nservices = ['ssh']\n")
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[services", "not TOML"),
        (b"\xff\xfe", "not a text file"),
        (b"\xef\xbb\xbf[services]", "not TOML"),
        (b"# a comment\rroles = 3\n", "not TOML"),  # a lone carriage return ends no comment
        (b"a = " + b"[" * 3000, "not TOML: nested too deeply"),
        (b"[services]\nx = " + b"{a = " * 2000 + b"1" + b"}" * 2000, "not TOML: nested too deeply"),
        (b"[services.x" + b".a" * 2000 + b"]", "services.x: expected"),
        (None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "policy.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileProblem, match=words) as refused:
        load_policy(path)
    assert str(refused.value).isprintable()


@quick
@given(st.text(max_size=20) | st.from_regex(r"[0-9a-f.:/]{1,24}", fullmatch=True))
def test_a_network_is_what_it_says_or_refused(text: str) -> None:
    try:
        network = parse_network(text, Path("p"), "from")
    except FileProblem as refused:
        assert str(refused).isprintable()  # noqa: PT017 - either way is fine
    else:
        assert network == ip_network(text)
