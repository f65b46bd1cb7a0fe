"""Whoever has an old invite joins again and again, until the record has forgotten everything else.

The invite was used, or revoked: it is still heard for a week, so that its holder can be told why.
Eve sends as many joins as the gate lets through, each with another new key, to a host that keeps a
record of a megabyte. And with an invite that is good she brings Bob's public key as her own, before
Bob has joined.
"""

import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address
from typing import Final

from integration.attacks import Figure
from integration.lab import Host, Lab
from integration.site import Site
from integration.wire import Caller, Pen, now_us
from keys import identity
from keys.identity import Identity
from keys.registry import opened
from spa_client.compose import Wish
from spa_client.join import JoinComposer
from spa_protocol.keytext import ServerLine
from spa_protocol.layout import NONCE_SIZE
from spa_protocol.publickey import PublicKey

JOINS: Final = 4000
_A_SECOND: Final = 900
_SETTINGS: Final = "retention_mb = 1\n"
_DAY_US: Final = 86_400_000_000

_SENDER: Final = """
import random, socket, sys, time
target, own, rate, path = sys.argv[1:]
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
joins = [bytes.fromhex(line) for line in open(path)]
began = time.monotonic()
for number, join in enumerate(joins):
    time.sleep(max(0, began + number / int(rate) - time.monotonic()))
    source = bytes([198, 18, number >> 8 & 255, number & 255])  # the gate hears 20/s of one source
    head = (b"E\\0\\1\\x0c\\0\\0\\0\\0\\x40\\x11\\0\\0" + source + socket.inet_aton(target))
    out.sendto(head + b"\\x0f\\xa0\\xf2\\xf9\\0\\xf8\\0\\0" + join, (target, 0))
"""


def run(lab: Lab) -> Iterator[Figure]:
    """Carries it out; the figures are lines in the record, and what became of Alice's."""
    server, eve, client = map(lab.host, ("server", "eve", "client"))
    server.sysctl(ipv4__conf__all__rp_filter=0, ipv4__conf__lan__rp_filter=0)
    site = Site(lab, server, settings=_SETTINGS)
    alice = Pen.enrolled(site, "alice", "ops")
    old, squatting, owners = (_invite(site, name) for name in ("eve", "eve", "bob"))
    site.apply_gate()
    site.start()
    Caller(alice, client, IPv4Address(server.v4)).ask("tcp/22")
    _join(site, eve, old, identity.generate().public)
    before = _chained(site)
    _flood(lab, site, eve, old)
    time.sleep(1)
    lines = _chained(site) - before
    yield Figure(f"lines in the chain for {JOINS} joins that were refused", lines, lines < 250)
    kept = len(site.audit("--identity", "alice", "--event", "knock.accepted"))
    yield Figure("knocks of Alice's of before that the record still has", kept, kept == 1)
    bobs = identity.generate().public
    _join(site, eve, squatting, bobs)
    _join(site, client, owners, bobs)
    refused = len(site.audit("--event", "join.refused", "--identity", "bob"))
    yield Figure("joins of an owner refused whose key another has brought", refused, not refused)
    site.keys("approve", "bob")
    owner = _owner(site, bobs)
    yield Figure("keys that are their owner's once he is approved", owner == "bob", owner == "bob")


def _chained(site: Site) -> int:
    """The number of the last line in the chain."""
    with closing(sqlite3.connect(site.database)) as connection:
        (last,) = connection.execute("select max(id) from event").fetchone()
    return int(last)


def _invite(site: Site, name: str) -> Identity:
    with opened(site.database) as registry:
        at_us = now_us()
        token = registry.create_invite(
            name, roles=["ops"], expires_at_us=at_us + _DAY_US, now_us=at_us, actor="root"
        )
    return Identity.from_invite(token)


def _owner(site: Site, public: PublicKey) -> str:
    with opened(site.database, read_only=True) as registry:
        key = registry.key(public.key_id)
    return key.identity if key is not None else ""


def _datagram(site: Site, invite: Identity, public: PublicKey) -> bytes:
    line = ServerLine.parse(site.line)
    pair = invite.pair_with(line.public)
    composer = JoinComposer(invite, line.public, pair, Wish(()), brings=public)
    anywhere = IPv4Address(0)
    nonce = secrets.token_bytes(NONCE_SIZE)
    return composer.compose(anywhere, anywhere, nonce=nonce, now_us=now_us()).payload


def _join(site: Site, at: Host, invite: Identity, public: PublicKey) -> None:
    code = "import socket, sys\nto = socket.socket(2, 2)\n"
    code += "to.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 62201))"
    at.run_python(code, str(site.host.v4), _datagram(site, invite, public).hex())
    time.sleep(0.5)


def _flood(lab: Lab, site: Site, eve: Host, invite: Identity) -> None:
    path = lab.new_file("joins")
    with path.open("w") as file:
        for _ in range(JOINS):
            file.write(_datagram(site, invite, identity.generate().public).hex() + "\n")
    eve.run_python(_SENDER, str(site.host.v4), str(eve.v4), str(_A_SECOND), str(path), timeout=60)
