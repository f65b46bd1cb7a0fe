"""Standard input and output joined to a TCP connection, as ssh's ProxyCommand needs them.

Two threads, because Windows can wait for a pipe in no other way. Each end of stream is passed on as
what it is: the end of input closes the sending half of the connection, and the end of what the
server sends closes the output, while the other direction goes on.
"""

import contextlib
import os
import select
import socket
import stat
import threading
from typing import Final

CHUNK: Final = 256 * 1024


class Pipe:
    """One connection joined to two file descriptors.

    `error` says how the connection broke, if it did. That the sink's reader has gone is no error:
    it had enough.
    """

    def __init__(self, connection: socket.socket, source: int = 0, sink: int = 1) -> None:
        self._connection = connection
        self._source = source
        self._sink = sink
        self._reader_gone = False
        self.error: OSError | None = None

    def run(self) -> None:
        """Returns when both directions have ended, or one has and the other no longer can."""
        self._connection.setblocking(True)
        uploading = threading.Thread(target=self._upload, daemon=True)
        downloading = threading.Thread(target=self._download, daemon=True)
        uploading.start()
        downloading.start()
        _wait_for(downloading)
        if not (self.error or self._reader_gone or os.isatty(self._source)):
            _wait_for(uploading)

    def _upload(self) -> None:
        """From the source to the connection, until either ends."""
        try:
            while chunk := _read(self._source):
                self._connection.sendall(chunk)
        except OSError:
            pass  # a broken connection is the download's to tell; a broken input is its end
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _download(self) -> None:
        """From the connection to the sink, until either ends."""
        buffer = bytearray(CHUNK)
        view = memoryview(buffer)
        try:
            while not self._reader_gone and (size := self._connection.recv_into(buffer)):
                self._reader_gone = not _write(self._sink, view[:size])
        except OSError as error:
            self.error = error
        _end(self._sink)


def _wait_for(thread: threading.Thread) -> None:
    """Joins it in steps: on Windows, Ctrl-C is heard only between them."""
    while thread.is_alive():
        thread.join(0.5)


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, CHUNK)
        except BlockingIOError:  # whoever shares the descriptor has made it non-blocking
            select.select([descriptor], [], [])


def _write(descriptor: int, chunk: memoryview) -> bool:
    """Whether anybody still reads."""
    while chunk:
        try:
            chunk = chunk[os.write(descriptor, chunk) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            return False
    return True


def _end(descriptor: int) -> None:
    """Tells the reader that no more comes, and keeps the descriptor's number taken.

    Where both standard streams are one socket, closing one is not enough: it is shut down.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            with socket.socket(fileno=os.dup(descriptor)) as stream:
                stream.shutdown(socket.SHUT_WR)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
