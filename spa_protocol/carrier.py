"""What a request travels in: docs/protocol.md section 3.1.

udp         a datagram to the knock port
udp:53      a datagram to another port
icmp        the data of an ICMP or ICMPv6 echo request
tcp-syn     the data of a TCP SYN to the knock port, tcp-syn:443 to another port
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from spa_protocol.layout import DATAGRAM_SIZE

UDP_HEADER_SIZE: Final = 8
ECHO_HEADER_SIZE: Final = 8
TCP_HEADER_SIZE: Final = 20  # without options, which a SYN that is a knock has not
UDP_SIZE: Final = UDP_HEADER_SIZE + DATAGRAM_SIZE
ECHO_SIZE: Final = ECHO_HEADER_SIZE + DATAGRAM_SIZE
SYN_SIZE: Final = TCP_HEADER_SIZE + DATAGRAM_SIZE

EXPECTED: Final = "expected udp, udp:PORT, icmp, tcp-syn or tcp-syn:PORT"


class Kind(StrEnum):
    """The protocol that carries a request."""

    UDP = "udp"
    ICMP = "icmp"
    TCP_SYN = "tcp-syn"


@dataclass(frozen=True, slots=True, order=True)
class Carrier:
    """A protocol, and the port if it is not the knock port. ICMP has none."""

    kind: Kind
    port: int | None = None

    def __str__(self) -> str:
        return str(self.kind) if self.port is None else f"{self.kind}:{self.port}"

    @property
    def is_raw(self) -> bool:
        """Whether whoever sends it needs a raw socket."""
        return self.kind is not Kind.UDP

    @classmethod
    def parse(cls, text: str) -> "Carrier":
        """From what `str` gives. Raises ValueError, whose message says what was expected."""
        word, colon, port = text.partition(":")
        if word not in set(Kind) or (colon and word == Kind.ICMP):
            raise ValueError(f"{text!r} is no carrier; {EXPECTED}")
        if not colon:
            return cls(Kind(word))
        is_plain = port.isascii() and port.isdigit() and not port.startswith("0")
        if not is_plain or len(port) > 5 or int(port) > 65535:
            raise ValueError(f"{text!r} has no port from 1 to 65535; {EXPECTED}")
        return cls(Kind(word), int(port))


UDP: Final = Carrier(Kind.UDP)


def name_of(kind: str, port: int, knock_port: int) -> str | None:
    """The carrier that a request to this port came by, or None for UDP to the knock port."""
    if port == knock_port or kind == Kind.ICMP:
        return None if kind == Kind.UDP else str(kind)
    return f"{kind}:{port}"


def ports_of(kind: Kind, carriers: Iterable[Carrier], knock_port: int) -> tuple[int, ...]:
    """The ports of the carriers of one kind, in order."""
    return tuple(sorted({c.port or knock_port for c in carriers if c.kind is kind}))
