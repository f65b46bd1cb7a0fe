"""Addresses that only a rule of policy routing makes this host's own (AnyIP).

The kernel's `fib daddr type` looks at the local table alone, and calls them another's.
"""

import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from integration.gate import Log, address, both_families, hole, lease, ports
from integration.lab import Host, Reach, Service
from spa_protocol.access import Protocol
from spa_server.firewall.kernel import Gate

ANY = {4: ("198.51.100.7", "198.51.100.0/24"), 6: ("2001:db8:77::7", "2001:db8:77::/64")}
TABLE = 77


@pytest.fixture(params=["iif lan", "from {client}", "fwmark 7", "from all"])
def rule(request: pytest.FixtureRequest, server: Host, client: Host) -> Iterator[str]:
    """By which a host takes packets to others' addresses for its own."""
    marking = "add table inet marking\n"
    marking += "add chain inet marking each { type filter hook prerouting priority mangle; }\n"
    marking += "add rule inet marking each meta l4proto { tcp, udp } meta mark set 7\n"
    server.run(["nft", "-f", "-"], text=marking)
    rules = []
    for family, (_, prefix) in ANY.items():
        chosen = request.param.format(client=address(client, family))
        rules.append(f"ip -{family} rule {{}} {chosen} lookup {TABLE} pref 50")
        server.run(f"ip -{family} route add local {prefix} dev lo table {TABLE}".split())
        client.add_route(prefix, address(server, family))
    for each in rules:
        server.run(each.format("add").split())
    yield request.param
    for each in rules:
        server.run(each.format("del").split())
    server.run(["nft", "delete", "table", "inet", "marking"])
    for family, (_, prefix) in ANY.items():
        server.run(f"ip -{family} route flush table {TABLE}".split())
        client.run(f"ip -{family} route del {prefix}".split())


@both_families
@pytest.mark.usefixtures("rule")
def test_what_is_delivered_here_is_judged_however_it_was_routed(
    gate: Gate, client: Host, service: Service, family: int
) -> None:
    target = ip_address(ANY[family][0])
    with Log(623) as log:
        client.reach_udp(target, service.port, b"closed")
        assert client.reach_tcp(target, service.port) is Reach.SILENT
        assert log.prefixes(1.2) == ["deny", "deny"]
    assert (service.received, service.connections) == ([], 0)
    gate.open([lease(hole(address(client, family), target, service.port, Protocol.UDP))])
    client.reach_udp(target, service.port, b"open")
    assert service.received == [b"open"]
    gate.remove()
    client.reach_udp(target, service.port, b"no gate")
    assert service.received == [b"open", b"no gate"], "the rule delivers to this host"


def test_a_redirection_that_is_not_judged_is_not_judged_when_it_is_delivered(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """A transparent proxy for an inner network: what it takes was to be forwarded."""
    assert gate.is_loaded()
    elsewhere = ip_address("198.51.100.9")
    redirect = "add table ip proxy\n"
    redirect += "add chain ip proxy each { type nat hook prerouting priority dstnat; }\n"
    asked = next(ports)
    redirect += f"add rule ip proxy each ip daddr {elsewhere} udp dport {asked} "
    redirect += f"redirect to :{service.port}\n"
    server.run(["nft", "-f", "-"], text=redirect)
    client.add_route(f"{elsewhere}/32", server.v4)
    client.reach_udp(elsewhere, asked, b"by the proxy")
    client.reach_udp(server.v4, service.port, b"not by it")
    time.sleep(0.1)
    assert service.received == [b"by the proxy"]
    server.run(["nft", "delete", "table", "ip", "proxy"])
