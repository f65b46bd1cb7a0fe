"""Somebody who sees tags on the wire does not silence their owner."""

from integration.attacks import stolen_tag
from integration.lab import Lab


def test_a_stolen_tag_does_not_silence_its_owner(lab: Lab) -> None:
    figures = list(stolen_tag.run(lab))
    assert len(figures) == 3
    assert [str(figure) for figure in figures if not figure.holds] == []
