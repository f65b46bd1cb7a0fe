"""Knocks in a ping or a SYN: packets by scapy, through a raw socket of Linux (CAP_NET_RAW).

The socket is connected, so the kernel chooses the own address and the way, and hands over what
comes from the target in the same protocol; a filter keeps out what has not an answer's length, so
that a download from the target does not fill the socket and crowd the answer out. An answer is the
last 240 bytes of a packet, an echo reply or a reset (docs/protocol.md section 3.1): whether it is
one, its seal says, and no header.

A SYN leaves from a port that is bound meanwhile, so that it is nobody else's, and each from another
one: to whatever follows connections on the way, each try is a new connection.
"""

import ctypes
import importlib
import secrets
import socket
import struct
import sys
from dataclasses import replace
from typing import Any, Final

from keys.trouble import Trouble
from spa_client.resolve import Target
from spa_protocol.carrier import ECHO_HEADER_SIZE, Carrier, Kind
from spa_protocol.layout import DATAGRAM_SIZE, Address

_SHORTEST_ANSWER: Final = ECHO_HEADER_SIZE + DATAGRAM_SIZE  # IPv6 hands over no IP header
_LONGEST_ANSWER: Final = 60 + 60 + DATAGRAM_SIZE
_SO_ATTACH_FILTER: Final = 26
_LOAD_LENGTH: Final = 0x80  # linux/filter.h: BPF_LD | BPF_W | BPF_LEN
_IF_GREATER: Final = 0x25
_RETURN: Final = 0x06
_IP_HEADERS: Final = {4: 20, 6: 40}
_WINDOW: Final = 64_240
_INSTEAD: Final = "knock by udp:53 or udp:443 instead, where the server hears that"
_PROTOCOLS: Final = {
    (Kind.ICMP, 4): socket.IPPROTO_ICMP,
    (Kind.ICMP, 6): getattr(socket, "IPPROTO_ICMPV6", 58),
    (Kind.TCP_SYN, 4): socket.IPPROTO_TCP,
    (Kind.TCP_SYN, 6): socket.IPPROTO_TCP,
}


class RawLine:
    """The way to one address by ICMP or TCP.

    Raises Trouble where this machine or this user cannot, OSError for a family that it has not got.
    """

    def __init__(self, target: Target, carrier: Carrier) -> None:
        self._target = target
        self._kind = carrier.kind
        self._scapy = _layers(carrier)
        self._identifier = secrets.randbelow(0xFFFF) + 1
        self._sequence = 0
        self._ports: list[socket.socket] = []
        protocol = _PROTOCOLS[self._kind, target.address.version]
        try:
            self.socket = socket.socket(target.family, socket.SOCK_RAW, protocol)
        except PermissionError:
            hint = f"run it as root or as spa-client(1), CARRIERS, says; or {_INSTEAD}"
            raise Trouble(f"the carrier {carrier} needs CAP_NET_RAW", hint) from None
        try:
            _let_in_lengths(self.socket, _SHORTEST_ANSWER, _LONGEST_ANSWER)
        except OSError:
            self.socket.close()
            raise

    def connect(self) -> None:
        """Fixes the own address. Raises OSError."""
        self.socket.connect(replace(self._target, port=0).sockaddr())

    def close(self) -> None:
        """Gives back the socket and the ports."""
        for each in (self.socket, *self._ports):
            each.close()

    def wrap(self, payload: bytes, own: Address) -> bytes:
        """What goes behind the IP header. Raises OSError where no port can be had."""
        four = self._target.address.version == 4
        ip = (self._scapy.IP if four else self._scapy.IPv6)(
            src=str(own), dst=str(self._target.address)
        )
        inner = self._echo(four) if self._kind is Kind.ICMP else self._syn(own)
        whole = bytes(ip / inner / self._scapy.Raw(payload))
        return whole[_IP_HEADERS[self._target.address.version] :]

    def unwrap(self, received: bytes) -> bytes:
        """The bytes that may be an answer."""
        is_short = len(received) <= _LONGEST_ANSWER
        return received[-DATAGRAM_SIZE:] if is_short else b""

    def _echo(self, four: bool) -> Any:
        self._sequence += 1
        kind = self._scapy.ICMP if four else self._scapy.ICMPv6EchoRequest
        return kind(id=self._identifier, seq=self._sequence)

    def _syn(self, own: Address) -> Any:
        return self._scapy.TCP(
            sport=self._new_port(own),
            dport=self._target.port,
            seq=secrets.randbits(32),
            flags="S",
            window=_WINDOW,
        )

    def _new_port(self, own: Address) -> int:
        reserved = socket.socket(self._target.family, socket.SOCK_STREAM)
        self._ports.append(reserved)
        bound = replace(self._target, address=own, port=0)
        reserved.bind(bound.sockaddr())
        return int(reserved.getsockname()[1])


class _Layers:
    """The few of scapy's names that are used here."""

    def __init__(self) -> None:
        """Raises ImportError."""
        inet = importlib.import_module("scapy.layers.inet")
        inet6 = importlib.import_module("scapy.layers.inet6")
        self.IP, self.ICMP, self.TCP = inet.IP, inet.ICMP, inet.TCP
        self.IPv6, self.ICMPv6EchoRequest = inet6.IPv6, inet6.ICMPv6EchoRequest
        self.Raw = importlib.import_module("scapy.packet").Raw


def _let_in_lengths(sock: socket.socket, shortest: int, longest: int) -> None:
    """Has the kernel throw away packets of other lengths, in bytes. Raises OSError."""
    steps = (
        (_LOAD_LENGTH, 0, 0, 0),
        (_IF_GREATER, 2, 0, longest),
        (_IF_GREATER, 0, 1, shortest - 1),
        (_RETURN, 0, 0, 0xFFFF),
        (_RETURN, 0, 0, 0),
    )
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(steps), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _layers(carrier: Carrier) -> _Layers:
    """Raises Trouble. scapy takes half a second to import: only here."""
    if sys.platform != "linux":
        raise Trouble(f"the carrier {carrier} works on Linux only", _INSTEAD)
    try:
        return _Layers()
    except ImportError:
        hint = f"{sys.executable} -m pip install scapy; or {_INSTEAD}"
        raise Trouble(f"the carrier {carrier} needs scapy", hint) from None
