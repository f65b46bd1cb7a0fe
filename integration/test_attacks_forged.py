"""What whoever forges the address of an open hole gains: nothing (ADR 19)."""

import pytest

from integration.attacks import forged_syns
from integration.lab import Lab


@pytest.mark.alone
def test_forged_syns() -> None:
    with Lab() as lab:
        figures = list(forged_syns.run(lab))
    assert [str(figure) for figure in figures if not figure.holds] == []
