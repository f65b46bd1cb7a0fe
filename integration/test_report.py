"""The report of a guarded host, made while its daemon runs."""

import json
import sqlite3
import stat
from contextlib import closing

import pytest

from integration.lab import Host, Lab, Reach, Service, reached, wait_until
from integration.site import Site

pytest.importorskip("pygal", reason="the extra [report] is not installed")

SSH, CLOSED = 22, 3306


@pytest.fixture
def site(lab: Lab) -> Site:
    made = Site(lab, lab.host("server"))
    made.apply_gate()
    made.start()
    return made


def connect(at: Host, site: Site, port: int) -> Reach:
    with at.connection(site.host.v4, port) as stream:
        return reached(stream)


def test_what_happened_is_on_the_page_and_the_running_daemon_vouches_for_it(
    lab: Lab, site: Site
) -> None:
    client, stranger = lab.host("client"), lab.host("stranger")
    alice = site.enrol("alice", "ops")
    site.enrol("bob", "dba")
    Service(site.host, SSH)
    alice.knock(client, "tcp/22")
    assert connect(client, site, SSH) is Reach.OPEN
    assert connect(stranger, site, CLOSED) is Reach.SILENT
    alice.knock(client, "tcp/5432", check=False)
    wait_until(lambda: site.events("connection.permitted"), what="the connection's line")
    wait_until(lambda: site.events("connection.denied"), what="the denial's line")
    page = site.directory / "report.html"
    done = site.server("report", "--html", str(page), "--json")
    facts = json.loads(done.stdout)

    people = {person["name"]: person for person in facts["access"]["people"]}
    assert people["alice"]["cells"]["ssh"]["connections"] == 1
    assert people["bob"]["cells"]["postgres"]["connections"] == 0
    assert str(stranger.v4) in [each["source"] for each in facts["denied"]["sources"]]
    assert sum(each["knocks"] for each in facts["refusals"]) == 1
    assert (facts["state"]["problem"], facts["state"]["findings"]) == ("", [])
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    text = page.read_text()
    assert "<!DOCTYPE html>" in text
    assert alice.key_id() in text
    assert str(stranger.v4) in text


def test_lines_cut_off_while_the_daemon_runs_are_told_on_the_page(lab: Lab, site: Site) -> None:
    alice = site.enrol("alice", "ops")
    alice.knock(lab.host("client"), "tcp/22")
    wait_until(lambda: site.events("hole.opened"), what="the hole's line")
    with closing(sqlite3.connect(site.database)) as record, record:
        record.execute("delete from event where id = (select max(id) from event)")
    page = site.directory / "report.html"
    done = site.server("report", "--html", str(page), check=False)
    assert done.returncode == 1
    assert "the record is not as it was written" in done.stderr
    assert "The record is not as it was written." in page.read_text()
