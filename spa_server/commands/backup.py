"""`spa-server backup` and `spa-server restore`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from keys.console import Trouble, note
from keys.when import rfc3339
from spa_server import clock
from spa_server.cleanup import ends_in_order
from spa_server.commands.common import NOBODY_HEARD, PATH, PROGRAM, explained, must_not_run
from spa_server.config import load_config

if TYPE_CHECKING:
    from spa_server.restore import Restored


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-server backup /root/db1.spa-backup\n"
    "  spa-server backup /srv/backups/db1-$(date +%F).tar"
)
@click.argument("file", type=PATH)
@click.option("--force", is_flag=True, help="Take the place of a file of that name.")
@click.pass_obj
def backup(path: Path | None, file: Path, force: bool) -> None:
    """Copies what this host is made of into FILE.

    The daemon may go on meanwhile.

    In it are the registry, the replay memory, the record, the denials, what is ordinary for whom,
    configuration, policy and the server's key: FILE is as secret as that, and has mode 0600.
    """
    from spa_server import backup as backups
    from spa_server.audit import acts
    from spa_server.audit.record import Event

    config = load_config(path)
    if not force and (file.exists() or file.is_symlink()):
        raise Trouble(f"{file} exists already", "choose another name, or --force")
    if file.exists() and not file.is_file():
        raise Trouble(f"{file} is no file", "name one that may be replaced")
    with ends_in_order(), explained(config.database):
        names = backups.make(config, file, overwrite=force)
    acts.leave(config, Event.BACKUP_MADE, str(file.absolute()))
    note(f"{file}: {', '.join(names)}. It holds the server's key: keep it where nobody reads it.")


@click.command(epilog="\b\nExamples:\n  spa-server restore /root/db1.spa-backup")
@click.argument("file", type=PATH)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def restore(path: Path | None, file: Path, yes: bool) -> None:
    """Puts back what 'backup' has copied. The daemon must not run; the gate stays as it is.

    The databases that are there get another name. Configuration, policy and key are put in place
    only where they are missing. No knock that was ever made is heard again: for as long as one is
    fresh (30 s) nobody is heard. What was revoked since the backup, and can be read, stays revoked.
    """
    from spa_server import restore as restoring

    config = load_config(path)
    must_not_run(config)
    if not yes and config.database.exists():
        question = f"Put {file} in the place of {config.database}, which gets another name?"
        click.confirm(question, abort=True, err=True)
    with ends_in_order(), explained(config.database):
        done = restoring.restore(config, file, clock.now_us())
    _tell(done)


def _tell(done: "Restored") -> None:
    made_at = rfc3339(done.manifest.made_at_us)
    note(f"This is how {done.manifest.host} was at {made_at}.")
    for moved in done.aside:
        note(f"What was there is now {moved}.")
    for placed in done.placed:
        note(f"{placed} is from the backup.")
    for kept in done.kept:
        note(f"{kept} stays, and differs from the backup's; for that one, move it away and repeat.")
    if not done.is_carried:
        note("What was revoked since then is not known here: compare spa-keys list.")
    note(f"{NOBODY_HEARD.format(rfc3339(done.deaf_until_us))}.")
    if done.is_of_another_machine:
        note(f"The key came with another machine; if this takes its place: {PROGRAM} adopt-key")
    note(f"Now: spa-keys list; {PROGRAM} check; systemctl start spa-server")
