"""What the shell offers for the arguments of `spa-server`, as far as who asks may look."""

from collections.abc import Iterator

import click

from keys.completion import offering
from keys.registry import opened
from spa_server.config import Config, load_config


def _config(ctx: click.Context) -> Config:
    return load_config(ctx.find_root().params.get("config"))


@offering
def identities(ctx: click.Context) -> Iterator[str]:
    """Everybody in the registry."""
    with opened(_config(ctx).database, read_only=True) as registry:
        yield from sorted(registry.identities())


@offering
def roles(ctx: click.Context) -> Iterator[str]:
    """Every role of the policy."""
    from spa_server.policy.load import load_policy

    yield from sorted(load_policy(_config(ctx).policy).roles)
