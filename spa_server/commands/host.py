"""`spa-server init`, `run`, and what is asked of a running daemon: status, holes, close, reload."""

from pathlib import Path
from typing import Any

import click

from keys.console import ExitCode, Parsed, Trouble, note, print_json, say, say_lines, table
from keys.invite import WrittenHost
from keys.names import identity_name
from spa_server.commands import offers
from spa_server.commands.common import NOBODY_HEARD, PROGRAM, ask, explained, json_option
from spa_server.commands.gate import observing
from spa_server.config import CONFIG_PATH, load_config
from spa_server.control import DaemonRefused


@click.command(
    epilog="\b\nExamples:\n  spa-server init\n  spa-server init --host db1.example.org",
)
@click.option(
    "--host",
    metavar="HOST[:PORT]",
    type=Parsed("host", WrittenHost.parse),
    help="Where clients knock.  [default: this host's name, and the port of the configuration]",
)
@json_option
@click.pass_obj
def init(path: Path | None, host: WrittenHost | None, as_json: bool) -> None:
    """Makes what a host needs and lacks; prints its clients' line."""
    from spa_server import setup

    made = []
    with explained():
        for each in setup.initialise(path, host):
            made.append(str(each.path))
            if not as_json:
                note(str(each))
    line = str(setup.server_line(path, host))
    if as_json:
        print_json({"server": line, "made": made})
        return
    say(line)
    if host is not None and (named := setup.other_host(path, host)):
        where = path or CONFIG_PATH
        note(f"This line alone: invites go on to name {named}; for good, set host in {where}.")
    if not made:
        note("Everything was there: nothing was changed.")
        return
    note("Next: let somebody in by one line, spa-keys invite NAME --role admin")
    note("or by the line above: there, spa-client add NAME '...'; here, spa-keys enroll.")
    note("Then look at the policy, and: spa-server gate apply --confirm-within 60s")


@click.command("adopt-key")
@click.pass_obj
def adopt_key(path: Path | None) -> None:
    """Says that the server's key is this machine's from now on.

    For a backup that is restored on new hardware, or a machine that has got another machine-id:
    it takes the place of the one that the key came with.
    Not for a copy that runs beside the original: that one needs a key of its own.

    \b
    Examples:
      sudo spa-server adopt-key
      sudo systemctl restart spa-server
    """
    from spa_server.audit import acts
    from spa_server.audit.record import Event
    from spa_server.machine import Mark

    config = load_config(path)
    mark = Mark(config.key)
    mark.write()
    acts.leave(config, Event.KEY_ADOPTED)
    note(f"{config.key} belongs to this machine now, as {mark.path} says.")


@click.command(
    epilog="\b\nExamples:\n  spa-server run\n  spa-server --config ./server.toml run",
)
@click.pass_obj
def run(path: Path | None) -> None:
    """Runs the daemon in the foreground, until SIGTERM or Ctrl-C. SIGHUP reloads the policy.

    The gate must have been put in force before (gate apply). It outlives the daemon: however the
    daemon ends, what is closed stays closed, and open holes close on time.
    """
    from spa_server import daemon
    from spa_server.machine import must_be_here

    config = load_config(path)
    must_be_here(config)
    with explained(config.database):
        daemon.run(config)


@click.command(
    epilog="\b\nExamples:\n  spa-server status\n  spa-server status --json | jq -r .mode",
)
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
        say(f"{name.replace('_', ' '):<20}  {_in_words(value)}")
    observing(everything=answer["mode"] == "observe", accesses=answer["observed"])
    if answer.get("held_back"):
        note(f"NOT AS IN ITS FILE: {answer['held_back']}")
    if answer.get("gate_on_trial"):
        until = answer.get("trial_ends_at") or "its time is over"
        note(f"THE GATE IS ON TRIAL until {until}; to keep it: {PROGRAM} gate confirm")
    if answer.get("nobody_heard_until"):
        note(NOBODY_HEARD.format(answer["nobody_heard_until"]))


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in (None, "") else str(value)


@click.command(
    epilog="\b\nExamples:\n  spa-server holes\n  spa-server holes --json | jq -r '.[].identity'",
)
@json_option
@click.pass_obj
def holes(path: Path | None, as_json: bool) -> None:
    """The holes that are open: whose, from where, to what.

    A hole that several grants hold is one row with all of them; --json has each grant.
    """
    found = ask(load_config(path), do="holes")["holes"]
    if as_json:
        print_json(found)
        return
    held: dict[tuple[str, str, str, bool], list[dict[str, Any]]] = {}
    for grant in found:
        hole = (grant["source"], grant["target"], grant["access"], grant["once"])
        held.setdefault(hole, []).append(grant)
    rows = [
        (
            ", ".join(str(grant["grant"]) for grant in grants),
            ", ".join(dict.fromkeys(grant["identity"] for grant in grants)),
            *hole[:3],
            _left(grants),
        )
        for hole, grants in held.items()
    ]
    if not rows:
        note("No hole is open.")
        return
    say_lines(table(("GRANT", "IDENTITY", "SOURCE", "TARGET", "ACCESS", "LEFT"), rows))


def _left(grants: list[dict[str, Any]]) -> str:
    """A hole is open for as long as its longest grant."""
    open_s = [grant["remaining_s"] for grant in grants if grant["open"]]
    return f"{max(open_s):.0f} s" if open_s else "used"


@click.command(
    "close",
    epilog="\b\nExamples:\n"
    "  spa-server close 17 18          grants, as 'spa-server holes' numbers them\n"
    "  spa-server close --identity alice",
)
@click.argument("grants", nargs=-1, type=int, shell_complete=offers.grants)
@click.option(
    "--identity",
    type=Parsed("identity", identity_name, offers.identities),
    help="All of this identity's.",
)
@click.option("--all", "everything", is_flag=True, help="All there are.")
@json_option
@click.pass_obj
def close(
    path: Path | None,
    grants: tuple[int, ...],
    identity: str | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Closes holes before their time, by the numbers of 'holes'.

    Sessions live on, except those of services whose sessions are cut with their hole.
    """
    if not (grants or identity or everything):
        raise click.UsageError("name the grants to close, or give --identity or --all")
    request = {"grants": list(grants), "identity": identity, "all": everything}
    closed = ask(load_config(path), do="close", **request)["closed"]
    if as_json:
        print_json({"closed": closed})
    elif closed:
        note(f"{closed} closed.")
    if not closed:
        raise Trouble("nothing to close", f"see: {PROGRAM} holes", exit_code=ExitCode.REFUSED)


@click.command(
    epilog="\b\nExample:\n  spa-server policy test && spa-server reload",
)
@click.pass_obj
def reload(path: Path | None) -> None:
    """Has the daemon read the policy anew.

    One that is not sound changes nothing.
    """
    try:
        answer = ask(load_config(path), do="reload")
    except DaemonRefused as refused:
        raise Trouble(refused.message, "the policy in force stays") from None
    note(f"The policy is in force: {answer['roles']} roles.")
