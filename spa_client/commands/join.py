"""`spa-client join`."""

from typing import Any

import click

from keys.console import asker, print_json
from spa_client import join as joins
from spa_client import joinoutcome
from spa_client.commands.options import (
    access_kept_option,
    address_option,
    carrier_kept_option,
    config_option,
    json_option,
    keys_option,
    passphrase_file_option,
    source_kept_option,
    target_kept_option,
    timeout_option,
    version_4_option,
    version_6_option,
    with_options,
)
from spa_client.commands.ssh_config import install_all
from spa_client.commands.telling import tell_lines
from spa_protocol.keytext import BadKeyText


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-client join -                 paste the line, and it stays out of the history\n"
    "  spa-client join - --ssh           and 'ssh db1.example' knocks by itself from then on\n"
    "  spa-client join - --name db1 --access tcp/5432\n"
    "  spa-client join - --no-passphrase < invite",
)
@click.argument("line", metavar="INVITE", nargs=-1, required=True)
@click.option("--name", help="What to call the server here.  [default: its name in the invite]")
@address_option
@click.option(
    "--key",
    metavar="NAME|FILE",
    help="Where to make the key, or a key that is there already.  [default: a new one]",
)
@click.option(
    "--passphrase/--no-passphrase",
    "wants_passphrase",
    default=None,
    help="Insist on a passphrase, or on none.  [default: ask, and take an empty answer for none]",
)
@click.option(
    "--ssh",
    "wants_ssh",
    is_flag=True,
    help="Have ssh knock by itself from now on: 'ssh-config --install'.",
)
@with_options(
    passphrase_file_option,
    source_kept_option,
    target_kept_option,
    access_kept_option,
    carrier_kept_option,
    version_4_option,
    version_6_option,
    timeout_option(joins.TIMEOUT_S),
    json_option,
    config_option,
    keys_option,
)
def join(*, line: tuple[str, ...], as_json: bool, **how: Any) -> int:
    """Makes a key, enrols it by INVITE, and adds the server.

    INVITE is the line 'spa://...' that 'spa-keys invite' printed there, or - to read it from
    stdin: others on this machine can see an argument, and the shell keeps it. The new key is then
    tried: by a knock for each --access, or by a request that opens nothing.

    Where no answer came, give the same line again: it means the same key, and is answered again.
    """
    try:
        invite = joins.read_invite(line)
    except BadKeyText as bad:
        raise click.UsageError(str(bad)) from None
    options = joins.Options(**how)
    joined = joins.join(joins.plan(invite, options), asker())
    if as_json:
        print_json(joinoutcome.as_json(joined))
    else:
        tell_lines(joinoutcome.lines(joined))
    if options.wants_ssh and joined.is_entered:
        install_all(options.chosen, options.keys)
    return joinoutcome.exit_code(joined)
