"""`spa-server audit export`: the record for other programs."""

import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any

import click

from keys import privatefile, schema
from keys.console import Trouble, note
from keys.progress import underway
from spa_server.commands.common import PATH, explained
from spa_server.commands.filters import MOMENT, filter_options, wanted
from spa_server.config import load_config


@click.command("export")
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv", "ocsf"]), default="jsonl",
    show_default=True, help="JSON lines, a table for spreadsheets, or events of OCSF 1.5.",
)  # fmt: skip
@click.option("--until", type=MOMENT, help="Up to when: 1d, 2026-11-24T09:00.")
@filter_options
@click.option("--out", type=PATH, metavar="FILE", help="Where to; made anew, readable by you only.")
@click.pass_obj
def export(
    path: Path | None,
    /,
    *,
    form: str,
    until: int | None,
    out: Path | None,
    **asked: Any,
) -> None:
    """Writes the record and the denials for other programs.

    The oldest line comes first.

    jsonl has every column as docs/record.md names them, with the digests. csv is safe to open in a
    spreadsheet: what would be a formula stands behind an apostrophe. ocsf has knocks, joins and
    holes as Authentication (3002) and connections as Network Activity (4001); other lines have no
    class there and are left out.

    \b
    Examples:
      spa-server audit export --since 30d > november.jsonl
      spa-server audit export --format csv --denied --since 1d --out denied.csv
      spa-server audit export --format ocsf --identity alice | curl --data-binary @- ...
    """
    from spa_server.audit import denials
    from spa_server.audit.export import Format, lines, written

    config = load_config(path)
    chosen = wanted(config, **asked)
    kept = 0
    apart = denials.beside(config.database)
    with ExitStack() as stack:
        stack.enter_context(explained(config.database))
        record = stack.enter_context(closing(schema.connect(config.database, read_only=True)))
        beside = None
        if apart.exists():
            stack.enter_context(explained(apart))
            beside = stack.enter_context(closing(schema.connect(apart, read_only=True)))
        found = lines(record, chosen, until_us=until, denials=beside)
        file = stack.enter_context(_output(out))
        # Not between the lines, where these go to the same terminal.
        shows = out is not None or not sys.stdout.isatty()
        progress = stack.enter_context(underway("lines read", shows=shows))
        for text in written(Format(form), progress.counted(found)):
            file.write(text)
            kept += 1
    read = progress.count
    kept -= int(form == "csv")
    if out is not None or not kept or kept != read:
        left_out = f"; {read - kept} left out, which are of no such class" if kept != read else ""
        note(f"{kept} lines{left_out}.")


@contextmanager
def _output(out: Path | None) -> Iterator[IO[Any]]:
    """Stdout; or the file, which is there whole or not at all."""
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    try:
        with (
            privatefile.new_file(out, overwrite=True) as unnamed,
            unnamed.open("w", encoding="utf-8", newline="") as file,
        ):
            yield file
    except privatefile.NotRegular as other:
        raise Trouble(str(other), "choose another name; or leave --out out, for stdout") from None
