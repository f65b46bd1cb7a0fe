"""What the shell offers for the arguments of `spa-server`, as far as who asks may look."""

from collections.abc import Iterator
from contextlib import closing
from typing import Final

import click

from keys import schema
from keys.completion import offering
from keys.registry import opened
from spa_server import control
from spa_server.config import Config, load_config

DIGEST_SHOWN: Final = 16
"""How many characters of a policy's digest are shown and offered."""


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


@offering
def services(ctx: click.Context) -> Iterator[str]:
    """Every service of the policy."""
    from spa_server.policy.load import load_policy

    yield from sorted(load_policy(_config(ctx).policy).services)


@offering
def accesses(ctx: click.Context) -> Iterator[str]:
    """Every access of the policy's services."""
    from spa_server.policy.load import load_policy

    services_ = load_policy(_config(ctx).policy).services.values()
    yield from sorted({str(access) for accesses_ in services_ for access in accesses_})


@offering
def keys(ctx: click.Context) -> Iterator[str]:
    """The id of every key that is not revoked."""
    with opened(_config(ctx).database, read_only=True) as registry:
        enrolled = registry.keys()
    yield from (key.key_id for key in enrolled if key.revoked_at_us is None)


@offering
def grants(ctx: click.Context) -> Iterator[str]:
    """The number of each grant that is open."""
    found = control.ask(_config(ctx).control, {"do": "holes"}, within_s=1)["holes"]
    yield from (str(grant["grant"]) for grant in found)


@offering
def policies(ctx: click.Context) -> Iterator[str]:
    """The digests of the policies that are kept, as they are shown."""
    from spa_server.audit import policytexts

    with closing(schema.connect(_config(ctx).database, read_only=True)) as record:
        yield from sorted(digest[:DIGEST_SHOWN] for digest in policytexts.kept(record))
