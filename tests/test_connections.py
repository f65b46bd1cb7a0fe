"""Connections as the gate logs them: whose each one is (spa_server/connections.py)."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from spa_protocol.access import Access
from spa_server.audit.record import Event, Record
from spa_server.capture.nflog import NflogPacket
from spa_server.connections import ConnectionLog
from spa_server.flow import Flow, parse_flow
from spa_server.grants import Grant, GrantBook
from spa_server.liveconnections import LiveConnections
from spa_server.tally import INTERVAL_US, OF_ONE
from tests.test_grants import BASE
from tests.world import NOW_US


def logged(packet: Packet, prefix: str = "permit", size: int = 128) -> NflogPacket:
    """The packet as the kernel hands it over: cut after some bytes."""
    return NflogPacket(prefix, bytes(packet)[:size], 1)


SSH = IP(src="10.0.0.9", dst="10.0.0.1") / TCP(sport=40000, dport=22, flags="S")


@pytest.mark.parametrize(
    ("packet", "access"),
    [
        (SSH, "tcp/22"),
        (IP(options=b"\x01" * 8) / UDP(sport=40000, dport=53) / Raw(bytes(900)), "udp/53"),
        (IPv6() / TCP(sport=40000, dport=443), "tcp/443"),
        (IPv6() / UDP(sport=40000, dport=65535) / Raw(bytes(1200)), "udp/65535"),
        (IP() / SCTP(sport=40000, dport=5000), "sctp/5000"),
        (IP(proto=33) / Raw(b"\x9c\x40\x00\x07"), "dccp/7"),
        (IP(proto=136) / Raw(b"\x9c\x40\x00\x08"), "udplite/8"),
    ],
)
def test_a_flow_is_read_from_a_packet_that_was_cut_short(packet: Packet, access: str) -> None:
    flow = parse_flow(bytes(packet)[:100])
    assert flow is not None
    assert (flow.access, flow.source_port) == (access, 40000)


def test_what_has_no_ports_is_no_flow() -> None:
    for packet in (b"", b"\x45", bytes(SSH)[:22], bytes(IP(proto=1) / Raw(bytes(8)))):
        assert parse_flow(packet) is None


@given(st.binary(max_size=80))
def test_no_bytes_raise(packet: bytes) -> None:
    flow = parse_flow(packet)
    assert flow is None or isinstance(flow, Flow)


def log_of(*grants: Grant) -> ConnectionLog:
    book = GrantBook()
    book.add(grants)
    return ConnectionLog(book.holders)


def test_a_permitted_connection_leads_back_to_grant_key_person_and_rule() -> None:
    record, used = log_of(BASE).permitted([logged(SSH)], NOW_US)
    assert (record.event, used.event) == (Event.CONNECTION_PERMITTED, Event.HOLE_USED)
    for line in (record, used):
        assert (line.identity, line.key_id) == ("alice", "key")
        assert (line.rule, line.grant_id) == (BASE.rule, BASE.grant_id)
        assert (line.source, line.target, line.access) == ("10.0.0.9", "10.0.0.1", "tcp/22")
        assert line.detail["source_port"] == 40_000


def test_where_two_people_share_an_address_the_record_says_so() -> None:
    bob = replace(BASE, grant_id=2, identity="bob")
    record, *used = log_of(BASE, bob).permitted([logged(SSH)], NOW_US)
    assert record.identity == "alice, bob"
    assert record.detail["ambiguous"] == ["alice", "bob"]
    assert record.detail["grants"] == [1, 2]
    assert [(line.identity, line.grant_id) for line in used] == [("alice", 1), ("bob", 2)]
    assert all(line.detail["ambiguous"] == ["alice", "bob"] for line in used)


def test_a_connection_through_a_once_hole_has_a_name_too() -> None:
    record, _ = log_of(replace(BASE, once=True)).permitted([logged(SSH)], NOW_US)
    assert record.identity == "alice"


def test_a_connection_that_nobody_was_granted_has_none() -> None:
    other = replace(BASE, access=Access.parse("tcp/23"), source=ip_address("10.0.0.8"))
    [record] = log_of(other).permitted([logged(SSH)], NOW_US)
    assert record.identity is None


def grants_in(records: list[Record], event: Event) -> list[int | None]:
    return [record.grant_id for record in records if record.event is event]


def test_a_grant_is_used_once_and_so_is_the_one_that_renews_it() -> None:
    book = GrantBook()
    book.add([BASE])
    log = ConnectionLog(book.holders)
    records = log.permitted([logged(SSH)] * 3, NOW_US)
    book.add([replace(BASE, grant_id=2)])
    records += log.permitted([logged(SSH)] * 3, NOW_US)
    assert grants_in(records, Event.CONNECTION_PERMITTED) == [1, 1, 1, 2, 2, 2]
    assert grants_in(records, Event.HOLE_USED) == [1, 2]


def test_what_was_used_before_the_daemon_began_is_not_used_again() -> None:
    log = log_of(BASE)
    log.recall([BASE])
    assert grants_in(log.permitted([logged(SSH)], NOW_US), Event.HOLE_USED) == []


def test_a_once_hole_is_spent_before_an_ordinary_one_is_used() -> None:
    """One connection comes through it, however many grants have made it."""
    once = [replace(BASE, grant_id=number, once=True) for number in (2, 3)]
    records = log_of(BASE, *once).permitted([logged(SSH)] * 3, NOW_US)
    assert grants_in(records, Event.CONNECTION_PERMITTED) == [3, 1, 1]
    assert grants_in(records, Event.HOLE_USED) == [3, 1]


def test_no_grant_is_used_twice_however_many_are() -> None:
    """One that lasts while thousands come and go: those that are over are forgotten, it is not."""
    book = GrantBook()
    end_us = NOW_US + 10**12
    lasting = replace(BASE, access=Access.parse("tcp/23"), expires_at_us=end_us, ends_at_s=end_us)
    book.add([lasting])
    log = ConnectionLog(book.holders)
    other = IP(src="10.0.0.9", dst="10.0.0.1") / TCP(sport=40000, dport=23, flags="S")
    packets = [logged(SSH), logged(other)]
    records = []
    for number in range(2, 10_000):
        now_us = NOW_US + number * 30_000_000
        grant = replace(BASE, grant_id=number, expires_at_us=now_us, ends_at_s=float(now_us))
        book.add([grant])
        records += log.permitted(packets, now_us)
        book.expire(now_us)
    assert grants_in(records, Event.HOLE_USED) == [2, 1, *range(3, 10_000)]
    assert len(log._used) <= 8192  # what a daemon would keep for months


def test_whose_a_severed_session_was_is_known_when_nobody_holds_the_hole() -> None:
    book = GrantBook()
    book.add([BASE])
    log = ConnectionLog(book.holders)
    log.permitted([logged(SSH)], NOW_US)
    book.end([BASE])
    [record] = log.permitted([logged(SSH, "severed")], NOW_US)
    assert (record.event, record.identity) == (Event.CONNECTION_SEVERED, "alice")
    assert record.grant_id == BASE.grant_id


def test_more_connections_than_can_be_remembered_are_said() -> None:
    log = log_of(BASE)
    log.live = log.ends.live = LiveConnections(limit=2)
    records = log.permitted([logged(SSH)] * 5, NOW_US)
    assert len(grants_in(records, Event.CONNECTION_PERMITTED)) == 5
    assert grants_in(records, Event.CONNECTION_ENDED) == []
    assert (records[-1].event, records[-1].detail["count"]) == (Event.RECORDS_LOST, 3)
    assert "than can be remembered" in str(records[-1].reason)


def test_severed_is_told_from_permitted_by_the_rule_that_logged_it() -> None:
    [record] = log_of(BASE).permitted([logged(SSH, "severed")], NOW_US)
    assert (record.event, record.identity) == (Event.CONNECTION_SEVERED, "alice")


def test_denials_of_a_kind_are_written_once_and_counted() -> None:
    log = log_of()
    records = log.denied([logged(SSH, "deny")] * 30, NOW_US)
    assert [record.event for record in records] == [Event.CONNECTION_DENIED]
    [further] = log.further_denied(NOW_US)
    assert further.detail == {"further": 29}


def test_a_sprayed_denial_does_not_fill_the_record() -> None:
    log = log_of()
    spray = [
        logged(IP(src="10.9.9.9", dst="10.0.0.1") / TCP(sport=1, dport=port), "deny")
        for port in range(1, 1001)
    ]
    assert len(log.denied(spray, NOW_US)) == OF_ONE
    [further] = log.further_denied(NOW_US)
    assert further.detail == {"further": 1000 - OF_ONE}


def test_what_would_be_denied_is_told_from_what_is() -> None:
    log = log_of()
    records = log.denied([logged(SSH, "would-deny"), logged(SSH, "deny")] * 30, NOW_US)
    assert [record.event for record in records] == [
        Event.CONNECTION_WOULD_DENY,
        Event.CONNECTION_DENIED,
    ]
    assert (records[0].source, records[0].target, records[0].access) == (
        "10.0.0.9",
        "10.0.0.1",
        "tcp/22",
    )
    further = {record.event: record.detail for record in log.further_denied(NOW_US)}
    assert further == {
        Event.CONNECTION_WOULD_DENY: {"further": 29},
        Event.CONNECTION_DENIED: {"further": 29},
    }
    assert log.further_denied(NOW_US) == []


def test_a_spray_of_denials_does_not_hide_what_would_be_denied() -> None:
    log = log_of()
    spray = [
        logged(IP(src="10.9.9.9", dst="10.0.0.1") / TCP(sport=1, dport=port), "deny")
        for port in range(1, 1001)
    ]
    log.denied(spray, NOW_US)
    [record] = log.denied([logged(SSH, "would-deny")], NOW_US)
    assert (record.event, record.source) == (Event.CONNECTION_WOULD_DENY, "10.0.0.9")


@pytest.mark.parametrize("prefix", ["deny", "would-deny"])
def test_the_counts_of_either_kind_are_due_after_an_interval(prefix: str) -> None:
    denials = (log := log_of()).denials
    assert denials.due_at_us() is None
    log.denied([logged(SSH, prefix)], NOW_US)
    due_us = denials.due_at_us()
    assert due_us == NOW_US + INTERVAL_US
    assert not denials.is_due(due_us - 1)
    assert denials.is_due(due_us)
    log.further_denied(due_us)
    assert denials.due_at_us() is None
