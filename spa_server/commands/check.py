"""`spa-server check`: does what is configured, enrolled, in force and running fit together?"""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from keys.completion import offering
from keys.console import ExitCode, Parsed, Trouble, print_json, say
from spa_protocol.access import Access
from spa_server import clock, control, unit
from spa_server.commands.common import ACCESS, ask, explained, json_option, open_registry
from spa_server.config import Config, load_config

if TYPE_CHECKING:
    from spa_server.alignment.finding import Finding
    from spa_server.alignment.standing import Daemon
    from spa_server.policy.model import Policy

_WIDTH: Final = 80


def _finding_name(text: str) -> str:
    """The name of a finding. Raises ValueError."""
    import difflib

    from spa_server.alignment.finding import SEVERITIES

    if text in SEVERITIES:
        return text
    near = difflib.get_close_matches(text, SEVERITIES, n=1)
    hint = f"did you mean {near[0]}?" if near else "spa-server(8) has them all"
    raise ValueError(f"{text!r} is no finding; {hint}")


@offering
def _offered_names(_ctx: click.Context) -> Iterator[str]:
    from spa_server.alignment.finding import SEVERITIES

    yield from SEVERITIES


_NAME: Final = Parsed("name", _finding_name, _offered_names)


@click.command()
@click.option("--only", type=_NAME, multiple=True, help="Only findings of this name.")
@click.option("--ignore", "ignored", type=_NAME, multiple=True, help="None of this name.")
@click.option(
    "--accept",
    "accepted",
    type=ACCESS,
    multiple=True,
    help="Whoever listens on this port now is right: tcp/8080.",
)
@json_option
@click.pass_obj
def check(
    path: Path | None,
    only: tuple[str, ...],
    ignored: tuple[str, ...],
    accepted: tuple[Access, ...],
    as_json: bool,
) -> None:
    """Looks for what does not fit together on this host.

    Policy, registry, gate, listeners, other firewalls.

    Exit code 1 where an error or a warning is found; notes alone are no failure. It remembers whose
    the ports of the policy are, and tells when that changes.

    \b
    Examples:
      spa-server check
      spa-server check --only gate-differs --only another-firewall
      spa-server check --ignore listening-unreachable --json
      spa-server check --accept tcp/8080
    """
    from spa_server.alignment import drift
    from spa_server.alignment.finding import are_notes, in_order, selected
    from spa_server.alignment.people import people_in
    from spa_server.alignment.survey import survey

    config = load_config(path)
    policy, unusable = _policy(config)
    with open_registry(config) as registry:
        people = people_in(registry, clock.now_us())
    with explained():
        facts = survey(config, policy, lambda: people, lambda: _daemon(config))
    drift.remember(config, policy, facts, map(str, accepted))
    found = in_order([*unusable, *drift.judge(config, policy, facts)])
    findings = selected(found, only, ignored)
    if as_json:
        print_json([_as_json(finding) for finding in findings])
    else:
        _print(
            findings, "" if only or ignored else ": policy, registry, gate and host fit together"
        )
    if not are_notes(findings):
        raise SystemExit(ExitCode.REFUSED)


def _policy(config: Config) -> tuple["Policy | None", list["Finding"]]:
    """The policy, and what is wrong where it cannot be used: all else is looked at without it."""
    from spa_server.alignment.finding import Finding
    from spa_server.gatehouse import plan_observed
    from spa_server.policy.load import load_policy

    try:
        policy = load_policy(config.policy)
        plan_observed(config, policy)
    except Trouble as trouble:
        what = f"the policy cannot be used; what hangs on it was not looked at: {trouble.message}"
        hint = f"{trouble.hint}; then" if trouble.hint else "put it right:"
        advice = f"{hint} spa-server policy test, and spa-server reload"
        return None, [Finding("policy-unusable", "policy.toml", what, advice)]
    return policy, []


def _daemon(config: Config) -> "Daemon":
    """How the daemon is. Raises Trouble where it may not be asked."""
    from spa_server.alignment.standing import Daemon

    unanswered = unit.why_not_raw(config.carriers)
    try:
        status = ask(config, do="status")
    except control.NoDaemon:
        return Daemon(is_running=False, unanswered=unanswered)
    return Daemon(
        is_running=True,
        config_is_current=status.get("config_is_current"),
        observes=status.get("mode") == "observe",
        doubt=status.get("gate_in_doubt"),
        no_backstop=status.get("backstop_absence"),
        backstop_trouble=status.get("backstop_trouble"),
        unanswered=unanswered,
        hindered=status.get("hindered", ""),
        deaf_until=status.get("nobody_heard_until"),
    )


def _as_json(finding: "Finding") -> dict[str, str]:
    return {
        "name": finding.name,
        "severity": finding.severity,
        "subject": finding.subject,
        "what": finding.what,
        "advice": finding.advice,
    }


def _print(findings: Sequence["Finding"], so: str) -> None:
    """The worst first, each in lines of 80 columns; `so` is what it means that there are none."""
    for finding in findings:
        head = f"{finding.severity}: {finding.name}: {finding.what}"
        for line in [*_lines(head, "", "  "), *_lines(finding.advice, "  -> ", "     ")]:
            say(line)
    if not findings:
        say(f"nothing found{so}")


def _lines(text: str, first: str, further: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )
