"""`spa-server audit`: the record, asked; its other commands are added to it."""

import json
from contextlib import closing, suppress
from itertools import chain
from typing import Any

import click

from keys import schema
from keys.console import note, print_json, say
from spa_server.commands import audit_export, audit_setaside, audit_verify
from spa_server.commands.common import explained, json_option
from spa_server.commands.filters import filter_options, wanted
from spa_server.config import Config, load_config


@click.group(invoke_without_command=True)
@filter_options
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="The latest N lines; where there are more, it is said.",
)
@click.option("--follow", is_flag=True, help="And what comes, as it comes; until Ctrl-C.")
@json_option
@click.pass_context
def audit(
    ctx: click.Context,
    /,
    *,
    limit: int,
    follow: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """The record: who asked for what, what was opened or refused.

    \b
    Examples:
      spa-server audit --since 2h
      spa-server audit --denied --identity alice
      spa-server audit --event hole --json
      spa-server audit --denied --follow
      spa-server audit verify                 has anybody changed it?
    """
    if ctx.invoked_subcommand is not None:
        return
    config = load_config(ctx.obj)
    chosen = wanted(config, **asked)
    if follow:
        _follow(config, chosen, limit, as_json=as_json)
        return
    lines = _ask(config, chosen, limit + 1)
    shown = lines[-limit:]
    if as_json:
        print_json(shown)
    else:
        for line in shown:
            _say(line)
    if len(lines) > len(shown):
        note(
            f"spa-server: these are the latest {limit} lines, there are more; "
            "see them by --limit N or --since, or all by: spa-server audit export"
        )


def _say(line: dict[str, Any]) -> None:
    from spa_server.audit import asking

    say(f"{line['at'][:19]}Z  {line['event']:<21} {'; '.join(asking.sentences(line))}")


def _follow(config: Config, chosen: Any, limit: int, *, as_json: bool) -> None:
    """The latest lines, and then each that is written; as JSON, one to a line."""
    from spa_server.audit import denials
    from spa_server.audit.following import follow

    with explained(config.database), suppress(KeyboardInterrupt):
        coming = follow(config.database, denials.beside(config.database), chosen)
        latest = _ask(config, chosen, limit)
        known = {(line["id"], line["at"]) for line in latest}
        new = (line for line in coming if (line["id"], line["at"]) not in known)
        for line in chain(latest, new):
            if as_json:
                click.echo(json.dumps(line))
            else:
                _say(line)


def _ask(config: Config, chosen: Any, limit: int) -> list[dict[str, Any]]:
    from spa_server.audit import asking, denials

    apart = denials.beside(config.database)
    with (
        explained(config.database),
        closing(schema.connect(config.database, read_only=True)) as record,
    ):
        if not apart.exists():
            return asking.ask(record, chosen, limit=limit)
        with explained(apart), closing(schema.connect(apart, read_only=True)) as beside:
            return asking.ask(record, chosen, limit=limit, denials=beside)


for command in (
    audit_verify.verify,
    audit_export.export,
    audit_verify.key,
    audit_verify.checkpoint,
    audit_setaside.set_aside,
):
    audit.add_command(command)
