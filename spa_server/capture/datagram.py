"""What a capture yields: one payload and where it came from, with nothing judged yet."""

from typing import Protocol

import msgspec

from spa_protocol.layout import Address
from spa_server.capture.headers import Carried


class Datagram(msgspec.Struct, frozen=True):
    """A payload as it was seen on its way, microseconds since the Unix epoch.

    Nothing in it is authentic. `interface` is the kernel's index of the interface it came in by, 0
    where that is not known: an answer to a link-local address has to leave by the same one.
    `carrier` is a `spa_protocol.carrier.Kind`. An ICMP echo has its identifier as `source_port`, no
    `target_port`, and a `sequence`; a SYN has a `sequence` too: an answer to them repeats it.
    """

    payload: bytes
    source: Address
    source_port: int
    target: Address
    target_port: int
    carrier: str
    seen_at_us: int
    interface: int = 0
    sequence: int = 0


def datagram_of(carried: Carried, seen_at_us: int, interface: int = 0) -> Datagram:
    """What a packet carried, with when and where it was seen."""
    return Datagram(
        carried.payload,
        carried.source,
        carried.source_port,
        carried.target,
        carried.target_port,
        carried.kind,
        seen_at_us,
        interface,
        carried.sequence,
    )


class KnockCapture(Protocol):
    """A live source of datagrams for an event loop: wait until readable, then drain."""

    def fileno(self) -> int:
        """The descriptor to wait on."""
        ...

    def read_batch(self, limit: int, now_us: int) -> tuple[list[Datagram], int]:
        """What waits, at most `limit` packets, and how many the kernel had to throw away.

        `now_us` is the caller's one reading of the clock and becomes each one's `seen_at_us`. An
        empty list means that nothing waited, or that nothing of it was heard. Never blocks. Raises
        CaptureError when the source is gone for good.
        """
        ...

    def close(self) -> None:
        """Stops hearing. Once is enough, twice does no harm."""
        ...
