"""An entry of conntrack, as ctnetlink writes it.

    nlmsghdr 16 | nfgenmsg 4 | CTA_TUPLE_ORIG { CTA_TUPLE_IP {...} CTA_TUPLE_PROTO {...} } | ...

CTA_TUPLE_ORIG is the five-tuple as the first packet had it. Its bytes, without the outermost
header, are the *key* of a connection: what the kernel is asked by, and what ends are matched by.
Formats: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.

An entry outlives its last packet: a TCP connection that was closed by two minutes, UDP by up to
two. It ends at the moment its time was over, whenever the kernel's housekeeping comes by, and so
the last packet was the timeout of its last state before that. Moments are known where
net.netfilter.nf_conntrack_timestamp is on, packets and bytes where nf_conntrack_acct is
(spa_server/firewall/accounting.py).
"""

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

import msgspec

from spa_protocol.access import Protocol
from spa_protocol.layout import Address
from spa_server.flow import Flow
from spa_server.netlink import HEADER_SIZE, NFGENMSG, attribute, attributes, nested

TUPLE_ORIG: Final = 1
TUPLE_REPLY: Final = 2
_STATUS: Final = 3
_PROTOINFO: Final = 4
_TIMEOUT: Final = 7
_COUNTERS_ORIG: Final = 9
_COUNTERS_REPLY: Final = 10
_TIMESTAMP: Final = 20

_TUPLE_IP: Final = 1
_TUPLE_PROTO: Final = 2
_IPV4: Final = (1, 2)  # CTA_IP_V4_SRC, CTA_IP_V4_DST
_IPV6: Final = (3, 4)
_PROTO_NUM: Final = 1
_PROTO_SRC_PORT: Final = 2
_PROTO_DST_PORT: Final = 3
_COUNTED: Final = (1, 2)  # CTA_COUNTERS_PACKETS, CTA_COUNTERS_BYTES
_BEGUN: Final = 1
_STOPPED: Final = 2
_OF_TCP: Final = 1
_TCP_STATE: Final = 1
_ASSURED: Final = 1 << 2

_PORT = struct.Struct(">H")
_ATTRIBUTE_HEADER: Final = 4
_KEY_AT: Final = HEADER_SIZE + NFGENMSG.size + _ATTRIBUTE_HEADER
_FAMILY_AT: Final = HEADER_SIZE
_KEY_SIZE: Final[dict[int, int]] = {socket.AF_INET: 48, socket.AF_INET6: 72}

_TIMEOUTS: Final = Path("/proc/sys/net/netfilter")
_TCP_STATES: Final = (
    "none",
    "syn-sent",
    "syn-recv",
    "established",
    "fin-wait",
    "close-wait",
    "last-ack",
    "time-wait",
    "close",
    "syn-sent",
)
# In any other state the timeout is one of several.
_CLOSING: Final = {"fin-wait", "close-wait", "last-ack", "time-wait", "close"}


@dataclass(frozen=True, slots=True)
class Count:
    """What went one way. Bytes are those of IP packets, their headers included."""

    packets: int
    bytes: int


class Entry(msgspec.Struct, frozen=True):
    """What conntrack knows of a connection; None where it does not count, or note the time.

    `there` is from whoever began it. Times are microseconds since the Unix epoch; `idle_s` is for
    how long nothing had come when it ended. `state` is TCP's, empty for others.
    """

    key: bytes
    state: str
    there: Count | None
    back: Count | None
    begun_us: int | None
    ended_us: int | None
    idle_s: float
    reply_key: bytes = b""

    def as_begun_by(self, key: bytes) -> "Entry":
        """The same, where `key` is its reply's as if the other end had begun.

        A connection in the midst of which conntrack began anew may have it so: whoever spoke first
        then is the one who began.
        """
        if key != self.reply_key:
            return self
        return msgspec.structs.replace(
            self, key=key, reply_key=self.key, there=self.back, back=self.there
        )

    @property
    def flow(self) -> Flow | None:
        """The flow whose key this is; None where it has no ports."""
        return flow_of(self.key)


def key_of(flow: Flow) -> bytes:
    """The key of a flow: 48 bytes, or 72 for IPv6."""
    kinds = _IPV4 if flow.source.version == 4 else _IPV6
    ends = zip(kinds, (flow.source, flow.target), strict=True)
    return nested(_TUPLE_IP, b"".join(attribute(kind, end.packed) for kind, end in ends)) + nested(
        _TUPLE_PROTO,
        attribute(_PROTO_NUM, bytes([flow.protocol]))
        + attribute(_PROTO_SRC_PORT, _PORT.pack(flow.source_port))
        + attribute(_PROTO_DST_PORT, _PORT.pack(flow.port)),
    )


def flow_of(key: bytes) -> Flow | None:
    """The inverse of `key_of`; None for what has no ports."""
    parts = dict(attributes(key))
    ip = dict(attributes(parts.get(_TUPLE_IP, b"")))
    proto = dict(attributes(parts.get(_TUPLE_PROTO, b"")))
    kinds = _IPV4 if _IPV4[0] in ip else _IPV6
    try:
        ends = [_address(ip[kind]) for kind in kinds]
        ports = [_PORT.unpack(proto[kind])[0] for kind in (_PROTO_SRC_PORT, _PROTO_DST_PORT)]
        return Flow(ends[0], ports[0], ends[1], proto[_PROTO_NUM][0], ports[1])
    except (KeyError, IndexError, ValueError, struct.error):
        return None


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def key_in(told: bytes) -> bytes:
    """The key of the connection whose end a message tells; what `Conntrack.read` returns."""
    size = _key_size(told)
    return told[_KEY_AT : _KEY_AT + size]


def reply_key_in(told: bytes) -> bytes:
    """The same of what came back: CTA_TUPLE_REPLY is next, and of one size."""
    size = _key_size(told)
    at = _KEY_AT + size + _ATTRIBUTE_HEADER
    return told[at : at + size]


def _key_size(told: bytes) -> int:
    return _KEY_SIZE.get(told[_FAMILY_AT], 0) if len(told) > _KEY_AT else 0


def parse_entry(payload: bytes, timeouts: dict[str, int]) -> Entry | None:
    """From a message without its header; None where it is none.

    `timeouts` remembers what the host's timeouts are, for as long as the caller keeps it.
    """
    found = dict(attributes(payload, NFGENMSG.size))
    if TUPLE_ORIG not in found:
        return None
    key, reply_key = (_plain(found.get(kind, b"")) for kind in (TUPLE_ORIG, TUPLE_REPLY))
    moments = dict(attributes(found.get(_TIMESTAMP, b"")))
    state = _tcp_state(found)
    is_assured = bool(_number(found.get(_STATUS)) & _ASSURED)
    timeout_s = _timeout_s(key, state, timeouts, is_assured=is_assured)
    return Entry(
        key,
        state,
        _count(found.get(_COUNTERS_ORIG)),
        _count(found.get(_COUNTERS_REPLY)),
        _us(moments.get(_BEGUN)),
        _us(moments.get(_STOPPED)),
        max(0, timeout_s - _number(found.get(_TIMEOUT))) if timeout_s else 0,
        reply_key,
    )


def _plain(key: bytes) -> bytes:
    """Without the zone of one direction, which stands behind it."""
    flow = flow_of(key)
    return key if flow is None else key_of(flow)


def _tcp_state(found: dict[int, bytes]) -> str:
    of_tcp = dict(attributes(found.get(_PROTOINFO, b""))).get(_OF_TCP, b"")
    number = dict(attributes(of_tcp)).get(_TCP_STATE, b"")
    return _TCP_STATES[number[0]] if number and number[0] < len(_TCP_STATES) else ""


def _count(value: bytes | None) -> Count | None:
    counted = dict(attributes(value or b""))
    packets, octets = (counted.get(kind) for kind in _COUNTED)
    if packets is None or octets is None:
        return None
    return Count(int.from_bytes(packets), int.from_bytes(octets))


def _us(nanoseconds: bytes | None) -> int | None:
    return None if nanoseconds is None else int.from_bytes(nanoseconds) // 1000


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"")


def _timeout_s(key: bytes, state: str, known: dict[str, int], *, is_assured: bool) -> int:
    """How long an entry in this state lives on after a packet; 0 where that cannot be told."""
    if state:
        name = f"tcp_timeout_{state.replace('-', '_')}" if state in _CLOSING else ""
    else:
        proto = dict(attributes(dict(attributes(key)).get(_TUPLE_PROTO, b"")))
        is_udp = proto.get(_PROTO_NUM) == bytes([Protocol.UDP])
        name = ("udp_timeout_stream" if is_assured else "udp_timeout") if is_udp else ""
    if name and name not in known:
        known[name] = 0
        with suppress(OSError, ValueError):
            known[name] = int((_TIMEOUTS / f"nf_conntrack_{name}").read_text("ascii"))
    return known.get(name, 0)
