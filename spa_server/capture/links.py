"""The IP packet inside a captured frame, for the link types that captures are written in.

The numbers are tcpdump.org's LINKTYPE values; each header is described at
https://www.tcpdump.org/linktypes.html. What holds no IPv4 or IPv6 packet, or one whose version
belies its frame, is None; nothing here raises.
"""

import struct
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

Endian: TypeAlias = Literal["<", ">"]

NULL: Final = 0
ETHERNET: Final = 1
_RAW_BSD: Final = 12
RAW: Final = 101
LOOP: Final = 108
LINUX_SLL: Final = 113
IPV4: Final = 228
IPV6: Final = 229
NFLOG: Final = 239
LINUX_SLL2: Final = 276

_VERSIONS: Final = {0x0800: 4, 0x86DD: 6}
_VLAN_TAGS: Final = frozenset({0x8100, 0x88A8, 0x9100})
_FAMILIES: Final = {2: 4, 10: 6, 24: 6, 28: 6, 30: 6}  # AF_INET; AF_INET6 of Linux and the BSDs
_NFLOG_PAYLOAD: Final = 9


def ip_of(link_type: int, frame: bytes, endian: Endian = "<") -> bytes | None:
    """The bytes from the IP header on. `endian` is that of the machine that captured."""
    reader = _READERS.get(link_type)
    return reader(frame, endian) if reader else None


def is_known(link_type: int) -> bool:
    """Whether frames of this link type can be read."""
    return link_type in _READERS


def _of_version(packet: bytes, version: int | None) -> bytes | None:
    return packet if packet and packet[0] >> 4 == version else None


def _behind_ethertype(frame: bytes, at: int) -> bytes | None:
    """The packet behind an EtherType and any 802.1Q or 802.1ad tags."""
    while len(frame) >= at + 2:
        (ethertype,) = struct.unpack_from(">H", frame, at)
        if ethertype not in _VLAN_TAGS:
            return _of_version(frame[at + 2 :], _VERSIONS.get(ethertype))
        at += 4
    return None


def _ethernet(frame: bytes, _: Endian) -> bytes | None:
    return _behind_ethertype(frame, 12)


def _cooked(frame: bytes, _: Endian) -> bytes | None:
    return _behind_ethertype(frame, 14)


def _cooked2(frame: bytes, _: Endian) -> bytes | None:
    """The EtherType stands first; the packet begins behind a header of 20 bytes."""
    if len(frame) < 20:
        return None
    return _behind_ethertype(frame[:2] + frame[20:], 0)


def _raw(frame: bytes, _: Endian) -> bytes | None:
    return frame if frame and frame[0] >> 4 in (4, 6) else None


def _loopback(frame: bytes, _: Endian) -> bytes | None:
    """Four bytes of address family, in the order of whichever machine captured."""
    if len(frame) < 4:
        return None
    family = min(int.from_bytes(frame[:4], "little"), int.from_bytes(frame[:4], "big"))
    return _of_version(frame[4:], _FAMILIES.get(family))


def _nflog(frame: bytes, endian: Endian) -> bytes | None:
    """Family, version 0 and group, 4 bytes; then attributes, their length and type 2 bytes each."""
    at = 4
    while len(frame) >= at + 4:
        length, kind = struct.unpack_from(f"{endian}HH", frame, at)
        if length < 4 or at + length > len(frame):
            return None
        if kind == _NFLOG_PAYLOAD:
            return _of_version(frame[at + 4 : at + length], _FAMILIES.get(frame[0]))
        at += length + -length % 4
    return None


_READERS: Final[dict[int, Callable[[bytes, Endian], bytes | None]]] = {
    NULL: _loopback,
    ETHERNET: _ethernet,
    _RAW_BSD: _raw,
    RAW: _raw,
    LOOP: _loopback,
    LINUX_SLL: _cooked,
    IPV4: _raw,
    IPV6: _raw,
    NFLOG: _nflog,
    LINUX_SLL2: _cooked2,
}
