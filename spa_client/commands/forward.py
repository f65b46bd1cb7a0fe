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
from spa_client.commands.keeping import Keeping, Notes
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
from spa_client.holding import Holder
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
@click.option("--hold", "holds", is_flag=True, help="Knock at once, and renew it until the end.")
@with_options(lifetime_option, once_option, *how_to_connect)
def forward(
    *,
    forward: tuple[Forward, ...],
    verbose: bool,
    closes: bool,
    holds: bool,
    lifetime: int,
    once: bool,
    **how: Any,
) -> int:
    """Listens here, knocks at each connection, and joins it to HOST.

    For programs that cannot knock. PORT:HOST:HOSTPORT is written as for ssh's -L: connections to
    PORT here lead to TCP HOSTPORT of HOST, a name in the configuration. It is TCP alone. BIND is
    the local address, 127.0.0.1 and ::1 where it is left out; * is every one; an IPv6 address
    stands in square brackets. Whoever reaches a BIND comes in with your key.

    Connections that come at once share a knock. It runs until Ctrl-C, which cuts what is joined.
    Some services cut connections when their hole closes, which is told: --hold keeps it open.
    """
    if once and holds:
        raise click.UsageError("--once and --hold exclude each other")
    options = Options(**how)
    keys: dict[Path, Identity] = {}
    with contextlib.ExitStack() as stack:
        gateways, holders = [], []
        for each in forward:
            host = knocking.find_host(each.host, options)
            if host.key not in keys:
                keys[host.key] = knocking.open_key(host, options, asker())
            wish = Wish((each.access,), lifetime_s=lifetime, once=once)
            aim = partial(knocking.aim, host, keys[host.key], wish, options)
            listeners = [stack.enter_context(listener) for listener in listen(each)]
            tell = _Teller(host, each, verbose=verbose)
            if holds:
                holders.append(Holder(aim, Notes(f"{host.name} {each.access}")))
            gateways.append(Gateway(each, listeners, Doorway(aim, each.access, once=once), tell))
        with Stopping() as stopping:
            for gateway in gateways:
                _tell_listening(gateway)
            for holder in holders:
                try:
                    with stopping.interruptible():
                        story = holder.open()
                except KeyboardInterrupt:
                    return ExitCode.INTERRUPTED
                note_all(story)
                if story.exit_code is not ExitCode.FINE:
                    return story.exit_code
                stack.enter_context(Keeping(holder))
            Forwarder(gateways).run(stopping)
    if closes:
        for holder in holders:
            with contextlib.suppress(Trouble):
                holder.give_back()
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


class _Teller:
    """Tells what became of each connection; what the server says of one that came in, once."""

    def __init__(self, host: Host, forward: Forward, *, verbose: bool) -> None:
        self._what = f"{host.name} {forward.access}"
        self._verbose = verbose
        self._said = ""

    def __call__(self, outcome: Attempt | Trouble) -> None:
        if isinstance(outcome, Trouble):
            note_line(f"{self._what}: {outcome}")
        elif outcome.race.winner is None:
            for line in unconnected.reasons(outcome.knocking, outcome.race):
                note_line(line)
        else:
            answer = outcome.race.winner.answer
            if self._verbose:
                note_line(f"{self._what}: connected to {answer.target}")
            if answer.reply.message and answer.reply.message != self._said:
                self._said = answer.reply.message
                note_line(f"{self._what}: the server says: {self._said}")


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
