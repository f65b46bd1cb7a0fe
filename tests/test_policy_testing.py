"""A policy's own tests: what passes, what fails and why, and `spa-server policy test`."""

import json
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from keys import identity
from keys.console import Program
from keys.registry import Registry
from keys.tomlfile import FileProblem
from spa_server.commands import policy_test
from spa_server.policy import testing
from spa_server.policy.lines import lines_of
from spa_server.policy.load import parse_policy
from spa_server.policy.model import Policy
from spa_server.policy.testing import RolesUnknown, check, run_tests
from tests.world import NOW_US

PATH = Path("/etc/spa/policy.toml")
RULES = """\
[services]
ssh = "tcp/22"
postgres = "tcp/5432"
console = "tcp/8443"
web = "tcp/443"

[roles.dba]
[[roles.dba.allow]]
services = ["postgres"]
from = ["10.20.0.0/16", "2001:db8:20::/48"]
when = "Mo-Fr 08:00-18:00"
timezone = "Europe/Berlin"
[[roles.dba.allow]]
services = ["console"]
require = ["declared-source", "touch"]

[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
once = true
[[roles.ops.allow]]
services = ["web"]
expires = 2027-01-01

"""
SHARED = (ip_network("10.66.0.0/24"),)
HAVE = {"alice": frozenset({"dba", "ops"}), "carol": frozenset({"clerk"})}
AT_WORK = "2026-11-24T09:00:00+01:00"
AT_NIGHT = "2026-11-24T23:00:00+01:00"


def a_test(expect: str, access: str, source: str = "10.20.3.4", **more: object) -> str:
    """One `[[tests]]` as text."""
    who = {} if "identity" in more else {"role": "dba"}
    at = {"at": more.pop("at")} if "at" in more else {}
    values = {**who, "access": access, "from": source, "expect": expect, **more}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["[[tests]]", *lines, *(f"at = {moment}" for moment in at.values())]) + "\n"


def parsed(*tests: str, rules: str = RULES) -> Policy:
    text = rules + "".join(tests)
    return parse_policy(tomllib.loads(text), PATH, lines_of(text))


def roles_of(identity: str) -> frozenset[str]:
    return HAVE.get(identity, frozenset())


def run(*tests: str, roles: testing.RolesOf | None = roles_of) -> list[testing.Tested]:
    return run_tests(parsed(*tests), PATH, SHARED, roles)


OUTCOMES = [
    ("at work", a_test("allow", "tcp/5432", at=AT_WORK), ""),
    ("over IPv6", a_test("allow", "tcp/5432", "2001:db8:20::1", at=AT_WORK), ""),
    (
        "at night",
        a_test("allow", "tcp/5432", at=AT_NIGHT),
        "denied: roles.dba.allow[0] (policy.toml:8): opens again Wed 08:00 Europe/Berlin",
    ),
    (
        "not denied",
        a_test("deny", "tcp/5432", at=AT_WORK),
        "allowed by roles.dba.allow[0] (policy.toml:8) for 30 s",
    ),
    ("denied at night", a_test("deny", "tcp/5432", at=AT_NIGHT), ""),
    (
        "from elsewhere, at whatever time",
        a_test("allow", "tcp/5432", "10.1.1.1"),
        "denied: roles.dba.allow[0] (policy.toml:8): {from_elsewhere}",
    ),
    ("denied from elsewhere, at whatever time", a_test("deny", "tcp/5432", "10.1.1.1"), ""),
    ("with all that is required", a_test("allow", "tcp/8443", declared=True, touched=True), ""),
    (
        "undeclared",
        a_test("allow", "tcp/8443", touched=True),
        "denied: roles.dba.allow[1] (policy.toml:13): {undeclared}",
    ),
    ("untouched", a_test("deny", "tcp/8443", declared=True), ""),
    ("another role's", a_test("allow", "tcp/22"), "denied: no role allows it"),
    (
        "once",
        a_test("deny", "tcp/22", role="ops"),
        "allowed by roles.ops.allow[0] (policy.toml:18) for 30 s, for one connection",
    ),
    ("before it expires", a_test("allow", "tcp/443", role="ops", at="2026-12-31T23:00:00Z"), ""),
    (
        "after it expired",
        a_test("allow", "tcp/443", role="ops", at="2027-01-01T00:00:00Z"),
        "denied: roles.ops.allow[1] (policy.toml:21): expired on 2027-01-01",
    ),
    (
        "a source that many share",
        a_test("allow", "tcp/22", "10.66.0.9", role="ops"),
        "denied: the source is shared by many",
    ),
    ("of one role", a_test("allow", "tcp/22", identity="alice"), ""),
    ("of the other", a_test("allow", "tcp/5432", identity="alice", at=AT_WORK), ""),
    (
        "somebody whose role is not defined",
        a_test("allow", "tcp/22", identity="carol"),
        "denied: no role allows it; carol has role clerk",
    ),
    (
        "nobody",
        a_test("allow", "tcp/22", identity="mallory"),
        "denied: no role allows it; mallory has no role",
    ),
    ("denied to nobody", a_test("deny", "tcp/22", identity="mallory"), ""),
]
# Words of other modules, which are not what is tested here.
WORDS = {"from_elsewhere": "10.1.1.1", "undeclared": "10.20.3.4"}


@pytest.mark.parametrize(
    ("text", "why"), [row[1:] for row in OUTCOMES], ids=[r[0] for r in OUTCOMES]
)
def test_what_comes_of_a_test(text: str, why: str) -> None:
    (tested,) = run(text)
    assert tested.result == ("failed" if why else "passed")
    if why:
        expected = "allow" if tested.test.is_allowed else "deny"
        told, _, word = why.partition("{")
        assert tested.sentence.startswith(f"expected {expected}, but {told}")
        assert WORDS.get(word.rstrip("}"), "") in tested.sentence
        assert word or tested.sentence.endswith(told)


def test_a_test_without_a_time_is_not_told_when_it_opens() -> None:
    """It would be told about the year 1970."""
    (tested,) = run(a_test("allow", "tcp/5432", "10.1.1.1"))
    assert "opens" not in tested.sentence


def test_of_many_rules_the_first_few_are_told() -> None:
    rules = '[services]\nssh = "tcp/22"\n[roles.dba]\n' + "".join(
        f'[[roles.dba.allow]]\nservices = ["ssh"]\nfrom = ["10.{n}.0.0/16"]\n' for n in range(5)
    )
    policy = parsed(a_test("allow", "tcp/22", "192.0.2.1"), rules=rules)
    (tested,) = run_tests(policy, PATH, (), roles_of)
    assert tested.sentence.count("roles.dba.allow[") == 3
    assert tested.sentence.endswith("; and 2 more rules")


def test_a_range_of_more_ports_than_the_limit_is_denied_as_a_knock_would_be() -> None:
    rules = (
        '[limits]\nmax_open = 3\n[services]\nweb = "tcp/8000-8009"\n'
        '[roles.dba]\n[[roles.dba.allow]]\nservices = ["web"]\n'
    )
    tests = (a_test("allow", "tcp/8000-8002"), a_test("deny", "tcp/8000-8003"))
    policy = parsed(*tests, rules=rules)
    assert [one.result for one in run_tests(policy, PATH, (), roles_of)] == ["passed", "passed"]


def test_identities_are_skipped_without_a_registry() -> None:
    results = run(
        a_test("deny", "tcp/22"), a_test("deny", "tcp/22", identity="alice", name="b"), roles=None
    )
    assert [one.result for one in results] == ["passed", "skipped"]
    assert results[1].decision is None


def test_roles_that_cannot_be_told_fail_the_test_and_not_the_run() -> None:
    def unreadable(_identity: str) -> frozenset[str]:
        raise RolesUnknown("the disk is gone")

    results = run(
        a_test("deny", "tcp/22", identity="alice"),
        a_test("deny", "tcp/22", name="b"),
        roles=unreadable,
    )
    assert [one.result for one in results] == ["failed", "passed"]
    assert results[0].sentence == "the roles of alice cannot be read: the disk is gone"


def test_a_policy_that_passes_its_tests_is_sound() -> None:
    check(parsed(a_test("allow", "tcp/5432", at=AT_WORK)), PATH, SHARED, roles_of)
    check(parsed(), PATH, SHARED, roles_of)


def test_the_first_that_fails_is_named_with_its_place_and_how_many_more() -> None:
    policy = parsed(
        a_test("deny", "tcp/22", name="first"),
        a_test("deny", "tcp/5432", name="kept out", at=AT_WORK),
        a_test("allow", "tcp/22", name="third"),
        a_test("allow", "tcp/22", name="fourth", source="10.1.1.1"),
    )
    with pytest.raises(FileProblem) as raised:
        check(policy, PATH, SHARED, roles_of)
    assert str(raised.value) == (
        '/etc/spa/policy.toml: tests[1]: "kept out" in line 31 failed: expected deny, but allowed '
        "by roles.dba.allow[0] (policy.toml:8) for 30 s; 2 more failed; "
        "see: spa-server policy test"
    )


def test_one_without_a_name_is_named_by_its_place() -> None:
    with pytest.raises(
        FileProblem, match=r"tests\[0\]: the test in line 25 failed: expected allow"
    ):
        check(parsed(a_test("allow", "tcp/22")), PATH, SHARED, roles_of)


# The command


class Site:
    """A configuration, a policy and a registry in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.policy = directory / "policy.toml"
        self.config = directory / "server.toml"
        self.config.write_text(
            'policy = "policy.toml"\ndatabase = "spa.db"\nshared_sources = ["10.66.0.0/24"]\n'
        )
        self.write()

    def write(self, *tests: str) -> None:
        self.policy.write_text(RULES + "".join(tests))

    def enrol(self, name: str, *roles: str) -> None:
        registry = Registry(self.directory / "spa.db")
        key = identity.generate().public
        registry.enroll(name, key, roles=roles, now_us=NOW_US, actor="root")
        registry.close()

    def run(self, *arguments: str) -> Result:
        program = Program("spa-server", commands={"test": policy_test.test})
        return CliRunner().invoke(program, ["test", *arguments], obj=self.config)

    def run_json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_line_for_each_test_and_a_summary(site: Site) -> None:
    site.write(
        a_test("allow", "tcp/5432", name="at work", at=AT_WORK),
        a_test("deny", "tcp/5432", name="kept out", at=AT_WORK),
    )
    done = site.run()
    assert (done.exit_code, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "ok       tests[0] at work (line 25)",
        "FAILED   tests[1] kept out (line 32): expected deny, but allowed by roles.dba.allow[0] "
        "(policy.toml:8) for 30 s",
        f"{site.policy}: 1 passed, 1 failed",
    ]


def test_all_is_well(site: Site) -> None:
    """Also without any registry, where no test asks for one."""
    site.write(a_test("allow", "tcp/5432", at=AT_WORK), a_test("deny", "tcp/22"))
    done = site.run()
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == f"{site.policy}: 2 passed"


def test_another_file_than_the_one_of_the_configuration(site: Site, tmp_path: Path) -> None:
    site.write(a_test("deny", "tcp/5432", at=AT_WORK))
    other = tmp_path / "new.toml"
    other.write_text(RULES + a_test("deny", "tcp/22"))
    assert site.run().exit_code == 1
    assert site.run(str(other)).exit_code == 0
    assert site.run_json(str(other))["policy"] == str(other)


def test_shared_sources_are_those_of_the_configuration(site: Site) -> None:
    site.write(a_test("deny", "tcp/22", "10.66.0.9", role="ops"))
    assert site.run().exit_code == 0


def test_identities_have_their_roles_from_the_registry(site: Site) -> None:
    site.write(
        a_test("allow", "tcp/22", identity="alice", name="alice"),
        a_test("deny", "tcp/22", identity="bob", name="bob"),
        a_test("deny", "tcp/22", identity="nobody", name="nobody"),
    )
    site.enrol("alice", "ops")
    site.enrol("bob", "dba")
    assert site.run().exit_code == 0
    site.enrol("bob", "ops")
    done = site.run()
    assert done.exit_code == 1
    assert "bob (line 31): expected deny, but allowed by roles.ops.allow[0]" in done.stdout


def test_a_registry_that_cannot_be_read_fails_the_tests_that_need_it(site: Site) -> None:
    site.write(a_test("deny", "tcp/22", identity="alice"), a_test("deny", "tcp/22", name="b"))
    done = site.run()
    assert done.exit_code == 1
    first, second, _ = done.stdout.splitlines()
    assert first == (
        "FAILED   tests[0] (line 25): the roles of alice cannot be read: there is no registry at "
        f"{site.directory}/spa.db; such tests can be skipped: --no-registry"
    )
    assert second.startswith("ok")
    skipped = site.run("--no-registry")
    assert skipped.exit_code == 0
    assert skipped.stdout.splitlines() == [
        "skipped  tests[0] (line 25): the registry is not asked",
        "ok       tests[1] b (line 30)",
        f"{site.policy}: 1 passed, 1 skipped",
    ]


def test_without_any_test_it_says_how_to_write_one(site: Site) -> None:
    """And what it says is a test that can be read."""
    done = site.run()
    assert (done.exit_code, done.stdout) == (0, "")
    first, _, example = done.stderr.partition("\n")
    assert first.startswith(f"there are no tests in {site.policy}")
    site.policy.write_text(RULES + example)
    assert site.run().stdout.splitlines()[-1] == f"{site.policy}: 1 passed"
    site.write()
    assert site.run_json()["tests"] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[roles", "not TOML"),
        ("[rules]", "rules: is not known"),
        (RULES + a_test("perhaps", "tcp/22"), "tests[0].expect: expected"),
        (None, "no such file"),
    ],
)
def test_a_broken_file_is_trouble(site: Site, text: str | None, problem: str) -> None:
    site.policy.unlink()
    if text is not None:
        site.policy.write_text(text)
    done = site.run()
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr.startswith(f"spa-server: {site.policy}: ")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


def test_everything_in_fields(site: Site) -> None:
    site.write(
        a_test("deny", "tcp/5432", name="kept out", at=AT_WORK),
        a_test("deny", "tcp/22", identity="alice", name="skipped"),
    )
    told = site.run_json("--no-registry")
    assert {name: told[name] for name in ("passed", "failed", "skipped")} == {
        "passed": 0,
        "failed": 1,
        "skipped": 1,
    }
    first, second = told["tests"]
    assert first == {
        "test": "tests[0]",
        "line": 25,
        "name": "kept out",
        "role": "dba",
        "identity": None,
        "access": "tcp/5432",
        "from": "10.20.3.4",
        "at": "2026-11-24T08:00:00Z",
        "expect": "deny",
        "result": "failed",
        "came": "allow",
        "rule": "roles.dba.allow[0]",
        "rule_line": 8,
        "why": "expected deny, but allowed by roles.dba.allow[0] (policy.toml:8) for 30 s",
    }
    assert (second["result"], second["came"], second["identity"]) == ("skipped", None, "alice")


def test_what_a_policy_calls_its_tests_cannot_steer_a_terminal(site: Site) -> None:
    site.policy.write_text(RULES + a_test("allow", "tcp/22", name="x\x1b[2J\ny"))
    done = site.run()
    assert "\x1b" not in done.output
    assert done.exit_code in (1, 4)
