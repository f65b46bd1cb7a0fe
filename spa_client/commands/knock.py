"""`spa-client knock` and `spa-client close`."""

from typing import Any

import click

from keys.console import asker
from spa_client import knocking
from spa_client.commands.options import (
    accesses_argument,
    accesses_of,
    host_argument,
    how_to_knock,
    json_option,
    lifetime_option,
    no_reply_option,
    once_option,
    with_options,
)
from spa_client.commands.telling import tell
from spa_client.compose import Wish
from spa_client.knocking import Options
from spa_protocol.access import Access


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-client knock db1 tcp/5432\n"
    "  spa-client knock db1 ssh https --lifetime 15m\n"
    "  spa-client knock gate.example.org udp/51820 --server 'spa-server AX...'"
)
@host_argument
@accesses_argument
@with_options(lifetime_option, once_option, no_reply_option, json_option, *how_to_knock)
def knock(
    *,
    host: str,
    access: tuple[Access, ...],
    lifetime: int,
    once: bool,
    no_reply: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Asks HOST, by each of its addresses, to open ports.

    ACCESS is tcp/22, udp/51820, tcp/9090-9099, or a name in /etc/services: ssh, udp/domain (a bare
    name is TCP's where TCP has it). Without one, what the configuration says for this host.

    It is done (0) when one address has opened everything that was asked for.
    """
    options = Options(**how)
    found = knocking.find_host(host, options)
    asked = accesses_of(access, found)
    wish = Wish(asked, lifetime_s=lifetime, once=once, reply_wanted=not no_reply)
    return tell(knocking.prepare(found, wish, options, asker()).run(), as_json=as_json)


@click.command(epilog="\b\nExamples:\n  spa-client close db1 tcp/5432")
@host_argument
@accesses_argument
@with_options(no_reply_option, json_option, *how_to_knock)
def close(
    *, host: str, access: tuple[Access, ...], no_reply: bool, as_json: bool, **how: Any
) -> int:
    """Gives back what a knock on HOST opened, before its time is up.

    Name the same ACCESS, and the same --source and --target, as with the knock.
    """
    options = Options(**how)
    found = knocking.find_host(host, options)
    wish = Wish(accesses_of(access, found), closing=True, reply_wanted=not no_reply)
    return tell(knocking.prepare(found, wish, options, asker()).run(), as_json=as_json)
