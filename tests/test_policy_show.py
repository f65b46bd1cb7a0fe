"""`policy show`: who can reach what, held against what decide() answers."""

import json
import random
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keys import identity
from keys.registry import Registry
from spa_protocol.access import Access
from spa_server import clock
from spa_server.cli import main
from spa_server.policy.decide import Question, decide
from spa_server.policy.difference.diff import ANYBODY, Kind, Subject, by_identity
from spa_server.policy.load import parse_policy
from spa_server.policy.matrix import Matrix, View, matrix
from spa_server.policy.model import Policy
from tests.world import NOW_US

DAY_US = 86_400_000_000
# NOW_US is a Tuesday at seven in the morning in Berlin, in 2026.
TEXT = """
[services]
ssh = "tcp/22"
postgres = "tcp/5432"
console = ["tcp/8443", "tcp/9090-9099"]
board = "tcp/8443"
exporter = "tcp/9100"
legacy = ["udp/514", "udp/22"]

[roles.dba]
review_by = 2026-02-01
[[roles.dba.allow]]
services = ["postgres"]
from = ["10.20.0.0/16", "2001:db8:20::/48"]
when = "Mo-Fr 08:00-18:00; PH off"
timezone = "Europe/Berlin"
country = "DE"
max_lifetime = "8h"
sessions = "cut"
require = ["declared-source"]
review_by = 2027-02-01

[roles.admin]
[[roles.admin.allow]]
services = ["ssh", "board"]
expires = 2027-06-01
[[roles.admin.allow]]
services = ["console"]
from = ["10.20.3.0/24"]
once = true
lifetime = "1h30m"
[[roles.admin.allow]]
services = ["legacy"]
expires = 2026-06-01

[roles.idle]

[[always_open]]
services = ["exporter"]
from = ["10.9.0.0/24"]
"""
PEOPLE = {
    "alice": frozenset({"dba"}),
    "bob": frozenset({"admin", "dba"}),
    "carol": frozenset({"idle"}),
    "dave": frozenset[str](),
}


def read(text: str = TEXT) -> Policy:
    return parse_policy(tomllib.loads(text), Path("policy.toml"))


def shown(view: View, people: Mapping[str, frozenset[str]] = PEOPLE) -> dict[str, dict[str, str]]:
    """Who reaches what by which rules, `~` for a part of the ports."""
    return as_text(matrix(read(), by_identity(people), view))


def as_text(found: Matrix) -> dict[str, dict[str, str]]:
    return {
        row.subject.name: {
            service: ", ".join(
                reach.rule.path.removeprefix("roles.") + ("" if reach.is_whole else "~")
                for reach in reaches
            )
            for service, reaches in row.reaches.items()
        }
        for row in found.rows
        if row.reaches
    }


class TestMatrix:
    """What is in it."""

    def test_everything(self) -> None:
        assert shown(View(NOW_US)) == {
            "anybody": {"exporter": "always_open[0]"},
            "alice": {"postgres": "dba.allow[0]"},
            "bob": {
                "ssh": "admin.allow[0]",
                "postgres": "dba.allow[0]",
                "console": "admin.allow[0]~, admin.allow[1]",
                "board": "admin.allow[0], admin.allow[1]",
            },
        }

    def test_who_reaches_nothing_and_what_nobody_reaches(self) -> None:
        found = matrix(read(), by_identity(PEOPLE), View(NOW_US))
        assert [row.subject.name for row in found.without_access] == ["carol", "dave"]
        assert found.reached_by_nobody == ("legacy",)

    @pytest.mark.parametrize(
        ("view", "who"),
        [
            (View(NOW_US, at_us=NOW_US), {"anybody", "bob"}),  # before eight
            (View(NOW_US, at_us=NOW_US + DAY_US // 12), {"anybody", "alice", "bob"}),
            (View(NOW_US, at_us=NOW_US + 300 * DAY_US), {"anybody", "alice", "bob"}),
            (View(NOW_US, source=ip_address("192.0.2.1")), {"bob"}),
            (View(NOW_US, source=ip_address("10.9.0.8")), {"anybody", "bob"}),
            (View(NOW_US, source=ip_address("2001:db8:20::8")), {"alice", "bob"}),
            (View(NOW_US, service="postgres"), {"alice", "bob"}),
        ],
    )
    def test_a_view(self, view: View, who: set[str]) -> None:
        assert set(shown(view)) == who

    def test_an_expired_rule_is_left_out_and_so_is_one_that_will_have_expired(self) -> None:
        assert shown(View(NOW_US))["bob"]["postgres"] == "dba.allow[0]"
        later = View(NOW_US, at_us=NOW_US + 400 * DAY_US)
        assert "ssh" not in shown(later)["bob"]

    def test_two_rules_that_cover_it_together_are_each_a_part(self) -> None:
        text = TEXT.replace(
            "[roles.idle]",
            '[roles.idle]\n[[roles.idle.allow]]\nservices = ["high", "board"]',
        ).replace("[services]", '[services]\nhigh = "tcp/9090-9099"')
        found = matrix(read(text), by_identity({"carol": frozenset({"idle"})}), View(NOW_US))
        assert as_text(found)["carol"]["console"] == "idle.allow[0]"

    def test_it_agrees_with_decide(self) -> None:
        """Each service whose ports are one access, at random moments from random addresses."""
        chance = random.Random(7)
        policy = read()
        sources = [
            ip_address(text)
            for text in ("10.20.3.4", "10.20.4.4", "10.9.0.8", "192.0.2.1", "2001:db8:20::8")
        ]
        for _ in range(400):
            at_us = NOW_US + chance.randrange(500 * 24 * 60) * 60_000_000
            source = chance.choice(sources)
            found = matrix(policy, by_identity(PEOPLE), View(NOW_US, at_us, source))
            for row in found.rows:
                for name in ("ssh", "postgres", "board"):
                    (access,) = policy.services[name]
                    question = Question(row.roles, source, access, at_us, declared=True)
                    whole = any(reach.is_whole for reach in row.reaches.get(name, ()))
                    assert whole == decide(policy, (), question).granted, question

    def test_a_row_for_anybody_comes_first(self) -> None:
        found = matrix(read(), by_identity({"anybody": frozenset({"dba"})}), View(NOW_US))
        assert [row.subject for row in found.rows] == [ANYBODY, Subject(Kind.IDENTITY, "anybody")]
        assert found.rows[1].reaches.keys() == {"postgres"}


class Site:
    """A configuration with a policy and a registry of its own, and the command."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "server.toml"
        self.config.write_text('policy = "policy.toml"\ndatabase = "spa.db"\n')
        self.policy = directory / "policy.toml"
        self.policy.write_text(TEXT)
        self.database = directory / "spa.db"

    def enrol(self, people: Mapping[str, frozenset[str]] = PEOPLE) -> None:
        registry = Registry(self.database)
        for name, roles in people.items():
            key = identity.generate().public
            registry.enroll(name, key, roles=roles, now_us=NOW_US, actor="root")
        registry.close()

    def revoke(self, name: str) -> None:
        registry = Registry(self.database)
        registry.revoke(name, now_us=NOW_US, actor="root")
        registry.close()

    def show(self, *arguments: str) -> Result:
        return CliRunner().invoke(
            main, ["--config", str(self.config), "policy", "show", *arguments]
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(clock, "now_us", lambda: NOW_US)
    return Site(tmp_path)


class TestCommand:
    """As an operator or an auditor runs it."""

    def test_the_matrix(self, site: Site) -> None:
        site.enrol()
        ended = site.show()
        assert ended.exit_code == 0
        assert ended.stdout.splitlines() == [
            "         ssh  postgres  console  board  exporter",
            "anybody  .    .         .        .      4",
            "alice    .    1         .        .      .",
            "bob      2    1         2~,3     2,3    .",
            "",
            "1  roles.dba.allow[0] (line 12): from 10.20.0.0/16, 2001:db8:20::/48; Mo-Fr",
            "   08:00-18:00; PH off Europe/Berlin (DE); for 30s, at most 8h; sessions are",
            "   cut; needs declared-source; review overdue since 2026-02-01",
            "2  roles.admin.allow[0] (line 24): from anywhere; until 2027-06-01; for 30s",
            "3  roles.admin.allow[1] (line 27): from 10.20.3.0/24; for 1h30m; for one",
            "   connection",
            "4  always_open[0] (line 38): from 10.9.0.0/24; no knock needed",
            "",
            "ssh is tcp/22",
            "postgres is tcp/5432",
            "console is tcp/8443, tcp/9090-9099",
            "board is tcp/8443",
            "exporter is tcp/9100",
            "",
            "reaching nothing: carol, dave",
            "",
            "reached by nobody: legacy",
        ]
        assert ended.stderr == "roles.admin.allow[2] has expired and is left out.\n"

    def test_one_identity(self, site: Site) -> None:
        site.enrol()
        lines = site.show("--identity", "alice").stdout.splitlines()
        assert lines[:3] == [
            "         postgres  exporter",
            "anybody  .         2",
            "alice    1         .",
        ]
        assert "reached by nobody" not in "".join(lines)

    def test_one_service(self, site: Site) -> None:
        site.enrol()
        lines = site.show("--service", "ssh").stdout.splitlines()
        assert lines[:2] == ["     ssh", "bob  1"]
        assert "reaching nothing: alice, carol, dave" in lines

    def test_a_moment_and_an_address(self, site: Site) -> None:
        site.enrol()
        ended = site.show("--at", "2026-11-24T12:00:00+01:00", "--from", "::ffff:10.20.3.4")
        assert ended.stdout.splitlines()[:3] == [
            "       ssh  postgres  console  board",
            "alice  .    1         .        .",
            "bob    2    1         2~,3     2,3",
        ]
        ended = site.show("--at", "2026-11-24T20:00:00+01:00", "--from", "10.20.4.4")
        assert ended.stdout.splitlines()[1] == "bob  1    1~       1"

    def test_nothing_at_all(self, site: Site) -> None:
        site.policy.write_text('[services]\nssh = "tcp/22"\n')
        site.enrol()
        assert site.show().stdout.splitlines() == [
            "reaching nothing: alice, bob, carol, dave",
            "",
            "reached by nobody: ssh",
        ]

    def test_who_has_no_key_that_works_is_marked(self, site: Site) -> None:
        site.enrol()
        site.revoke("alice")
        site.revoke("dave")
        lines = site.show().stdout.splitlines()
        assert "alice (no key)  .    1         .        .      ." in lines
        assert "reaching nothing: carol, dave (no key)" in lines

    def test_many_services_and_people_stay_within_80_columns(self, site: Site) -> None:
        names = [f"service-number-{k}" for k in range(40)]
        services = "".join(f'{name} = "tcp/{k + 1}"\n' for k, name in enumerate(names))
        roles = "".join(
            f'[roles.r{k}]\n[[roles.r{k}.allow]]\nservices = ["{name}"]\n'
            for k, name in enumerate(names)
        )
        site.policy.write_text(f"[services]\n{services}{roles}")
        site.enrol({f"person-{k}": frozenset({f"r{k}"}) for k in range(40)})
        lines = site.show().stdout.splitlines()
        assert max(map(len, lines)) <= 80
        headings = [line for line in lines if line.startswith(" ") and "service-number" in line]
        assert " ".join(headings).split() == names

    def test_without_a_registry_it_is_by_role_and_says_so(self, site: Site) -> None:
        ended = site.show()
        assert ended.exit_code == 0
        assert ended.stdout.splitlines()[1:4] == [
            "anybody  .    .         .        .      4",
            "dba      .    1         .        .      .",
            "admin    2    .         2~,3     2,3    .",
        ]
        assert "reaching nothing: idle" in ended.stdout
        assert "by role" in ended.stderr

    def test_one_identity_needs_the_registry(self, site: Site) -> None:
        ended = site.show("--identity", "alice")
        assert (ended.exit_code, ended.stdout) == (4, "")

    @pytest.mark.parametrize("arguments", [("--identity", "eve"), ("--service", "telnet")])
    def test_nobody_and_nothing_of_that_name(self, site: Site, arguments: tuple[str, str]) -> None:
        site.enrol()
        ended = site.show(*arguments)
        assert (ended.exit_code, ended.stdout) == (1, "")
        assert arguments[1] in ended.stderr

    def test_wrong_use(self, site: Site) -> None:
        for arguments in (("--at", "whenever"), ("--from", "somewhere"), ("--identity", "\x1b")):
            assert site.show(*arguments).exit_code == 2

    def test_a_broken_policy(self, site: Site) -> None:
        site.policy.write_text("[roles.a]\nunknown = 1\n")
        ended = site.show()
        assert (ended.exit_code, ended.stdout) == (4, "")
        assert ended.stderr.startswith(f"spa-server: {site.policy}: roles.a.unknown")

    def test_json(self, site: Site) -> None:
        site.enrol()
        value = json.loads(site.show("--json").stdout)
        assert value["services"]["console"] == ["tcp/8443", "tcp/9090-9099"]
        assert value["rules"]["roles.dba.allow[0]"] == {
            "line": 12,
            "services": ["postgres"],
            "from": ["10.20.0.0/16", "2001:db8:20::/48"],
            "always_open": False,
            "role": "dba",
            "when": "Mo-Fr 08:00-18:00; PH off",
            "timezone": "Europe/Berlin",
            "country": "DE",
            "lifetime_s": 30,
            "max_lifetime_s": 28800,
            "once": False,
            "sessions": "cut",
            "require": ["declared-source"],
            "expires_at": None,
            "review_by": "2026-02-01",
            "review_overdue": True,
        }
        assert value["rules"]["roles.admin.allow[0]"]["from"] is None
        assert value["rules"]["always_open[0]"]["always_open"] is True
        rows = {row["name"]: row for row in value["rows"]}
        assert rows["bob"]["reaches"]["console"] == [
            {"rule": "roles.admin.allow[0]", "whole": False},
            {"rule": "roles.admin.allow[1]", "whole": True},
        ]
        assert (rows["bob"]["has_key"], rows["bob"]["roles"]) == (True, ["admin", "dba"])
        assert value["without_access"] == ["carol", "dave"]
        assert value["reached_by_nobody"] == ["legacy"]
        expected = Access.parse("tcp/22")
        assert [Access.parse(text) for text in value["services"]["ssh"]] == [expected]
