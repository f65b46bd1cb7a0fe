"""An access: a transport protocol and a range of ports, as a knock asks for it.

docs/protocol.md section 4.2.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from spa_protocol.layout import MAX_ACCESSES, MAX_PORTS, Malformed, require_zero

FIELD_SIZE: Final = 5
_FIELD = struct.Struct(">BHH")


class Protocol(IntEnum):
    """Transport protocols with ports, by their IANA numbers."""

    TCP = 6
    UDP = 17
    SCTP = 132

    @property
    def label(self) -> str:
        """tcp, udp or sctp: as policies, the record and nftables write it."""
        return _LABELS[self]


_LABELS: Final = {protocol: protocol.name.lower() for protocol in Protocol}


@dataclass(frozen=True, slots=True, order=True)
class Access:
    """Ports `first` to `last`, both included, of one protocol.

    A knock's accesses are 256 ports at most, together (`check_together`); a policy's may be more.
    Raises Malformed when made with port 0 or a range that runs backwards.
    """

    protocol: Protocol
    first: int
    last: int

    def __post_init__(self) -> None:
        for port in (self.first, self.last):
            if not 1 <= port <= 65535:
                raise Malformed(f"{port} is no port from 1 to 65535")
        if self.first > self.last:
            meant = f"{self.last}-{self.first}"
            raise Malformed(f"{self.first}-{self.last} is no range of ports; write it {meant}")

    @property
    def size(self) -> int:
        """How many ports it covers."""
        return self.last - self.first + 1

    @property
    def ports(self) -> range:
        """Every port it covers."""
        return range(self.first, self.last + 1)

    def __contains__(self, other: "Access") -> bool:
        return (
            self.protocol is other.protocol
            and self.first <= other.first
            and other.last <= self.last
        )

    def overlaps(self, other: "Access") -> bool:
        """Whether the two have a port in common."""
        return (
            self.protocol is other.protocol
            and self.first <= other.last
            and other.first <= self.last
        )

    def __str__(self) -> str:
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.protocol.label}/{ports}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `tcp/22` or `udp/51820-51830`. Raises Malformed with what was expected."""
        label, slash, ports = text.strip().lower().partition("/")
        first, dash, last = ports.partition("-")
        if not (slash and label.isascii() and label.upper() in Protocol.__members__):
            raise Malformed(f"{text!r} is no access; write it like tcp/22 or udp/60000-60010")
        if not (_is_number(first) and (_is_number(last) if dash else True)):
            raise Malformed(f"{text!r} has no port number; write it like tcp/22 or tcp/9090-9099")
        return cls(Protocol[label.upper()], int(first), int(last if dash else first))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


def check_together(accesses: tuple[Access, ...]) -> None:
    """Raises Malformed unless these may stand in one knock: 1 to 8, apart, 256 ports in all."""
    if not 1 <= len(accesses) <= MAX_ACCESSES:
        raise Malformed(f"{len(accesses)} accesses; a knock asks for 1 to {MAX_ACCESSES}")
    if sum(access.size for access in accesses) > MAX_PORTS:
        raise Malformed(f"more than {MAX_PORTS} ports in one knock")
    for index, access in enumerate(accesses):
        if any(access.overlaps(later) for later in accesses[index + 1 :]):
            raise Malformed(f"{access} overlaps another access")


def encode_accesses(accesses: tuple[Access, ...]) -> bytes:
    """40 bytes: one entry of 5 for each, then zeros."""
    fields = b"".join(_FIELD.pack(a.protocol, a.first, a.last) for a in accesses)
    return fields.ljust(FIELD_SIZE * MAX_ACCESSES, b"\0")


def decode_access(field: bytes) -> Access:
    """One access from its 5 bytes. Raises Malformed."""
    number, first, last = _FIELD.unpack(field)
    try:
        protocol = Protocol(number)
    except ValueError:
        raise Malformed(f"protocol {number} has no ports") from None
    return Access(protocol, first, last)


def decode_accesses(fields: bytes, count: int) -> tuple[Access, ...]:
    """The inverse of `encode_accesses`. Raises Malformed; not for what may not stand together."""
    if not 1 <= count <= MAX_ACCESSES:
        raise Malformed(f"{count} accesses; a knock asks for 1 to {MAX_ACCESSES}")
    used = count * FIELD_SIZE
    require_zero(fields[used:], "unused access entries")
    return tuple(decode_access(fields[at : at + FIELD_SIZE]) for at in range(0, used, FIELD_SIZE))


HARMLESS: Final = Access(Protocol.TCP, 9, 9)
"""What a client closes that only wants to be answered: the port of the discard service, where
nothing was ever opened (section 4.5). The server's record says so."""
