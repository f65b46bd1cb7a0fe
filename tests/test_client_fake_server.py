"""A server for the client's tests: the real protocol behind a real UDP socket on loopback.

It decides nothing by itself: each test says what it answers. The tests at the end show that it is
as strict as a server has to be, so that what it accepts is a proof.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

from keys import identity
from keys.identity import Identity
from spa_client.compose import Composer, Wish
from spa_client.resolve import Target
from spa_protocol import seal
from spa_protocol.access import Access
from spa_protocol.keytext import Endpoint, ServerLine
from spa_protocol.knock import AuthenticKnock, Close, open_request, verify_request
from spa_protocol.layout import NONCE_SIZE, epoch_of
from spa_protocol.publickey import Sender
from spa_protocol.reason import Code, Reason, Status
from spa_protocol.reply import Outcome, Reply, seal_reply

SSH = Access.parse("tcp/22")


@dataclass(frozen=True)
class Heard:
    """One authentic request, which number it has, and what a reply to it is made of."""

    knock: AuthenticKnock
    nth: int
    peer: str

    def reply(
        self,
        status: Status | None = None,
        code: Code | None = None,
        *,
        lifetime_s: int = 30,
        lead_s: float = 0,
        message: str = "",
        outcomes: tuple[Outcome, ...] | None = None,
    ) -> Reply:
        """As docs/protocol.md 8.2 has it: everything granted to a knock, nothing open for a close,
        unless a status is given, or what each access comes to."""
        request = self.knock.request
        if status is None:
            status = Status.CLOSED if isinstance(request, Close) else Status.GRANTED
            outcomes = () if isinstance(request, Close) and outcomes is None else outcomes
        code = _CODES.get(status) if code is None else code
        granted_s = lifetime_s if status is Status.GRANTED and code is Code.GRANTED else 0
        told = () if code is None else request.accesses
        usual = tuple(Outcome(access, code or Code.GRANTED, granted_s) for access in told)
        return Reply(
            status,
            int((time.time() + lead_s) * 1_000_000),
            ip_address(self.peer),
            request.target,
            usual if outcomes is None else outcomes,
            message,
        )


_CODES = {
    Status.GRANTED: Code.GRANTED,
    Status.REFUSED: Code.NO_ROLE,
    Status.UNAVAILABLE: Code.UNAVAILABLE,
    Status.CLOSED: Code.GRANTED,
}
"""That of each outcome; a reply of another status has none."""


Action = Reply | bytes | float
"""A reply to seal and send, bytes to send as they are, or seconds to wait."""

Script = Callable[[Heard], Iterable[Action]]


@dataclass
class FakeServer:
    """Answers as its script says; remembers what it heard."""

    client: Identity
    script: Script
    host: str = "127.0.0.1"
    port: int = 0
    heard: list[Heard] = field(default_factory=list)
    refused: list[Reason] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.secret = secrets.token_bytes(32)
        self.sender = Sender.known_to(self.secret, self.client.public)
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((self.host, self.port))
        self.socket.settimeout(0.05)
        self.port = self.socket.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.socket.close()

    @property
    def line(self) -> ServerLine:
        return ServerLine(seal.agreement_public(self.secret), Endpoint(self.host, self.port))

    @property
    def target(self) -> Target:
        return Target(ip_address(self.host), self.port)

    def composer(self, wish: Wish | None = None, **more: object) -> Composer:
        return Composer.toward(self.line.public, self.client, wish or Wish((SSH,)), **more)

    def accept(self, payload: bytes) -> AuthenticKnock | Reason:
        opened = open_request(payload, self._find)
        return opened if isinstance(opened, Reason) else verify_request(opened)

    def _find(self, tag: bytes) -> Sender | None:
        epoch = epoch_of(time.time_ns() // 1000)
        known = {self.sender.pair.tag_at(e) for e in range(epoch - 2, epoch + 3)}
        return self.sender if tag in known else None

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                payload, peer = self.socket.recvfrom(2048)
            except TimeoutError:
                continue
            knock = self.accept(payload)
            if isinstance(knock, Reason):
                self.refused.append(knock)
                continue
            self.heard.append(Heard(knock, len(self.heard) + 1, peer[0]))
            self._act(self.heard[-1], peer)

    def _act(self, heard: Heard, peer: tuple[str, int]) -> None:
        for action in self.script(heard):
            if isinstance(action, float):
                self._stop.wait(action)
                continue
            self.socket.sendto(self.sealed(action, heard), peer)

    def sealed(self, action: Reply | bytes, heard: Heard) -> bytes:
        if isinstance(action, bytes):
            return action
        return seal_reply(
            action,
            pair=self.sender.pair,
            request_nonce=heard.knock.nonce,
            nonce=os.urandom(NONCE_SIZE),
        )


def grants(heard: Heard) -> Iterator[Action]:
    yield heard.reply()


def says_nothing(_: Heard) -> Iterator[Action]:
    yield from ()


def refuses(code: Code) -> Script:
    return lambda heard: [heard.reply(Status.REFUSED, code)]


def says(status: Status, **more: object) -> Script:
    return lambda heard: [heard.reply(status, **more)]


@contextmanager
def serving(script: Script = grants, **more: object) -> Iterator[FakeServer]:
    with FakeServer(identity.generate("alice@laptop"), script, **more) as server:
        yield server


def test_what_the_client_composes_is_accepted() -> None:
    with serving() as server:
        loopback = ip_address("127.0.0.1")
        now_us = time.time_ns() // 1000
        made = server.composer().compose(loopback, loopback, nonce=bytes(24), now_us=now_us)
        knock = server.accept(made.payload)
    assert isinstance(knock, AuthenticKnock)
    assert knock.request.accesses == (SSH,)
    assert knock.request.source == loopback


def test_one_changed_bit_is_not_accepted() -> None:
    with serving() as server:
        loopback = ip_address("127.0.0.1")
        now_us = time.time_ns() // 1000
        made = server.composer().compose(loopback, loopback, nonce=bytes(24), now_us=now_us)
        for at, reason in ((0, Reason.UNKNOWN_KEY), (20, Reason.NOT_AUTHENTIC)):
            changed = bytearray(made.payload)
            changed[at] ^= 1
            assert server.accept(bytes(changed)) is reason
