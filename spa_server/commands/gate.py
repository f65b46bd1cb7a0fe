"""`spa-server gate`: the gate in the kernel, put in force, shown, taken away."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click

from keys.console import ExitCode, Parsed, Trouble, note
from keys.when import parse_duration
from spa_server import control
from spa_server.commands.common import PROGRAM, ask, explained
from spa_server.config import Config, load_config

_LONGEST_TRIAL_S: Final = 86_400


def _trial_s(text: str) -> float:
    """How long a gate may be on trial."""
    within_s = parse_duration(text)
    if not 1 <= within_s <= _LONGEST_TRIAL_S:
        raise ValueError(f"{text!r} is not between 1s and 1d")
    return within_s


@click.group()
def gate() -> None:
    """The gate in the kernel: put in force, shown, taken away."""


@gate.command("apply")
@click.option(
    "--confirm-within",
    type=Parsed("duration", _trial_s),
    help="Go back to how it was unless 'gate confirm' is run in this time: 60s, 5m.",
)
@click.option(
    "--closed-on-error",
    is_flag=True,
    help="Where the policy cannot be read, close every port all the same (for the boot).",
)
@click.pass_obj
def gate_apply(path: Path | None, confirm_within: float | None, closed_on_error: bool) -> None:
    """Closes every port, except as the policy says. Sessions that are open stay open.

    On a host that you reach over the network, use --confirm-within: if you are locked out, it is
    undone by itself.
    """
    from spa_server import sessions, trial
    from spa_server.firewall.kernel import Gate
    from spa_server.gatehouse import Gatehouse
    from spa_server.policy.load import load_policy
    from spa_server.policy.model import Policy

    config = load_config(path)
    problem: Trouble | None = None
    try:
        policy = load_policy(config.policy)
    except Trouble as trouble:
        if not closed_on_error:
            raise
        policy, problem = Policy(), trouble
    with explained(), Gate() as kernel:
        gatehouse = Gatehouse(config, kernel)
        kept = sessions.adopt_established()
        if confirm_within is not None:
            trial.begin(config, path, kernel, confirm_within)
        try:
            # A daemon that runs would undo what it did not do itself.
            ask(config, do="reload", gate=True)
        except control.NoDaemon:
            gatehouse.apply(policy)
        sessions.adopt_established()
        if confirm_within is None:
            _keep(config, gatehouse)
    note(f"The gate is in force; {kept} open sessions were made known to it and live on.")
    if confirm_within is not None:
        note(f"It is undone in {confirm_within:g} s unless you run: {PROGRAM} gate confirm")
    if problem is not None:
        raise problem


def _keep(config: Config, gatehouse: Any) -> None:
    """The gate is in force for good, and a daemon that runs has nothing more to go back to."""
    gatehouse.want()
    with suppress(control.NoDaemon):
        ask(config, do="confirm")


@gate.command("confirm")
@click.pass_obj
def gate_confirm(path: Path | None) -> None:
    """Keeps a gate that was applied with --confirm-within."""
    from spa_server.firewall.kernel import Gate
    from spa_server.gatehouse import Gatehouse

    config = load_config(path)
    with explained(), Gate() as kernel:
        if not config.gate_pending.exists():
            raise Trouble(
                "no gate waits to be confirmed",
                f"see: {PROGRAM} gate show",
                exit_code=ExitCode.REFUSED,
            )
        _keep(config, Gatehouse(config, kernel))
    note("The gate stays in force.")


@gate.command("show")
@click.pass_obj
def gate_show(path: Path | None) -> None:
    """Prints the gate as the kernel has it. Exit code 1 where it is not loaded."""
    from spa_server.firewall.kernel import Gate

    load_config(path)
    with explained(), Gate() as kernel:
        if not kernel.is_loaded():
            hint = f"put it in force: {PROGRAM} gate apply --confirm-within 60s"
            raise Trouble("the gate is not loaded", hint, exit_code=ExitCode.REFUSED)
        click.echo(kernel.ruleset())


@gate.command("remove")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def gate_remove(path: Path | None, yes: bool) -> None:
    """Takes the gate away: every port is then as open as it was before."""
    from spa_server.firewall.kernel import Gate
    from spa_server.gatehouse import Gatehouse

    config = load_config(path)
    if not yes:
        click.confirm("Open every port of this host?", abort=True, err=True)
    with explained(), Gate() as kernel:
        Gatehouse(config, kernel).remove()
    note("The gate is gone.")
