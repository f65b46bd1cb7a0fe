"""The policy: what is read, what is refused with which words, and what follows from it."""

import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from keys.tomlfile import FileProblem
from spa_protocol.access import Access
from spa_protocol.reason import Code
from spa_server.policy.decide import Decision, Question, decide
from spa_server.policy.load import load_policy, parse_policy
from spa_server.policy.model import Policy, Sessions

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


def policy(text: str = GOOD) -> Policy:
    return parse_policy(tomllib.loads(text), Path("policy.toml"))


def ask(access: str, source: str = "10.20.0.9", roles: str = "dba", **fields: object) -> Decision:
    question = Question(
        frozenset(roles.split()),
        ip_address(source),
        Access.parse(access),
        **fields,  # type: ignore[arg-type]  # fields of a test
    )
    return decide(policy(), (ip_network("10.66.0.0/24"),), question)


def test_what_a_policy_says() -> None:
    read = policy()
    first = read.roles["dba"].allows[0]
    assert first.path == "roles.dba.allow[0]"
    assert (first.lifetime_s, first.max_lifetime_s) == (30, 8 * 3600)
    assert first.sessions is Sessions.CUT
    assert read.roles["dba"].allows[1].max_lifetime_s == 30
    assert read.cut == (Access.parse("tcp/5432"),)
    assert str(read.always_open[0].sources) == "10.9.0.0/24"


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


def test_once_when_the_request_says_so() -> None:
    assert ask("tcp/8443", once=True).once
    assert not ask("tcp/8443").once


def test_a_refusal_names_the_rule_that_came_near_and_what_failed() -> None:
    decision = ask("tcp/5432", "192.0.2.1")
    assert decision.sentence == (
        "roles.dba.allow[0]: only from 10.20.0.0/16, 2001:db8:20::/48, not from 192.0.2.1"
    )


BROKEN = [
    ("[services]\nssh = 22", 'services.ssh: expected "tcp/22"'),
    ("[services]\nssh = []", "services.ssh: expected"),
    ('[services]\nssh = "icmp/1"', "services.ssh: 'icmp/1' is no access"),
    ('[services]\nssh = "tcp/0"', "services.ssh: 0-0 is no range of ports"),
    ('[services]\nssh = "tcp/9-3"', "services.ssh: 9-3 is no range"),
    ('[services]\nssh = ["tcp/22", "tcp/20-30"]', "services.ssh: tcp/20-30 overlaps"),
    ('[services]\n"a b" = "tcp/22"', "services.a b: a name is"),
    ("[service]", "service: is not known; expected services, roles, always_open"),
    ("[roles]\nops = 3", "roles.ops: expected a table, got a number"),
    ('[roles.ops]\nalow = "x"', "roles.ops.alow: is not known; expected description, allow"),
    ('[[roles.ops.allow]]\nservices = ["ssh"]', "roles.ops.allow[0].services: no service 'ssh'"),
    ("[[roles.ops.allow]]\nservices = []", "roles.ops.allow[0].services: expected"),
    ("[[roles.ops.allow]]", "roles.ops.allow[0].services: is missing"),
    ("{ssh}when = 'Mo-Fr'", "roles.ops.allow[0].when: is not known; expected services, from"),
    ("{ssh}from = ['10.0.0.1/8']", "roles.ops.allow[0].from: '10.0.0.1/8' has host bits set"),
    ("{ssh}from = ['office']", "roles.ops.allow[0].from: 'office' is no network"),
    ("{ssh}from = []", "roles.ops.allow[0].from: expected"),
    ("{ssh}lifetime = '30'", "roles.ops.allow[0].lifetime: '30' is no duration"),
    ("{ssh}lifetime = 30", "roles.ops.allow[0].lifetime: expected text"),
    ("{ssh}lifetime = '0s'", "roles.ops.allow[0].lifetime: '0s' is not a number of whole"),
    ("{ssh}lifetime = '500ms'", "roles.ops.allow[0].lifetime: '500ms' is not"),
    ("{ssh}max_lifetime = '10s'", "roles.ops.allow[0].max_lifetime: shorter than"),
    ("{ssh}sessions = 'kill'", "roles.ops.allow[0].sessions: invalid enum value"),
    ("{ssh}once = true\nsessions = 'cut'", "roles.ops.allow[0].once: a single connection"),
    (
        "{ssh}[[roles.dba.allow]]\nservices = ['ssh']\nsessions = 'cut'",
        "roles.dba.allow[0].sessions: cuts the sessions of tcp/22, which roles.ops.allow[0] keeps",
    ),
    (
        "{ssh}sessions = 'cut'\n[[always_open]]\nservices = ['ssh']",
        "always_open[0]: tcp/22 cannot be always open",
    ),
    ("[[always_open]]\nservices = ['x']", "always_open[0].services: no service 'x'; known: none"),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_a_broken_policy_is_refused_with_its_key_path(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "policy.toml"
    rule = "[services]\nssh = 'tcp/22'\n[[roles.ops.allow]]\nservices = ['ssh']\n"
    path.write_text(text.replace("{ssh}", rule))
    with pytest.raises(FileProblem) as refused:
        load_policy(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[services", "not TOML"), (b"\xff\xfe", "not a text file"), (None, "no such file")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "policy.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileProblem, match=words):
        load_policy(path)
