"""A knock for one host is copied to a clone of it, which has the same server.key.

The attacker sees what goes to the first host, and wants a hole at the second, from an address of
their own. The machine was cloned, database and all, so the clone knows the key that knocks. Two
kinds of copy are tried: of a knock as 0.1.0 made it, which names no target, and of one that names
the first host.
"""

import shutil
from collections.abc import Iterator
from ipaddress import IPv4Address

from integration.attacks import Figure
from integration.lab import Host, Lab
from integration.site import Site
from integration.wire import Caller, Pen
from spa_client.compose import Datagram
from spa_protocol.reason import Status


def run(lab: Lab) -> Iterator[Figure]:
    """Carries it out; the figures are holes at the clone, and knocks that the first host grants."""
    first, second, eve = lab.host("first"), lab.host("second"), lab.host("eve")
    original = Site(lab, first)
    pen = Pen.enrolled(original, "alice", "ops")
    clone = cloned(original, lab, second)
    for site in (original, clone):
        site.apply_gate()
        site.start()
    undeclared = pen.write("tcp/22", lifetime_s=60)
    declared = pen.write("tcp/22", lifetime_s=60, target=first.v4)
    yield _holes("a copy of a knock that names no target", undeclared, pen, eve, clone)
    yield _holes("a copy of a knock that names the first host", declared, pen, eve, clone)
    granted = Caller(pen, eve, IPv4Address(first.v4)).send(declared)
    is_granted = granted is not None and granted.status is Status.GRANTED
    yield Figure("knocks that the first host grants all the same", int(is_granted), is_granted)


def cloned(original: Site, lab: Lab, host: Host) -> Site:
    """A host with a copy of everything that the original has, its key and registry among it."""
    directory = lab.new_file(f"{host.name}-clone")
    shutil.copytree(original.directory, directory, ignore=lambda _, names: _sockets(names))
    return Site(lab, host, policy=original.policy, directory=directory)


def _sockets(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".sock")]


def _holes(what: str, knock: Datagram, pen: Pen, eve: Host, clone: Site) -> Figure:
    before = len(clone.holes())
    Caller(pen, eve, IPv4Address(clone.host.v4)).send(knock, within_s=2.0)
    holes = len(clone.holes()) - before
    return Figure(f"holes at the clone for the attacker, by {what}", holes, not holes)
