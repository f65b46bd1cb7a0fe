"""The sessions that are open on this host: ending some, and making all known to conntrack.

Sockets are found and destroyed through sock_diag (linux/inet_diag.h), conntrack entries are made
through ctnetlink, in pyroute2's message format. The messages travel over a socket of ours:
pyroute2's own sockets each run an event loop, which cannot be done inside the daemon's.

Which sessions have no socket here, and so are never severed or adopted: those forwarded to a
container or another host. The kernel stops their packets (spa_server/severance.py), and a session
to a port that Docker publishes is known to conntrack from its first packet, because it is
translated. SCTP has no way to destroy a socket from outside; its packets are stopped too.

Everything here needs CAP_NET_ADMIN, and blocks: some milliseconds to sever, 0.4 s to adopt a
thousand sessions.
"""

import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, nfct_msg

from spa_protocol.access import Access, Protocol
from spa_protocol.layout import Address, unmapped
from spa_server.ctentry import TUPLE_ORIG, key_of
from spa_server.flow import Flow
from spa_server.hole import Hole
from spa_server.link import on_link
from spa_server.netlink import (
    HEADER_SIZE,
    NETLINK_NETFILTER,
    NETLINK_SOCK_DIAG,
    NFGENMSG,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    NetlinkSocket,
    attribute,
    nested,
)

_SOCK_DIAG_BY_FAMILY: Final = 20
_SOCK_DESTROY: Final = 21
_CT_NEW: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW

# TCP states (net/tcp_states.h); a connected UDP socket is ESTABLISHED, another one CLOSE.
_ESTABLISHED: Final = 1 << 1
_SYN_RECV: Final = 1 << 3
_FIN_WAIT: Final = 1 << 4 | 1 << 5
_CLOSE: Final = 1 << 7
_CLOSE_WAIT: Final = 1 << 8
_LAST_ACK: Final = 1 << 9
_LISTEN: Final = 1 << 10
_CLOSING: Final = 1 << 11
_OPEN: Final = _ESTABLISHED | _FIN_WAIT | _CLOSE_WAIT
_DESTROYABLE: Final = _OPEN | _SYN_RECV | _LAST_ACK | _CLOSING
_WAITING: Final = _LISTEN | _CLOSE

_LABELS: Final = 22
_LABELS_MASK: Final = 23
_LET_IN: Final = (1 << 127).to_bytes(16, sys.byteorder)  # gate.nft, chain `session`
_SEEN_REPLY_ASSURED_CONFIRMED: Final = 0x0E
_TCP_ESTABLISHED: Final = {
    "attrs": [
        (
            "CTA_PROTOINFO_TCP",
            {
                "attrs": [
                    ("CTA_PROTOINFO_TCP_STATE", 3),
                    # IP_CT_TCP_FLAG_BE_LIBERAL, and the mask of what is set
                    ("CTA_PROTOINFO_TCP_FLAGS_ORIGINAL", (0x08, 0x08)),
                    ("CTA_PROTOINFO_TCP_FLAGS_REPLY", (0x08, 0x08)),
                ]
            },
        )
    ]
}
_TIMEOUT_S: Final = {Protocol.TCP: 432_000, Protocol.UDP: 120}  # the kernel's own defaults

_DIAG_REQUEST = struct.Struct("=BBxxI48s")
_DIAG_ANSWER = struct.Struct("=Bxxx48s")
_IDENTITY = struct.Struct(">HH16s16s12x")  # ports, addresses; interface and cookie stay as they are
_INTERFACE = struct.Struct("=36xI8x")


class SessionsError(Exception):
    """The kernel did not do it. The message says what and why, for an operator."""


@dataclass(frozen=True, slots=True)
class Session:
    """A socket of this host. `identity` is its inet_diag_sockid, 48 bytes, cookie included."""

    protocol: Protocol
    family: int
    identity: bytes
    local: Address
    local_port: int
    remote: Address
    remote_port: int
    interface: int

    @property
    def ends(self) -> tuple[Address, Address]:
        """Remote and local address, as a hole has them."""
        return on_link(self.remote, self.interface), on_link(self.local, self.interface)

    @property
    def access(self) -> Access:
        """What a knock for it would ask for, where this host serves."""
        return Access(self.protocol, self.local_port, self.local_port)

    @property
    def served(self) -> Flow:
        """The flow, where the other end began it."""
        source, target = self.ends
        return Flow(source, self.remote_port, target, int(self.protocol), self.local_port)


def sever(holes: Iterable[Hole], may_live: Callable[[Flow], bool]) -> list[Flow]:
    """Destroys the sockets whose sessions came through these holes; which sessions these were.

    Not those of which `may_live` says so.

    A TCP peer gets a reset. A UDP socket is destroyed if it is connected: one that serves many
    cannot be, and the hole's end stops its packets. Whoever holds the socket reads ECONNABORTED.
    Raises SessionsError.
    """
    ways: dict[tuple[Protocol, int], set[tuple[Address, Address]]] = {}
    for hole in holes:
        if hole.protocol in _TIMEOUT_S:
            ways.setdefault((hole.protocol, hole.port), set()).add((hole.source, hole.target))
    with _netlink(NETLINK_SOCK_DIAG) as diag:
        return [
            session.served
            for (protocol, port), pairs in ways.items()
            for session in _sessions(diag, protocol, _DESTROYABLE, port)
            if session.ends in pairs and not may_live(session.served) and _destroy(diag, session)
        ]


def adopt_established(*, served: bool = True) -> int:
    """Makes conntrack know every open session of this host; returns how many it did not know.

    For a gate that is about to be loaded where conntrack has never been on: without an entry, a
    session whose peer speaks next is new to the gate, and denied. Call it before the gate is
    loaded, and once more after: so a session that began between the two is not lost either.
    Sessions over loopback are left alone, as the gate leaves them, and so is every entry that
    exists; but one that conntrack took up in the middle is let go on (gate.nft, `midway_out`).

    `served`: those that others began too. Where the gate stands already it is False: what conntrack
    has forgotten there may be of somebody who was let in and may not come in any more.

    Both TCP and connected UDP sockets are adopted, whether this host serves or asks. Which end
    began, a socket does not tell: where somebody waits on its port, the peer did, and else this
    host. A wrong guess shows in `conntrack -L` and nowhere else: an entry that has seen replies is
    established both ways. Window tracking is liberal, since nobody saw the windows agreed on.

    Raises SessionsError; what was adopted by then stays.
    """
    with _netlink(NETLINK_SOCK_DIAG) as diag:
        opened = _from_elsewhere(diag, _OPEN)
        waited_at = _waited_at(diag)
    with _netlink(NETLINK_NETFILTER) as conntrack:
        adopted = 0
        for session in opened:
            is_served = (session.protocol, session.local_port) in waited_at
            if served or not is_served:
                adopted += _create(conntrack, session, served=is_served)
        return adopted


def served() -> list[Session]:
    """Every session, not over loopback, at a port where somebody waits: the peer began it.

    TCP ones from their first handshake on, and connected UDP sockets. Raises SessionsError.
    """
    with _netlink(NETLINK_SOCK_DIAG) as diag:
        opened = _from_elsewhere(diag, _DESTROYABLE)
        waited_at = _waited_at(diag)
    return [each for each in opened if (each.protocol, each.local_port) in waited_at]


def destroy(unwanted: Iterable[Session]) -> list[Session]:
    """Destroys them as `sever` does; those that were still there. Raises SessionsError."""
    with _netlink(NETLINK_SOCK_DIAG) as diag:
        return [session for session in unwanted if _destroy(diag, session)]


def _from_elsewhere(diag: NetlinkSocket, states: int) -> list[Session]:
    found = [session for protocol in _TIMEOUT_S for session in _sessions(diag, protocol, states)]
    return [s for s in found if not (s.local.is_loopback or s.remote.is_loopback)]


def _waited_at(diag: NetlinkSocket) -> set[tuple[Protocol, int]]:
    """Where a socket waits for whoever comes."""
    waiting = [each for protocol in _TIMEOUT_S for each in _sessions(diag, protocol, _WAITING)]
    return {(waiter.protocol, waiter.local_port) for waiter in waiting}


def _sessions(diag: NetlinkSocket, protocol: Protocol, states: int, port: int = 0) -> list[Session]:
    """The sockets in these states, those of one local port or of all."""
    identity = _IDENTITY.pack(port, 0, bytes(16), bytes(16))
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _DIAG_REQUEST.pack(family, protocol, states, identity)
        try:
            answers = diag.dump(_SOCK_DIAG_BY_FAMILY, request)
        except NetlinkError as error:
            raise _refusal("the kernel does not show its sockets", error.errno) from None
        found += [_session(protocol, answer) for answer in answers]
    return found


def _session(protocol: Protocol, answer: Message) -> Session:
    """From an inet_diag_msg. A socket that speaks IPv4 over IPv6 has IPv4 addresses here."""
    family, identity = _DIAG_ANSWER.unpack_from(answer.payload)
    local_port, remote_port, local, remote = _IDENTITY.unpack(identity)
    if family == socket.AF_INET:
        ends: tuple[Address, Address] = IPv4Address(local[:4]), IPv4Address(remote[:4])
    else:
        ends = unmapped(IPv6Address(local)), unmapped(IPv6Address(remote))
    (interface,) = _INTERFACE.unpack(identity)
    return Session(protocol, family, identity, ends[0], local_port, ends[1], remote_port, interface)


def _destroy(diag: NetlinkSocket, session: Session) -> bool:
    """Whether the socket was there to be destroyed."""
    request = _DIAG_REQUEST.pack(session.family, session.protocol, 0, session.identity)
    number = diag.request(_SOCK_DESTROY, 0, request)
    if number == errno.ENOENT:
        return False
    if number == errno.EOPNOTSUPP:
        raise SessionsError("this kernel destroys no sockets (CONFIG_INET_DIAG_DESTROY)")
    if number:
        raise _refusal("a session cannot be severed", number)
    return True


def _create(conntrack: NetlinkSocket, session: Session, *, served: bool) -> bool:
    """Whether conntrack did not know the session and now does."""
    ours = NFCTAttrTuple(
        family=socket.AF_INET if session.local.version == 4 else socket.AF_INET6,
        saddr=str(session.local),
        daddr=str(session.remote),
        proto=int(session.protocol),
        sport=session.local_port,
        dport=session.remote_port,
    )
    theirs = ours.reverse()
    entry = nfct_msg.create_from(
        tuple_orig=theirs if served else ours,
        tuple_reply=ours if served else theirs,
        status=_SEEN_REPLY_ASSURED_CONFIRMED,
        timeout=_TIMEOUT_S[session.protocol],
        protoinfo=_TCP_ESTABLISHED if session.protocol is Protocol.TCP else None,
    )
    entry["nfgen_family"] = ours.family
    entry.encode()
    number = conntrack.request(_CT_NEW, NLM_F_CREATE | NLM_F_EXCL, bytes(entry.data[HEADER_SIZE:]))
    if number == errno.EEXIST:
        _let_in(conntrack, session.served, entry["nfgen_family"])
        return False
    if number == errno.ENOMEM:
        raise SessionsError("conntrack takes no more entries; raise net.netfilter.nf_conntrack_max")
    if number:
        raise _refusal("an open session cannot be made known to conntrack", number)
    return True


def _let_in(conntrack: NetlinkSocket, flow: Flow, family: int) -> None:
    """Where an entry has labels of the gate's. One without has no room for them, and needs none."""
    entry = NFGENMSG.pack(family, 0, 0) + nested(TUPLE_ORIG, key_of(flow))
    labels = attribute(_LABELS, _LET_IN) + attribute(_LABELS_MASK, _LET_IN)
    conntrack.request(_CT_NEW, 0, entry + labels)


def _refusal(what: str, number: int | None) -> SessionsError:
    if number == errno.EPERM:
        return SessionsError(f"{what}; CAP_NET_ADMIN is needed")
    return SessionsError(f"{what}: {errno.errorcode.get(number or 0, number)}")


@contextmanager
def _netlink(protocol: int) -> Iterator[NetlinkSocket]:
    """A connection to the kernel. Raises SessionsError for what the kernel or its absence does."""
    try:
        with NetlinkSocket(protocol) as opened:
            yield opened
    except NetlinkError as error:
        raise SessionsError(f"the kernel does not answer over netlink: {error}") from None
