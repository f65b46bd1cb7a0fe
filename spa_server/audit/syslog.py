"""The record to a syslog server: RFC 5424, with every value as structured data.

    <85>1 2026-11-24T08:00:00.000000Z host spa-server 712 knock.refused
        [spa@32473 event="knock.refused" source="10.0.0.9" ...] knock.refused; 10.0.0.9; replayed

(one line). Over UDP (RFC 5426), or a datagram socket as /dev/log is. Facility 10, authpriv.
32473 is the number that RFC 5612 keeps for examples: this project has none of its own.
"""

import os
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from keys.when import rfc3339
from spa_server.audit import lines
from spa_server.audit.record import Record
from spa_server.listen import ListenAddress

PROGRAM: Final = "spa-server"
ID: Final = "spa@32473"
FACILITY: Final = 10
_WITHIN_S: Final = 1.0
_MAX_HOST: Final = 255
_NIL: Final = "-"


@dataclass(frozen=True, slots=True)
class SyslogAddress:
    """Where a syslog server listens: a UDP address, or the path of a socket."""

    family: socket.AddressFamily
    target: tuple[str, int] | str


def parse_address(text: str) -> SyslogAddress:
    """`udp://127.0.0.1:514` or `unix:///dev/log`. Raises ValueError."""
    kind, _, where = text.partition("://")
    if kind == "unix" and Path(where).is_absolute() and "\0" not in where:
        return SyslogAddress(socket.AF_UNIX, where)
    if kind == "udp":
        listen = ListenAddress.parse(where, beyond_loopback=True)
        family = socket.AF_INET6 if ip_address(listen.address).version == 6 else socket.AF_INET
        return SyslogAddress(family, (str(listen.address), listen.port))
    raise ValueError(f'{text!r} is no syslog; expected "udp://ADDRESS:PORT" or "unix:///PATH"')


class Syslog:
    """Sends lines to one syslog server."""

    def __init__(self, address: SyslogAddress) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._host = _host_name()

    def send(self, line_id: int, record: Record) -> None:
        """Raises OSError where nobody listens, as far as that can be known."""
        if self._socket is None:
            self._socket = _connect(self._address)
        self._socket.send(message(line_id, record, host=self._host, pid=os.getpid()))

    def close(self) -> None:
        """Lets go; the next `send` connects again."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _connect(address: SyslogAddress) -> socket.socket:
    opened = socket.socket(address.family, socket.SOCK_DGRAM)
    try:
        opened.settimeout(_WITHIN_S)
        opened.connect(address.target)
    except BaseException:
        opened.close()
        raise
    return opened


def _host_name() -> str:
    name = socket.gethostname()
    fits = name.isascii() and name.isprintable() and " " not in name
    return name[:_MAX_HOST] if name and fits else _NIL


def message(line_id: int, record: Record, *, host: str, pid: int) -> bytes:
    """One line as RFC 5424 writes it, in UTF-8."""
    priority = 8 * FACILITY + lines.severity_of(record.event)
    header = f"<{priority}>1 {rfc3339(record.at_us)} {host} {PROGRAM} {pid} {record.event.value}"
    parameters = "".join(
        f' {name}="{_escaped(value)}"' for name, value in lines.values_of(line_id, record)
    )
    said = lines.sentence_of(record)
    mark = "" if said.isascii() else "\ufeff"  # section 6.4: that it is UTF-8
    return f"{header} [{ID}{parameters}] {mark}{said}".encode(errors="backslashreplace")


def _escaped(value: str) -> str:
    """Section 6.3.3."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
