"""A stolen tag: junk under the 8 bytes that open every knock, to silence the one whose they are.

The attacker sees one knock, or all of them, and sends junk under the tags that were seen, from as
many forged addresses as they like, the owner's own among them. It opens nothing; what they want is
that the owner is not heard. The figures are knocks of the owner that opened a port.
"""

import time
from collections.abc import Iterator
from ipaddress import IPv6Address
from typing import Final

from integration.attacks import Figure
from integration.flood import SWELLS_S, Flood, anywhere
from integration.lab import Address, Host, Lab
from integration.site import Person, Site
from integration.wire import Tap, udp_in
from spa_protocol.layout import DEFAULT_PORT, TAG_SIZE

KNOCKS: Final = 8
_FORGED: Final = 130_000
_NETWORK_RATE: Final = 20_000
_EACH: Final = 3_000


def run(lab: Lab) -> Iterator[Figure]:
    """Three floods, each against an owner of its own: what one has suffered is not the next's."""
    server, client, thief = lab.host("server"), lab.host("client"), lab.host("thief")
    site = Site(lab, server)
    owners = [site.enrol(name, "ops") for name in ("alice", "bob", "carol")]
    site.apply_gate()
    site.start()
    for owner, address, sources, count, rate, what in (
        (owners[0], server.v4, anywhere, _FORGED, 0, "130,000 forged sources"),
        (owners[1], server.v6, _one_network, _FORGED, _NETWORK_RATE, "one IPv6 /64 at 20,000/s"),
    ):
        with Flood(thief, server, address, sources, rate) as flood:
            flood.add(_seen(owner, client, address), count, own=_own(client, address))
            heard = sum(_knocks(owner, client, address) for _ in range(KNOCKS))
        yield Figure(f"of {KNOCKS} knocks heard, one packet seen, {what}", heard, heard == KNOCKS)
    yield _everything_seen(owners[2], client, thief, server)


def _everything_seen(owner: Person, client: Host, thief: Host, server: Host) -> Figure:
    """After every knock, all tags that were on the wire are flooded as well."""
    own, heard = client.v4, 0
    with Flood(thief, server, server.v4, anywhere) as flood, Tap(client) as tap:
        for _ in range(KNOCKS):
            heard += _knocks(owner, client, server.v4)
            for tag in _tags(tap):
                flood.add(tag, _EACH, own=own)
            time.sleep(SWELLS_S)
    return Figure(f"of {KNOCKS} knocks heard, every packet seen", heard, heard == KNOCKS)


def _seen(owner: Person, client: Host, address: Address) -> bytes:
    """The tag of a knock of the owner's that was on the wire."""
    with Tap(client) as tap:
        if not _knocks(owner, client, address):
            raise RuntimeError("nobody hears the owner before there is a flood")
        return _tags(tap)[0]


def _tags(tap: Tap) -> list[bytes]:
    sent = filter(None, map(udp_in, tap.packets(outgoing=True)))
    knocks = (one for one in sent if one.target_port == DEFAULT_PORT)
    return list(dict.fromkeys(knock.payload[:TAG_SIZE] for knock in knocks))


def _knocks(owner: Person, client: Host, address: Address) -> bool:
    return owner.knock_at(client, address, "tcp/22", check=False).returncode == 0


def _own(client: Host, address: Address) -> Address:
    return client.v4 if address.version == 4 else client.v6


def _one_network(number: int) -> Address:
    return IPv6Address(int(IPv6Address("2001:db8::")) + 1 + number)
