"""`spa-client forward`."""

import contextlib
import socket
from functools import partial
from pathlib import Path
from typing import Any

import click

from keys.console import Parsed, asker, say
from keys.identity import Identity
from keys.trouble import ExitCode, Trouble
from spa_client import closing, knocking, unconnected
from spa_client.commands.options import (
    how_to_connect,
    lifetime_option,
    once_option,
    with_options,
)
from spa_client.commands.telling import note_all, note_line
from spa_client.compose import Wish
from spa_client.config import Host
from spa_client.doorway import Attempt, Doorway
from spa_client.forwarding import Forward, Forwarder, Gateway, is_loopback, listen, parse_forward
from spa_client.knocking import Options
from spa_client.stopping import Stopping


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-client forward 15432:db1:5432                  then: psql -h localhost -p 15432\n"
    "  spa-client forward 15432:db1:5432 8443:web1:443 --close\n"
    "  spa-client forward 0:db1:postgresql                a free port, which it prints\n"
    "  spa-client forward 192.168.1.5:8080:web1:http      for others on that network, too"
)
@click.argument(
    "forward",
    metavar="[BIND:]PORT:HOST:HOSTPORT...",
    nargs=-1,
    required=True,
    type=Parsed("forward", parse_forward),
)
@click.option("-v", "--verbose", is_flag=True, help="Tell each connection.")
@click.option("--close", "closes", is_flag=True, help="Close what was opened when it ends.")
@with_options(lifetime_option, once_option, *how_to_connect)
def forward(
    *,
    forward: tuple[Forward, ...],
    verbose: bool,
    closes: bool,
    lifetime: int,
    once: bool,
    **how: Any,
) -> int:
    """Listens on this machine, knocks at each connection, and joins it to one to HOST.

    For programs that cannot knock. PORT:HOST:HOSTPORT is written as for ssh's -L: connections to
    PORT here lead to TCP HOSTPORT of HOST, a name in the configuration. It is TCP alone. BIND is
    the local address, 127.0.0.1 and ::1 where it is left out; * is every one; an IPv6 address
    stands in square brackets. Whoever reaches a BIND comes in with your key.

    Connections that come at once share a knock. It runs until Ctrl-C, which cuts what is joined.
    """
    options = Options(**how)
    keys: dict[Path, Identity] = {}
    with contextlib.ExitStack() as stack:
        gateways = []
        for each in forward:
            host = knocking.find_host(each.host, options)
            if host.key not in keys:
                keys[host.key] = knocking.open_key(host, options, asker())
            wish = Wish((each.access,), lifetime_s=lifetime, once=once)
            aim = partial(knocking.aim, host, keys[host.key], wish, options)
            listeners = [stack.enter_context(listener) for listener in listen(each)]
            tell = partial(_tell, host, each, verbose)
            gateways.append(Gateway(each, listeners, Doorway(aim, each.access, once=once), tell))
        with Stopping() as stopping:
            for gateway in gateways:
                _tell_listening(gateway)
            Forwarder(gateways).run(stopping)
    if closes:
        _close(gateways)
    return ExitCode.FINE


def _tell_listening(gateway: Gateway) -> None:
    to = f"{gateway.forward.host} {gateway.forward.access}"
    for listener in gateway.listeners:
        say(f"{_written(listener)} leads to {to}")
        if not is_loopback(listener):
            note_line(f"others may reach {_written(listener)}, and come in with your key")


def _written(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _tell(host: Host, forward: Forward, verbose: bool, outcome: Attempt | Trouble) -> None:
    if isinstance(outcome, Trouble):
        note_line(f"{host.name} {forward.access}: {outcome}")
    elif outcome.race.winner is None:
        for line in unconnected.reasons(outcome.knocking, outcome.race):
            note_line(line)
    elif verbose:
        note_line(f"{host.name} {forward.access}: connected to {outcome.race.winner.answer.target}")


def _close(gateways: list[Gateway]) -> None:
    for gateway in gateways:
        doorway = gateway.doorway
        if doorway.knocking is None:
            continue
        try:
            story = closing.close(doorway.knocking, list(doorway.opened.values()))
        except Trouble as trouble:
            note_line(f"{gateway.forward.host}: not closed, and ends by itself: {trouble}")
            continue
        if story is not None:
            note_all(story)
