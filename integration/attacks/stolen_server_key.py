"""A stolen server key: junk under many tags at once, to silence people whose tags nobody floods.

Whoever has stolen the server's secret knows every tag and makes boxes that open; the signature
alone is another's. So each datagram costs the daemon as much work as a knock. They are sent under
the tags of twenty people, a thousand a second each, from as many addresses as there are datagrams.
The figures are of somebody else's knocks.
"""

import secrets
import statistics
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final

from integration.attacks import Figure
from integration.flood import Flood, anywhere
from integration.lab import Lab
from integration.site import Site
from integration.wire import Caller, Pen, datagram, now_us
from spa_protocol import seal
from spa_protocol.access import Access
from spa_protocol.knock import Knock, seal_request
from spa_protocol.layout import KEY_SIZE, NONCE_SIZE
from spa_protocol.sshsig import Signature

KNOCKS: Final = 25
_PEOPLE: Final = 20
_RATE: Final = 20_000
_DATAGRAMS: Final = 20_000
_SWELLS_S: Final = 1.0
_SLOWER: Final = 20


def run(lab: Lab) -> Iterator[Figure]:
    """The same knocks without the flood and under it."""
    server, client, thief = lab.host("server"), lab.host("client"), lab.host("thief")
    site = Site(lab, server)
    flooded = [Pen.enrolled(site, f"user{number}", "ops") for number in range(_PEOPLE)]
    alice = Caller(Pen.enrolled(site, "alice", "ops"), client, server.v4)
    site.apply_gate()
    site.start()
    calm = _took_s(alice)
    with Flood(thief, server, server.v4, anywhere, _RATE) as flood:
        flood.send(_forged(flooded, server.v4))
        time.sleep(_SWELLS_S)
        under = _took_s(alice)
    yield Figure(f"of {KNOCKS} knocks of others answered", len(under), len(under) == KNOCKS)
    slower = round(statistics.median(under or [3.0]) / statistics.median(calm), 1)
    yield Figure("times as long until the answer (median)", slower, slower <= _SLOWER)


def _took_s(caller: Caller) -> list[float]:
    """How long each answer took, of those that came."""
    took_s = []
    for _ in range(KNOCKS):
        begun_s = time.monotonic()
        if caller.ask("tcp/22", within_s=1.0) is not None:
            took_s.append(time.monotonic() - begun_s)
        time.sleep(0.05)
    return took_s


def _forged(pens: list[Pen], target: IPv4Address) -> list[bytes]:
    """Boxes that open, with a signature that the thief made."""
    pairs = [pen.key.pair_with(pen.server) for pen in pens]
    request = Knock(now_us(), (Access.parse("tcp/22"),))
    signature = Signature(seal.sign(b"mine", secrets.token_bytes(KEY_SIZE)))
    made = []
    for number in range(_DATAGRAMS):
        nonce = secrets.token_bytes(NONCE_SIZE)
        payload = seal_request(request, signature, pair=pairs[number % len(pairs)], nonce=nonce)
        made.append(datagram(payload, anywhere(number), target))
    return made
