"""`spa-server gate`: the gate in the kernel, put in force, shown, taken away."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from keys.console import ExitCode, Parsed, Trouble, note, print_json, say
from keys.when import parse_duration
from spa_server import control
from spa_server.commands.common import PROGRAM, ask, explained, json_option
from spa_server.config import Config, load_config

if TYPE_CHECKING:
    from spa_server.gatehouse import Gatehouse
    from spa_server.policy.model import Policy

_LONGEST_TRIAL_S: Final = 86_400


def _trial_s(text: str) -> float:
    """How long a gate may be on trial."""
    within_s = parse_duration(text)
    if not 1 <= within_s <= _LONGEST_TRIAL_S:
        raise ValueError(f"{text!r} is not between 1s and 1d")
    return within_s


def observing(*, everything: bool, accesses: Iterable[str]) -> None:
    """Says loudly that the gate does not deny what the policy does not allow."""
    see = f"see: {PROGRAM} audit --event connection.would-deny"
    ports = ", ".join(accesses)
    if everything:
        note(f"OBSERVE MODE: THIS HOST IS OPEN. What would be denied is let in and recorded; {see}")
    elif ports:
        note(f"OBSERVED, AND OPEN: {ports}. What would be denied is let in and recorded; {see}")


@click.group(
    epilog="\b\nExamples:\n  spa-server gate apply --confirm-within 10m\n  spa-server gate confirm",
)
def gate() -> None:
    """The gate in the kernel: put in force, shown, taken away."""


@gate.command(
    "apply",
    epilog="\b\nExamples:\n"
    "  spa-server gate apply --confirm-within 10m      over the network\n"
    "  spa-server gate apply                           on a console",
)
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
@json_option
@click.pass_obj
def gate_apply(
    path: Path | None, confirm_within: float | None, closed_on_error: bool, as_json: bool
) -> None:
    """Closes every port, except as the policy says. Sessions that are open stay open.

    On a host that you reach over the network, use --confirm-within: if you are locked out, it is
    undone by itself.

    With 'mode = "observe"' in server.toml nothing is denied: what would be is let in and recorded.
    To go from there to 'enforce', and back, change the file and run this again. 'carriers' are
    taken from the file then as well.
    """
    from spa_server import sessions, trial
    from spa_server.audit import acts
    from spa_server.audit.record import Event
    from spa_server.firewall import accounting
    from spa_server.firewall.gate import observed_in
    from spa_server.firewall.kernel import Gate
    from spa_server.gatehouse import Gatehouse

    config, policy, problem = _read(path, closed_on_error=closed_on_error)
    with explained(), Gate() as kernel:
        is_boot = closed_on_error and problem is None
        gatehouse = Gatehouse(config, kernel, may_close=not is_boot)
        is_first = not kernel.is_loaded()
        kept = sessions.adopt_established(served=is_first)
        if confirm_within is not None:
            trial.begin(config, kernel, confirm_within)
        try:
            # A daemon that runs would undo what it did not do itself.
            ask(config, do="reload", gate=True)
        except control.NoDaemon:
            gatehouse.apply(policy)
            acts.leave(config, Event.GATE_APPLIED)
        sessions.adopt_established(served=is_first)
        if confirm_within is None:
            _keep(config, gatehouse, as_before=closed_on_error)
        in_force = kernel.ruleset()
    advice = list(accounting.switch_on())
    if as_json:
        observed = observed_in(in_force)
        print_json(
            {
                "mode": "observe" if observed.everything else "enforce",
                "observed": [str(access) for access in sorted(observed.accesses)],
                "sessions_kept": kept,
                "undone_in_s": confirm_within,
                "advice": advice,
            }
        )
    else:
        _say_applied(in_force, kept, confirm_within, advice)
    if problem is not None:
        raise problem


def _say_applied(
    in_force: str, kept: int, confirm_within: float | None, advice: Iterable[str]
) -> None:
    note(f"The gate is in force; {kept} open sessions were made known to it and live on.")
    if confirm_within is not None:
        note(f"It is undone in {confirm_within:g} s unless you run: {PROGRAM} gate confirm")
    _say_observed(in_force)
    for sentence in advice:
        note(f"{sentence[:1].upper()}{sentence[1:]}.")


def _read(path: Path | None, *, closed_on_error: bool) -> tuple[Config, "Policy", Trouble | None]:
    """What the gate is made from, and what was wrong with it. Raises Trouble, or closes more."""
    from keys.tomlfile import FileProblem
    from spa_server import unit
    from spa_server.gatehouse import plan_observed
    from spa_server.policy.load import load_policy
    from spa_server.policy.model import Policy

    config, policy = load_config(path), Policy()
    try:
        policy = load_policy(config.policy)
        plan_observed(config, policy)
        if not closed_on_error and (why := unit.why_not_raw(config.carriers)):
            raise FileProblem(config.path, "carriers", why)
    except Trouble as trouble:
        if not closed_on_error:
            raise
        return replace(config, observe=()), policy, trouble
    return config, policy, None


def _say_observed(ruleset: str) -> None:
    from spa_server.firewall.gate import observed_in

    observed = observed_in(ruleset)
    observing(everything=observed.everything, accesses=map(str, sorted(observed.accesses)))


def _keep(config: Config, gatehouse: "Gatehouse", *, as_before: bool = False) -> None:
    """The gate is in force for good, and a daemon that runs has nothing more to go back to."""
    from spa_server.audit import acts
    from spa_server.audit.record import Event

    was_on_trial = gatehouse.is_on_trial
    gatehouse.want(as_before=as_before)
    try:
        ask(config, do="confirm")
    except control.NoDaemon:
        if was_on_trial:
            acts.leave(config, Event.GATE_CONFIRMED)


@gate.command(
    "confirm",
    epilog="\b\nExample:\n  spa-server gate confirm",
)
@click.pass_obj
def gate_confirm(path: Path | None) -> None:
    """Keeps a gate that was applied with --confirm-within."""
    from spa_server import marks
    from spa_server.firewall.kernel import Gate
    from spa_server.gatehouse import Gatehouse

    config = load_config(path)
    with explained(), Gate() as kernel:
        if not marks.is_on_trial(config):
            raise Trouble(
                "no gate waits to be confirmed",
                f"see: {PROGRAM} gate show",
                exit_code=ExitCode.REFUSED,
            )
        _keep(config, Gatehouse(config, kernel))
    note("The gate stays in force.")


@gate.command(
    "show",
    epilog="\b\nExample:\n  spa-server gate show | less",
)
@click.pass_obj
def gate_show(path: Path | None) -> None:
    """Prints the gate as the kernel has it. Exit code 1 where it is not loaded."""
    from spa_server.firewall.kernel import Gate

    load_config(path)
    with explained(), Gate() as kernel:
        if not kernel.is_loaded():
            hint = f"put it in force: {PROGRAM} gate apply --confirm-within 60s"
            raise Trouble("the gate is not loaded", hint, exit_code=ExitCode.REFUSED)
        ruleset = kernel.ruleset()
    for line in ruleset.split("\n"):
        say(line.replace("\t", "    "))
    _say_observed(ruleset)


@gate.command(
    "remove",
    epilog="\b\nExample:\n  spa-server gate remove --yes",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def gate_remove(path: Path | None, yes: bool) -> None:
    """Takes the gate away: every port is then as open as it was before."""
    from spa_server.audit import acts
    from spa_server.audit.record import Event
    from spa_server.firewall.kernel import Gate
    from spa_server.gatehouse import Gatehouse

    config = load_config(path)
    with explained(), Gate() as kernel:
        kernel.is_loaded()  # who may not even ask is told so, before anything else happens
        if not yes:
            click.confirm("Open every port of this host?", abort=True, err=True)
        runs = _tell_of_removal(config)
        Gatehouse(config, kernel).remove()
    if not runs:
        acts.leave(config, Event.GATE_REMOVED)
    note("The gate is gone.")


def _tell_of_removal(config: Config) -> bool:
    """Whether a daemon runs. The kernel tells it that the gate is gone, but not who took it."""
    try:
        control.ask(config.control, {"do": "removing"}, within_s=control.TIMEOUT_S)
    except control.NoDaemon:
        return False
    except Trouble:  # one that hangs, or is older, hinders nobody
        pass
    return True
