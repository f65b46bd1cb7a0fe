"""`spa-keys`: private keys for whoever knocks, and the registry for whoever lets them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from keys import invite as invites
from keys import (
    invite_commands,
    key_commands,
    keyline,
    listing,
    offers,
    transfer_commands,
)
from keys.console import Parsed, Program, note, print_json, printable, say, say_lines
from keys.keyline import BadLine, Entry, KeyList
from keys.names import roles_in_words
from keys.options import (
    EXPIRY,
    IDENTITY,
    PATH_OR_STDIN,
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
from keys.progress import underway
from keys.registry import Head, Refused, Registry, opened
from keys.when import local_minute, parse_duration
from spa_protocol import __version__, keytext
from spa_protocol.publickey import PublicKey

_USUAL_OVERLAP_S: Final = 7 * 86_400


@click.group(
    PROGRAM,
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 refused, 2 usage, 4 trouble on this side (a key, a file, the "
    "registry).",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def main() -> None:
    """Makes keys, and says who may knock with which.

    \b
    On the machine of whoever knocks:
      spa-keys generate             a private key; prints the line to be enrolled
      spa-keys generate --agent     the same, where an SSH key in ssh-agent signs
      spa-keys mine                 which there are
      spa-keys show                 that line again
      spa-keys rotate               a new key to take its place
    \b
    On the server, as root:
      spa-keys invite alice --role dba      a line by which her own machine makes its key
      spa-keys enroll alice --key 'spa-key AX...' --role dba --expires 90d
      spa-keys list
      spa-keys revoke alice         from now on; what is open closes
    """


for _command in (
    *key_commands.COMMANDS,
    *transfer_commands.COMMANDS,
    *invite_commands.COMMANDS,
):
    main.add_command(_command)


@main.command(
    epilog="\b\nExamples:\n"
    "  spa-keys enroll alice --key 'spa-key AX... alice@laptop' --role dba --expires 90d\n"
    "  spa-keys enroll backup --key-file backup.pub --role backup --expires 2027-01-31\n"
    "  ssh alice@laptop spa-keys show | spa-keys enroll alice --key-file -\n"
    "  spa-keys enroll alice --key 'spa-key BX...' --replaces hafzu4qm --overlap 2d\n"
    "  spa-keys enroll --from people.txt           lines like: alice dba,oncall spa-key AX..."
)
@click.argument("name", metavar="[IDENTITY]", type=IDENTITY, required=False)
@click.option("--key", type=Parsed("key line", keytext.parse_key), help="The line 'spa-key ...'.")
@click.option(
    "--key-file", type=PATH_OR_STDIN, help="The file that holds the line; - reads it from stdin."
)
@click.option(
    "--from",
    "key_list",
    type=PATH_OR_STDIN,
    help="Many at once, all or none: a file of lines 'IDENTITY ROLE,... spa-key ...'. With "
    "IDENTITY, a file of its key lines, which may stand in the comments of authorized_keys.",
)
@click.option("--role", "roles", type=ROLE, multiple=True, help="A role it gets; repeatable.")
@click.option(
    "--expires",
    "expires_at_us",
    type=EXPIRY,
    help="When the key stops working: 90d, 2027-01-31 (as that day begins here) or a time by "
    "RFC 3339.  [default: never]",
)
@click.option(
    "--replaces",
    metavar="KEY",
    shell_complete=offers.identities_and_keys,
    help="The key that this one takes the place of: it ends when this one is first used.",
)
@click.option(
    "--overlap",
    type=Parsed("duration", parse_duration),
    help="For how long the replaced key is good at most: 7d, 12h, 0s.  [default: 7d]",
)
@as_json_option
@database_option
@control_option
def enroll(
    *,
    name: str | None,
    key: tuple[PublicKey, str] | None,
    key_file: Path | None,
    key_list: Path | None,
    roles: tuple[str, ...],
    expires_at_us: int | None,
    replaces: str | None,
    overlap: float | None,
    as_json: bool,
    database: Path,
    control: Path,
) -> None:
    """Lets a key knock as IDENTITY, a person or a job. Enrolling it again renews it.

    An identity may have several keys: one for each device.
    """
    at_us = now_us()
    if key_list is not None and (key or key_file or replaces):
        raise click.UsageError("--from takes the place of --key, --key-file and --replaces")
    if overlap is not None and replaces is None:
        raise click.UsageError("--overlap is for a key that --replaces another")
    overlap_us = round((_USUAL_OVERLAP_S if overlap is None else overlap) * 1_000_000)
    terms = _Terms(roles, expires_at_us, replaces, overlap_us, at_us)
    if key_list is not None:
        listed = keyline.read_list(key_list, name)
    else:
        listed = keyline.of_one(_required(name), *_given_key(key, key_file))
    check_roles({*roles, *(role for entry in listed.entries for role in entry.roles)})
    max_keys = host_here().max_keys
    with opened(database, create=True, max_keys=max_keys) as registry, registry.at_once():
        with (
            registry.within_capacity(at_us),
            underway("enrolled", len(listed.entries)) as progress,
        ):
            for entry in progress.counted(listed.entries):
                _enroll(registry, listed, entry, terms)
        all_roles = registry.identities()
        ending = [] if replaces is None else registry.replaced_by(listed.entries[0].public.key_id)
    if as_json:
        print_json(listing.enrolled_json(listed.entries, all_roles, ending, expires_at_us))
    for entry in () if as_json else listed.entries:
        until, has = _until(expires_at_us), roles_in_words(all_roles[entry.identity])
        say(f"{entry.identity} may knock with {entry.public.key_id}, {until}; {has}")
    for old in () if as_json else ending:
        say(f"{old.key_id} ends when the new key is first used, {_until(old.expires_at_us)}")
    if listed.ssh_keys:
        note(f"Passed over: {listed.ssh_keys} SSH keys, which alone cannot knock.")
    tell_daemon(control)


@main.command(
    "list",
    epilog="\b\nExamples:\n  spa-keys list --all\n  spa-keys list --invites\n"
    "  spa-keys list --json | jq .",
)
@click.option("--identity", "name", type=IDENTITY, help="Only those of this identity.")
@click.option("--all", "with_revoked", is_flag=True, help="The revoked ones as well.")
@click.option("--invites", "of_invites", is_flag=True, help="The invites instead of the keys.")
@as_json_option
@database_option
def list_keys(
    *, name: str | None, with_revoked: bool, of_invites: bool, as_json: bool, database: Path
) -> None:
    """Lists the enrolled keys.

    Whose, in which roles, until when, and when last seen.
    Of a key that is being replaced, by which; both are good until the new one is first used, or
    until the old one expires.

    Or the invites: for whom, in which roles, until when, and which key was enrolled by them.
    """
    at_us = now_us()
    if of_invites:
        _list_invites(name, with_revoked=with_revoked, as_json=as_json, database=database)
        return
    with opened(database, read_only=True) as registry:
        keys = registry.keys() if name is None else registry.keys_of(name)
        roles = registry.identities()
        replacements = registry.replacements()
        broken = registry.broken() if name is None else []
    shown = [key for key in keys if with_revoked or key.revoked_at_us is None]
    if as_json:
        print_json(listing.as_json(shown, roles, replacements, at_us))
    elif shown:
        say_lines(listing.as_table(shown, roles, replacements, at_us))
    else:
        note("No key is enrolled." if not keys else "No key but revoked ones; see --all.")
    for row in broken:
        note(f"{PROGRAM}: {row.table} {row.key_id} is passed over: {row.what}")


@main.command(
    epilog="\b\nExamples:\n"
    "  spa-keys revoke alice\n"
    "  spa-keys revoke mfrggz      the one key whose id begins so"
)
@click.argument("name", metavar="IDENTITY|KEY", shell_complete=offers.identities_and_keys)
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_option
@control_option
def revoke(name: str, yes: bool, database: Path, control: Path) -> None:
    """Revokes a key, or all keys and invites of an identity.

    At once and for good: holes that are open by them close. The identity keeps its roles for a new
    key. Of a key that was rotated before, what it began ends, though the new key may go on. At a
    terminal it asks before it takes more than one.
    """
    with opened(database) as registry:
        heads = registry.revocable(name)
        if not yes and name in {head.identity for head in heads} and sys.stdin.isatty():
            _confirm(name, heads)
        taken = registry.revoke(name, now_us=now_us(), actor=actor())
    for head in taken:
        say(f"revoked {head.kind} {head.key_id} of {printable(head.identity)}")
    if not tell_daemon(control):
        note(f"No daemon was reached at {control}: open holes close when it starts.")


@main.command(epilog="\b\nExample:\n  spa-keys grant alice dba oncall")
@click.argument("name", metavar="IDENTITY", type=IDENTITY)
@click.argument("roles", metavar="ROLE...", type=ROLE, nargs=-1, required=True)
@database_option
@control_option
def grant(name: str, roles: tuple[str, ...], database: Path, control: Path) -> None:
    """Gives roles to an identity. What a role allows is said in the policy."""
    check_roles(roles)
    with opened(database) as registry:
        now_has = registry.grant(name, roles, now_us=now_us(), actor=actor())
    say(f"{name}: {roles_in_words(now_has)}")
    tell_daemon(control)


@main.command(epilog="\b\nExample:\n  spa-keys ungrant alice oncall")
@click.argument("name", metavar="IDENTITY", type=IDENTITY)
@click.argument("roles", metavar="ROLE...", nargs=-1, required=True, shell_complete=offers.roles)
@database_option
@control_option
def ungrant(name: str, roles: tuple[str, ...], database: Path, control: Path) -> None:
    """Takes roles from an identity."""
    with opened(database) as registry:
        still_has = registry.ungrant(name, roles, now_us=now_us(), actor=actor())
    say(f"{name}: {roles_in_words(still_has)}")
    tell_daemon(control)


@dataclass(frozen=True, slots=True)
class _Terms:
    """How the keys of a command are enrolled."""

    roles: tuple[str, ...]
    expires_at_us: int | None
    replaces: str | None
    overlap_us: int
    at_us: int


def _until(at_us: int | None) -> str:
    return "without end" if at_us is None else f"until {local_minute(at_us)}"


def _required(name: str | None) -> str:
    if name is None:
        raise click.UsageError("missing argument 'IDENTITY', or a list by --from")
    return name


def _given_key(key: tuple[PublicKey, str] | None, file: Path | None) -> tuple[PublicKey, str]:
    if key is not None and file is None:
        return key
    if file is not None and key is None:
        return keyline.read(file)
    raise click.UsageError("give the key by --key or by --key-file")


def _enroll(registry: Registry, listed: KeyList, entry: Entry, terms: _Terms) -> None:
    """Raises Refused; of a list, with the number of the line."""
    try:
        registry.enroll(
            entry.identity,
            entry.public,
            comment=entry.comment,
            roles=(*entry.roles, *terms.roles),
            expires_at_us=terms.expires_at_us,
            replaces=terms.replaces,
            overlap_us=terms.overlap_us,
            now_us=terms.at_us,
            actor=actor(),
        )
    except Refused as refused:
        if listed.where is None:
            raise
        raise BadLine(listed.where, entry.line, refused, refused.exit_code) from None


def _list_invites(name: str | None, *, with_revoked: bool, as_json: bool, database: Path) -> None:
    at_us = now_us()
    with opened(database, read_only=True) as registry:
        found = [i for i in registry.invites() if name in (None, i.identity)]
    shown = [i for i in found if with_revoked or i.revoked_at_us is None]
    if as_json:
        print_json(invites.invites_json(shown, at_us))
    elif shown:
        say_lines(invites.invites_table(shown, at_us))
    else:
        note("No invite was made." if not found else "No invite but revoked ones; see --all.")


def _confirm(name: str, heads: list[Head]) -> None:
    what = "the one key" if len(heads) == 1 else f"all {len(heads)} keys and invites"
    click.confirm(f"Revoke {what} of {printable(name)}?", abort=True, err=True)
