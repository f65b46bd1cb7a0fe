"""`spa-server policy suggest`: what the record of the last days says about the policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from keys.console import ExitCode, Parsed, Trouble, note, print_json, say, say_file
from keys.progress import underway
from keys.readfile import read_file
from keys.when import parse_duration
from spa_server import clock
from spa_server.commands.common import PATH, explained, json_option, open_registry
from spa_server.config import Config, load_config

if TYPE_CHECKING:
    from spa_server.policy.suggest.editing import Edit
    from spa_server.policy.suggest.finding import Evidence, People
    from spa_server.policy.suggest.judging import Record


def _span_us(text: str) -> int:
    span_us = round(parse_duration(text) * 1_000_000)
    if span_us < 1:
        raise ValueError(f"{text!r} is no time to judge by; write it like 30d")
    return span_us


_SEE: Final = "what it changes: spa-server policy diff -"
_SPAN: Final = Parsed("duration", _span_us)


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-server policy suggest                             what is never used?\n"
    "  spa-server policy suggest --since 90d --edit new.toml\n"
    "  spa-server policy diff - new.toml                     and what that would change\n"
    "  spa-server policy suggest --least --out least.toml\n"
    "  spa-server policy suggest --json | jq '.findings[] | .where'\n"
    "\b\n"
    "Exit codes: 0 nothing found, 1 findings, 2 usage, 4 a file or record that cannot be used."
)
@click.option(
    "--since", "since_us", type=_SPAN, default="30d", show_default=True, help="How far back."
)
@click.option(
    "--idle", "idle_us", type=_SPAN, help="How far back for services.  [default: as --since]"
)
@click.option(
    "--edit", type=PATH, help="Write the policy with the unused allows commented out to this file."
)
@click.option("--least", is_flag=True, help="Print the least policy that would have been enough.")
@click.option("--out", type=PATH, help="Write the least policy to this file instead.")
@click.option(
    "--keep-roles", is_flag=True, help="With --least: no role is split by what its people use."
)
@json_option
@click.pass_obj
def suggest(
    path: Path | None,
    since_us: int,
    idle_us: int | None,
    edit: Path | None,
    least: bool,
    out: Path | None,
    keep_roles: bool,
    as_json: bool,
) -> None:
    """What the policy allows beyond what was used, and the edit.

    Used in the last 30 days, unless --since says otherwise.

    Allows by which nothing was opened, sources wider than was ever seen, roles that nobody has or
    uses, idle services, reviews that are due. --edit writes the policy's own text with the unused
    allows commented out; a copy, never the file in force.

    --least prints another policy: roles, services and allows for what really came through, from
    where it was seen, each with a test. What was only let through because the gate observes has
    no name, and is in it as comments.

    Whatever is written is a new file, which you read before you put it in place. A time is judged
    by the record: where that is shorter, it is said first.
    """
    if edit is not None and (least or out or keep_roles):
        raise click.UsageError("--edit is for the policy in force; it goes with no --least")
    if (out is not None or keep_roles) and not least:
        raise click.UsageError("--out and --keep-roles go with --least")
    for file in filter(None, (edit, out)):
        _refuse_existing(file)
    config = load_config(path)
    now_us = clock.now_us()
    with _record(config, now_us, since_us, idle_us or since_us) as (record, people):
        if least:
            _least(config, record, people, out, keep_roles=keep_roles, as_json=as_json)
        elif _findings(config, record, people, edit, as_json=as_json):
            raise SystemExit(ExitCode.REFUSED)


@contextmanager
def _record(
    config: Config, now_us: int, since_us: int, idle_us: int
) -> Iterator[tuple["Record", "People"]]:
    """Raises Trouble, also for a record that is empty."""
    from spa_server.policy.suggest.judging import looked_at, people_of

    with open_registry(config) as registry:
        people = people_of(registry, now_us)
    with (
        explained(config.database),
        looked_at(config.database, now_us, now_us - since_us, now_us - idle_us) as record,
    ):
        if record.period.begins_us is None:
            hint = "let spa-server run for some days first"
            raise Trouble("the record is empty: nothing can be judged", hint)
        yield record, people


def _findings(
    config: Config, record: "Record", people: "People", edit: Path | None, *, as_json: bool
) -> bool:
    """Says what is found; whether there is anything."""
    from spa_server.policy.load import load_policy
    from spa_server.policy.suggest.findings import find, remark

    with underway("reading the record"):
        evidence = record.evidence(load_policy(config.policy), people)
        found, remarks = find(evidence), remark(evidence)
    warnings = list(record.warnings(config.policy))
    if not as_json:
        say(record.length())
    for warning in () if as_json else warnings:
        note(f"warning: {warning}")
    edited = None if edit is None else _edit(config, record, evidence, edit)
    if as_json:
        print_json(
            {
                "record": record.value(),
                "warnings": warnings,
                "policy": str(config.policy),
                "findings": [finding.value() for finding in found],
                "remarks": [finding.value() for finding in remarks],
                "edit": None if edited is None else _edit_value(edited, edit),
            }
        )
        return bool(found)
    for finding in found:
        say(finding.sentence(config.policy))
    for finding in remarks:
        say(f"by the way: {finding.sentence(config.policy)}")
    if not found:
        say(f"nothing found: in {evidence.time} everything was used")
    if edited is not None:
        _tell_edit(edited, edit)
    return bool(found)


def _edit(config: Config, record: "Record", evidence: "Evidence", file: Path) -> "Edit":
    """Writes the edited policy, where there is anything to edit and the time can be judged."""
    from keys.tomlfile import FileProblem
    from spa_server.policy.suggest.editing import Editor

    period = record.period
    if not period.covers(period.since_us):
        what = f"{file} is not written: {next(record.warnings())}"
        hint = "wait, or judge by a shorter time: --since"
        raise Trouble(what, hint, exit_code=ExitCode.REFUSED)
    try:
        text = read_file(config.policy).decode()
    except UnicodeDecodeError:
        raise FileProblem(config.policy, "", "not a text file in UTF-8") from None
    known = evidence.people.roles
    editor = Editor(
        text, config.policy, config.shared_sources, lambda name: known.get(name, frozenset())
    )
    if editor.policy != evidence.policy:
        raise Trouble(f"{config.policy} was changed meanwhile", "run it again")
    edited = editor.without(evidence.unused, f"never used in {evidence.time}")
    if edited.taken:
        _write_new(file, edited.text)
    return edited


def _edit_value(edited: "Edit", file: Path | None) -> dict[str, Any]:
    return {
        "file": str(file) if edited.taken else None,
        "taken": [allow.path for allow in edited.taken],
        "left": {allow.path: why for allow, why in edited.left},
    }


def _tell_edit(edited: "Edit", file: Path | None) -> None:
    from spa_server.policy.suggest.usage import counted

    for allow, why in edited.left:
        note(f"{allow.path} is left as it is: {why}")
    if edited.taken:
        note(f"{file}: the policy without {counted(len(edited.taken), 'allow')}; {_SEE} {file}")
    else:
        note(f"{file} is not written: there is nothing to take out")


def _least(
    config: Config,
    record: "Record",
    people: "People",
    out: Path | None,
    *,
    keep_roles: bool,
    as_json: bool,
) -> None:
    from spa_server.policy.load import load_policy
    from spa_server.policy.suggest.leastpolicy import make
    from spa_server.policy.suggest.usage import counted

    policy = load_policy(config.policy)
    with underway("reading the record"):
        made = make(record, policy, people, config.shared_sources, whole_roles=keep_roles)
    warnings = list(record.warnings())
    if out is not None:
        _write_new(out, made.text)
    if as_json:
        print_json({"record": record.value(), "warnings": warnings, **made.value()})
        return
    note(record.length())
    for warning in warnings:
        note(f"warning: {warning}")
    if out is None:
        say_file(made.text)
    else:
        note(f"{out}: {counted(len(made.policy.roles), 'role')}; {_SEE} {out}")


def _refuse_existing(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise Trouble(f"{file} exists already", "choose another name")


def _write_new(file: Path, text: str) -> None:
    """Never over another file, whole or not at all. The line ends are those of the text."""
    try:
        opened = file.open("x", encoding="utf-8", newline="")
    except FileExistsError:
        _refuse_existing(file)
        raise
    try:
        with opened:
            opened.write(text)
    except OSError:
        file.unlink()
        raise
