"""Where answers leave from: the knock port, which hears nothing.

The socket is bound to the knock port, so that an answer comes from where the knock went, and a
filter drops whatever would arrive at it: nothing is ever received here, and since there is a
socket, the kernel refuses nothing either (no ICMP port unreachable). Knocks are heard elsewhere, by
spa_server/capture/.

An answer to a datagram that came to another port leaves from there all the same: the gate rewrites
its source (chain `answers`), so that the port need not be bound, which may be another program's.
What answers a ping or a SYN is in rawanswer.py.

SO_REUSEADDR and SO_REUSEPORT are not set: with them, another program could bind the port beside it.

The port may be another program's when the daemon starts: any user can bind it while no daemon runs.
Such a program hears no knock, for the gate takes them first, and it keeps nobody from being
answered: the socket is then bound elsewhere, and the gate rewrites these answers as well. `trouble`
says so, and `try_again` takes the port once it is free. Nor is a raw carrier that cannot be
answered a reason to hear nobody.
"""

import errno
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final

from spa_protocol.carrier import UDP, Carrier, Kind
from spa_protocol.layout import Address
from spa_server import bpf, rawanswer
from spa_server.capture.datagram import Datagram
from spa_server.firewall.gate import answer_priority
from spa_server.rawanswer import RawSockets

_IP_PKTINFO: Final = 8
_PKTINFO4: Final = struct.Struct("=i4s4x")  # in_pktinfo: interface, source, unused
_PKTINFO6: Final = struct.Struct("=16si")  # in6_pktinfo: source, interface

_WHY_ELSEWHERE: Final = {
    errno.EADDRINUSE: "another program is bound to it",
    errno.EACCES: "one under 1024 needs CAP_NET_BIND_SERVICE",
}
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class AnswerError(Exception):
    """The knock port cannot be had. The message says why, for an operator."""


class AnswerSocket:
    """Sends from UDP `port`, over IPv4 and, where the kernel has it, IPv6. Raises AnswerError.

    Also by those of the carriers that need a raw socket, for which CAP_NET_RAW is needed.
    """

    def __init__(self, port: int, carriers: Iterable[Carrier] = (UDP,)) -> None:
        self._port = port
        self._priorities: dict[int, int] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._elsewhere: dict[int, str] = {}  # by version, why the socket has not got the port
        self._raw, self._raw_trouble = RawSockets(()), ""
        try:
            self._bind(4)
            if _has_ipv6():
                self._bind(6)
        except OSError as error:
            self.close()
            raise AnswerError(f"udp port {port} cannot be had: {error.strerror}") from None
        self.carry(carriers)

    @property
    def trouble(self) -> str:
        """What is not as it should be, though everybody is heard; empty where all is well."""
        why = next(iter(self._elsewhere.values()), "")
        taken = (
            f"udp port {self._port}: {why}; answers leave from another, rewritten" if why else ""
        )
        return "; ".join(filter(None, (taken, self._raw_trouble)))

    def try_again(self) -> bool:
        """Takes the port where it was another's; whether all is well."""
        for version in tuple(self._elsewhere):
            with suppress(OSError):
                self._bind(version)
        return not self.trouble

    def carry(self, carriers: Iterable[Carrier]) -> None:
        """From now on these are answered, as far as that is allowed; `trouble` says what is not."""
        self._raw.close()
        try:
            self._raw, self._raw_trouble = RawSockets(carriers := tuple(carriers)), ""
        except OSError as error:
            self._raw, self._raw_trouble = RawSockets(()), _why_not(carriers, error)

    def _bind(self, version: int) -> None:
        """A socket on the port; where it is another's, on any, unless there is one. Raises OSError.

        The one that there was is closed when the other has the port.
        """
        before = self._sockets.get(version)
        try:
            self._sockets[version] = _deaf_socket(_FAMILIES[version], self._port)
            self._elsewhere.pop(version, None)
        except OSError as error:
            if before is not None or error.errno not in _WHY_ELSEWHERE:
                raise
            self._sockets[version] = _deaf_socket(_FAMILIES[version], 0)
            self._elsewhere[version] = _WHY_ELSEWHERE[error.errno]
        self._priorities.pop(version, None)
        if before is not None:
            before.close()

    def close(self) -> None:
        """Gives the port back."""
        self._raw.close()
        for sock in self._sockets.values():
            sock.close()

    def send(self, payload: bytes, to: Datagram) -> OSError | None:
        """Sends one answer to where a datagram came from; what went wrong, or None.

        It leaves from the address and by the carrier that the datagram came to. The interface is
        heeded for link-local addresses, which mean nothing without it. An answer that cannot be
        sent is trouble for nobody but its receiver, so nothing is raised, and nothing waits.
        """
        is_datagram = to.carrier == Kind.UDP
        version = to.source.version
        sock = self._sockets.get(version) if is_datagram else self._raw.find(to)
        if sock is None or to.target.version != version:
            return OSError(errno.EAFNOSUPPORT, f"no way from {to.target} to {to.source}")
        scope = to.interface if to.source.is_link_local else 0
        port = to.source_port if is_datagram else 0
        where = (str(to.source), port) if version == 4 else (str(to.source), port, 0, scope)
        try:
            if is_datagram:
                self._leave_from(to.target_port, sock, version)
            data = payload if is_datagram else rawanswer.packet(payload, to)
            sock.sendmsg([data], [_from(to.target, scope)], socket.MSG_DONTWAIT, where)
        except OSError as error:
            return error
        return None

    def _leave_from(self, port: int, sock: socket.socket, version: int) -> None:
        """Tells the gate by which port the next datagram is to leave. Raises OSError."""
        is_from_here = port == self._port and version not in self._elsewhere
        priority = 0 if is_from_here else answer_priority(port)
        if self._priorities.get(version, 0) != priority:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)
            self._priorities[version] = priority


def why_not_raw(carriers: Iterable[Carrier]) -> str:
    """Why this process could not answer the raw carriers among these; empty where it could."""
    try:
        RawSockets(carriers := tuple(carriers)).close()
    except OSError as error:
        return _why_not(carriers, error)
    return ""


def _why_not(carriers: Iterable[Carrier], error: OSError) -> str:
    names = " and ".join(str(carrier) for carrier in carriers if carrier.is_raw)
    hint = "give the daemon CAP_NET_RAW, or take it out of `carriers`; spa-server(8), Carriers"
    return f"{names} cannot be answered: {error.strerror}; {hint}"


def _from(source: Address, scope: int) -> tuple[int, int, bytes]:
    """The control message that sets a packet's source (ip(7), RFC 3542 section 6.1)."""
    if isinstance(source, IPv4Address):
        return socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, source.packed)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(source.packed, scope)


def _deaf_socket(family: int, port: int) -> socket.socket:
    """A UDP socket on every address. The filter stands, and is locked, before the port is bound."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        bpf.deafen(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", port))
    except BaseException:
        sock.close()
        raise
    return sock


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True
