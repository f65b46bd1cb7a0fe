"""The networks that addresses were seen in, as few and as narrow as a rule should name them.

1.  Addresses that fill a network exactly are that network.
2.  Where more than `HANDFUL` addresses of one /24 (IPv6: one /64) are seen, it is that network:
    whoever gets his address from a pool will come with another one tomorrow.
3.  No network is wider than the rule that the addresses came by: there it is that rule's own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from spa_protocol.layout import Address
from spa_server.policy.difference.cells import networks_of, position, stretches_of
from spa_server.policy.difference.spans import Spans, merged, within
from spa_server.policy.model import Network, Sources

HANDFUL: Final = 5
_HOST_BITS: Final = {4: 8, 6: 64}


@dataclass(frozen=True, slots=True)
class Seen:
    """A network, and how many of its addresses were seen."""

    network: Network
    addresses: int

    @property
    def is_whole(self) -> bool:
        """Whether every one of them was."""
        return self.addresses == self.network.num_addresses


def seen_in(addresses: Iterable[Address], allowed: Sources) -> list[Seen]:
    """The networks of these addresses, in order; each address is in `allowed`."""
    known = set(addresses)
    pools: dict[tuple[int, int], list[Address]] = {}
    for address in known:
        pool = address.version, int(address) >> _HOST_BITS[address.version]
        pools.setdefault(pool, []).append(address)
    narrow: list[Network] = []
    for (version, prefix), members in pools.items():
        narrow += _narrowed(_network(version, prefix), members, allowed)
    spans = merged(span for network in narrow for span in stretches_of((network,)))
    networks = list(networks_of(spans))
    counts = dict.fromkeys(networks, 0)
    ordered = sorted(map(position, known))
    at = 0
    for network in networks:
        end = stretches_of((network,))[0][1]
        while at < len(ordered) and ordered[at] < end:
            counts[network] += 1
            at += 1
    return [Seen(network, count) for network, count in counts.items()]


def spans_of(seen: Iterable[Seen]) -> Spans:
    """The same on the one line of all addresses."""
    return merged(span for each in seen for span in stretches_of((each.network,)))


def _network(version: int, prefix: int) -> Network:
    bits = _HOST_BITS[version]
    kind, size = (IPv4Network, 32) if version == 4 else (IPv6Network, 128)
    return kind((prefix << bits, size - bits))


def _narrowed(pool: Network, members: list[Address], allowed: Sources) -> Iterable[Network]:
    """The pool where a handful of it was seen and it is allowed, else as little as is needed."""
    bounds = stretches_of(allowed.networks)
    if len(members) > HANDFUL and within(stretches_of((pool,)), bounds):
        return [pool]
    parts = [n for n in allowed.networks if n.version == pool.version and _lies_in(n, pool)]
    narrow: list[Network] = []
    for part in parts:
        inside = [address for address in members if address in part]
        if len(inside) > HANDFUL:
            narrow.append(part)
            members = [address for address in members if address not in part]
    return [*narrow, *(ip_network(address) for address in members)]


def _lies_in(network: Network, pool: Network) -> bool:
    return network.network_address in pool and network.prefixlen >= pool.prefixlen
