"""The gate taken away: by whom it may be, what comes in meanwhile, and how it is put back."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network

import pytest

from integration.attacks import deleted_table, flooded_control, hoarded_slots
from integration.lab import Host, Lab, Reach, echoes, wait_until
from integration.site import POLICY, Site
from spa_protocol.access import Access, Protocol
from spa_server.firewall.backstop import TABLE, Backstop
from spa_server.firewall.plan import AlwaysOpen, GatePlan
from spa_server.intruders import WHILE_AWAY
from spa_server.netlink import NETLINK_NETFILTER, NetlinkSocket

PUBLIC = 8080
EVERYTHING = GatePlan(
    outer=(),
    always_open=tuple(
        AlwaysOpen(network, Access(Protocol.TCP, 1, 65535))
        for network in (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    ),
)


def test_a_deleted_table(lab: Lab) -> None:
    assert [figure for figure in deleted_table.run(lab) if not figure.holds] == []


def test_a_flooded_control_socket(lab: Lab) -> None:
    assert [figure for figure in flooded_control.run(lab) if not figure.holds] == []


def test_hoarded_slots(lab: Lab) -> None:
    assert [figure for figure in hoarded_slots.run(lab) if not figure.holds] == []


@contextmanager
def no_backstop(server: Host) -> Iterator[None]:
    """Another process holds a table of its name, which lets everything pass: so the daemon's cannot
    be made, as on a kernel that knows no owners."""
    with server.inside():
        socket = NetlinkSocket(NETLINK_NETFILTER)
    with socket:
        Backstop(socket).arm(EVERYTHING)
        yield


@contextmanager
def stopped(site: Site) -> Iterator[None]:
    """The daemon hears of nothing."""
    assert site.daemon is not None
    os.kill(site.daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(site.daemon.pid, signal.SIGCONT)


def test_what_came_in_while_the_gate_was_away_goes_and_nothing_else(lab: Lab) -> None:
    server, client, stranger = lab.host("server"), lab.host("client"), lab.host("stranger")
    policy = POLICY.replace("[services]", f'[services]\npublic = "tcp/{PUBLIC}"')
    opened = f'[[always_open]]\nservices = ["public"]\nfrom = ["{stranger.v4}"]\n'
    site = Site(lab, server, policy + opened)
    alice = site.enrol("alice", "ops")
    for port in (22, 80, PUBLIC):
        server.serve(port)
    of_old = stranger.connection(server.v4, 22)
    assert echoes(of_old)
    with no_backstop(server):
        site.apply_gate()
        site.start()
        status = site.status()
        assert status["backstop"] == "held by another process"
        assert status["backstop_trouble"] == "Operation not permitted"
        assert "backstop-failed" in site.server("check", check=False).stdout
        (failed,) = site.events("gate.failed")
        assert failed["reason"].startswith("the backstop: ")
        alice.knock(client, "tcp/22", "--lifetime", "1s")
        alices = client.connection(server.v4, 22)
        public = stranger.connection(server.v4, PUBLIC)
        assert echoes(alices)
        assert echoes(public)
        wait_until(lambda: not site.holes(), what="alice's hole to close")
        record = site.record_from_now()
        with stopped(site):
            server.run(["nft", "delete", "table", "inet", "spa"])
            came_in = stranger.connection(server.v4, 22)
            silent = stranger.connection(server.v6, 80)
            assert echoes(came_in)
            assert echoes(silent)
        severed = record.line("connection.severed", target=server.v4)
        assert (severed["source"], severed["access"]) == (str(stranger.v4), "tcp/22")
        assert severed["reason"] == WHILE_AWAY
        assert severed["detail"]["source_port"] == came_in.getsockname()[1]
        assert record.line("connection.severed", target=server.v6)["access"] == "tcp/80"
        assert not echoes(came_in)
        assert not echoes(silent)
        assert len(record.lines("connection.severed")) == 2
        assert all(map(echoes, (of_old, alices, public)))
        assert stranger.reach_tcp(server.v4, 22) is Reach.SILENT
        assert len(site.events("gate.failed")) == 1
    wait_until(lambda: site.status()["backstop"] == "held", what="the backstop, once it can be had")


def test_a_gate_that_cannot_be_planned_is_in_doubt_and_tried_again(lab: Lab) -> None:
    """Any error at all: here, that no descriptor is left even where some were kept in reserve."""
    server, stranger = lab.host("server"), lab.host("stranger")
    site = Site(lab, server)
    site.apply_gate()
    site.start()
    server.serve(22)
    assert site.daemon is not None
    pid = str(site.daemon.pid)
    server.run(["prlimit", "--pid", pid, "--nofile=3:4096"])
    server.run(["nft", "flush", "ruleset"])
    time.sleep(1.0)
    assert stranger.reach_tcp(server.v4, 22) is Reach.SILENT
    server.run(["prlimit", "--pid", pid, "--nofile=1024:4096"])
    wait_until(lambda: site.status()["gate"] == "loaded", what="the gate to be put back")
    (failed,) = site.events("gate.failed")
    assert "oo many open files" in failed["reason"]
    assert site.status()["gate_in_doubt"] is None
    assert site.events("gate.restored")[-1]["reason"] == "it could not be loaded before"


def test_the_operator_takes_both_away(lab: Lab) -> None:
    server, stranger = lab.host("server"), lab.host("stranger")
    site = Site(lab, server)
    server.serve(22)
    site.apply_gate()  # without a daemon: the backstop is an orphan, and anybody's
    assert TABLE in server.run(["nft", "list", "tables"]).stdout
    server.run(["nft", "delete", "table", "inet", "spa"])
    assert stranger.reach_tcp(server.v4, 22) is Reach.SILENT
    site.server("gate", "remove", "--yes")
    assert stranger.reach_tcp(server.v4, 22) is Reach.OPEN

    site.apply_gate()
    site.start()
    assert site.status()["backstop"] == "held"
    site.server("gate", "remove", "--yes")
    assert server.run(["nft", "list", "tables"]).stdout == ""
    assert stranger.reach_tcp(server.v4, 22) is Reach.OPEN

    site.apply_gate()
    assert site.status()["backstop"] == "held"
    with stopped(site):
        removed = site.server("gate", "remove", "--yes", check=False)
        assert removed.returncode != 0
        assert f"process {site.daemon.pid if site.daemon else 0} holds it" in removed.stderr
    wait_until(lambda: server.run(["nft", "list", "tables"]).stdout == "")
    assert stranger.reach_tcp(server.v4, 22) is Reach.OPEN


@pytest.mark.parametrize("earlier", [False, True], ids=["no gate before", "a gate before"])
def test_a_trial_is_taken_back_from_a_daemon_that_hangs(lab: Lab, earlier: bool) -> None:
    """Whoever is locked out cannot end it: so the way back does not hang on it."""
    server, stranger = lab.host("server"), lab.host("stranger")
    site = Site(lab, server)
    server.serve(22)
    if earlier:
        site.apply_gate()
        old = server.run(["nft", "list", "table", "inet", "spa"]).stdout
        site.start()
        site.write_policy(f'{POLICY}\n[[always_open]]\nservices = ["ssh"]\nfrom = ["10.0.0.1"]\n')
    site.apply_gate("--confirm-within", "4s")
    if not earlier:
        site.start()
    assert site.daemon is not None
    os.kill(site.daemon.pid, signal.SIGSTOP)
    wait_until(lambda: not site.config.with_name("gate.pending").exists(), within_s=25.0)
    if earlier:
        assert server.run(["nft", "--terse", "list", "table", "inet", "spa"]).stdout
        assert "10.0.0.1" not in server.run(["nft", "list", "ruleset"]).stdout
        assert "10.0.0.1" not in old
    else:
        wait_until(lambda: stranger.reach_tcp(server.v4, 22) is Reach.OPEN, within_s=15.0)
    assert TABLE not in server.run(["nft", "list", "tables"]).stdout
