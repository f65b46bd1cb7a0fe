"""Fixtures of the integration tests. Without root or nftables they are skipped, and say so."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from integration import lab as labs
from integration.lab import Host, Lab


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Three hosts on one segment: the one with the gate, one that may come in, one that may not."""

    lab: Lab
    server: Host
    client: Host
    stranger: Host


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    if reason := labs.missing():
        pytest.skip(reason)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An empty lab."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def neighbours() -> Iterator[Neighbours]:
    """Server, client and stranger on one segment, the same for all tests of a module."""
    with Lab() as made:
        yield Neighbours(made, made.host("server"), made.host("client"), made.host("stranger"))
