"""The gate changed while it works: in place, by us and by others."""

import sys
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from integration.gate import MINUTE_MS, ONLY_THIS_HOST, TAG, hole, lease
from integration.lab import Host, Service, echoes, wait_until
from spa_protocol.access import Access, Protocol
from spa_server.firewall.elements import TagLease
from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.firewall.plan import AlwaysOpen, GatePlan
from spa_server.firewall.watch import RulesetWatch

FLOOD = """
import socket, sys
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("flooding", flush=True)
while True:
    made.sendto(b"forbidden", (sys.argv[1], int(sys.argv[2])))
"""


def test_re_applying_lets_nothing_in_and_nobody_out(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service
) -> None:
    access = Access(Protocol.TCP, service.port, service.port)
    other = Access(Protocol.UDP, service.port + 500, service.port + 600)
    plans = (
        ONLY_THIS_HOST,
        GatePlan(outer=("lan",), cut=(access,)),
        GatePlan(
            outer=("lan",),
            cut=(other,),
            always_open=(AlwaysOpen(IPv4Network("10.9.0.0/16"), access),),
        ),
    )
    own = hole(client.v4, server.v4, service.port)
    gate.open([lease(own)])
    flood = stranger.start([sys.executable, "-c", FLOOD, str(server.v4), str(service.port)])
    flood.wait_for("flooding")
    with client.connection(server.v4, service.port) as session:
        assert echoes(session)
        for turn in range(100):
            gate.apply(plans[turn % len(plans)])
            if turn % 20 == 0:
                assert echoes(session)
        assert echoes(session)
    assert b"forbidden" not in service.received
    assert [live.hole for live in gate.live_holes()] == [own]
    (denied,) = [d for d in gate.denials() if (d.source, d.port) == (stranger.v4, service.port)]
    assert denied.packets > 1000
    assert denied.access == Access(Protocol.UDP, service.port, service.port)
    gate.remove()
    wait_until(lambda: b"forbidden" in service.received, what="the flood, with no gate")
    flood.stop()


def test_a_listing_brings_the_gate_back_in_place(
    gate: Gate, server: Host, client: Host, port: int
) -> None:
    own = hole(client.v4, server.v4, port)
    gate.apply(
        GatePlan(
            outer=("lan", "wan"),
            cut=(Access(Protocol.TCP, 7, 9), Access(Protocol.UDP, 7, 7)),
            always_open=(
                AlwaysOpen(IPv4Network("10.9.0.0/16"), Access(Protocol.TCP, 80, 90)),
                AlwaysOpen(IPv6Network("::/0"), Access(Protocol.TCP, 85, 85)),
            ),
        )
    )
    listed = gate.ruleset()
    gate.open([lease(own)])
    gate.apply(ONLY_THIS_HOST)
    assert gate.ruleset() != listed
    gate.restore(listed)
    assert gate.ruleset() == listed
    assert [live.hole for live in gate.live_holes()] == [own]


def test_the_watch_hears_others_and_not_ourselves(gate: Gate, server: Host, port: int) -> None:
    own = hole(server.v4, server.v4, port)
    with RulesetWatch(gate.port, gate.is_own_process) as watch:
        gate.apply(ONLY_THIS_HOST)
        gate.open([lease(own)])
        gate.admit([TagLease(TAG, MINUTE_MS)])
        gate.close([own])
        server.run(["nft", "add", "table", "inet", "of-somebody-else"])
        server.run(["nft", "add", "table", "ip", "spa"])
        assert not watch.read()
        for change in (
            "add element inet spa admitted { 0x1122334455667788 timeout 1m }",
            "insert rule inet spa deny accept",
            "flush chain inet spa gate",
            "add table inet spa { flags dormant; }",
            "delete table inet spa",
        ):
            server.run(["nft", change])
            assert watch.read(), change
            assert not watch.read()
            if "element" not in change:
                assert gate.is_loaded() is change.startswith("insert")
            gate.apply(ONLY_THIS_HOST)
            assert gate.is_loaded()
            assert not watch.read()
        server.run(["nft", "flush", "ruleset"])
        assert watch.read()


def test_what_the_kernel_refuses_is_an_error_and_changes_nothing(
    gate: Gate, server: Host, client: Host
) -> None:
    own, more = (hole(client.v4, server.v4, p) for p in (1, 2))
    with pytest.raises(ValueError, match="at least 1"):
        lease(own, 0)
    gate.remove()
    assert not gate.is_loaded()
    for act in (
        lambda: gate.open([lease(own)]),
        lambda: gate.admit([TagLease(TAG, 1)]),
        gate.live_holes,
        gate.counters,
        gate.ruleset,
    ):
        with pytest.raises(FirewallError):
            act()
    server.run(["nft", "-f", "-"], text="table inet spa { set holes4 { type ipv4_addr; }; }")
    with pytest.raises(FirewallError, match="nft: datatype mismatch"):
        gate.apply(ONLY_THIS_HOST)
    assert not gate.is_loaded()
    gate.remove()
    gate.apply(ONLY_THIS_HOST)
    server.run(["nft", "add element inet spa once4 { 10.0.0.0 . 10.0.0.0 . tcp . 1 timeout 1m }"])
    gate.open([lease(own), lease(more, 5000)])
    listed = server.run(["nft", "list", "set", "inet", "spa", "holes4"]).stdout
    assert f"{client.v4} . {server.v4} . tcp . 1 counter" in listed
    assert "timeout 1m" in listed
    assert "timeout 5s" in listed
    by_nft = hole(ip_address("10.0.0.0"), ip_address("10.0.0.0"), 1, once=True)
    assert {live.hole for live in gate.live_holes()} == {own, more, by_nft}
