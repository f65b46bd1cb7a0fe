"""The commands of `spa-keys` about one's own private keys."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from keys import identity, newkey, own, passphrase, privatefile
from keys.console import Trouble, asker, note, print_json, say, say_lines
from keys.identity import Identity
from keys.newkey import Wanted, new_passphrase
from keys.options import (
    NAME,
    PATH,
    PROGRAM,
    as_json_option,
    directory_option,
    keyring_option,
    new_key_options,
    passphrase_file_option,
    tell,
    wants_passphrase_option,
)
from keys.trouble import ExitCode
from spa_protocol import keytext
from spa_protocol.publickey import PublicKey

_new_name_argument = click.argument("name", type=NAME, default=own.DEFAULT)
_name_argument = click.argument("name", type=NAME, required=False)


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-keys generate\n"
    "  spa-keys generate backup --no-passphrase --comment 'backup job on db1'\n"
    "  spa-keys generate --ssh ~/.ssh/id_ed25519.pub    ssh-agent signs, also by a security key\n"
    "  spa-keys generate --agent                        the same, with a key that it holds\n"
    "  spa-keys generate | ssh root@db1 spa-keys enroll alice --key-file -"
)
@_new_name_argument
@new_key_options
@click.option("--force", is_flag=True, help="Replace the key of this name, for good.")
@click.pass_context
def generate(ctx: click.Context, /, *, name: str, directory: Path, force: bool, **how: Any) -> None:
    """Makes a private key and prints the line to be enrolled.

    The key is NAME.key; the line is for the operator of the server.
    With --ssh or --agent the signing half is an SSH key, which stays in ssh-agent: each knock asks
    the agent, so it must be running and hold the key.
    """
    path = key_path(directory, name)
    if not force and os.path.lexists(path):
        hint = f"show it with '{PROGRAM} show {name}', choose another name, or give --force"
        raise Trouble(f"{path} exists already", hint)
    _make(path, _wanted(ctx, how), overwrite=force)
    note("Give the line above to the operator of the server; it is no secret.")


@click.command(epilog="\b\nExamples:\n  spa-keys show\n  spa-keys show backup --fingerprint")
@_name_argument
@click.option("--fingerprint", is_flag=True, help="Only the key's id, as lists and logs show it.")
@directory_option
def show(name: str | None, fingerprint: bool, directory: Path) -> None:
    """Prints the line of a private key that is to be enrolled.

    It needs no passphrase. Without NAME it is the key called default, else the only one.
    """
    path = key_path(directory, own.meant(directory, name))
    public, comment = identity.load_public(path)
    say(public.key_id if fingerprint else keytext.format_key(public, comment))


@click.command(epilog="\b\nExamples:\n  spa-keys mine\n  spa-keys mine --json | jq -r '.[].path'")
@as_json_option
@directory_option
def mine(as_json: bool, directory: Path) -> None:
    """Lists your own private keys: name, id, and what guards each.

    'spa-client join' makes one for each server, named after it. Which server has which:
    'spa-client hosts'. What a server has enrolled is listed there, by 'spa-keys list'.
    """
    found = own.own_keys(directory)
    if as_json:
        print_json(own.as_json(found))
    elif any(not key.problem for key in found):
        say_lines(own.as_table(found))
    elif not found:
        note(f"No key is in {directory}; make one: {PROGRAM} generate, or spa-client join -")
    for key in found:
        if key.problem:
            note(f"{PROGRAM}: {key.problem}")


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-keys rotate                     makes default.next.key beside default.key\n"
    "  spa-keys enroll alice --key 'spa-key AX...' --replaces hafzu4qmtwhc2yac    on the server\n"
    "  spa-client knock db1 --key default.next\n"
    "  spa-keys rotate --finish            from now on it is default.key"
)
@_name_argument
@click.option("--finish", is_flag=True, help="Put the new key in the place of the old one.")
@new_key_options
@click.pass_context
def rotate(
    ctx: click.Context, /, *, name: str | None, finish: bool, directory: Path, **how: Any
) -> None:
    """Makes a new key to take the place of NAME; prints its line.

    Without NAME it is the key called default, else the only one ('spa-keys mine').

    The new key is NAME.next until --finish; then the old one is NAME.old. A server takes both for
    a while (spa-keys enroll --replaces), and lets go of the old one when the new one is first used.
    """
    name = own.meant(directory, name)
    path, following = key_path(directory, name), key_path(directory, f"{name}.next")
    old, _ = identity.load_public(path)
    if finish:
        _finish(path, following, key_path(directory, f"{name}.old"), old)
        return
    if os.path.lexists(following):
        public, comment = identity.load_public(following)
        say(keytext.format_key(public, comment))
        note(f"The new key was made before: {following}.")
    else:
        _make(following, _wanted(ctx, how), overwrite=False)
    note(f"On each server: {PROGRAM} enroll IDENTITY --key 'the line' --replaces {old.key_id}")
    note(f"Try it: spa-client knock HOST --key {name}.next")
    note(f"When all have it: {PROGRAM} rotate {name} --finish")


@click.command(
    name="passphrase",
    epilog="\b\nExamples:\n"
    "  spa-keys passphrase\n"
    "  spa-keys passphrase --keyring          and it need not be typed again\n"
    "  spa-keys passphrase backup --no-passphrase",
)
@_name_argument
@wants_passphrase_option
@passphrase_file_option
@click.option(
    "--new-passphrase-file",
    "new_file",
    type=PATH,
    help="Take the new passphrase from the first line of this private file, or of a pipe.",
)
@keyring_option
@directory_option
def change_passphrase(
    *,
    name: str | None,
    wants_passphrase: bool | None,
    passphrase_file: Path | None,
    new_file: Path | None,
    wants_keyring: bool,
    directory: Path,
) -> None:
    """Gives a private key another passphrase, or none. The key itself stays the same.

    --passphrase-file is for the passphrase that it has now. Without --keyring, the system's keyring
    forgets the one that it had.
    """
    wanted = Wanted(wants_passphrase=wants_passphrase, wants_keyring=wants_keyring)
    if wants_passphrase is False and new_file is not None:
        raise click.UsageError("--no-passphrase and --new-passphrase-file exclude each other")
    path = key_path(directory, own.meant(directory, name))
    ask, file = asker(), passphrase_file
    if ask is None and new_file is None and wants_passphrase is not False:
        hint = "give --no-passphrase or --new-passphrase-file"
        what = "there is no terminal to ask for a passphrase"
        raise Trouble(what, hint, exit_code=ExitCode.USAGE)
    was_in_keyring = identity.is_in_keyring(path)
    known = ask if file is None else lambda _: passphrase.from_file(file)
    opened = identity.load(path, known, tell=tell, use_keyring=file is None)
    chosen = new_passphrase(wants_passphrase, new_file, ask, "New passphrase")
    guard = _save(opened, path, chosen, wanted, overwrite=True)
    if was_in_keyring and not wants_keyring:
        newkey.out_of_keyring(opened.public.key_id, tell)
    note(f"{path} is now guarded by {guard}.")


COMMANDS: Final = (generate, mine, show, rotate, change_passphrase)


def key_path(directory: Path, name: str) -> Path:
    """Where the key of a name is."""
    return directory / f"{name}.key"


def _wanted(ctx: click.Context, how: dict[str, Any]) -> Wanted:
    """A passphrase file of the environment is none, where there shall be no passphrase."""
    source = ctx.get_parameter_source("passphrase_file")
    if how["wants_passphrase"] is False and source is ParameterSource.COMMANDLINE:
        raise click.UsageError("--no-passphrase and --passphrase-file exclude each other")
    return Wanted(**how)


def _make(path: Path, wanted: Wanted, *, overwrite: bool) -> None:
    """Makes a key, writes it, prints its line, and says where it is."""
    made = newkey.make(wanted, tell, _choose if sys.stdin.isatty() else None)
    chosen = new_passphrase(wanted.wants_passphrase, wanted.passphrase_file, asker())
    guard = _save(made, path, chosen, wanted, overwrite=overwrite)
    say(keytext.format_key(made.public, made.comment))
    what = "The private key" if not made.is_in_agent else "ssh-agent signs; the rest of the key"
    note(f"{what} is in {path}, guarded by {guard}.")


def _save(
    made: Identity, path: Path, chosen: str | None, wanted: Wanted, *, overwrite: bool
) -> str:
    """Writes the key file; returns in words what guards it."""
    key_id = made.public.key_id
    if wanted.wants_keyring and not chosen:
        hint = "give one, or leave --keyring out"
        raise Trouble("there is no passphrase that the keyring could keep", hint)
    in_keyring = (
        wanted.wants_keyring and chosen is not None and newkey.in_keyring(key_id, chosen, tell)
    )
    identity.save(made, path, chosen, in_keyring=in_keyring, overwrite=overwrite)
    if not chosen:
        return "its file alone, for it has no passphrase"
    return "its passphrase, which the system's keyring keeps" if in_keyring else "its passphrase"


def _choose(lines: Sequence[str]) -> int:
    note("ssh-agent holds several keys that can knock:")
    for number, line in enumerate(lines, start=1):
        note(f"  {number}  {line}")
    chosen: int = click.prompt("Which one", type=click.IntRange(1, len(lines)), err=True)
    return chosen - 1


def _finish(path: Path, following: Path, former: Path, old: PublicKey) -> None:
    if not os.path.lexists(following):
        raise Trouble(f"there is no {following}", f"make it with '{PROGRAM} rotate'")
    new, _ = identity.load_public(following)
    privatefile.write(former, privatefile.read(path), overwrite=True)
    following.replace(path)
    say(f"{path} is now {new.key_id}")
    note(f"The key before it, {old.key_id}, is in {former}; delete it when no server needs it.")
