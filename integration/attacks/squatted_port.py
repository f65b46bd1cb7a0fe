"""The knock port bound by a user of no standing, in the moment in which the daemon is restarted.

The attacker has an account on the host and may bind any port from 1024 on. They want the daemon not
to come up again, so that nobody can get in, or to hear the knocks in its place.
"""

import os
import socket
from collections.abc import Iterator

from integration.attacks import Figure
from integration.lab import Host, Lab, Reach, wait_until
from integration.site import Site

_UID = 61_235
_PORT = 62201


def run(lab: Lab) -> Iterator[Figure]:
    """Both families are taken; a knock is sent and answered; the port is given back."""
    server, client = lab.host("server"), lab.host("client")
    site = Site(lab, server)
    alice = site.enrol("alice", "ops")
    server.serve(22)
    server.serve(80)
    site.apply_gate()
    site.start()
    site.stop()
    squatters = [_squat(server, family) for family in (socket.AF_INET, socket.AF_INET6)]
    try:
        site.start()
    except RuntimeError:
        yield Figure("daemons that came up, of 1", 0, holds=False)
        return
    yield Figure("daemons that came up, of 1", 1, holds=True)
    answered = alice.knock(client, "tcp/22", check=False).returncode == 0
    yield Figure("knocks answered meanwhile, of 1", int(answered), answered)
    is_open = client.reach_tcp(server.v4, 22) is Reach.OPEN
    yield Figure("ports open after it, of 1", int(is_open), is_open)
    heard = sum(_hears(one) for one in squatters)
    yield Figure("datagrams that the squatter heard", heard, heard == 0)
    told = len(site.events("answers.hindered"))
    yield Figure("lines in the record about it", told, told == 1)
    for one in squatters:
        one.close()
    wait_until(lambda: bool(site.events("answers.free")))
    answered = alice.knock(client, "tcp/80", check=False).returncode == 0
    yield Figure("knocks answered when the port is free, of 1", int(answered), answered)


def _squat(server: Host, family: socket.AddressFamily) -> socket.socket:
    made = server.new_socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    os.seteuid(_UID)
    try:
        made.bind(("", _PORT))
    finally:
        os.seteuid(0)
    made.setblocking(False)
    return made


def _hears(squatter: socket.socket) -> bool:
    try:
        squatter.recv(2048)
    except BlockingIOError:
        return False
    return True
