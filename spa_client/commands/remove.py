"""`spa-client remove`."""

import os
from dataclasses import dataclass
from pathlib import Path

import click

from keys import identity
from keys.console import note, print_json, say
from keys.trouble import Trouble
from spa_client import completing, config, sshinstall
from spa_client.commands.options import (
    PROGRAM,
    config_option,
    json_option,
    keys_option,
    with_options,
)
from spa_client.commands.ssh_config import all_blocks
from spa_client.config import Config, Host


@dataclass(frozen=True, slots=True)
class _Key:
    """The key of the host that goes: its id is empty where the file cannot be read."""

    path: Path
    key_id: str
    others: tuple[str, ...]


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-client remove db1                 its key stays\n"
    "  spa-client remove db1 --with-key      and its key is deleted, for good"
)
@click.argument("name", shell_complete=completing.hosts)
@click.option("--with-key", is_flag=True, help="Delete its private key as well, for good.")
@with_options(json_option, config_option, keys_option)
def remove(
    *, name: str, with_key: bool, as_json: bool, chosen: Path | None, keys: Path | None
) -> None:
    """Takes a server out of the configuration, and out of ssh's.

    Nothing is asked of the server: its operator ends the key there, by 'spa-keys revoke'.
    """
    known = config.load(chosen, keys)
    host = known.find(name)
    key = _key(known, host)
    if with_key and key.others:
        raise Trouble(f"{', '.join(key.others)} uses {key.path} as well", "leave --with-key out")
    if with_key and not key.key_id and os.path.lexists(key.path):
        raise Trouble(f"{key.path} is no key that can be read", "leave --with-key out")
    installed = sshinstall.is_installed(all_blocks(known, chosen, keys), sshinstall.ssh_directory())
    config.remove(known.path, host.name)
    was_there = with_key and _delete(key.path)
    if installed:
        left = config.load(chosen, keys)
        sshinstall.install(all_blocks(left, chosen, keys), sshinstall.ssh_directory())
    if as_json:
        print_json(
            {
                "host": host.name,
                "config": str(known.path),
                "key": str(key.path),
                "key_id": key.key_id or None,
                "key_deleted": was_there,
                "ssh_config_written": bool(installed),
            }
        )
        return
    say(f"{host.name} is no longer in {known.path}")
    _tell_ssh(installed)
    _tell_key(key, with_key=with_key, was_there=was_there)


def _key(known: Config, host: Host) -> _Key:
    others = tuple(
        each.name for each in known.hosts.values() if each is not host and each.key == host.key
    )
    try:
        key_id = identity.load_public(host.key)[0].key_id
    except Trouble:
        key_id = ""
    return _Key(host.key, key_id, others)


def _delete(path: Path) -> bool:
    """Whether there was such a file. Raises Trouble."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        what = f"the host is gone from the configuration, but {path} is not: {error.strerror}"
        raise Trouble(what, "delete it by hand") from None
    return True


def _tell_ssh(installed: bool | None) -> None:
    own = sshinstall.ssh_directory() / sshinstall.INCLUDED
    if installed:
        say(f"ssh no longer knocks for it ({own})")
    elif installed is False:
        note(f"{own} is not as this configuration has it: {PROGRAM} ssh-config --install")


def _tell_key(key: _Key, *, with_key: bool, was_there: bool) -> None:
    if with_key:
        say(f"its key {key.path} is deleted" if was_there else f"there was no {key.path}")
    elif key.others:
        say(f"its key {key.path} stays: {', '.join(key.others)} uses it as well")
    elif os.path.lexists(key.path):
        say(f"its key {key.path} stays; delete it when nothing needs it")
    if key.key_id and not key.others:
        note(f"The server still knows the key; its operator: spa-keys revoke {key.key_id}")
