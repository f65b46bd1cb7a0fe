"""The record to systemd's journal, in its native protocol: a datagram of NAME=value lines.

    journalctl SPA_EVENT=knock.refused SPA_SOURCE=10.0.0.9

Every value is a field of its own, `SPA_` and the column's name, so that nothing has to be parsed
out of a sentence. systemd's documentation: JOURNAL_NATIVE_PROTOCOL.
"""

import os
import socket
from pathlib import Path
from typing import Final

from keys.when import rfc3339
from spa_server.audit import lines
from spa_server.audit.record import Record

SOCKET: Final = Path("/run/systemd/journal/socket")
PROGRAM: Final = "spa-server"
FACILITY: Final = 10
_WITHIN_S: Final = 1.0


class Journal:
    """Sends lines to the journal at a socket."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def send(self, line_id: int, record: Record) -> None:
        """Raises OSError where no journal takes it."""
        if self._socket is None:
            self._socket = self._connect()
        self._socket.send(message(line_id, record))

    def _connect(self) -> socket.socket:
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            opened.settimeout(_WITHIN_S)
            opened.connect(os.fspath(self._path))
        except BaseException:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Lets go; the next `send` connects again."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def message(line_id: int, record: Record) -> bytes:
    """One line as fields. No value holds a line end: `lines.values_of` escapes them."""
    fields = {
        "MESSAGE": lines.sentence_of(record),
        "PRIORITY": str(lines.severity_of(record.event)),
        "SYSLOG_FACILITY": str(FACILITY),
        "SYSLOG_IDENTIFIER": PROGRAM,
        "SPA_AT": rfc3339(record.at_us),
    }
    fields |= {f"SPA_{name.upper()}": value for name, value in lines.values_of(line_id, record)}
    text = "".join(f"{name}={value}\n" for name, value in fields.items())
    return text.encode(errors="backslashreplace")
