"""Broken policies: none is taken for another one, none crashes, none lets anybody in.

Two hundred of them are made of sound ones, each by one slip of the kind that people make: a key
misspelled, a bracket lost, a table pasted twice, a value in another's place. Each is refused in one
line, or means the same, or less. What is a valid policy again, with another number in it, says
plainly what it says; of those, only that nothing crashes can be asked.
"""

import random
import re
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from datetime import time as daytime
from functools import cache
from ipaddress import ip_address, ip_network
from itertools import product
from math import inf, nan
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from keys.tomlfile import FileProblem
from spa_protocol.access import Access
from spa_protocol.layout import Address, Malformed
from spa_server.policy.decide import Question, decide
from spa_server.policy.load import load_policy, parse_policy
from spa_server.policy.model import Allow, Policy, Sources

quick = settings(deadline=None)

MUTANTS: Final = 200
QUESTIONS: Final = 800

GOOD: Final = (
    # One role, everything in its rule.
    """
[services]
postgres = "tcp/5432"
metrics = ["tcp/9100", "udp/9100-9110"]

[limits]
max_open = 16
knocks_per_minute = 30

[roles.dba]
description = "Database operators"
expires = 2027-06-01
review_by = 2027-02-01
[roles.dba.limits]
max_open = 4
[[roles.dba.allow]]
services = ["postgres", "metrics"]
from = ["10.20.0.0/16", "2001:db8:20::/48"]
when = "Mo-Fr 08:00-18:00; PH off"
timezone = "Europe/Berlin"
country = "DE"
lifetime = "30s"
max_lifetime = "8h"
require = ["declared-source", "touch"]
expires = 2027-03-01T12:00:00+01:00
review_by = 2027-01-01

[[tests]]
name = "at work, from the office"
role = "dba"
access = "tcp/5432"
from = "10.20.3.4"
at = 2026-11-24T09:00:00+01:00
declared = true
touched = true
expect = "allow"
""",
    # Several roles that share services.
    """
[services]
ssh = "tcp/22"
console = ["tcp/8443", "tcp/9090-9099"]
vpn = "udp/51820"

[roles.ops]
[[roles.ops.allow]]
services = ["ssh", "console"]
from = ["10.0.0.0/8"]
lifetime = "1m"
max_lifetime = "2h"
[[roles.ops.allow]]
services = ["ssh"]
from = ["192.0.2.0/24", "198.51.100.7"]
lifetime = "2m"
once = true
require = ["touch"]

[roles.night]
expires = 2027-01-15T06:00:00Z
[[roles.night.allow]]
services = ["console"]
when = "Mo-Th 22:00-06:00"
timezone = "America/New_York"
from = ["10.7.0.0/16"]

[roles.guest]
description = "Only the VPN"
[[roles.guest.allow]]
services = ["vpn"]
require = ["declared-source"]
lifetime = "15s"

[[always_open]]
services = ["console"]
from = ["10.9.0.0/24"]
""",
    # Sessions that are cut, inline tables, lists over several lines.
    """
services.db = ["tcp/3306", "tcp/33060"]
services.sctp = "sctp/2905-2910"

[roles.clerk]
allow = [
  { services = ["db"], sessions = "cut", from = ["172.16.0.0/12"], when = "Mo,We,Fr 09:00-17:00" },
  { services = ["sctp"], lifetime = "45s", require = ["touch"] },
]

[roles.auditor]
[[roles.auditor.allow]]
services = [
  "db",
]
sessions = "cut"
from = [
  "172.20.0.0/16",
  "2001:db8:aa::/64",
]
max_lifetime = "1h"
expires = 2026-12-31

[[tests]]
identity = "alice"
access = "tcp/3306"
from = "192.0.2.1"
expect = "deny"
""",
)


def parsed(text: str) -> Policy:
    return parse_policy(tomllib.loads(text), Path("policy.toml"))


# The battery: questions at and beside every edge of every rule.


def sources_of(rule: Allow) -> Iterator[Address]:
    yield from map(ip_address, ("203.0.113.9", "10.0.0.1", "2001:db8:ffff::1"))
    for network in rule.sources.networks:
        for edge in (network.network_address, network.broadcast_address):
            yield edge
            for beside in (int(edge) - 1, int(edge) + 1):
                if 0 <= beside < 1 << network.max_prefixlen:
                    yield type(edge)(beside)


def accesses_of(rule: Allow) -> Iterator[Access]:
    for access in rule.accesses:
        yield from (access, Access(access.protocol, access.last, access.last))
        for protocol, first, last in (
            (access.protocol, access.first - 1, access.first),
            (access.protocol, access.last, access.last + 1),
            (access.protocol, access.last + 1, access.last + 1),
            (17 if access.protocol == 6 else 6, access.first, access.first),
        ):
            try:
                yield Access(type(access.protocol)(protocol), first, last)
            except Malformed:
                continue


def moments_of(rule: Allow) -> Iterator[int]:
    begin = int(datetime(2026, 11, 23, 3, tzinfo=UTC).timestamp()) * 1_000_000
    christmas = begin + 32 * 86_400_000_000
    for at_us in (begin, begin + 10 * 3_600_000_000, christmas, christmas + 8 * 3_600_000_000):
        yield at_us
        change_us = rule.when.changes_at_us(at_us) if rule.when else None
        if change_us is not None:
            yield from (change_us - 1, change_us)
    if rule.expires_at_us is not None:
        yield from (rule.expires_at_us - 2_000_000, rule.expires_at_us)


@cache
def battery(number: int) -> tuple[Question, ...]:
    """For every rule: what it gives, and each of that with one thing, or two, made another."""
    original = parsed(GOOD[number])
    chance = random.Random(number)
    everybody = frozenset(original.roles)
    found: dict[Question, None] = {}
    for rule in original.allows:
        others: list[tuple[str, Any]] = [
            *(("roles", roles) for roles in (everybody, frozenset[str](), everybody - {rule.role})),
            *(("source", source) for source in sources_of(rule)),
            *(("access", access) for access in accesses_of(rule)),
            *(("at_us", at_us) for at_us in moments_of(rule)),
            *(("lifetime_s", lifetime_s) for lifetime_s in (10, 10**7)),
            *(("holes", holes) for holes in (4, 5, 16, 17)),
            *(("knocks", knocks) for knocks in (30, 31)),
            *(("declared", False), ("touched", False), ("once", True)),
        ]
        for base in (q for q in fitting(rule) if decide(original, (), q).granted):
            for one in others:
                found[replace(base, **dict([one]))] = None
                found[replace(base, **dict([one, chance.choice(others)]))] = None
    return tuple(chance.sample(list(found), min(len(found), QUESTIONS)))


def fitting(rule: Allow) -> Iterator[Question]:
    network = rule.sources.networks[0] if rule.sources.networks else ip_network("203.0.113.0/24")
    for access, at_us in product(rule.accesses, moments_of(rule)):
        yield Question(
            frozenset([rule.role]),
            network[1],
            access,
            at_us,
            declared=True,
            touched=True,
        )


@cache
def granted_by_original(number: int) -> tuple[int, ...]:
    original = parsed(GOOD[number])
    return tuple(decide(original, (), question).lifetime_s for question in battery(number))


def wider(number: int, mutant: Policy) -> list[Question]:
    """The questions to which the mutant gives more."""
    known = zip(battery(number), granted_by_original(number), strict=True)
    return [
        question
        for question, lifetime_s in known
        if decide(mutant, (), question).lifetime_s > lifetime_s
    ]


def opened(policy: Policy) -> set[tuple[Access, Sources]]:
    return {(access, rule.sources) for rule in policy.always_open for access in rule.accesses}


@pytest.mark.parametrize("number", range(len(GOOD)))
def test_the_battery_asks_for_what_is_given_and_for_what_is_not(number: int) -> None:
    lifetimes = granted_by_original(number)
    assert sum(lifetime_s > 0 for lifetime_s in lifetimes) > QUESTIONS // 8
    assert sum(lifetime_s == 0 for lifetime_s in lifetimes) > QUESTIONS // 4
    assert not wider(number, parsed(GOOD[number]))


@pytest.mark.parametrize(
    ("number", "pattern", "by"),
    [
        (0, r"max_open = 4", "max_open = 5"),
        (0, r"knocks_per_minute = 30", "knocks_per_minute = 31"),
        (0, r"^from = \[.*\n", ""),
        (0, r"^(when|timezone|country) = .*\n", ""),
        (0, r"; PH off", ""),
        (0, r"^require = .*\n", ""),
        (0, r"^expires = .*\n", ""),
        (0, r"8h", "9h"),
        (0, r"tcp/5432", "tcp/5432-5433"),
        (0, r"/48", "/47"),
        (1, r'^from = \["10.0.0.0/8.*\n', ""),
        (1, r"^(when|timezone) = .*\n", ""),
        (1, r"New_York", "Denver"),
        (1, r"^once = true\nrequire.*\n", ""),
        (1, r"\[roles.guest\]", "[roles.ops.limits]\n[roles.guest]"),
        (2, r', when = "[^"]*"', ""),
        (2, r"2026-12-31", "2027-12-31"),
    ],
)
def test_the_battery_tells_what_is_wider(number: int, pattern: str, by: str) -> None:
    text = re.sub(pattern, by, GOOD[number], flags=re.MULTILINE)
    assert text != GOOD[number]
    assert bool(wider(number, parsed(text))) is not (".limits" in by)


# Slips. Each takes a text and gives another one; what is there is never a number that got another
# value, or a line that was taken out: that would be another policy, and say so.

Slip = Callable[[str, random.Random], str]
SLIPS: list[Slip] = []
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def slip(function: Slip) -> Slip:
    SLIPS.append(function)
    return function


def misspelt(word: str, chance: random.Random) -> str:
    """One letter is lost, doubled, changed, or in the other case, or two have changed places."""
    places = [place for place, letter in enumerate(word) if not letter.isdigit()]
    if not places:
        return word + chance.choice(LETTERS)
    at = chance.choice(places)
    kind = chance.randrange(5)
    if kind == 0 and len(word) > 1:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + word[at] + word[at:]
    if kind == 2:
        return word[:at] + chance.choice(LETTERS) + word[at + 1 :]
    if kind == 3 and at + 1 in places:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at].swapcase() + word[at + 1 :]


def replaced(text: str, found: re.Match[str], group: int, by: str) -> str:
    return text[: found.start(group)] + by + text[found.end(group) :]


def one_of(pattern: str, text: str, chance: random.Random) -> re.Match[str]:
    return chance.choice(list(re.finditer(pattern, text, re.MULTILINE)))


KEY = r"(?:^|[{,] ?)([a-z_]+) = "
VALUE = r"(?:^|[{,] ?)([a-z_]+) = (\"[^\"]*\"|\[[^\]]*\]|[^\n\[\]\",{}]+?)(?=$|,| })"


@slip
def a_key_is_misspelt(text: str, chance: random.Random) -> str:
    found = one_of(KEY, text, chance)
    return replaced(text, found, 1, misspelt(found[1], chance))


@slip
def a_header_is_misspelt(text: str, chance: random.Random) -> str:
    found = one_of(r"^\[+([a-z_.]+)\]+$", text, chance)
    return replaced(text, found, 1, misspelt(found[1], chance))


@slip
def a_header_has_another_number_of_brackets(text: str, chance: random.Random) -> str:
    found = one_of(r"^(\[+)[a-z_.]+(\]+)$", text, chance)
    brackets = chance.choice(
        [("[", "]"), ("[[", "]]"), ("[", ""), ("[[", "]"), ("", ""), ("{", "}")]
    )
    return replaced(replaced(text, found, 2, brackets[1]), found, 1, brackets[0])


@slip
def a_text_is_misspelt(text: str, chance: random.Random) -> str:
    found = one_of(r'"([^"]*)"', text, chance)
    wrong = misspelt(found[1], chance)
    # Another unit of a duration is another duration.
    return text if re.fullmatch(r"\d+[a-z]", wrong) else replaced(text, found, 1, wrong)


@slip
def a_sign_is_lost(text: str, chance: random.Random) -> str:
    found = one_of(r'(["=,/:;{}\[\]])', text, chance)
    return replaced(text, found, 1, "")


@slip
def a_sign_is_another_one(text: str, chance: random.Random) -> str:
    found = one_of(r'(["=,./:;-])', text, chance)
    return replaced(text, found, 1, chance.choice("\"'=,./:;-+*|&\u2013 \t\0\r\x1b\u202e"))


@slip
def two_lines_are_one(text: str, chance: random.Random) -> str:
    found = one_of(r"[^\n](\n)[^\n]", text, chance)
    return replaced(text, found, 1, chance.choice(["", " ", "\\", "\r"]))


@slip
def a_line_is_there_twice(text: str, chance: random.Random) -> str:
    found = one_of(r"^([^\n]+\n)", text, chance)
    return replaced(text, found, 1, found[1] * 2)


@slip
def a_table_is_there_twice(text: str, chance: random.Random) -> str:
    tables = re.split(r"^(?=\[)", text, flags=re.MULTILINE)
    at = chance.randrange(1, len(tables))
    return "".join([*tables[: at + 1], tables[at], *tables[at + 1 :]])


OTHER_TYPES = ["1", "-1", "0.5", "nan", "-inf", "1979-05-27", "07:32:00", "1979-05-27T07:32:00"]
OTHER_TYPES += ["{}", "[]", '""', "[[]]", "[{}]", "{ a = 1 }", "[1]", '[""]', "9" * 30]
OTHER_TYPES += ["0x7fffffffffffffffff", "'''\n'''", '"\\u0000"']


@slip
def a_value_is_of_another_type(text: str, chance: random.Random) -> str:
    found = one_of(VALUE, text, chance)
    other = chance.choice(
        [*OTHER_TYPES, f"[{found[2]}]", f"{{ x = {found[2]} }}", f'"{found[2]!r}"']
    )
    emptied = found[1] in ("require", "description", "name") and other in ("[]", '""')
    return text if emptied else replaced(text, found, 2, other)


ALIKE = [
    {"lifetime", "max_lifetime"},
    {"expires", "review_by"},
    {"max_open", "knocks_per_minute"},
    {name for text in GOOD for name in parsed(text).services},
]


@slip
def two_values_have_changed_places(text: str, chance: random.Random) -> str:
    found = list(re.finditer(VALUE, text, re.MULTILINE))
    one, other = sorted(chance.sample(found, 2), key=re.Match.start)
    # Two values that are valid in both places make another policy.
    if one[1] == other[1] or any({one[1], other[1]} <= kind for kind in ALIKE):
        return text
    return replaced(replaced(text, other, 2, one[2]), one, 2, other[2])


WIDE = {
    "services": ["*", "any", "all", "ssh*", "", "tcp/1-65535", "."],
    "from": [
        "*",
        "any",
        "all",
        "0/0",
        "0.0.0.0/00000",
        "10.0.0.0",
        "10.*",
        "::/-1",
        "",
        "localhost",
    ],
    "when": ["*", "always", "any", "24/24", "00:00-00:00", "", " ", ":", "Mo, Tu 08:00-18:00"],
    "timezone": ["*", "local", "", "Europe", "../UTC", "UTC+14"],
    "country": ["*", "EU", "", "xx"],
    "lifetime": ["*", "forever", "inf", "-1s", "", "9" * 12 + "w", "1e9s", "\u0663s"],
    "max_lifetime": ["*", "unlimited", "0", "", "99999w"],
    "sessions": ["*", "any", "", "none"],
    "require": ["*", "none", "", "touch?"],
    "role": ["*", "", "root"],
    "access": ["*", "tcp", "tcp/*", "any/22", "tcp/0-65535", "tcp/22,tcp/23"],
    "expect": ["*", "yes", "", "ALLOW"],
}


@slip
def a_text_would_be_wider(text: str, chance: random.Random) -> str:
    found = one_of(rf'(?:^|[{{,] ?)({"|".join(WIDE)}) = \[?\s*"([^"]*)"', text, chance)
    return replaced(text, found, 2, chance.choice(WIDE[found[1]]))


@slip
def a_key_is_added_that_nobody_knows(text: str, chance: random.Random) -> str:
    found = one_of(r"^\[\[?[a-z_.]+\]\]?\n()", text, chance)
    new = ["deny = true", "enabled = false", "not_from = ['10.0.0.0/8']", "priority = 1", "'' = 1"]
    new += ["unless = 'Su'", "users = ['bob']", '"from\\u0000" = []', "a.b.c = 1", "' from ' = []"]
    return replaced(text, found, 1, chance.choice(new) + "\n")


def mutants() -> Iterator[tuple[int, str, str]]:
    """Number of the original, name of the slip, the text: 200, the same in every run."""
    chance = random.Random("broken policies")
    seen: set[str] = set(GOOD)
    while len(seen) < MUTANTS + len(GOOD):
        number = chance.randrange(len(GOOD))
        make = SLIPS[len(seen) % len(SLIPS)]
        text = make(GOOD[number], chance)
        if text not in seen:
            seen.add(text)
            yield number, make.__name__, text


ALL_MUTANTS = list(mutants())


def refusal(path: Path, content: bytes) -> tuple[str, Policy | None]:
    """Why it is refused, in one line, or the policy."""
    path.write_bytes(content)
    try:
        return "", load_policy(path)
    except FileProblem as refused:
        return str(refused), None


@pytest.mark.parametrize(
    ("number", "name", "text"), ALL_MUTANTS, ids=[f"{n}-{m[1]}" for n, m in enumerate(ALL_MUTANTS)]
)
def test_a_broken_policy_is_refused_or_no_wider(
    tmp_path: Path, number: int, name: str, text: str
) -> None:
    path = tmp_path / "policy.toml"
    why, policy = refusal(path, text.encode())
    if policy is None:
        assert why.startswith(f"{path}: ")
        assert why.isprintable()
        assert len(why) < len(str(path)) + 300
        return
    assert not wider(number, policy), name
    assert opened(policy) <= opened(parsed(GOOD[number])), name


def test_most_of_them_are_refused(tmp_path: Path) -> None:
    """Else they would be no broken policies, and the test above would show little."""
    path = tmp_path / "policy.toml"
    refused = [bool(refusal(path, text.encode())[0]) for _, _, text in ALL_MUTANTS]
    assert len(refused) == MUTANTS
    assert sum(refused) > MUTANTS * 0.8


@pytest.mark.parametrize("seed", range(20))
def test_nothing_that_happens_to_a_file_crashes(tmp_path: Path, seed: int) -> None:
    """Numbers changed, lines gone, the file cut off: it may be a policy, never a traceback."""
    chance = random.Random(seed)
    path = tmp_path / "policy.toml"
    for _ in range(50):
        content = bytearray(chance.choice(GOOD).encode())
        for _ in range(chance.randrange(1, 4)):
            damage(content, chance)
        why, policy = refusal(path, bytes(content))
        assert why.isprintable()
        assert bool(why) is not bool(policy)


def damage(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content))
    match chance.randrange(6):
        case 0:
            content[at] ^= 1 << chance.randrange(8)
        case 1:
            content[at] = chance.randrange(256)
        case 2:
            del content[at : at + chance.randrange(40)]
        case 3:
            del content[at:]
            content += b" "
        case 4:
            content[at:at] = content[: chance.randrange(100)]
        case _:
            lines = content.split(b"\n")
            chance.shuffle(lines)
            content[:] = b"\n".join(lines)


@quick
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_crash_it(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "raw.toml"
    why, policy = refusal(path, content)
    assert why.isprintable()
    assert policy is None or not policy.allows


KEYS = ["services", "roles", "always_open", "limits", "tests", "allow", "from", "when", "timezone"]
KEYS += ["country", "lifetime", "max_lifetime", "sessions", "once", "require", "expires", "name"]
KEYS += ["review_by", "description", "max_open", "knocks_per_minute", "role", "identity", "access"]
KEYS += ["at", "expect", "declared", "touched", "ssh", "ops", "a\nb", "", "\u202e", "x.y"]
ODD: list[object] = [
    "ssh",
    "ops",
    "tcp/22",
    "10.0.0.0/8",
    "24/7",
    "UTC",
    "DE",
    "30s",
    "keep",
    "cut",
]
ODD += ["touch", "allow", "10.0.0.1", "", "\x1b[31m", "\ud7ff\n", 0, 1, -1, 10**30, nan, inf, -inf]
ODD += [True, False, date.min, date.max, daytime.min, datetime.min, datetime.max]
ODD += [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
SCALARS = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.datetimes(),
    st.dates(),
    st.times(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
ROLE = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS[5:18], VALUES)).map(
    lambda allow: {"services": ["ssh"], **allow}
)


@quick
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_no_values_crash_it(value: dict[str, Any]) -> None:
    assert told(value).isprintable()


@quick
@given(ROLE, ROLE, VALUES, VALUES)
def test_nor_do_those_of_a_rule(
    allow: dict[str, Any], test: dict[str, Any], expires: object, opened: object
) -> None:
    role = {"allow": [allow, test], "expires": expires}
    value = {"services": {"ssh": "tcp/22"}, "roles": {"ops": role}, "always_open": opened}
    assert told(value).isprintable()
    asked = {"role": "ops", "access": "tcp/22", "from": "10.0.0.1", "expect": "allow", **test}
    value = {"services": {"ssh": "tcp/22"}, "roles": {"ops": {}}, "tests": [asked]}
    assert told(value).isprintable()


def told(value: dict[str, Any]) -> str:
    try:
        parse_policy(value, Path("policy.toml"))
    except FileProblem as refused:
        return str(refused)
    return ""
