"""The gate of a host that forwards: what enters from outside, and where outside is."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from integration.gate import SECOND, hole, lease
from integration.lab import Host, Lab, Reach, Service, echoes
from spa_protocol.access import Access, Protocol
from spa_server.firewall import routes
from spa_server.firewall.kernel import Gate
from spa_server.firewall.plan import GatePlan


@dataclass(frozen=True, slots=True)
class Published:
    """A host with a container behind it, whose port 80 it publishes as 8080."""

    outside: Host
    server: Host
    container: Host
    inner: Service
    elsewhere: Service


PUBLISHING = """
table inet nat { }
delete table inet nat
table inet nat {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    iifname wan tcp dport 8080 dnat ip to 10.77.2.2:80
  }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    oifname wan masquerade
  }
}
"""


@pytest.fixture(scope="module")
def published() -> Iterator[Published]:
    with Lab() as lab:
        outside = lab.host("outside", "wan")
        server = lab.host("server", "wan", "inner")
        container = lab.host("container", "inner")
        server.forward()
        server.default_route(outside, "wan")
        container.default_route(server, "inner")
        outside.add_route("10.77.2.0/24", server.v4)
        outside.add_route("fd77:2::/64", server.v6)
        server.run(["nft", "-f", "-"], text=PUBLISHING)
        yield Published(outside, server, container, container.serve(80), outside.serve(5432))


def test_forwarded_traffic_is_judged_where_it_enters_from_outside(published: Published) -> None:
    outside, server, container = published.outside, published.server, published.container
    with server.inside(), Gate() as gate:
        assert outside.reach_tcp(server.v4, 8080) is Reach.OPEN
        assert outside.reach_tcp(container.v4, 80) is Reach.OPEN

        assert routes.outer_interfaces() == ("wan",)
        cut = (Access(Protocol.TCP, 5432, 5432),)
        gate.apply(GatePlan(outer=routes.outer_interfaces(), cut=cut))
        assert outside.reach_tcp(server.v4, 8080) is Reach.SILENT
        for target in (container.v4, container.v6):
            assert outside.reach_tcp(target, 80) is Reach.SILENT
            assert outside.reach_udp(target, 80) is Reach.SILENT
        for target in (outside.v4, outside.v6):
            assert container.reach_tcp(target, 5432) is Reach.OPEN
            assert container.reach_udp(target, 5432) is Reach.OPEN
        assert container.reach_tcp(server.on("inner").v4, 80) is Reach.SILENT

        gate.open([lease(hole(outside.v4, server.v4, 8080))])
        assert outside.reach_tcp(server.v4, 8080) is Reach.OPEN
        assert outside.reach_tcp(container.v4, 80) is Reach.SILENT
        gate.remove()


def test_a_published_port_can_be_cut(published: Published) -> None:
    outside, server = published.outside, published.server
    own = hole(outside.v4, server.v4, 8080)
    with server.inside(), Gate() as gate:
        gate.apply(GatePlan(outer=("wan",), cut=(Access(Protocol.TCP, 8080, 8080),)))
        gate.open([lease(own)])
        with outside.connection(server.v4, 8080) as session:
            assert echoes(session)
            gate.close([own])
            assert not echoes(session)
        gate.remove()


def test_what_a_container_says_of_a_session_that_conntrack_forgot_lets_nothing_in(
    published: Published,
) -> None:
    """Nor does it keep new connections of the container's own from being answered."""
    outside, server, container = published.outside, published.server, published.container
    own = hole(outside.v4, container.v4, 7777)
    with (
        server.inside(),
        Gate() as gate,
        container.new_socket(socket.AF_INET, socket.SOCK_STREAM) as listening,
    ):
        server.run(["nft", "flush chain inet nat postrouting"])  # it would be another's session
        gate.apply(GatePlan(outer=("wan",)))
        gate.open([lease(own)])
        listening.bind(("", 7777))
        listening.listen()
        with outside.connection(container.v4, 7777) as session:
            accepted, _ = listening.accept()
            accepted.settimeout(0.5)
            session.send(b"let in")
            assert accepted.recv(64)
            gate.close([own])
            server.run(["conntrack", "-F"])
            accepted.send(b"the container speaks")
            time.sleep(0.1)
            session.send(b"unseen")
            with pytest.raises(TimeoutError):
                accepted.recv(64)
            assert container.reach_tcp(outside.v4, 5432) is Reach.OPEN
            accepted.close()
        server.run(["nft", "-f", "-"], text=PUBLISHING)
        gate.remove()


def test_without_a_default_route_all_forwarded_traffic_is_judged(published: Published) -> None:
    outside, server, container = published.outside, published.server, published.container
    with server.inside(), Gate() as gate:
        gate.apply(GatePlan(outer=None))
        assert container.reach_tcp(outside.v4, 5432) is Reach.SILENT
        assert outside.reach_tcp(container.v4, 80) is Reach.SILENT
        gate.apply(GatePlan(outer=()))
        assert container.reach_tcp(outside.v4, 5432) is Reach.OPEN
        assert outside.reach_tcp(container.v4, 80) is Reach.OPEN
        assert outside.reach_tcp(server.v4, 8080) is Reach.SILENT
        gate.remove()


@pytest.mark.usefixtures("second_addresses")
def test_routes_name_the_outer_interfaces_and_the_hosts_own_addresses(
    server: Host, client: Host
) -> None:
    with server.inside(), routes.RouteWatch() as watch:
        assert routes.outer_interfaces() is None
        assert not watch.read()
        server.add_route("10.99.0.0/16", client.v4)
        assert not watch.read()
        server.default_route(client)
        assert watch.read()
        assert routes.outer_interfaces() == ("lan",)
        for family in ("-4", "-6"):
            server.run(["ip", family, "route", "delete", "default"])
        assert watch.read()
        own = (server.v4, server.v4 + SECOND, server.v6, ip_address("127.0.0.1"))
        assert all(map(routes.is_local_unicast, own))
        others = (
            "10.77.1.255",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "8.8.8.8",
            "2001:db8::1",
        )
        assert not any(routes.is_local_unicast(ip_address(each)) for each in others)
        assert not routes.is_local_unicast(client.v4)
