"""What conntrack tells of ends, and how the record comes to have one for each beginning.

The kernel's part is played by `Kernel`, which speaks in the kernel's own bytes; against the real
one see integration/test_connections.py.
"""

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec.structs import replace
from scapy.layers.inet import IP, TCP

from keys import schema
from spa_protocol.access import Protocol
from spa_server import attribution, unended
from spa_server.attribution import Permitted
from spa_server.audit import chain, tables
from spa_server.audit.chain import Head
from spa_server.audit.record import Event, Record
from spa_server.capture.nflog import NflogPacket
from spa_server.connections import ConnectionLog
from spa_server.conntrack import Told, ended_in
from spa_server.ctentry import Count, Entry, flow_of, key_in, key_of, parse_entry, reply_key_in
from spa_server.ends import (
    CHECK_AFTER_US,
    MISSED,
    MOST_OF_A_FLOW,
    NOTHING_CAME,
    REPLACED,
    SWEEP_EVERY_US,
    WHILE_DOWN,
    Ends,
)
from spa_server.flow import Flow
from spa_server.grants import GrantBook
from spa_server.liveconnections import LiveConnections
from spa_server.netlink import HEADER_SIZE, NFGENMSG, attribute, message, nested
from tests.test_grants import BASE
from tests.world import NOW_US, SECOND

CT_DELETE = 1 << 8 | 2
TIME_WAIT = 7

# Two messages as Linux 6.18 sent them: TCP over IPv4 that was closed, UDP over IPv6 that was
# deleted 29 s before its time.
TCP4 = bytes.fromhex(
    "02000000340001801400018008000100"
    "0a4d0102080002000a4d01011c00028005000100060000000600"
    "0200ecaa000006000300001600003400028014000180080001000a4d0101080002000a4d01021c000280"
    "05000100060000000600020000160000"
    "06000300ecaa000008000c0055b913c508000300"
    "0000020e1c0009800c00010000000000000000060c0002000000000000000146"
    "1c000a800c00010000000000000000040c00020000000000000000de"
    "1c0014800c00010018eaeca4c0d561450c00020018eaeca538291592"
    "100004800c0001800500010007000000"
)
UDP6 = bytes.fromhex(
    "0a0000004c0001802c00018014000300fd77000100000000000000000000000214000400fd770001000000000000"
    "0000000000011c00028005000100110000000600"
    "0200c36f0000060003000016000008000c002161c3e6080003000000020a080007000000001d"
    "1c0009800c00010000000000000000010c000200000000000000003d"
    "1c000a800c00010000000000000000010c000200000000000000003d"
    "1c0014800c00010018eaeca4c0e53eca0c00020018eaeca4cdf48b94"
)

addresses = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
)
ports = st.integers(0, 65535)
flows = st.builds(
    lambda ends, there, protocol, to: Flow(ends[0], there, ends[1], protocol, to),
    addresses,
    ports,
    st.sampled_from([6, 17, 132]),
    ports,
)


def flow(port: int = 40_000, to: int = 22, source: str = "10.0.0.9") -> Flow:
    return Flow(ip_address(source), port, ip_address("10.0.0.1"), Protocol.TCP, to)


# Entries


@given(flows)
def test_a_key_is_one_way_to_write_a_flow(one: Flow) -> None:
    key = key_of(one)
    assert flow_of(key) == one
    assert len(key) == (48 if one.source.version == 4 else 72)


def test_keys_are_the_kernels_bytes() -> None:
    for payload, family in ((TCP4, 4), (UDP6, 6)):
        told = message(CT_DELETE, 0, 0, payload)
        key = key_in(told)
        one = flow_of(key)
        assert one is not None
        assert one.source.version == family
        assert key == key_of(one)
        assert told.index(key) == HEADER_SIZE + NFGENMSG.size + 4


def test_an_end_as_the_kernel_tells_it() -> None:
    [entry] = ended_in([message(CT_DELETE, 0, 0, TCP4)])
    assert entry.flow == Flow(IPv4Address("10.77.1.2"), 60586, IPv4Address("10.77.1.1"), 6, 22)
    assert (entry.there, entry.back, entry.state) == (Count(6, 326), Count(4, 222), "time-wait")
    assert entry.begun_us is not None
    assert entry.ended_us is not None
    assert 2_000_000 < entry.ended_us - entry.begun_us < 2_010_000
    assert entry.idle_s > 0


def test_who_began_a_connection_can_be_seen_either_way() -> None:
    """Of one that conntrack took up in the middle, who spoke first is the one who began."""
    told = message(CT_DELETE, 0, 0, TCP4)
    [entry] = ended_in([told])
    client, server = IPv4Address("10.77.1.2"), IPv4Address("10.77.1.1")
    assert reply_key_in(told) == entry.reply_key == key_of(Flow(server, 22, client, 6, 60586))
    turned = entry.as_begun_by(entry.reply_key)
    assert (turned.key, turned.there, turned.back) == (entry.reply_key, entry.back, entry.there)
    assert turned.as_begun_by(entry.key) == entry
    assert entry.as_begun_by(entry.key) == entry


def test_an_end_before_its_time() -> None:
    """Of 30 seconds 29 were left: the last packet was a second before."""
    entry = parse_entry(UDP6, {"udp_timeout": 30})
    assert entry is not None
    assert entry.flow == Flow(IPv6Address("fd77:1::2"), 50031, IPv6Address("fd77:1::1"), 17, 22)
    assert (entry.state, entry.idle_s) == ("", 1)


@pytest.mark.parametrize("payload", [TCP4, UDP6])
def test_without_counting_and_without_times(payload: bytes) -> None:
    bare = bytearray(payload)
    for kind in (9, 10, 20):
        at = bare.index(struct.pack("=HH", 28, kind | 0x8000))
        del bare[at : at + 28]
    entry = parse_entry(bytes(bare), {})
    assert entry is not None
    assert (entry.there, entry.back, entry.begun_us, entry.ended_us) == (None, None, None, None)


def test_a_zone_behind_the_tuple_changes_no_key() -> None:
    zone = attribute(3, struct.pack(">H", 7))
    of = key_of(flow())
    payload = NFGENMSG.pack(socket.AF_INET, 0, 0) + nested(1, of + zone)
    assert key_in(message(CT_DELETE, 0, 0, payload)) == of
    entry = parse_entry(payload, {})
    assert entry is not None
    assert entry.key == of


@given(st.binary(max_size=200), st.sampled_from([TCP4, UDP6]), st.integers(0, 300))
def test_no_bytes_raise(noise: bytes, payload: bytes, at: int) -> None:
    torn = payload[:at] + noise + payload[at + len(noise) :]
    for data in (noise, torn):
        told = message(CT_DELETE, 0, 0, data)
        key_in(told)
        key_in(data)
        for entry in ended_in([told, data]):
            assert entry.flow is None or isinstance(entry.flow, Flow)


# What lives


def test_what_lives_is_bounded_and_says_what_it_left_out() -> None:
    live = LiveConnections(limit=3)
    keys = [live.add(Permitted(flow(port), NOW_US)) for port in range(1, 6)]
    assert keys[3:] == [None, None]
    assert (len(live), live.refused) == (3, 2)
    key = keys[0]
    assert key is not None
    assert live.take(key, None) == Permitted(flow(1), NOW_US)
    assert live.add(Permitted(flow(9), NOW_US)) is not None


def test_found_by_its_source() -> None:
    live = LiveConnections()
    for to in (22, 5432):
        live.add(Permitted(flow(to=to), NOW_US))
    live.add(Permitted(flow(source="10.0.0.8"), NOW_US))
    live.add(Permitted(flow(40_001), NOW_US))
    found = live.from_source(ip_address("10.0.0.9"), 40_000)
    assert [permitted.flow.port for _, permitted in found] == [22, 5432]
    for key, permitted in found:
        assert live.forget(key, permitted)
        assert not live.forget(key, permitted)
    assert live.from_source(ip_address("10.0.0.9"), 40_000) == []
    assert len(live) == 2


def test_of_two_between_the_same_ports_the_nearest_ends() -> None:
    live = LiveConnections()
    first, second = Permitted(flow(), NOW_US), Permitted(flow(), NOW_US + 60 * SECOND)
    key = live.add(second)
    live.add(first)
    assert key is not None
    assert live.at(key) == (first, second)
    assert live.take(key, NOW_US + 59 * SECOND) == second
    assert live.take(key, NOW_US + 59 * SECOND) == first
    assert live.take(key, None) is None


# Ends


class Kernel:
    """Conntrack as it behaves: what lives, and what it has told that nobody has read."""

    def __init__(self) -> None:
        self.living: dict[bytes, int] = {}
        self.told: list[bytes] = []
        self.overruns = 0

    def begin(self, one: Flow, now_us: int) -> None:
        key = key_of(one)
        if key in self.living:
            self.end(one, now_us)
        self.living[key] = now_us

    def end(self, one: Flow, now_us: int, *, lost: bool = False) -> None:
        key = key_of(one)
        begun_us = self.living.pop(key)
        if lost:
            self.overruns += 1
        else:
            self.told.append(end_of(one, begun_us, now_us))

    def read(self, limit: int) -> Told:
        told, self.told = self.told[:limit], self.told[limit:]
        overruns, self.overruns = self.overruns, 0
        return Told(told, overruns, has_more=bool(self.told))

    def get(self, key: bytes) -> Entry | None:
        begun_us = self.living.get(key)
        if begun_us is None:
            return None
        return Entry(key, "established", Count(1, 60), Count(1, 60), begun_us, None, 0)


def end_of(one: Flow, begun_us: int, now_us: int) -> bytes:
    """A message of the kernel's: 3 packets and 180 bytes in, 2 packets and 120 bytes out."""

    def counted(kind: int, packets: int) -> bytes:
        values = enumerate((packets, 60 * packets), 1)
        return nested(kind, b"".join(attribute(n, struct.pack(">Q", v)) for n, v in values))

    moments = enumerate((begun_us, now_us), 1)
    times = nested(20, b"".join(attribute(n, struct.pack(">Q", v * 1000)) for n, v in moments))
    body = nested(1, key_of(one)) + counted(9, 3) + counted(10, 2) + times
    return message(CT_DELETE, 0, 0, NFGENMSG.pack(socket.AF_INET, 0, 0) + body)


def following(kernel: Kernel) -> Ends:
    ends = Ends(LiveConnections())
    ends.follow(kernel, lambda: None)
    ends.is_complete = True
    return ends


ALICE = Permitted(flow(), NOW_US, "alice", "key", "roles.ops.allow[0]", 7, keys=("key",))


def test_an_end_says_what_the_beginning_did_and_how_much_there_was() -> None:
    kernel = Kernel()
    ends = following(kernel)
    kernel.begin(ALICE.flow, NOW_US)
    ends.expect(ALICE, NOW_US)
    kernel.end(ALICE.flow, NOW_US + 5 * SECOND)
    kernel.told.insert(0, end_of(flow(1), NOW_US, NOW_US))  # somebody else's
    [record] = ends.read(NOW_US + 6 * SECOND)
    assert (record.event, record.identity, record.key_id) == (
        Event.CONNECTION_ENDED,
        "alice",
        "key",
    )
    assert (record.rule, record.grant_id, record.reason) == ("roles.ops.allow[0]", 7, None)
    assert record.detail == {
        "source_port": 40_000,
        "permitted_at_us": NOW_US,
        "duration_s": 5.0,
        "packets_in": 3,
        "bytes_in": 180,
        "packets_out": 2,
        "bytes_out": 120,
    }
    assert ends.read(NOW_US + 7 * SECOND) == []
    assert len(ends.live) == 0


def test_what_was_never_there_has_an_end_after_a_while() -> None:
    ends = following(Kernel())
    ends.expect(ALICE, NOW_US)
    assert ends.due_at_us(NOW_US) == NOW_US + CHECK_AFTER_US
    assert ends.tend(NOW_US + CHECK_AFTER_US - 1) == []
    [record] = ends.tend(NOW_US + CHECK_AFTER_US)
    assert (record.reason, record.detail["bytes_in"]) == (NOTHING_CAME, None)
    assert ends.due_at_us(NOW_US) is None


def test_an_end_that_the_look_brings_about_is_told_in_full() -> None:
    """The kernel removes an entry whose time is over when somebody asks for it."""

    class Lazy(Kernel):
        def get(self, key: bytes) -> Entry | None:
            self.end(ALICE.flow, NOW_US + SECOND)
            return super().get(key)

    kernel = Lazy()
    ends = following(kernel)
    kernel.begin(ALICE.flow, NOW_US)
    ends.expect(ALICE, NOW_US)
    [record] = ends.tend(NOW_US + CHECK_AFTER_US)
    assert (record.reason, record.detail["bytes_in"]) == (None, 180)


def test_what_was_lost_is_said_at_once_and_counted_then() -> None:
    kernel = Kernel()
    ends = following(kernel)
    others = [replace(ALICE, flow=flow(port)) for port in range(1, 4)]
    for permitted in (ALICE, *others):
        kernel.begin(permitted.flow, NOW_US)
        ends.expect(permitted, NOW_US)
    assert ends.tend(NOW_US + CHECK_AFTER_US) == []
    now_us = NOW_US + 60 * SECOND
    for permitted in others:
        kernel.end(permitted.flow, now_us, lost=True)
    [lost] = ends.read(now_us)
    assert (lost.event, lost.detail) == (
        Event.RECORDS_LOST,
        {"count": 3, "of": "end", "at_least": True},
    )
    assert ends.lost == 3
    missed = ends.tend(now_us)
    assert [record.reason for record in missed] == [MISSED] * 3
    kernel.begin(flow(9), now_us)
    kernel.end(flow(9), now_us, lost=True)
    assert ends.read(now_us) == []
    [further] = ends.tend(now_us + 10 * SECOND)
    assert further.detail["count"] == 1
    assert [permitted for key in ends.live for permitted in ends.live.at(key)] == [ALICE]


def test_while_ends_are_lost_all_the_time_not_all_is_looked_up_all_the_time() -> None:
    class Counting(Kernel):
        asked = 0

        def get(self, key: bytes) -> Entry | None:
            self.asked += 1
            return super().get(key)

    kernel = Counting()
    ends = following(kernel)
    kernel.begin(ALICE.flow, NOW_US)
    ends.expect(ALICE, NOW_US)
    for tenth in range(600):
        kernel.overruns = 1
        ends.read(NOW_US + tenth * SECOND // 10)
        ends.tend(NOW_US + tenth * SECOND // 10)
    assert kernel.asked <= 1 + 60 * SECOND // SWEEP_EVERY_US + 1


def test_between_the_same_ports_the_newest_lives_on() -> None:
    """A new connection by the entry of the old one, which the host had forgotten."""
    kernel = Kernel()
    ends = following(kernel)
    kernel.begin(ALICE.flow, NOW_US)
    ends.expect(ALICE, NOW_US)
    ends.tend(NOW_US + CHECK_AFTER_US)
    bob = replace(ALICE, at_us=NOW_US + 60 * SECOND, identity="bob")
    ends.expect(bob, bob.at_us)
    [record] = ends.tend(bob.at_us + CHECK_AFTER_US)
    assert (record.identity, record.reason) == ("alice", REPLACED)
    kernel.end(ALICE.flow, bob.at_us + 90 * SECOND)
    [record] = ends.read(bob.at_us + 90 * SECOND)
    assert (record.identity, record.reason) == ("bob", None)


def test_the_same_first_packet_again_and_again() -> None:
    """Another firewall drops them all: each has an end, and few wait for it."""
    ends = following(Kernel())
    records = []
    for number in range(5000):
        at_us = NOW_US + number * 100
        records += ends.expect(replace(ALICE, at_us=at_us), at_us)
        assert len(ends.live) <= MOST_OF_A_FLOW
    while len(ends.live):
        records += ends.tend(NOW_US + CHECK_AFTER_US + SECOND)
    began = [record.detail["permitted_at_us"] for record in records]
    assert sorted(began) == [NOW_US + number * 100 for number in range(5000)]


def test_an_entry_of_a_later_connection_is_no_sign_of_life() -> None:
    kernel = Kernel()
    ends = Ends(LiveConnections())
    ends.follow(kernel, lambda: None)
    ends.adopt([ALICE], NOW_US + 100 * SECOND)
    ends.is_complete = True
    kernel.begin(ALICE.flow, NOW_US + 50 * SECOND)
    [record] = ends.tend(NOW_US + 100 * SECOND)
    assert (record.identity, record.reason) == ("alice", WHILE_DOWN)


def test_nothing_is_read_while_the_record_is() -> None:
    kernel = Kernel()
    ends = Ends(LiveConnections())
    ends.follow(kernel, lambda: None)
    kernel.begin(ALICE.flow, NOW_US)
    kernel.end(ALICE.flow, NOW_US + SECOND)
    assert (ends.read(NOW_US), ends.tend(NOW_US), len(kernel.told)) == ([], [], 1)
    ends.adopt([ALICE], NOW_US)
    ends.is_complete = True
    [record] = ends.tend(NOW_US + 2 * SECOND)
    assert (record.reason, record.detail["duration_s"]) == (None, 1.0)


@pytest.mark.parametrize("by_s", [-86_400, 86_400])
def test_the_clock_is_set_and_nothing_waits_for_ever(by_s: int) -> None:
    ends = following(Kernel())
    ends.expect(ALICE, NOW_US)
    now_us = NOW_US + by_s * SECOND
    assert ends.due_at_us(now_us) is not None
    assert len(ends.tend(now_us)) == 1


# From the record


class Notebook:
    """A record in a real database, and what of it has no end."""

    def __init__(self, path: Path) -> None:
        self.connection = schema.connect(path)
        tables.prepare(self.connection)
        self._head: Head = tables.head_of(self.connection)

    def note(self, records: list[Record]) -> None:
        rows, self._head = chain.link(self._head, records)
        self.connection.executemany(tables.INSERT_EVENT, rows)

    @property
    def last_id(self) -> int:
        return self._head.event_id

    def unended(self) -> list[Permitted]:
        slices = unended.unended(self.connection, self.last_id)
        return [permitted for some in slices for permitted in some]


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    made = Notebook(tmp_path / "record.db")
    yield made
    made.connection.close()


def beginning(of: Permitted) -> Record:
    return attribution.line(Event.CONNECTION_PERMITTED, of, of.at_us)


def test_what_has_no_end_comes_back_as_it_was(notebook: Notebook) -> None:
    shared = replace(ALICE, identity="alice, bob", ambiguous=("alice", "bob"), grants=(7, 8))
    v6 = replace(ALICE, flow=Flow(IPv6Address("::9"), 1, IPv6Address("::1"), Protocol.UDP, 53))
    nobody = Permitted(flow(2), NOW_US)
    kept = [shared, v6, nobody]
    notebook.note([beginning(permitted) for permitted in kept])
    assert notebook.unended() == kept[::-1]


def test_every_end_takes_one_beginning_away(notebook: Notebook) -> None:
    """Also over many slices, and of those that began in the same microsecond."""
    later = replace(ALICE, at_us=NOW_US + 1)
    notebook.note([beginning(ALICE), beginning(ALICE), beginning(later)])
    notebook.note([Record(Event.KNOCK_REFUSED, NOW_US)] * (2 * unended.SLICE))
    notebook.note([attribution.ended(ALICE, None, NOW_US + 2)])
    assert notebook.unended() == [later, ALICE]
    notebook.note([attribution.ended(later, None, NOW_US + 2)])
    assert notebook.unended() == [ALICE]


def test_an_empty_record_and_one_cut_short(notebook: Notebook) -> None:
    assert notebook.unended() == []
    notebook.note([beginning(ALICE), beginning(replace(ALICE, at_us=NOW_US + 1))])
    notebook.connection.execute("delete from event where id = 1")
    assert notebook.unended() == [replace(ALICE, at_us=NOW_US + 1)]


@pytest.mark.parametrize(
    "change",
    [
        "detail = 'x'",
        "detail = '[]'",
        'detail = \'{"source_port": "x"}\'',
        "detail = '{\"source_port\": 70000}'",
        "source = null",
        "source = 'evil\n'",
        "target = '::1'",
        "access = 'tcp/0'",
        "access = null",
    ],
)
def test_a_line_that_was_changed_is_passed_over(notebook: Notebook, change: str) -> None:
    other = replace(ALICE, flow=flow(1))
    notebook.note([beginning(ALICE), beginning(other)])
    notebook.connection.execute(f"update event set {change} where id = 1")  # noqa: S608 - ours
    assert notebook.unended() == [other]


def test_a_record_that_cannot_be_read_is_said_and_stops_nothing(notebook: Notebook) -> None:
    ends = Ends(LiveConnections())
    notebook.connection.execute("alter table event rename to gone")
    [[record]] = unended.recollect(notebook.connection, 5, ends, lambda: NOW_US)
    assert (record.event, record.detail) == (Event.RECORDS_LOST, {"of": "end"})
    assert ends.is_complete


def test_which_grants_were_used(notebook: Notebook) -> None:
    grants = [replace(BASE, grant_id=number, opened_at_us=NOW_US) for number in (1, 2)]
    notebook.note([attribution.used(grants[1], ALICE)])
    assert unended.used_grants(notebook.connection, grants) == grants[1:]
    assert unended.used_grants(notebook.connection, []) == []


# Whatever happens, one end for each beginning


class Days(RuleBasedStateMachine):
    """A kernel and a daemon that is killed now and then, over a real record."""

    path: Path

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel()
        self.now_us = NOW_US
        self.path.unlink(missing_ok=True)
        self.notebook = Notebook(self.path)
        book = GrantBook()
        book.add([BASE])
        self.holders = book.holders
        self.packets: list[NflogPacket] = []
        self._start()

    def _start(self) -> None:
        self.log = ConnectionLog(self.holders)
        self.log.ends.follow(self.kernel, self.hear)
        notebook = self.notebook
        for _ in unended.recollect(
            notebook.connection, notebook.last_id, self.log.ends, lambda: self.now_us
        ):
            pass

    def _packet(self, port: int) -> Flow:
        self.now_us += 1000
        packet = IP(src="10.0.0.9", dst="10.0.0.1") / TCP(sport=port, dport=22, flags="S")
        self.packets.append(NflogPacket("permit", bytes(packet), 1))
        return flow(port)

    @rule()
    def hear(self) -> None:
        """The daemon reads what was logged."""
        packets, self.packets = self.packets, []
        self.notebook.note(self.log.permitted(packets, self.now_us))

    @rule(port=st.integers(1, 3))
    def begin(self, port: int) -> None:
        self.kernel.begin(self._packet(port), self.now_us)

    @rule(port=st.integers(1, 3))
    def permit_only(self, port: int) -> None:
        """Another firewall drops it; or it is taken for a part of the one before."""
        self._packet(port)

    @rule(port=st.integers(1, 3), lost=st.booleans())
    def end(self, port: int, lost: bool) -> None:
        self.now_us += 1000
        if key_of(flow(port)) in self.kernel.living:
            self.kernel.end(flow(port), self.now_us, lost=lost)

    @rule()
    def read(self) -> None:
        self.notebook.note(self.log.ends.read(self.now_us))

    @rule(tenths=st.integers(1, 120))
    def pass_time(self, tenths: int) -> None:
        self.now_us += tenths * SECOND // 10
        self.notebook.note(self.log.ends.tend(self.now_us))

    @rule()
    def kill(self) -> None:
        """What was not read is lost with the sockets."""
        self.kernel.told, self.kernel.overruns, self.packets = [], 0, []
        self._start()

    def teardown(self) -> None:
        self.hear()
        for port in range(1, 4):
            self.end(port, lost=False)
        self.read()
        for _ in range(3):
            self.pass_time(120)
        ends = self._lines(Event.CONNECTION_ENDED, "detail ->> 'permitted_at_us'")
        assert ends == self._lines(Event.CONNECTION_PERMITTED, "at_us")
        assert len(self.log.live) == 0
        self.notebook.connection.close()

    def _lines(self, event: Event, began: str) -> Counter[tuple[object, ...]]:
        return Counter(
            self.notebook.connection.execute(
                f"select {began}, source, detail ->> 'source_port', identity, grant_id"  # noqa: S608 - ours
                " from event where event = ?",
                (event.value,),
            ).fetchall()
        )


def test_one_end_for_each_beginning(tmp_path: Path) -> None:
    made = type("Days", (Days,), {"path": tmp_path / "days.db"})
    run_state_machine_as_test(
        made, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
