"""Fixtures of the gate's tests: three neighbours, one of them with the gate in force."""

from collections.abc import Iterator

import pytest

from integration.conftest import Neighbours
from integration.gate import ONLY_THIS_HOST, SECOND, ports
from integration.lab import Host, Service
from spa_server.firewall.kernel import Gate


@pytest.fixture(scope="module")
def second_addresses(neighbours: Neighbours) -> None:
    for host in (neighbours.server, neighbours.client):
        host.add_address(f"{host.v4 + SECOND}/24")
        host.add_address(f"{host.v6 + SECOND}/64")


@pytest.fixture
def port() -> int:
    """A port that no other test uses, so that none sees another's sessions and denials."""
    return next(ports)


@pytest.fixture
def server(neighbours: Neighbours) -> Host:
    return neighbours.server


@pytest.fixture
def client(neighbours: Neighbours) -> Host:
    return neighbours.client


@pytest.fixture
def stranger(neighbours: Neighbours) -> Host:
    return neighbours.stranger


@pytest.fixture
def gate(server: Host) -> Iterator[Gate]:
    """The gate of the server, closed. The test itself runs on the server."""
    with server.inside(), Gate() as made:
        made.apply(ONLY_THIS_HOST)
        yield made
        made.remove()


@pytest.fixture
def service(server: Host, port: int) -> Iterator[Service]:
    """An echo service on the server's `port`, TCP and UDP."""
    running = server.serve(port)
    yield running
    running.stop()
