"""`spa-client ssh-config`."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import click

from keys.console import note, say
from keys.trouble import ExitCode, Trouble
from spa_client import completing, config, sshconfig, sshinstall
from spa_client.commands.options import PROGRAM, config_option, keys_option, with_options
from spa_client.config import Config, Host


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-client ssh-config --install       ~/.ssh/config then includes ~/.ssh/spa_hosts\n"
    "  spa-client ssh-config db1 >> ~/.ssh/config"
)
@click.argument("host", nargs=-1, shell_complete=completing.hosts)
@click.option(
    "--install",
    is_flag=True,
    help="Write them to ~/.ssh/spa_hosts, and have ~/.ssh/config include that.",
)
@with_options(config_option, keys_option)
def ssh_config(
    *, host: tuple[str, ...], install: bool, chosen: Path | None, keys: Path | None
) -> int:
    """Prints what ssh needs to knock by itself.

    For ~/.ssh/config: so that ssh, scp, sftp, rsync and git knock by themselves.

    For each HOST, or for every one in the configuration. A host db1.internal is known to ssh as
    db1 as well, unless another host or ~/.ssh/config has that name. --install takes every one, and
    may be run again whenever they have changed.
    """
    if install and host:
        raise click.UsageError("--install takes all hosts: leave HOST out")
    known = config.load(chosen, keys)
    if not known.hosts:
        note(f"no hosts in {known.path}; add one: {PROGRAM} add NAME 'spa-server ...'")
    elif install:
        install_all(chosen, keys)
    else:
        hosts = [known.find(each) for each in host] or list(known.hosts.values())
        for line in _blocks(known, hosts, _options(chosen, keys)).splitlines():
            say(line)
    return ExitCode.FINE


def install_all(chosen: Path | None, keys: Path | None) -> None:
    """Has ssh knock for every host in the configuration, and says what it wrote. Raises Trouble."""
    blocks = all_blocks(config.load(chosen, keys), chosen, keys)
    directory = sshinstall.ssh_directory()
    written = sshinstall.install(blocks, directory)
    for path in written:
        note(f"wrote {path}: ssh knocks by itself")
    if not written:
        note(
            f"nothing to write: ssh knocks by itself already, by {directory / sshinstall.INCLUDED}"
        )


def all_blocks(known: Config, chosen: Path | None, keys: Path | None) -> str:
    """What --install writes of all hosts of a configuration. Raises Trouble."""
    return _blocks(known, known.hosts.values(), _options(chosen, keys))


def _blocks(known: Config, hosts: Iterable[Host], options: list[str]) -> str:
    command = sshconfig.proxy_command(options)
    taken: frozenset[str] = frozenset()
    with contextlib.suppress(Trouble):  # what is only printed needs no configuration of ssh's
        taken = sshinstall.own_names(sshinstall.ssh_directory())
    blocks = {
        each.name: sshconfig.block(each, known.hosts.values(), command, taken) for each in hosts
    }
    for name, block in blocks.items():
        if block is None:
            note(f"{PROGRAM}: {name!r} is left out: ssh would not take that for a name")
    return "\n\n".join(block for block in blocks.values() if block)


def _options(chosen: Path | None, keys: Path | None) -> list[str]:
    """ssh starts `connect` from wherever it is itself: so paths are whole."""
    given = (("--config", chosen), ("--keys-dir", keys))
    return [word for option, path in given if path for word in (option, str(path.absolute()))]
