"""Local ports that lead through a gate: what `spa-client forward` does, TCP alone.

A listener on this machine for each `[BIND:]PORT:HOST:HOSTPORT`, written as for ssh's -L. Each
connection to it knocks at HOST and is joined to one of its own there. What cannot be reached breaks
off, and only that one connection.
"""

import errno
import ipaddress
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from keys.trouble import Trouble
from spa_client.carriers import describe
from spa_client.doorway import Attempt, Doorway
from spa_client.services import BadAccess, parse_port
from spa_client.splice import Splice, reset
from spa_client.stopping import Stopping
from spa_protocol.access import Access

MAX_AT_ONCE: Final = 512
_LOOPBACK: Final = ("127.0.0.1", "::1")
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - where the person has asked for it
_BACKLOG: Final = 128
_LAST_WAIT_S: Final = 2.0
_PAUSE_S: Final = 0.2
_NO_SUCH_ADDRESS: Final = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_NO_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class BadForward(ValueError):
    """What was written is no forward. The message says what was expected."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Where to listen on this machine, and the port of the host that it leads to.

    `bind` is empty for this machine alone, and `*` for every address that it has.
    """

    bind: str
    port: int
    host: str
    access: Access

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every local address to listen on."""
        if self.bind in ("", "localhost"):
            return _LOOPBACK
        return _EVERYWHERE if self.bind == "*" else (self.bind,)


def parse_forward(text: str) -> Forward:
    """`15432:db1:5432`, `[::1]:15432:db1:postgresql`, `*:8080:web1:80`. Raises BadForward."""
    parts = _split(text)
    if len(parts) == 3:
        parts = ["", *parts]
    elif len(parts) == 4:
        parts[0] = parts[0] or "*"
    if len(parts) != 4 or not parts[2]:
        raise BadForward(f"{text!r} is no forward; write it like 15432:db1:5432")
    bind, port, host, host_port = parts
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise BadForward(f"{text!r}: {port!r} is no local port; write it like 15432:db1:5432")
    if "/" in host_port:
        raise BadForward(f"{text!r}: a forward carries TCP alone; write it like 15432:db1:5432")
    try:
        return Forward(bind, int(port), host, parse_port(host_port))
    except BadAccess as bad:
        raise BadForward(f"{text!r}: {bad}") from None


def _split(text: str) -> list[str]:
    """At the colons that stand outside of square brackets, which are left out."""
    parts, inside = [""], False
    for character in text:
        if character in "[]":
            inside = character == "["
        elif character == ":" and not inside:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def listen(forward: Forward) -> list[socket.socket]:
    """Listens where the forward says. Raises Trouble; one of several families may be missing."""
    listeners: list[socket.socket] = []
    try:
        for address in forward.addresses:
            port = listeners[0].getsockname()[1] if listeners else forward.port
            try:
                listeners.append(_listen(address, port))
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS or len(forward.addresses) == 1:
                    raise _cannot_listen(address, port, error) from None
    except BaseException:
        for each in listeners:
            each.close()
        raise
    if not listeners:
        raise Trouble("this machine has no loopback address to listen on")
    return listeners


def _listen(address: str, port: int) -> socket.socket:
    """Raises OSError."""
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, sockaddr = found[0]
    listener = socket.create_server((str(sockaddr[0]), port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _cannot_listen(address: str, port: int, error: OSError) -> Trouble:
    at = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    hints = {errno.EADDRINUSE: "choose another port", errno.EACCES: "choose a port above 1023"}
    hint = hints.get(error.errno or 0, "see the addresses of this machine")
    return Trouble(f"cannot listen on {at}: {describe(error)}", hint)


@dataclass(frozen=True)
class Gateway:
    """One forward that listens. `tell` is called with what became of each connection."""

    forward: Forward
    listeners: Sequence[socket.socket]
    doorway: Doorway
    tell: Callable[[Attempt | Trouble], None]


class Forwarder:
    """Accepts at all listeners until the end is asked for; then it cuts what is still joined."""

    def __init__(self, gateways: Sequence[Gateway]) -> None:
        self._gateways = gateways
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._joined: set[Splice] = set()
        self._ending = False

    def run(self, stopping: Stopping) -> None:
        """Returns when the end was asked for and the connections are closed."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(stopping, selectors.EVENT_READ)
                for gateway in self._gateways:
                    for listener in gateway.listeners:
                        selector.register(listener, selectors.EVENT_READ, (listener, gateway))
                while not stopping.wait(0):
                    for ready, _ in selector.select():
                        if ready.data:
                            listener, gateway = ready.data
                            self._accept(listener, gateway, stopping)
        finally:
            self._end()

    def _accept(self, listener: socket.socket, gateway: Gateway, stopping: Stopping) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                gateway.tell(Trouble(f"cannot accept a connection: {describe(error)}"))
                stopping.wait(_PAUSE_S)
            return
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self._threads) >= MAX_AT_ONCE:
            reset(connection)
            gateway.tell(Trouble(f"a connection was turned away: there are {MAX_AT_ONCE} already"))
            return
        thread = threading.Thread(target=self._serve, args=(connection, gateway), daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _serve(self, connection: socket.socket, gateway: Gateway) -> None:
        try:
            outcome: Attempt | Trouble
            try:
                outcome = gateway.doorway.connect()
            except Trouble as trouble:
                outcome = trouble
            if not self._ending:
                gateway.tell(outcome)
            winner = None if isinstance(outcome, Trouble) else outcome.race.winner
            if winner is None:
                reset(connection)
            else:
                self._join(Splice(connection, winner.socket))
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _join(self, splice: Splice) -> None:
        with self._lock:
            self._joined.add(splice)
            if self._ending:
                splice.cut()
        splice.run()
        with self._lock:
            self._joined.discard(splice)

    def _end(self) -> None:
        for gateway in self._gateways:
            for listener in gateway.listeners:
                listener.close()
        with self._lock:
            self._ending = True
            threads = list(self._threads)
            for splice in self._joined:
                splice.cut()
        until_s = time.monotonic() + _LAST_WAIT_S
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
