"""The host's routes: by which interfaces the world comes in, and which addresses are its own.

In rtnetlink(7) itself: pyroute2's IPRoute runs an event loop of its own and cannot be used where
one is running already, as it is in the daemon.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from spa_protocol.layout import Address
from spa_server import netlink
from spa_server.netlink import NETLINK_ROUTE, Message, NetlinkError, NetlinkSocket

_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_MULTIPATH: Final = 9
_RTN_UNSPEC: Final = 0
_RTN_UNICAST: Final = 1
_RTN_LOCAL: Final = 2
_RTN_BROADCAST: Final = 3
_RTN_ANYCAST: Final = 4
_RTN_MULTICAST: Final = 5
_NO_SOURCE: Final = {
    _RTN_LOCAL: "the source is an address of this host",
    _RTN_BROADCAST: "the source is a broadcast address of this host's network",
    _RTN_ANYCAST: "the source is an anycast address of this host",
    _RTN_MULTICAST: "the source is a multicast address",
}

# family, length of destination and source prefix, tos, table, protocol, scope, type, flags
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
# length, flags, hops, interface
_NEXT_HOP: Final = struct.Struct("=HBBi")

# Half of all addresses: VPNs set two such routes where they want to leave the default one alone.
_LONGEST_DEFAULT_PREFIX: Final = 1
_NO_ROUTE: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}

_GROUPS: Final = (1, 5, 7, 9, 11)  # links; IPv4 and IPv6 addresses and routes


def outer_interfaces() -> tuple[str, ...] | None:
    """The names of the interfaces with a default route of either family; None if there is none.

    Raises NetlinkError when the kernel cannot be asked.
    """
    names: set[str] = set()
    with NetlinkSocket(NETLINK_ROUTE) as asking:
        for family in (socket.AF_INET, socket.AF_INET6):
            for answer in asking.dump(_RTM_GETROUTE, _request(family)):
                for index in _default_interfaces(answer):
                    with suppress(OSError):  # it is gone since
                        names.add(socket.if_indextoname(index))
    return tuple(sorted(names)) or None


def is_local_unicast(address: Address) -> bool:
    """Whether packets to the address are for this host alone: no broadcast, no multicast.

    Raises NetlinkError when the kernel cannot be asked.
    """
    return _route_type(address) == _RTN_LOCAL


def why_no_source(address: Address) -> str:
    """Why packets from the address cannot come from another host, as the routes are; else "".

    Raises NetlinkError when the kernel cannot be asked.
    """
    return _NO_SOURCE.get(_route_type(address), "")


def _route_type(address: Address) -> int:
    """rtnetlink(7)'s rtm_type; RTN_UNSPEC where no route leads to the address."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    destination = netlink.attribute(_RTA_DST, address.packed)
    with NetlinkSocket(NETLINK_ROUTE) as asking:
        try:
            answer = asking.get(
                _RTM_GETROUTE, _request(family, address.max_prefixlen) + destination
            )
        except NetlinkError as error:
            if error.errno in _NO_ROUTE:
                return _RTN_UNSPEC
            raise
    route_type: int = _ROUTE.unpack_from(answer.payload)[7]
    return route_type


class RouteWatch(NetlinkSocket):
    """A netlink socket that wakes when links, addresses or default routes change."""

    def __init__(self) -> None:
        """Raises OSError."""
        super().__init__(NETLINK_ROUTE, groups=_GROUPS)

    def read(self) -> bool:
        """Reads all that waits: whether a link, an address or a default route has changed.

        Also True when notifications were lost. Other routes come and go by the thousands where a
        routing daemon runs, and are no matter.
        """
        changed = False
        for told in self.notifications():
            changed |= told is None or _matters(told)
        return changed


def _matters(message: Message) -> bool:
    if message.kind not in {_RTM_NEWROUTE, _RTM_DELROUTE}:
        return True
    return any(True for _ in _default_interfaces(message))


def _request(family: int, prefix_length: int = 0) -> bytes:
    return _ROUTE.pack(family, prefix_length, 0, 0, 0, 0, 0, 0, 0)


def _default_interfaces(answer: Message) -> Iterator[int]:
    """The indexes of the interfaces a route leaves by, if it is a default route."""
    route = _ROUTE.unpack_from(answer.payload)
    if route[1] > _LONGEST_DEFAULT_PREFIX or route[7] != _RTN_UNICAST:
        return
    for kind, value in netlink.attributes(answer.payload, _ROUTE.size):
        if kind == _RTA_OIF:
            yield struct.unpack("=I", value)[0]
        elif kind == _RTA_MULTIPATH:
            yield from _next_hops(value)


def _next_hops(value: bytes) -> Iterator[int]:
    """The interfaces of a route of several paths."""
    at = 0
    while at + _NEXT_HOP.size <= len(value):
        size, _, _, index = _NEXT_HOP.unpack_from(value, at)
        yield index
        if size < _NEXT_HOP.size:
            return
        at += size + -size % 4
