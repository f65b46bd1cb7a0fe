"""From the daemon's user to root, and from nobody to root: the attacks, which must not succeed."""

from types import ModuleType

import pytest

from integration.attacks import planted_links, planted_module, squatted_port
from integration.lab import Lab


@pytest.mark.parametrize(
    "attack", [planted_module, planted_links, squatted_port], ids=lambda one: one.__name__
)
def test_what_others_put_in_roots_way_gets_them_nothing(lab: Lab, attack: ModuleType) -> None:
    for figure in attack.run(lab):
        assert figure.holds, figure
