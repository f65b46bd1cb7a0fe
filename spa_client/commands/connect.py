"""`spa-client connect`."""

from typing import Any

import click

from keys.console import Parsed, asker
from keys.trouble import ExitCode
from spa_client import connect as connecting
from spa_client import knocking, unconnected
from spa_client.carriers import describe
from spa_client.commands.options import (
    host_argument,
    how_to_connect,
    lifetime_option,
    once_option,
    with_options,
)
from spa_client.commands.telling import note_all, note_line
from spa_client.compose import Wish
from spa_client.knocking import Options
from spa_client.pipe import Pipe
from spa_client.services import parse_port
from spa_protocol.access import Access


@click.command(
    epilog="\b\nExamples:\n"
    "  ssh -o ProxyCommand='spa-client connect %h %p' db1\n"
    "  spa-client connect db1 5432 --quiet\n"
    "\b\nFor ~/.ssh/config, 'spa-client ssh-config' prints:\n"
    "  Host db1 db1.internal\n"
    "    ProxyCommand spa-client connect %h %p"
)
@host_argument
@click.argument("port", type=Parsed("port", parse_port))
@click.option("-q", "--quiet", is_flag=True, help="Say nothing unless it goes wrong.")
@with_options(lifetime_option, once_option, *how_to_connect)
def connect(*, host: str, port: Access, quiet: bool, lifetime: int, once: bool, **how: Any) -> int:
    """Knocks for TCP PORT of HOST and connects: for ssh.

    Stdin and stdout are joined to the connection.
    HOST is a name in the configuration, or the address of a host there. Nothing but what comes over
    the connection is written to stdout. Where nothing comes back, it knocks and connects again.
    """
    options = Options(**how)
    found = knocking.find_host(host, options)
    opened = knocking.open_key(found, options, asker())
    aimed = knocking.aim(found, opened, Wish((port,), lifetime_s=lifetime, once=once), options)
    outcome = connecting.reach(aimed.results, port, at=aimed.composer.elsewhere)
    if outcome.winner is None:
        for line in unconnected.reasons(aimed, outcome):
            note_line(line)
        return unconnected.exit_code(aimed, outcome)
    if not quiet:
        note_all(aimed.story([outcome.winner.answer]))
    pipe = Pipe(outcome.winner.socket)
    pipe.run()
    if pipe.error is None:
        return ExitCode.FINE
    note_line(f"the connection to {aimed.host.name} broke: {describe(pipe.error)}")
    return ExitCode.TROUBLE
