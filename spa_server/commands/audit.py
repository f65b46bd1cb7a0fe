"""`spa-server audit`: the record, asked; its other commands are added to it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Any, Final

import click

from keys import schema
from keys.console import note, print_json, say
from keys.when import rfc3339
from spa_server.audit.record import Event
from spa_server.commands import audit_export, audit_setaside, audit_verify
from spa_server.commands.common import ask, explained, json_option
from spa_server.commands.filters import filter_options, must_ask, unknown, wanted
from spa_server.config import Config, load_config

_LONGEST_EVENT: Final = max(map(len, Event))
_ASK_EVERY_S: Final = 1.0
_AT_ONCE: Final = 1000  # what the daemon gives (audit/answering.py)


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

    Members of the group spa cannot read the files: they ask the daemon, which gives the latest
    1,000 lines at most.
    """
    if ctx.invoked_subcommand is not None:
        return
    config = load_config(ctx.obj)
    chosen = wanted(config, **asked)
    if follow:
        _follow(config, chosen, limit, as_json=as_json)
        return
    lines = _latest(config, chosen, limit + 1)
    shown = lines[-limit:]
    if as_json:
        print_json(shown)
    else:
        for line in shown:
            _say(line)
        if not shown:
            note(f"spa-server: {_nothing(config, chosen)}")
    if len(lines) > len(shown):
        note(
            f"spa-server: these are the latest {limit} lines, there are more; "
            "see them by --limit N or --since, or all by: spa-server audit export"
        )


def _say(line: dict[str, Any]) -> None:
    from spa_server.audit import asking

    event = line["event"].ljust(_LONGEST_EVENT)
    say(f"{line['at'][:19]}Z  {event}  {'; '.join(asking.sentences(line))}")


def _nothing(config: Config, chosen: Any) -> str:
    """That no line fits, and since when: as was asked, else since the record begins."""
    what = "no line" if chosen == type(chosen)(since_us=chosen.since_us) else "nothing of that kind"
    since_us = chosen.since_us
    if since_us is None and not must_ask(config):
        since_us = _begins_us(config)
    return f"{what} in the record" + (f" since {rfc3339(since_us)[:19]}Z" if since_us else "")


def _begins_us(config: Config) -> int | None:
    """When the oldest line was written that is still kept."""
    with (
        explained(config.database),
        closing(schema.connect(config.database, read_only=True)) as record,
    ):
        ((at_us,),) = record.execute("select min(at_us) from event")
    return None if at_us is None else int(at_us)


def _latest(config: Config, chosen: Any, limit: int) -> list[dict[str, Any]]:
    if not must_ask(config):
        return _ask(config, chosen, limit)
    if limit > _AT_ONCE:
        note(f"The daemon gives the latest {_AT_ONCE} lines at most; narrow it down, or use sudo.")
    return _told(config, chosen, limit)[0]


def _told(
    config: Config, chosen: Any, limit: int, after: Sequence[int] = (0, 0)
) -> tuple[list[dict[str, Any]], list[int]]:
    """What the daemon tells who may not read its files, and how far that goes."""
    answer = ask(config, do="audit", wanted=asdict(chosen), limit=limit, after=list(after))
    if not answer["is_known"]:
        raise unknown(chosen.identity)
    return answer["lines"], answer["heads"]


def _follow(config: Config, chosen: Any, limit: int, *, as_json: bool) -> None:
    """The latest lines, and then each that is written; as JSON, one to a line."""
    with explained(config.database), suppress(KeyboardInterrupt):
        lines = _asked_again(config, chosen, limit) if must_ask(config) else None
        for line in lines or _read_on(config, chosen, limit):
            if as_json:
                print_json(line, indent=None)
            else:
                _say(line)


def _read_on(config: Config, chosen: Any, limit: int) -> Iterator[dict[str, Any]]:
    from spa_server.audit import denials
    from spa_server.audit.following import follow

    coming = follow(config.database, denials.beside(config.database), chosen)
    latest = _ask(config, chosen, limit)
    known = {(line["id"], line["at"]) for line in latest}
    yield from latest
    yield from (line for line in coming if (line["id"], line["at"]) not in known)


def _asked_again(config: Config, chosen: Any, limit: int) -> Iterator[dict[str, Any]]:
    lines, heads = _told(config, chosen, limit)
    while True:
        yield from lines
        time.sleep(_ASK_EVERY_S)
        lines, heads = _told(config, chosen, _AT_ONCE, heads)


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
