"""The reception: the one order that is safe, with a real ledger and a stand-in for the kernel."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest
from msgspec.structs import replace
from scapy.layers.inet import IP, TCP

from keys import identity
from keys.identity import Identity
from spa_protocol.access import HARMLESS, Access
from spa_protocol.knock import Close, Join
from spa_protocol.publickey import Sender
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Reply
from spa_server.addressing import Addressing
from spa_server.admission import load_all, window
from spa_server.audit.asking import Filter, ask
from spa_server.audit.record import Event, Record
from spa_server.capture.datagram import Datagram
from spa_server.capture.nflog import NflogPacket
from spa_server.connections import ConnectionLog
from spa_server.doorkeeper import Moment
from spa_server.firewall.elements import HoleLease, LiveHole
from spa_server.firewall.kernel import FirewallError
from spa_server.flow import Flow
from spa_server.hole import Hole
from spa_server.holekeeper import HoleKeeper
from spa_server.reception import JOINS_A_MINUTE, Joined, Reception
from spa_server.replay import ReplayWindow
from spa_server.ruling import Owner, Terms
from spa_server.severance import Severance
from tests.test_ledger import Book
from tests.test_policy import policy
from tests.world import CLIENT, HOST, NOW_US, SECOND, SSH, World, datagram, knock_at

OWN = {ip_address("10.20.0.2"), ip_address("127.0.0.1")}


@dataclass
class Kernel:
    """Holes in a dictionary, in place of nftables; it can be told to fail."""

    holes: dict[Hole, int] = field(default_factory=dict)
    fails: bool = False
    stopped: set[Flow] = field(default_factory=set)

    def _may(self) -> None:
        if self.fails:
            raise FirewallError("no such table")

    def open(self, leases: Iterable[HoleLease]) -> None:
        self._may()
        self.holes |= {lease.hole: lease.timeout_ms for lease in leases}

    def close(self, holes: Iterable[Hole]) -> None:
        self._may()
        for hole in holes:
            self.holes.pop(hole, None)

    def live_holes(self) -> list[LiveHole]:
        self._may()
        return [LiveHole(hole, ms, 0, 0) for hole, ms in self.holes.items()]

    def stop_flows(self, flows: Iterable[Flow]) -> None:
        self._may()
        self.stopped |= set(flows)

    def release_flows(self, flows: Iterable[Flow]) -> None:
        self._may()
        self.stopped -= set(flows)

    def stopped_flows(self) -> list[Flow]:
        self._may()
        return list(self.stopped)


class Host:
    """A reception with everything around it, and a clock that stands still."""

    def __init__(self, path: Path) -> None:
        self.world = World()
        self.book = Book(path)
        self.kernel = Kernel()
        self.now_s = 1000.0
        self.owners: dict[str, Owner] = {}
        self.answers: list[tuple[Reply, Datagram]] = []
        self.keeper = HoleKeeper(self.kernel, self.book.ledger, lambda: self.now_s)
        self.log = ConnectionLog(self.keeper.book.holders)
        self.log.ends.is_complete = True
        self.keeper.severing = Severance(
            self.log.ends,
            self.keeper.book.holders,
            self.kernel,
            successors=lambda _key_id: (),
            is_cut=lambda _hole: False,
            may_cut=lambda _hole: True,
        )
        self.reception = Reception(
            admission=self.world.admission,
            window=ReplayWindow(),
            ledger=self.book.ledger,
            keeper=self.keeper,
            owner_of=self.owners.get,
            join=self._join,
            answer=lambda reply, _sender, _nonce, to: self.answers.append((reply, to)),
            terms=Terms(policy(), (), Addressing(OWN.__contains__)),
            monotonic_s=lambda: self.now_s,
        )

    def _join(self, _sender: Sender, _request: Join, now_us: int) -> Joined:
        return Joined(Status.JOINED, "welcome", Record(Event.JOIN_ACCEPTED, now_us))

    def person(self, name: str, *roles: str, expires_at_us: int | None = None) -> Identity:
        made = self.world.enrol()
        key_id = made.public.key_id
        self.owners[key_id] = Owner(key_id, name, frozenset(roles), expires_at_us)
        return made

    def receive(self, *datagrams: Datagram) -> list[Reply]:
        before = len(self.answers)
        self.reception.receive(datagrams, Moment(NOW_US))
        return [reply for reply, _ in self.answers[before:]]

    def events(self) -> list[tuple[str, str | None]]:
        lines = ask(self.book.connection, Filter(), limit=1000)
        return [(line["event"], line["reason"]) for line in lines]

    def details(self) -> list[tuple[str, dict[str, object]]]:
        lines = ask(self.book.connection, Filter(), limit=1000)
        return [(line["event"], line["detail"] or {}) for line in lines]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.book.connection.close()


def test_a_knock_opens_its_hole_and_is_answered(host: Host) -> None:
    alice = host.person("alice", "ops")
    [reply] = host.receive(host.world.datagram(alice, knock_at()))
    assert reply.status is Status.GRANTED
    assert [(o.access, o.code, o.lifetime_s) for o in reply.outcomes] == [(SSH, Code.GRANTED, 60)]
    assert host.kernel.holes == {Hole(CLIENT, HOST, SSH.protocol, 22): 60_000}
    assert host.events() == [("knock.accepted", None), ("hole.opened", None)]


def test_a_copy_in_the_same_batch_is_a_replay_and_is_not_answered(host: Host) -> None:
    alice = host.person("alice", "ops")
    one = host.world.datagram(alice, knock_at())
    assert len(host.receive(one, one, one)) == 1
    assert host.receive(one) == []
    assert ("knock.refused", "replayed") in host.events()
    assert len(host.keeper.book) == 1


def test_a_refused_knock_is_burned_too(host: Host) -> None:
    """Recorded, and sent again when its owner has got the role: it opens nothing."""
    bob = host.person("bob")
    one = host.world.datagram(bob, knock_at())
    [reply] = host.receive(one)
    assert (reply.status, reply.message) == (Status.REFUSED, "no role allows it")
    key_id = bob.public.key_id
    host.owners[key_id] = Owner(key_id, "bob", frozenset({"ops"}))
    assert host.receive(one) == []
    assert host.kernel.holes == {}


def test_stale_and_ahead_are_told_the_difference_and_burned(host: Host) -> None:
    alice = host.person("alice", "ops")
    for by_s, message in ((-94, "94 s behind"), (94, "94 s ahead of")):
        one = host.world.datagram(alice, knock_at(NOW_US + by_s * SECOND))
        [reply] = host.receive(one)
        assert reply.status is Status.CLOCK
        assert message in reply.message
        assert host.receive(one) == []
    assert host.kernel.holes == {}


def test_what_is_ahead_is_on_the_disk_before_it_is_answered(host: Host) -> None:
    """It is fresh for longer than a boot takes: a crash of the kernel must not lose it
    (spa_server/replay.py, rule 5). Other commits may be lost: the floor of the boot guards them."""
    alice = host.person("alice", "ops")
    commits = host.book.commits()
    host.receive(host.world.datagram(alice, knock_at(NOW_US + 94 * SECOND)))
    host.receive(host.world.datagram(alice, knock_at(NOW_US - 94 * SECOND)))
    host.receive(host.world.datagram(alice, knock_at()))
    assert commits == ["full", "normal", "normal"]


def test_strangers_get_no_answer(host: Host) -> None:
    host.person("alice", "ops")
    stranger = World().enrol()
    assert host.receive(host.world.datagram(stranger, knock_at())) == []
    assert host.events() == [("knock.refused", "unknown-key")]


def test_a_key_that_is_nobody_s_knocks_and_closes_in_vain(host: Host) -> None:
    """An invite's, which may only join: it opens nothing, closes nothing and harms nobody."""
    alice, invited = host.person("alice", "ops"), host.world.enrol()
    closing = Close(NOW_US, (SSH,), target=HOST)
    replies = host.receive(
        host.world.datagram(invited, knock_at()),
        host.world.datagram(alice, knock_at()),
        host.world.datagram(invited, closing),
    )
    assert [reply.status for reply in replies] == [Status.GRANTED]
    assert len(host.kernel.holes) == 1


def test_whoever_wants_no_reply_gets_none(host: Host) -> None:
    alice = host.person("alice", "ops")
    assert host.receive(host.world.datagram(alice, knock_at(reply_wanted=False))) == []
    assert len(host.kernel.holes) == 1


def test_some_accesses_may_be_granted_and_others_refused(host: Host) -> None:
    alice = host.person("alice", "ops")
    asked = (SSH, Access.parse("tcp/5432"), Access.parse("tcp/9090-9092"))
    [reply] = host.receive(host.world.datagram(alice, knock_at(NOW_US, *asked)))
    assert reply.status is Status.GRANTED
    assert [o.code for o in reply.outcomes] == [Code.GRANTED, Code.NO_ROLE, Code.GRANTED]
    assert sorted(hole.port for hole in host.kernel.holes) == [22, 9090, 9091, 9092]


def test_a_declared_source_and_target_count(host: Host) -> None:
    alice = host.person("alice", "ops")
    declared = {"source": ip_address("10.20.0.77"), "target": ip_address("10.20.0.2")}
    [reply] = host.receive(host.world.datagram(alice, knock_at(**declared)))
    assert reply.status is Status.GRANTED
    assert reply.source == CLIENT
    assert list(host.kernel.holes) == [Hole(*declared.values(), SSH.protocol, 22)]


@pytest.mark.parametrize("declared", [True, False])
def test_a_link_local_address_is_one_on_the_link_it_came_by(host: Host, *, declared: bool) -> None:
    alice = host.person("alice", "ops")
    hers, ours = ip_address("fe80::a"), ip_address("fe80::1")
    knock = knock_at(source=hers if declared else None, target=ours)
    came = {"source": hers, "target": ours, "interface": 3}
    [reply] = host.receive(replace(host.world.datagram(alice, knock), **came))
    assert (reply.status, reply.source, reply.target) == (Status.GRANTED, hers, ours)
    on_link = Hole(ip_address("fe80::a%3"), ip_address("fe80::1%3"), SSH.protocol, 22)
    assert list(host.kernel.holes) == [on_link]


def test_a_link_local_address_on_nobody_knows_which_link_is_refused(host: Host) -> None:
    alice = host.person("alice", "ops")
    came = {"source": ip_address("fe80::a"), "target": ip_address("fe80::1"), "interface": 0}
    knock = knock_at(target=came["target"])
    [reply] = host.receive(replace(host.world.datagram(alice, knock), **came))
    assert [o.code for o in reply.outcomes] == [Code.NOT_A_TARGET]
    assert host.kernel.holes == {}


@pytest.mark.parametrize("target", ["10.20.0.3", "2001:db8::1", "127.0.0.1", None])
def test_a_target_that_is_not_ours_is_refused(host: Host, target: str | None) -> None:
    alice = host.person("alice", "ops")
    named = ip_address(target) if target else None
    [reply] = host.receive(host.world.datagram(alice, knock_at(target=named)))
    assert [o.code for o in reply.outcomes] == [Code.NOT_A_TARGET]
    assert host.kernel.holes == {}


def test_a_close_ends_whole_every_grant_that_it_touches(host: Host) -> None:
    """One port of a range that was granted: what was granted ends, and the reply says so."""
    alice = host.person("alice", "ops")
    wide, narrow = Access.parse("tcp/9090-9092"), Access.parse("tcp/9091")
    host.receive(host.world.datagram(alice, knock_at(NOW_US, SSH, wide)))
    closing = Close(NOW_US, (narrow,), target=HOST)
    [reply] = host.receive(host.world.datagram(alice, closing))
    assert reply.status is Status.CLOSED
    assert [o.code for o in reply.outcomes] == [Code.GRANTED]
    assert reply.message == "closed as granted: tcp/9090-9092"
    assert [hole.port for hole in host.kernel.holes] == [22]
    closing = Close(NOW_US + 1, (SSH, narrow), target=HOST)
    [reply] = host.receive(host.world.datagram(alice, closing))
    assert reply.message == "nothing was open at tcp/9091"
    assert host.kernel.holes == {}
    closing = Close(NOW_US + 2, (SSH,), target=HOST)
    [reply] = host.receive(host.world.datagram(alice, closing))
    assert (reply.status, reply.outcomes) == (Status.CLOSED, ())


def test_a_close_that_names_no_host_ends_nothing(host: Host) -> None:
    alice = host.person("alice", "ops")
    host.receive(host.world.datagram(alice, knock_at()))
    [reply] = host.receive(host.world.datagram(alice, Close(NOW_US, (SSH,))))
    assert (reply.status, reply.outcomes[0].code) == (Status.REFUSED, Code.NOT_A_TARGET)
    assert "no target is signed" in reply.message
    assert len(host.kernel.holes) == 1
    assert host.events()[-1] == ("close.asked", reply.message)


def test_a_hole_never_outlives_its_key(host: Host) -> None:
    alice = host.person("alice", "ops", expires_at_us=NOW_US + 5 * SECOND)
    [reply] = host.receive(host.world.datagram(alice, knock_at()))
    assert reply.outcomes[0].lifetime_s == 5
    assert list(host.kernel.holes.values()) == [5000]


def test_a_close_ends_what_came_before_it_in_the_same_batch(host: Host) -> None:
    alice = host.person("alice", "ops")
    opened = host.world.datagram(alice, knock_at())
    closed = host.world.datagram(alice, Close(NOW_US, (SSH,), target=HOST))
    replies = host.receive(opened, closed)
    assert [reply.status for reply in replies] == [Status.GRANTED, Status.CLOSED]
    assert host.kernel.holes == {}
    assert host.events()[-1] == ("hole.closed", "closed by its owner")


def test_a_close_is_only_for_what_is_ones_own(host: Host) -> None:
    alice, bob = host.person("alice", "ops"), host.person("bob", "ops")
    host.receive(host.world.datagram(alice, knock_at()), host.world.datagram(bob, knock_at()))
    [reply] = host.receive(host.world.datagram(bob, Close(NOW_US, (SSH,), target=HOST)))
    assert reply.status is Status.CLOSED
    assert len(host.kernel.holes) == 1
    assert [grant.identity for grant in host.keeper.book] == ["alice"]
    [reply] = host.receive(host.world.datagram(bob, Close(NOW_US + 1, (SSH,), target=HOST)))
    assert reply.message == "nothing was open"


def test_sessions_of_a_cut_hole_end_with_the_grants_of_whoever_may_have_begun_them(
    host: Host,
) -> None:
    postgres = Access.parse("tcp/5432")
    alice, bob = host.person("alice", "dba"), host.person("bob", "dba")
    flows = []
    for source_port, who in ((1, alice), (2, bob)):
        host.receive(host.world.datagram(who, knock_at(NOW_US, postgres)))
        flows.append(Flow(CLIENT, source_port, HOST, postgres.protocol, 5432))
        packet = bytes(IP(src=str(CLIENT), dst=str(HOST)) / TCP(sport=source_port, dport=5432))
        host.log.permitted([NflogPacket("permit", packet, 1)], NOW_US)
    alone, shared = flows
    host.receive(host.world.datagram(bob, Close(NOW_US, (postgres,), target=HOST)))
    assert host.kernel.stopped == {shared}
    host.now_s += 31
    host.keeper.expire(NOW_US)
    assert host.kernel.stopped == {alone, shared}
    assert ("connection.severed", None) in host.events()


CUT = "tcp/5432: connections are cut when it closes; hold it open"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([Access.parse("tcp/5432")], CUT),
        ([SSH, Access.parse("tcp/5432")], CUT),
        ([SSH], ""),
    ],
)
def test_whoever_knocks_is_told_beforehand_which_sessions_are_cut(
    host: Host, asked: list[Access], message: str
) -> None:
    alice = host.person("alice", "dba", "ops")
    [reply] = host.receive(host.world.datagram(alice, knock_at(NOW_US, *asked)))
    assert reply.message == message


def test_a_full_disk_opens_nothing_and_the_client_is_told(host: Host) -> None:
    alice = host.person("alice", "ops")
    host.book.fill_the_disk()
    while not host.book.ledger.is_behind:  # until the page that is left is full
        one = host.world.datagram(alice, knock_at())
        [reply] = host.receive(one)
    assert reply.status is Status.UNAVAILABLE
    assert [o.code for o in reply.outcomes] == [Code.UNAVAILABLE]
    grants = len(host.keeper.book)
    assert host.receive(one) == []
    [reply] = host.receive(host.world.datagram(alice, knock_at(NOW_US + 1)))
    assert reply.status is Status.UNAVAILABLE
    assert len(host.keeper.book) == grants
    host.book.make_room()
    [reply] = host.receive(host.world.datagram(alice, knock_at(NOW_US + 2)))
    assert reply.status is Status.GRANTED
    assert host.receive(one) == []
    assert ("knock.refused", "unavailable") in host.events()


def test_a_failing_firewall_grants_nothing_and_the_client_is_told(host: Host) -> None:
    alice = host.person("alice", "ops")
    host.kernel.fails = True
    [reply] = host.receive(host.world.datagram(alice, knock_at()))
    assert reply.status is Status.UNAVAILABLE
    assert len(host.keeper.book) == 0
    assert host.keeper.in_doubt
    assert host.book.ledger.live_grants() == []
    host.kernel.fails = False
    host.keeper.sync()
    [reply] = host.receive(host.world.datagram(alice, knock_at(NOW_US + 1)))
    assert reply.status is Status.GRANTED


def test_a_hole_that_could_not_be_closed_is_closed_as_soon_as_it_can_be(host: Host) -> None:
    alice = host.person("alice", "ops")
    host.receive(host.world.datagram(alice, knock_at()))
    host.kernel.fails = True
    [reply] = host.receive(host.world.datagram(alice, Close(NOW_US, (SSH,), target=HOST)))
    assert reply.status is Status.UNAVAILABLE
    host.kernel.fails = False
    assert host.keeper.in_doubt
    host.keeper.sync()
    assert host.kernel.holes == {}
    assert not host.keeper.in_doubt


def test_sync_makes_the_kernel_equal_to_the_book(host: Host) -> None:
    alice = host.person("alice", "ops")
    host.receive(host.world.datagram(alice, knock_at()))
    [ours] = host.kernel.holes
    foreign = Hole(CLIENT, HOST, SSH.protocol, 23)
    host.kernel.holes = {foreign: 5000}
    assert host.keeper.sync() == ([ours], [foreign])
    assert host.kernel.holes == {ours: 60_000}
    assert host.keeper.sync() == ([], [])


def test_a_used_once_hole_is_not_opened_again(host: Host) -> None:
    alice = host.person("alice", "ops")
    host.receive(host.world.datagram(alice, knock_at(once=True)))
    [hole] = host.kernel.holes
    assert hole.once
    host.kernel.holes.clear()
    assert host.keeper.sync() == ([], [])


BY_OTHER: list[tuple[dict[str, object], str]] = [
    ({"target_port": 53}, "udp:53"),
    ({"carrier": "icmp", "target_port": 0}, "icmp"),
    ({"carrier": "tcp-syn"}, "tcp-syn"),
    ({"carrier": "tcp-syn", "target_port": 443}, "tcp-syn:443"),
]


@pytest.mark.parametrize(("how", "name"), BY_OTHER)
def test_the_record_says_by_which_other_carrier_a_request_came(
    host: Host, how: dict[str, object], name: str
) -> None:
    alice, bob = host.person("alice", "ops"), host.person("bob")
    one = host.world.datagram(alice, knock_at(), **how)
    host.receive(one)
    host.receive(one, host.world.datagram(bob, knock_at(), **how))
    closing = Close(NOW_US, (SSH,), target=HOST)
    host.receive(host.world.datagram(alice, closing, **how))
    host.kernel.fails = True
    host.receive(host.world.datagram(alice, knock_at(), **how))
    told = [(event, detail.get("carrier")) for event, detail in host.details()]
    assert told == [
        ("knock.accepted", name),
        ("hole.opened", None),
        ("knock.refused", name),  # replayed
        ("knock.refused", name),  # by the policy
        ("close.asked", name),
        ("hole.closed", None),
        ("knock.accepted", name),
        ("hole.opened", None),
        ("knock.refused", name),  # unavailable
    ]


def test_of_plain_udp_the_record_says_nothing(host: Host) -> None:
    alice = host.person("alice", "ops")
    one = host.world.datagram(alice, knock_at())
    host.receive(one, one)
    assert [detail for _, detail in host.details() if "carrier" in detail] == []


@pytest.mark.parametrize(("how", "_name"), BY_OTHER)
def test_a_ping_like_any_other_is_not_recorded(
    host: Host, how: dict[str, object], _name: str
) -> None:
    """A capture at an interface hands over whatever has a knock's length."""
    host.receive(datagram(bytes(240), **how))
    assert host.events() == []
    host.receive(datagram(bytes(240)))
    assert host.events() == [("knock.refused", "unknown-key")]


def test_a_flood_under_a_stolen_tag_does_not_fill_the_record(host: Host) -> None:
    alice = host.person("alice", "ops")
    tag = host.world.payload(alice, knock_at())[:8]
    junk = [
        Datagram(tag + bytes([n % 256]) * 232, CLIENT, 1, HOST, 62201, "udp", NOW_US)
        for n in range(500)
    ]
    host.receive(*junk)
    assert host.events() == [("knock.refused", "not-authentic")]
    host.reception.flush_refusals(NOW_US)
    lines: list[dict[str, object]] = ask(host.book.connection, Filter(), limit=10)
    assert lines[-1]["detail"] == {"further": 499}


def test_a_flood_under_a_tag_is_told_once_and_nothing_else_is(host: Host) -> None:
    alice = host.person("alice", "ops")
    told: list[tuple[bytes, str]] = []
    host.reception.flooded = lambda tag, sender, _now_us: told.append((tag, sender.key_id))
    tag = host.world.payload(alice, knock_at())[:8]
    unknown = [datagram(bytes([n]) * 240) for n in range(100)]
    good = [host.world.datagram(alice, knock_at(NOW_US + n)) for n in range(30)]
    host.receive(*unknown, *good)
    assert told == []
    host.receive(*[datagram(tag + bytes([n]) * 232) for n in range(100)])
    assert told == [(tag, alice.public.key_id)]


def test_copies_of_a_knock_are_a_flood_too(host: Host) -> None:
    alice = host.person("alice", "ops")
    told: list[bytes] = []
    host.reception.flooded = lambda tag, _sender, _now_us: told.append(tag)
    one = host.world.datagram(alice, knock_at())
    host.receive(*[one] * 11)
    assert told == []
    host.receive(one)
    assert told == [one.payload[:8]]


OTHER = ip_address("10.20.0.99")


@pytest.mark.parametrize("closing", [False, True])
def test_a_refused_request_names_the_packets_own_sender(host: Host, *, closing: bool) -> None:
    """Whatever source it declares: else a thief of a key is nowhere in the record."""
    mallory = host.person("mallory")
    request = (
        Close(NOW_US, (SSH,), source=CLIENT, target=HOST)
        if closing
        else knock_at(NOW_US, SSH, source=CLIENT, target=HOST)
    )
    host.receive(replace(host.world.datagram(mallory, request), source=OTHER, source_port=4711))
    [(event, detail)] = host.details()
    assert event == ("close.asked" if closing else "knock.refused")
    assert (detail["seen_from"], detail["source_port"]) == (str(OTHER), 4711)


def test_too_many_closes_are_burned_refused_and_counted(host: Host) -> None:
    alice = host.person("alice", "ops")
    few = policy("[limits]\nknocks_per_minute = 2")
    host.reception.terms = Terms(few, (), host.reception.terms.addressing)
    closes = [host.world.datagram(alice, Close(NOW_US + n, (SSH,), target=HOST)) for n in range(9)]
    replies = host.receive(*closes)
    assert [reply.status for reply in replies].count(Status.CLOSED) == 2
    assert {o.code for reply in replies for o in reply.outcomes} == {Code.TOO_MANY}
    assert [reason for _, reason in host.events()] == [None, None, "too many at once"]
    assert [detail.get("ended") for _, detail in host.details()] == ["nothing", "nothing", None]
    assert host.receive(closes[-1]) == []
    host.reception.flush_refusals(NOW_US)
    assert ("close.asked", {"further": 6}) in host.details()


def test_probes_of_a_key_are_told_from_closes_and_counted_for_each_sender(host: Host) -> None:
    """`doctor` sends eight of them; and nobody's own can hide behind those of somebody else."""
    alice = host.person("alice", "ops")
    trials = [Close(NOW_US + n, (HARMLESS,), source=CLIENT, target=HOST) for n in range(8)]
    host.receive(*(host.world.datagram(alice, each) for each in trials[:6]))
    elsewhere = [replace(host.world.datagram(alice, each), source=OTHER) for each in trials[6:]]
    assert len(host.receive(*elsewhere)) == 2
    tried = "nothing: the key was tried"
    assert [(d["ended"], d["seen_from"]) for _, d in host.details()] == [
        (tried, str(CLIENT)),
        (tried, str(OTHER)),
    ]
    assert host.receive(elsewhere[0]) == []  # each was burned
    host.reception.flush_refusals(NOW_US)
    counts = [d for _, d in host.details() if "further" in d and "ended" in d]
    assert counts == [{"further": 5, "ended": tried}, {"further": 1, "ended": tried}]


def test_a_close_of_something_that_is_not_open_has_a_line_each(host: Host) -> None:
    alice = host.person("alice", "ops")
    both = (HARMLESS, Access.parse("tcp/22"))
    for n, accesses in enumerate([(SSH,), (SSH,), both, both]):
        host.receive(host.world.datagram(alice, Close(NOW_US + n, accesses, target=HOST)))
    assert [detail["ended"] for _, detail in host.details()] == ["nothing"] * 4


def test_too_many_joins_reach_no_registry(host: Host) -> None:
    invite, joined = identity.generate("invite"), identity.generate("new")
    sender = Sender.known_to(host.world.server.secret, invite.public, is_invite=True)
    host.world.admission.add(invite.public.key_id, sender)
    load_all(host.world.admission, window(NOW_US))
    asked: list[Join] = []

    def join(sender: Sender, request: Join, now_us: int) -> Joined:
        asked.append(request)
        return host._join(sender, request, now_us)

    host.reception.join = join
    joins = [Join(NOW_US + n, joined.public) for n in range(JOINS_A_MINUTE + 5)]
    replies = host.receive(*(host.world.datagram(invite, each) for each in joins))
    assert len(asked) == JOINS_A_MINUTE
    assert [reply.status for reply in replies[JOINS_A_MINUTE:]] == [Status.UNAVAILABLE] * 5
    assert host.events().count(("join.refused", "too many at once")) == 1
