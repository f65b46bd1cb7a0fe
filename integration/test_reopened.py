"""Connections that nobody was given a hole for: each attack, as integration/attacks has it."""

from types import ModuleType

import pytest

from integration.attacks import forgotten_session, sctp_reopened, tcp_reopened
from integration.lab import Lab


@pytest.mark.parametrize(
    "attack", [tcp_reopened, sctp_reopened, forgotten_session], ids=lambda a: a.__name__
)
def test_what_is_over_does_not_let_another_in(lab: Lab, attack: ModuleType) -> None:
    figures = list(attack.run(lab))
    assert figures
    assert [str(figure) for figure in figures if not figure.holds] == []
