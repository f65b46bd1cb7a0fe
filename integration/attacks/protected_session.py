"""A friend's hole keeps a revoked person's sessions alive.

The attacker is an insider: a colleague of somebody who is about to be revoked. They declare that
person's address and so hold the same holes open, and knock again afterwards. A service is `cut`, so
whoever is revoked is to be out: where the service has a socket on the host, where it is UDP that
nobody's socket can be destroyed for, and where it is published from a container, whose socket the
host has not got.
"""

from collections.abc import Iterator
from socket import AF_INET, SOCK_DGRAM, socket
from typing import Final

from integration.attacks import Figure
from integration.lab import Host, Lab, Reach, echoes, reached, wait_until
from integration.site import Person, Site

POLICY: Final = """
[services]
postgres = ["tcp/5432-5433", "udp/5432"]
kept = ["tcp/22", "tcp/5434"]

[roles.dba]
[[roles.dba.allow]]
services = ["postgres"]
max_lifetime = "1h"
sessions = "cut"

[roles.ops]
[[roles.ops.allow]]
services = ["kept"]
max_lifetime = "1h"
"""
PUBLISHED: Final = """
table ip nat {{
  chain prerouting {{
    type nat hook prerouting priority -100
    iifname "lan" tcp dport {{ 5433, 5434 }} dnat to {inside}
  }}
}}
"""
ACCESSES: Final = ("tcp/5432", "tcp/5433", "udp/5432", "--lifetime", "10m")


def run(lab: Lab) -> Iterator[Figure]:
    """What still talks after the revocation, and what of the friend's does not."""
    home, client, friend = site(lab)
    alice, bob = home.enrol("alice", "dba"), home.enrol("bob", "dba")
    home.start()
    alice.knock(client, *ACCESSES)
    before = _sessions(client, home.host)
    _hold_too(bob, client, friend)
    after = _sessions(client, home.host)
    own = friend.connection(home.host.v4, 5432)
    assert all(map(echoes, (*before, *after, own)))
    home.keys("revoke", alice.key_id())
    wait_until(lambda: {hole["identity"] for hole in home.holes()} == {"bob"})

    def living(sessions: tuple[socket, ...]) -> int:
        return sum(map(echoes, sessions))

    yield _none("of the 3 sessions that began before the friend came", living(before))
    yield _none("of the 3 that may have been the friend's", living(after))
    _hold_too(bob, client, friend)
    yield _none("of all 6, when the friend has knocked again", living(before + after))
    home.restart()
    _hold_too(bob, client, friend)
    yield _none("of all 6, when the daemon has begun anew", living(before + after))
    yield Figure("the friend's own session lives on", int(echoes(own)), echoes(own))
    again = client.connection(home.host.v4, 5432), client.connection(home.host.v4, 5433)
    opened = sum(reached(stream) is Reach.OPEN for stream in again)
    yield Figure("of 2 new connections through the friend's hole come in", opened, opened == 2)
    for each in (*before, *after, own, *again):
        each.close()


def site(lab: Lab) -> tuple[Site, Host, Host]:
    """A host that serves some ports itself and publishes others, and where the two people are."""
    server, box = lab.host("server", "lan", "inside"), lab.host("box", "inside")
    server.forward()
    box.default_route(server, "inside")
    server.run(["nft", "-f", "-"], text=PUBLISHED.format(inside=box.on("inside").v4))
    for host, port in ((server, 5432), (server, 22), (box, 5433), (box, 5434)):
        host.serve(port)
    guarded = Site(lab, server, POLICY, settings='outer = ["lan"]\n')
    guarded.apply_gate()
    return guarded, lab.host("client"), lab.host("friend")


def _hold_too(bob: Person, client: Host, friend: Host) -> None:
    bob.knock(friend, *ACCESSES, "--source", "none")
    bob.knock(friend, *ACCESSES, "--source", str(client.v4))


def _sessions(client: Host, server: Host) -> tuple[socket, ...]:
    asking = client.new_socket(AF_INET, SOCK_DGRAM)
    asking.connect((str(server.v4), 5432))
    return client.connection(server.v4, 5432), client.connection(server.v4, 5433), asking


def _none(which: str, count: int) -> Figure:
    return Figure(f"{which} live on", count, count == 0)
