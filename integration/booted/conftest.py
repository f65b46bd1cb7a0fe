"""Booted hosts for the tests. Where none can be booted, the tests are skipped, and say why."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.booted import root as roots
from integration.booted.company import Company, install_server, tree
from integration.booted.machine import Machine
from integration.lab import Lab


@pytest.fixture(scope="session")
def debian() -> Path:
    """A root with nothing of ours."""
    if reason := roots.missing():
        pytest.skip(reason)
    try:
        return roots.root()
    except roots.CannotBeMade as error:
        pytest.skip(f"no Debian root can be made: {error}")


@pytest.fixture(scope="module")
def company(debian: Path) -> Iterator[Company]:
    """A host and a laptop, as they are before README begins."""
    with Lab() as lab:
        made = Company.new(lab, debian)
        made.furnish()
        yield made


@pytest.fixture(scope="session")
def installed(debian: Path) -> Iterator[tuple[Path, ...]]:
    """The layers of a host on which README's lines for it have been typed, and no more."""
    with Lab() as lab:
        machine = Machine.new(lab, "installed", debian)
        machine.boot()
        install_server(machine, tree())
        machine.off()
        yield machine.own, debian
