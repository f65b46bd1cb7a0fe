"""`spa-server policy`: the rules shown, tested, compared and suggested. Nothing is changed."""

import click

from spa_server.commands.policy_diff import diff
from spa_server.commands.policy_history import history, print_text
from spa_server.commands.policy_show import show
from spa_server.commands.policy_suggest import suggest
from spa_server.commands.policy_test import test


@click.group(
    epilog="\b\nExamples:\n  spa-server policy show\n  spa-server policy test new.toml",
)
def policy() -> None:
    """The rules: shown, tested, compared and suggested."""


for command in (test, show, diff, history, print_text, suggest):
    policy.add_command(command)
