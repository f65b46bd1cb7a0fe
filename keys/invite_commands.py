"""The commands of `spa-keys` about invites, and about the keys that wait for approval."""

import sys
from pathlib import Path
from typing import Final

import click

from keys import invite as invites
from keys import offers, qr
from keys.console import Parsed, note, print_json, say, say_lines
from keys.identity import Identity
from keys.invite import USUAL_EXPIRY, WrittenHost
from keys.names import roles_in_words
from keys.options import (
    EXPIRY,
    IDENTITY,
    PROGRAM,
    ROLE,
    actor,
    as_json_option,
    check_roles,
    control_option,
    database_option,
    host_here,
    now_us,
    tell_daemon,
)
from keys.registry import opened
from keys.when import local_minute, rfc3339
from spa_protocol.keytext import Invite

_WAITING = click.argument("name", metavar="IDENTITY|KEY", shell_complete=offers.waiting)


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-keys invite alice --role dba\n"
    "  spa-keys invite backup --role backup --expires 15m --host db1.example.org\n"
    "  spa-keys invite carol --role ops --approve     she joins, and you approve her key\n"
    "  spa-keys list --invites"
)
@click.argument("name", metavar="IDENTITY", type=IDENTITY)
@click.option("--role", "roles", type=ROLE, multiple=True, help="A role it brings; repeatable.")
@click.option(
    "--expires",
    "expires_at_us",
    type=EXPIRY,
    default=USUAL_EXPIRY,
    show_default=True,
    help="Until when one may join: 24h, 15m, 2027-01-31 or a time by RFC 3339.",
)
@click.option(
    "--approve",
    "needs_approval",
    is_flag=True,
    help="The key that joins waits until you let it in by 'spa-keys approve'.",
)
@click.option(
    "--host",
    metavar="HOST[:PORT]",
    type=Parsed("host", WrittenHost.parse),
    help="Where clients knock.  [default: this host's name, and the port that it listens at]",
)
@click.option(
    "--qr/--no-qr",
    "wants_qr",
    default=None,
    help="Show a QR code as well, or none.  [default: at a terminal]",
)
@as_json_option
@database_option
@control_option
def invite(
    *,
    name: str,
    roles: tuple[str, ...],
    expires_at_us: int,
    needs_approval: bool,
    host: WrittenHost | None,
    wants_qr: bool | None,
    as_json: bool,
    database: Path,
    control: Path,
) -> None:
    """Makes a line by which IDENTITY's machine enrols a key.

    The line is a secret, good for one key: hand it over privately. It is shown once and kept
    nowhere; the registry keeps its public half, with which nobody can join.
    """
    if as_json and wants_qr:
        raise click.UsageError("--json and --qr exclude each other")
    at_us = now_us()
    check_roles(roles)
    server = invites.server_of(host_here(), host)
    max_keys = host_here().max_keys
    with opened(database, create=True, max_keys=max_keys) as registry:
        token = registry.create_invite(
            name,
            roles=roles,
            expires_at_us=expires_at_us,
            needs_approval=needs_approval,
            now_us=at_us,
            actor=actor(),
        )
        all_roles = registry.roles_of(name) | frozenset(roles)
    tell_daemon(control)
    made = server.invite(token)
    invite_id = Identity.from_invite(token).public.key_id
    if as_json:
        print_json(
            {
                "line": made.reveal(),
                "invite": invite_id,
                "identity": name,
                "roles": sorted(roles),
                "needs_approval": needs_approval,
                "expires_at": rfc3339(expires_at_us),
                "host": made.endpoint.host,
                "port": made.endpoint.port,
            }
        )
        return
    say(made.reveal())
    if wants_qr or (wants_qr is None and sys.stdout.isatty()):
        _show_qr(made)
    note(
        f"For {name}, {roles_in_words(all_roles)}; good for one key until "
        f"{local_minute(expires_at_us)}. Its id is {invite_id}."
    )
    note(f"Clients knock at {made.endpoint}; where that is not so, give --host.")
    note(
        "It is a secret: hand it over privately. There: spa-client join -, and paste it (as an "
        "argument it would stay in the shell's history)."
    )
    if needs_approval:
        note(f"The key that joins waits for: {PROGRAM} approve {name}")


@click.command(epilog="\b\nExamples:\n  spa-keys pending\n  spa-keys pending --json | jq .")
@as_json_option
@database_option
def pending(as_json: bool, database: Path) -> None:
    """Lists the keys that joined by an invite and wait to be approved."""
    with opened(database, read_only=True) as registry:
        waiting = registry.waiting()
    if as_json:
        print_json(invites.waiting_json(waiting))
    elif waiting:
        say_lines(invites.waiting_table(waiting))
    else:
        note("No key waits for approval.")


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-keys approve alice\n"
    "  spa-keys approve mfrggz --expires 90d      the one key whose id begins so"
)
@_WAITING
@click.option(
    "--expires",
    "expires_at_us",
    type=EXPIRY,
    help="When the key stops working: 90d, 2027-01-31 or a time by RFC 3339.  [default: never]",
)
@database_option
@control_option
def approve(name: str, expires_at_us: int | None, database: Path, control: Path) -> None:
    """Lets a key knock that joined by an invite and waits.

    In the roles of the invite.
    Compare its id with the one that its owner sees, for whoever had the invite could join.
    """
    at_us = now_us()
    with opened(database) as registry:
        found = registry.approve(name, expires_at_us=expires_at_us, now_us=at_us, actor=actor())
        all_roles = registry.roles_of(found.key.identity)
    until = f"until {local_minute(expires_at_us)}" if expires_at_us is not None else "without end"
    who, key_id = found.key.identity, found.key.key_id
    say(f"{who} may knock with {key_id}, {until}; {roles_in_words(all_roles)}")
    tell_daemon(control)


@click.command(epilog="\b\nExample:\n  spa-keys reject alice")
@_WAITING
@database_option
@control_option
def reject(name: str, database: Path, control: Path) -> None:
    """Turns away a key that joined by an invite and waits. Its invite stays used."""
    with opened(database) as registry:
        found = registry.reject(name, now_us=now_us(), actor=actor())
    say(f"rejected {found.key.key_id} of {found.key.identity}")
    tell_daemon(control)


def _show_qr(made: Invite) -> None:
    """The line as a picture, below the line."""
    is_terminal = sys.stdout.isatty()
    drawn = qr.drawn(made.reveal(), coloured=is_terminal)
    if drawn is None:
        note(f"No QR code: it needs the library segno ({sys.executable} -m pip install segno).")
        return
    try:
        drawn.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        note("No QR code: this terminal's encoding has no blocks to draw it with.")
        return
    click.echo(drawn, color=is_terminal)


COMMANDS: Final = (invite, pending, approve, reject)
