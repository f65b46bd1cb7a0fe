"""`spa-server report`: one page about a host that an auditor can keep."""

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from keys import privatefile
from keys.console import ExitCode, Parsed, Trouble, note, print_json
from keys.progress import underway
from keys.when import parse_duration
from spa_server import clock
from spa_server.commands.common import PATH, explained, json_option, open_registry
from spa_server.config import Config, load_config

if TYPE_CHECKING:
    from spa_server.report.facts import Facts

_DEFAULT: Final = "90d"


def _span_us(text: str) -> int:
    span_us = round(parse_duration(text) * 1_000_000)
    if span_us < 1:
        raise ValueError(f"{text!r} is no time to report; write it like {_DEFAULT}")
    return span_us


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-server report --html report.html\n"
    "  spa-server report --html q4.html --since 92d --title 'db1, fourth quarter'\n"
    "  spa-server report --html all.html --full\n"
    "  spa-server report --json | jq '.access.people[] | {name, roles}'\n"
    "\b\n"
    "Exit codes: 0 fine, 1 the record was altered, 2 usage, 4 not verified, or trouble."
)
@click.option("--html", type=PATH, help="Write the page to this file, mode 0600.")
@click.option(
    "--since",
    "since_us",
    type=Parsed("duration", _span_us),
    default=_DEFAULT,
    show_default=True,
    help="How far back.",
)
@click.option("--title", help="What stands on top.  [default: Access report: the host's name]")
@click.option("--force", is_flag=True, help="Take the place of a file of that name.")
@click.option(
    "--full",
    is_flag=True,
    help="A row for each of all people, keys, sources and lines, however many they are.",
)
@json_option
@click.pass_obj
def report(
    path: Path | None,
    html: Path | None,
    since_us: int,
    title: str | None,
    force: bool,
    full: bool,
    as_json: bool,
) -> None:
    """Who can reach what, who did, what was denied: in one page.

    A matrix of identities and services with the rules that lead from one to the other and how much
    they were used; what was never used; reviews due; keys by age; denied sources over time; what
    would have been denied; refused knocks by reason; anomalies; changes of policy and keys; and
    the state of the record, all of which is verified.

    The page is one file that loads nothing and runs nothing, to be read on a screen, on a phone
    or on paper. Where there are more than a hundred people, whoever reaches the same is one row of
    the matrix, and of long tables the first hundred rows are shown; --full shows all. --json prints
    the same facts for other programs.
    """
    if html is None and not as_json:
        raise click.UsageError("say where it goes: --html FILE, or --json")
    if html is not None:
        _check(html, force=force)
    facts = _gather(load_config(path), title, since_us, full=full)
    if html is not None:
        _write(html, facts, force=force, full=full)
    if as_json:
        from spa_server.report.values import value_of

        print_json(value_of(facts))
    elif html is not None:
        note(f"{html}: {facts.title}")
    if facts.state.problem:
        note(f"warning: the record was not verified: {facts.state.problem}")
        raise SystemExit(ExitCode.TROUBLE)
    if facts.state.findings:
        note("warning: the record is not as it was written; see: spa-server audit verify")
        raise SystemExit(ExitCode.REFUSED)


def _check(html: Path, *, force: bool) -> None:
    """What would be in vain is said before a minute is spent on it."""
    try:
        from spa_server.report import page  # noqa: F401 - whether it can be
    except ImportError as error:
        what = f"the page needs {error.name or 'a library'}, which is not installed"
        hint = f"{sys.executable} -m pip install '.[report]', in the checkout; or use --json"
        raise Trouble(what, hint) from None
    if not force and (html.exists() or html.is_symlink()):
        raise Trouble(f"{html} exists already", "choose another name, or --force")
    if html.exists() and not (html.is_file() or html.is_dir()):
        raise Trouble(f"{html} is no regular file and is not replaced", "choose another name")
    if html.is_dir():
        raise Trouble(f"{html} is a directory", "name a file in it")


def _gather(config: Config, title: str | None, since_us: int, *, full: bool) -> "Facts":
    from spa_server.report.gathering import ALL, Most, Wanted, gather

    host, now_us = socket.gethostname(), clock.now_us()
    title, most = title or f"Access report: {host}", ALL if full else Most()
    wanted = Wanted(title, host, now_us - since_us, now_us, most)
    with (
        open_registry(config) as registry,
        explained(config.database),
        underway("reading the record"),
    ):
        return gather(config, registry, wanted)


def _write(html: Path, facts: "Facts", *, force: bool, full: bool) -> None:
    from spa_server.report.page import render

    with underway("drawing the page"):
        page = render(facts, full=full)
    privatefile.write(html, page.encode(), overwrite=force)
