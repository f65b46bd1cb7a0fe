"""The options by which `audit` and `audit export` choose lines of the record."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from difflib import get_close_matches
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

import click

from keys import schema
from keys.completion import offering
from keys.console import ExitCode, Parsed, Trouble
from keys.names import identity_name
from keys.when import parse_duration, parse_moment
from spa_server import clock
from spa_server.audit.record import Event
from spa_server.commands.common import ACCESS, ADDRESS, explained
from spa_server.commands.offers import accesses, identities
from spa_server.config import Config

if TYPE_CHECKING:
    from spa_server.audit.asking import Filter


def _moment(text: str) -> int:
    """A duration back from now, or a moment; microseconds since 1970."""
    now_us = clock.now_us()
    try:
        return now_us - round(parse_duration(text) * 1_000_000)
    except ValueError:
        return parse_moment(text, now_us)


def _events() -> list[str]:
    """Every event, and every group of them: what stands before the dot."""
    names = [str(event) for event in Event]
    return sorted({*names, *(name.partition(".")[0] for name in names)})


def _event(text: str) -> str:
    """Raises ValueError for what is no event."""
    known = _events()
    if text not in known:
        near = get_close_matches(text, known, 1)
        meant = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
        raise ValueError(f"there is no event {text!r}; {meant}")
    return text


@offering
def _offered_events(_ctx: click.Context) -> Iterator[str]:
    yield from _events()


MOMENT: Final = Parsed("moment", _moment)

_OPTIONS: Final = (
    click.option("--since", type=MOMENT, help="From when on: 2h, 30d, 2026-11-24T09:00."),
    click.option(
        "--identity", type=Parsed("identity", identity_name, identities), help="Only this person's."
    ),
    click.option(
        "--event",
        type=Parsed("event", _event, _offered_events),
        help="Only this event (hole.opened) or group of events (knock).",
    ),
    click.option("--source", type=ADDRESS, help="Only from this address."),
    click.option(
        "--access", type=ACCESS, shell_complete=accesses, help="Only to this protocol and port."
    ),
    click.option("--denied", is_flag=True, help="Only what was refused or denied."),
)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds them; what they were given goes to `wanted` as keywords."""
    return reduce(lambda made, option: option(made), reversed(_OPTIONS), command)


def wanted(
    config: Config,
    *,
    since: int | None,
    identity: str | None,
    event: str | None,
    source: object,
    access: object,
    denied: bool,
) -> "Filter":
    """The lines that were asked for. Raises Trouble for a person whom nobody knows.

    Who has to ask the daemon for the record is told by its answer.
    """
    from spa_server.audit.asking import Filter

    if identity is not None and not must_ask(config):
        _check(config, identity)
    return Filter(
        since_us=since,
        identity=identity,
        event=event,
        source=str(source) if source else None,
        access=str(access) if access else None,
        denied=denied,
    )


def _check(config: Config, identity: str) -> None:
    from spa_server.audit import asking

    with (
        explained(config.database),
        closing(schema.connect(config.database, read_only=True)) as record,
    ):
        is_known = asking.is_known(record, identity)
    if not is_known:
        raise unknown(identity)


def unknown(identity: str) -> Trouble:
    """Nobody has heard of this one."""
    return Trouble(
        f"{identity} is nobody in the registry or the record",
        "see: spa-keys list --all",
        exit_code=ExitCode.REFUSED,
    )


def must_ask(config: Config) -> bool:
    """Whether this user may not read the database, but may ask the daemon: is in its group."""
    return not os.access(config.database, os.R_OK) and os.access(config.control, os.W_OK)
