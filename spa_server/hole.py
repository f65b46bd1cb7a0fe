"""A hole: what the gate lets through, as the kernel's sets and the record know it."""

import msgspec

from spa_protocol.access import Access, Protocol
from spa_protocol.layout import Address
from spa_server.link import link_of


class Hole(msgspec.Struct, frozen=True):
    """From one source address to one target address, one protocol and one port.

    A link-local address has its link as its zone (spa_server/link.py); the hole is on that link.
    `once` holes admit one connection and are then gone.
    """

    source: Address
    target: Address
    protocol: Protocol
    port: int
    once: bool = False

    def __hash__(self) -> int:
        # Each hole is looked up many times, and `ipaddress` takes long to hash what it prints.
        return hash((int(self.source), int(self.target), self.port))

    @property
    def interface(self) -> int:
        """The index of the interface by which packets must come in; 0 where any will do."""
        return link_of(self.source, self.target)

    @property
    def access(self) -> Access:
        """The protocol and port, as an access of one port."""
        return Access(self.protocol, self.port, self.port)

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} {self.access}"
