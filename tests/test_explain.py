"""`spa-server explain`: one decision, told so that a person and a program understand it."""

import json
import tomllib
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from keys import identity
from keys.console import Program
from keys.registry import Registry
from keys.when import parse_moment, rfc3339
from spa_protocol.access import Access
from spa_protocol.layout import MAX_MESSAGE
from spa_server.addressing import Addressing
from spa_server.commands import explain as command
from spa_server.policy.decide import Question, decide
from spa_server.policy.explaining import fields as explain_fields
from spa_server.policy.explaining.explain import Bound, Explanation, explain
from spa_server.policy.explaining.fields import as_fields
from spa_server.policy.explaining.words import tell
from spa_server.policy.lines import lines_of
from spa_server.policy.load import parse_policy
from spa_server.policy.model import Allow, Policy, Requirement, Role, Sessions, Sources
from spa_server.ruling import Owner, Terms, rule, ruling_reply
from tests.world import HOST, NOW_US, datagram, knock_at

PATH = Path("/etc/spa/policy.toml")
TEXT = """\
[services]
ssh = "tcp/22"
postgres = "tcp/5432"
console = ["tcp/8443", "tcp/9090-9099"]
metrics = "tcp/9100"

[roles.dba]
review_by = 2026-02-01
[[roles.dba.allow]]
services = ["postgres"]
from = ["10.20.0.0/16", "2001:db8:20::/48"]
when = "Mo-Fr 08:00-18:00"
timezone = "Europe/Berlin"
max_lifetime = "8h"
sessions = "cut"
[[roles.dba.allow]]
services = ["console"]
expires = 2027-01-01
lifetime = "20s"
require = ["declared-source"]

[roles.ops]
[roles.ops.limits]
max_open = 12
[[roles.ops.allow]]
services = ["ssh", "console"]
lifetime = "1m"
max_lifetime = "1h"
[[roles.ops.allow]]
services = ["ssh"]
lifetime = "2m"
once = true

[roles.clerk]

[[always_open]]
services = ["metrics"]
from = ["10.9.0.0/24"]
"""
SHARED = (ip_network("10.66.0.0/24"),)
AT_WORK = "2026-11-24T09:00:00+01:00"
AT_NIGHT = "2026-11-24T23:00:00+01:00"


def parsed(text: str = TEXT) -> Policy:
    return parse_policy(tomllib.loads(text), PATH, lines_of(text))


POLICY = parsed()


def at(moment: str) -> int:
    return parse_moment(moment, 0)


def ask(
    roles: str, access: str, source: str = "10.20.3.4", when: str = AT_WORK, **fields: object
) -> Explanation:
    about = {name: fields.pop(name) for name in ("has_key", "observed") if name in fields}
    question = Question(
        frozenset(roles.split()),
        ip_address(source),
        Access.parse(access),
        at(when),
        holes=Access.parse(access).size,
        knocks=1,
        **fields,  # type: ignore[arg-type]  # fields of a test
    )
    return explain(POLICY, SHARED, question, **about)  # type: ignore[arg-type]  # of a test


def told(explained: Explanation) -> list[str]:
    return tell(explained, "alice", PATH)


# In words


def test_a_grant_is_told_with_its_rule_and_how_long_and_why() -> None:
    assert told(ask("dba", "tcp/5432")) == [
        "alice (roles: dba) may reach tcp/5432 from 10.20.3.4 at 2026-11-24T08:00:00Z: "
        "allowed by roles.dba.allow[0] (/etc/spa/policy.toml:9) for 30s",
        "the rule: postgres from 10.20.0.0/16, 2001:db8:20::/48, Mo-Fr 08:00-18:00 Europe/Berlin, "
        "for 30s, at most 8h, sessions are cut",
        "why 30s: that is what the rule gives to who asks for none (at most 8h)",
        "at 2026-11-24T08:00:30Z the hole closes, and the sessions that came through it are cut",
        'the client is told: "tcp/5432: connections are cut when it closes; hold it open"',
        "roles.dba (/etc/spa/policy.toml:7) should have been reviewed by 2026-02-01",
    ]


WHYS = [
    (ask("dba", "tcp/5432", lifetime_s=600), Bound.ASKED, "why 10m: that is what is asked for"),
    (ask("dba", "tcp/5432"), Bound.LIFETIME, "why 30s: that is what the rule gives"),
    (
        ask("dba", "tcp/5432", when="2026-11-24T09:00:00+01:00", lifetime_s=40_000),
        Bound.MAX_LIFETIME,
        "why 8h: that is the most that the rule gives; 11h6m40s is asked for",
    ),
    (
        ask("dba", "tcp/5432", when="2026-11-24T17:50:00+01:00", lifetime_s=3600),
        Bound.WHEN,
        "why 10m: the rule's time ends Tue 18:00 Europe/Berlin",
    ),
    (
        ask("dba", "tcp/8443", when="2026-12-31T23:59:50Z", declared=True),
        Bound.EXPIRES,
        "why 10s: the rule expires at 2027-01-01T00:00:00Z",
    ),
    (
        ask("dba", "tcp/5432", key_lives_s=7.5),
        Bound.KEY,
        "why 7s: the key expires at 2026-11-24T08:00:07.500000Z",
    ),
]


@pytest.mark.parametrize(("explained", "because", "sentence"), WHYS, ids=[w[1] for w in WHYS])
def test_what_a_lifetime_is_as_long_as(
    explained: Explanation, because: Bound, sentence: str
) -> None:
    assert explained.because is because
    assert any(line.startswith(sentence) for line in told(explained)), told(explained)


MOMENTS = st.integers(at("2026-11-20T00:00Z"), at("2027-01-02T00:00Z"))


@given(
    roles=st.sets(st.sampled_from(["dba", "ops", "clerk", "ghost"])),
    access=st.sampled_from(["tcp/22", "tcp/5432", "tcp/8443", "tcp/9090-9092", "tcp/9098-9101"]),
    source=st.sampled_from(["10.20.3.4", "10.1.1.1", "10.66.0.1", "2001:db8:20::7"]),
    at_us=MOMENTS,
    lifetime_s=st.sampled_from([0, 1, 45, 7200, 10**6]),
    once=st.booleans(),
    key_lives_s=st.sampled_from([None, 0.5, 20.0, 10**6]),
    declared=st.booleans(),
)
def test_an_explanation_is_of_one_mind_with_the_decision(at_us: int, **fields: Any) -> None:
    """The end that it names gives that lifetime, and no other rule would have given more."""
    access = Access.parse(fields.pop("access"))
    question = Question(
        frozenset(fields.pop("roles")), ip_address(fields.pop("source")), access, at_us, **fields
    )
    explained = explain(POLICY, SHARED, question)
    decision = decide(POLICY, SHARED, question)
    assert explained.decision == decision
    assert explained.granted is decision.granted
    assert (explained.because is None) is not decision.granted
    assert told(explained)
    assert json.dumps(as_fields(explained, "alice", PATH))
    if decision.rule is None:
        assert explained.others == ()
        return
    chosen = decision.rule
    closes_us = chosen.when.changes_at_us(at_us) if chosen.when else None
    seconds = {
        Bound.ASKED: question.lifetime_s,
        Bound.LIFETIME: chosen.lifetime_s,
        Bound.MAX_LIFETIME: chosen.max_lifetime_s,
        Bound.KEY: question.key_lives_s or 0,
        Bound.EXPIRES: ((chosen.expires_at_us or 0) - at_us) / 1_000_000,
        Bound.WHEN: ((closes_us or 0) - at_us) / 1_000_000,
    }
    assert explained.because is not None
    assert int(seconds[explained.because]) == decision.lifetime_s
    for other in explained.others:
        assert other.rule is not None
        assert other.rule != chosen
        assert other.rule.once or other.lifetime_s <= decision.lifetime_s


def test_every_rule_that_came_near_is_told_with_what_failed() -> None:
    lines = told(ask("dba ops", "tcp/5432", when="2026-11-28T10:00:00+01:00"))
    assert lines[0] == (
        "alice (roles: dba, ops) may not reach tcp/5432 from 10.20.3.4 at 2026-11-28T09:00:00Z: "
        "not allowed at this hour"
    )
    assert lines[1] == (
        "roles.dba.allow[0] (/etc/spa/policy.toml:9): opens again Mon 08:00 Europe/Berlin"
    )
    assert lines[2] == 'the client is told: "opens again Mon 08:00 Europe/Berlin"'


def test_all_that_failed_is_told_and_not_the_first_alone() -> None:
    explained = ask("dba", "tcp/5432", "10.1.1.1", AT_NIGHT)
    (line,) = [line for line in told(explained) if line.startswith("roles.dba.allow[0]")]
    assert "10.20.0.0/16" in line
    assert "10.1.1.1" in line
    assert line.endswith(", and opens again Wed 08:00 Europe/Berlin")


def test_where_no_role_is_about_it_those_that_are_can_be_granted() -> None:
    assert told(ask("clerk", "tcp/22")) == [
        "alice (roles: clerk) may not reach tcp/22 from 10.20.3.4 at 2026-11-24T08:00:00Z: "
        "no role allows it",
        'the client is told: "no role allows it"',
        "the role ops would allow it, by roles.ops.allow[0] (/etc/spa/policy.toml:25): "
        "spa-keys grant alice ops",
    ]


def test_a_role_that_would_not_help_is_told_too() -> None:
    lines = told(ask("clerk", "tcp/8443"))
    assert lines[2].startswith("the role ops would allow it, by roles.ops.allow[0]")
    (line,) = [line for line in lines if line.startswith("the role dba would not")]
    assert line.startswith("the role dba would not: roles.dba.allow[1] (/etc/spa/policy.toml:16): ")


def test_nobody_may() -> None:
    lines = told(ask("", "tcp/23"))
    assert lines[0].startswith("alice (has no role) may not reach tcp/23 ")
    assert lines[-1] == "no rule of any role covers tcp/23"


def test_a_rule_about_some_of_the_ports() -> None:
    lines = told(ask("ops", "tcp/9098-9100"))
    assert (
        "roles.ops.allow[0] (/etc/spa/policy.toml:25) is about tcp/22, tcp/8443, tcp/9090-9099, "
        "which is not all of tcp/9098-9100"
    ) in lines


def test_why_this_rule_and_not_another_one() -> None:
    """A single connection is less than a shorter time; of two times the longer one counts."""
    lines = told(ask("ops", "tcp/22"))
    assert "roles.ops.allow[0]" in lines[0]
    assert (
        "roles.ops.allow[1] (/etc/spa/policy.toml:29) would allow it too, "
        "but for one connection only"
    ) in lines
    lines = told(ask("ops dba", "tcp/8443", declared=True))
    assert "for 1m" in lines[0]
    assert (
        "roles.dba.allow[1] (/etc/spa/policy.toml:16) would allow it too, but for 20s only"
    ) in lines
    lines = told(ask("ops dba", "tcp/8443", declared=True, lifetime_s=20))
    assert any(line.endswith("too, for as long; of equals the first counts") for line in lines)


def test_once() -> None:
    lines = told(ask("ops", "tcp/8443", once=True))
    assert lines[0].endswith("for 1m, for one connection")
    assert (
        "the hole closes behind the first connection, at the latest at 2026-11-24T08:01:00Z"
    ) in lines
    refused = told(ask("dba", "tcp/5432", once=True))
    assert any("once cannot be had where sessions are cut" in line for line in refused)


def test_what_is_always_open_needs_no_knock() -> None:
    explained = ask("clerk", "tcp/9100", "10.9.0.7")
    assert explained.gets_in
    assert not explained.granted
    assert told(explained)[:2] == [
        "alice (roles: clerk) needs no knock to reach tcp/9100 from 10.9.0.7 at "
        "2026-11-24T08:00:00Z: always_open[0] (/etc/spa/policy.toml:36) is always open to "
        "10.9.0.0/24",
        "a knock would be refused: no role allows it",
    ]
    assert ask("clerk", "tcp/9100", "10.20.3.4").always_open is None
    assert ask("clerk", "udp/9100", "10.9.0.7").always_open is None
    assert ask("clerk", "tcp/9100-9101", "10.9.0.7").always_open is None


def test_a_source_behind_which_many_stand() -> None:
    lines = told(ask("ops", "tcp/22", "10.66.0.9"))
    assert lines[0].endswith(": the source is shared by many")
    assert any("10.66.0.9 is in 10.66.0.0/24, behind which many stand" in line for line in lines)
    assert not any("would allow it" in line for line in lines)


def test_limits_are_told_and_heeded_as_for_the_first_knock() -> None:
    lines = told(ask("ops", "tcp/22"))
    assert lines[-1] == "limits: at most 12 holes at once; what is open already is not counted here"
    assert ask("ops", "tcp/9090-9099").granted
    question = Question(
        frozenset({"ops"}), ip_address("10.20.3.4"), Access.parse("tcp/22"), NOW_US, holes=13
    )
    beyond = explain(POLICY, (), question)
    assert not beyond.granted
    assert "at most 12 holes" in told(beyond)[0]


def test_what_is_only_observed_gets_in_all_the_same() -> None:
    explained = ask("clerk", "tcp/22", observed=True)
    assert explained.gets_in
    assert not explained.granted
    assert any("recorded as would-deny" in line for line in told(explained))
    assert not any("would-deny" in line for line in told(ask("ops", "tcp/22", observed=True)))


def test_without_a_key_nothing_is_heard() -> None:
    explained = ask("ops", "tcp/22", has_key=False)
    assert not explained.granted
    assert ask("clerk", "tcp/22", has_key=False).reply == ""
    assert ask("clerk", "tcp/22").reply != ""
    lines = told(explained)
    assert "may not reach" in lines[0]
    assert lines[0].endswith(": none of its keys is active, so no knock is heard")
    assert lines[1] == "with a key: allowed by roles.ops.allow[0] (/etc/spa/policy.toml:25)"
    assert as_fields(explained, "alice", PATH)["code"] == "no-key"


def test_a_role_that_the_policy_does_not_define_is_told() -> None:
    lines = told(ask("ghost ops", "tcp/22"))
    assert lines[-1] == "the role ghost is not defined in /etc/spa/policy.toml"


def test_a_review_that_is_not_due_yet_is_not_told() -> None:
    assert ask("dba", "tcp/5432", when="2026-01-31T10:00:00+01:00").overdue == ()
    assert len(ask("dba", "tcp/5432").overdue) == 1
    assert ask("ops", "tcp/22").overdue == ()


# The reply's words are the same


def reply_to(roles: str, access: str, source: str, now_us: int, policy: Policy = POLICY) -> str:
    request = knock_at(now_us, Access.parse(access))
    received = datagram(b"", source=ip_address(source), target=HOST)
    owner = Owner("key", "alice", frozenset(roles.split()))
    terms = Terms(policy, SHARED, Addressing(lambda _address: True))
    return ruling_reply(rule(request, received, owner, terms, now_us), received, now_us).message


@pytest.mark.parametrize("source", ["10.20.3.4", "10.1.1.1", "10.66.0.1"])
@pytest.mark.parametrize("access", ["tcp/22", "tcp/5432", "tcp/8443", "tcp/9098-9101"])
@pytest.mark.parametrize("when", [AT_WORK, AT_NIGHT, "2027-03-01T10:00Z"])
@pytest.mark.parametrize("roles", ["dba", "ops clerk", ""])
def test_the_client_is_told_what_explain_says_it_is(
    roles: str, access: str, source: str, when: str
) -> None:
    explained = ask(roles, access, source, when)
    message = reply_to(roles, access, source, at(when))
    assert explained.reply == message
    assert len(message.encode()) <= MAX_MESSAGE
    rule = explained.decision.rule
    assert bool(message) is (rule is None or rule.sessions is Sessions.CUT)
    if message:
        assert f'the client is told: "{message}"' in told(explained)
        nearest = explained.decision.near[:1]
        assert all(message == miss.failed[0].condition for miss in nearest)


# The command


class Site:
    """A configuration, a policy and a registry in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.policy = directory / "policy.toml"
        self.policy.write_text(TEXT)
        self.configure()

    def configure(self, more: str = "") -> None:
        self.config = self.directory / "server.toml"
        self.config.write_text(
            'policy = "policy.toml"\ndatabase = "spa.db"\nshared_sources = ["10.66.0.0/24"]\n'
            + more
        )

    def enrol(self, name: str, *roles: str, expires_at_us: int | None = None) -> None:
        registry = Registry(self.directory / "spa.db")
        registry.enroll(
            name,
            identity.generate().public,
            roles=roles,
            expires_at_us=expires_at_us,
            now_us=NOW_US,
            actor="root",
        )
        registry.close()

    def revoke(self, name: str) -> None:
        registry = Registry(self.directory / "spa.db")
        registry.revoke(name, now_us=NOW_US, actor="root")
        registry.close()

    def run(self, *arguments: str) -> Result:
        program = Program("spa-server", commands={"explain": command.explain})
        return CliRunner().invoke(program, ["explain", *arguments], obj=self.config)

    def fields(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_exit_code_and_indented_sentences(site: Site) -> None:
    site.enrol("alice", "dba")
    granted = site.run("alice", "tcp/5432", "--from", "10.20.3.4", "--at", AT_WORK)
    assert (granted.exit_code, granted.stderr) == (0, "")
    first, *more = granted.stdout.splitlines()
    assert first.startswith("alice (roles: dba) may reach tcp/5432")
    assert f"({site.policy}:9)" in first
    assert all(line.startswith("  ") for line in more)
    refused = site.run("alice", "tcp/5432", "--from", "10.20.3.4", "--at", AT_NIGHT)
    assert (refused.exit_code, refused.stderr) == (1, "")
    assert site.run("alice", "tcp/9100", "--from", "10.9.0.7").exit_code == 0


def test_a_moment_is_now_unless_it_is_said(site: Site) -> None:
    site.enrol("alice", "ops")
    now = at(site.fields("alice", "tcp/22", "--from", "10.1.1.1")["at"])
    later = at(site.fields("alice", "tcp/22", "--from", "10.1.1.1", "--at", "2w")["at"])
    assert 0 <= later - now - 14 * 86_400_000_000 < 60_000_000


def test_the_longest_living_key_counts(site: Site) -> None:
    asked = ("alice", "tcp/22", "--from", "10.1.1.1", "--lifetime", "1h")
    moment = ("--at", rfc3339(NOW_US))
    site.enrol("alice", "ops", expires_at_us=NOW_US + 5_000_000)
    site.enrol("alice", "ops", expires_at_us=NOW_US + 60_000_000)
    told_ = site.fields(*asked, *moment)
    assert (told_["lifetime_s"], told_["because"]) == (60, "key")
    assert told_["until"] == rfc3339(NOW_US + 60_000_000)
    site.enrol("alice", "ops")
    assert site.fields(*asked, *moment)["because"] == "asked"
    expires = site.fields(*asked, *moment, "--key-expires", rfc3339(NOW_US + 9_000_000))
    assert (expires["lifetime_s"], expires["because"]) == (9, "key")


def test_keys_that_are_expired_or_revoked_do_not_count(site: Site) -> None:
    site.enrol("alice", "ops", expires_at_us=NOW_US + 1_000_000)
    asked = ("alice", "tcp/22", "--from", "10.1.1.1", "--at", rfc3339(NOW_US + 2_000_000))
    assert site.fields(*asked)["code"] == "no-key"
    assert site.run(*asked).exit_code == 1
    assert site.run(*asked, "--key-expires", "2030-01-01").exit_code == 0
    site.enrol("alice", "ops")
    assert site.run(*asked).exit_code == 0
    site.revoke("alice")
    assert site.run(*asked).exit_code == 1


def test_as_if_with_another_role(site: Site) -> None:
    """The registry is not even looked at."""
    asked = ("bob", "tcp/22", "--from", "10.1.1.1")
    assert site.run(*asked, "--role", "clerk").exit_code == 1
    both = site.fields(*asked, "--role", "clerk", "--role", "ops")
    assert (both["granted"], both["roles"]) == (True, ["clerk", "ops"])
    unknown = site.run(*asked, "--role", "oops")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr == ("spa-server: the policy has no role 'oops'; known: clerk, dba, ops\n")


def test_somebody_who_is_not_enrolled(site: Site) -> None:
    site.enrol("alice", "ops")
    done = site.run("carol", "tcp/22", "--from", "10.1.1.1")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "spa-server: there is no identity 'carol'; see: spa-keys list\n"


def test_by_another_policy(site: Site, tmp_path: Path) -> None:
    site.enrol("alice", "clerk")
    new = tmp_path / "new.toml"
    new.write_text(f'{TEXT}[[roles.clerk.allow]]\nservices = ["ssh"]\n')
    asked = ("alice", "tcp/22", "--from", "10.1.1.1")
    assert site.run(*asked).exit_code == 1
    by_new = site.fields(*asked, "--policy", str(new))
    assert (by_new["granted"], by_new["policy"]) == (True, str(new))
    new.write_text("[roles")
    broken = site.run(*asked, "--policy", str(new))
    assert (broken.exit_code, broken.stdout) == (4, "")
    assert broken.stderr.startswith(f"spa-server: {new}: not TOML")


def test_declared_and_touched(site: Site) -> None:
    asked = ("alice", "tcp/8443", "--from", "10.1.1.1", "--role", "dba", "--at", AT_WORK)
    refused = site.fields(*asked)
    assert (refused["granted"], refused["code"]) == (False, "declare-source")
    assert site.fields(*asked, "--declared")["granted"]
    site.policy.write_text(TEXT.replace('"declared-source"', '"touch"'))
    assert site.fields(*asked, "--declared")["code"] == "touch"
    assert site.fields(*asked, "--touched")["granted"]


def test_a_range_of_more_ports_than_the_limit_is_refused(site: Site) -> None:
    site.policy.write_text(TEXT.replace("max_open = 12", "max_open = 3"))
    asked = ("--from", "10.1.1.1", "--role", "ops")
    assert site.fields("alice", "tcp/9090-9092", *asked)["granted"]
    assert site.fields("alice", "tcp/9090-9093", *asked)["code"] == "too-many"


def test_what_the_gate_observes_is_let_in(site: Site) -> None:
    site.configure('observe = ["ssh"]\n')
    asked = ("--from", "10.1.1.1", "--role", "clerk")
    assert site.run("alice", "tcp/22", *asked).exit_code == 0
    assert site.fields("alice", "tcp/22", *asked)["observed"] is True
    assert site.run("alice", "tcp/5432", *asked).exit_code == 1


WRONG = [
    ("tcp/22 --from ::ffff:10.1.1.1", "'::ffff:10.1.1.1' is IPv4 written as IPv6; write 10.1.1.1"),
    ("tcp/22 --from fe80::1%eth0", "'fe80::1%eth0' has a scope; write fe80::1"),
    ("tcp/22 --from 224.0.0.1", "'224.0.0.1' is not the address of one host"),
    ("tcp/22 --from 0.0.0.0", "'0.0.0.0' is not the address of one host"),
    ("tcp/22 --from ::", "'::' is not the address of one host"),
    ("tcp/22 --from 10.20.0.0/16", "'10.20.0.0/16' does not appear to be an IPv4 or IPv6 address"),
    ("tcp/22 --from here", "'here' does not appear to be an IPv4 or IPv6 address"),
    ("22 --from 10.1.1.1", "'22' is no access; write it like tcp/22"),
    ("tcp/1-1000 --from 10.1.1.1", "more than 256 ports in one knock"),
    ("tcp/22 --from 10.1.1.1 --lifetime 500ms", "'500ms' is not a number of whole seconds"),
    ("tcp/22 --from 10.1.1.1 --lifetime 0s", "'0s' is not a number of whole seconds"),
    ("tcp/22 --from 10.1.1.1 --lifetime 190w30d200w", "is no duration"),
    ("tcp/22 --from 10.1.1.1 --at yesterday", "'yesterday' is no moment"),
    ("tcp/22 --from 10.1.1.1 --at 9999-01-01", "'9999-01-01' is out of range"),
    ("tcp/22 --from 10.1.1.1 --at 1969-01-01", "'1969-01-01' is out of range"),
    ("tcp/22", "missing option '--from'"),
]


@pytest.mark.parametrize(("arguments", "problem"), WRONG, ids=[w[0] for w in WRONG])
def test_what_cannot_be_asked(site: Site, arguments: str, problem: str) -> None:
    done = site.run("alice", *arguments.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


def test_everything_in_fields_of_a_grant(site: Site) -> None:
    site.enrol("alice", "ops")
    asked = ("alice", "tcp/22", "--from", "10.1.1.1", "--at", AT_WORK, "--lifetime", "30m")
    assert site.fields(*asked) == {
        "identity": "alice",
        "roles": ["ops"],
        "unknown_roles": [],
        "access": "tcp/22",
        "source": "10.1.1.1",
        "at": "2026-11-24T08:00:00Z",
        "policy": str(site.policy),
        "asked": {"lifetime_s": 1800, "once": False, "declared": False, "touched": False},
        "has_key": True,
        "observed": False,
        "granted": True,
        "code": "granted",
        "reason": "granted",
        "rule": "roles.ops.allow[0]",
        "line": 25,
        "lifetime_s": 1800,
        "until": "2026-11-24T08:30:00Z",
        "because": "asked",
        "once": False,
        "sessions": "keep",
        "reply": "",
        "near": [],
        "others": [{"rule": "roles.ops.allow[1]", "line": 29, "lifetime_s": 120, "once": True}],
        "partly": [],
        "roles_that_allow": [],
        "roles_near": [],
        "always_open": None,
        "shared_source": None,
        "reviews_due": [],
        "limits": {"max_open": 12, "knocks_per_minute": 300, "max_key_age_s": None},
    }


def test_everything_in_fields_of_a_refusal(site: Site) -> None:
    site.enrol("alice", "dba", "ghost")
    told_ = site.fields("alice", "tcp/5432", "--from", "10.20.3.4", "--at", AT_NIGHT)
    opens = "opens again Wed 08:00 Europe/Berlin"
    assert {name: told_[name] for name in ("granted", "code", "reason", "reply", "rule")} == {
        "granted": False,
        "code": "not-now",
        "reason": "not allowed at this hour",
        "reply": opens,
        "rule": None,
    }
    assert (told_["lifetime_s"], told_["until"], told_["because"]) == (0, None, None)
    assert told_["near"] == [
        {
            "rule": "roles.dba.allow[0]",
            "line": 9,
            "condition": opens,
            "conditions": [{"code": "not-now", "condition": opens}],
        }
    ]
    assert told_["reviews_due"] == [{"rule": "roles.dba", "line": 7, "review_by": "2026-02-01"}]
    assert told_["unknown_roles"] == ["ghost"]
    nothing = site.fields("alice", "tcp/22", "--from", "10.20.3.4", "--at", AT_NIGHT)
    assert nothing["roles_that_allow"] == [
        {"role": "ops", "rule": "roles.ops.allow[0]", "line": 25}
    ]
    shared = site.fields("alice", "tcp/9100", "--from", "10.66.0.1", "--at", AT_NIGHT)
    assert shared["shared_source"] == "10.66.0.0/24"
    opened = site.fields("alice", "tcp/9100", "--from", "10.9.0.1", "--at", AT_NIGHT)
    assert opened["always_open"] == {"rule": "always_open[0]", "line": 36}


def test_the_fields_are_those_that_are_described() -> None:
    described = set((explain_fields.__doc__ or "").replace(",", " ").split())
    assert set(as_fields(ask("dba", "tcp/5432"), "alice", PATH)) <= described


NETWORKS = st.lists(
    st.one_of(
        st.integers(8, 32).flatmap(lambda n: ip_networks(4, n)),
        st.integers(16, 128).flatmap(lambda n: ip_networks(6, n)),
    ),
    max_size=4,
    unique=True,
)


def ip_networks(version: int, prefix: int) -> st.SearchStrategy[str]:
    addresses = st.ip_addresses(v=version)  # type: ignore[arg-type]  # 4 or 6
    return addresses.map(lambda address: str(ip_network(f"{address}/{prefix}", strict=False)))


@given(networks=NETWORKS, source=st.ip_addresses(), declared=st.booleans())
def test_what_the_client_is_told_fits_and_no_address_is_cut(
    networks: list[str], source: IPv4Address | IPv6Address, declared: bool
) -> None:
    """An address without its last digits is another address."""
    allow = Allow(
        path="roles.a.allow[0]",
        role="a",
        services=("ssh",),
        accesses=(Access.parse("tcp/22"),),
        sources=Sources(tuple(map(ip_network, networks))),
        lifetime_s=30,
        max_lifetime_s=30,
        sessions=Sessions.KEEP,
        once=False,
        require=frozenset(Requirement),
    )
    policy = Policy(roles={"a": Role("a", "", (allow,))})
    question = Question(frozenset("a"), source, Access.parse("tcp/22"), NOW_US, declared=declared)
    explained = explain(policy, (), question)
    assert explained.reply == explained.decision.short
    words = explained.reply.replace(",", " ").split()
    whole = {str(source), *networks}
    assert all(word in whole for word in words if ":" in word[:-1] or "." in word)
