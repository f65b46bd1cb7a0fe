"""Holes for link-local addresses: each is on the one link by which its knock came."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address

import pytest

from integration.attacks import link_local
from integration.attacks.link_local import HERS, THE_HOSTS, only_address, talks
from integration.lab import Host, Lab, wait_until
from integration.site import Person, Site

STREAM = socket.SOCK_STREAM


@dataclass(frozen=True, slots=True)
class Links:
    """Alice on `lan`, a stranger with her address on `yard`, and the host on both."""

    site: Site
    alice: Person
    client: Host
    stranger: Host

    def knock(self, *arguments: str) -> None:
        """Alice knocks on her link."""
        self.alice.knock_at(self.client, IPv6Address(f"{THE_HOSTS}%lan"), *arguments)

    def close(self, *accesses: str) -> None:
        """Alice closes there what she opened."""
        name = self.alice.name_of(IPv6Address(f"{THE_HOSTS}%lan"))
        self.alice.client(self.client, "close", name, *accesses)

    @property
    def index(self) -> int:
        """The host's index of alice's link."""
        with self.site.host.inside():
            return socket.if_nametoindex("lan")


@pytest.fixture(scope="module")
def links() -> Iterator[Links]:
    with Lab() as lab:
        server = lab.host("server", "lan", "yard")
        client, stranger = lab.host("client", "lan"), lab.host("stranger", "yard")
        for link in ("lan", "yard"):
            only_address(server, link, THE_HOSTS)
        only_address(client, "lan", HERS)
        only_address(stranger, "yard", HERS)
        site = Site(lab, server)
        alice = site.enrol("alice", "ops", "dba", "voter")
        site.apply_gate()
        site.start()
        for port in (22, 80, 5432, 7000):
            server.serve(port)
        yield Links(site, alice, client, stranger)


def test_nobody_uses_it_from_another_link(lab: Lab) -> None:
    assert [str(figure) for figure in link_local.run(lab) if not figure.holds] == []


def test_the_record_the_list_and_whois_name_the_link(links: Links) -> None:
    record = links.site.record_from_now()
    links.knock("tcp/22", "--lifetime", "30s")
    hers, ours = f"{HERS}%{links.index}", f"{THE_HOSTS}%{links.index}"
    (hole,) = links.site.holes()
    assert (hole["source"], hole["target"], hole["open"]) == (hers, ours, True)
    with links.client.new_socket(socket.AF_INET6, STREAM) as stream:
        with links.client.inside():
            stream.connect((str(THE_HOSTS), 22, 0, socket.if_nametoindex("lan")))
        record.line("connection.permitted", identity="alice", source=hers, target=ours)
        record.line("hole.used", identity="alice", source=hers)
        asked = f"[{HERS}]:{stream.getsockname()[1]}"
        assert "alice" in links.site.server("whois", asked).stdout
        stream.close()
    assert not talks(links.stranger, "yard", STREAM, 22)
    assert len(record.lines("connection.permitted")) == 1
    links.site.close_everything()
    assert not talks(links.client, "lan", STREAM, 22)


def test_a_new_daemon_takes_it_over_on_its_link_alone(links: Links) -> None:
    links.knock("tcp/22", "udp/80", "--lifetime", "1m")
    links.site.restart()
    assert [hole["open"] for hole in links.site.holes()] == [True, True]
    links.site.host.run(["nft", "flush", "ruleset"])
    wait_until(lambda: all(hole["open"] for hole in links.site.holes()), what="the holes again")
    assert not talks(links.stranger, "yard", STREAM, 22)
    assert talks(links.client, "lan", STREAM, 22)
    links.close("tcp/22", "udp/80")
    assert links.site.holes() == []


def test_a_cut_session_ends_with_its_hole_and_another_links_does_not(links: Links) -> None:
    """The stranger's session was there first: by a hole of his own, for the same addresses."""
    record = links.site.record_from_now()
    bob = links.site.enrol("bob", "dba")
    on_yard = IPv6Address(f"{THE_HOSTS}%yard")
    bob.knock_at(links.stranger, on_yard, "tcp/5432", "--lifetime", "1m")
    links.knock("tcp/5432", "--lifetime", "1m")
    sessions = []
    for host, link in ((links.stranger, "yard"), (links.client, "lan")):
        stream = host.new_socket(socket.AF_INET6, STREAM)
        with host.inside():
            stream.connect((str(THE_HOSTS), 5432, 0, socket.if_nametoindex(link)))
        sessions.append(stream)
    bobs, hers = sessions
    links.close("tcp/5432")
    record.line("connection.severed", identity="alice")
    assert not alive(hers)
    assert alive(bobs)
    links.site.close_everything()


def alive(stream: socket.socket) -> bool:
    stream.settimeout(0.5)
    with suppress(OSError):
        stream.send(b"there?")
        return stream.recv(64) == b"there?"
    return False


def test_a_hole_that_knows_no_link_lets_nobody_in(links: Links) -> None:
    """As a daemon of 0.1.0 may have left it in the kernel."""
    element = f"{HERS} . {THE_HOSTS} . tcp . 80 timeout 1m"
    add = f"add element inet spa holes6 {{ {element} }}"
    links.site.host.run(["nft", "-f", "-"], text=add)
    assert not talks(links.client, "lan", STREAM, 80)
