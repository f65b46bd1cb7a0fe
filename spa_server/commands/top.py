"""`spa-server top`: what is going on, as it goes on."""

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from keys.console import ExitCode, Trouble, print_json
from spa_server.commands.common import PROGRAM, ask, json_option
from spa_server.config import Config, load_config

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY_S: Final = 1.0
_LINES: Final = 100


@click.command()
@click.option("--once", is_flag=True, help="One frame, and done.")
@json_option
@click.pass_obj
def top(path: Path | None, once: bool, as_json: bool) -> None:
    """A live view of holes, knocks and denials.

    Holes and how long they last, knocks, denials by source and port.

    It asks the daemon once a second; 'q' or Ctrl-C ends it. Times are UTC. Denials are counted "at
    least", and for as long as this daemon runs.

    \b
    Examples:
      spa-server top
      spa-server top --once
      spa-server top --json            one frame for other programs
    """
    config = load_config(path)
    if as_json:
        status, activity = _asked(config)
        print_json({"status": status, **activity})
    elif once:
        _print_once(config)
    elif not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Trouble(
            "this is no terminal", f"try: {PROGRAM} top --once, or --json", exit_code=ExitCode.USAGE
        )
    else:
        _live(config)


def _asked(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    return ask(config, do="status"), ask(config, do="activity", limit=_LINES)


def _print_once(config: Config) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=80, height=24)
    console.print(_rendered(_asked(config), console.width, console.height))


def _rendered(
    asked: tuple[dict[str, Any], dict[str, Any]], width: int, height: int
) -> "RenderableType":
    from rich.text import Text

    from spa_server.topframe import frame

    lines = frame(*asked, width=width, height=height)
    return Text("\n", no_wrap=True, end="").join(Text(text, style) for text, style in lines)


def _live(config: Config) -> None:
    """Until q, Ctrl-C or a daemon that ends; the terminal is then as it was."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)

    def rendered() -> "RenderableType":
        return _rendered(_asked(config), console.width, console.height)

    first = rendered()
    with _single_keys(), Live(first, console=console, screen=True, auto_refresh=False) as live:
        try:
            while not _quits(_EVERY_S):
                live.update(rendered(), refresh=True)
        except KeyboardInterrupt:
            return


def _quits(within_s: float) -> bool:
    """Waits for a key; whether it was q, or the terminal is gone."""
    end_s = time.monotonic() + within_s
    while (left_s := end_s - time.monotonic()) > 0:
        if not select.select([sys.stdin], [], [], left_s)[0]:
            return False
        keys = os.read(sys.stdin.fileno(), 64)
        if not keys or set(keys) & set(b"qQ"):
            return True
    return False


@contextmanager
def _single_keys() -> Iterator[None]:
    """Keys come one by one and are not shown; Ctrl-C still interrupts."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
