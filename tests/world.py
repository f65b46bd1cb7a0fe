"""A small world for unit tests: people with keys, a server, datagrams, and a clock to set."""

import secrets
from dataclasses import dataclass, field
from ipaddress import ip_address

from keys import identity, serverkey
from keys.identity import Identity
from keys.serverkey import ServerKey
from spa_protocol.access import Access
from spa_protocol.knock import Knock, Request, message_to_sign, seal_request
from spa_protocol.layout import NONCE_SIZE
from spa_protocol.publickey import Sender
from spa_server.admission import Admission, load_all, window
from spa_server.capture.datagram import Datagram

NOW_US = 1_795_500_000_000_000
SECOND = 1_000_000
CLIENT = ip_address("10.20.0.9")
HOST = ip_address("10.20.0.1")
SSH = Access.parse("tcp/22")


def knock_at(at_us: int = NOW_US, *accesses: Access, **fields: object) -> Knock:
    """A knock for ssh at the host, unless other accesses or another target are given."""
    return Knock(at_us, accesses or (SSH,), **{"target": HOST, **fields})  # type: ignore[arg-type]  # fields of a test


@dataclass
class World:
    """One server and whoever it knows."""

    server: ServerKey = field(default_factory=serverkey.generate)
    admission: Admission = field(default_factory=Admission)

    def enrol(self, *, at_us: int = NOW_US) -> Identity:
        """A new key that the server knows, named in the epochs around a time."""
        made = identity.generate("test")
        self.admission.add(made.public.key_id, self.sender(made))
        load_all(self.admission, window(at_us))
        return made

    def sender(self, who: Identity) -> Sender:
        """The key as the server knows it."""
        return Sender.known_to(self.server.secret, who.public)

    def payload(self, who: Identity, request: Request, nonce: bytes | None = None) -> bytes:
        """The 240 bytes of a signed request."""
        nonce = nonce or secrets.token_bytes(NONCE_SIZE)
        message = message_to_sign(
            request, server=self.server.public, agreement=who.public.agreement, nonce=nonce
        )
        pair = who.pair_with(self.server.public)
        return seal_request(request, who.sign(message), pair=pair, nonce=nonce)

    def datagram(self, who: Identity, request: Request, **fields: object) -> Datagram:
        """The request as a capture yields it."""
        return datagram(self.payload(who, request), **fields)


def datagram(payload: bytes, **fields: object) -> Datagram:
    """A datagram from the client to the host, unless other fields are given."""
    usual = {
        "source": CLIENT,
        "source_port": 40000,
        "target": HOST,
        "target_port": 62201,
        "carrier": "udp",
        "seen_at_us": NOW_US,
    }
    return Datagram(payload=payload, **{**usual, **fields})  # type: ignore[arg-type]  # of a test
