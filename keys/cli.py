"""`spa-keys`: private keys for whoever knocks, and the registry for whoever lets them."""

import getpass
import os
import platform
import sys
import time
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from keys import identity, keyline, listing, passphrase, places
from keys.console import ExitCode, Parsed, Program, Trouble, asker, note, print_json, printable, say
from keys.names import identity_name, key_name, role_name
from keys.poke import poke
from keys.registry import Head, opened
from keys.text import clean_comment
from keys.when import BadTime, local_minute, parse_expiry
from spa_protocol import __version__, keytext
from spa_protocol.publickey import PublicKey

if sys.platform != "win32":
    import pwd

PROGRAM: Final = "spa-keys"

_IDENTITY: Final = Parsed("identity", identity_name)
_ROLE: Final = Parsed("role", role_name)
_NAME: Final = Parsed("name", key_name)
_PATH: Final = click.Path(path_type=Path, readable=False)

_directory: Final = click.option(
    "--directory",
    type=_PATH,
    envvar="SPA_KEYS_DIR",
    default=places.keys_directory,
    show_default="~/.config/spa/keys",
    show_envvar=True,
    help="Where your private keys are.",
)
_database: Final = click.option(
    "--database",
    type=_PATH,
    envvar="SPA_DATABASE",
    default=places.DATABASE,
    show_default=True,
    show_envvar=True,
    help="The registry's file.",
)
_control: Final = click.option(
    "--control",
    type=_PATH,
    envvar="SPA_CONTROL",
    default=places.CONTROL_SOCKET,
    show_default=True,
    show_envvar=True,
    help="The socket of the daemon, which is told at once.",
)


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
      spa-keys show                 that line again
    \b
    On the server, as root:
      spa-keys enroll alice --key 'spa-key AX...' --role dba --expires 90d
      spa-keys list
      spa-keys revoke alice         from now on; what is open closes
    """


@main.command(
    epilog="\b\nExamples:\n"
    "  spa-keys generate\n"
    "  spa-keys generate backup --no-passphrase --comment 'backup job on db1'\n"
    "  spa-keys generate | ssh root@db1 spa-keys enroll alice --key-file -"
)
@click.argument("name", type=_NAME, default="default")
@click.option("--comment", help="What the key is called in lists.  [default: user@host]")
@click.option(
    "--passphrase/--no-passphrase",
    "wants_passphrase",
    default=None,
    help="Insist on a passphrase, or on none.  [default: ask, and take an empty answer for none]",
)
@click.option(
    "--passphrase-file",
    type=_PATH,
    envvar="SPA_PASSPHRASE_FILE",
    show_envvar=True,
    help="Take the passphrase from the first line of this private file, or of a pipe.",
)
@_directory
@click.option("--force", is_flag=True, help="Replace the key of this name, for good.")
@click.pass_context
def generate(
    ctx: click.Context,
    *,
    name: str,
    comment: str | None,
    wants_passphrase: bool | None,
    passphrase_file: Path | None,
    directory: Path,
    force: bool,
) -> None:
    """Makes a private key, NAME.key, and prints the line to be enrolled on the server."""
    path = _key_path(directory, name)
    if not force and os.path.lexists(path):
        hint = f"show it with '{PROGRAM} show {name}', choose another name, or give --force"
        raise Trouble(f"{path} exists already", hint)
    source = ctx.get_parameter_source("passphrase_file")
    if wants_passphrase is False and source is ParameterSource.COMMANDLINE:
        raise click.UsageError("--no-passphrase and --passphrase-file exclude each other")
    chosen = _new_passphrase(wants_passphrase, passphrase_file)
    made = identity.generate(comment if comment is not None else _here())
    identity.save(made, path, chosen, overwrite=force)
    say(keytext.format_key(made.public, made.comment))
    guard = "its passphrase" if chosen else "its file alone, for it has no passphrase"
    note(f"The private key is in {path}, guarded by {guard}.")
    note("Give the line above to the operator of the server; it is no secret.")


@main.command(epilog="\b\nExamples:\n  spa-keys show\n  spa-keys show backup --fingerprint")
@click.argument("name", type=_NAME, default="default")
@click.option("--fingerprint", is_flag=True, help="Only the key's id, as lists and logs show it.")
@_directory
def show(name: str, fingerprint: bool, directory: Path) -> None:
    """Prints the line of a private key that is to be enrolled. It needs no passphrase."""
    public, comment = identity.load_public(_key_path(directory, name))
    say(public.key_id if fingerprint else keytext.format_key(public, comment))


@main.command(
    epilog="\b\nExamples:\n"
    "  spa-keys enroll alice --key 'spa-key AX... alice@laptop' --role dba --expires 90d\n"
    "  spa-keys enroll backup --key-file backup.pub --role backup --expires 2027-01-31\n"
    "  ssh alice@laptop spa-keys show | spa-keys enroll alice --key-file -"
)
@click.argument("name", metavar="IDENTITY", type=_IDENTITY)
@click.option("--key", type=Parsed("key line", keytext.parse_key), help="The line 'spa-key ...'.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, readable=False, allow_dash=True),
    help="The file that holds the line; - reads it from stdin.",
)
@click.option("--role", "roles", type=_ROLE, multiple=True, help="A role it gets; repeatable.")
@click.option(
    "--expires",
    help="When the key stops working: 90d, 2027-01-31 (as that day begins here) or a time by "
    "RFC 3339.  [default: never]",
)
@_database
@_control
def enroll(
    *,
    name: str,
    key: tuple[PublicKey, str] | None,
    key_file: Path | None,
    roles: tuple[str, ...],
    expires: str | None,
    database: Path,
    control: Path,
) -> None:
    """Lets a key knock as IDENTITY, a person or a job. Enrolling it again renews it."""
    now_us = _now_us()
    expires_at_us = _expiry(expires, now_us)
    public, comment = _given_key(key, key_file)
    with opened(database, create=True) as registry:
        enrolled = registry.enroll(
            name,
            public,
            comment=comment,
            roles=roles,
            expires_at_us=expires_at_us,
            now_us=now_us,
            actor=_actor(),
        )
        all_roles = registry.roles_of(name)
    until = f"until {local_minute(expires_at_us)}" if expires_at_us is not None else "without end"
    say(f"{name} may knock with {enrolled.key_id}, {until}; {_roles_in_words(all_roles)}")
    _tell_daemon(control)


@main.command("list", epilog="\b\nExamples:\n  spa-keys list --all\n  spa-keys list --json | jq .")
@click.option("--identity", "name", type=_IDENTITY, help="Only the keys of this identity.")
@click.option("--all", "with_revoked", is_flag=True, help="The revoked keys as well.")
@click.option("--json", "as_json", is_flag=True, help="For programs: times in UTC, all fields.")
@_database
def list_keys(name: str | None, with_revoked: bool, as_json: bool, database: Path) -> None:
    """Lists the enrolled keys: whose, in which roles, until when, and when last seen."""
    now_us = _now_us()
    with opened(database, read_only=True) as registry:
        keys = registry.keys() if name is None else registry.keys_of(name)
        roles = registry.identities()
        broken = registry.broken() if name is None else []
    shown = [key for key in keys if with_revoked or key.revoked_at_us is None]
    if as_json:
        print_json(listing.as_json(shown, roles, now_us))
    elif shown:
        click.echo(listing.as_table(shown, roles, now_us))
    else:
        note("No key is enrolled." if not keys else "No key but revoked ones; see --all.")
    for row in broken:
        note(f"{PROGRAM}: {row.table} {row.key_id} is passed over: {row.what}")


@main.command(
    epilog="\b\nExamples:\n"
    "  spa-keys revoke alice\n"
    "  spa-keys revoke mfrggz      the one key whose id begins so"
)
@click.argument("name", metavar="IDENTITY|KEY")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_database
@_control
def revoke(name: str, yes: bool, database: Path, control: Path) -> None:
    """Revokes a key, or all keys and invites of an identity, at once and for good.

    Holes that are open by them close. The identity keeps its roles for a new key. At a terminal
    it asks before it takes more than one.
    """
    with opened(database) as registry:
        heads = registry.revocable(name)
        if not yes and name in {head.identity for head in heads} and sys.stdin.isatty():
            _confirm(name, heads)
        taken = registry.revoke(name, now_us=_now_us(), actor=_actor())
    for key_id in taken:
        say(f"revoked {key_id}")
    if not _tell_daemon(control):
        note(f"No daemon was reached at {control}: open holes close when it starts.")


@main.command(epilog="\b\nExample:\n  spa-keys grant alice dba oncall")
@click.argument("name", metavar="IDENTITY", type=_IDENTITY)
@click.argument("roles", metavar="ROLE...", type=_ROLE, nargs=-1, required=True)
@_database
@_control
def grant(name: str, roles: tuple[str, ...], database: Path, control: Path) -> None:
    """Gives roles to an identity. What a role allows is said in the policy."""
    with opened(database) as registry:
        now_has = registry.grant(name, roles, now_us=_now_us(), actor=_actor())
    say(f"{name}: {_roles_in_words(now_has)}")
    _tell_daemon(control)


@main.command(epilog="\b\nExample:\n  spa-keys ungrant alice oncall")
@click.argument("name", metavar="IDENTITY", type=_IDENTITY)
@click.argument("roles", metavar="ROLE...", nargs=-1, required=True)
@_database
@_control
def ungrant(name: str, roles: tuple[str, ...], database: Path, control: Path) -> None:
    """Takes roles from an identity."""
    with opened(database) as registry:
        still_has = registry.ungrant(name, roles, now_us=_now_us(), actor=_actor())
    say(f"{name}: {_roles_in_words(still_has)}")
    _tell_daemon(control)


def _now_us() -> int:
    return time.time_ns() // 1000


def _key_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.key"


def _new_passphrase(wanted: bool | None, file: Path | None) -> str | None:
    if wanted is False:
        return None
    if file is not None:
        return passphrase.from_file(file)
    ask = asker()
    if ask is None:
        hint = "give --no-passphrase or --passphrase-file"
        what = "there is no terminal to ask for a passphrase"
        raise Trouble(what, hint, exit_code=ExitCode.USAGE)
    return passphrase.asked_twice(ask, may_be_empty=wanted is None)


def _given_key(key: tuple[PublicKey, str] | None, file: Path | None) -> tuple[PublicKey, str]:
    if key is not None and file is None:
        return key
    if file is not None and key is None:
        return keyline.read(file)
    raise click.UsageError("give the key by --key or by --key-file")


def _expiry(text: str | None, now_us: int) -> int | None:
    try:
        return None if text is None else parse_expiry(text, now_us)
    except BadTime as bad:
        raise click.BadParameter(str(bad), param_hint="'--expires'") from None


def _confirm(name: str, heads: list[Head]) -> None:
    what = "the one key" if len(heads) == 1 else f"all {len(heads)} keys and invites"
    click.confirm(f"Revoke {what} of {printable(name)}?", abort=True, err=True)


def _tell_daemon(control: Path) -> bool:
    """Whether a daemon runs. One that could not be told notices by itself, a little later."""
    poked = poke(control)
    if poked.problem:
        note(f"The daemon could not be told at once ({poked.problem}); it will notice by itself.")
    return poked.is_running


def _roles_in_words(roles: frozenset[str]) -> str:
    return f"roles {', '.join(sorted(roles))}" if roles else "no role, so nothing is allowed"


def _user() -> str:
    """Who runs this, by the system's own word; the environment is not asked."""
    if sys.platform != "win32":
        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            return f"uid {os.geteuid()}"
    return getpass.getuser()


def _actor() -> str:
    """Who changes the registry, for its record."""
    behind = os.environ.get("SUDO_USER", "")
    return clean_comment(f"{_user()} (sudo by {behind})" if behind else _user())


def _here() -> str:
    """The comment of a key where none is given."""
    return f"{_user()}@{platform.node() or 'localhost'}"
