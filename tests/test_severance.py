"""Whose connections end with whose grants (spa_server/severance.py).

No socket of this machine has these addresses, so what ends is what the kernel is to stop.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace
from scapy.layers.inet import IP, TCP, UDP

from spa_protocol.access import Access
from spa_server.audit.record import Event, Record
from spa_server.capture.nflog import NflogPacket
from spa_server.connections import ConnectionLog
from spa_server.ctentry import key_of
from spa_server.firewall.kernel import FirewallError
from spa_server.flow import Flow, parse_flow
from spa_server.grants import Grant, GrantBook
from spa_server.policy.model import Sessions
from spa_server.severance import Severance
from tests.test_grants import BASE
from tests.world import NOW_US

ALICE = replace(BASE, grant_id=1, key_id="key-a", sessions=Sessions.CUT)
SECOND_KEY = replace(ALICE, grant_id=2, key_id="key-a2")
BOB = replace(ALICE, grant_id=3, key_id="key-b", identity="bob")
RENEWED = replace(ALICE, grant_id=4)


@dataclass
class Kernel:
    """The flows that are stopped; it can be told to fail."""

    flows: set[Flow] = field(default_factory=set)
    fails: bool = False

    def _may(self) -> None:
        if self.fails:
            raise FirewallError("no such table")

    def stop_flows(self, flows: Iterable[Flow]) -> None:
        self._may()
        self.flows |= set(flows)

    def release_flows(self, flows: Iterable[Flow]) -> None:
        self._may()
        self.flows -= set(flows)

    def stopped_flows(self) -> list[Flow]:
        self._may()
        return list(self.flows)


class Host:
    def __init__(self, kernel: Kernel | None = None, *, is_cut: bool = False) -> None:
        self.kernel = kernel or Kernel()
        self.book = GrantBook()
        self.log = ConnectionLog(self.book.holders)
        self.log.ends.is_complete = True
        self.may_cut = True
        self.successors: dict[str, list[str]] = {}
        self.severance = Severance(
            self.log.ends,
            self.book.holders,
            self.kernel,
            successors=lambda key_id: self.successors.get(key_id, []),
            is_cut=lambda _hole: is_cut,
            may_cut=lambda _hole: self.may_cut,
        )

    def grant(self, *grants: Grant) -> None:
        self.book.add(grants)
        self.severance.opened(grants)

    def end(self, *grants: Grant) -> list[Record]:
        self.severance.before_end()
        self.book.end(grants)
        return self.severance.ended(grants, NOW_US, "closed")

    def connect(self, source_port: int, *, udp: bool = False) -> Flow:
        layer = (UDP if udp else TCP)(sport=source_port, dport=22)
        packet = bytes(IP(src="10.0.0.9", dst="10.0.0.1") / layer)
        self.log.permitted([NflogPacket("permit", packet, 1)], NOW_US)
        flow = parse_flow(packet)
        assert flow is not None
        return flow


@pytest.mark.parametrize("ends", [ALICE, BOB])
def test_what_may_have_been_either_s_ends_with_the_first_of_them(ends: Grant) -> None:
    host = Host()
    host.grant(ALICE, BOB)
    flow = host.connect(1)
    [record] = host.end(ends)
    assert host.kernel.flows == {flow}
    assert (record.event, record.identity, record.reason) == (
        Event.CONNECTION_SEVERED,
        "alice, bob",
        "closed",
    )
    assert record.detail["ambiguous"] == ["alice", "bob"]
    assert (record.detail["count"], record.detail["source_port"]) == (1, 1)


def test_nobody_s_hole_protects_what_another_began() -> None:
    host = Host()
    host.grant(ALICE)
    hers = host.connect(1)
    host.grant(BOB)
    [record] = host.end(ALICE)
    assert (record.identity, host.kernel.flows) == ("alice", {hers})
    host.connect(2)
    assert host.kernel.flows == {hers}
    assert host.end(RENEWED) == []


def test_the_end_of_a_grant_leaves_what_others_began() -> None:
    host = Host()
    host.grant(BOB)
    host.connect(1)
    host.grant(ALICE)
    assert host.end(ALICE) == []
    assert host.kernel.flows == set()


def test_of_two_keys_of_a_person_either_may_have_begun_it() -> None:
    host = Host()
    host.grant(ALICE, SECOND_KEY)
    flow = host.connect(1)
    [record] = host.end(ALICE)
    assert (record.identity, record.key_id) == ("alice", "key-a2")
    assert host.kernel.flows == {flow}


def test_of_a_key_that_was_replaced_the_one_counts_that_stands_for_it() -> None:
    host = Host()
    host.grant(ALICE, BOB)
    flow = host.connect(1)
    third = replace(ALICE, grant_id=5, key_id="key-a3")
    host.successors = {"key-a": ["key-a2", "key-a3"], "key-a2": ["key-a3"]}
    host.grant(third)
    assert host.end(ALICE) == []
    host.successors = {"key-a2": ["key-a3"]}
    [record] = host.severance.disowned({"key-a", "key-a2"}, NOW_US)
    assert (record.identity, record.reason) == ("alice, bob", "the key was revoked")
    assert host.kernel.flows == {flow}


def test_a_grant_that_the_same_key_renewed_ends_nothing() -> None:
    host = Host()
    host.grant(ALICE)
    host.connect(1)
    host.grant(RENEWED)
    assert host.end(ALICE) == []
    host.end(RENEWED)
    assert len(host.kernel.flows) == 1


def test_kept_sessions_outlive_their_grants_unless_the_policy_cuts_them_by_now() -> None:
    for is_cut, stopped in ((False, 0), (True, 1)):
        host = Host(is_cut=is_cut)
        kept = replace(ALICE, sessions=Sessions.KEEP)
        host.grant(kept)
        host.connect(1)
        assert len(host.end(kept)) == stopped
        assert len(host.kernel.flows) == stopped


def test_nothing_is_cut_where_the_gate_observes() -> None:
    host = Host()
    host.may_cut = False
    host.grant(ALICE)
    host.connect(1)
    assert host.end(ALICE) == []
    assert host.kernel.flows == set()


def test_it_goes_on_when_all_who_may_have_begun_it_are_back() -> None:
    host = Host()
    host.grant(ALICE, BOB)
    flow = host.connect(1, udp=False)
    host.end(ALICE, BOB)
    host.grant(replace(BOB, grant_id=5))
    assert host.kernel.flows == {flow}
    host.grant(RENEWED)
    assert host.kernel.flows == set()


def test_what_an_operator_has_cut_does_not_go_on() -> None:
    host = Host()
    host.grant(replace(ALICE, sessions=Sessions.KEEP))
    flow = host.connect(1)
    chosen = {key_of(flow): host.log.live.at(key_of(flow))[-1]}
    [record] = host.severance.cut(chosen, NOW_US, "cut by the operator")
    assert (record.identity, record.reason) == ("alice", "cut by the operator")
    host.grant(RENEWED)
    assert host.kernel.flows == {flow}


def test_udp_is_judged_anew_once_it_has_ended_and_tcp_stays_stopped() -> None:
    host = Host()
    udp = replace(ALICE, access=Access.parse("udp/22"), grant_id=6)
    host.grant(ALICE, udp)
    tcp_flow, udp_flow = host.connect(1), host.connect(2, udp=True)
    host.end(ALICE, udp)
    assert host.kernel.flows == {tcp_flow, udp_flow}
    host.severance.forget_gone()
    assert host.kernel.flows == {tcp_flow, udp_flow}
    for flow in (tcp_flow, udp_flow):
        host.log.live.take(key_of(flow), None)
    host.severance.forget_gone()
    assert host.kernel.flows == {tcp_flow}


def test_many_of_one_grant_are_one_line() -> None:
    host = Host()
    host.grant(ALICE)
    for source_port in range(1, 6):
        host.connect(source_port)
    [record] = host.end(ALICE)
    assert record.detail["count"] == 5
    assert "source_port" not in record.detail


def test_a_kernel_that_cannot_be_told_is_told_later() -> None:
    host = Host()
    host.grant(ALICE)
    flow = host.connect(1)
    host.kernel.fails = True
    host.end(ALICE)
    assert host.severance.in_doubt
    host.kernel.fails = False
    host.severance.restore()
    assert (host.severance.in_doubt, host.kernel.flows) == (False, {flow})


class TestAfterARestart:
    @pytest.fixture
    def host(self) -> Host:
        """The book has bob's grant; alice's ended meanwhile."""
        host = Host()
        host.grant(ALICE, BOB)
        self.shared = host.connect(1)
        host.book.end([ALICE])
        self.bobs = host.connect(2)
        return host

    def test_what_may_not_go_on_is_found(self, host: Host) -> None:
        [records] = [some for some in host.severance.review(lambda: NOW_US) if some]
        assert [record.identity for record in records] == ["alice, bob"]
        assert host.kernel.flows == {self.shared}

    def test_what_was_stopped_stays_so(self, host: Host) -> None:
        """Also what an operator has cut; of what is over nothing is known but the flow."""
        over = [Flow(self.bobs.source, 9, self.bobs.target, number, 22) for number in (6, 17)]
        host.kernel.flows = {self.shared, self.bobs, *over}
        assert [some for some in host.severance.review(lambda: NOW_US) if some] == []
        assert host.kernel.flows == {self.shared, self.bobs, over[0]}
        host.grant(replace(BOB, grant_id=5))
        assert host.kernel.flows == {self.shared, self.bobs, over[0]}
        host.grant(RENEWED)
        assert host.kernel.flows == {self.bobs, over[0]}


def test_what_was_cut_once_is_not_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conntrack remembers a connection whose socket was destroyed for some seconds more."""
    host = Host()
    host.grant(ALICE, BOB)
    flow = host.connect(1)
    monkeypatch.setattr("spa_server.severance.sessions.sever", lambda *_: [flow])
    assert len(host.end(ALICE)) == 1
    monkeypatch.setattr("spa_server.severance.sessions.sever", lambda *_: [])
    assert host.severance.is_severed(*next(iter(host.log.live.through(next(BOB.holes)))))
    assert host.end(BOB) == []
    assert host.kernel.flows == set()


def test_what_is_unknown_ends_with_any_grant_of_its_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the record of an earlier run is still being read, and somebody holds the hole."""
    host = Host()
    host.grant(ALICE, BOB)
    unknown = Flow(ALICE.source, 7, ALICE.target, 6, 22)
    monkeypatch.setattr(
        "spa_server.severance.sessions.sever",
        lambda _holes, may_live: [] if may_live(unknown) else [unknown],
    )
    host.log.ends.is_complete = False
    assert host.end(ALICE) == []
    host.log.ends.is_complete = True
    [[record]] = [some for some in host.severance.review(lambda: NOW_US) if some]
    assert (record.identity, record.detail) == ("alice", {"count": 1})
    assert [record.identity for record in host.end(BOB)] == ["bob"]
