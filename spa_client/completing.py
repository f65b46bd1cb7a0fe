"""What the shell offers for an argument of `spa-client`: hosts, accesses and keys."""

from collections.abc import Iterator
from typing import Final

import click

from keys import places
from keys.completion import offering
from spa_client import config

PROGRAM: Final = "spa_client.program"
"""Where a command keeps the program that it is to run, in click's `Context.meta`."""

_USUAL: Final = ("tcp/", "udp/", "ssh", "https", "postgresql")


@offering
def hosts(ctx: click.Context) -> Iterator[str]:
    """The names in the configuration."""
    yield from config.load(ctx.params.get("chosen"), ctx.params.get("keys")).hosts


@offering
def accesses(ctx: click.Context) -> Iterator[str]:
    """What the configuration says for the host that was named, then what it says for others."""
    if PROGRAM in ctx.meta:
        return
    known = config.load(ctx.params.get("chosen"), ctx.params.get("keys")).hosts
    named = known.get(ctx.params.get("host") or "")
    for host in [named, *known.values()] if named else known.values():
        yield from map(str, host.access)
    yield from _USUAL


@offering
def keys(ctx: click.Context) -> Iterator[str]:
    """The names of the keys in the keys directory."""
    directory = ctx.params.get("keys") or places.keys_directory()
    yield from sorted(path.stem for path in directory.glob("*.key"))
