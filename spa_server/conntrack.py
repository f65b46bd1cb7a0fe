"""Conntrack: which connections have ended, and how those stand that have not.

The kernel tells the end of every connection of the host to a multicast group; most are no
connections of ours. What is read there is not parsed: one slice, the key, and one look into a
dictionary tell whether it is of interest (spa_server/ctentry.py).

Entries in conntrack zones other than the default are not found by `get` and `find`. All of it
needs CAP_NET_ADMIN.
"""

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from spa_protocol.access import Protocol
from spa_protocol.layout import Address
from spa_server.capture import CaptureError
from spa_server.ctentry import (
    TUPLE_ORIG,
    TUPLE_REPLY,
    Entry,
    flow_of,
    key_of,
    parse_entry,
)
from spa_server.flow import Flow
from spa_server.netlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    Message,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    messages,
    nested,
)

_GROUP_DESTROYED: Final = 3  # NFNLGRP_CONNTRACK_DESTROY
_CT_GET: Final = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_CT_DELETE: Final = 1 << 8 | 2
_RECEIVE_BUFFER: Final = 16 << 20
_MESSAGE_SIZE: Final = 4096
_FILTER: Final = 25
# Which parts of a tuple a dump is filtered by: source address, protocol, source port.
_BY_SOURCE: Final = struct.pack("=I", 1 << 0 | 1 << 3 | 1 << 4)
_BY_NOTHING: Final = bytes(4)
_IPV4_KEY_SIZE: Final = 48


@dataclass(frozen=True, slots=True)
class Told:
    """Ends as the kernel told them, still to be looked through, and how often it lost some."""

    messages: list[bytes]
    overruns: int
    has_more: bool


class Conntrack:
    """The conntrack of the network namespace in which this was made.

    Readable when connections have ended. Nothing blocks; asking takes some 10 us.
    """

    def __init__(self) -> None:
        """Raises CaptureError, without CAP_NET_ADMIN among others."""
        try:
            self._asking = NetlinkSocket(NETLINK_NETFILTER)
            self._ends = _Ends()
        except NetlinkError as error:
            raise CaptureError(
                f"the ends of connections cannot be heard: {error.strerror};"
                " CAP_NET_ADMIN is needed, and nf_conntrack_netlink in this kernel"
            ) from None

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._ends.fileno()

    def close(self) -> None:
        """Twice is no error."""
        self._ends.close()
        self._asking.close()

    def read(self, limit: int) -> Told:
        """What has ended, at most so many messages."""
        return self._ends.read(limit)

    def get(self, key: bytes) -> Entry | None:
        """What is known of a connection that has not ended, whoever of the two conntrack takes for
        the one who began it; None where it has.

        Raises NetlinkError.
        """
        family = socket.AF_INET if len(key) == _IPV4_KEY_SIZE else socket.AF_INET6
        question = NFGENMSG.pack(family, 0, 0) + nested(TUPLE_ORIG, key)
        try:
            answer = self._asking.get(_CT_GET, question)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        entry = parse_entry(answer.payload, {})
        return None if entry is None else entry.as_begun_by(key)


class _Ends(NetlinkSocket):
    """The group to which the kernel tells what has ended."""

    def __init__(self) -> None:
        super().__init__(
            NETLINK_NETFILTER, receive_buffer=_RECEIVE_BUFFER, groups=(_GROUP_DESTROYED,)
        )
        self._buffer = bytearray(_MESSAGE_SIZE)

    def read(self, limit: int) -> Told:
        """One message at a time, as the kernel sends them; most are thrown away unparsed."""
        told: list[bytes] = []
        overruns = 0
        receive, view = self._socket.recv_into, memoryview(self._buffer)
        while len(told) < limit:
            try:
                size = receive(view)
            except BlockingIOError:
                return Told(told, overruns, has_more=False)
            except OSError as error:
                overruns += 1
                if error.errno == errno.ENOBUFS:
                    continue
                return Told(told, overruns, has_more=False)
            told.append(bytes(view[:size]))
        return Told(told, overruns, has_more=True)


def ended_in(told: Sequence[bytes]) -> Iterator[Entry]:
    """The entries whose end messages tell; for those that are of interest.

    What the last state's timeout is, the host may change: it is read once for all of them.
    """
    timeouts: dict[str, int] = {}
    for data in told:
        for message in messages(data):
            entry = parse_entry(message.payload, timeouts) if message.kind == _CT_DELETE else None
            if entry is not None:
                yield entry


def find(source: Address, port: int, *, answering: bool = False) -> list[Entry]:
    """Connections from an address and port; with `answering`, those that others began to there.

    Of the caller's network namespace. The kernel walks its whole table: some 10 ms. Raises
    NetlinkError.
    """
    kind = TUPLE_REPLY if answering else TUPLE_ORIG
    with NetlinkSocket(NETLINK_NETFILTER) as asking:
        return [
            entry
            for protocol in Protocol
            for answer in asking.dump(_CT_GET, _search(kind, source, port, protocol))
            if _is_from(answer, kind, source, port)
            and (entry := parse_entry(answer.payload, {})) is not None
        ]


def _search(kind: int, source: Address, port: int, protocol: Protocol) -> bytes:
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    nobody = type(source)(0)
    filters = (_BY_SOURCE, _BY_NOTHING) if kind == TUPLE_ORIG else (_BY_NOTHING, _BY_SOURCE)
    return (
        NFGENMSG.pack(family, 0, 0)
        + nested(kind, key_of(Flow(source, port, nobody, protocol, 0)))
        + nested(_FILTER, b"".join(attribute(n, flags) for n, flags in enumerate(filters, 1)))
    )


def _is_from(answer: Message, kind: int, source: Address, port: int) -> bool:
    """Kernels before 5.8 know no filter, and show everything."""
    found = dict(attributes(answer.payload, NFGENMSG.size))
    flow = flow_of(found.get(kind, b""))
    return flow is not None and (flow.source, flow.source_port) == (source, port)
