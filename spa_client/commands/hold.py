"""`spa-client hold`."""

import contextlib
import math
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from keys.console import asker, printable, say
from keys.trouble import ExitCode
from spa_client import knocking
from spa_client.commands.options import (
    accesses_argument,
    accesses_of,
    host_argument,
    how_to_connect,
    lifetime_option,
    with_options,
)
from spa_client.commands.telling import note_all, note_line, tell
from spa_client.compose import Wish
from spa_client.holding import Holder
from spa_client.knocking import Options
from spa_client.outcome import duration
from spa_client.stopping import Stopping
from spa_protocol.access import Access


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-client hold db1 tcp/5432\n"
    "  spa-client hold db1 ssh https --lifetime 5m"
)
@host_argument
@accesses_argument
@with_options(lifetime_option, *how_to_connect)
def hold(*, host: str, access: tuple[Access, ...], lifetime: int, **how: Any) -> int:
    """Keeps ports of HOST open until Ctrl-C, and closes them then.

    Each hole is renewed when half of its time is over, and at once when this machine gets another
    address or wakes up. An answer that gets lost is told and asked for again; a refusal ends it
    (1). It ends with 0 when everything was closed, and with 3 when nobody answered that.
    """
    options = Options(**how)
    found = knocking.find_host(host, options)
    wish = Wish(accesses_of(access, found), lifetime_s=lifetime)
    opened = knocking.open_key(found, options, asker())
    display = _Countdown(found.name, ", ".join(map(str, wish.accesses)), sys.stderr.isatty())
    holder = Holder(partial(knocking.aim, found, opened, wish, options), display)
    with Stopping() as stopping:
        try:
            with stopping.interruptible():
                story = holder.open()
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
        try:
            code = tell(story, as_json=False)
            if code != ExitCode.FINE:
                holder.give_back()
                return code
            say(f"{found.name}: renewed until Ctrl-C")
            sys.stdout.flush()
            refused = holder.keep(stopping)
        except BaseException:
            holder.give_back()
            raise
        display.end()
    if refused is not None:
        holder.give_back()
        note_all(refused)
        return refused.exit_code
    closed = holder.give_back()
    if closed is None:
        return ExitCode.FINE
    code = tell(closed, as_json=False)
    return ExitCode.FINE if closed.is_shut else code


@dataclass
class _Countdown:
    """A line that is written anew each second, where a terminal is, and what happens above it.

    A terminal that is gone is no reason to stop: what is open has to be closed yet.
    """

    name: str
    accesses: str
    is_terminal: bool
    _shown: int = 0

    def tell(self, line: str) -> None:
        self.end()
        with contextlib.suppress(OSError):
            note_line(f"{self.name}: {line}")

    def show(self, left_s: float, renewals: int) -> None:
        if not self.is_terminal:
            return
        times = "once" if renewals == 1 else f"{renewals} times"
        left = f"{duration(math.ceil(left_s))} left" if left_s else "not open"
        text = f"{self.name}: {self.accesses} {left}, renewed {times}; Ctrl-C closes it"
        text = printable(text)[: shutil.get_terminal_size().columns - 1]
        self._write(f"\r{text.ljust(self._shown)}")
        self._shown = len(text)

    def end(self) -> None:
        """Takes the line away."""
        if self._shown:
            self._write(f"\r{' ' * self._shown}\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            click.echo(text, nl=False, err=True)
