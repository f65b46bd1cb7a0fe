"""Which host and which addresses a request is good for, with real packets."""

from ipaddress import IPv4Address, ip_address

import pytest

from integration.attacks import cloned_host
from integration.lab import Lab, Reach
from integration.site import Site
from integration.wire import Caller, Pen
from spa_client.compose import SourceRule
from spa_protocol.reason import Code, Status


def test_a_knock_for_one_host_opens_nothing_at_its_clone() -> None:
    with Lab() as lab:
        figures = list(cloned_host.run(lab))
    assert len(figures) == 3
    assert [str(figure) for figure in figures if not figure.holds] == []


def test_sources_that_no_client_can_have_are_refused_and_said_why() -> None:
    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        site = Site(lab, server)
        pen = Pen.enrolled(site, "alice", "ops")
        site.apply_gate()
        site.start()
        caller = Caller(pen, client, IPv4Address(server.v4))
        broadcast = ip_address(int(server.v4) | 0xFF)
        for source, why in (
            ("127.0.0.1", "no other host can have"),
            ("240.0.0.1", "no other host can have"),
            ("0.0.0.1", "no other host can have"),
            (str(server.v4), "the source is an address of this host"),
            (str(broadcast), "broadcast address"),
            ("169.254.7.7", "link-local"),
        ):
            reply = caller.ask("tcp/22", source=ip_address(source))
            assert reply is not None, source
            assert [o.code for o in reply.outcomes] == [Code.NOT_A_TARGET], source
            assert why in reply.message
        assert site.holes() == []
        reply = caller.ask("tcp/22", source=SourceRule.NONE)
        assert reply is not None
        assert reply.status is Status.GRANTED
        # An address that the host gets later is its own from then on.
        spare = ip_address(int(server.v4) + 50)
        assert caller.ask("tcp/22", source=spare).status is Status.GRANTED  # type: ignore[union-attr]
        server.add_address(f"{spare}/24")
        reply = caller.ask("tcp/22", source=spare)
        assert reply is not None
        assert reply.status is Status.REFUSED


@pytest.mark.parametrize("told", [True, False])
def test_behind_a_forwarder_its_address_counts_where_the_operator_says_so(told: bool) -> None:
    """The forwarder rewrites the target: the client signs the address that it knows."""
    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        known = "198.51.100.4"
        settings = f'also_addressed_as = ["{known}"]\n' if told else ""
        site = Site(lab, server, settings=settings)
        pen = Pen.enrolled(site, "alice", "ops")
        site.apply_gate()
        site.start()
        caller = Caller(pen, client, IPv4Address(server.v4))
        reply = caller.ask("tcp/22", target=ip_address(known), lifetime_s=60)
        assert reply is not None
        assert reply.status is (Status.GRANTED if told else Status.REFUSED)
        assert [hole["target"] for hole in site.holes()] == [str(server.v4)] * told


def test_a_clone_s_daemon_does_not_start_until_it_is_told() -> None:
    with Lab() as lab:
        site = Site(lab, lab.host("server"))
        mark = site.directory / "server.key.machine"
        mark.write_text("0" * 32 + "\n")  # as it came with a disk from elsewhere
        site.apply_gate()
        refused = site.server("run", check=False)
        assert refused.returncode == 4
        assert "came with another machine" in refused.stderr
        assert "key-of-another-machine" in site.server("check", check=False).stdout
        site.server("adopt-key")
        site.start()
        assert site.status()["state"] == "serving"


def test_a_close_of_one_port_ends_the_range_that_was_granted_and_says_so() -> None:
    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        site = Site(lab, server)
        alice = site.enrol("alice", "ops")
        site.apply_gate()
        site.start()
        for port in (9090, 9091):
            server.serve(port)
        alice.knock(client, "tcp/9090-9091", "--lifetime", "60s")
        assert client.reach_tcp(server.v4, 9091) is Reach.OPEN
        closed = alice.client(client, "close", "site", "tcp/9090")
        assert "closed as granted: tcp/9090-9091" in closed.stdout + closed.stderr
        assert client.reach_tcp(server.v4, 9090) is Reach.SILENT
        assert client.reach_tcp(server.v4, 9091) is Reach.SILENT
        again = alice.client(client, "close", "site", "tcp/9090", check=False)
        assert again.returncode == 1
        assert "nothing was open at tcp/9090" in again.stderr
