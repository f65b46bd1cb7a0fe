"""One signed packet opens one port, for one source, for a few seconds; and what ends that early.

Everything is done by the programs, as an operator and a person at a client would, and tried with
packets. What the record says of it is read with `spa-server audit`.
"""

import json
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from integration.lab import (
    DEFAULT_SEGMENT,
    SILENCE_S,
    Address,
    Host,
    Lab,
    Reach,
    echoes,
    reached,
    wait_until,
)
from integration.site import POLICY, Person, RecordSince, Site

SECOND = 100  # from a host's first address to its second
PATIENCE_S = 3.0  # for what must come: a busy machine is slow
OPS, DBA, VOTER = "roles.ops.allow[0]", "roles.dba.allow[0]", "roles.voter.allow[0]"

both_families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@dataclass
class Scene:
    """A guarded server with services, hosts beside it, and people.

    `other` has no gate. `proxy` is a shared source. `home1` and `home2` are behind the one address
    of `router`. `web` is UDP port 80 of the server by family, where only the test itself answers.
    """

    site: Site
    server: Host
    client: Host
    other: Host
    proxy: Host
    router: Host
    home1: Host
    home2: Host
    web: dict[int, socket.socket]
    alice: Person
    bob: Person


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, other, proxy = map(lab.host, ("server", "client", "other", "proxy"))
        router = lab.host("router", DEFAULT_SEGMENT, "home")
        home1, home2 = lab.host("home1", "home"), lab.host("home2", "home")
        _hide_behind(router, home1, home2)
        for host in (server, client):
            host.add_address(f"{host.v4 + SECOND}/24")
            host.add_address(f"{host.v6 + SECOND}/64")
        policy = POLICY.replace('"tcp/5432"', '["tcp/5432", "udp/5432"]')
        site = Site(lab, server, policy=policy, settings=f'shared_sources = ["{proxy.v4}/32"]\n')
        alice, bob = site.enrol("alice", "ops", "dba", "voter"), site.enrol("bob", "ops")
        for port in (22, 5432, 7000, 9089, 9090, 9094, 9095, 9099, 9100):
            server.serve(port)
        web = {family: udp_port(server, family, 80) for family in (4, 6)}
        site.apply_gate()
        site.start()
        yield Scene(site, server, client, other, proxy, router, home1, home2, web, alice, bob)


def _hide_behind(router: Host, *hosts: Host) -> None:
    router.forward()
    chain = "type nat hook postrouting priority 100; oifname lan masquerade;"
    router.run(["nft", f"table inet nat {{ chain hide {{ {chain} }}; }}"])
    for host in hosts:
        host.default_route(router, "home")


@pytest.fixture(autouse=True)
def _nothing_is_left_open(scene: Scene) -> Iterator[None]:
    yield
    scene.site.close_everything()


@pytest.fixture
def record(scene: Scene) -> RecordSince:
    """What is recorded during the test."""
    return scene.site.record_from_now()


@pytest.fixture
def server(scene: Scene) -> Host:
    return scene.server


@pytest.fixture
def client(scene: Scene) -> Host:
    return scene.client


@pytest.fixture
def alice(scene: Scene) -> Person:
    return scene.alice


@pytest.fixture
def bob(scene: Scene) -> Person:
    return scene.bob


def address(host: Host, family: int) -> Address:
    return host.v4 if family == 4 else host.v6


def ends_of(client: Host, server: Host) -> dict[str, object]:
    """A hole's ends in the record, over IPv4."""
    return {"source": client.v4, "target": server.v4}


def af(family: int) -> int:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def udp_port(host: Host, family: int, port: int) -> socket.socket:
    """A socket that hears everything sent to a UDP port, whatever address of the host it is to."""
    made = host.new_socket(af(family), socket.SOCK_DGRAM)
    if family == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(("", port))
    return made


def is_open(host: Host, target: Address, port: int) -> bool:
    return host.reach_tcp(target, port, within_s=PATIENCE_S) is Reach.OPEN


def is_silent(host: Host, target: Address, port: int) -> bool:
    return host.reach_tcp(target, port) is Reach.SILENT


def nothing_answers(streams: Sequence[socket.socket]) -> bool:
    """Whether all these connections that were begun hear nothing, not even a refusal.

    They are given up then: one that goes on trying could get in by a hole of a later test.
    """
    waiting = select.poll()
    for stream in streams:
        waiting.register(stream, select.POLLOUT)
    answers = waiting.poll(SILENCE_S * 1000)
    for stream in streams:
        stream.close()
    return not answers


def last_open(host: Host, target: Address, port: int) -> float:
    """Waits until a port is silent; a moment after which it was still open for an instant."""
    last = began = time.monotonic()

    def is_closed() -> bool:
        nonlocal last, began
        last, began = began, time.monotonic()
        return is_silent(host, target, port)

    wait_until(is_closed, within_s=10, what=f"{target} {port} to close")
    return last


@contextmanager
def session(host: Host, target: Address, port: int) -> Iterator[socket.socket]:
    """A connection to an echo service, proven to carry data."""
    with host.connection(target, port) as stream:
        assert reached(stream, PATIENCE_S) is Reach.OPEN
        assert lives(stream)
        yield stream


def lives(stream: socket.socket) -> bool:
    """Whether a session with an echo service still carries data."""
    return echoes(stream, within_s=PATIENCE_S)


def sockets_at(server: Host, port: int) -> str:
    """The server's own sockets of connections to a port."""
    return server.run(["ss", "-Htn", "state", "connected", f"sport = :{port}"]).stdout


def everything_waiting(at: socket.socket, within_s: float = SILENCE_S) -> list[bytes]:
    """All datagrams that come until none comes for a while."""
    found = []
    at.settimeout(within_s)
    while True:
        try:
            found.append(at.recv(2048))
        except TimeoutError:
            return found


# What a knock opens, and what it does not


@both_families
def test_a_knock_opens_its_port_to_its_source_for_its_time(
    scene: Scene, record: RecordSince, family: int
) -> None:
    server, client, other = scene.server, scene.client, scene.other
    source, target = address(client, family), address(server, family)
    assert is_silent(client, target, 22)
    knocked = time.monotonic()
    said = scene.alice.knock_at(client, target, "tcp/22", "--lifetime", "2s").stdout
    opened = time.monotonic()
    assert f"tcp/22 open for {source}" in said
    assert is_open(client, target, 22)
    elsewhere = [
        other.connection(target, 22),
        client.connection(target, 22, source=source + SECOND),
        client.connection(target + SECOND, 22),
        client.connection(target, 5432),
        client.connection(address(server, 10 - family), 22),
    ]
    assert nothing_answers(elsewhere)
    assert client.reach_udp(target, 22) is Reach.SILENT
    assert last_open(client, target, 22) < opened + 2
    assert time.monotonic() > knocked + 2

    who = {"identity": "alice", "key_id": scene.alice.key_id()}
    path = {"source": source, "target": target, "access": "tcp/22"}
    record.line("knock.accepted", **who, **path)
    hole = record.line("hole.opened", **who, **path, rule=OPS)
    record.line("connection.permitted", **who, **path, rule=OPS, grant_id=hole["grant_id"])
    record.line("hole.expired", **who, **path, rule=OPS, grant_id=hole["grant_id"])
    record.line("connection.denied", source=address(other, family), target=target, access="tcp/22")
    record.line("connection.denied", source=source, target=target, access="tcp/5432")


@both_families
def test_a_hole_is_not_for_the_broadcast_and_multicast_addresses_of_the_host(
    scene: Scene, family: int
) -> None:
    """A neighbour without a gate hears each of them: they do arrive."""
    target, client = address(scene.server, family), scene.client
    scene.alice.knock_at(client, target, "udp/80", "--lifetime", "1m")
    everybody = ["10.77.1.255", "255.255.255.255", "224.0.0.1"] if family == 4 else ["ff02::1"]
    with (
        udp_port(scene.other, family, 80) as neighbour,
        client.new_socket(af(family), socket.SOCK_DGRAM) as sending,
    ):
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan")
        neighbour.settimeout(PATIENCE_S)
        for each in everybody:
            sending.sendto(each.encode(), (each, 80))
            assert neighbour.recv(2048) == each.encode()
        sending.sendto(b"to the server", (str(target), 80))
        assert everything_waiting(scene.web[family]) == [b"to the server"]


def test_a_hole_can_be_for_another_address_of_the_host_and_is_then_for_that_alone(
    server: Host, client: Host, alice: Person
) -> None:
    second = server.v4 + SECOND
    alice.knock(client, "tcp/22", "--target", str(second))
    assert is_open(client, second, 22)
    assert is_silent(client, server.v4, 22)


def test_no_hole_is_for_an_address_that_is_not_the_hosts(scene: Scene, record: RecordSince) -> None:
    refused = scene.alice.knock(
        scene.client, "tcp/22", "--target", str(scene.other.v4), check=False
    )
    assert refused.returncode == 1
    assert "the target is no address of this host; see also_addressed_as" in refused.stderr
    reason = "the target is no address of this host; see also_addressed_as"
    record.line("knock.refused", identity="alice", target=scene.other.v4, reason=reason)
    assert not scene.site.holes()


@both_families
def test_a_wrong_role_opens_nothing_and_is_told_why(
    scene: Scene, record: RecordSince, family: int
) -> None:
    source, target = address(scene.client, family), address(scene.server, family)
    refused = scene.bob.knock_at(scene.client, target, "tcp/5432", check=False)
    assert refused.returncode == 1
    assert "refused tcp/5432: no role allows it" in refused.stderr
    assert scene.bob.key_id() in refused.stderr
    assert is_silent(scene.client, target, 5432)
    path = {"source": source, "target": target, "access": "tcp/5432"}
    record.line("knock.refused", identity="bob", **path, reason="no role allows it")


@both_families
def test_a_key_that_nobody_enrolled_opens_nothing_and_hears_nothing(
    scene: Scene, family: int
) -> None:
    target = address(scene.server, family)
    mallory = scene.site.stranger()
    said = mallory.knock_at(scene.client, target, "tcp/22", "--timeout", "0.5", check=False)
    assert said.returncode == 3
    assert "no answer" in said.stderr
    assert is_silent(scene.client, target, 22)


def test_a_name_with_addresses_of_both_families_is_knocked_on_at_both(
    scene: Scene, server: Host, client: Host, alice: Person
) -> None:
    with hosts_file(client, f"{server.v4} db1.example\n{server.v6} db1.example\n"):
        alice.client(client, "add", "named", scene.site.line, "--address", "db1.example")
        said = alice.client(client, "knock", "named", "tcp/22", "--json").stdout
    told = {at["address"]: at["status"] for at in json.loads(said)["addresses"]}
    assert told == {str(server.v4): "granted", str(server.v6): "granted"}
    assert is_open(client, server.v4, 22)
    assert is_open(client, server.v6, 22)


@contextmanager
def hosts_file(host: Host, text: str) -> Iterator[None]:
    """What `ip netns exec` lays over /etc/hosts for programs on this host."""
    path = Path("/etc/netns", host.namespace, "hosts")
    made = [each for each in (path.parent.parent, path.parent) if not each.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink()
        for directory in reversed(made):
            directory.rmdir()


def test_a_link_local_address_is_knocked_on_and_answers(scene: Scene, record: RecordSince) -> None:
    source, target = link_local(scene.client), link_local(scene.server)
    scoped = IPv6Address(f"{target}%lan")
    said = scene.alice.knock_at(scene.client, scoped, "tcp/22").stdout
    assert f"({scoped}): tcp/22 open for {source}" in said
    with scene.client.new_socket(socket.AF_INET6, socket.SOCK_STREAM) as stream:
        stream.settimeout(PATIENCE_S)
        with scene.client.inside():
            scope_id = socket.if_nametoindex("lan")
        stream.connect((str(target), 22, 0, scope_id))
        assert lives(stream)
    assert is_silent(scene.client, scene.server.v6, 22)
    with scene.server.inside():
        on_link = f"%{socket.if_nametoindex('lan')}"
    ends = {"source": f"{source}{on_link}", "target": f"{target}{on_link}"}
    record.line("connection.permitted", identity="alice", rule=OPS, **ends)


def link_local(host: Host) -> IPv6Address:
    shown = host.run(["ip", "-json", "-6", "address", "show", "dev", "lan", "scope", "link"])
    (found,) = filter(None, json.loads(shown.stdout)[0]["addr_info"])
    return IPv6Address(found["local"])


# Sessions


@both_families
def test_when_a_hole_ends_a_kept_session_lives_and_a_cut_one_is_dead(
    scene: Scene, record: RecordSince, family: int
) -> None:
    server, client = scene.server, scene.client
    source, target = address(client, family), address(server, family)
    scene.alice.knock_at(client, target, "tcp/22", "tcp/5432", "--lifetime", "2s")
    with session(client, target, 22) as kept, session(client, target, 5432) as cut:
        assert sockets_at(server, 5432)
        last_open(client, target, 5432)
        assert is_silent(client, target, 22)
        wait_until(lambda: not sockets_at(server, 5432))
        assert not echoes(cut)
        assert lives(kept)
        assert sockets_at(server, 22)
    path = {"source": source, "target": target, "access": "tcp/5432"}
    record.line("hole.expired", identity="alice", **path, rule=DBA)
    record.line("connection.severed", identity="alice", **path, rule=DBA)


def test_udp_of_a_cut_service_stops_with_its_hole(scene: Scene, record: RecordSince) -> None:
    """Nobody's socket can be destroyed: the kernel stops the packets, and says so once."""
    target = scene.server.v4
    with scene.client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((str(target), 5432))
        scene.alice.knock(scene.client, "udp/5432", "--lifetime", "1m")
        assert lives(asking)
        scene.alice.client(scene.client, "close", "site", "udp/5432")
        assert not echoes(asking)
        assert not echoes(asking)
        path = {"source": scene.client.v4, "target": target, "access": "udp/5432", "rule": DBA}
        record.line("connection.severed", identity="alice", **path)
        assert len(record.lines("connection.severed")) == 1
        scene.alice.knock(scene.client, "udp/5432", "--lifetime", "1m")
        assert lives(asking)


@pytest.mark.parametrize(
    ("ask", "rule"),
    [(("tcp/7000",), VOTER), (("tcp/22", "--once"), OPS)],
    ids=["by rule", "as asked"],
)
@both_families
def test_once_gives_exactly_one_connection_also_when_twenty_race(
    scene: Scene, record: RecordSince, family: int, ask: tuple[str, ...], rule: str
) -> None:
    client, target, port = scene.client, address(scene.server, family), int(ask[0][4:])
    said = scene.alice.knock_at(client, target, *ask, "--lifetime", "30s").stdout
    assert f"{ask[0]} open" in said
    with ExitStack() as stack:
        racing = [stack.enter_context(client.connection(target, port)) for _ in range(20)]
        wait_until(lambda: Reach.OPEN in [reached(stream, 0) for stream in racing])
        assert is_silent(client, target, port)
        winners = [stream for stream in racing if reached(stream, 0) is Reach.OPEN]
        assert len(winners) == 1
        assert lives(winners[0])
    assert [hole["open"] for hole in scene.site.holes()] == [False]
    path = {"target": target, "access": ask[0], "rule": rule}
    record.line("connection.permitted", identity="alice", **path)
    assert len(record.lines("connection.permitted")) == 1


def test_a_lifetime_beyond_the_most_that_is_allowed_is_cut_down_to_it(
    client: Host, alice: Person, record: RecordSince
) -> None:
    said = json.loads(alice.knock(client, "tcp/22", "--lifetime", "5h", "--json").stdout)
    (granted,) = said["addresses"][0]["accesses"]
    assert (granted["code"], granted["lifetime_s"]) == ("granted", 3600)
    assert record.line("hole.opened", identity="alice")["detail"] == {"lifetime_s": 3600}


# Several ports and datagrams


def test_a_range_opens_every_port_of_it_and_none_beside_it(
    server: Host, client: Host, alice: Person, record: RecordSince
) -> None:
    alice.knock(client, "tcp/9090-9094", "--lifetime", "1m")
    assert is_open(client, server.v4, 9090)
    assert is_open(client, server.v4, 9094)
    assert nothing_answers([client.connection(server.v4, port) for port in (9089, 9095)])
    record.line("connection.permitted", identity="alice", access="tcp/9094", rule=OPS)
    alice.knock(client, "tcp/9090-9099", "--lifetime", "1m")
    assert is_open(client, server.v4, 9099)
    assert is_silent(client, server.v4, 9100)
    wider = alice.knock(client, "tcp/9090-9100", check=False)
    assert wider.returncode == 1
    assert "refused tcp/9090-9100: no role allows it" in wider.stderr


@both_families
def test_udp_passes_both_ways_also_before_the_first_answer_and_is_one_connection(
    scene: Scene, record: RecordSince, family: int
) -> None:
    target, web = address(scene.server, family), scene.web[family]
    with scene.client.new_socket(af(family), socket.SOCK_DGRAM) as asking:
        asking.connect((str(target), 80))
        asking.send(b"before the knock")
        scene.alice.knock_at(scene.client, target, "udp/80", "--lifetime", "1m")
        for turn in range(3):
            questions = [b"question %d-%d" % (turn, n) for n in range(5)]
            answers = [b"answer %d-%d" % (turn, n) for n in range(5)]
            for question in questions:
                asking.send(question)
            heard = [web.recvfrom(2048) for _ in questions]
            assert [data for data, _ in heard] == questions
            for answer in answers:
                web.sendto(answer, heard[0][1])
            asking.settimeout(PATIENCE_S)
            assert [asking.recv(2048) for _ in answers] == answers
    path = {"source": address(scene.client, family), "target": target, "access": "udp/80"}
    record.line("connection.permitted", identity="alice", **path, rule=OPS)
    assert len(record.lines("connection.permitted")) == 1


def test_udp_that_is_never_answered_is_one_connection_and_outlives_its_hole(
    scene: Scene, record: RecordSince
) -> None:
    """Like syslog. A second flow is a second connection, and needs the hole again."""
    target, web = str(scene.server.v4), scene.web[4]
    with (
        scene.client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as sending,
        scene.client.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as late,
    ):
        scene.alice.knock(scene.client, "udp/80", "--lifetime", "1s")
        for _ in range(20):
            sending.sendto(b"line", (target, 80))
        assert everything_waiting(web) == [b"line"] * 20
        record.line("hole.expired", identity="alice", access="udp/80")
        sending.sendto(b"last line", (target, 80))
        late.sendto(b"too late", (target, 80))
        assert everything_waiting(web) == [b"last line"]
    assert len(record.lines("connection.permitted", identity="alice")) == 1


def test_of_several_accesses_each_is_decided_by_itself(
    server: Host, client: Host, bob: Person, record: RecordSince
) -> None:
    """What is allowed opens; the exit code says that not everything did."""
    said = bob.knock(client, "tcp/22", "tcp/5432", "tcp/9090", check=False)
    assert said.returncode == 1
    assert "tcp/22 open" in said.stdout
    assert "tcp/9090 open" in said.stdout
    assert "refused tcp/5432: no role allows it" in said.stderr
    assert is_open(client, server.v4, 22)
    assert is_open(client, server.v4, 9090)
    assert is_silent(client, server.v4, 5432)
    record.line("knock.accepted", identity="bob", access="tcp/22, tcp/9090")
    record.line("knock.refused", identity="bob", access="tcp/5432", reason="no role allows it")


# The source


def test_a_declared_source_is_whom_the_hole_is_for(scene: Scene, record: RecordSince) -> None:
    server, client, other = scene.server, scene.client, scene.other
    said = scene.alice.knock(client, "tcp/22", "--source", str(other.v4))
    assert f"tcp/22 open for {other.v4}" in said.stdout
    assert f"declared {other.v4}, but the server saw {client.v4}" in said.stderr
    assert is_open(other, server.v4, 22)
    assert is_silent(client, server.v4, 22)
    accepted = record.line("knock.accepted", identity="alice", source=other.v4)
    assert accepted["detail"]["seen_from"] == str(client.v4)


@both_families
def test_two_people_behind_one_address_each_give_back_only_their_own(
    scene: Scene, record: RecordSince, family: int
) -> None:
    """The hole is for the NAT's address, and lives while one of them holds it."""
    target, seen = address(scene.server, family), address(scene.router, family)
    open_a_minute = ("tcp/22", "--lifetime", "1m")
    said = scene.alice.knock_at(scene.home1, target, *open_a_minute).stdout
    assert f"tcp/22 open for {seen}" in said
    scene.bob.knock_at(scene.home2, target, *open_a_minute)
    assert is_open(scene.home1, target, 22)
    record.line("connection.permitted", identity="alice, bob", source=seen, rule=OPS)
    at = scene.alice.name_of(target)
    assert "tcp/22 closed" in scene.alice.client(scene.home1, "close", at, "tcp/22").stdout
    assert [hole["identity"] for hole in scene.site.holes()] == ["bob"]
    assert is_open(scene.home2, target, 22)
    scene.bob.client(scene.home2, "close", at, "tcp/22")
    assert is_silent(scene.home2, target, 22)
    why = {"source": seen, "target": target, "rule": OPS, "reason": "closed by its owner"}
    record.line("hole.closed", identity="alice", **why)
    record.line("hole.closed", identity="bob", **why)


def test_a_shared_source_gets_no_hole(scene: Scene, record: RecordSince) -> None:
    """Behind a proxy, everybody would come in by one person's knock."""
    target, proxy = scene.server.v4, scene.proxy
    for host, declared in ((proxy, "none"), (proxy, "auto"), (scene.client, str(proxy.v4))):
        refused = scene.alice.knock(host, "tcp/22", "--source", declared, check=False)
        assert refused.returncode == 1
        assert "the source is shared by many" in refused.stderr
        assert is_silent(proxy, target, 22)
    reason = "the source is shared by many"
    record.line("knock.refused", identity="alice", source=proxy.v4, target=target, reason=reason)


def test_a_knock_without_reply_opens_all_the_same(
    server: Host, client: Host, alice: Person
) -> None:
    said = alice.knock(client, "tcp/22", "--no-reply")
    assert "no reply was asked for" in said.stdout
    wait_until(lambda: is_open(client, server.v4, 22))


# What ends a hole before its time


@both_families
def test_its_owner_closes_a_hole_at_once(scene: Scene, record: RecordSince, family: int) -> None:
    source, target = address(scene.client, family), address(scene.server, family)
    scene.alice.knock_at(scene.client, target, "tcp/22", "tcp/5432", "--lifetime", "1m")
    with session(scene.client, target, 22) as kept, session(scene.client, target, 5432) as cut:
        at = scene.alice.name_of(target)
        said = scene.alice.client(scene.client, "close", at, "tcp/22", "tcp/5432").stdout
        assert "tcp/22, tcp/5432 closed" in said
        closed = [scene.client.connection(target, port) for port in (22, 5432)]
        assert nothing_answers(closed)
        assert lives(kept)
        assert not echoes(cut)
    path = {"identity": "alice", "source": source, "target": target}
    record.line("close.asked", **path, access="tcp/22, tcp/5432")
    record.line("hole.closed", **path, access="tcp/22", rule=OPS, reason="closed by its owner")
    record.line("hole.closed", **path, access="tcp/5432", rule=DBA, reason="closed by its owner")
    again = scene.alice.client(scene.client, "close", at, "tcp/22", check=False)
    assert again.returncode == 1
    assert "nothing was open" in again.stderr


def test_an_operator_sees_the_holes_and_closes_any(scene: Scene, record: RecordSince) -> None:
    server, client, site = scene.server, scene.client, scene.site
    scene.alice.knock(client, "tcp/22", "tcp/5432", "tcp/9090", "--lifetime", "1m")
    scene.bob.knock_at(client, server.v6, "tcp/22", "--lifetime", "1m")
    holes = {(hole["identity"], hole["access"]): hole for hole in site.holes()}
    assert len(holes) == 4
    ssh = holes["alice", "tcp/22"]
    ends = {"source": str(client.v4), "target": str(server.v4), "rule": OPS, "open": True}
    assert ssh.items() >= ends.items()
    assert 50 < ssh["remaining_s"] <= 60
    table = site.server("holes").stdout
    assert all(word in table for word in ("alice", "bob", "tcp/5432", str(server.v6)))

    site.server("close", str(ssh["grant"]))
    assert is_silent(client, server.v4, 22)
    assert is_open(client, server.v4, 9090)
    site.server("close", "--identity", "alice")
    assert nothing_answers([client.connection(server.v4, port) for port in (5432, 9090)])
    assert is_open(client, server.v6, 22)
    site.server("close", "--all")
    assert is_silent(client, server.v6, 22)
    assert not site.holes()
    nothing = site.server("close", "--all", check=False)
    assert nothing.returncode == 1
    assert "nothing to close" in nothing.stderr
    why = {"rule": OPS, "reason": "closed by the operator"}
    record.line("hole.closed", identity="alice", **ends_of(client, server), **why)
    record.line("hole.closed", identity="bob", source=client.v6, target=server.v6, **why)


def test_a_hole_ends_with_its_key_and_then_a_knock_is_silent(
    scene: Scene, client: Host, server: Host, record: RecordSince
) -> None:
    erin = scene.site.enrol("erin", "ops", expires="4s")
    enrolled = time.monotonic()
    erin.knock(client, "tcp/22", "--lifetime", "1h")
    assert is_open(client, server.v4, 22)
    assert last_open(client, server.v4, 22) < enrolled + 4
    wait_until(lambda: time.monotonic() > enrolled + 4)
    later = erin.knock(client, "tcp/22", "--timeout", "0.5", check=False)
    assert later.returncode == 3
    assert is_silent(client, server.v4, 22)
    record.line("hole.opened", identity="erin", **ends_of(client, server), rule=OPS)
    record.line("hole.expired", identity="erin", **ends_of(client, server), rule=OPS)
    assert not record.lines("knock.refused", identity="erin")


def test_a_revoked_key_loses_its_holes_within_a_second_and_its_cut_sessions(
    scene: Scene, client: Host, server: Host, record: RecordSince
) -> None:
    carol = scene.site.enrol("carol", "ops", "dba")
    carol.knock(client, "tcp/22", "tcp/5432", "--lifetime", "1h")
    with session(client, server.v4, 22) as kept, session(client, server.v4, 5432) as cut:
        scene.site.keys("revoke", "carol", "--yes")
        revoked = time.monotonic()
        assert last_open(client, server.v4, 22) < revoked + 1
        assert is_silent(client, server.v4, 5432)
        assert not sockets_at(server, 5432)
        assert not echoes(cut)
        assert lives(kept)
    silent = carol.knock(client, "tcp/22", "--timeout", "0.5", check=False)
    assert silent.returncode == 3
    why = {**ends_of(client, server), "reason": "the key was revoked or has expired"}
    record.line("hole.closed", identity="carol", **why, access="tcp/22", rule=OPS)
    record.line("hole.closed", identity="carol", **why, access="tcp/5432", rule=DBA)
    record.line("connection.severed", identity="carol", **why, access="tcp/5432", rule=DBA)
    record.line("keys.changed", identity="carol", key_id=carol.key_id())


def test_a_role_works_as_soon_as_it_is_given_and_no_longer_than_it_is_held(
    scene: Scene, client: Host, server: Host, record: RecordSince
) -> None:
    dave = scene.site.enrol("dave")
    assert dave.knock(client, "tcp/22", check=False).returncode == 1
    scene.site.keys("grant", "dave", "ops", "dba")
    dave.knock(client, "tcp/22", "tcp/5432", "--lifetime", "1h")
    assert is_open(client, server.v4, 22)
    assert is_open(client, server.v4, 5432)
    scene.site.keys("ungrant", "dave", "ops")
    assert is_silent(client, server.v4, 22)
    assert is_open(client, server.v4, 5432)
    assert dave.knock(client, "tcp/22", check=False).returncode == 1
    reason = "the policy or the roles no longer allow it"
    record.line("hole.closed", identity="dave", access="tcp/22", rule=OPS, reason=reason)


# A changed policy


def by_command(site: Site) -> None:
    site.server("reload")


def by_sighup(site: Site) -> None:
    assert site.daemon is not None
    site.daemon.process.send_signal(signal.SIGHUP)


@pytest.fixture
def changed_policy(scene: Scene) -> Iterator[Callable[[str], None]]:
    """Replaces the policy for the test; the daemon is not told."""
    yield scene.site.write_policy
    scene.site.write_policy(scene.site.policy)
    scene.site.server("reload")


@pytest.mark.parametrize("reload", [by_command, by_sighup])
def test_a_changed_policy_closes_what_it_no_longer_allows_and_leaves_the_rest(
    scene: Scene,
    record: RecordSince,
    changed_policy: Callable[[str], None],
    reload: Callable[[Site], None],
) -> None:
    server, client = scene.server, scene.client
    scene.alice.knock(client, "tcp/22", "tcp/9090", "tcp/5432", "--lifetime", "1h")
    with session(client, server.v4, 9090) as kept, session(client, server.v4, 5432) as cut:
        narrowed = 'services = ["ssh", "web"]'
        changed_policy(scene.site.policy.replace('services = ["ssh", "web", "console"]', narrowed))
        reload(scene.site)
        reason = "the policy or the roles no longer allow it"
        path = {**ends_of(client, server), "access": "tcp/9090", "rule": OPS}
        record.line("hole.closed", identity="alice", **path, reason=reason)
        record.line("policy.loaded")
        assert is_silent(client, server.v4, 9090)
        assert is_open(client, server.v4, 22)
        assert lives(kept)
        assert lives(cut)
    assert scene.alice.knock(client, "tcp/9090", check=False).returncode == 1


@pytest.mark.parametrize("reload", ["command", "sighup"])
def test_a_broken_policy_changes_nothing_and_is_recorded(
    scene: Scene,
    record: RecordSince,
    changed_policy: Callable[[str], None],
    reload: str,
) -> None:
    server, client = scene.server, scene.client
    scene.alice.knock(client, "tcp/22", "--lifetime", "1h")
    changed_policy(scene.site.policy.replace('services = ["postgres"]', 'services = ["postgress"]'))
    if reload == "command":
        refused = scene.site.server("reload", check=False)
        assert refused.returncode
        assert "no service 'postgress'" in refused.stderr
    else:
        by_sighup(scene.site)
        assert scene.site.daemon is not None
        scene.site.daemon.wait_for("the policy in force stays")
    problem: dict[str, Any] = record.line("policy.refused")
    assert "policy.toml: roles.dba.allow[0].services: no service 'postgress'" in problem["reason"]
    assert is_open(client, server.v4, 22)
    scene.alice.knock(client, "tcp/5432")
    assert is_open(client, server.v4, 5432)
    assert not record.lines("policy.loaded")
