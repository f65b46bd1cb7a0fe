"""`spa-server init`, `run`, and what is asked of a running daemon: status, holes, close, reload."""

from pathlib import Path

import click

from keys.console import ExitCode, Parsed, Trouble, note, print_json, say, table
from keys.invite import WrittenHost
from keys.names import identity_name
from spa_server.commands.common import PROGRAM, ask, explained, json_option
from spa_server.commands.gate import observing
from spa_server.commands.offers import identities
from spa_server.config import load_config


@click.command()
@click.option(
    "--host",
    metavar="HOST[:PORT]",
    type=Parsed("host", WrittenHost.parse),
    help="Where clients knock.  [default: this host's name, and the port of the configuration]",
)
@click.pass_obj
def init(path: Path | None, host: WrittenHost | None) -> None:
    """Makes what a host needs, where it is missing, and prints the line for its clients."""
    from spa_server import setup

    with explained():
        for made in setup.initialise(path, host):
            note(made)
    say(str(setup.server_line(path, host)))
    note("Next: let somebody in by one line, spa-keys invite NAME --role admin")
    note("or by the line above: there, spa-client add NAME '...'; here, spa-keys enroll.")
    note("Then look at the policy, and: spa-server gate apply --confirm-within 60s")


@click.command()
@click.pass_obj
def run(path: Path | None) -> None:
    """Runs the daemon in the foreground, until SIGTERM or Ctrl-C. SIGHUP reloads the policy.

    The gate must have been put in force before (gate apply). It outlives the daemon: however the
    daemon ends, what is closed stays closed, and open holes close on time.
    """
    from spa_server import daemon

    config = load_config(path)
    with explained(config.database):
        daemon.run(config)


@click.command()
@json_option
@click.pass_obj
def status(path: Path | None, as_json: bool) -> None:
    """How the daemon is.

    'mode' is how the gate in force treats what the policy does not allow; 'observed' are the ports
    where it is let in and recorded, while all others are enforced.
    """
    answer = ask(load_config(path), do="status")
    if as_json:
        print_json(answer)
        return
    for name, value in answer.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        say(f"{name.replace('_', ' '):<17}  {text}".rstrip())
    observing(everything=answer["mode"] == "observe", accesses=answer["observed"])


@click.command()
@json_option
@click.pass_obj
def holes(path: Path | None, as_json: bool) -> None:
    """The holes that are open: whose, from where, to what, and for how long."""
    found = ask(load_config(path), do="holes")["holes"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(hole["grant"]),
            hole["identity"],
            hole["source"],
            hole["target"],
            hole["access"],
            f"{hole['remaining_s']:.0f} s" if hole["open"] else "used",
        )
        for hole in found
    ]
    click.echo(table(("GRANT", "IDENTITY", "SOURCE", "TARGET", "ACCESS", "LEFT"), rows))


@click.command("close")
@click.argument("grants", nargs=-1, type=int)
@click.option(
    "--identity", type=Parsed("identity", identity_name, identities), help="All of this identity's."
)
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.pass_obj
def close(
    path: Path | None, grants: tuple[int, ...], identity: str | None, everything: bool
) -> None:
    """Closes holes before their time, by the numbers that 'holes' shows.

    Sessions live on, except those of services whose sessions are cut with their hole.
    """
    if not (grants or identity or everything):
        raise click.UsageError("name the grants to close, or give --identity or --all")
    request = {"grants": list(grants), "identity": identity, "all": everything}
    closed = ask(load_config(path), do="close", **request)["closed"]
    note(f"{closed} closed.")
    if not closed:
        raise Trouble("nothing to close", f"see: {PROGRAM} holes", exit_code=ExitCode.REFUSED)


@click.command()
@click.pass_obj
def reload(path: Path | None) -> None:
    """Makes the daemon read the policy anew; one that is not sound changes nothing."""
    answer = ask(load_config(path), do="reload")
    note(f"The policy is in force: {answer['roles']} roles.")
