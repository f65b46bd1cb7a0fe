"""`spa-server audit set-aside`: a damaged database gets another name, and a new one is begun."""

from pathlib import Path

import click

from keys.console import ExitCode, Trouble, note, printable
from spa_server import clock
from spa_server.commands.common import PROGRAM, explained, must_not_run
from spa_server.config import load_config


@click.command(
    "set-aside",
    epilog="\b\nExample:\n  spa-server audit set-aside --keep-registry",
)
@click.option(
    "--keep-registry", is_flag=True, help="Enter into the new one what can be read of the keys."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def set_aside(path: Path | None, keep_registry: bool, yes: bool) -> None:
    """Gives a damaged database another name, and begins a new one.

    The old file stays, beside the new one. The daemon must not run. A backup, where there is one,
    is better: put it in place instead. With --keep-registry compare 'spa-keys list' with what you
    know: a damaged file may have forgotten that a key was revoked.
    """
    from spa_server.audit import setaside

    config = load_config(path)
    must_not_run(config)
    if not config.database.exists():
        raise Trouble(f"there is no database at {config.database}", exit_code=ExitCode.REFUSED)
    wrong = setaside.what_is_wrong(config.database)
    if not yes:
        found = f"is damaged ({wrong})" if wrong else "seems to be SOUND"
        question = "Set it aside, and with it every key that is enrolled?"
        click.confirm(f"{config.database} {printable(found)}. {question}", abort=True, err=True)
    with explained(config.database):
        aside = setaside.set_aside(config, clock.now_us(), wrong or "the operator wished it")
        note(f"It is now {aside}.")
        for saved in setaside.save_registry(aside, config.database) if keep_registry else ():
            whole = "" if saved.is_whole else "; not all of it could be read"
            note(f"{saved.table}: {saved.rows} kept{whole}")
    note(f"A new database is in its place. Now: spa-keys list; {PROGRAM} check")
