"""Networks, as short bytes: of an IPv4 address its /24, of an IPv6 address its /48.

A place lies in a region, its provider's neighbourhood: the /16 or the /32. Bytes of four lengths
(3, 6; 2, 4), so that none can be taken for another.
"""

import socket
from typing import Final

_V4: Final = 3
_V6: Final = 6
_REGIONS: Final = {_V4: 2, _V6: 4}


def place_of(source: str | None) -> bytes | None:
    """The network of an address in its usual text; None for what is no address."""
    if source is None:
        return None
    try:
        if ":" in source:
            return socket.inet_pton(socket.AF_INET6, source.partition("%")[0])[:_V6]
        return socket.inet_pton(socket.AF_INET, source)[:_V4]
    except (OSError, ValueError):
        return None


def region_of(place: bytes) -> bytes:
    """The provider's neighbourhood of a network."""
    return place[: _REGIONS.get(len(place), 0)]


def text_of(place: bytes) -> str:
    """198.51.100.0/24, or 2001:db8:1::/48; of a region its /16 or /32."""
    bits = len(place) * 8
    if len(place) in (_V6, 4):
        return f"{socket.inet_ntop(socket.AF_INET6, place.ljust(16, bytes(1)))}/{bits}"
    return f"{socket.inet_ntop(socket.AF_INET, place.ljust(4, bytes(1)))}/{bits}"
