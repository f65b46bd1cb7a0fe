"""What somebody who is enrolled for little gains by wanting more: nothing."""

from integration.attacks import insider
from integration.lab import Lab


def test_insider(lab: Lab) -> None:
    assert [str(figure) for figure in insider.run(lab) if not figure.holds] == []
