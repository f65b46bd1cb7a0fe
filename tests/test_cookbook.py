"""The policies of docs/policy-cookbook.md are sound, and pass their own tests."""

import re
import tomllib
from pathlib import Path

import pytest

from spa_server.policy import testing
from spa_server.policy.lines import lines_of
from spa_server.policy.load import parse_policy

COOKBOOK = Path(__file__).parent.parent / "docs" / "policy-cookbook.md"
RECIPES = re.findall(
    r"^## (\d+\..*?)\n.*?```toml\n(.*?)```", COOKBOOK.read_text(), re.DOTALL | re.M
)


def test_there_are_ten() -> None:
    assert len(RECIPES) == 10


@pytest.mark.parametrize(("title", "text"), RECIPES, ids=[title for title, _ in RECIPES])
def test_each_loads_and_passes_its_own_tests(title: str, text: str) -> None:
    policy = parse_policy(tomllib.loads(text), COOKBOOK, lines_of(text))
    assert policy.tests, title
    testing.check(policy, COOKBOOK, (), lambda _identity: frozenset())
