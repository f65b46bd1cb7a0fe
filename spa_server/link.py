"""Link-local IPv6 addresses, and the link on which each is somebody's (RFC 4007).

fe80::/10 is used anew on every link: fe80::1 on one interface is another machine than fe80::1 on
the next. Within the server such an address has its link's index as its zone: fe80::1%3. The index,
since a name can pass to another interface (ppp0). A packet names no link, and neither do conntrack
and a request.

IPv4 has no zones: 169.254.0.0/16 goes by the routing table like every other network.
"""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from spa_protocol.layout import Address


@lru_cache(maxsize=65_536)
def on_link(address: Address, interface: int) -> Address:
    """The address with its link, if it needs one; `interface` is the kernel's index, 0 unknown."""
    if not needs_link(address) or not interface:
        return address
    return IPv6Address(f"{off_link(address)}%{interface}")


def off_link(address: Address) -> Address:
    """The address as a packet has it."""
    if isinstance(address, IPv6Address) and address.scope_id:
        return ip_address(address.packed)
    return address


def needs_link(address: Address) -> bool:
    """Whether the address is one on each link."""
    return isinstance(address, IPv6Address) and address.is_link_local


def link_of(*ends: Address) -> int:
    """The index of the link on which these addresses are; 0 where none of them has one."""
    for end in ends:
        if isinstance(end, IPv6Address) and end.scope_id:
            return int(end.scope_id)
    return 0
