"""`spa-client ssh-config`."""

from pathlib import Path

import click

from keys.console import note, say
from keys.trouble import ExitCode
from spa_client import completing, config, sshconfig
from spa_client.commands.options import PROGRAM, config_option, keys_option, with_options


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-client ssh-config >> ~/.ssh/config\n"
    "  spa-client ssh-config db1\n"
    "\b\nOr in a file of its own, with 'Include spa_hosts' at the top of ~/.ssh/config:\n"
    "  spa-client ssh-config > ~/.ssh/spa_hosts"
)
@click.argument("host", nargs=-1, shell_complete=completing.hosts)
@with_options(config_option, keys_option)
def ssh_config(*, host: tuple[str, ...], chosen: Path | None, keys: Path | None) -> int:
    """Prints what ~/.ssh/config needs so that ssh, scp, sftp, rsync and git knock by themselves.

    For each HOST, or for every one in the configuration.
    """
    known = config.load(chosen, keys)
    hosts = [known.find(each) for each in host] or list(known.hosts.values())
    command = sshconfig.proxy_command(_options(chosen, keys))
    blocks = {each.name: sshconfig.block(each, known.hosts.values(), command) for each in hosts}
    for name, block in blocks.items():
        if block is None:
            note(f"{PROGRAM}: {name!r} is left out: ssh would not take that for a name")
    for line in "\n\n".join(block for block in blocks.values() if block).splitlines():
        say(line)
    if not blocks:
        note(f"no hosts in {known.path}; add one: {PROGRAM} add NAME 'spa-server ...'")
    return ExitCode.FINE


def _options(chosen: Path | None, keys: Path | None) -> list[str]:
    """ssh starts `connect` from wherever it is itself: so paths are whole."""
    given = (("--config", chosen), ("--keys-dir", keys))
    return [word for option, path in given if path for word in (option, str(path.absolute()))]
