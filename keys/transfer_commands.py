"""The commands of `spa-keys` that carry keys to another machine: export and import."""

from pathlib import Path
from typing import Final

import click

from keys import passphrase, transfer
from keys.console import asker, note, say
from keys.newkey import new_passphrase, usual_comment
from keys.options import (
    NAME,
    PATH,
    config_option,
    directory_option,
    passphrase_file_option,
)


@click.command(
    name="export",
    epilog="\b\nExamples:\n"
    "  spa-keys export laptop.spa\n"
    "  spa-keys export work.spa --key work --key backup\n"
    "  spa-keys import laptop.spa                  on the new machine",
)
@click.argument("file", type=PATH)
@click.option("--key", "names", type=NAME, multiple=True, help="Only this key; repeatable.")
@passphrase_file_option
@directory_option
@config_option
def export_keys(
    *,
    file: Path,
    names: tuple[str, ...],
    passphrase_file: Path | None,
    directory: Path,
    config: Path,
) -> None:
    """Writes your keys and configuration into one FILE.

    The configuration is spa-client's; a passphrase guards the file.
    For a new machine that takes the place of this one. A further machine is better off with a key
    of its own, which can be revoked by itself.
    """
    export = transfer.collect(directory, config, names)
    chosen = new_passphrase(True, passphrase_file, asker(), "Passphrase of the export")
    transfer.save(export, file, usual_comment(), chosen or "")
    for name in export.keys:
        say(f"key {name}")
    if export.config is not None:
        say(f"configuration {config}")
    for path in transfer.elsewhere(export.config):
        note(f"Not in it: the key {path}, which the configuration names by its path.")
    note(f"All of it is in {file}, guarded by its passphrase.")


@click.command(
    name="import",
    epilog="\b\nExample:\n  spa-keys import laptop.spa",
)
@click.argument("file", type=PATH)
@click.option("--force", is_flag=True, help="Replace keys and a configuration that are others.")
@passphrase_file_option
@directory_option
@config_option
def import_keys(
    *, file: Path, force: bool, passphrase_file: Path | None, directory: Path, config: Path
) -> None:
    """Unpacks the FILE of an export, all of it or nothing.

    It has keys and the configuration. What is there already, and the same, stays. Keys keep the
    passphrases that they had.
    """
    known = passphrase_file
    ask = asker() if known is None else lambda _: passphrase.from_file(known)
    export = transfer.load(file, ask)
    for each in transfer.unpack(export, directory, config, overwrite=force):
        say(f"{each.path}{' was there already' if each.is_there else ''}")
    note(f"Delete {file} when all of it works.")


COMMANDS: Final = (export_keys, import_keys)
