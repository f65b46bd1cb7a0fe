"""`spa-client doctor`."""

import sys
from typing import Any

import click

from keys.console import asker, print_json, say
from spa_client.commands.options import (
    accesses_argument,
    host_argument,
    how_to_connect,
    json_option,
    with_options,
)
from spa_client.doctor import report
from spa_client.doctor.advice import advise
from spa_client.doctor.examine import Examiner
from spa_client.knocking import Options
from spa_protocol.access import Access


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-client doctor db1 tcp/5432\n"
    "  spa-client doctor db1 tcp/5432 --clock    is this machine's clock days off?\n"
    "  spa-client doctor db1 --json | jq -r .diagnosis"
)
@host_argument
@accesses_argument
@click.option(
    "--clock",
    "asks_clock",
    is_flag=True,
    help="Where no knock is answered, ask by other times as well, three days around this "
    "machine's: whoever sees that can recognise your knocks for as long.",
)
@with_options(json_option, *how_to_connect)
def doctor(
    *, host: str, access: tuple[Access, ...], asks_clock: bool, as_json: bool, **how: Any
) -> int:
    """Finds out why a port of HOST does not open, and what to do.

    It looks at the configuration and the key, the name and the route, and knocks: for the reply and
    how many get lost, the clocks, the address that the server sees, what the policy says, and
    whether the port then answers. What the knock opens ends by itself.
    """
    examiner = Examiner(host, access, Options(**how), asks_clock=asks_clock)
    findings = []
    for finding in examiner.run(asker()):
        findings.append(finding)
        if not as_json:
            say(report.line(finding))
            sys.stdout.flush()
    advice = advise(examiner.examination)
    if as_json:
        print_json(report.as_json(examiner.examination, findings, advice))
    else:
        say(report.last_line(advice))
    return advice.exit_code
