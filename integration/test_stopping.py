"""SIGTERM at any moment, with everything going on: nothing is lost, nothing is touched after it."""

import random
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from integration.lab import Host, Lab
from integration.site import Person, Site

_STOPS = 12
_QUESTIONS = (b'{"do": "status"}', b'{"do": "holes"}', b'{"do": "reload"}', b'{"do": "audit"}')


@contextmanager
def traffic(site: Site, alice: Person, client: Host) -> Iterator[None]:
    """Questions from all sides, knocks, connections that begin, are denied and end."""
    is_over = threading.Event()

    def ask(question: bytes) -> None:
        while not is_over.is_set():
            with suppress(OSError), closing(socket.socket(socket.AF_UNIX)) as asking:
                asking.settimeout(1)
                asking.connect(str(site.control))
                asking.sendall(question + b"\n")
                while asking.recv(65536):
                    pass
            time.sleep(0.005)

    def knock() -> None:
        while not is_over.is_set():
            alice.knock(client, "tcp/22", "--timeout", "1", check=False)
            client.reach_tcp(site.host.v4, 22)
            client.reach_tcp(site.host.v4, 9)

    threads = [threading.Thread(target=ask, args=(each,)) for each in _QUESTIONS]
    threads.append(threading.Thread(target=knock))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def last_line(site: Site) -> str:
    with closing(sqlite3.connect(site.database)) as connection:
        (event,) = connection.execute("select event from event order by id desc").fetchone()
    return str(event)


def test_sigterm_at_any_moment(lab: Lab, request: pytest.FixtureRequest) -> None:
    server, client = lab.host("server"), lab.host("client")
    site = Site(lab, server)
    alice = site.enrol("alice", "ops")
    site.apply_gate()
    server.serve(22)
    chance = random.Random(request.node.name)
    with traffic(site, alice, client):
        for _ in range(_STOPS):
            site.start()
            time.sleep(chance.uniform(0, 0.6))
            site.stop()
            assert site.daemon is not None
            assert site.daemon.output == ""
            assert site.daemon.process.returncode == 0
            assert last_line(site) == "daemon.stopped"
