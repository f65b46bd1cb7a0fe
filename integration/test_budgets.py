"""What one sender or one insider may cost: attacks of integration/attacks, and what they attain."""

from types import ModuleType

import pytest

from integration.attacks import blinded, greedy, refused_joins
from integration.lab import Lab

ATTACKS = [blinded, greedy, refused_joins]


@pytest.mark.alone
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.split(".")[-1])
def test_the_attack_is_held(attack: ModuleType) -> None:
    with Lab() as lab:
        for figure in attack.run(lab):
            assert figure.holds, figure
