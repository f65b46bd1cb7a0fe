"""From the daemon's user to root, and from nobody to root: the attacks, which must not succeed."""

import pytest

from integration.attacks import planted_links, planted_module
from integration.lab import Lab


@pytest.mark.parametrize("attack", [planted_module, planted_links], ids=lambda one: one.__name__)
def test_what_others_put_in_roots_way_gets_them_nothing(lab: Lab, attack: object) -> None:
    for figure in attack.run(lab):  # type: ignore[attr-defined] - each attack is such a module
        assert figure.holds, figure
