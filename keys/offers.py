"""What the shell offers for the arguments of `spa-keys` and `spa-server`, as far as it may look.

The registry belongs to the daemon's user: who may not read it is offered nothing.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from keys import places
from keys.completion import offering
from keys.hostconfig import IN_CONTEXT, HostConfig, host_config, policy_roles
from keys.registry import opened
from keys.tomlfile import FileProblem


def _here(ctx: click.Context) -> HostConfig:
    here: HostConfig | None = ctx.meta.get(IN_CONTEXT)
    return here or host_config(None)


def _database(ctx: click.Context) -> Path:
    return ctx.params.get("database") or _here(ctx).database


@offering
def identities(ctx: click.Context) -> Iterator[str]:
    """Everybody in the registry."""
    with opened(_database(ctx), read_only=True) as registry:
        yield from sorted(registry.identities())


@offering
def roles(ctx: click.Context) -> Iterator[str]:
    """Every role of the policy, and every one that somebody has."""
    with suppress(FileProblem):
        yield from sorted(policy_roles(_here(ctx).policy))
    with opened(_database(ctx), read_only=True) as registry:
        yield from sorted(set().union(*registry.identities().values()))


@offering
def identities_and_keys(ctx: click.Context) -> Iterator[str]:
    """Everybody in the registry, and the id of each key that is not revoked."""
    with opened(_database(ctx), read_only=True) as registry:
        yield from sorted(registry.identities())
        enrolled = registry.keys()
    yield from (key.key_id for key in enrolled if key.revoked_at_us is None)


@offering
def waiting(ctx: click.Context) -> Iterator[str]:
    """Every key that waits for approval, and whose it is."""
    with opened(_database(ctx), read_only=True) as registry:
        keys = [each.key for each in registry.waiting()]
    yield from sorted(key.identity for key in keys)
    yield from (key.key_id for key in keys)


@offering
def key_files(ctx: click.Context) -> Iterator[str]:
    """The private keys in the keys directory, by name."""
    directory = ctx.params.get("directory") or places.keys_directory()
    yield from sorted(path.stem for path in Path(directory).glob("*.key"))
