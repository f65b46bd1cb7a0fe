"""The backstop: a second, small table behind the gate, which nobody but its owner can take away.

Whoever deletes the table `spa`, or flushes the ruleset, opens the host until the daemon hears of
it, and for good where the daemon is stopped. So the gate marks what it lets in (gate.nft, chains
`judge` and `cut`), and right behind it, still before DNAT, one chain drops what is new, is for the
gate to judge, and has no mark. In words:

1.  Loopback passes, and protocols without ports.
2.  What the gate has marked passes, and the mark is taken off again.
3.  What the gate's chain `session` takes for established passes, and nothing that it does not.
4.  What the gate does not judge passes: what is forwarded and did not enter by an outer interface.
5.  DHCP's answers, `always_open` and observed ports pass: they need no hole.
6.  Everything else is counted and dropped.

The table belongs to the netlink socket that made it (NFTA_TABLE_FLAGS owner, Linux 5.12), so that
others can neither change nor delete it, and stays when that socket is closed (persist, Linux 6.9).
Then it is an orphan: still at work, but anybody may flush it, and the next daemon adopts it and
changes it in place. Where the kernel knows only `owner` it goes with its owner; where it knows
neither, there is none, and a deleted gate is open until it is restored.

The mark is the packet's priority: nobody else uses that before routing, and it is seen by nobody
but a chain that hooks in between the two. See docs/decisions/0016-backstop.md.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Final

from spa_protocol.access import Protocol
from spa_server import netlink
from spa_server.firewall import expressions as ex
from spa_server.firewall import nftables
from spa_server.firewall.expressions import Base, Is, Meta, Rule, Track
from spa_server.firewall.gate import JUDGED_PRIORITY
from spa_server.firewall.nftables import Request
from spa_server.firewall.plan import GatePlan, Network, merged_ports, open_ports
from spa_server.netlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    NLM_F_CREATE,
    Failure,
    NetlinkError,
    NetlinkSocket,
    attribute,
    failures_in,
    nested,
)

TABLE: Final = "spa_backstop"
CHAIN: Final = "backstop"
PRIORITY: Final = -149
"""Right behind the gate (-150), and before DNAT (-100)."""

OWNER: Final = 1 << 1
PERSIST: Final = 1 << 2

_TABLE: Final = nftables.text(nftables.TABLE_ATTRIBUTE, TABLE)
_NEWCHAIN: Final = nftables.SUBSYSTEM << 8 | 3
_NEWRULE: Final = nftables.SUBSYSTEM << 8 | 6
_DELRULE: Final = nftables.SUBSYSTEM << 8 | 8
_DELTABLE: Final = nftables.SUBSYSTEM << 8 | 2
_NLM_F_APPEND: Final = 0x800
_TABLE_FLAGS: Final = 2
_TABLE_OWNER: Final = 7
_RULE_CHAIN: Final = 2
_RULE_EXPRESSIONS: Final = 4
_CHAIN_NAME: Final = 3
_CHAIN_HOOK: Final = 4
_CHAIN_POLICY: Final = 5
_CHAIN_TYPE: Final = 7
_HOOK_NUMBER: Final = 1
_HOOK_PRIORITY: Final = 2
_PREROUTING: Final = 0

_DROP: Final = ex.verdict(0)
_ACCEPT: Final = ex.verdict(1)
_LOOPBACK: Final = 1  # the interface's index, in every network namespace
_JUDGED: Final = (6, 17, 132, 33, 136)  # TCP, UDP, SCTP, DCCP, UDP-Lite
_TO_THIS_HOST: Final = (2, 3, 4, 5)  # RTN_LOCAL, BROADCAST, ANYCAST, MULTICAST
_FAMILY: Final = {4: b"\2", 6: b"\12"}  # NFPROTO_IPV4, NFPROTO_IPV6
_SOURCE: Final = {4: (12, 4), 6: (8, 16)}  # where it is in the header, and its size
_IP6_DESTINATION: Final = 24
_ESTABLISHED: Final = 1 << 1
_ASSURED: Final = 1 << 2
_MIDWAY: Final = 125  # the gate's labels: gate.nft, chain `session`
_BEGUN: Final = 126
_LET_IN: Final = 127
_NAME_SIZE: Final = 16

KERNEL_LACKS_IT: Final = "this kernel knows no tables with an owner (Linux 5.12 and later)"
_LETS_GO_WITHIN_S: Final = 5.0
_PAUSE_S: Final = 0.02
_NETLINK_SOCKETS: Final = Path("/proc/net/netlink")


class Standing(StrEnum):
    """Whether the backstop stands, and who holds it; TAKEN: not who was asked."""

    HELD = "held"
    TAKEN = "held by another process"
    ORPHANED = "orphaned"
    ABSENT = "absent"


class BackstopHeld(Exception):
    """Its owner does not let it go. The message says which process that is."""


class Backstop:
    """The table `inet spa_backstop` of the network namespace in which this was made.

    It is held for as long as the socket is open. What `arm` and `disarm` could not do is in
    `trouble`, and is tried again by `again`; why there is none by intent is in `absence`.
    """

    def __init__(self, socket: NetlinkSocket) -> None:
        """The socket becomes the owner."""
        self.trouble: str | None = None
        self.absence = "no gate was put in force by this process"
        self._socket = socket
        self._plan: GatePlan | None = None

    def arm(self, plan: GatePlan) -> None:
        """Makes it fit a gate that has just been applied, in place where it stands."""
        self._plan, self.trouble, self.absence = plan, None, ""
        if plan.observed.everything:
            self.disarm("the gate observes every port: there is nothing to drop")
            return
        try:
            self._arm(requests(plan))
        except NetlinkError as error:
            self.trouble = error.strerror or str(error)

    def _arm(self, content: Sequence[Request]) -> None:
        """By the best flags that this kernel knows. Raises NetlinkError.

        A table that was made without them can neither get them nor be an orphan: it is replaced.
        """
        for flags in (OWNER | PERSIST, OWNER):
            made = Request(nftables.NEWTABLE, NLM_F_CREATE, _TABLE + _flags(flags))
            for first in ([made], [Request(_DELTABLE, 0, _TABLE), made]):
                failure = self._transact([*first, *content])
                if failure is None:
                    return
                if failure.number not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT}:
                    raise failure.error()
        self.absence = KERNEL_LACKS_IT

    def again(self) -> None:
        """Tries anew what failed."""
        if self.trouble is None:
            return
        if self._plan is None:
            self.disarm(self.absence)
        else:
            self.arm(self._plan)

    def disarm(self, why: str) -> None:
        """Takes it away, where it stands."""
        self.trouble, self.absence, self._plan = None, why, None
        try:
            self._delete()
        except NetlinkError as error:
            self.trouble = error.strerror or str(error)

    @property
    def standing(self) -> Standing:
        """As the kernel has it now. Raises NetlinkError."""
        owner = self._owner()
        if owner is None:
            return Standing.ABSENT
        return Standing.HELD if owner else Standing.ORPHANED

    @property
    def is_own(self) -> bool:
        """Whether this object holds it: then there has been no window since it was armed. Raises
        NetlinkError."""
        return self._owner() == self._socket.port

    def remove(self, *, by_force: bool = False) -> None:
        """Takes it away, also from a daemon that holds it: that hears of the gate's end and lets
        go. One that does not is killed, `by_force`. Raises BackstopHeld, NetlinkError."""
        self._plan = None
        if self._is_gone_within(_LETS_GO_WITHIN_S):
            return
        process = holder(self._owner() or 0)
        if by_force and process is not None:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            if self._is_gone_within(_LETS_GO_WITHIN_S):
                return
        who = "another process" if process is None else f"process {process}"
        raise BackstopHeld(
            f"table inet {TABLE} still drops what is new: {who} holds it and does not let go; "
            f"end that (kill -KILL {process or 'PROCESS'}) and run this again"
        )

    def _is_gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._delete()
            except NetlinkError as error:
                if error.errno != errno.EPERM:
                    raise
                if time.monotonic() > deadline:
                    return False
                time.sleep(_PAUSE_S)
            else:
                return True

    def _delete(self) -> None:
        failure = self._transact([Request(_DELTABLE, 0, _TABLE)])
        if failure is not None and failure.number != errno.ENOENT:
            raise failure.error()

    def _owner(self) -> int | None:
        """The netlink port of who holds it, 0 for nobody; None where there is no such table."""
        try:
            answer = self._socket.get(nftables.GETTABLE, nftables.header() + _TABLE)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        found = dict(netlink.attributes(answer.payload, NFGENMSG.size))
        return int.from_bytes(found.get(_TABLE_OWNER, b""))

    def _transact(self, content: Sequence[Request]) -> Failure | None:
        """Commits all or nothing; the first refusal."""
        first = self._socket.sequence(len(content) + 2)
        answers = self._socket.exchange(nftables.batch(content, first))
        refused = failures_in(answers)
        if not refused and not any(a.sequence == first + len(content) for a in answers):
            raise NetlinkError(errno.ETIMEDOUT, "the kernel did not acknowledge it")
        return next(iter(refused), None)


def holder(port: int) -> int | None:
    """The process that holds the netlink socket with this port, as far as one may see."""
    for line in _NETLINK_SOCKETS.read_text("ascii").splitlines()[1:]:
        fields = line.split()
        if (fields[1], fields[2]) == (str(NETLINK_NETFILTER), str(port)):
            return _process_with(f"socket:[{fields[9]}]")
    return None


def _process_with(link: str) -> int | None:
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(descriptor.readlink()) == link:
                return int(descriptor.parts[2])
    return None


def requests(plan: GatePlan) -> list[Request]:
    """What fills a table that is there: a chain, emptied, and its rules."""
    hook = attribute(_HOOK_NUMBER, _PREROUTING.to_bytes(4))
    hook += attribute(_HOOK_PRIORITY, PRIORITY.to_bytes(4, signed=True))
    chain = (
        _TABLE
        + nftables.text(_CHAIN_NAME, CHAIN)
        + nested(_CHAIN_HOOK, hook)
        + attribute(_CHAIN_POLICY, (1).to_bytes(4))
        + nftables.text(_CHAIN_TYPE, "filter")
    )
    of_chain = _TABLE + nftables.text(_RULE_CHAIN, CHAIN)
    return [
        Request(_NEWCHAIN, NLM_F_CREATE, chain),
        Request(_DELRULE, 0, of_chain),
        *(
            Request(
                _NEWRULE,
                NLM_F_CREATE | _NLM_F_APPEND,
                of_chain + nested(_RULE_EXPRESSIONS, ex.encode(rule)),
            )
            for rule in rules(plan)
        ),
    ]


def rules(plan: GatePlan) -> Iterator[Rule]:
    """The chain, in the order of the words above."""
    yield ex.meta(Meta.INPUT_INTERFACE), ex.compare_number(Is.EQUAL, _LOOPBACK), _ACCEPT
    yield ex.meta(Meta.PROTOCOL), *_none_of(_JUDGED, 1), _ACCEPT
    marked = ex.meta(Meta.PRIORITY), ex.compare_number(Is.EQUAL, JUDGED_PRIORITY)
    yield *marked, *ex.set_priority(0), _ACCEPT
    yield from _established()
    if plan.outer is not None:
        yield *_entered_elsewhere(plan.outer), *_not_for_this_host(), _ACCEPT
    yield from _dhcp()
    for rule in open_ports(plan.always_open):
        for network, ports in product(rule.networks, rule.ports):
            yield *_from(network), *_to_ports(rule.protocol, ports), _ACCEPT
    for protocol in Protocol:
        for ports in merged_ports(plan.observed.accesses, protocol):
            yield *_to_ports(protocol, ports), _ACCEPT
    yield ex.counter(), _DROP


def _none_of(values: Sequence[int], size: int) -> Rule:
    return tuple(ex.compare(Is.OTHER, value.to_bytes(size, sys.byteorder)) for value in values)


def _entered_elsewhere(outer: Sequence[str]) -> Rule:
    if not outer:
        return ()
    names = (ex.compare(Is.OTHER, name.encode().ljust(_NAME_SIZE, b"\0")) for name in outer)
    return ex.meta(Meta.INPUT_NAME), *names


def _not_for_this_host() -> Rule:
    return ex.destination_type(), *_none_of(_TO_THIS_HOST, 4)


def _protocol(number: int) -> Rule:
    return ex.meta(Meta.PROTOCOL), ex.compare(Is.EQUAL, bytes([number]))


def _established() -> Iterator[Rule]:
    """As in the gate's chain `session`: a SYN does not ride in on what is only remembered, but may
    meet one of this host's own; what conntrack took up in the middle vouches for nothing; no INIT
    or COOKIE ECHO of SCTP rides in either; what a hole let begin has to be completed by one; and
    where conntrack knows no ports one flow would vouch for all."""
    established = (
        ex.track(Track.STATE),
        ex.mask_number(_ESTABLISHED),
        ex.compare_number(Is.OTHER, 0),
    )
    of_its_own = ex.track(Track.DIRECTION), ex.compare(Is.EQUAL, b"\1")
    let_in = (
        ex.track(Track.LABELS),
        ex.mask(_labels(_BEGUN, _LET_IN)),
        ex.compare(Is.OTHER, _labels(_BEGUN)),
    )
    seen_begin = (
        ex.track(Track.LABELS),
        ex.mask(_labels(_MIDWAY)),
        ex.compare(Is.OTHER, _labels(_MIDWAY)),
    )
    flags = ex.payload(Base.TRANSPORT, 13, 1), ex.mask(b"\x12")
    no_syn = *flags, ex.compare(Is.OTHER, b"\2")
    not_assured = (
        ex.track(Track.STATUS),
        ex.mask_number(_ASSURED),
        ex.compare_number(Is.EQUAL, 0),
    )
    has_ports = ex.track(Track.DESTINATION_PORT), ex.compare(Is.OTHER, bytes(2))
    no_init = ex.payload(Base.TRANSPORT, 12, 1), ex.compare(Is.OTHER, b"\1")
    tcp = *established, *_protocol(Protocol.TCP)
    yield *tcp, *no_syn, *let_in, _ACCEPT
    yield *tcp, *no_syn, *of_its_own, *seen_begin, _ACCEPT
    yield *tcp, *of_its_own, *seen_begin, *not_assured, _ACCEPT
    yield *established, *_protocol(Protocol.UDP), _ACCEPT
    sctp = *established, *_protocol(Protocol.SCTP), *has_ports, *no_init
    yield *sctp, ex.compare(Is.OTHER, b"\n"), *let_in, _ACCEPT
    yield *sctp, *of_its_own, _ACCEPT
    others = ex.meta(Meta.PROTOCOL), *_none_of(tuple(Protocol), 1)
    yield *established, *others, *has_ports, _ACCEPT


def _labels(*numbers: int) -> bytes:
    return sum(1 << number for number in numbers).to_bytes(16, sys.byteorder)


def _dhcp() -> Iterator[Rule]:
    """Answers that come unasked, as far as conntrack can tell."""
    ports4 = ex.payload(Base.TRANSPORT, 0, 4), ex.compare(Is.EQUAL, _two_ports(67, 68))
    ports6 = ex.payload(Base.TRANSPORT, 0, 4), ex.compare(Is.EQUAL, _two_ports(547, 546))
    for here in _TO_THIS_HOST[:2]:
        to_here = ex.destination_type(), ex.compare_number(Is.EQUAL, here)
        yield *_protocol(Protocol.UDP), *ports4, *to_here, _ACCEPT
    link_local = ex.mask(b"\xff\xc0"), ex.compare(Is.EQUAL, b"\xfe\x80")
    addresses = (
        *(ex.payload(Base.NETWORK, _SOURCE[6][0], 2), *link_local),
        *(ex.payload(Base.NETWORK, _IP6_DESTINATION, 2), *link_local),
    )
    yield *_family(6), *_protocol(Protocol.UDP), *ports6, *addresses, _ACCEPT


def _two_ports(source: int, destination: int) -> bytes:
    return source.to_bytes(2) + destination.to_bytes(2)


def _family(version: int) -> Rule:
    return ex.meta(Meta.FAMILY), ex.compare(Is.EQUAL, _FAMILY[version])


def _from(network: Network) -> Rule:
    family = _family(network.version)
    if network.prefixlen == 0:
        return family
    offset, size = _SOURCE[network.version]
    within = ex.mask(network.netmask.packed), ex.compare(Is.EQUAL, network.network_address.packed)
    return *family, ex.payload(Base.NETWORK, offset, size), *within


def _to_ports(protocol: Protocol, ports: tuple[int, int]) -> Rule:
    first, last = (port.to_bytes(2) for port in ports)
    port = ex.payload(Base.TRANSPORT, 2, 2)
    return (
        *_protocol(protocol),
        port,
        ex.compare(Is.AT_LEAST, first),
        ex.compare(Is.AT_MOST, last),
    )


def _flags(flags: int) -> bytes:
    return attribute(_TABLE_FLAGS, flags.to_bytes(4))
