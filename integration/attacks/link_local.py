"""A hole for a link-local address is used from another link.

The attacker is a stranger on another of the host's links. Alice was given a hole on hers,
for her link-local address; on his own link he may take the same address for himself, and where the
host has fe80::1 on every link, as routers do, he asks for what she asked for.
"""

import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv6Address

from integration.attacks import Figure
from integration.lab import Host, Lab
from integration.site import Site

HERS = IPv6Address("fe80::a11")
THE_HOSTS = IPv6Address("fe80::1")
_WITHIN_S = 0.5


def run(lab: Lab) -> Iterator[Figure]:
    """Who came in through alice's holes, over TCP, UDP and a `once` hole."""
    server = lab.host("server", "lan", "yard")
    client, stranger = lab.host("client", "lan"), lab.host("stranger", "yard")
    for host, link, address in (
        (server, "lan", THE_HOSTS),
        (server, "yard", THE_HOSTS),
        (client, "lan", HERS),
        (stranger, "yard", HERS),
    ):
        only_address(host, link, address)
    site = Site(lab, server)
    alice = site.enrol("alice", "ops", "voter")
    site.apply_gate()
    site.start()
    services = [server.serve(port) for port in (80, 7000)]
    for access in ("tcp/80", "udp/80", "tcp/7000"):
        label, port = access.split("/")
        kind = socket.SOCK_STREAM if label == "tcp" else socket.SOCK_DGRAM
        alice.knock_at(client, IPv6Address(f"{THE_HOSTS}%lan"), access, "--lifetime", "30s")
        strangers = sum(talks(stranger, "yard", kind, int(port)) for _ in range(3))
        what = f"times that a stranger on another link came in, {access}"
        yield Figure(what, strangers, strangers == 0)
        hers = talks(client, "lan", kind, int(port))
        yield Figure(f"alice came in where she knocked, {access}", hers, hers)
    for service in services:
        service.stop()


def only_address(host: Host, link: str, address: IPv6Address) -> None:
    """The host's one link-local address there."""
    host.run(f"ip -6 address flush dev {link} scope link".split())
    host.run(f"ip -6 address add {address}/64 dev {link} nodad".split())


def talks(host: Host, link: str, kind: socket.SocketKind, port: int) -> bool:
    """Whether the host's service answers on a link."""
    with host.new_socket(socket.AF_INET6, kind) as made, suppress(OSError):
        with host.inside():
            index = socket.if_nametoindex(link)
        made.settimeout(_WITHIN_S)
        made.connect((str(THE_HOSTS), port, 0, index))
        made.send(b"there?")
        return made.recv(64) == b"there?"
    return False
