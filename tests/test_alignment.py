"""Alignment's rules on values: each finding where it belongs, and none where it does not."""

import os
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_protocol.access import Access, Protocol
from spa_server.alignment.finding import (
    SEVERITIES,
    Finding,
    Severity,
    are_notes,
    changes,
    in_order,
    selected,
)
from spa_server.alignment.listeners import Listener
from spa_server.alignment.listing import first_difference
from spa_server.alignment.memory import (
    Memory,
    Owner,
    compare,
    learn,
    load,
    save,
    still_unused,
)
from spa_server.alignment.openings import Openings, PortSet
from spa_server.alignment.people import (
    People,
    check_expiry,
    check_reviews,
    check_roles,
    check_schedules,
)
from spa_server.alignment.ports import (
    KERNEL,
    Listening,
    check_owners,
    check_rules,
    check_unreachable,
    check_unused,
    owners_now,
)
from spa_server.alignment.processes import Process
from spa_server.alignment.surroundings import Link, Surroundings, check_surroundings
from spa_server.firewall.plan import Observed
from spa_server.policy.schedule import Schedule
from tests.test_policy import policy

DAY_US = 86_400_000_000
NOW_US = round(datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()) * 1_000_000
SERVICES = """
[services]
ssh = "tcp/22"
web = ["tcp/80", "tcp/443"]
mosh = "udp/60000-60010"
"""


def finding(name: str, subject: str = "x") -> Finding:
    return Finding(name, subject, "what", "advice")


def names(found: object) -> list[str]:
    return [each.name for each in found]  # type: ignore[attr-defined]  # an iterable of findings


# Findings


def test_the_worst_comes_first_and_a_name_has_one_severity() -> None:
    mixed = [finding("other-drops"), finding("flowtable"), finding("gate-differs")]
    mixed += [finding("other-drops", "a"), finding("nobody-enrolled")]
    ordered = in_order(mixed)
    assert [f.severity for f in ordered] == sorted(
        (f.severity for f in mixed), key=list(Severity).index
    )
    assert names(ordered) == [
        "nobody-enrolled",
        "gate-differs",
        "flowtable",
        "other-drops",
        "other-drops",
    ]
    assert [f.subject for f in ordered[-2:]] == ["a", "x"]


def test_only_notes_are_no_failure() -> None:
    notes = [finding(name) for name, s in SEVERITIES.items() if s is Severity.NOTE]
    assert are_notes(notes)
    assert are_notes([])
    for name, severity in SEVERITIES.items():
        assert are_notes([*notes, finding(name)]) is (severity is Severity.NOTE)


def test_findings_are_chosen_by_name() -> None:
    some = [finding("flowtable"), finding("xdp-program"), finding("role-unused")]
    assert selected(some, (), ()) == some
    assert names(selected(some, ("flowtable", "role-unused"), ())) == ["flowtable", "role-unused"]
    assert names(selected(some, (), ("flowtable",))) == ["xdp-program", "role-unused"]
    assert selected(some, ("flowtable",), ("flowtable",)) == []


def test_changes_are_what_is_new_and_what_is_gone() -> None:
    """A process id in the words makes no new finding."""
    before = [finding("flowtable"), finding("xdp-program", "eth0")]
    now = [replace(before[0], what="other words"), finding("xdp-program", "eth1")]
    changed = changes(before, now)
    assert [f.subject for f in changed.new] == ["eth1"]
    assert [f.subject for f in changed.gone] == ["eth0"]
    assert changes(now, now) == changes([], [])


# Rules and people


def test_reviews_are_due_on_their_day() -> None:
    rules = policy(
        SERVICES
        + """
        [roles.due]
        review_by = 2026-11-24
        [[roles.due.allow]]
        services = ["ssh"]
        review_by = 2026-11-25
        [[roles.due.allow]]
        services = ["web"]
        review_by = 2020-01-01
        """
    )
    found = list(check_reviews(rules, NOW_US))
    assert [f.subject for f in found] == ["roles.due", "roles.due.allow[1]"]
    assert found[0].what.endswith("was to be reviewed by 2026-11-24")


EXPIRES = (
    SERVICES
    + """
[roles.gone]
expires = 2026-11-24T11:59:59Z
[[roles.gone.allow]]
services = ["ssh"]
[roles.soon]
expires = 2026-12-08T12:00:00Z
[[roles.soon.allow]]
services = ["ssh"]
[[roles.soon.allow]]
services = ["web"]
expires = 2026-11-24T12:00:00Z
[roles.later]
expires = 2026-12-08T12:00:01Z
[[roles.later.allow]]
services = ["ssh"]
"""
)


def test_what_has_expired_or_will_within_two_weeks() -> None:
    """A rule that ends with its role is told once."""
    found = [(f.name, f.subject) for f in check_expiry(policy(EXPIRES), NOW_US)]
    assert found == [
        ("rule-expired", "roles.gone"),
        ("rule-expiring", "roles.soon"),
        ("rule-expired", "roles.soon.allow[1]"),
    ]


def test_roles_that_nobody_has() -> None:
    rules = policy(SERVICES + "[roles.a]\n[roles.b]\n")
    people = People(frozenset(), {"alice": frozenset({"a"}), "bob": frozenset()})
    assert [f.subject for f in check_roles(rules, people)] == ["roles.b"]
    assert not list(check_roles(rules, replace(people, invited=frozenset({"b"}))))


WHEN = (
    SERVICES
    + """
[roles.r]
[[roles.r.allow]]
services = ["ssh"]
when = "{when}"
"""
)


@pytest.mark.parametrize(
    ("when", "is_over"),
    [
        ("2026 Nov 23", True),
        ("2026 Nov 24 00:00-12:00", True),
        ("2026 Nov 24 00:00-12:01", False),
        ("2020-2025", True),
        ("2026", False),
        ("2040", False),
        ("Mo-Fr 08:00-18:00", False),
        ("Feb 29", False),
        ("2024 Feb 29", True),
    ],
)
def test_schedules_that_never_open_again(when: str, is_over: bool) -> None:
    rules = policy(WHEN.format(when=when))
    assert names(check_schedules(rules, NOW_US)) == (["schedule-over"] if is_over else [])


def test_looking_at_a_schedule_leaves_what_it_remembers_alone() -> None:
    """Another thread decides by the same one meanwhile."""
    rules = policy(WHEN.format(when="Mo-Fr 08:00-18:00"))
    schedule = rules.allows[0].when
    assert schedule is not None
    assert schedule.is_open(NOW_US)
    remembered = [getattr(schedule, name) for name in Schedule.__slots__]
    assert list(check_schedules(rules, NOW_US + 500 * DAY_US)) == []
    assert [getattr(schedule, name) for name in Schedule.__slots__] == remembered


def test_the_rule_of_an_expired_role_has_no_schedule_to_lose() -> None:
    text = WHEN.format(when="2020").replace(
        "[roles.r]", "[roles.r]\nexpires = 2026-01-01T00:00:00Z"
    )
    assert names(check_schedules(policy(text), NOW_US)) == []


# Ports

REACHING = (
    SERVICES
    + """
[roles.r]
[[roles.r.allow]]
services = ["web", "mosh"]
[[roles.r.allow]]
services = ["web"]
from = ["10.0.0.0/8"]
lifetime = "1h"
[[always_open]]
services = ["ssh"]
from = "anywhere"
"""
)


def listener(access: str, *, uid: int = 0, inode: int = 1) -> Listener:
    one = Access.parse(access)
    return Listener(one.protocol, ip_address("::"), one.first, uid, inode)


def test_a_port_that_no_rule_leads_to() -> None:
    """Ports side by side of one program are one finding, which names it."""
    nginx = Process(812, "nginx", "/usr/sbin/nginx")
    ports = ["tcp/22", "tcp/443", "tcp/8080", "tcp/8081", "udp/60010", "udp/8080"]
    listening = Listening(tuple(map(listener, ports)), {1: nginx})
    found = list(check_unreachable(listening, Openings(policy(REACHING)), Observed()))
    assert [f.subject for f in found] == ["tcp/8080-8081", "udp/8080"]
    assert found[0].what.startswith("nginx (pid 812, user 0) listens on tcp/8080-8081")
    assert found[0].what.endswith("it is closed")
    observed = Observed(accesses=(Access.parse("udp/8080"),))
    found = list(check_unreachable(listening, Openings(policy(REACHING)), observed))
    assert [f.what.endswith("observed only") for f in found] == [False, True]


@pytest.mark.parametrize("port", ["udp/62201", "udp/68", "udp/546", "udp/32768", "udp/60999"])
def test_what_a_host_binds_for_its_own_questions_is_no_service(port: str) -> None:
    own = Listening((listener(port),), {}, range(32768, 61000), 62201)
    assert list(check_unreachable(own, Openings(policy("")), Observed())) == []
    stream = Listening((listener(port.replace("udp", "tcp")),), {}, range(32768, 61000), 62201)
    assert names(check_unreachable(stream, Openings(policy("")), Observed())) == [
        "listening-unreachable"
    ]


def test_whose_a_socket_is_where_no_process_can_be_seen() -> None:
    listening = Listening((listener("udp/51820", inode=0), listener("tcp/8080", uid=33)))
    found = list(check_unreachable(listening, Openings(policy("")), Observed()))
    assert [f.what.partition(" listens")[0] for f in found] == [
        f"{KERNEL} (user 0)",
        "a program (user 33)",
    ]


def test_rules_whose_port_nobody_listens_on() -> None:
    """One port of a range is enough; a port that leads into a container is served too."""
    rules = Openings(policy(REACHING))
    nobody = list(check_rules(rules, Listening(), ()))
    assert [(f.name, f.subject) for f in nobody] == [
        ("rule-without-listener", "tcp/80"),
        ("rule-without-listener", "tcp/443"),
        ("rule-without-listener", "udp/60000-60010"),
        ("always-open-unused", "tcp/22"),
    ]
    assert nobody[0].what == (
        "nobody listens on tcp/80, which roles.r.allow[0], roles.r.allow[1] allow"
    )
    some = Listening(tuple(map(listener, ["tcp/80", "udp/60005", "tcp/60005"])))
    left = check_rules(rules, some, [Access.parse("tcp/22")])
    assert [f.subject for f in left] == ["tcp/443"]


def test_a_port_that_is_always_open_and_unused_for_a_week() -> None:
    since = {"tcp/22": NOW_US - 7 * DAY_US, "tcp/80": NOW_US - 7 * DAY_US + 1}
    (found,) = check_unused(since, NOW_US)
    assert found.subject == "tcp/22"
    assert "since 2026-11-17" in found.what


def test_unused_means_that_each_look_found_no_packet() -> None:
    first = still_unused({}, {"tcp/22": 0, "tcp/80": 5}, 100)
    assert first == {"tcp/22": 100}
    second = still_unused(first, {"tcp/22": 0, "tcp/80": 0}, 200)
    assert second == {"tcp/22": 100, "tcp/80": 200}
    assert still_unused(second, {"tcp/22": 1, "tcp/80": 0}, 300) == {"tcp/80": 200}
    assert still_unused(second, {}, 300) == {}


# Owners

SSHD = Owner(0, "/usr/sbin/sshd")
SOMEBODY = Owner(0)
EVE = Owner(1000, "/home/eve/sshd")


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ({SSHD}, {SSHD}, set()),
        ({SSHD}, {EVE}, {EVE}),
        ({SSHD}, {SSHD, EVE}, {EVE}),
        ({SSHD, EVE}, {SSHD}, set()),
        ({SSHD}, {Owner(0, "/opt/sshd")}, {Owner(0, "/opt/sshd")}),
        ({SSHD}, {SOMEBODY}, set()),
        ({SOMEBODY}, {SSHD}, set()),
        ({SOMEBODY}, {EVE}, {EVE}),
        ({SSHD}, {Owner(1000)}, {Owner(1000)}),
    ],
)
def test_an_owner_is_new_where_no_earlier_one_can_be_the_same(
    before: set[Owner], now: set[Owner], new: set[Owner]
) -> None:
    found = list(compare({"tcp/22": frozenset(before)}, {"tcp/22": frozenset(now)}))
    assert [change.new for change in found] == ([frozenset(new)] if new else [])
    assert names(check_owners(found)) == (["listener-changed"] if new else [])


def test_a_port_is_compared_once_it_has_been_seen() -> None:
    """It may be away in between: what comes back is compared with what was there."""
    seen = learn({}, {"tcp/22": frozenset({SSHD})})
    assert list(compare({}, {"tcp/22": frozenset({EVE})})) == []
    seen = learn(seen, {})
    assert len(list(compare(seen, {"tcp/22": frozenset({EVE})}))) == 1


def test_a_change_stays_until_it_is_accepted() -> None:
    seen, now = {"tcp/22": frozenset({SSHD})}, {"tcp/22": frozenset({EVE})}
    assert learn(seen, now) == seen
    assert learn(seen, now, ["tcp/80"]) == seen
    assert learn(seen, now, ["tcp/22"]) == now


def test_a_program_that_could_not_be_seen_is_learnt_when_it_can() -> None:
    seen = learn({"tcp/22": frozenset({SOMEBODY})}, {"tcp/22": frozenset({SSHD})})
    assert seen == {"tcp/22": frozenset({SSHD})}
    assert learn(seen, {"tcp/22": frozenset({SOMEBODY})}) == seen


owners = st.builds(Owner, st.integers(0, 3), st.sampled_from([None, "/a", "/b"]))
ports = st.dictionaries(
    st.sampled_from(["tcp/1", "tcp/2", "udp/3"]), st.frozensets(owners, min_size=1, max_size=3)
)


@given(ports, ports)
def test_whoever_is_accepted_is_never_found_again(before: object, now: object) -> None:
    assert isinstance(before, dict)
    assert isinstance(now, dict)
    changed = [change.access for change in compare(before, now)]
    learnt = learn(before, now, changed)
    assert list(compare(learnt, now)) == []
    assert set(learnt) == set(before) | set(now)
    unasked = learn(before, now)
    assert [change.access for change in compare(unasked, now)] == changed


def test_only_ports_of_the_policy_have_owners() -> None:
    listening = Listening(
        (listener("tcp/22"), listener("tcp/80", uid=33, inode=2), listener("tcp/8080", inode=3)),
        {1: Process(9, "sshd", "/usr/sbin/sshd")},
    )
    assert owners_now(listening, Openings(policy(REACHING))) == {
        "tcp/22": frozenset({SSHD}),
        "tcp/80": frozenset({Owner(33)}),
    }


@given(ports, st.dictionaries(st.text(max_size=9), st.integers(0, 2**62), max_size=3))
def test_what_is_kept_is_read_back(kept: object, unused: dict[str, int]) -> None:
    assert isinstance(kept, dict)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "alignment.json"
        memory = Memory(kept, unused)
        save(path, memory)
        assert load(path) == memory
        assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_remembered_where_no_file_is(tmp_path: Path) -> None:
    assert load(tmp_path / "none") == Memory()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"owners": {"tcp/22": [[1]]}}', '{"other": 1}', "\xff"]
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "alignment.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"."):
        load(path)


def test_a_link_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    """Root reads it from a directory that another user owns."""
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"."):
        load(tmp_path / "link")
    with pytest.raises(ValueError, match="no file"):
        load(tmp_path / "pipe")


# Openings

accesses = st.builds(
    lambda protocol, first, size: Access(protocol, first, min(65_535, first + size)),
    st.sampled_from(list(Protocol)),
    st.integers(1, 65_535),
    st.integers(0, 300),
)


@given(st.lists(accesses, max_size=12), accesses)
def test_a_set_of_ports_meets_a_range_where_one_of_its_own_does(
    some: list[Access], asked: Access
) -> None:
    assert PortSet(some).meets(asked) is any(each.overlaps(asked) for each in some)


# The listing

LISTED = """table inet spa {
	counter knocks_rejected {
		packets 12 bytes 3456
	}

	chain judge {
		jump always_open
		goto deny
	}

	chain deny {
		counter packets 7 bytes 99 drop
	}
}
"""


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("packets 12 bytes 3456", "packets 0 bytes 0"), None),
        (("counter packets 7 bytes 99 drop", "counter packets 0 bytes 0 drop"), None),
        (
            ("goto deny", "tcp dport 99 accept\n\t\tgoto deny"),
            "chain judge has 'tcp dport 99 accept'",
        ),
        (("\t\tgoto deny\n", ""), "chain judge lacks 'goto deny'"),
        (("goto deny", "accept"), "chain judge has 'accept' and lacks 'goto deny'"),
        (("chain deny {", "chain deny {\n\t\taccept"), "chain deny has 'accept'"),
        (("goto deny", "x" * 500), f"chain judge has '{'x' * 120}...' and lacks 'goto deny'"),
    ],
)
def test_where_two_listings_part(edit: tuple[str, str], told: str | None) -> None:
    assert edit[0] in LISTED
    assert first_difference(LISTED.replace(*edit), LISTED) == told


def test_the_order_of_blocks_means_nothing() -> None:
    """An upgrade makes what is new behind what is there."""
    counter, judge, deny = (
        LISTED.removeprefix("table inet spa {\n").removesuffix("}\n").split("\n\n")
    )
    other = "\n\n".join((deny.rstrip(), counter, judge))
    assert first_difference(f"table inet spa {{\n{other}\n}}\n", LISTED) is None
    assert first_difference(f"table inet spa {{\n{counter}\n\n{deny}}}\n", LISTED) is not None


# What surrounds the gate


def test_what_takes_packets_before_the_gate() -> None:
    links = (Link(2, "eth0", has_xdp=True), Link(3, "eth1", has_ingress_filters=True))
    found = list(check_surroundings(Surroundings(links, legacy=("iptables filter",)), ("eth0",)))
    assert [(f.name, f.subject) for f in found] == [
        ("xdp-program", "eth0"),
        ("tc-ingress", "eth1"),
        ("iptables-legacy", "iptables filter"),
    ]


@pytest.mark.parametrize(
    ("judged", "outer", "ports_of_bridge", "expected"),
    [
        (False, ("br0",), 2, ["bridge-unjudged"]),
        (True, ("br0",), 2, []),
        (False, ("br0",), 1, []),
        (False, ("eth9",), 2, []),
        (False, None, 2, []),
    ],
)
def test_a_bridge_to_the_world_passes_on_what_nobody_judges(
    judged: bool, outer: tuple[str, ...] | None, ports_of_bridge: int, expected: list[str]
) -> None:
    """A bridge of containers alone is no way in."""
    bridged = [Link(3 + n, f"vnet{n}", bridge=2) for n in range(ports_of_bridge)]
    links = (Link(2, "br0", is_bridge=True), *bridged, Link(9, "eth9"))
    assert names(check_surroundings(Surroundings(links, judged), outer)) == expected
