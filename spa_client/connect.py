"""The first TCP connection to an address that granted the knock.

Every address is knocked on. The first that grants is dialled at once; one that grants while another
is being dialled is dialled a quarter of a second later, unless a connection stands by then
(the staggering of RFC 8305). The first connection wins, and later ones are closed.
"""

import queue
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from spa_client.carriers import Answer, Result, Silence, describe
from spa_client.resolve import Target
from spa_protocol.access import Access
from spa_protocol.reason import Code

DIAL_TIMEOUT_S: Final = 10.0
STAGGER_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Connected:
    """The connection, and the answer that opened the way for it."""

    socket: socket.socket
    answer: Answer


@dataclass(frozen=True, slots=True)
class Undialled:
    """A granted address to which no connection came about, and why."""

    target: Target
    error: str


@dataclass(slots=True)
class Race:
    """What knocking and dialling came to."""

    winner: Connected | None = None
    results: list[Result] = field(default_factory=list)
    failures: list[Undialled] = field(default_factory=list)


_Event: TypeAlias = Answer | Silence | Connected | Undialled | BaseException | None


def grants(answer: Answer, access: Access) -> bool:
    """Whether the reply opens this access."""
    return any(o.access == access and o.code is Code.GRANTED for o in answer.reply.outcomes)


def race(knocking: Iterable[Result], access: Access) -> Race:
    """Follows the results of knocking and dials the port of each address that granted it.

    Returns at the first connection, or when nothing is left to try. Raises what `knocking` raises.
    """
    return _Dialler(access).follow(knocking)


class _Dialler:
    def __init__(self, access: Access) -> None:
        self._access = access
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._won = threading.Event()
        self._claim = threading.Lock()
        self._dialling = 0

    def follow(self, knocking: Iterable[Result]) -> Race:
        self._start(self._hear, knocking)
        outcome, hearing = Race(), True
        while hearing or self._dialling:
            match self._next():
                case Answer() as answer:
                    outcome.results.append(answer)
                    self._dial_if_granted(answer)
                case Silence() as silence:
                    outcome.results.append(silence)
                case Connected() as winner:
                    outcome.winner = winner
                    return outcome
                case Undialled() as failure:
                    outcome.failures.append(failure)
                    self._dialling -= 1
                case BaseException() as error:
                    raise error
                case None:
                    hearing = False
        return outcome

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _next(self) -> _Event:
        """Waits in steps: on Windows, Ctrl-C is heard only between them."""
        while True:
            try:
                return self._events.get(timeout=0.5)
            except queue.Empty:
                continue

    def _hear(self, knocking: Iterable[Result]) -> None:
        try:
            for result in knocking:
                self._events.put(result)
        except BaseException as error:
            self._events.put(error)
        self._events.put(None)

    def _dial_if_granted(self, answer: Answer) -> None:
        if grants(answer, self._access):
            delay_s = STAGGER_S if self._dialling else 0.0
            self._dialling += 1
            self._start(self._dial, answer, delay_s)

    def _dial(self, answer: Answer, delay_s: float) -> None:
        if self._won.wait(delay_s):
            return
        target = answer.target
        try:
            connection = _connect(target, self._access.first)
        except OSError as error:
            self._events.put(Undialled(target, describe(error)))
            return
        with self._claim:
            first = not self._won.is_set()
            self._won.set()
        if first:
            self._events.put(Connected(connection, answer))
        else:
            connection.close()


def _connect(target: Target, port: int) -> socket.socket:
    """Raises OSError."""
    connection = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        connection.settimeout(DIAL_TIMEOUT_S)
        connection.connect(target.sockaddr(port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError:
        connection.close()
        raise
    return connection
