"""Two TCP connections joined into one: what comes in at one end goes out at the other.

Each end of stream is passed on as what it is: the end of what one side sends closes the sending
half towards the other, while the opposite direction goes on. A connection that breaks breaks the
other one (a TCP reset), so that nobody takes half of something for the whole.
"""

import contextlib
import selectors
import socket
import struct
import sys
from typing import Final

CHUNK: Final = 64 * 1024
# l_onoff and l_linger are int on Unix, and u_short on Windows.
_AT_ONCE: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Splice:
    """Joins two connected sockets, and closes both in the end."""

    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        self._ends = (one, other)
        self._directions = (_Direction(one, other), _Direction(other, one))
        self._is_cut = False

    def run(self) -> None:
        """Returns when both directions have ended, or one of the connections has broken."""
        try:
            for each in self._ends:
                each.setblocking(False)
            self._carry()
        except OSError:
            self._is_cut = True
        finally:
            for each in self._ends:
                if self._is_cut:
                    reset(each)
                each.close()

    def cut(self) -> None:
        """Ends both directions at once; from any thread."""
        self._is_cut = True
        for each in self._ends:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RD)  # wakes the loop, and sends nothing

    def _carry(self) -> None:
        """Raises OSError where a connection breaks."""
        with selectors.DefaultSelector() as selector:
            while not self._is_cut and not all(d.is_done for d in self._directions):
                self._watch(selector)
                for ready, events in selector.select():
                    for direction in self._directions:
                        if self._is_cut:
                            return
                        if events & selectors.EVENT_READ and ready.fileobj is direction.source:
                            direction.receive()
                        elif events & selectors.EVENT_WRITE and ready.fileobj is direction.sink:
                            direction.send()

    def _watch(self, selector: selectors.BaseSelector) -> None:
        there = {key.fileobj: key.events for key in selector.get_map().values()}
        for each in self._ends:
            events = 0
            for direction in self._directions:
                events |= direction.wishes(each)
            if events == there.get(each, 0):
                continue
            if each in there:
                selector.unregister(each)
            if events:
                selector.register(each, events)


class _Direction:
    """From one socket to the other: what was received and not yet sent, and whether it ended."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.is_done = False
        self._buffer = memoryview(bytearray(CHUNK))
        self._pending = self._buffer[:0]
        self._has_ended = False

    def wishes(self, which: socket.socket) -> int:
        """The events of a socket that this direction waits for."""
        if self._pending:
            return selectors.EVENT_WRITE if which is self.sink else 0
        wants_more = which is self.source and not self._has_ended
        return selectors.EVENT_READ if wants_more else 0

    def receive(self) -> None:
        """Takes what has come, and sends it on. Raises OSError."""
        with contextlib.suppress(BlockingIOError):
            size = self.source.recv_into(self._buffer)
            self._pending = self._buffer[:size]
            self._has_ended = size == 0
            self.send()

    def send(self) -> None:
        """Sends on what it can; at the end, the end. Raises OSError."""
        with contextlib.suppress(BlockingIOError):
            while self._pending:
                self._pending = self._pending[self.sink.send(self._pending) :]
        if self._has_ended and not self._pending:
            self.is_done = True
            self.sink.shutdown(socket.SHUT_WR)


def reset(connection: socket.socket) -> None:
    """Closes it so that the other side sees it break (a TCP reset)."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    connection.close()
