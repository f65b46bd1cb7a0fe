"""`policy diff`: what is told of two policies, and how the command ends."""

import json
import tomllib
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keys import identity
from keys.registry import Registry
from spa_protocol.access import Access
from spa_server.cli import main
from spa_server.policy.decide import Question
from spa_server.policy.difference.diff import (
    Difference,
    Kind,
    Subject,
    by_identity,
    by_role,
    compare,
)
from spa_server.policy.difference.telling import Teller
from spa_server.policy.load import parse_policy
from spa_server.policy.model import (
    Policy,
)
from tests.world import NOW_US

BEGIN_US = NOW_US

BASE = """
[services]
ssh = "tcp/22"
postgres = "tcp/5432"
console = ["tcp/8443", "tcp/9090-9099"]
exporter = "tcp/9100"

[roles.dba]
[[roles.dba.allow]]
services = ["postgres"]
from = ["10.20.0.0/16"]
when = "Mo-Fr 08:00-18:00"
timezone = "Europe/Berlin"
lifetime = "30s"
max_lifetime = "8h"
sessions = "cut"
require = ["declared-source"]

[roles.admin]
[[roles.admin.allow]]
services = ["ssh"]
from = ["10.0.0.0/8"]
once = true
expires = 2027-06-01
[roles.admin.limits]
max_open = 3

[roles.web]
[[roles.web.allow]]
services = ["console"]

[[always_open]]
services = ["exporter"]
from = ["10.9.0.0/24"]
"""


def read(text: str) -> Policy:
    return parse_policy(tomllib.loads(text), Path("policy.toml"))


def edited(*edits: tuple[str, str]) -> str:
    """The base policy with some text replaced, each exactly once."""
    text = BASE
    for before, after in edits:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


def by_roles(old: str, new: str) -> tuple[Difference, list[tuple[str, list[str]]]]:
    """The difference of two texts, and how it is told."""
    before, after = read(old), read(new)
    difference = compare(before, after, by_role(before, after), BEGIN_US)
    return difference, list(Teller(before, after, difference).sentences())


GAIN, LOSS, BOTH = (True, False), (False, True), (True, True)
# One edit, whether somebody gains and loses by it, and what is said first.
EDITS = [
    (
        ('from = ["10.20.0.0/16"]', 'from = ["10.20.0.0/16", "10.30.0.0/16"]'),
        GAIN,
        "role dba gains postgres (tcp/5432) from 10.30.0.0/16, Mo-Fr 08:00-18:00 Europe/Berlin",
    ),
    (
        ('from = ["10.20.0.0/16"]', 'from = ["10.20.0.0/17"]'),
        LOSS,
        "role dba loses postgres (tcp/5432) from 10.20.128.0/17, Mo-Fr 08:00-18:00 Europe/Berlin",
    ),
    (
        ('from = ["10.0.0.0/8"]\n', ""),
        GAIN,
        "role admin gains ssh (tcp/22) from anywhere but 10.0.0.0/8, until 2027-06-01",
    ),
    (
        ("Mo-Fr 08:00-18:00", "Mo-Fr 07:00-18:00"),
        GAIN,
        "role dba gains time for postgres (tcp/5432) from 10.20.0.0/16",
    ),
    (
        ("Mo-Fr 08:00-18:00", "Mo-Fr 08:00-17:00"),
        LOSS,
        "role dba loses time for postgres (tcp/5432) from 10.20.0.0/16",
    ),
    (
        ("Mo-Fr 08:00-18:00", "Mo-Fr 09:00-19:00"),
        BOTH,
        "role dba gains time for postgres (tcp/5432) from 10.20.0.0/16",
    ),
    (
        ("expires = 2027-06-01\n", ""),
        GAIN,
        "role admin gains time for ssh (tcp/22) from 10.0.0.0/8",
    ),
    (
        ("expires = 2027-06-01", "expires = 2027-01-01"),
        LOSS,
        "role admin loses time for ssh (tcp/22) from 10.0.0.0/8",
    ),
    (
        ("once = true\n", ""),
        GAIN,
        "role admin changes ssh (tcp/22) from 10.0.0.0/8, until 2027-06-01",
    ),
    (
        ('sessions = "cut"\n', ""),
        GAIN,
        "role dba changes postgres (tcp/5432) from 10.20.0.0/16, Mo-Fr 08:00-18:00 Europe/Berlin",
    ),
    (
        ('max_lifetime = "8h"', 'max_lifetime = "9h"'),
        GAIN,
        "role dba changes postgres (tcp/5432) from 10.20.0.0/16, Mo-Fr 08:00-18:00 Europe/Berlin",
    ),
    (
        ('lifetime = "30s"', 'lifetime = "20s"'),
        LOSS,
        "role dba changes postgres (tcp/5432) from 10.20.0.0/16, Mo-Fr 08:00-18:00 Europe/Berlin",
    ),
    (
        ('require = ["declared-source"]\n', ""),
        GAIN,
        "role dba changes postgres (tcp/5432) from 10.20.0.0/16, Mo-Fr 08:00-18:00 Europe/Berlin",
    ),
    (
        ('require = ["declared-source"]', 'require = ["declared-source", "touch"]'),
        LOSS,
        "role dba changes postgres (tcp/5432) from 10.20.0.0/16, Mo-Fr 08:00-18:00 Europe/Berlin",
    ),
    (
        ('require = ["declared-source"]', 'require = ["touch"]'),
        BOTH,
        "role dba changes postgres (tcp/5432) from 10.20.0.0/16, Mo-Fr 08:00-18:00 Europe/Berlin",
    ),
    (("max_open = 3", "max_open = 4"), GAIN, "role admin changes limits"),
    (("max_open = 3", "knocks_per_minute = 3"), BOTH, "role admin changes limits"),
    (
        ("tcp/9090-9099", "tcp/9090-9102"),
        GAIN,
        "role web gains console (tcp/9100-9102) from anywhere",
    ),
    (
        ('"tcp/9090-9099"', '"tcp/9090-9094", "tcp/9095-9099"'),
        LOSS,
        "role web loses console (tcp/9090-9099 as one range) from anywhere",
    ),
    (
        ('from = ["10.9.0.0/24"]', 'from = ["10.9.0.0/23"]'),
        GAIN,
        "anybody gains exporter (tcp/9100) from 10.9.1.0/24",
    ),
    (
        ("[roles.web]\n", "[roles.new]\n[[roles.new.allow]]\nservices = ['ssh']\n[roles.web]\n"),
        GAIN,
        "role new gains ssh (tcp/22) from anywhere",
    ),
    (
        ("[roles.web]\n[[roles.web.allow]]", "[roles.net]\n[[roles.net.allow]]"),
        BOTH,
        "role net gains console (tcp/8443, tcp/9090-9099) from anywhere",
    ),
]
SAME = [
    ("a service renamed", (("console = ", "board = "), ('["console"]', '["board"]'))),
    ("a network in halves", (('["10.0.0.0/8"]', '["10.0.0.0/9", "10.128.0.0/9"]'),)),
    ("a schedule put otherwise", (("Mo-Fr 08:00-18:00", "Mo-Th 08:00-18:00; Fr 08:00-18:00"),)),
    ("the default said", (('lifetime = "30s"\n', ""),)),
    (
        "a description, a review, a test",
        (
            ("[roles.web]", '[roles.web]\ndescription = "x"\nreview_by = 2027-01-01'),
            (
                "[roles.dba]",
                "[[tests]]\nname = 'x'\nrole = 'web'\naccess = 'tcp/22'\n"
                "from = '10.0.0.1'\nexpect = 'deny'\n[roles.dba]",
            ),
        ),
    ),
    (
        "a rule in two",
        (
            (
                'services = ["console"]',
                'services = ["low"]\n[[roles.web.allow]]\nservices = ["high"]',
            ),
            ("[roles.dba]", "[roles.dba]\n"),
            ("console = [", 'low = "tcp/8443"\nhigh = "tcp/9090-9099"\nconsole = ['),
        ),
    ),
    (
        "an expiry on the role",
        (
            ("expires = 2027-06-01\n", ""),
            ("[roles.admin]\n", "[roles.admin]\nexpires = 2027-06-01\n"),
        ),
    ),
    ("a role that allows nothing", (("[roles.web]", "[roles.empty]\n[roles.web]"),)),
]


class TestWhatIsTold:
    """By example, from text to text."""

    @pytest.mark.parametrize(("edit", "ways", "sentence"), EDITS)
    def test_an_edit(self, edit: tuple[str, str], ways: tuple[bool, bool], sentence: str) -> None:
        difference, sentences = by_roles(BASE, edited(edit))
        assert (bool(difference.gaining), bool(difference.losing)) == ways
        assert sentences[0][0] == sentence
        back, _ = by_roles(edited(edit), BASE)
        assert (bool(back.losing), bool(back.gaining)) == ways

    @pytest.mark.parametrize("edits", [edits for _, edits in SAME], ids=[name for name, _ in SAME])
    def test_other_words(self, edits: tuple[tuple[str, str], ...]) -> None:
        difference, sentences = by_roles(BASE, edited(*edits))
        assert not difference, sentences
        assert not sentences

    def test_a_schedule_tells_what_was_and_when_it_first_matters(self) -> None:
        _, sentences = by_roles(BASE, edited(("Mo-Fr 08:00-18:00", "Mo-Fr 08:00-18:30")))
        ((_, more),) = sentences
        assert more[:3] == [
            "for 30s, at most 8h, sessions are cut; needs declared-source",
            "when: Mo-Fr 08:00-18:00 Europe/Berlin -> Mo-Fr 08:00-18:30 Europe/Berlin",
            "first at Tue 2026-11-24 18:00 Europe/Berlin",
        ]

    @pytest.mark.parametrize(
        ("edit", "told_of_it"),
        [
            (("once = true\n", ""), "one connection -> any number of connections (more)"),
            (('"8h"', '"9h"'), "at most 8h -> at most 9h (more)"),
            (('sessions = "cut"\n', ""), "sessions are cut -> sessions live on (more)"),
            (('require = ["declared-source"]\n', ""), "needs declared-source -> nothing (more)"),
            (
                ('["declared-source"]', '["touch"]'),
                "needs declared-source -> touch (more for some, less for others)",
            ),
            (("max_open = 3", "max_open = 4"), "holes at once: 3 -> 4 (more)"),
            (("max_open = 3", ""), "holes at once: 3 -> 4096 (more)"),
        ],
    )
    def test_what_is_other(self, edit: tuple[str, str], told_of_it: str) -> None:
        _, sentences = by_roles(BASE, edited(edit))
        assert told_of_it in sentences[0][1]

    def test_what_single_ports_show_is_not_told_again_of_ranges(self) -> None:
        difference, sentences = by_roles(BASE, edited(("tcp/9090-9099", "tcp/9090-9102")))
        assert len(sentences) == 1
        assert not any("as one range" in line for line in sentences[0][1])
        across = Access.parse("tcp/9095-9101")
        question = Question(frozenset(), ip_address("192.0.2.1"), across, BEGIN_US)
        assert difference.covers(Subject(Kind.ROLE, "web"), question)

    def test_a_range_is_told_where_its_ports_differ_otherwise(self) -> None:
        """Its ports are only given for longer, while the range as a whole is taken."""
        cut = '"tcp/9090-9094", "tcp/9095-9099"'
        longer = 'services = ["console"]\nlifetime = "1m"'
        _, sentences = by_roles(
            BASE, edited(('"tcp/9090-9099"', cut), ('services = ["console"]', longer))
        )
        assert [sentence for sentence, _ in sentences] == [
            "role web changes console (tcp/8443, tcp/9090-9094, tcp/9095-9099) from anywhere",
            "role web loses console (tcp/9090-9099 as one range) from anywhere",
        ]

    def test_a_range_is_told_where_its_ports_show_only_a_part_of_it(self) -> None:
        """Both are given for longer; and only the range was for one connection before."""
        text = """
        [services]
        low = "tcp/1-5"
        high = "tcp/6-9"
        all = "tcp/1-9"
        [roles.a]
        [[roles.a.allow]]
        services = ["low", "high"]
        max_lifetime = "2m"
        [[roles.a.allow]]
        services = ["all"]
        once = true
        """
        _, sentences = by_roles(text, text.replace("once = true", 'lifetime = "90s"'))
        assert [sentence for sentence, _ in sentences] == [
            "role a changes all (tcp/1-9 as one range) from anywhere",
            "role a changes low, high, all (tcp/1-5, tcp/6-9) from anywhere",
        ]

    def test_neighbours_that_no_rule_joins_are_two_ranges(self) -> None:
        _, sentences = by_roles(
            BASE,
            edited(('"tcp/9090-9099"]', '"tcp/9090-9099", "tcp/7000-7009", "tcp/7010-7019"]')),
        )
        assert sentences[0][0] == (
            "role web gains console (tcp/7000-7009, tcp/7010-7019) from anywhere"
        )

    def test_rules_of_two_roles_are_one_subject_and_many_of_them_one_change(self) -> None:
        text = """
        [services]
        ssh = "tcp/22"
        [roles.plain]
        [[roles.plain.allow]]
        services = ["ssh"]
        [roles.strict]
        [[roles.strict.allow]]
        services = ["ssh"]
        require = ["touch"]
        """
        old, new = read(text), read(text.replace('require = ["touch"]', 'lifetime = "30s"'))
        people = by_identity(
            {
                "alice": frozenset({"strict"}),
                "bob": frozenset({"strict", "gone"}),
                "carol": frozenset({"strict", "plain"}),
            }
        )
        difference = compare(old, new, people, BEGIN_US)
        sentences = list(Teller(old, new, difference).sentences())
        assert [sentence for sentence, _ in sentences] == [
            "alice, bob change ssh (tcp/22) from anywhere"
        ]

    def test_the_rules_that_make_it_are_named_and_no_others(self) -> None:
        text = """
        [services]
        ssh = "tcp/22"
        [roles.a]
        [[roles.a.allow]]
        services = ["ssh"]
        from = ["10.1.0.0/16"]
        [[roles.a.allow]]
        services = ["ssh"]
        from = ["10.2.0.0/16"]
        [[roles.a.allow]]
        services = ["ssh"]
        from = ["10.2.0.0/15"]
        require = ["touch"]
        """
        _, sentences = by_roles(text, text.replace("from = ", 'lifetime = "1m"\nfrom = ', 2))
        ((sentence, more),) = [s for s in sentences if "10.1.0.0/16, 10.2.0.0/16" in s[0]]
        assert sentence == "role a changes ssh (tcp/22) from 10.1.0.0/16, 10.2.0.0/16"
        assert more == [
            "for 30s -> for 1m (more); at most 30s -> at most 1m (more)",
            "old: roles.a.allow[0], roles.a.allow[1]",
            "new: roles.a.allow[0], roles.a.allow[1]",
        ]

    def test_limits_are_nobodys_who_needs_no_knock(self) -> None:
        limited = edited(("[roles.dba]", "[limits]\nmax_open = 9\n[roles.dba]"))
        _, sentences = by_roles(limited, limited.replace("max_open = 9", "max_open = 8"))
        assert sentences == [
            ("roles dba, web change limits", ["holes at once: 9 -> 8 (less)"]),
        ]

    def test_a_leap_day_is_seen(self) -> None:
        leap = "[[roles.web.allow]]\nservices = ['ssh']\nwhen = 'Feb 29'\n[[always_open]]"
        difference, sentences = by_roles(BASE, edited(("[[always_open]]", leap)))
        assert difference.gaining
        assert "first at Tue 2028-02-29 00:00 UTC" in sentences[0][1]

    def test_a_rule_that_begins_in_years_is_seen(self) -> None:
        later = "[[roles.web.allow]]\nservices = ['ssh']\nwhen = '2040'\n[[always_open]]"
        difference, sentences = by_roles(BASE, edited(("[[always_open]]", later)))
        assert difference.gaining
        assert sentences[0][0] == "role web gains ssh (tcp/22) from anywhere, 2040 UTC"
        assert "first at Sun 2040-01-01 00:00 UTC" in sentences[0][1]

    def test_an_expiry_beyond_the_horizon_is_seen(self) -> None:
        far = edited(("expires = 2027-06-01", "expires = 2050-06-01"))
        difference, sentences = by_roles(far, edited(("expires = 2027-06-01\n", "")))
        assert difference.gaining
        assert "first at Wed 2050-06-01 00:00 UTC" in sentences[0][1]


class Site:
    """A configuration with a policy and a registry of its own, and the command."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "server.toml"
        self.config.write_text('policy = "policy.toml"\ndatabase = "spa.db"\n')
        (directory / "policy.toml").write_text(BASE)

    def enrol(self, name: str, *roles: str) -> None:
        registry = Registry(self.directory / "spa.db")
        key = identity.generate().public
        registry.enroll(name, key, roles=roles, now_us=NOW_US, actor="root")
        registry.close()

    def write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def diff(self, *arguments: str) -> Result:
        return CliRunner().invoke(
            main, ["--config", str(self.config), "policy", "diff", *arguments]
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


WIDER = edited(('["10.20.0.0/16"]', '["10.20.0.0/16", "10.30.0.0/16"]'))


class TestCommand:
    """As an operator or a pull request runs it."""

    def test_somebody_gains(self, site: Site) -> None:
        site.enrol("alice", "dba")
        site.enrol("bob", "web")
        ended = site.diff("-", site.write("new.toml", WIDER))
        assert ended.exit_code == 1
        assert ended.stderr == ""
        first, *_, last = ended.stdout.splitlines()
        assert first == ("alice gains postgres (tcp/5432) from 10.30.0.0/16, Mo-Fr 08:00-18:00")
        assert last == "gains for 1, losses for 0"
        assert all(len(line) <= 80 for line in ended.stdout.splitlines())

    def test_somebody_loses(self, site: Site) -> None:
        site.enrol("alice", "dba")
        ended = site.diff(site.write("wide.toml", WIDER), "-")
        assert ended.exit_code == 0
        assert ended.stdout.startswith("alice loses postgres (tcp/5432) from 10.30.0.0/16")

    def test_nothing_differs(self, site: Site) -> None:
        site.enrol("alice", "dba")
        ended = site.diff("-", "-")
        assert (ended.exit_code, ended.stdout, ended.stderr) == (
            0,
            "no difference in meaning\n",
            "",
        )

    def test_without_a_registry_it_is_by_role_and_says_so(self, site: Site) -> None:
        ended = site.diff("-", site.write("new.toml", WIDER))
        assert ended.exit_code == 1
        assert ended.stdout.startswith("role dba gains postgres")
        assert "by role" in ended.stderr

    def test_by_role_where_that_is_asked_for(self, site: Site) -> None:
        site.enrol("alice", "web")
        ended = site.diff("-", site.write("new.toml", WIDER), "--by-role")
        assert ended.exit_code == 1
        assert ended.stderr == ""
        assert ended.stdout.startswith("role dba gains postgres")

    def test_a_role_that_nobody_has_is_mentioned(self, site: Site) -> None:
        site.enrol("alice", "web")
        ended = site.diff("-", site.write("new.toml", WIDER))
        assert ended.exit_code == 0
        assert "nobody has these roles: dba" in ended.stderr

    def test_json(self, site: Site) -> None:
        site.enrol("alice", "dba")
        new = site.write("new.toml", WIDER.replace("max_open = 3", "max_open = 2"))
        site.enrol("carol", "admin")
        ended = site.diff("-", new, "--json", "--at", "2026-11-25T06:00:00+01:00")
        assert ended.exit_code == 1
        value = json.loads(ended.stdout)
        assert value["somebody_gains"] is True
        assert value["from_moment"] == "2026-11-25T05:00:00Z"
        (change,) = value["changes"]
        assert change == {
            "who": "identity",
            "names": ["alice"],
            "what": "gain",
            "gains": True,
            "loses": False,
            "services": ["postgres"],
            "ports": ["tcp/5432"],
            "as_one_range": [],
            "anywhere": False,
            "from": ["10.30.0.0/16"],
            "at_any_time": False,
            "hours": "Mo-Fr 08:00-18:00 Europe/Berlin",
            "first_at": "2026-11-25T07:00:00Z",
            "before": [],
            "after": [
                {
                    "declared": True,
                    "touched": touched,
                    "once": False,
                    "sessions": "cut",
                    "lifetime_s": 30,
                    "max_lifetime_s": 28800,
                }
                for touched in (False, True)
            ],
            "old_rules": [],
            "new_rules": [
                {
                    "path": "roles.dba.allow[0]",
                    "line": 9,
                    "when": "Mo-Fr 08:00-18:00 Europe/Berlin",
                }
            ],
        }
        (limit,) = value["limits"]
        assert (limit["names"], limit["gains"], limit["loses"]) == (["carol"], False, True)

    @pytest.mark.parametrize("text", ["[services", "x = 1", "[roles.a]\nunknown = 1"])
    def test_a_broken_file(self, site: Site, text: str) -> None:
        broken = site.write("broken.toml", text)
        for arguments in (("-", broken), (broken, "-")):
            ended = site.diff(*arguments)
            assert (ended.exit_code, ended.stdout) == (4, "")
            assert ended.stderr.startswith(f"spa-server: {broken}")
            assert ended.stderr.count("\n") == 1

    def test_no_file(self, site: Site) -> None:
        ended = site.diff("-", str(site.directory / "none.toml"))
        assert ended.exit_code == 4
        assert "no such file" in ended.stderr

    def test_wrong_use(self, site: Site) -> None:
        assert site.diff("-").exit_code == 2
        assert site.diff("-", "-", "--at", "whenever").exit_code == 2

    def test_help_shows_a_gate_for_pull_requests(self, site: Site) -> None:
        assert "policy diff main.toml policy.toml ||" in site.diff("--help").stdout
