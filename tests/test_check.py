"""`spa-server check`: each thing that does not fit is found under its name, with what to do."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from keys import identity, serverkey
from keys.registry import Registry
from keys.when import rfc3339
from spa_server import marks
from spa_server.alignment.drift import judge
from spa_server.alignment.finding import SEVERITIES, Finding, Severity
from spa_server.alignment.people import check_people, people_in
from spa_server.alignment.standing import (
    Daemon,
    PolicyTexts,
    check_cut,
    check_daemon,
    check_doubts,
    check_files,
    check_gate,
    check_key,
    config_is_current,
)
from spa_server.alignment.survey import Facts, own_ports
from spa_server.config import Config, load_config
from spa_server.firewall.backstop import KERNEL_LACKS_IT
from tests.test_policy import policy
from tests.world import NOW_US, SECOND

POLICY = """
[services]
ssh = "tcp/22"
around-ssh = "tcp/20-30"
near-ssh = ["tcp/21", "tcp/23", "udp/22"]
postgres = "tcp/5432"
[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
[roles.dba]
[[roles.dba.allow]]
services = ["postgres"]
[roles.wide]
[[roles.wide.allow]]
services = ["around-ssh"]
[roles.near]
[[roles.near.allow]]
services = ["near-ssh"]
[roles.nothing]
"""
OPEN_SSH = POLICY + '[[always_open]]\nservices = ["ssh"]\nfrom = ["10.9.0.0/24"]\n'


class People:
    """A registry, and what is found about the people in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.registry = Registry(path)

    def enrol(self, name: str, *roles: str, expires_at_us: int | None = None) -> str:
        key = identity.generate().public
        self.registry.enroll(
            name,
            key,
            comment="",
            roles=roles,
            expires_at_us=expires_at_us,
            now_us=NOW_US,
            actor="root",
        )
        return key.key_id

    def findings(self, text: str = POLICY, now_us: int = NOW_US) -> list[Finding]:
        return list(check_people(policy(text), people_in(self.registry, now_us)))

    def names(self, text: str = POLICY, now_us: int = NOW_US) -> list[str]:
        return [finding.name for finding in self.findings(text, now_us)]


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    made = People(tmp_path / "spa.db")
    yield made
    made.registry.close()


def test_nothing_is_found_where_somebody_reaches_ssh(people: People) -> None:
    people.enrol("alice", "ops")
    people.enrol("bob", "dba")
    assert people.findings() == []


def test_nobody_is_enrolled(people: People) -> None:
    (finding,) = people.findings()
    assert (finding.name, finding.severity) == ("nobody-enrolled", Severity.ERROR)
    assert finding.advice.startswith("spa-keys invite ")


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_keys_that_work_no_more_do_not_count(people: People, how: str) -> None:
    people.enrol("alice", "ops", expires_at_us=NOW_US + SECOND)
    assert people.names() == []
    if how == "revoked":
        people.registry.revoke("alice", now_us=NOW_US, actor="root")
    later_us = NOW_US + (2 * SECOND if how == "expired" else 0)
    assert people.names(now_us=later_us) == ["nobody-enrolled"]


@pytest.mark.parametrize("roles", ["", "dba", "near", "nothing", "dba near nothing"])
def test_nobody_reaches_ssh(people: People, roles: str) -> None:
    """Neither by no role, nor by one for other ports, nor for udp/22."""
    people.enrol("alice", *roles.split())
    (finding,) = people.findings()
    assert (finding.name, finding.severity) == ("nobody-reaches-ssh", Severity.ERROR)
    assert "tcp/22" in finding.what


@pytest.mark.parametrize("roles", ["ops", "wide", "dba ops"])
def test_one_who_reaches_ssh_is_enough(people: People, roles: str) -> None:
    people.enrol("alice", *roles.split())
    people.enrol("bob", "dba")
    assert people.names() == []


def test_one_who_would_reach_ssh_but_has_no_key_is_not(people: People) -> None:
    people.enrol("alice", "ops")
    people.enrol("bob", "dba")
    people.registry.revoke("alice", now_us=NOW_US, actor="root")
    assert people.names() == ["nobody-reaches-ssh"]


def test_ssh_that_is_always_open_needs_nobody(people: People) -> None:
    people.enrol("bob", "dba")
    assert people.names(OPEN_SSH) == []


def test_a_role_that_the_policy_does_not_define(people: People) -> None:
    """Perhaps a misspelt one, perhaps one that was renamed: it allows nothing."""
    people.enrol("alice", "ops", "opps", "dbb")
    people.enrol("bob", "dba")
    first, second = people.findings()
    assert {first.name, second.name} == {"unknown-role"}
    assert first.severity is Severity.WARNING
    assert first.what == "alice has the role dbb, which the policy does not define"
    assert second.advice == "define it, or: spa-keys ungrant alice opps"


def test_a_key_whose_row_is_not_whole(people: People) -> None:
    people.enrol("alice", "ops")
    torn = people.enrol("bob", "dba")
    with closing(sqlite3.connect(people.path)) as connection, connection:
        connection.execute("update key set agreement = x'00' where key_id = ?", [torn])
    (finding,) = people.findings()
    assert (finding.name, finding.severity) == ("broken-key", Severity.WARNING)
    assert finding.what.startswith(f"the key {torn} cannot be used: ")


# The gate


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "server.toml"
    file.write_text('database = "spa.db"\ncontrol = "control.sock"\nkey = "server.key"\n')
    return load_config(file)


def gate_findings(config: Config, *, is_loaded: bool) -> list[tuple[str, Severity]]:
    found = check_gate(config, is_loaded=is_loaded)
    return [(finding.name, finding.severity) for finding in found]


def test_the_gate_is_not_loaded(config: Config) -> None:
    """Not even where it is wanted: then a reboot or a stranger has taken it away."""
    assert gate_findings(config, is_loaded=False) == [("gate-not-loaded", Severity.ERROR)]
    config.gate_wanted.touch()
    assert gate_findings(config, is_loaded=False) == [("gate-not-loaded", Severity.ERROR)]


def test_the_gate_is_not_confirmed(config: Config) -> None:
    assert gate_findings(config, is_loaded=True) == [("gate-not-confirmed", Severity.WARNING)]


def test_another_gate_is_on_trial_where_one_was_in_force_for_good(config: Config) -> None:
    config.gate_wanted.touch()
    config.gate_pending.touch()
    assert gate_findings(config, is_loaded=True) == [("gate-not-confirmed", Severity.WARNING)]


def test_the_gate_is_in_force_for_good(config: Config) -> None:
    config.gate_wanted.touch()
    assert gate_findings(config, is_loaded=True) == []


def test_a_trial_says_when_it_ends(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "OF_THIS_BOOT", config.path.parent)
    (finding,) = check_gate(config, is_loaded=True)
    assert "when its time is over" in finding.what
    marks.begin(config, marks.Trial("abc", None, was_wanted=False, until_us=NOW_US))
    (finding,) = check_gate(config, is_loaded=True)
    assert f"it goes at {rfc3339(NOW_US)}" in finding.what
    older = '{"token": "abc", "before": null, "was_wanted": true}'
    config.gate_pending.write_text(older)  # a trial of another version's
    assert marks.waiting(config) == marks.Trial("abc", None, was_wanted=True)


def key_findings(config: Config) -> list[tuple[str, str]]:
    return [(finding.name, finding.advice) for finding in check_key(config)]


def test_a_key_that_the_daemon_cannot_use(config: Config) -> None:
    unusable = "server-key-unusable"
    assert [name for name, _ in key_findings(config)] == [unusable]
    serverkey.save(serverkey.generate(), config.key)
    assert [name for name, _ in key_findings(config)] == ["key-of-no-machine"]
    config.key.chmod(0o644)
    assert key_findings(config) == [(unusable, f"run: chmod 600 {config.key}")]
    config.key.chmod(0o600)
    whole = config.key.read_text()
    for broken in ("", "junk", whole[: len(whole) // 2], whole.replace("server", "person")):
        config.key.write_text(broken)
        (found,) = check_key(config)
        assert (found.name, found.severity) == (unusable, Severity.ERROR), broken
        assert found.advice
        assert "does not start" in found.what
    config.key.unlink()
    config.key.mkdir()
    assert [name for name, _ in key_findings(config)] == [unusable]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_of_another_user(config: Config) -> None:
    """Root's own is readable by root, who looks, and not by the daemon."""
    serverkey.save(serverkey.generate(), config.key)
    os.chown(config.key, 4711, -1)
    assert key_findings(config)[0][0] == "server-key-unusable"
    os.chown(config.key, 0, -1)
    os.chown(config.database.parent, 4712, -1)
    hint = f"run: chown 4712 {config.key}"
    assert key_findings(config) == [("server-key-unusable", hint)]
    os.chown(config.key, 4712, -1)
    assert [name for name, _ in key_findings(config)] == ["key-of-no-machine"]


def test_without_a_policy_what_hangs_on_none_is_found(people: People, config: Config) -> None:
    def names(*, is_loaded: bool) -> list[str]:
        found = people_in(people.registry, NOW_US)
        facts = Facts(NOW_US, is_loaded=is_loaded, people=found, daemon=Daemon(is_running=False))
        return [finding.name for finding in judge(config, None, facts)]

    assert names(is_loaded=False) == ["nobody-enrolled", "server-key-unusable", "gate-not-loaded"]
    people.enrol("alice", "ops")
    assert names(is_loaded=True) == [
        *("server-key-unusable", "daemon-not-running", "gate-not-confirmed")
    ]


def test_a_daemon_that_hears_nobody_yet() -> None:
    daemon = Daemon(is_running=True, deaf_until="2026-01-01T00:00:00Z")
    (finding,) = check_daemon(daemon, is_loaded=True)
    assert (finding.name, finding.severity) == ("nobody-heard", Severity.WARNING)
    assert "until 2026-01-01T00:00:00Z" in finding.what


def test_every_finding_stands_in_the_manual() -> None:
    manual = (Path(__file__).parents[1] / "man" / "spa-server.8").read_text()
    section = manual.partition(".SH FINDINGS")[2].partition(".SH ")[0].replace("\\-", "-")
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)*", section)) >= set(SEVERITIES)


def test_a_gate_without_a_daemon_lets_nobody_in() -> None:
    """While no gate is loaded, that nobody listens to knocks is no harm."""
    (finding,) = check_daemon(Daemon(is_running=False), is_loaded=True)
    assert (finding.name, finding.severity) == ("daemon-not-running", Severity.ERROR)
    assert list(check_daemon(Daemon(is_running=False), is_loaded=False)) == []
    assert list(check_daemon(Daemon(is_running=True), is_loaded=True)) == []


@pytest.mark.parametrize(
    ("daemon", "names"),
    [
        (Daemon(True), []),
        (Daemon(True, doubt="the gate: nft: not today"), ["gate-in-doubt"]),
        (Daemon(True, backstop_trouble="not permitted"), ["backstop-failed"]),
        (Daemon(True, no_backstop=KERNEL_LACKS_IT), ["no-backstop"]),
        (Daemon(True, no_backstop="the gate observes", observes=True), []),
    ],
)
def test_what_the_daemon_could_not_do(daemon: Daemon, names: list[str]) -> None:
    found = list(check_doubts(daemon))
    assert [finding.name for finding in found] == names
    assert all(finding.advice and finding.what and finding.subject for finding in found)


@pytest.mark.parametrize(
    ("why", "advice"), [(KERNEL_LACKS_IT, "a kernel"), ("a trial was undone", "gate apply")]
)
def test_a_new_kernel_is_advised_only_where_it_is_the_kernel(why: str, advice: str) -> None:
    (finding,) = check_doubts(Daemon(True, no_backstop=why))
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("daemon", "texts", "names"),
    [
        (Daemon(True, True), PolicyTexts("a", "a"), []),
        (Daemon(True, False), PolicyTexts("a", "a"), ["config-changed"]),
        (Daemon(True, True), PolicyTexts("b", "a"), ["policy-not-in-force"]),
        (Daemon(True, None), PolicyTexts(None, "a"), []),
        (Daemon(True, None), PolicyTexts("a", None), []),
        (Daemon(False, None), PolicyTexts("b", "a"), []),
    ],
)
def test_what_was_written_since_the_daemon_read_it(
    daemon: Daemon, texts: PolicyTexts, names: list[str]
) -> None:
    """A daemon that does not run reads both when it starts."""
    assert [finding.name for finding in check_files(daemon, texts)] == names


def test_a_configuration_is_current_while_it_says_the_same(config: Config) -> None:
    """A comment changes nothing; what cannot be read any more has changed."""
    assert config_is_current(config) is True
    text = config.path.read_text()
    config.path.write_text(text + "# a comment\n")
    assert config_is_current(config) is True
    config.path.write_text(text + "knock_port = 7777\n")
    assert config_is_current(config) is False
    config.path.write_text(text + "not toml")
    assert config_is_current(config) is False
    config.path.unlink()
    assert config_is_current(config) is None


def test_every_finding_has_a_name_of_its_own_and_advice(people: People, config: Config) -> None:
    """Whoever watches hosts filters by the names; they do not change."""
    findings = people.findings()
    people.enrol("alice", "other")
    findings += people.findings()
    findings += check_gate(config, is_loaded=False)
    findings += check_gate(config, is_loaded=True)
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names) == 5
    assert all(finding.advice and finding.what and finding.subject for finding in findings)
    assert set(names) <= set(SEVERITIES)


@pytest.mark.parametrize(
    ("ports", "names"),
    [
        (range(32768, 61000), []),
        (range(5000, 6000), ["cut-among-own-ports"]),
        (range(5432, 5433), ["cut-among-own-ports"]),
        (range(1024, 5432), []),
    ],
)
def test_a_cut_port_among_those_of_outgoing_connections(ports: range, names: list[str]) -> None:
    cut = POLICY.replace('services = ["postgres"]', 'services = ["postgres"]\nsessions = "cut"')
    assert [finding.name for finding in check_cut(policy(cut), ports)] == names
    assert list(check_cut(policy(POLICY), ports)) == []


def test_the_ports_of_outgoing_connections_are_those_of_this_host() -> None:
    assert 1 <= own_ports().start < own_ports().stop <= 65536
