"""`spa-client hosts` and `spa-client add`."""

from pathlib import Path
from typing import Any

import click

from keys.console import note, print_json, say, say_lines, table
from spa_client import completing, config
from spa_client.commands.options import (
    PROGRAM,
    SERVER_LINE,
    access_kept_option,
    address_option,
    carrier_kept_option,
    config_option,
    json_option,
    keys_option,
    source_kept_option,
    target_kept_option,
    with_options,
)
from spa_client.config import Host, NewHost


@click.command(
    epilog="\b\nExamples:\n  spa-client hosts\n  spa-client hosts --json | jq -r '.[].name'"
)
@with_options(json_option, config_option, keys_option)
def hosts(*, as_json: bool, chosen: Path | None, keys: Path | None) -> None:
    """Lists the servers in the configuration."""
    known = config.load(chosen, keys)
    if as_json:
        print_json([_host_json(host) for host in known.hosts.values()])
    elif known.hosts:
        columns = ("NAME", "KNOCKS ON", "KEY", "SOURCE", "ACCESS")
        say_lines(table(columns, map(_row, known.hosts.values())))
    else:
        note(f"no hosts in {known.path}; add one: {PROGRAM} add NAME 'spa-server ...'")


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-client add db1 'spa-server AX... db1.internal:62201'\n"
    "  spa-client add db2 'spa-server AX... 192.0.2.7:62201' --key work --access tcp/5432"
)
@click.argument("name")
@click.argument("line", nargs=-1, required=True)
@address_option
@click.option(
    "--key",
    metavar="NAME|FILE",
    shell_complete=completing.keys,
    help="The key to knock with, if not the usual one.",
)
@with_options(
    source_kept_option, target_kept_option, access_kept_option, carrier_kept_option, config_option
)
def add(
    *,
    name: str,
    line: tuple[str, ...],
    address: str | None,
    key: str | None,
    source: str | None,
    target: str | None,
    access: tuple[str, ...],
    carrier: str | None,
    chosen: Path | None,
) -> None:
    """Adds a server to the configuration.

    LINE is what 'spa-server init' printed there.
    """
    path = chosen or config.default_path()
    server = " ".join(line)
    SERVER_LINE.convert(server, None, click.get_current_context())
    added = config.add(path, NewHost(name, server, address, key, source, access, carrier, target))
    example = "" if added.access else " ACCESS, such as tcp/22"
    say(f"{name} added to {path}; now: {PROGRAM} knock {name}{example}")


def _row(host: Host) -> tuple[str, ...]:
    access = " ".join(map(str, host.access)) or "-"
    return (host.name, str(host.knocks_on), str(host.key), host.source_word, access)


def _host_json(host: Host) -> dict[str, Any]:
    return {
        "name": host.name,
        "address": host.address,
        "port": host.knocks_on.port,
        "server": str(host.server),
        "key": str(host.key),
        "source": host.source_word,
        "target": host.target_word,
        "carrier": str(host.carrier),
        "access": [str(access) for access in host.access],
    }
