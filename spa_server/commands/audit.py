"""`spa-server audit`: the record, asked; its other commands are added to it."""

import json
from contextlib import closing, suppress
from itertools import chain
from typing import Any

import click

from keys import schema
from keys.console import Parsed, print_json, say
from keys.when import parse_duration, parse_moment
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_server import clock
from spa_server.commands import audit_export, audit_setaside, audit_verify
from spa_server.commands.common import ACCESS, ADDRESS, explained, json_option
from spa_server.config import Config, load_config


def _since(text: str) -> int:
    """A duration back from now, or a moment."""
    now_us = clock.now_us()
    try:
        return now_us - round(parse_duration(text) * 1_000_000)
    except ValueError:
        return parse_moment(text, now_us)


@click.group(invoke_without_command=True)
@click.option("--since", type=Parsed("moment", _since), help="How far back: 2h, 2026-11-24T09:00.")
@click.option("--identity", help="Only this person's.")
@click.option("--event", help="Only this event (hole.opened) or group of events (knock).")
@click.option("--source", type=ADDRESS, help="Only from this address.")
@click.option("--access", type=ACCESS, help="Only to this protocol and port.")
@click.option("--denied", is_flag=True, help="Only what was refused or denied.")
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--follow", is_flag=True, help="And what comes, as it comes; until Ctrl-C.")
@json_option
@click.pass_context
def audit(
    ctx: click.Context,
    since: int | None,
    identity: str | None,
    event: str | None,
    source: Address | None,
    access: Access | None,
    denied: bool,
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    """The record: who asked for what, what was opened, what was refused and why.

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
    from spa_server.audit import asking

    config = load_config(ctx.obj)
    wanted = asking.Filter(
        since_us=since,
        identity=identity,
        event=event,
        source=str(source) if source else None,
        access=str(access) if access else None,
        denied=denied,
    )
    if follow:
        _follow(config, wanted, limit, as_json=as_json)
        return
    lines = _ask(config, wanted, limit)
    if as_json:
        print_json(lines)
        return
    for line in lines:
        _say(line)


def _say(line: dict[str, Any]) -> None:
    from spa_server.audit import asking

    say(f"{line['at'][:19]}Z  {line['event']:<21} {'; '.join(asking.sentences(line))}")


def _follow(config: Config, wanted: Any, limit: int, *, as_json: bool) -> None:
    """The latest lines, and then each that is written; as JSON, one to a line."""
    from spa_server.audit import denials
    from spa_server.audit.following import follow

    with explained(config.database), suppress(KeyboardInterrupt):
        coming = follow(config.database, denials.beside(config.database), wanted)
        latest = _ask(config, wanted, limit)
        known = {(line["id"], line["at"]) for line in latest}
        new = (line for line in coming if (line["id"], line["at"]) not in known)
        for line in chain(latest, new):
            if as_json:
                click.echo(json.dumps(line))
            else:
                _say(line)


def _ask(config: Config, wanted: Any, limit: int) -> list[dict[str, Any]]:
    from spa_server.audit import asking, denials

    apart = denials.beside(config.database)
    with (
        explained(config.database),
        closing(schema.connect(config.database, read_only=True)) as record,
    ):
        if not apart.exists():
            return asking.ask(record, wanted, limit=limit)
        with explained(apart), closing(schema.connect(apart, read_only=True)) as beside:
            return asking.ask(record, wanted, limit=limit, denials=beside)


for command in (
    audit_verify.verify,
    audit_export.export,
    audit_verify.key,
    audit_verify.checkpoint,
    audit_setaside.set_aside,
):
    audit.add_command(command)
