"""What else is on a packet's way, outside of nftables: XDP, tc, bridges, iptables-legacy.

Read through rtnetlink(7), sysctls and files under /proc.
"""

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keys.text import printable
from spa_server import netlink
from spa_server.alignment.finding import Finding
from spa_server.netlink import NETLINK_ROUTE, Message, NetlinkSocket

_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_RTM_NEWQDISC: Final = 36
_RTM_GETQDISC: Final = 38
_RTM_NEWTFILTER: Final = 44
_RTM_GETTFILTER: Final = 46
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_TCMSG: Final = struct.Struct("=BxxxiIII")
_IFLA_IFNAME: Final = 3
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_IFLA_XDP: Final = 43
_IFLA_XDP_ATTACHED: Final = 2
_TCA_KIND: Final = 1
_INGRESS_PARENT: Final = 0xFFFF_FFF2  # TC_H_CLSACT with TC_H_MIN_INGRESS
_WITH_INGRESS: Final = frozenset({b"clsact", b"ingress"})

_BRIDGE_CALLS: Final = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_LEGACY: Final = {
    "iptables": (Path("/proc/net/ip_tables_names"), socket.AF_INET, socket.IPPROTO_IP),
    "ip6tables": (Path("/proc/net/ip6_tables_names"), socket.AF_INET6, socket.IPPROTO_IPV6),
}
_SO_GET_INFO: Final = 64  # IPT_SO_GET_INFO and IP6T_SO_GET_INFO
# ipt_getinfo: name, valid hooks, entry points, policies, number of entries, their size
_GETINFO: Final = struct.Struct("=32sI20x20xII")


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface. `bridge` is the index of the one whose port it is, 0 for none."""

    index: int
    name: str
    is_bridge: bool = False
    bridge: int = 0
    has_xdp: bool = False
    has_ingress_filters: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`legacy` are the tables of iptables-legacy that have rules, as `iptables filter`."""

    links: tuple[Link, ...] = ()
    bridges_are_judged: bool = True
    legacy: tuple[str, ...] = ()


def read_links() -> tuple[Link, ...]:
    """The interfaces of the caller's network namespace. Raises NetlinkError."""
    with NetlinkSocket(NETLINK_ROUTE) as asking:
        filtered = frozenset(_with_ingress_filters(asking))
        answers = asking.dump(_RTM_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    return tuple(_link(a, filtered) for a in answers if a.kind == _RTM_NEWLINK)


def _link(answer: Message, filtered: frozenset[int]) -> Link:
    index: int = _IFINFOMSG.unpack_from(answer.payload)[2]
    found = dict(netlink.attributes(answer.payload, _IFINFOMSG.size))
    info = dict(netlink.attributes(found.get(_IFLA_LINKINFO, b"")))
    xdp = dict(netlink.attributes(found.get(_IFLA_XDP, b"")))
    return Link(
        index,
        printable(found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")),
        is_bridge=info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") == b"bridge",
        bridge=int.from_bytes(found.get(_IFLA_MASTER, b""), sys.byteorder),
        has_xdp=any(xdp.get(_IFLA_XDP_ATTACHED, b"")),
        has_ingress_filters=index in filtered,
    )


def _with_ingress_filters(asking: NetlinkSocket) -> Iterator[int]:
    """The interfaces with tc filters at ingress."""
    for answer in asking.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
        if answer.kind != _RTM_NEWQDISC:
            continue
        index: int = _TCMSG.unpack_from(answer.payload)[1]
        kind = dict(netlink.attributes(answer.payload, _TCMSG.size)).get(_TCA_KIND, b"")
        if kind.rstrip(b"\0") in _WITH_INGRESS:
            request = _TCMSG.pack(0, index, 0, _INGRESS_PARENT, 0)
            if any(a.kind == _RTM_NEWTFILTER for a in asking.dump(_RTM_GETTFILTER, request)):
                yield index


def bridges_are_judged() -> bool:
    """Whether what a bridge passes on between its ports goes through the IP hooks."""
    try:
        return _BRIDGE_CALLS.read_text(encoding="ascii").strip() != "0"
    except FileNotFoundError:
        return False


def legacy_tables() -> tuple[str, ...]:
    """The tables of iptables-legacy that hold a rule. Raises OSError, for others than root.

    Only tables that are there already are asked about: to ask makes them.
    """
    return tuple(
        f"{program} {printable(name)}"
        for program, (names, family, level) in _LEGACY.items()
        if names.exists()
        for name in names.read_text(encoding="ascii", errors="replace").split()
        if _rules_in(name, family, level)
    )


def _rules_in(table: str, family: int, level: int) -> int:
    """How many rules a table holds besides those that it is born with. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(table.encode()[:31], _GETINFO.size)
    size = ctypes.c_uint32(_GETINFO.size)
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as asking:
        found = library.getsockopt(asking.fileno(), level, _SO_GET_INFO, buffer, ctypes.byref(size))
    if found != 0:
        raise OSError(ctypes.get_errno(), "getsockopt")
    _, hooks, entries, _ = _GETINFO.unpack_from(buffer)
    # A policy for each hook, and the entry that ends the table.
    return int(entries) - int(hooks).bit_count() - 1


def check_surroundings(found: Surroundings, outer: tuple[str, ...] | None) -> Iterator[Finding]:
    """`outer` are the interfaces by which the world comes in, None where nobody knows."""
    for link in found.links:
        if link.has_xdp:
            yield Finding(
                "xdp-program",
                link.name,
                f"an XDP program takes packets at {link.name} before the gate sees them",
                f"be sure that it passes none on by itself: ip link show {link.name}",
            )
        if link.has_ingress_filters:
            yield Finding(
                "tc-ingress",
                link.name,
                f"tc filters take packets at {link.name} before the gate sees them",
                f"be sure that they redirect none: tc filter show dev {link.name} ingress",
            )
    if not found.bridges_are_judged:
        yield from _bridges(found.links, outer or ())
    for table in found.legacy:
        yield Finding(
            "iptables-legacy",
            table,
            f"the table {table} holds rules of iptables-legacy, which nft does not show: they "
            "were not looked at",
            "move them to nftables: iptables-legacy-save, iptables-translate",
        )


def _bridges(links: tuple[Link, ...], outer: tuple[str, ...]) -> Iterator[Finding]:
    """Bridges through which the world reaches others than this host."""
    for bridge in links:
        ports = [link.name for link in links if link.bridge == bridge.index]
        if bridge.is_bridge and bridge.name in outer and len(ports) > 1:
            yield Finding(
                "bridge-unjudged",
                bridge.name,
                f"what {bridge.name} passes between its ports ({', '.join(ports)}) is not judged: "
                "it is for other machines",
                "guard those machines themselves, or: sysctl net.bridge.bridge-nf-call-iptables=1",
            )
