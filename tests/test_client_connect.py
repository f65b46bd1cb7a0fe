"""Which connection wins, and that the pipe carries every byte and every end of stream."""

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from spa_client.carriers import Answer, Result, Silence
from spa_client.compose import Datagram
from spa_client.connect import DIAL_TIMEOUT_S, STAGGER_S, grants, race
from spa_client.pipe import Pipe
from spa_client.resolve import Target
from spa_protocol.access import Access, Protocol
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Outcome, Reply
from tests.test_client_fake_server import SSH

MEBIBYTE = 2**20


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def access_of(listener: socket.socket) -> Access:
    port = listener.getsockname()[1]
    return Access(Protocol.TCP, port, port)


def granted(host: str, access: Access, code: Code = Code.GRANTED) -> Answer:
    reply = Reply(Status.GRANTED, 0, None, None, (Outcome(access, code, 30),))
    return Answer(Target(ip_address(host), 62201), Datagram(b"", b"", 0, None), reply, 0)


def silent(host: str) -> Silence:
    return Silence(Target(ip_address(host), 62201), 3)


@contextlib.contextmanager
def hanging(access: Access, host: str) -> Iterator[None]:
    """Nobody answers a SYN here: the listener's queue is full."""
    with socket.create_server((host, access.first), backlog=0), contextlib.ExitStack() as stack:
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, access.first))
        time.sleep(0.05)
        yield


def test_only_the_access_that_is_needed_counts() -> None:
    other = Access.parse("tcp/2222")
    assert grants(granted("127.0.0.1", SSH), SSH)
    assert not grants(granted("127.0.0.1", other), SSH)
    assert not grants(granted("127.0.0.1", SSH, Code.NO_ROLE), SSH)


def test_the_granted_address_is_dialled_while_the_others_are_waited_for(listening) -> None:
    access, dialled = access_of(listening), threading.Event()
    all_came = []

    def results() -> Iterator[Result]:
        yield granted("127.0.0.1", access)
        all_came.append(not dialled.wait(10))

    outcome = race(results(), access)
    assert not all_came
    dialled.set()
    assert outcome.winner is not None
    assert outcome.winner.socket.getpeername()[0] == "127.0.0.1"
    outcome.winner.socket.close()


def test_nothing_granted_dials_nothing(listening) -> None:
    access = access_of(listening)
    refused = granted("127.0.0.1", access, Code.NOT_NOW)
    outcome = race([refused, silent("::1")], access)
    assert outcome.winner is None
    assert outcome.results == [refused, silent("::1")]
    assert outcome.failures == []


def test_an_address_where_nothing_listens_makes_way(listening) -> None:
    access = access_of(listening)
    outcome = race([granted("127.0.0.2", access), granted("127.0.0.1", access)], access)
    assert outcome.winner is not None
    assert str(outcome.winner.answer.target) == "127.0.0.1"
    outcome.winner.socket.close()


def test_an_address_that_hangs_costs_a_quarter_of_a_second(listening) -> None:
    access = access_of(listening)
    with hanging(access, "127.0.0.3"):
        begun = time.monotonic()
        outcome = race([granted("127.0.0.3", access), granted("127.0.0.1", access)], access)
        lasted_s = time.monotonic() - begun
    assert outcome.winner is not None
    assert str(outcome.winner.answer.target) == "127.0.0.1"
    assert STAGGER_S <= lasted_s < DIAL_TIMEOUT_S
    outcome.winner.socket.close()


def test_every_failure_is_told() -> None:
    access = Access(Protocol.TCP, 1, 1)
    outcome = race([granted("127.0.0.2", access), granted("127.0.0.1", access)], access)
    assert outcome.winner is None
    assert {(str(f.target), f.error) for f in outcome.failures} == {
        ("127.0.0.1", "connection refused"),
        ("127.0.0.2", "connection refused"),
    }


def test_what_knocking_raises_comes_out() -> None:
    def results() -> Iterator[Result]:
        yield silent("::1")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        race(results(), SSH)


class Ends:
    """A pipe in a thread, and its four outer ends: the peer's socket, the input, the output."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        source, self.input = os.pipe()
        self.output, sink = os.pipe()
        self.peer.settimeout(10)
        self.pipe = Pipe(ours, source, sink)
        self.thread = threading.Thread(target=self.pipe.run)
        self._inner = (ours, source, sink)

    def __enter__(self) -> "Ends":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()
        for descriptor in (self.input, self.output):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.thread.join(10)
        assert not self.thread.is_alive()
        self._inner[0].close()
        for descriptor in self._inner[1:]:
            os.close(descriptor)

    def ends(self) -> bool:
        self.thread.join(2)
        return not self.thread.is_alive()


def test_bytes_go_both_ways() -> None:
    with Ends() as ends:
        os.write(ends.input, b"question\n")
        assert ends.peer.recv(100) == b"question\n"
        ends.peer.sendall(b"answer\n")
        assert os.read(ends.output, 100) == b"answer\n"


def test_the_end_of_input_is_passed_on_and_the_answer_still_comes() -> None:
    with Ends() as ends:
        os.write(ends.input, b"all of it")
        os.close(ends.input)
        assert ends.peer.recv(100) == b"all of it"
        assert ends.peer.recv(100) == b""
        ends.peer.sendall(b"thanks")
        ends.peer.close()
        assert os.read(ends.output, 100) == b"thanks"
        assert os.read(ends.output, 100) == b""
        assert ends.ends()
        assert ends.pipe.error is None


def test_the_end_of_what_the_server_sends_is_passed_on_and_input_still_goes() -> None:
    with Ends() as ends:
        ends.peer.sendall(b"banner")
        ends.peer.shutdown(socket.SHUT_WR)
        assert os.read(ends.output, 100) == b"banner"
        assert os.read(ends.output, 100) == b""
        os.write(ends.input, b"still here")
        assert ends.peer.recv(100) == b"still here"
        os.close(ends.input)
        assert ends.peer.recv(100) == b""
        assert ends.ends()


def test_a_reader_that_has_had_enough_ends_it_quietly() -> None:
    with Ends() as ends:
        os.close(ends.output)
        ends.peer.sendall(b"x")
        assert ends.ends()
        assert ends.pipe.error is None


def test_a_broken_connection_is_told(listening) -> None:
    with socket.create_connection(listening.getsockname()) as ours:
        peer, _ = listening.accept()
        source, feeding = os.pipe()
        reading, sink = os.pipe()
        pipe = Pipe(ours, source, sink)
        running = threading.Thread(target=pipe.run)
        running.start()
        linger = (1).to_bytes(4, "little") + bytes(4)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        peer.close()
        running.join(5)
        assert isinstance(pipe.error, ConnectionResetError)
        for descriptor in (source, feeding, reading, sink):
            os.close(descriptor)


def test_one_non_blocking_socket_as_input_and_output() -> None:
    """As a parent that uses a socket pair, like inetd or an event loop, hands it over."""
    ours, peer = socket.socketpair()
    stream, outside = socket.socketpair()
    stream.setblocking(False)
    sink = os.dup(stream.fileno())
    pipe = Pipe(ours, stream.fileno(), sink)
    running = threading.Thread(target=pipe.run)
    running.start()
    payload = os.urandom(3 * MEBIBYTE)
    echoing = threading.Thread(target=_echo, args=(peer,))
    sending = threading.Thread(target=_send, args=(outside, payload))
    echoing.start()
    sending.start()
    received = hashlib.sha256()
    while chunk := outside.recv(65_536):
        received.update(chunk)
    for thread in (running, echoing, sending):
        thread.join()
    assert received.digest() == hashlib.sha256(payload).digest()
    for each in (ours, peer, stream, outside):
        each.close()
    os.close(sink)


def _send(outside: socket.socket, payload: bytes) -> None:
    outside.sendall(payload)
    outside.shutdown(socket.SHUT_WR)


def _echo(peer: socket.socket) -> None:
    while chunk := peer.recv(65_536):
        peer.sendall(chunk)
    peer.close()
