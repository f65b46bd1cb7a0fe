"""Requests out, sealed replies in: one connected socket for each address.

A connected socket is what makes three things portable: the system says which of its own addresses
it sends from, an ICMP error comes back as an error of that one address, and nothing is heard but
what comes from the address and port that were knocked on.

A knock that is not answered is sent again, each time a new one (nonce, time, signature): after
0.3 s, 0.7 s, then every second until the time is up. So where three packets in ten are lost each
way, one wish in fifteen is unheard after 2.5 s, and one in 1,600 after 10 s. A key that must be
touched for each signature knocks once. A reply to any of them counts.

Whoever has seen the key's tag can flood it, so that knocks under it are not heard. Then the server
admits spare tags, and only then; so each further try is two knocks, under the usual tag and under a
spare one that is drawn anew. Where somebody may have to confirm each signature, it is one of the
two in turn. Whatever arrives and is no
reply to one of them is not looked at further. Once one address has answered, the others get half a
second more, so that a path that is dead holds nobody up.

By UDP a request is a datagram, which every system lets everybody send. In a ping or a SYN it needs
more (rawcarrier.py), and is sent and answered in the same way.

An error that the network reports is remembered and told, never believed: anybody can send one.
"""

import contextlib
import ipaddress
import os
import random
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice, product, repeat
from typing import Final, Protocol, TypeAlias

from spa_client.compose import Composer, Datagram
from spa_client.resolve import Target
from spa_protocol.carrier import UDP, Carrier
from spa_protocol.layout import NONCE_SIZE, TAGS, Address, unmapped
from spa_protocol.reply import Reply

DEFAULT_TIMEOUT_S: Final = 2.5
PATIENT_TIMEOUT_S: Final = 10.0
GRACE_S: Final = 0.5
_FIRST_WAITS_MS: Final = (300, 700)
_FURTHER_WAITS_MS: Final = 1000
_MAX_DATAGRAMS_AT_ONCE: Final = 256
_MAX_PAYLOAD: Final = 65_535
_STAMPED_AT_ONCE: Final = 16
_STAMPED_PAUSE_S: Final = 0.01
_STAMPED_PATIENCE_S: Final = 1.0
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's authentic reply from one address, to the datagram that it answers."""

    target: Target
    datagram: Datagram
    reply: Reply
    received_at_us: int


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing authentic came from one address.

    `datagrams` is how many were sent, `error` what the system or the network said about it.
    """

    target: Target
    datagrams: int
    error: str = ""


Result: TypeAlias = Answer | Silence


def wall_clock_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class Freshness:
    """The time and the randomness that make every knock a new one; tests bring their own."""

    now_us: Callable[[], int] = wall_clock_us
    random: Callable[[int], bytes] = os.urandom


def waits(timeout_s: float) -> Iterator[float]:
    """How long to listen after each try, in seconds; together exactly `timeout_s`."""
    left_ms = round(timeout_s * 1000)
    for wait_ms in chain(_FIRST_WAITS_MS, repeat(_FURTHER_WAITS_MS)):
        if left_ms <= 0:
            return
        yield min(wait_ms, left_ms) / 1000
        left_ms -= wait_ms


def _waits_for(composer: Composer, timeout_s: float) -> Iterable[float]:
    return (timeout_s,) if composer.identity.needs_touch else waits(timeout_s)


def tag_numbers(composer: Composer) -> Iterator[tuple[int, ...]]:
    """Which of the key's tags the knocks of each try bear: none twice that can be spared."""
    yield (0,)
    spare = cycle(random.SystemRandom().sample(range(1, TAGS), TAGS - 1))
    while True:
        if composer.identity.is_in_agent:
            yield (next(spare),)
            yield (0,)
        else:
            yield 0, next(spare)


class _Line(Protocol):
    """The way to one address: a socket, and what is around a request on it."""

    socket: socket.socket

    def connect(self) -> None: ...
    def close(self) -> None: ...
    def wrap(self, payload: bytes, own: Address) -> bytes: ...
    def unwrap(self, received: bytes) -> bytes: ...


class _UdpLine:
    """Raises OSError for a family that this system has not got."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.socket = socket.socket(target.family, socket.SOCK_DGRAM)

    def connect(self) -> None:
        self.socket.connect(self._target.sockaddr())

    def close(self) -> None:
        self.socket.close()

    def wrap(self, payload: bytes, own: Address) -> bytes:  # noqa: ARG002 - the kernel's header
        return payload

    def unwrap(self, received: bytes) -> bytes:
        return received


def _line(target: Target, carrier: Carrier) -> _Line:
    """Raises OSError, and Trouble for a raw carrier that cannot be had."""
    if not carrier.is_raw:
        return _UdpLine(target)
    from spa_client.rawcarrier import RawLine  # noqa: PLC0415 - few need it

    return RawLine(target, carrier)


class _Talk:
    """What was sent to one address, and the line it went over."""

    def __init__(self, target: Target, carrier: Carrier) -> None:
        self.target = target
        self._line = _line(target, carrier)
        self.socket = self._line.socket
        self.close = self._line.close
        self.socket.setblocking(False)
        _ask_for_errors(self.socket)
        self.sent: list[Datagram] = []
        self.error = ""

    def send(self, composer: Composer, freshness: Freshness, tag_number: int = 0) -> None:
        """One new datagram; where it cannot be sent, remembers why."""
        try:
            own = self._connect()
        except OSError as error:
            self.error = describe(error)
            return
        datagram = composer.compose(
            own,
            self.target.address,
            nonce=freshness.random(NONCE_SIZE),
            now_us=freshness.now_us(),
            tag_number=tag_number,
        )
        try:
            wrapped = self._line.wrap(datagram.payload, own)
        except OSError as error:
            self.error = describe(error)
            return
        for _ in range(2):  # the first attempt may only fetch an error that was waiting
            try:
                self.socket.send(wrapped)
            except OSError as error:
                self.error = describe(error)
            else:
                self.sent.append(datagram)
                return

    def _connect(self) -> Address:
        """The own address that packets to the target leave from. Raises OSError."""
        if not self.sent:
            self._line.connect()
        return _name_of(self.socket)

    def receive(self, composer: Composer, freshness: Freshness) -> Answer | None:
        """Reads what has arrived, datagrams and errors, up to the reply if it is there."""
        for _ in range(_MAX_DATAGRAMS_AT_ONCE):
            try:
                payload = self._line.unwrap(self.socket.recv(_MAX_PAYLOAD))
            except BlockingIOError:
                _drop_errors(self.socket)
                return None
            except OSError as error:
                self.error = describe(error)
                _drop_errors(self.socket)
                continue
            answer = self._recognise(payload, composer, freshness)
            if answer is not None:
                return answer
        return None

    def _recognise(self, payload: bytes, composer: Composer, freshness: Freshness) -> Answer | None:
        for datagram in self.sent:
            reply = composer.open(payload, datagram)
            if reply is not None:
                return Answer(self.target, datagram, reply, freshness.now_us())
        return None

    def silence(self) -> Silence:
        return Silence(self.target, len(self.sent), self.error)


def _ask_for_errors(sock: socket.socket) -> None:
    """Linux keeps "no route to host" and the like to itself unless asked (IP_RECVERR, ip(7))."""
    if sys.platform != "linux":
        return
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def _drop_errors(sock: socket.socket) -> None:
    """Empties the queue that comes with it; it would make the socket seem readable for ever."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            while True:
                sock.recvmsg(1, 0, socket.MSG_ERRQUEUE)


def exchange(
    targets: Iterable[Target],
    composer: Composer,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    freshness: Freshness | None = None,
    tries: Iterable[float] | None = None,
    carrier: Carrier = UDP,
) -> Iterator[Result]:
    """Knocks on every address and yields one result for each, answers as they come.

    The targets' port is the carrier's. Raises Trouble for a raw carrier that cannot be had.
    `tries` is how long to listen after each try, in seconds, if not as the head of this file says.
    """
    freshness = freshness or Freshness()
    with contextlib.ExitStack() as stack:
        waiting, unopened = _open(targets, carrier, stack)
        yield from unopened
        end_s = float("inf")
        every_try = zip(
            tries or _waits_for(composer, timeout_s), tag_numbers(composer), strict=False
        )
        for wait_s, numbers in every_try:
            for talk, number in product(waiting, numbers):
                talk.send(composer, freshness, number)
            until_s = time.monotonic() + wait_s
            while heard := _listen(waiting, composer, freshness, min(until_s, end_s)):
                end_s = min(end_s, time.monotonic() + GRACE_S)
                yield heard
            if not any(talk.sent for talk in waiting) or time.monotonic() >= end_s:
                break
        yield from [talk.silence() for talk in waiting]


def send_only(
    targets: Iterable[Target],
    composer: Composer,
    *,
    freshness: Freshness | None = None,
    carrier: Carrier = UDP,
) -> list[Silence]:
    """One try at every address, waiting for nothing. Raises Trouble, as `exchange` does.

    There is no further one: so it is what a further one would be (the head of this file).
    """
    first, further = islice(tag_numbers(composer), 2)
    numbers = first if composer.identity.is_in_agent else further
    with contextlib.ExitStack() as stack:
        talks, unopened = _open(targets, carrier, stack)
        for talk, number in product(talks, numbers):
            talk.send(composer, freshness or Freshness(), number)
        return unopened + [talk.silence() for talk in talks]


def _clock_with(offset_s: int) -> int:
    return wall_clock_us() + offset_s * 1_000_000


def answer_at_other_times(
    target: Target,
    composer: Composer,
    offsets_s: Sequence[int],
    *,
    carrier: Carrier = UDP,
) -> Answer | None:
    """Asks once for each offset from this machine's clock, stamped as if that were the time.

    A server hears only what is stamped within minutes of its own time, and answers nothing else: so
    this finds it where this clock is far off. The answer has the server's time. Each request is a
    new one and is signed: what is asked for must be harmless at whatever time it arrives. Each
    bears the key's tag of that time, so whoever sees them knows tags that are to come (ADR 31).
    """
    with contextlib.ExitStack() as stack:
        waiting, _ = _open([target], carrier, stack)
        for begin in range(0, len(offsets_s), _STAMPED_AT_ONCE):
            for offset_s in offsets_s[begin : begin + _STAMPED_AT_ONCE]:
                for talk in waiting:
                    talk.send(composer, Freshness(partial(_clock_with, offset_s)))
            is_last = begin + _STAMPED_AT_ONCE >= len(offsets_s)
            wait_s = _STAMPED_PATIENCE_S if is_last else _STAMPED_PAUSE_S
            answer = _listen(waiting, composer, Freshness(), time.monotonic() + wait_s)
            if answer is not None:
                return answer
    return None


def own_address(target: Target) -> Address:
    """The own address that datagrams to a target leave from; nothing is sent. Raises OSError."""
    with socket.socket(target.family, socket.SOCK_DGRAM) as asking:
        asking.connect(target.sockaddr())
        return _name_of(asking)


def _name_of(sock: socket.socket) -> Address:
    return unmapped(ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]))


def _open(
    targets: Iterable[Target], carrier: Carrier, stack: contextlib.ExitStack
) -> tuple[list[_Talk], list[Silence]]:
    """A talk with each address of a family that this system speaks; the stack closes them."""
    talks, unopened = [], []
    for target in targets:
        try:
            talk = _Talk(target, carrier)
        except OSError as error:
            unopened.append(Silence(target, 0, describe(error)))
        else:
            stack.callback(talk.close)
            talks.append(talk)
    return talks, unopened


def _listen(
    waiting: list[_Talk], composer: Composer, freshness: Freshness, until_s: float
) -> Answer | None:
    """The next answer before `until_s` on the monotonic clock; its talk waits no more."""
    listening = [talk for talk in waiting if talk.sent]
    if not listening:
        return None
    with selectors.DefaultSelector() as selector:
        for talk in listening:
            selector.register(talk.socket, selectors.EVENT_READ, talk)
        while True:
            left_s = max(0.0, until_s - time.monotonic())
            for ready, _ in selector.select(left_s):
                heard: _Talk = ready.data
                answer = heard.receive(composer, freshness)
                if answer is not None:
                    waiting.remove(heard)
                    return answer
            if not left_s:
                return None


def describe(error: OSError) -> str:
    """What the system says, in lower case."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
