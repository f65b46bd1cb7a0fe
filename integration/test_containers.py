"""Containers on a guarded host: what they publish is closed too, and they still reach out.

Docker is played by its own rules: a bridge with an address that the host routes to, DNAT for the
port that is published, masquerading for what goes out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from integration.lab import Address, Host, Lab, Reach, wait_until
from integration.site import Person, Site

PUBLISHED: Final = 8080
INSIDE: Final = 80
POLICY: Final = """
[services]
ssh = "tcp/22"
site = ["tcp/8080", "udp/8080"]
[roles.ops]
[[roles.ops.allow]]
services = ["ssh", "site"]
lifetime = "3s"
max_lifetime = "1h"
"""
DOCKER: Final = """
table {family} docker {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    fib daddr type local meta l4proto {{ tcp, udp }} th dport 8080 dnat to {to}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname "lan" masquerade
  }}
}}
"""

Of = Callable[[Host], Address]
both_families = pytest.mark.parametrize("of", [lambda h: h.v4, lambda h: h.v6], ids=["v4", "v6"])


@dataclass
class Scene:
    """A host with a container behind it, and on the outer segment a client and the internet."""

    site: Site
    server: Host
    container: Host
    client: Host
    internet: Host
    alice: Person

    def outer(self) -> str:
        """How the gate judges what is forwarded."""
        return self.server.run(["nft", "list", "chain", "inet", "spa", "gate"]).stdout

    def reaches_out(self, of: Of) -> bool:
        """Whether the container gets to the internet, by TCP and by UDP."""
        target = of(self.internet)
        tcp = self.container.reach_tcp(target, 443) is Reach.OPEN
        return tcp and self.container.reach_udp(target, 443) is Reach.OPEN


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server = lab.host("server", "lan", "docker")
        container = lab.host("container", "docker")
        client, internet = lab.host("client"), lab.host("internet")
        server.forward()
        container.default_route(server, "docker")
        for family, to in (("ip", container.v4), ("ip6", container.v6)):
            where = f"{to}:{INSIDE}" if family == "ip" else f"[{to}]:{INSIDE}"
            server.run(["nft", "-f", "-"], text=DOCKER.format(family=family, to=where))
        for address, prefix in ((server.v4, "10.77.2.0/24"), (server.v6, "fd77:2::/64")):
            client.add_route(prefix, address)
        container.serve(INSIDE)
        internet.serve(443)
        site = Site(lab, server, policy=POLICY)
        alice = site.enrol("alice", "ops")
        site.apply_gate()
        site.start()
        yield Scene(site, server, container, client, internet, alice)


def test_while_no_default_route_is_known_everything_forwarded_is_judged(scene: Scene) -> None:
    """Nobody can tell yet which side is the outer one, and closed is the safer mistake."""
    assert "iifname" not in scene.outer()
    assert scene.client.reach_tcp(scene.server.v4, PUBLISHED) is Reach.SILENT
    assert not scene.reaches_out(lambda host: host.v4)


def test_the_outer_interface_is_learnt_when_the_default_route_appears(scene: Scene) -> None:
    """The daemon is running already: a host that boots gets its routes late."""
    scene.server.default_route(scene.internet)
    wait_until(lambda: 'iifname "lan"' in scene.outer(), what="the gate to follow the route")
    assert "docker" not in scene.outer()
    assert scene.site.events("gate.applied")


@both_families
def test_the_container_reaches_out(scene: Scene, of: Of) -> None:
    assert scene.reaches_out(of)


@both_families
def test_a_published_port_is_closed_until_somebody_knocks_for_it(scene: Scene, of: Of) -> None:
    """The hole is at the address and port that were published, as its user knows them."""
    server, client, target = scene.server, scene.client, of(scene.server)
    for reach in (client.reach_tcp, client.reach_udp):
        assert reach(target, PUBLISHED) is Reach.SILENT
    scene.alice.knock_at(client, target, f"tcp/{PUBLISHED}", f"udp/{PUBLISHED}")
    assert {(h["source"], h["target"], h["access"]) for h in scene.site.holes()} == {
        (str(of(client)), str(target), f"tcp/{PUBLISHED}"),
        (str(of(client)), str(target), f"udp/{PUBLISHED}"),
    }
    for reach in (client.reach_tcp, client.reach_udp):
        assert reach(target, PUBLISHED) is Reach.OPEN
    assert scene.internet.reach_tcp(target, PUBLISHED) is Reach.SILENT
    assert client.reach_tcp(target, INSIDE) is Reach.SILENT
    assert client.reach_tcp(of(scene.container), INSIDE) is Reach.SILENT
    permitted = scene.site.events("connection.permitted")[-1]
    assert (permitted["identity"], permitted["target"]) == ("alice", str(target))
    wait_until(lambda: client.reach_tcp(target, PUBLISHED) is Reach.SILENT)
    assert server.reach_tcp(of(scene.container), INSIDE) is Reach.OPEN


@both_families
def test_the_container_s_own_address_cannot_be_reached_from_outside(scene: Scene, of: Of) -> None:
    """Somebody on the outer segment may well have a route to it; there is no hole on that way."""
    inside, client = of(scene.container), scene.client
    unpublished = scene.container.serve(81)
    for port in (81, 22):
        assert client.reach_tcp(inside, port) is Reach.SILENT
        assert client.reach_udp(inside, port) is Reach.SILENT
    assert (unpublished.connections, unpublished.received) == (0, [])
    unpublished.stop()
    denied = [(line["source"], line["access"]) for line in scene.site.events("connection.denied")]
    assert (str(of(client)), "tcp/81") in denied
    knock = scene.alice.knock_at(
        client, of(scene.server), "tcp/22", "--target", str(inside), check=False
    )
    assert knock.returncode == 1
    assert "the target is no address of this host; see also_addressed_as" in knock.stderr


def test_another_default_route_is_another_way_in(scene: Scene) -> None:
    """A second uplink comes and goes: the gate judges what enters by it while it is one."""
    scene.server.ip(f"route add default via {scene.container.v4} metric 500")
    wait_until(lambda: '"docker"' in scene.outer())
    assert scene.container.reach_tcp(scene.internet.v4, 443) is Reach.SILENT
    scene.server.ip(f"route delete default via {scene.container.v4}")
    wait_until(lambda: '"docker"' not in scene.outer())
    assert scene.reaches_out(lambda host: host.v4)
