"""The backstop: what stands behind the gate when somebody takes the gate away."""

import os
from ipaddress import IPv4Network, IPv6Network

import pytest

from integration.gate import ONLY_THIS_HOST, address, both_families, hole, lease, reach
from integration.lab import Host, Reach, Service, echoes
from spa_protocol.access import Access, Protocol
from spa_server.firewall import backstop
from spa_server.firewall.backstop import Standing
from spa_server.firewall.gate import JUDGED_PRIORITY
from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.firewall.plan import AlwaysOpen, GatePlan, Observed
from spa_server.netlink import NETLINK_NETFILTER, NetlinkSocket

LISTED = """\
	chain backstop {
		type filter hook prerouting priority mangle + 1; policy accept;
		iif "lo" accept
		meta l4proto != tcp meta l4proto != udp meta l4proto != sctp meta l4proto != dccp \
meta l4proto != udplite accept
		meta priority 5350:0 meta priority set none accept
		ct state established tcp flags != syn / syn,ack ct label != 126 / 126,127 accept
		ct state established tcp flags != syn / syn,ack ct direction reply \
ct label & 125 != 125 accept
		ct state established meta l4proto tcp ct direction reply ct label & 125 != 125 \
ct status ! assured accept
		ct state established meta l4proto udp accept
		ct state established meta l4proto sctp ct original proto-dst != 0 @th,96,8 != 0x1 \
@th,96,8 != 0xa ct label != 126 / 126,127 accept
		ct state established meta l4proto sctp ct original proto-dst != 0 @th,96,8 != 0x1 \
ct direction reply accept
		ct state established meta l4proto != tcp meta l4proto != udp meta l4proto != sctp \
ct original proto-dst != 0x0 [invalid type] accept
		iifname != "lan" iifname != "wan" fib daddr type != local fib daddr type != broadcast \
fib daddr type != anycast fib daddr type != multicast accept
		udp sport 67 udp dport 68 fib daddr type local accept
		udp sport 67 udp dport 68 fib daddr type broadcast accept
		meta nfproto ipv6 udp sport 547 udp dport 546 @nh,64,16 & 0xffc0 == 0xfe80 \
@nh,192,16 & 0xffc0 == 0xfe80 accept
		ip saddr 10.9.0.0/16 tcp dport 80-90 accept
		meta nfproto ipv6 udp dport 53-53 accept
		sctp dport 7-9 accept
		counter packets 0 bytes 0 drop
	}
"""

TAKEN_AWAY = (
    "delete table inet spa",
    "flush ruleset",
    "flush table inet spa",
    "add table inet spa { flags dormant; }",
    "flush chain inet spa gate",
    "flush chain inet spa judge",
    "flush chain inet spa deny",
    "insert rule inet spa gate accept",
    "insert rule inet spa judge accept",
)


def listed(server: Host) -> str:
    """The chain, as nft lists it."""
    text = server.run(["nft", "list", "table", "inet", backstop.TABLE]).stdout
    return text[text.index("\tchain") : text.rindex("}")]


def test_what_is_encoded_is_what_nft_lists(gate: Gate, server: Host) -> None:
    """nft is the oracle: it decodes each rule on its own."""
    gate.apply(
        GatePlan(
            outer=("lan", "wan"),
            always_open=(
                AlwaysOpen(IPv4Network("10.9.0.0/16"), Access(Protocol.TCP, 80, 90)),
                AlwaysOpen(IPv6Network("::/0"), Access(Protocol.UDP, 53, 53)),
            ),
            observed=Observed(accesses=(Access(Protocol.SCTP, 7, 9),)),
        )
    )
    assert gate.backstop.trouble is None
    assert listed(server) == LISTED
    gate.apply(GatePlan(outer=None))
    assert "fib daddr type != local" not in listed(server)
    gate.apply(ONLY_THIS_HOST)
    assert "iifname" not in listed(server)


@pytest.mark.parametrize("command", TAKEN_AWAY)
def test_with_the_gate_taken_away_nobody_new_gets_in_and_nobody_is_put_out(
    gate: Gate, server: Host, client: Host, stranger: Host, service: Service, command: str
) -> None:
    gate.open([lease(hole(client.v4, server.v4, service.port))])
    with client.connection(server.v4, service.port) as session:
        assert echoes(session)
        server.run(["nft", command])
        assert echoes(session)
        for protocol in (Protocol.TCP, Protocol.UDP):
            for family in (4, 6):
                to = address(server, family)
                assert reach(stranger, to, service.port, protocol) is Reach.SILENT
        gate.apply(ONLY_THIS_HOST)
        gate.open([lease(hole(client.v4, server.v4, service.port))])
        assert echoes(session)
    assert client.reach_tcp(server.v4, service.port) is Reach.OPEN


@both_families
def test_what_needs_no_hole_needs_none_without_the_gate(
    gate: Gate, server: Host, stranger: Host, service: Service, family: int
) -> None:
    """A public service does not go down with the gate, and with the gate `cut` is no matter."""
    access = Access(Protocol.TCP, service.port, service.port)
    everywhere = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    to = address(server, family)
    for plan in (
        GatePlan(outer=(), always_open=tuple(AlwaysOpen(each, access) for each in everywhere)),
        GatePlan(
            outer=(),
            cut=(access,),
            always_open=tuple(AlwaysOpen(each, access) for each in everywhere),
        ),
        GatePlan(outer=(), observed=Observed(accesses=(access,))),
    ):
        gate.apply(plan)
        assert stranger.reach_tcp(to, service.port) is Reach.OPEN, plan
        assert stranger.reach_udp(to, service.port) is Reach.SILENT
        server.run(["nft", "delete", "table", "inet", "spa"])
        assert stranger.reach_tcp(to, service.port) is Reach.OPEN, plan
        assert stranger.reach_udp(to, service.port) is Reach.SILENT


@pytest.mark.usefixtures("gate")
def test_the_host_s_own_connections_need_no_gate(server: Host, client: Host, port: int) -> None:
    served = client.serve(port)
    server.run(["nft", "delete", "table", "inet", "spa"])
    assert server.reach_tcp(client.v4, port) is Reach.OPEN
    assert server.reach_udp(client.v6, port) is Reach.OPEN
    served.stop()


def test_the_mark_is_seen_by_nobody_behind_the_backstop(
    gate: Gate, server: Host, client: Host, service: Service
) -> None:
    """And is good for nothing when it comes from outside: a priority does not travel."""
    server.run(
        ["nft", "-f", "-"],
        text=f"""
        table inet later {{
          counter marked {{ }}
          counter seen {{ }}
          chain c {{
            type filter hook prerouting priority -140;
            tcp dport {service.port} counter name seen
            meta priority {JUDGED_PRIORITY >> 16:x}:0 counter name marked
          }}
        }}""",
    )
    gate.open([lease(hole(client.v4, server.v4, service.port))])
    assert client.reach_tcp(server.v4, service.port) is Reach.OPEN
    counters = server.run(["nft", "list", "counters", "table", "inet", "later"]).stdout
    marked, seen = counters.split("counter seen")
    assert "packets 0 bytes 0" in marked
    assert "packets 0 bytes 0" not in seen
    server.run(["nft", "delete", "table", "inet", "later"])


def test_nobody_takes_it_away_and_the_next_daemon_adopts_it(
    server: Host, client: Host, stranger: Host, service: Service
) -> None:
    access = Access(Protocol.TCP, service.port, service.port)
    with server.inside():
        first, second = Gate(), Gate()
        first.apply(ONLY_THIS_HOST)
        assert first.backstop.is_own
        for command in ("delete table", "flush table", "add chain", "destroy table"):
            tail = " { }" if "chain" in command else ""
            more = " mine" if "chain" in command else ""
            asked = f"{command} inet {backstop.TABLE}{more}{tail}"
            assert server.run(["nft", asked], check=False).returncode != 0, command
        second.apply(ONLY_THIS_HOST)
        assert second.backstop.trouble == "Operation not permitted"
        assert not second.backstop.is_own

        first.release()
        assert second.backstop.standing is Standing.ORPHANED
        server.run(["nft", "delete", "table", "inet", "spa"])
        assert stranger.reach_tcp(server.v4, service.port) is Reach.SILENT
        second.apply(
            GatePlan(outer=(), always_open=(AlwaysOpen(IPv4Network(f"{client.v4}/32"), access),))
        )
        assert second.backstop.trouble is None
        assert second.backstop.is_own
        server.run(["nft", "flush", "ruleset"])
        assert client.reach_tcp(server.v4, service.port) is Reach.OPEN
        assert stranger.reach_tcp(server.v4, service.port) is Reach.SILENT
        second.remove()
        assert second.backstop.standing is Standing.ABSENT
        assert stranger.reach_tcp(server.v4, service.port) is Reach.OPEN
        second.release()


def test_one_that_nobody_owns_is_replaced(gate: Gate, server: Host) -> None:
    """Somebody made a table of that name, so that ours could not be made."""
    gate.backstop.remove()
    server.run(["nft", f"add table inet {backstop.TABLE}"])
    gate.apply(ONLY_THIS_HOST)
    assert gate.backstop.trouble is None
    assert gate.backstop.is_own
    assert "counter" in listed(server)


def test_where_nothing_is_denied_there_is_none(
    gate: Gate, server: Host, stranger: Host, service: Service
) -> None:
    """A gate that only looks on, and one that is put back as an older release listed it."""
    old = gate.ruleset().replace("\t\tmeta priority set 5350:0\n", "")
    old = old.replace("\t\tmeta priority set none\n", "")
    assert "priority set 5350:0" not in old
    gate.apply(GatePlan(outer=(), observed=Observed(everything=True)))
    assert gate.backstop.standing is Standing.ABSENT
    assert "observes" in gate.backstop.absence
    gate.apply(ONLY_THIS_HOST)
    assert gate.backstop.is_own
    gate.restore(old)
    assert gate.backstop.standing is Standing.ABSENT
    gate.open([lease(hole(stranger.v4, server.v4, service.port))])
    assert stranger.reach_tcp(server.v4, service.port) is Reach.OPEN


@pytest.mark.parametrize(
    ("known", "stays"), [(backstop.OWNER, False), (0x40, None)], ids=["owner only", "neither"]
)
def test_an_older_kernel(
    gate: Gate,
    server: Host,
    client: Host,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    known: int,
    stays: bool | None,
) -> None:
    """Played by flags that this kernel does not know either: it refuses them as an older one does
    those of ours. The gate is what it was before there was a backstop."""
    gate.backstop.remove()
    monkeypatch.setattr(backstop, "PERSIST", 0x40)
    monkeypatch.setattr(backstop, "OWNER", known)
    gate.apply(ONLY_THIS_HOST)
    assert gate.backstop.trouble is None
    gate.open([lease(hole(client.v4, server.v4, service.port))])
    assert client.reach_tcp(server.v4, service.port) is Reach.OPEN
    if stays is None:
        assert gate.backstop.standing is Standing.ABSENT
        assert "this kernel" in gate.backstop.absence
    else:
        assert gate.backstop.is_own


@pytest.mark.usefixtures("gate")
def test_removal_says_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, here. Nothing is killed where that was not asked for."""
    monkeypatch.setattr(backstop, "_LETS_GO_WITHIN_S", 0.1)
    with Gate() as another, pytest.raises(FirewallError, match=f"process {os.getpid()} holds it"):
        another.remove()


def test_who_holds_a_socket_that_nobody_has() -> None:
    with NetlinkSocket(NETLINK_NETFILTER) as opened:
        port = opened.port
        assert backstop.holder(port) is not None
    assert backstop.holder(port) is None
