"""`spa-server policy suggest`, on a record that the ledger has written."""

import json
import re
import tomllib
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from keys import identity, schema
from keys.console import Program
from keys.registry import Registry
from keys.tomlfile import FileProblem
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_protocol.reason import Code
from spa_server import clock
from spa_server.audit import wording
from spa_server.audit.backlog import Batch
from spa_server.audit.denials import Denials, beside
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.commands.policy_suggest import suggest
from spa_server.grants import Grant
from spa_server.policy.decide import Question, decide
from spa_server.policy.difference.diff import by_role, compare
from spa_server.policy.lines import lines_of
from spa_server.policy.load import load_policy, parse_policy
from spa_server.policy.model import Policy, Sessions, Sources
from spa_server.policy.suggest.assigning import assignments
from spa_server.policy.suggest.editing import Editor
from spa_server.policy.suggest.least import least_roles
from spa_server.policy.suggest.naming import Names
from spa_server.policy.suggest.peaks import peaks
from spa_server.policy.suggest.prefixes import Seen, seen_in
from spa_server.policy.suggest.usage import Use, uses
from spa_server.policy.suggest.writing import Writer, observed
from spa_server.policy.testing import Result as Outcome
from spa_server.policy.testing import run_tests

DAY = 86_400_000_000
SECOND = 1_000_000
TARGET = ip_address("10.20.0.1")

POLICY = """\
# Who may reach what on db1. Ask Ines before changing it.

[services]
ssh = "tcp/22"                     # for everybody who works here
postgres = "tcp/5432"
console = ["tcp/8443", "tcp/9090-9099"]
node-exporter = "tcp/9100"

[limits]
max_open = 50

# The operators.
[roles.ops]
description = "Operators"
[[roles.ops.allow]]
services = ["ssh", "console"]      # both from anywhere
lifetime = "1m"
max_lifetime = "8h"

# For the nights.
[[roles.ops.allow]]   # since 2025
services = [
    "postgres",       # to look at locks

    "console",
]
from = ["10.8.0.0/16"]
once = true
# until the new pager is there

# Database people
[roles.dba]
[[roles.dba.allow]]
services = ["postgres"]
from = ["10.20.0.0/16", "2001:db8:20::/48"]
max_lifetime = "1h"
sessions = "keep"

[[tests]]
name = "DBAs get in"
role = "dba"
access = "tcp/5432"
from = "10.20.3.4"
expect = "allow"

[[tests]]
role = "dba"
access = "tcp/22"
from = "10.20.3.4"
expect = "deny"
"""


class Host:
    """Configuration, policy, registry and record of one host, in a directory."""

    def __init__(self, path: Path, policy: str = POLICY) -> None:
        self.now_us = clock.now_us()
        self.path = path
        self.config = path / "server.toml"
        self.config.write_text('policy = "policy.toml"\ndatabase = "spa.db"\nkey = "server.key"\n')
        self.policy = path / "policy.toml"
        self.policy.write_bytes(policy.encode())
        self.connection = schema.connect(path / "spa.db")
        self.registry = Registry(self.connection)
        self.denials = Denials(beside(path / "spa.db"))
        self.ledger = Ledger(
            self.connection,
            self.registry.seen,
            unrecorded=path / "unrecorded",
            boot_id="this boot",
            denials=self.denials,
        )

    def close(self) -> None:
        self.denials.close(self.now_us)
        self.connection.close()

    def enrol(self, name: str, *roles: str, days_ago: float = 300) -> None:
        at_us = self.ago(days_ago)
        key = identity.generate().public
        self.registry.enroll(name, key, comment="", now_us=at_us, actor="test")
        if roles:
            self.registry.grant(name, roles, now_us=at_us, actor="test")

    def ago(self, days: float) -> int:
        return self.now_us - round(days * DAY)

    def note(self, event: Event, days_ago: float, **fields: object) -> None:
        at_us = self.ago(days_ago)
        self.ledger.note([Record(event, at_us, **fields)], at_us)  # type: ignore[arg-type]

    def begin(self, days_ago: float = 100) -> None:
        """The record's first line."""
        self.note(Event.DAEMON_STARTED, days_ago)

    def opens(
        self,
        name: str,
        rule: str,
        access: str,
        source: str = "10.20.3.4",
        *,
        days_ago: float = 1,
        lifetime_s: int = 30,
        once: bool = False,
        sessions: Sessions = Sessions.KEEP,
    ) -> Grant:
        at_us = self.ago(days_ago)
        grant = Grant(
            self.ledger.next_grant_id(),
            f"key of {name}",
            name,
            rule,
            ip_address(source),
            TARGET,
            Access.parse(access),
            once,
            sessions,
            at_us,
            at_us + lifetime_s * SECOND,
            0.0,
        )
        opened = wording.granted(Event.HOLE_OPENED, grant, at_us)
        self.ledger.commit(Batch(grants=[grant], records=[opened]), at_us)
        return grant

    def comes_through(self, grant: Grant, *, port: str = "", names: str = "") -> None:
        at_us = grant.opened_at_us + SECOND
        record = Record(
            Event.CONNECTION_PERMITTED,
            at_us,
            identity=names or grant.identity,
            key_id=grant.key_id,
            source=str(grant.source),
            target=str(grant.target),
            access=port or str(grant.access),
            rule=grant.rule,
            grant_id=grant.grant_id,
        )
        self.ledger.note([record], at_us)

    def uses(
        self, name: str, rule: str, access: str, source: str = "10.20.3.4", **more: object
    ) -> None:
        port = str(more.pop("port", ""))
        grant = self.opens(name, rule, access, source, **more)  # type: ignore[arg-type]
        self.comes_through(grant, port=port)

    def would_deny(self, source: str, access: str, count: int = 1, days_ago: float = 1) -> None:
        at_us = self.ago(days_ago)
        first = Record(
            Event.CONNECTION_WOULD_DENY, at_us, source=source, target=str(TARGET), access=access
        )
        further = msgspec.structs.replace(first, detail={"further": count - 1})
        self.ledger.note([first, further] if count > 1 else [first], at_us)
        self.denials.flush(at_us)

    def run(self, *arguments: str) -> Result:
        program = Program("spa-server", commands=[suggest])
        return CliRunner().invoke(program, ["suggest", *arguments], obj=self.config)

    def found(self, *arguments: str) -> dict[str, dict[str, object]]:
        """The findings by name and place."""
        told = json.loads(self.run("--json", *arguments).stdout)
        return {f"{each['name']} {each['where']}": each for each in told["findings"]}

    def least(self, *arguments: str) -> tuple[Policy, str]:
        result = self.run("--least", *arguments)
        assert result.exit_code == 0, result.output
        made = self.path / "made.toml"
        made.write_text(result.stdout)
        return load_policy(made), result.stdout


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


def busy(host: Host) -> None:
    """Everything in the policy is used, by people who have been here for long."""
    host.begin()
    host.enrol("alice", "ops")
    host.enrol("bob", "dba")
    for access in ("tcp/22", "tcp/8443", "tcp/9090-9099"):
        host.uses("alice", "roles.ops.allow[0]", access)
    for access in ("tcp/5432", "tcp/8443"):
        host.uses("alice", "roles.ops.allow[1]", access, "10.8.0.7", once=True)
    host.uses("bob", "roles.dba.allow[0]", "tcp/5432")


def test_what_is_never_used_is_told_with_its_line_and_the_edit(host: Host) -> None:
    host.begin()
    host.enrol("alice", "ops")
    host.enrol("bob", "dba")
    host.uses("alice", "roles.ops.allow[0]", "tcp/22")
    host.uses("bob", "roles.dba.allow[0]", "tcp/5432", days_ago=31)
    result = host.run()
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("the record goes back 100 days, to ")
    assert "roles.ops.allow[1] (policy.toml:21): never used in 30 days; take it out" in lines
    assert "roles.dba.allow[0] (policy.toml:33): never used in 30 days; take it out" in lines
    assert (
        "roles.dba (policy.toml:32): bob has it and never used it in 30 days; "
        "spa-keys ungrant bob dba" in lines
    )
    assert not any(line.startswith("roles.ops.allow[0] (policy.toml:15): never") for line in lines)


def test_a_longer_time_shows_what_a_shorter_one_does_not(host: Host) -> None:
    busy(host)
    host.connection.execute("update event set at_us = at_us - ? where grant_id > 0", (40 * DAY,))
    assert "unused-allow roles.dba.allow[0]" in host.found()
    assert "unused-allow roles.dba.allow[0]" not in host.found("--since", "60d")


def test_a_hole_through_which_nothing_came_is_told_and_the_rule_is_not_unused(host: Host) -> None:
    host.begin()
    host.enrol("bob", "dba")
    host.opens("bob", "roles.dba.allow[0]", "tcp/5432")
    found = host.found()
    assert found["never-connected roles.dba.allow[0]"]["holes"] == 1
    assert "unused-allow roles.dba.allow[0]" not in found
    assert "unused-role roles.dba" not in found


def test_sources_wider_than_seen_come_with_the_narrower_list(host: Host) -> None:
    busy(host)
    for last in range(1, 8):
        host.uses("bob", "roles.dba.allow[0]", "tcp/5432", f"10.20.9.{last}")
    host.uses("bob", "roles.dba.allow[0]", "tcp/5432", "2001:db8:20::7")
    found = host.found()["wide-sources roles.dba.allow[0]"]
    assert found["edit"] == 'from = ["10.20.3.4/32", "10.20.9.0/24", "2001:db8:20::7/128"]'
    assert found["addresses_seen"] == {
        "10.20.3.4/32": 1,
        "10.20.9.0/24": 7,
        "2001:db8:20::7/128": 1,
    }


def test_whoever_comes_from_everywhere_needs_no_narrower_list(host: Host) -> None:
    busy(host)
    for network in range(40):
        host.uses("alice", "roles.ops.allow[0]", "tcp/22", f"198.51.{network}.7")
    assert "wide-sources roles.ops.allow[0]" not in host.found()


def test_a_service_of_a_used_rule_that_nobody_uses(host: Host) -> None:
    host.begin()
    host.enrol("alice", "ops")
    host.uses("alice", "roles.ops.allow[0]", "tcp/22")
    found = host.found()["unused-service roles.ops.allow[0]"]
    assert (found["services"], found["edit"]) == (["ssh"], 'services = ["ssh"]')


def test_roles_that_nobody_has(host: Host) -> None:
    busy(host)
    assert "unheld-role roles.ops" not in host.found()
    host.registry.ungrant("bob", ["dba"], now_us=host.now_us, actor="test")
    assert host.found()["unheld-role roles.dba"]["what"] == "nobody has it"
    host.registry.grant("bob", ["dba"], now_us=host.now_us, actor="test")
    host.registry.revoke("bob", now_us=host.now_us, actor="test")
    assert "only bob has it" in str(host.found()["unheld-role roles.dba"]["what"])


def test_whoever_has_had_a_role_for_three_days_only_is_not_judged_by_thirty(host: Host) -> None:
    busy(host)
    host.enrol("carol", "ops", days_ago=3)
    host.enrol("dave", "ops", days_ago=40)
    assert host.found()["unused-role roles.ops"]["identities"] == ["dave"]


def test_idle_services_have_a_time_of_their_own(host: Host) -> None:
    busy(host)
    assert "idle-service services.postgres" not in host.found("--idle", "90d")
    assert host.found()["unnamed-service services.node-exporter"]["what"] == "no rule names it"
    told = POLICY.replace('"ssh", "console"', '"ssh", "console", "node-exporter"')
    host.policy.write_text(told)
    host.uses("alice", "roles.ops.allow[0]", "tcp/9100", days_ago=60)
    assert "idle-service services.node-exporter" in host.found()
    assert "idle-service services.node-exporter" not in host.found("--idle", "90d")


def test_reviews_and_expiries_and_limits(host: Host) -> None:
    text = POLICY.split("[[tests]]", maxsplit=1)[0].replace(
        'max_lifetime = "1h"', "expires = 2025-03-01"
    )
    host.policy.write_text(text.replace("[roles.dba]\n", "[roles.dba]\nreview_by = 2025-02-01\n"))
    busy(host)
    told = host.run().stdout
    assert "roles.dba (policy.toml:32): should have been reviewed by 2025-02-01" in told
    assert "roles.dba.allow[0] (policy.toml:34): expired on 2025-03-01; take it out" in told
    assert "by the way: limits: max_open = 50 was never reached in 30 days: 14 at most" in told
    for _ in range(60):
        host.opens("alice", "roles.ops.allow[0]", "tcp/22", days_ago=2)
    assert "max_open = 50 was never reached" in host.run().stdout, "one hole, renewed"
    for last in range(60):
        host.opens("alice", "roles.ops.allow[0]", "tcp/22", f"10.20.8.{last}", days_ago=2)
    assert "max_open" not in host.run().stdout


def test_knocks_a_minute_and_those_refused_for_it(host: Host) -> None:
    host.policy.write_text(POLICY.replace("max_open = 50", "knocks_per_minute = 5"))
    busy(host)
    for _ in range(3):
        host.note(Event.KNOCK_ACCEPTED, 2, identity="alice")
    assert "knocks_per_minute = 5 was never reached in 30 days: 3 at most" in host.run().stdout
    host.note(Event.KNOCK_REFUSED, 3, identity="alice", reason=Code.TOO_MANY.sentence)
    assert "knocks_per_minute" not in host.run().stdout


def test_what_is_always_open_cannot_be_known_and_is_no_finding(host: Host) -> None:
    busy(host)
    narrow = POLICY.replace("10.8.0.0/16", "10.8.0.7/32").replace(
        '"10.20.0.0/16", "2001:db8:20::/48"', '"10.20.3.4/32"'
    )
    narrow = narrow.replace('lifetime = "1m"', 'lifetime = "1m"\nfrom = ["10.20.3.4/32"]')
    host.policy.write_text(
        narrow + '[[always_open]]\nservices = ["node-exporter"]\nfrom = "anywhere"\n'
    )
    result = host.run()
    assert result.exit_code == 0, result.output
    assert "by the way: always_open[0]" in result.stdout
    assert "nothing found: in 30 days everything was used" in result.stdout


def test_a_record_that_is_too_short_says_so_first_and_is_not_acted_upon(host: Host) -> None:
    host.begin(3)
    host.enrol("alice", "ops")
    host.uses("alice", "roles.ops.allow[0]", "tcp/22")
    result = host.run()
    assert result.stdout.startswith("the record goes back 3 days")
    assert "warning: the record begins 3 days ago: 30 days cannot be judged" in result.stderr
    assert "never used in the 3 days of the record" in result.stdout
    edited = host.path / "edited.toml"
    result = host.run("--edit", str(edited))
    assert result.exit_code == 1
    assert "30 days cannot be judged; wait, or judge by a shorter time: --since" in result.stderr
    assert not edited.exists()
    assert host.run("--edit", str(edited), "--since", "2d").exit_code == 1
    assert edited.exists()


def test_an_empty_record_is_no_verdict(host: Host) -> None:
    result = host.run()
    assert result.exit_code == 4
    assert result.stderr.startswith("spa-server: the record is empty: nothing can be judged;")


def test_lost_lines_are_warned_about(host: Host) -> None:
    busy(host)
    host.note(Event.RECORDS_LOST, 2, detail={"count": 12})
    assert "warning: 12 lines of that time were lost" in host.run().stderr


def test_a_rule_that_moved_in_the_file_is_known_by_what_it_allows(host: Host) -> None:
    """The record says allow[0]; a rule has been put before it since."""
    host.begin()
    host.enrol("bob", "dba")
    host.uses("bob", "roles.dba.allow[0]", "tcp/5432")
    first = '[roles.dba]\n[[roles.dba.allow]]\nservices = ["node-exporter"]\n'
    host.policy.write_text(POLICY.replace("[roles.dba]\n", first))
    found = host.found()
    assert "unused-allow roles.dba.allow[0]" in found
    assert "unused-allow roles.dba.allow[1]" not in found


def test_the_json_says_how_long_the_record_is(host: Host) -> None:
    busy(host)
    told = json.loads(host.run("--json").stdout)
    assert told["record"]["is_covered"] is True
    assert told["record"]["lost"] == 0
    assert {"name", "where", "line", "what", "edit"} <= told["findings"][0].keys()


# The edit


def uncommented(text: str) -> str:
    """Takes back what an edit did."""
    lines = []
    for line in text.split("\n"):
        header = re.fullmatch(r"# (\[\[.*)  # never used in [^\r]*(\r?)", line)
        lines.append(header[1] + header[2] if header else line)
    return "\n".join(lines)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_the_edit_changes_nothing_but_the_lines_of_unused_allows(tmp_path: Path, ends: str) -> None:
    host = Host(tmp_path, POLICY.replace("\n", ends))
    host.begin()
    host.enrol("alice", "ops")
    host.uses("alice", "roles.ops.allow[0]", "tcp/22")
    edited = tmp_path / "edited.toml"
    assert host.run("--edit", str(edited)).exit_code == 1
    before = POLICY.replace("\n", ends).split("\n")
    after = edited.read_bytes().decode().split("\n")
    changed = {n: (a, b) for n, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b}
    end = ends.removesuffix("\n")
    assert changed == {
        21: (
            f"[[roles.ops.allow]]   # since 2025{end}",
            f"# [[roles.ops.allow]]   # since 2025  # never used in 30 days{end}",
        ),
        **{n: (before[n - 1], f"# {before[n - 1]}") for n in (22, 23, 25, 26, 27, 28)},
    }
    assert len(load_policy(edited).roles["ops"].allows) == 1
    host.close()


def test_an_allow_that_a_test_expects_is_left_and_said(host: Host) -> None:
    host.begin()
    host.enrol("alice", "ops")
    host.uses("alice", "roles.ops.allow[0]", "tcp/22")
    result = host.run("--edit", str(host.path / "edited.toml"))
    assert "roles.dba.allow[0] is left as it is: tests[0] expects it" in result.stderr
    assert (
        "edited.toml: the policy without 1 allow; what it changes: spa-server policy diff -"
        in result.stderr
    )


def test_nothing_to_take_out_writes_nothing(host: Host) -> None:
    busy(host)
    edited = host.path / "edited.toml"
    result = host.run("--edit", str(edited))
    assert "is not written: there is nothing to take out" in result.stderr
    assert not edited.exists()


@pytest.mark.parametrize("arguments", [("--edit",), ("--least", "--out")])
def test_no_file_is_overwritten(host: Host, arguments: tuple[str, ...]) -> None:
    host.begin()
    result = host.run(*arguments, str(host.policy))
    assert result.exit_code == 4
    assert "exists already; choose another name" in result.stderr
    assert host.policy.read_text() == POLICY


@pytest.mark.parametrize(
    "arguments", [("--edit", "a", "--least"), ("--out", "a"), ("--keep-roles",), ("--since", "0s")]
)
def test_options_that_do_not_go_together(host: Host, arguments: tuple[str, ...]) -> None:
    assert host.run(*arguments).exit_code == 2


INLINE = """
[services]
ssh = "tcp/22"
web = "tcp/80"
[roles]
ops = { allow = [{ services = ["ssh"] }, { services = ["web"] }] }
"""


def editor(text: str) -> Editor:
    return Editor(text, Path("policy.toml"), (), lambda _name: frozenset())


def test_an_allow_without_lines_of_its_own_is_left() -> None:
    edit = editor(INLINE)
    edited = edit.without(edit.policy.allows, "unused")
    assert edited.text == INLINE
    reason = "it has no lines of its own; take it out by hand"
    assert [why for _, why in edited.left] == [reason, reason]


def test_what_looks_like_a_header_within_a_string_ends_no_table() -> None:
    text = """
[services]
ssh = "tcp/22"
[[roles.ops.allow]]
services = ["ssh"]
when = '''
Mo-Fr 08:00-18:00''' # [[roles.ops.allow]]
[[roles.ops.allow]]
services = [
# "web",
"ssh"
# nothing else
] # until then
from = ["10.0.0.0/8"]
"""
    edit = editor(text)
    edited = edit.without(edit.policy.allows[1:], "unused")
    assert edited.text.endswith(
        '# [[roles.ops.allow]]  # unused\n# services = [\n# "web",\n# "ssh"\n# nothing else\n'
        '# ] # until then\n# from = ["10.0.0.0/8"]\n'
    )


def test_a_rule_that_hides_a_longer_single_connection_is_left() -> None:
    text = """
[services]
ssh = "tcp/22"
[[roles.ops.allow]]
services = ["ssh"]
lifetime = "30s"
[[roles.ops.allow]]
services = ["ssh"]
lifetime = "2m"
once = true
"""
    edit = editor(text)
    edited = edit.without(edit.policy.allows[:1], "unused")
    assert edited.taken == ()
    assert "for longer" in edited.left[0][1]


LIMITED = """
[services]
ssh = "tcp/22"
[roles.ops]
{more}
[[roles.ops.allow]]
services = ["ssh"]
{tests}
"""
A_TEST = """
[[tests]]
role = "ops"
access = "tcp/23"
from = "10.0.0.9"
expect = "deny"
"""


@pytest.mark.parametrize(
    ("more", "tests", "why"),
    [
        ("expires = 2030-01-01", "", ""),
        ("review_by = 2030-01-01", "", ""),
        ('description = "Operators"', A_TEST, ""),
        ("expires = 2030-01-01", A_TEST, "means nothing without it"),
        ("[roles.ops.limits]\nmax_open = 3", "", "the limits of ops hold for whoever has it"),
    ],
)
def test_a_role_that_would_be_left_empty(more: str, tests: str, why: str) -> None:
    """Without its limits who has it, and another role, could do more."""
    text = LIMITED.format(more=more, tests=tests)
    edit = editor(text)
    edited = edit.without(edit.policy.allows, "unused")
    assert bool(edited.left) is bool(why)
    assert not edited.left or why in edited.left[0][1]
    assert edited.text.count("\n") == text.count("\n")
    if not why:
        assert not parse_policy(tomllib.loads(edited.text), Path("policy.toml")).allows


# The least policy


def allowed(policy: Policy, role: str, access: str, source: str, at_us: int) -> bool:
    question = Question(frozenset({role}), ip_address(source), Access.parse(access), at_us)
    return decide(policy, (), question).granted


def test_the_least_policy_allows_what_came_through_and_no_more(host: Host) -> None:
    busy(host)
    made, text = host.least()
    now_us = host.now_us
    assert list(made.roles) == ["ops", "dba"]
    assert allowed(made, "ops", "tcp/22", "10.20.3.4", now_us)
    assert allowed(made, "ops", "tcp/9090-9099", "10.20.3.4", now_us)
    assert allowed(made, "dba", "tcp/5432", "10.20.3.4", now_us)
    assert not allowed(made, "ops", "tcp/22", "10.20.3.5", now_us)
    assert not allowed(made, "ops", "tcp/5432", "10.20.3.4", now_us)
    assert not allowed(made, "dba", "tcp/22", "10.20.3.4", now_us)
    assert made.roles["ops"].description == "Operators"
    assert made.limits.max_open == 50
    assert "node-exporter" not in made.services
    assert made.roles["ops"].allows[0].max_lifetime_s == 30
    assert [allow.once for allow in made.roles["ops"].allows] == [False, True]
    assert "# alice: 5 connections, the last " in text
    tested = run_tests(made, host.policy, (), lambda _name: frozenset())
    assert len(tested) == 5
    assert {one.result for one in tested} == {Outcome.PASSED}
    assert 'name = "DBAs get in"' in text


def test_lifetimes_are_as_used_and_never_longer_than_in_force(host: Host) -> None:
    host.begin()
    host.enrol("alice", "ops")
    host.uses("alice", "roles.ops.allow[0]", "tcp/22", lifetime_s=60)
    host.uses("alice", "roles.ops.allow[0]", "tcp/22", lifetime_s=1800)
    host.uses("alice", "roles.ops.allow[0]", "tcp/8443", lifetime_s=100_000)
    by_service = {a.services: a for a in host.least()[0].roles["ops"].allows}
    ssh, console = by_service["ssh",], by_service["console-tcp-8443",]
    assert (ssh.lifetime_s, ssh.max_lifetime_s) == (60, 1800)
    assert (console.lifetime_s, console.max_lifetime_s) == (60, 8 * 3600)


def test_a_range_that_was_knocked_for_is_allowed_whole_and_its_use_told(host: Host) -> None:
    host.begin()
    host.enrol("alice", "ops")
    host.uses("alice", "roles.ops.allow[0]", "tcp/9090-9099", port="tcp/9091")
    made, text = host.least()
    assert allowed(made, "ops", "tcp/9090-9099", "10.20.3.4", host.now_us)
    assert not allowed(made, "ops", "tcp/8443", "10.20.3.4", host.now_us)
    assert "# of tcp/9090-9099 only tcp/9091 was connected to" in text


def test_a_handful_of_one_network_is_the_network_and_its_share_is_told(host: Host) -> None:
    host.begin()
    host.enrol("bob", "dba")
    for last in range(12):
        host.uses("bob", "roles.dba.allow[0]", "tcp/5432", f"10.20.3.{last * 7}")
        host.uses("bob", "roles.dba.allow[0]", "tcp/5432", f"2001:db8:20:7::{last:x}")
    made, text = host.least()
    assert [str(n) for n in made.roles["dba"].allows[0].sources.networks] == [
        "10.20.3.0/24",
        "2001:db8:20:7::/64",
    ]
    assert '"10.20.3.0/24",  # 12 of its 256 addresses were seen' in text
    assert '"2001:db8:20:7::/64",  # 12 of its addresses were seen' in text


def test_people_with_the_same_use_share_a_role_and_the_others_get_one(host: Host) -> None:
    host.begin()
    for name in ("alice", "carol", "dave"):
        host.enrol(name, "ops")
    host.enrol("idle", "ops")
    for name in ("alice", "carol"):
        host.uses(name, "roles.ops.allow[0]", "tcp/22")
    host.uses("dave", "roles.ops.allow[0]", "tcp/8443")
    made, text = host.least()
    assert list(made.roles) == ["ops", "ops-console"]
    assert not allowed(made, "ops", "tcp/8443", "10.20.3.4", host.now_us)
    assert "#   spa-keys grant dave ops-console\n#   spa-keys ungrant dave ops\n" in text
    assert "#   spa-keys ungrant idle ops\n" in text
    whole, _ = host.least("--keep-roles")
    assert list(whole.roles) == ["ops"]
    assert allowed(whole, "ops", "tcp/8443", "10.20.3.4", host.now_us)


def test_conditions_of_a_rule_stay_and_hours_are_a_comment(host: Host) -> None:
    timed = (
        'when = "Mo-Su 00:00-24:00"\ntimezone = "Europe/Berlin"\nrequire = ["declared-source"]\n'
        "expires = 2030-01-01\nreview_by = 2029-01-01\n"
    )
    text = POLICY.replace('max_lifetime = "1h"\n', timed).split("[[tests]]")[0]
    host.policy.write_text(text)
    host.begin()
    host.enrol("bob", "dba")
    host.enrol("alice", "ops")
    host.uses("bob", "roles.dba.allow[0]", "tcp/5432")
    host.uses("alice", "roles.ops.allow[0]", "tcp/22")
    made, written = host.least()
    before = load_policy(host.policy).roles["dba"].allows[0]
    after = made.roles["dba"].allows[0]
    for name in ("when", "require", "expires_at_us", "review_by", "sessions"):
        assert getattr(after, name) == getattr(before, name)
    hours = re.search(r'# when = "(\w\w \d\d:00-\d\d:00)"  # as seen, in UTC', written)
    assert hours is not None


def test_what_no_rule_allows_any_more_gets_a_role_of_its_own(host: Host) -> None:
    host.begin()
    host.enrol("eve")
    host.uses("eve", "roles.guests.allow[0]", "tcp/2222", "203.0.113.9", sessions=Sessions.CUT)
    made, text = host.least()
    rule = made.roles["guests"].allows[0]
    assert allowed(made, "guests", "tcp/2222", "203.0.113.9", host.now_us)
    assert rule.sessions is Sessions.CUT
    assert rule.services == ("tcp-2222",)
    assert "# the policy in force does not allow this" in text
    assert "#   spa-keys grant eve guests" in text


def test_people_behind_one_address_are_all_allowed_what_one_of_them_did(host: Host) -> None:
    host.begin()
    host.enrol("alice", "ops")
    host.enrol("carol", "ops")
    host.opens("carol", "roles.ops.allow[0]", "tcp/22")
    grant = host.opens("alice", "roles.ops.allow[0]", "tcp/22")
    host.comes_through(grant, names="alice, carol")
    told = json.loads(host.run("--least", "--json").stdout)
    assert told["roles"] == {"alice": ["ops"], "carol": ["ops"]}


def test_a_record_whose_grants_are_gone_is_enough(host: Host) -> None:
    host.begin()
    host.enrol("alice", "ops")
    host.uses("alice", "roles.ops.allow[0]", "tcp/9090-9099", port="tcp/9091", lifetime_s=90)
    host.connection.execute("delete from hole_grant")
    made, _ = host.least()
    assert allowed(made, "ops", "tcp/9090-9099", "10.20.3.4", host.now_us)
    assert made.roles["ops"].allows[0].max_lifetime_s == 90


def test_what_would_be_denied_becomes_a_question_that_can_be_answered(host: Host) -> None:
    busy(host)
    host.would_deny("10.9.0.5", "tcp/9100", 300)
    host.would_deny("10.9.0.5", "udp/514", 7)
    for last in range(30):
        host.would_deny(f"203.0.113.{last}", "tcp/23")
        host.would_deny(f"198.51.{last}.7", "tcp/22")
    made, text = host.least()
    assert not made.always_open
    assert "# 300 connections from 10.9.0.5 to tcp/9100 would be denied, " in text
    assert ": a role, or always_open?" in text
    opened = re.sub(r"(?m)^# ((\[\[|services|from|node-exporter|tcp-|udp-).*)", r"\1", text)
    policy = parse_policy(tomllib.loads(opened), Path("opened.toml"))
    ports = {str(rule.accesses[0]): str(rule.sources) for rule in policy.always_open}
    assert ports == {
        "tcp/9100": "10.9.0.5/32",
        "udp/514": "10.9.0.5/32",
        "tcp/23": "203.0.113.0/24",
    }
    assert "30 connections from 30 addresses to tcp/22 would be denied" in text
    told = json.loads(host.run("--least", "--json").stdout)["would_deny"]
    assert told[0]["sources"] == {"10.9.0.5": 300}


def test_a_flood_of_would_be_denials_is_told_in_a_few_lines(host: Host) -> None:
    host.begin()
    for number in range(30_000):
        at_us = host.ago(1)
        source = f"198.{18 + number % 2}.{number // 250 % 250}.{number % 250}"
        record = Record(
            Event.CONNECTION_WOULD_DENY,
            at_us,
            source=source,
            target="10.0.0.1",
            access=f"tcp/{1 + number % 900}",
        )
        host.denials.add([record], at_us)
    host.denials.flush(host.ago(1))
    _, text = host.least()
    assert len(text.splitlines()) < 150


def test_connections_without_a_name_are_told(host: Host) -> None:
    host.begin()
    host.note(Event.CONNECTION_PERMITTED, 1, source="10.0.0.9", access="tcp/22")
    assert "Let in without a name: 1 connection from 10.0.0.9 to tcp/22" in host.least()[1]


def test_rules_of_always_open_stay_and_make_rules_needless(host: Host) -> None:
    open_ssh = '[[always_open]]\nservices = ["ssh"]\nfrom = ["10.20.3.0/24"]\n'
    host.policy.write_text(POLICY + open_ssh)
    busy(host)
    made, text = host.least()
    assert str(made.always_open[0].sources) == "10.20.3.0/24"
    assert not any(allow.covers(Access.parse("tcp/22")) for allow in made.allows)
    assert "the record does not say who comes in by these" in text


def test_text_of_the_record_makes_no_lines_of_policy(host: Host) -> None:
    """Whoever can write into the record cannot write into the policy."""
    host.begin()
    evil = 'x"\n[[always_open]]\nservices = ["ssh"]'
    host.note(Event.CONNECTION_PERMITTED, 1, source=evil, access=evil)
    host.note(
        Event.CONNECTION_PERMITTED, 1, identity=evil, source="10.0.0.9", access="tcp/22", rule=evil
    )
    host.would_deny(evil, evil, 5)
    host.would_deny(evil, "tcp/9100", 5)
    made, _ = host.least()
    assert not made.always_open
    assert "ssh" in made.services


def test_out_writes_a_file_that_loads(host: Host) -> None:
    busy(host)
    out = host.path / "least.toml"
    result = host.run("--least", "--out", str(out))
    assert (result.exit_code, result.stdout) == (0, "")
    assert list(load_policy(out).roles) == ["ops", "dba"]


# Parts


@pytest.mark.parametrize(
    ("hours", "days", "told"),
    [
        (0b111 << 7, 0b0011111, "Mo-Fr 07:00-10:00"),
        (1 << 23 | 1, 0b1100001, "Mo,Sa-Su 00:00-24:00"),
        (1, 1, "Mo 00:00-01:00"),
    ],
)
def test_observed_hours(hours: int, days: int, told: str) -> None:
    assert observed(hours, days) == told


def test_names_are_sound_and_like_no_other() -> None:
    names = Names(["ops", "Dba"])
    assert [names.new(n) for n in ("ops", "DBA", "a b/c", "", "x" * 90, "ops")] == [
        "ops-2",
        "DBA-2",
        "a-b-c",
        "new",
        "x" * 56,
        "ops-3",
    ]


addresses = st.one_of(
    st.integers(0, 700).map(lambda n: ip_address(0x0A140000 + n)),
    st.integers(0, 20).map(lambda n: ip_address((0x20010DB8 << 96) + (n % 3 << 64) + n)),
)


@given(st.sets(addresses, min_size=1))
@example({ip_address("10.20.0.0"), ip_address("10.20.0.1")})
def test_networks_hold_every_address_and_only_what_is_allowed(
    found: set[Address],
) -> None:
    narrow = Sources(
        (IPv4Network("10.20.0.0/25"), IPv4Network("10.20.1.0/24"), IPv6Network("2001:db8::/64"))
    )
    inside = [address for address in found if address in narrow]
    for sources, addresses_seen in ((narrow, inside), (Sources(), list(found))):
        seen = seen_in(addresses_seen, sources)
        networks = [each.network for each in seen]
        assert sum(each.addresses for each in seen) == len(addresses_seen)
        assert all(any(address in n for n in networks) for address in addresses_seen)
        for network in networks:
            assert network[0] in sources
            assert network[-1] in sources
            assert network.num_addresses <= 512 or network.version == 6


def test_addresses_that_fill_a_network_are_the_network() -> None:
    four = [ip_address("10.0.0.4") + n for n in range(4)]
    assert seen_in(four, Sources()) == [Seen(ip_network("10.0.0.4/30"), 4)]
    assert seen_in(four, Sources())[0].is_whole


def test_a_handful_where_less_than_its_network_is_allowed_is_what_is_allowed() -> None:
    scattered = [ip_address("10.0.0.0") + 9 * n for n in range(7)]
    assert seen_in(scattered, Sources((IPv4Network("10.0.0.0/25"),))) == [
        Seen(ip_network("10.0.0.0/25"), 7)
    ]


def test_a_use_is_of_the_time_of_its_knock_and_its_hours_are_of_utc(host: Host) -> None:
    """The connection may come when the rule's hours are over; the hole was opened within them."""
    tuesday_us = AT_US // DAY * DAY
    host.now_us = tuesday_us + DAY
    grant = host.opens("bob", "roles.dba.allow[0]", "tcp/22", days_ago=1 / 24 / 1800)
    host.comes_through(grant)
    [use] = uses(host.connection, 0)
    assert use.decided_us == grant.opened_at_us
    assert use.last_us == grant.opened_at_us + SECOND
    assert (use.hours, use.days) == (1 << 23, 1 << 1)
    assert (use.opened, use.connections) == (1, 1)


def test_a_hole_that_is_renewed_for_less_stays_open_as_long_as_before(host: Host) -> None:
    host.opens("alice", "r", "tcp/22", days_ago=1, lifetime_s=600)
    host.opens("alice", "r", "tcp/22", days_ago=1 - 1 / 86400, lifetime_s=1)
    host.opens("alice", "r", "tcp/8443", days_ago=1 - 30 / 86400)
    host.opens("alice", "r", "tcp/5432", days_ago=0.5)
    assert peaks(host.connection, 0).open == {"alice": 2}


def test_a_test_that_now_hangs_on_the_hour_is_left_out(host: Host) -> None:
    """Only the rule with hours is used: without `at`, the test would be refused."""
    timed = '[[roles.dba.allow]]\nservices = ["postgres"]\nlifetime = "2h"\nwhen = "24/7"\n'
    host.policy.write_text(POLICY.replace("\n[[tests]]", f"\n{timed}\n[[tests]]", 1))
    host.begin()
    host.enrol("bob", "dba")
    host.uses("bob", "roles.dba.allow[1]", "tcp/5432")
    made, text = host.least()
    assert "DBAs get in" not in text
    assert len(made.roles["dba"].allows) == 1


def test_a_use_at_an_hour_that_is_closed_by_now_is_not_of_the_rule_it_came_by() -> None:
    closed = f"{AT_US // 1_000_000 % 86_400 // 3600 + 2:02}:00-23:00"
    text = INLINE.replace('["ssh"]', f'["ssh"], when = "{closed}"')
    policy = parsed(text)
    assert policy is not None
    use = a_use("roles.ops.allow[0]")
    [role] = least_roles(policy, PEOPLE, [use])
    assert (role.like, role.allows[0].like) == (None, None)


def test_a_rule_with_hours_does_not_make_one_without_them_needless() -> None:
    inline = '[{ services = ["ssh"], when = "24/7", lifetime = "1h" }, { services = ["ssh"] }]'
    text = INLINE.replace('[{ services = ["ssh"] }, { services = ["web"] }]', inline)
    policy = parsed(text)
    assert policy is not None
    used = [a_use("roles.ops.allow[0]"), a_use("roles.ops.allow[1]")]
    [role] = least_roles(policy, PEOPLE, used)
    assert [allow.like for allow in role.allows] == list(policy.allows)
    assert len(Writer(policy, [role]).write(["made"]).policy.allows) == 2


# Properties: random policies, random uses

ACCESSES = ("tcp/22", "tcp/80", "udp/53", "tcp/8000-8009", "tcp/8003")
SERVICES = {
    "ssh": ["tcp/22"],
    "web": ["tcp/80", "tcp/8000-8009"],
    "names": ["udp/53"],
    "one": ["tcp/8003"],
}
NETWORKS = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "192.0.2.0/25")
SOURCES = tuple(
    map(ip_address, ("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "192.0.2.7", "203.0.113.1"))
)
AT_US = 1_795_500_000_000_000  # a Tuesday, 06:40 UTC


@st.composite
def allows(draw: st.DrawFn) -> dict[str, object]:
    made: dict[str, object] = {
        "services": draw(
            st.lists(st.sampled_from(list(SERVICES)), min_size=1, max_size=2, unique=True)
        ),
        "lifetime": draw(st.sampled_from(["30s", "1m"])),
    }
    if draw(st.booleans()):
        made["from"] = [draw(st.sampled_from(NETWORKS))]
    if draw(st.booleans()):
        made["max_lifetime"] = draw(st.sampled_from(["1m", "8h"]))
    if draw(st.integers(0, 3)) == 0:
        made["when"] = draw(st.sampled_from(["Mo-Fr 06:00-18:00", "Sa-Su", "24/7"]))
    if draw(st.integers(0, 3)) == 0:
        made["once"] = True
    if draw(st.integers(0, 3)) == 0:
        made["require"] = ["declared-source"]
    return made


def cut(allow: dict[str, object]) -> dict[str, object]:
    """The same with sessions that are cut, which are those of one service."""
    without_once = {key: value for key, value in allow.items() if key != "once"}
    return {**without_once, "services": ["names"], "sessions": "cut"}


@st.composite
def policies(draw: st.DrawFn) -> str:
    """The text of a sound policy."""
    lines = ["[services]", *(f"{name} = {json.dumps(a)}" for name, a in SERVICES.items())]
    for role in ("ops", "dba"):
        lines.append(f"[roles.{role}]")
        cuts = draw(st.booleans())
        for allow in draw(st.lists(allows(), max_size=4)):
            lines.append(f"[[roles.{role}.allow]]")
            made = cut(allow) if cuts and "names" in str(allow["services"]) else allow
            lines += [f"{key} = {json.dumps(value)}" for key, value in made.items()]
    if draw(st.integers(0, 3)) == 0:
        lines += ["[[always_open]]", 'services = ["one"]', 'from = ["10.1.0.0/16"]']
    return "\n".join(lines) + "\n"


def parsed(text: str) -> Policy | None:
    try:
        return parse_policy(tomllib.loads(text), Path("policy.toml"), lines_of(text))
    except FileProblem:
        return None


RULES = [f"roles.{role}.allow[{n}]" for role in ("ops", "dba") for n in range(2)]
sound = policies().filter(lambda text: parsed(text) is not None)
single_uses = st.builds(
    Use,
    identity=st.sampled_from(["alice", "bob", "carol"]),
    rule=st.sampled_from(["", "roles.gone.allow[0]", *RULES]),
    source=st.sampled_from(SOURCES),
    access=st.sampled_from([Access.parse(text) for text in ACCESSES]),
    once=st.booleans(),
    sessions=st.sampled_from([None, Sessions.KEEP, Sessions.CUT]),
    opened=st.just(1),
    connections=st.integers(0, 2),
    ports=st.just(frozenset()),
    last_us=st.just(AT_US),
    decided_us=st.integers(0, 13).map(lambda n: AT_US + n * DAY // 2),
    lifetimes_s=st.sampled_from([None, (30, 30), (30, 3600), (60, 100_000)]),
    hours=st.just(1),
    days=st.just(1),
)
PEOPLE = {"alice": frozenset({"ops"}), "bob": frozenset({"ops", "dba"}), "carol": frozenset[str]()}


def a_use(rule: str) -> Use:
    ssh = Access.parse("tcp/22")
    return Use(
        "alice", rule, SOURCES[0], ssh, False, None, 1, 1, frozenset(), AT_US, AT_US, None, 1, 1
    )


def stands_open(policy: Policy, use: Use) -> bool:
    return any(
        use.source in rule.sources and any(use.access in a for a in rule.accesses)
        for rule in policy.always_open
    )


@given(sound, st.lists(single_uses, max_size=12), st.booleans())
def test_the_least_policy_parses_and_allows_every_use(
    text: str, used: list[Use], whole_roles: bool
) -> None:
    policy = parsed(text)
    assert policy is not None
    roles = least_roles(policy, PEOPLE, used, whole_roles=whole_roles)
    made = Writer(policy, roles).write(["made"])
    assert parsed(made.text) is not None
    assert {t.result for t in run_tests(made.policy, Path("p"), (), lambda _: frozenset())} <= {
        Outcome.PASSED
    }
    roles_of = assignments(roles, PEOPLE)
    for use in used:
        if use.connections and not stands_open(policy, use):
            question = Question(
                roles_of[use.identity],
                use.source,
                use.access,
                use.decided_us,
                declared=True,
                touched=True,
            )
            assert decide(made.policy, (), question).granted


@given(sound, st.lists(single_uses, max_size=12), st.data())
def test_what_comes_of_a_rule_is_never_wider_than_the_rule(
    text: str, used: list[Use], data: st.DataObject
) -> None:
    policy = parsed(text)
    assert policy is not None
    roles = least_roles(policy, PEOPLE, used)
    made = Writer(policy, roles).write(["made"]).policy
    for role in roles:
        if role.like is None:
            continue
        question = data.draw(questions(role.name))
        given_now = decide(made, (), question)
        before = decide(policy, (), replace_roles(question, role.like.name))
        if given_now.granted:
            assert before.granted
            assert before.lifetime_s >= given_now.lifetime_s or given_now.once


def replace_roles(question: Question, role: str) -> Question:
    return Question(
        frozenset({role}),
        question.source,
        question.access,
        question.at_us,
        question.lifetime_s,
        question.once,
        declared=question.declared,
    )


def questions(*roles: str) -> st.SearchStrategy[Question]:
    return st.builds(
        Question,
        roles=st.just(frozenset(roles)),
        source=st.sampled_from(SOURCES),
        access=st.sampled_from([Access.parse(text) for text in ACCESSES]),
        at_us=st.integers(0, 13).map(lambda n: AT_US + n * DAY // 2),
        lifetime_s=st.sampled_from([0, 30, 3600, 100_000]),
        once=st.booleans(),
        declared=st.booleans(),
    )


@given(sound, st.data())
def test_the_edited_policy_is_never_wider_than_the_old_one(text: str, data: st.DataObject) -> None:
    old = parsed(text)
    assert old is not None
    chosen = [allow for allow in old.allows if data.draw(st.booleans())]
    edit = editor(text).without(chosen, "never used in 30 days")
    new = parsed(edit.text)
    assert new is not None
    assert len(new.allows) == len(old.allows) - len(edit.taken)
    assert not compare(old, new, by_role(old, new), AT_US).gaining
    question = data.draw(questions("ops", "dba"))
    before, after = decide(old, (), question), decide(new, (), question)
    assert before.granted or not after.granted
    assert after.lifetime_s <= before.lifetime_s
    assert before.once <= after.once or not after.granted
