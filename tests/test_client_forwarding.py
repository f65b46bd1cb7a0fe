"""Local ports: how they are written, where they listen, who shares a knock, and how all ends."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from keys.trouble import Trouble
from spa_client import knocking
from spa_client.compose import Wish
from spa_client.config import Host
from spa_client.doorway import Attempt, Doorway
from spa_client.forwarding import BadForward, Forward, is_loopback, listen, parse_forward
from spa_client.knocking import Knocking, Options
from spa_client.splice import Splice, reset
from spa_protocol.access import Access, Protocol
from spa_protocol.reason import Code
from tests.test_client_fake_server import FakeServer, Script, grants, refuses, says_nothing, serving

EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - what a star stands for
POSTGRES = Access.parse("tcp/5432")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15432:db1:5432", Forward("", 15432, "db1", POSTGRES)),
        ("0:db1:postgresql", Forward("", 0, "db1", POSTGRES)),
        ("localhost:1:db1:5432", Forward("localhost", 1, "db1", POSTGRES)),
        ("127.0.0.2:1:db1:5432", Forward("127.0.0.2", 1, "db1", POSTGRES)),
        ("[::1]:1:[fd00::5]:5432", Forward("::1", 1, "fd00::5", POSTGRES)),
        ("*:1:db1:5432", Forward("*", 1, "db1", POSTGRES)),
        (":1:db1:5432", Forward("*", 1, "db1", POSTGRES)),
    ],
)
def test_what_is_written_as_for_ssh(text: str, expected: Forward) -> None:
    assert parse_forward(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write it like 15432:db1:5432"),
        ("15432", "write it like 15432:db1:5432"),
        ("15432:db1", "write it like 15432:db1:5432"),
        ("15432::5432", "write it like 15432:db1:5432"),
        ("a:b:c:d:e", "write it like 15432:db1:5432"),
        ("x:db1:5432", "'x' is no local port"),
        ("65536:db1:5432", "'65536' is no local port"),
        ("-1:db1:5432", "'-1' is no local port"),
        ("1:db1:0", "0 is no port from 1 to 65535"),
        ("1:db1:20-30", "more than one port"),
        ("1:db1:no-such-service", "not in the services database"),
        ("1:db1:udp/53", "carries TCP alone"),
    ],
)
def test_what_is_no_forward(text: str, said: str) -> None:
    with pytest.raises(BadForward, match=said):
        parse_forward(text)


@contextlib.contextmanager
def listening(text: str) -> Iterator[list[tuple[str, int]]]:
    listeners = listen(parse_forward(text))
    try:
        yield [listener.getsockname()[:2] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def test_a_free_port_is_the_same_in_both_families() -> None:
    with listening("0:db1:22") as (first, second):
        assert (first[0], second[0]) == ("127.0.0.1", "::1")
        assert first[1] == second[1] > 0


def test_one_address_and_every_address() -> None:
    with listening("127.0.0.2:0:db1:22") as [(address, _)]:
        assert address == "127.0.0.2"
    with listening("*:0:db1:22") as both:
        assert [address for address, _ in both] == list(EVERYWHERE)


def test_only_loopback_is_this_machine_s_alone() -> None:
    for address, expected in (("127.0.0.1", True), ("::1", True), (EVERYWHERE[0], False)):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, 0), family=family) as listener:
            assert is_loopback(listener) is expected


def test_a_port_that_is_taken_and_an_address_of_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Trouble, match=f"cannot listen on 127.0.0.1:{port}: .*choose another"):
            listen(parse_forward(f"{port}:db1:22"))
    with pytest.raises(Trouble, match=r"cannot listen on 192\.0\.2\.1:0"):
        listen(parse_forward("192.0.2.1:0:db1:22"))
    with pytest.raises(Trouble, match=r"cannot listen on no-such-host\.invalid:0"):
        listen(parse_forward("no-such-host.invalid:0:db1:22"))


# Doorways


@contextlib.contextmanager
def echo() -> Iterator[Access]:
    """An echo service on loopback for any number of connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        serving_thread = threading.Thread(target=_accept, args=(listener,))
        serving_thread.start()
        port = listener.getsockname()[1]
        yield Access(Protocol.TCP, port, port)
        listener.shutdown(socket.SHUT_RDWR)
        serving_thread.join()


def _accept(listener: socket.socket) -> None:
    threads = []
    with contextlib.suppress(OSError):
        while True:
            stream, _ = listener.accept()
            threads.append(threading.Thread(target=_echo, args=(stream,)))
            threads[-1].start()
    for thread in threads:
        thread.join()


def _echo(stream: socket.socket) -> None:
    with stream, contextlib.suppress(OSError):
        while chunk := stream.recv(65536):
            stream.sendall(chunk)


def aiming(server: FakeServer, wish: Wish, timeout_s: float = 2.0) -> Callable[[], Knocking]:
    host = Host("db1", server.line, server.host, Path("x.key"))
    return lambda: knocking.aim(host, server.client, wish, Options(timeout_s=timeout_s))


def doorway(server: FakeServer, access: Access, **more: bool) -> Doorway:
    return Doorway(aiming(server, Wish((access,), **more)), access, **more)


def connections(door: Doorway, count: int) -> list[Attempt | Trouble]:
    """So many at once, each from a thread of its own."""
    found: list[Attempt | Trouble] = []

    def connect() -> None:
        try:
            found.append(door.connect())
        except Trouble as trouble:
            found.append(trouble)

    threads = [threading.Thread(target=connect) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def close_all(found: list[Attempt | Trouble]) -> int:
    """How many of them were connected."""
    winners = [a.race.winner for a in found if isinstance(a, Attempt) and a.race.winner]
    for winner in winners:
        winner.socket.close()
    return len(winners)


def slowly(script: Script, seconds: float = 0.2) -> Script:
    return lambda heard: [seconds, *script(heard)]


def test_connections_that_come_at_once_share_a_knock() -> None:
    with serving(slowly(grants)) as server, echo() as access:
        door = doorway(server, access)
        assert close_all(connections(door, 40)) == 40
        assert len(server.heard) <= 2
        assert [str(target) for target in door.opened] == ["127.0.0.1"]


def test_one_that_comes_later_knocks_anew() -> None:
    with serving() as server, echo() as access:
        door = doorway(server, access)
        for _ in range(2):
            assert close_all(connections(door, 1)) == 1
            time.sleep(1.1)
        assert len(server.heard) == 2


def test_a_short_lifetime_is_not_stretched() -> None:
    """An answer serves others for a quarter of what it opens."""
    with serving(lambda heard: [heard.reply(lifetime_s=1)]) as server, echo() as access:
        door = doorway(server, access)
        assert close_all(connections(door, 1)) == 1
        time.sleep(0.3)
        assert close_all(connections(door, 1)) == 1
        assert len(server.heard) == 2


def test_a_hole_for_one_connection_is_shared_by_nobody() -> None:
    with serving() as server, echo() as access:
        door = doorway(server, access, once=True)
        assert close_all(connections(door, 5)) == 5
        assert len(server.heard) == 5
        assert all(heard.knock.request.once for heard in server.heard)


@pytest.mark.parametrize("script", [refuses(Code.NO_ROLE), says_nothing])
def test_who_waits_for_a_knock_that_fails_fails_with_it(script: Script) -> None:
    with serving(slowly(script)) as server:
        door = Doorway(aiming(server, Wish((POSTGRES,)), timeout_s=0.8), POSTGRES)
        found = connections(door, 20)
    assert len(found) == 20
    assert close_all(found) == 0
    assert len(server.heard) <= 6


def test_what_aiming_raises_reaches_everybody() -> None:
    def aim() -> Knocking:
        time.sleep(0.2)
        raise Trouble("cannot resolve db1")

    found = connections(Doorway(aim, POSTGRES), 5)
    assert [str(each) for each in found] == ["cannot resolve db1"] * 5


def test_an_answer_that_leads_nowhere_is_forgotten() -> None:
    """The service is down at first: whoever dials behind another's knock then knocks anew."""
    with serving() as server:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        access = Access(Protocol.TCP, port, port)
        door = doorway(server, access)
        assert close_all(connections(door, 1)) == 0
        assert close_all(connections(door, 1)) == 0
        assert len(server.heard) == 2


# Splices


class Joined:
    """A splice in a thread, and its two outer ends."""

    def __init__(self) -> None:
        one, self.local = _pair()
        other, self.remote = _pair()
        self.splice = Splice(one, other)
        self.thread = threading.Thread(target=self.splice.run)

    def __enter__(self) -> "Joined":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.local.close()
        self.remote.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    other.settimeout(10)
    return one, other


def test_bytes_go_both_ways_at_once() -> None:
    payload = os.urandom(5_000_000)
    with Joined() as joined:
        back = bytearray()

        def reflect() -> None:
            while chunk := joined.remote.recv(65536):
                joined.remote.sendall(chunk)
            joined.remote.shutdown(socket.SHUT_WR)

        def collect() -> None:
            while chunk := joined.local.recv(65536):
                back.extend(chunk)

        threads = [threading.Thread(target=reflect), threading.Thread(target=collect)]
        for thread in threads:
            thread.start()
        joined.local.sendall(payload)
        joined.local.shutdown(socket.SHUT_WR)
        for thread in threads:
            thread.join(20)
    assert bytes(back) == payload


@pytest.mark.parametrize("forwards", [True, False])
def test_the_end_of_one_direction_leaves_the_other(forwards: bool) -> None:
    with Joined() as joined:
        first, second = joined.local, joined.remote
        if not forwards:
            first, second = second, first
        first.sendall(b"all of it")
        first.shutdown(socket.SHUT_WR)
        assert second.recv(100) == b"all of it"
        assert second.recv(100) == b""
        second.sendall(b"thanks")
        assert first.recv(100) == b"thanks"
        second.close()
        assert first.recv(100) == b""
        joined.thread.join(5)
        assert not joined.thread.is_alive()


@pytest.mark.parametrize("forwards", [True, False])
def test_a_connection_that_breaks_breaks_the_other(forwards: bool) -> None:
    with Joined() as joined:
        first, second = joined.local, joined.remote
        if not forwards:
            first, second = second, first
        reset(first)
        with pytest.raises(ConnectionResetError):
            second.recv(1)


def test_a_cut_breaks_both() -> None:
    with Joined() as joined:
        joined.splice.cut()
        joined.thread.join(5)
        assert not joined.thread.is_alive()
        for each in (joined.local, joined.remote):
            with pytest.raises(ConnectionResetError):
                each.recv(1)


def test_a_cut_where_the_other_side_takes_nothing() -> None:
    with Joined() as joined:
        joined.local.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                joined.local.send(bytes(65536))
        joined.splice.cut()
        joined.thread.join(5)
        assert not joined.thread.is_alive()


def test_a_forward_is_what_its_bind_says() -> None:
    forward = parse_forward("1:db1:22")
    assert forward.addresses == ("127.0.0.1", "::1")
    assert replace(forward, bind="*").addresses == EVERYWHERE
    assert replace(forward, bind="10.0.0.9").addresses == ("10.0.0.9",)
