"""`spa-client exec`."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from keys.console import asker
from keys.trouble import ExitCode, Trouble
from spa_client import completing, knocking, running
from spa_client.carriers import Answer
from spa_client.commands.keeping import Keeping, Notes
from spa_client.commands.options import (
    accesses_argument,
    accesses_of,
    host_argument,
    how_to_connect,
    lifetime_option,
    once_option,
    with_options,
)
from spa_client.commands.telling import note_all, note_line
from spa_client.compose import Wish
from spa_client.holding import Holder
from spa_client.knocking import Options
from spa_client.outcome import Story, fulfils
from spa_protocol.access import Access


class _WithProgram(click.Command):
    """A command whose own arguments end at `--`; what follows is a program and its arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes the program away before options are looked for."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[completing.PROGRAM] = args[:at], args[at + 1 :]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The program's place in the usage line."""
        return [*super().collect_usage_pieces(ctx), "-- PROGRAM [ARGUMENT]..."]


@click.command(
    "exec",
    cls=_WithProgram,
    epilog="\b\nExamples:\n"
    "  spa-client exec db1 tcp/5432 -- psql -h db1.internal app\n"
    "  spa-client exec db1 tcp/5432 -- psql -h {address} app    by the address that answered\n"
    "  spa-client exec web1 https --close -- curl -O https://web1.internal/dump\n"
    "  spa-client exec db1 tcp/5432 --hold -- ./migrate.sh      stays open while it runs",
)
@host_argument
@accesses_argument
@click.option("-q", "--quiet", is_flag=True, help="Say nothing unless it goes wrong.")
@click.option("--close", "closes", is_flag=True, help="Close what was opened when it ends.")
@click.option("--hold", "holds", is_flag=True, help="Renew what was opened while it runs.")
@with_options(lifetime_option, once_option, *how_to_connect)
@click.pass_context
def exec_(
    ctx: click.Context,
    /,
    *,
    host: str,
    access: tuple[Access, ...],
    quiet: bool,
    closes: bool,
    holds: bool,
    lifetime: int,
    once: bool,
    **how: Any,
) -> int:
    """Knocks at HOST, and runs PROGRAM once everything is open.

    It ends with PROGRAM's exit code. Where the knock is not granted, PROGRAM is not run, and it
    ends as 'knock' does. {address} in PROGRAM's arguments stands for the address that answered
    first, which is in SPA_ADDRESS, too.
    """
    argv: list[str] = ctx.meta.get(completing.PROGRAM, [])
    if not argv:
        raise click.UsageError("say what to run, behind '--'")
    if once and holds:
        raise click.UsageError("--once and --hold exclude each other")
    program = running.find_program(argv[0])
    options = Options(**how)
    found = knocking.find_host(host, options)
    wish = Wish(accesses_of(access, found), lifetime_s=lifetime, once=once)
    opened = knocking.open_key(found, options, asker())
    holder = Holder(partial(knocking.aim, found, opened, wish, options), Notes(found.name))
    with _Door(holder, closes=closes, quiet=quiet) as story:
        if story.exit_code is not ExitCode.FINE:
            note_all(story)
            return story.exit_code
        if not quiet:
            note_all(story)
        address = _first_address(story)
        argv, env = running.with_address(argv, address), running.environment(address)
        if not (closes or holds):
            return running.become(program, argv, env)
        with Keeping(holder) if holds else nullcontext():
            return running.watch(program, argv, env)


def _first_address(story: Story) -> str:
    answers = (r for r in story.results if isinstance(r, Answer) and fulfils(r, story.wish))
    return str(next(answers).target)


@dataclass
class _Door:
    """Knocks at its beginning; at its end closes what was opened, if that was asked for."""

    holder: Holder
    closes: bool
    quiet: bool

    def __enter__(self) -> Story:
        self._story = self.holder.open()
        return self._story

    def __exit__(self, *_: object) -> None:
        if not self.closes:
            return
        try:
            story = self.holder.give_back()
        except Trouble as trouble:  # the program's own end is what this one ends with
            note_line(f"not closed, and ends by itself: {trouble}")
            return
        if story is not None and not (self.quiet and story.exit_code is ExitCode.FINE):
            note_all(story)
