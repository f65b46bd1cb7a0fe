"""The first TCP connection to an address that granted the knock.

Every address is knocked on. The first that grants is dialled at once; one that grants while another
is being dialled is dialled a quarter of a second later, unless a connection stands by then
(the staggering of RFC 8305). The first connection wins, and later ones are closed.

Where a granted address says nothing at all, packets may have been lost until the hole had ended: so
all of it is done again, with a fresh knock, twice at most. A refusal is not asked for again.
"""

import queue
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from spa_client.carriers import Answer, Result, Silence, describe
from spa_client.resolve import Target
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_protocol.reason import Code

DIAL_TIMEOUT_S: Final = 4.0  # the SYN, and what the system sends again after 1 and 3 s
STAGGER_S: Final = 0.25
ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Connected:
    """The connection, and the answer that opened the way for it."""

    socket: socket.socket
    answer: Answer


@dataclass(frozen=True, slots=True)
class Undialled:
    """A granted address to which no connection came about, and why; `silent`: nothing came back."""

    target: Target
    error: str
    silent: bool = False


@dataclass(slots=True)
class Race:
    """What knocking and dialling came to."""

    winner: Connected | None = None
    results: list[Result] = field(default_factory=list)
    failures: list[Undialled] = field(default_factory=list)

    @property
    def may_be_loss(self) -> bool:
        """Whether an address granted, and none of those that did was heard of again."""
        failed = self.failures
        return self.winner is None and bool(failed) and all(f.silent for f in failed)


_Event: TypeAlias = Answer | Silence | Connected | Undialled | BaseException | None


def lifetime_of(answer: Answer, access: Access) -> int:
    """For how many seconds the reply opens this access; 0 where it does not."""
    granted = (o for o in answer.reply.outcomes if o.access == access and o.code is Code.GRANTED)
    return next((max(1, outcome.lifetime_s) for outcome in granted), 0)


def grants(answer: Answer, access: Access) -> bool:
    """Whether the reply opens this access."""
    return lifetime_of(answer, access) > 0


def reach(
    knock: Callable[[], Iterable[Result]], access: Access, *, at: Address | None = None
) -> Race:
    """Knocks and dials, again where nothing came back. `at` is the address to dial, if another.

    Raises what `knock` raises.
    """
    outcome = race(knock(), access, at=at)
    for _ in range(ROUNDS - 1):
        if not outcome.may_be_loss:
            break
        outcome = race(knock(), access, at=at)
    return outcome


def race(knocking: Iterable[Result], access: Access, *, at: Address | None = None) -> Race:
    """Follows the results of knocking and dials the port of each address that granted it.

    Returns at the first connection, or when nothing is left to try. Raises what `knocking` raises.
    """
    return _Dialler(access, at).follow(knocking)


class _Dialler:
    def __init__(self, access: Access, at: Address | None) -> None:
        self._access = access
        self._at = at
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
        target = answer.target if self._at is None else replace(answer.target, address=self._at)
        try:
            connection = dial(target, self._access.first, within_s=self._time_for(answer))
        except OSError as error:
            silent = isinstance(error, TimeoutError)
            self._events.put(Undialled(target, describe(error), silent))
            return
        with self._claim:
            first = not self._won.is_set()
            self._won.set()
        if first:
            self._events.put(Connected(connection, answer))
        else:
            connection.close()

    def _time_for(self, answer: Answer) -> float:
        """No longer than the hole: behind it, nothing comes in any more."""
        return min(DIAL_TIMEOUT_S, lifetime_of(answer, self._access))


def dial(target: Target, port: int, *, within_s: float = DIAL_TIMEOUT_S) -> socket.socket:
    """A TCP connection. Raises OSError; TimeoutError where nothing came back."""
    connection = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        connection.settimeout(within_s)
        connection.connect(target.sockaddr(port))
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError:
        connection.close()
        raise
    return connection
