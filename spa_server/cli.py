"""`spa-server`: the daemon of a host, and its operator's tool."""

from pathlib import Path

import click

from keys.console import Program
from spa_protocol import __version__
from spa_server.commands import (
    asking,
    audit,
    backup,
    check,
    explain,
    gate,
    host,
    import_fwknop,
    policy,
    report,
    sessions,
    top,
    whois,
)
from spa_server.commands.common import PATH, PROGRAM
from spa_server.config import CONFIG_VARIABLE


@click.group(
    PROGRAM,
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 refused or findings, 2 usage, 4 trouble on this host.",
)
@click.option(
    "--config",
    type=PATH,
    envvar=CONFIG_VARIABLE,
    show_envvar=True,
    help="The configuration.  [default: /etc/spa/server.toml]",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Keeps every port of this host closed, except to whoever knocks and may.

    \b
    Setting a host up, as root:
      spa-server init                          configuration, policy, key, registry
      spa-keys invite alice --role admin       a line for her to join by
      spa-server check                         who could get in?
      spa-server gate apply --confirm-within 60s
      spa-server run                           or: systemctl enable --now spa-gate spa-server
    """
    ctx.obj = config


for command in (
    host.init,
    host.run,
    host.adopt_key,
    host.status,
    host.holes,
    top.top,
    sessions.sessions,
    host.close,
    whois.whois,
    host.reload,
    gate.gate,
    policy.policy,
    explain.explain,
    audit.audit,
    check.check,
    report.report,
    asking.inspect,
    backup.backup,
    backup.restore,
    import_fwknop.import_fwknop,
):
    main.add_command(command)
