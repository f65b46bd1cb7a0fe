"""`spa-server policy show`: who can reach what, as a matrix."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Final

import click

from keys.console import ExitCode, Parsed, Trouble, note, print_json, printable, say_lines, table
from keys.names import identity_name
from keys.table import width
from keys.when import parse_moment
from spa_protocol.layout import Address, unmapped
from spa_server import clock
from spa_server.commands.common import ADDRESS, json_option, open_registry
from spa_server.commands.offers import identities, services
from spa_server.config import Config, load_config

if TYPE_CHECKING:
    from spa_server.policy.difference.diff import Subjects
    from spa_server.policy.matrix import Matrix, Reach, Row
    from spa_server.policy.model import Policy

COLUMNS: Final = 80
_GAP: Final = 2
_INDENT: Final = "   "
_NONE: Final = "."
_IN_PART: Final = "~"


@dataclass(frozen=True, slots=True)
class People:
    """Whose access is looked at, and who of them has a key that works (None: not known)."""

    subjects: "Subjects"
    active: frozenset[str] | None


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-server policy show\n"
    "  spa-server policy show --identity alice\n"
    "  spa-server policy show --service postgres --at 2026-12-24T22:00\n"
    "  spa-server policy show --from 10.20.3.4 --at 8h      eight hours from now\n"
    "  spa-server policy show --json | jq '.rows[] | select(.reaches.ssh) | .name'"
)
@click.option(
    "--identity", type=Parsed("identity", identity_name, identities), help="Only this one's row."
)
@click.option(
    "--service", shell_complete=services, help="Only this service, by its name in the policy."
)
@click.option(
    "--at",
    "at_us",
    metavar="MOMENT",
    type=Parsed("moment", lambda text: parse_moment(text, clock.now_us())),
    help="Only what is open then: 2026-12-24T22:00, or 8h for in eight hours.",
)
@click.option("--from", "source", type=ADDRESS, help="Only what can be reached from this address.")
@json_option
@click.pass_obj
def show(
    path: Path | None,
    identity: str | None,
    service: str | None,
    at_us: int | None,
    source: Address | None,
    as_json: bool,
) -> None:
    """Who can reach what, and under which conditions.

    A row for each identity, a column for each service; a number names the rule that allows it, and
    is explained below. A rule that opens only some of a service's ports is marked with ~. Who
    reaches nothing, and what nobody reaches, is said as well. Rules that are always_open are in
    the row of "anybody"; everybody else reaches these too.

    Where the registry cannot be read, the rows are roles instead of identities.
    """
    from spa_server.policy.load import load_policy
    from spa_server.policy.matrix import View, expired, matrix, matrix_values

    config = load_config(path)
    policy = load_policy(config.policy)
    now_us = clock.now_us()
    view = View(now_us, at_us, None if source is None else unmapped(source), service)
    if service is not None and service not in policy.services:
        known = ", ".join(sorted(policy.services)) or "none"
        what = f"the policy knows no service {service!r}"
        raise Trouble(what, f"it knows: {known}", exit_code=ExitCode.REFUSED)
    people = _people(config, policy, identity, now_us if at_us is None else at_us)
    found = matrix(policy, people.subjects, view, people.active)
    if as_json:
        print_json(matrix_values(found, now_us))
        return
    today = datetime.fromtimestamp(now_us // 1_000_000, UTC).date()
    say_lines("\n\n".join(_sections(found, today, is_of_one=identity is not None)))
    for allow in expired(policy, now_us):
        note(f"{allow.path} has expired and is left out.")


def _people(config: Config, policy: "Policy", identity: str | None, at_us: int) -> People:
    from spa_server.policy.difference.diff import by_identity, by_role

    try:
        with open_registry(config) as registry:
            known = registry.identities()
            keys = registry.keys() if identity is None else registry.keys_of(identity)
    except Trouble as trouble:
        if identity is not None:
            raise
        note(f"The registry cannot be read, so this is by role ({trouble.message}).")
        return People(by_role(policy, policy), None)
    if identity is not None and identity not in known:
        what = f"there is no identity {identity!r}"
        raise Trouble(what, "see: spa-keys list", exit_code=ExitCode.REFUSED)
    shown = known if identity is None else {identity: known[identity]}
    active = frozenset(key.identity for key in keys if key.is_active(at_us))
    return People(by_identity(shown), active)


def _sections(found: "Matrix", today: date, *, is_of_one: bool) -> Iterator[str]:
    """The matrix in blocks of columns that fit a terminal, then what stands behind it."""
    numbers = {rule.path: str(number) for number, rule in enumerate(found.rules, 1)}
    nobody = found.reached_by_nobody
    names = [name for name in found.services if name not in nobody]
    yield from _tables(found, names, numbers)
    if names:
        yield "\n".join(_legend(found, numbers, today))
        yield "\n".join(_services(found, names))
    nothing = [_label(row) for row in found.without_access]
    if nothing:
        yield wrapped(f"reaching nothing: {', '.join(nothing)}", _INDENT)
    if nobody and not is_of_one:
        yield wrapped(f"reached by nobody: {', '.join(nobody)}", _INDENT)


def _tables(found: "Matrix", names: list[str], numbers: dict[str, str]) -> Iterator[str]:
    rows = [(_label(row), row.reaches) for row in found.rows if row.reaches]
    room = COLUMNS - max((width(label) for label, _ in rows), default=0)
    sizes = {name: width(name) for name in names}
    for _, reaches in rows:
        for name, of_one in reaches.items():
            sizes[name] = max(sizes[name], width(_cell(of_one, numbers)))
    for block in _blocks(sizes, room):
        lines = [
            (label, *(_cell(reaches.get(name, ()), numbers) for name in block))
            for label, reaches in rows
            if any(name in reaches for name in block)
        ]
        yield table(("", *block), lines)


def _label(row: "Row") -> str:
    return f"{row.subject.name} (no key)" if row.has_key is False else row.subject.name


def _cell(reaches: Sequence["Reach"], numbers: dict[str, str]) -> str:
    marked = (numbers[r.rule.path] + ("" if r.is_whole else _IN_PART) for r in reaches)
    return ",".join(marked) or _NONE


def _blocks(sizes: dict[str, int], room: int) -> Iterator[list[str]]:
    """The names in groups that fit into this many columns, at least one in each."""
    block: list[str] = []
    left = room
    for name, size in sizes.items():
        if block and size + _GAP > left:
            yield block
            block, left = [], room
        block.append(name)
        left -= size + _GAP
    if block:
        yield block


def _legend(found: "Matrix", numbers: dict[str, str], today: date) -> Iterator[str]:
    from spa_server.policy.difference.words import conditions, place, review

    for rule in found.rules:
        due = found.review_by(rule)
        told = [*conditions(rule), *([review(due, today)] if due else [])]
        yield wrapped(f"{numbers[rule.path]}  {place(rule)}: {'; '.join(told)}", _INDENT)


def _services(found: "Matrix", names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield wrapped(f"{name} is {', '.join(map(str, found.services[name]))}", _INDENT)


def wrapped(text: str, indent: str) -> str:
    """A line for a terminal of 80 columns, further lines indented; safe to show."""
    return fill(
        printable(text),
        COLUMNS,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
