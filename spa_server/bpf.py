"""Classic BPF programs for sockets: linux/filter.h, and what the kernel adds to BPF there.

Assembled by hand, because they have to hold on every kind of link and without libpcap: the kernel
gives a filter the protocol (behind a VLAN tag that it has taken off) and the network header as
offsets of their own (SKF_AD_PROTOCOL, SKF_NET_OFF), wherever the link header ends.
"""

import ctypes
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from spa_protocol.carrier import ECHO_SIZE, SYN_SIZE, UDP, UDP_SIZE, Carrier, Kind, ports_of

_SO_ATTACH_FILTER: Final = 26
_SO_LOCK_FILTER: Final = 44

_NETWORK: Final = -0x100000  # SKF_NET_OFF
_PROTOCOL: Final = -0x1000  # SKF_AD_OFF + SKF_AD_PROTOCOL
_PACKET_TYPE: Final = -0x1000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
_OUTGOING: Final = 4
_NETLINK_PORT: Final = 12  # in the header of a message

_LOAD_WORD: Final = 0x20
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_LOAD_HALF_AT_X: Final = 0x48
_SET_X: Final = 0x01
_SET_X_TO_IHL: Final = 0xB1  # 4 times the low four bits of a byte
_AND: Final = 0x54
_IF_EQUAL: Final = 0x15
_IF_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06


@dataclass(frozen=True, slots=True)
class Instruction:
    """A `struct sock_filter`: a code, its operand, and how many to skip if it holds or not."""

    code: int
    operand: int
    if_true: int = 0
    if_false: int = 0


# A label, a code, its operand, and for a test the labels to go to.
_Line: TypeAlias = tuple[str, int, int] | tuple[str, int, int, str, str]

_GO_TO_DROP: Final[_Line] = ("", _IF_EQUAL, 0, "drop", "drop")
_WITHOUT_OPTIONS: Final = 0x45  # IPv4, five words of header
_ECHO_LINES: Final[tuple[_Line, ...]] = (
    ("echo4", _LOAD_BYTE, _NETWORK),
    ("", _IF_EQUAL, _WITHOUT_OPTIONS, "", "drop"),
    ("", _LOAD_HALF, _NETWORK + 2),
    ("", _IF_EQUAL, 20 + ECHO_SIZE, "", "drop"),
    ("", _LOAD_HALF_AT_X, _NETWORK),
    ("", _IF_EQUAL, 0x0800, "heard", "drop"),  # type and code
    ("echo6", _LOAD_HALF, _NETWORK + 4),
    ("", _IF_EQUAL, ECHO_SIZE, "", "drop"),
    ("", _LOAD_HALF_AT_X, _NETWORK),
    ("", _IF_EQUAL, 0x8000, "heard", "drop"),
)
_SYN_LINES: Final[tuple[_Line, ...]] = (
    ("syn4", _LOAD_BYTE, _NETWORK),
    ("", _IF_EQUAL, _WITHOUT_OPTIONS, "", "drop"),
    ("", _LOAD_HALF, _NETWORK + 2),
    ("", _IF_EQUAL, 20 + SYN_SIZE, "syn", "drop"),
    ("syn6", _LOAD_HALF, _NETWORK + 4),
    ("", _IF_EQUAL, SYN_SIZE, "", "drop"),
    ("syn", _LOAD_HALF_AT_X, _NETWORK + 12),
    ("", _AND, 0xF017),  # the header's length, and fin, syn, rst, ack
    ("", _IF_EQUAL, 0x5002, "", "drop"),
    ("", _LOAD_HALF_AT_X, _NETWORK + 2),
)
DROP_ALL: Final = (Instruction(_RETURN, 0),)


def attach(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Puts a program before a socket, in place of the one before. Raises OSError."""
    code = b"".join(
        struct.pack("=HBBI", step.code, step.if_true, step.if_false, step.operand % 2**32)
        for step in program
    )
    buffer = ctypes.create_string_buffer(code)
    pointer = ctypes.addressof(buffer)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), pointer))


def deafen(sock: socket.socket) -> None:
    """Has a socket hear nothing, for good: nobody can take the program away. Raises OSError."""
    attach(sock, DROP_ALL)
    sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)


def knock_filter(port: int, carriers: Iterable[Carrier] = (UDP,)) -> tuple[Instruction, ...]:
    """Lets in what has a knock's length over IPv4 or IPv6 by these carriers; `port` is knocked on.

    Not let in: what this host sends by the socket's interface, IPv4 fragments, IPv6 with extension
    headers, more than one VLAN tag; IPv4 options in a ping or a SYN, options in a SYN.
    """
    given = tuple(carriers)
    datagrams = ports_of(Kind.UDP, given, port)
    syns = ports_of(Kind.TCP_SYN, given, port)
    echoes = any(carrier.kind is Kind.ICMP for carrier in given)
    udp = ("", _IF_EQUAL, socket.IPPROTO_UDP, "udp", "")
    syn = [("", _IF_EQUAL, socket.IPPROTO_TCP, f"syn{version}", "") for version in (4, 6)]
    return _assemble(
        ("", _LOAD_WORD, _PACKET_TYPE),
        ("", _IF_EQUAL, _OUTGOING, "drop", ""),
        ("", _LOAD_HALF, _PROTOCOL),
        ("", _IF_EQUAL, 0x0800, "", "ipv6"),
        ("", _LOAD_HALF, _NETWORK + 6),
        ("", _IF_ANY_BIT, 0x3FFF, "drop", ""),
        ("", _SET_X_TO_IHL, _NETWORK),
        ("", _LOAD_BYTE, _NETWORK + 9),
        udp,
        *([("", _IF_EQUAL, socket.IPPROTO_ICMP, "echo4", "")] if echoes else []),
        *(syn[:1] if syns else []),
        _GO_TO_DROP,
        ("ipv6", _IF_EQUAL, 0x86DD, "", "drop"),
        ("", _SET_X, 40),
        ("", _LOAD_BYTE, _NETWORK + 6),
        udp,
        *([("", _IF_EQUAL, socket.IPPROTO_ICMPV6, "echo6", "")] if echoes else []),
        *(syn[1:] if syns else []),
        _GO_TO_DROP,
        *(_ECHO_LINES if echoes else []),
        *([*_SYN_LINES, *_to_one_of(syns)] if syns else []),
        ("udp", _LOAD_HALF_AT_X, _NETWORK + 4),
        ("", _IF_EQUAL, UDP_SIZE, "", "drop"),
        ("", _LOAD_HALF_AT_X, _NETWORK + 2),
        *_to_one_of(datagrams),
        ("heard", _RETURN, 0xFFFF),
        ("drop", _RETURN, 0),
    )


def _to_one_of(ports: Iterable[int]) -> list[_Line]:
    return [*(("", _IF_EQUAL, port, "heard", "") for port in ports), _GO_TO_DROP]


def netlink_filter(port: int) -> tuple[Instruction, ...]:
    """Drops the datagrams whose first message names this netlink port, lets in all others.

    BPF loads words big-endian, the port stands in the host's byte order.
    """
    return _assemble(
        ("", _LOAD_WORD, _NETLINK_PORT),
        ("", _IF_EQUAL, int.from_bytes(struct.pack("=I", port)), "drop", ""),
        ("", _RETURN, 0xFFFFFFFF),
        ("drop", _RETURN, 0),
    )


def _assemble(*lines: _Line) -> tuple[Instruction, ...]:
    """Lines of label, code, operand, and for a test the labels to go to; "" is the next line."""
    places = {line[0]: index for index, line in enumerate(lines) if line[0]}
    program = []
    for index, (_, code, operand, *targets) in enumerate(lines):
        skips = [places[str(target)] - index - 1 if target else 0 for target in targets]
        program.append(Instruction(code, operand, *skips))
    return tuple(program)
