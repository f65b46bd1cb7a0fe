"""What is asked of whoever makes a key: a passphrase or none, and what the key is called."""

import getpass
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keys import identity, passphrase
from keys.identity import Identity
from keys.passphrase import Ask
from keys.trouble import ExitCode, Trouble

if TYPE_CHECKING:
    from keys.agent import Tell
    from keys.agentkey import Choose

if sys.platform != "win32":
    import pwd


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options say of a key that is to be made.

    `ssh` is the file of an SSH public key that shall sign, `from_agent` takes one of ssh-agent's;
    `wants_passphrase` None leaves it to whoever is asked. Raises Trouble for what excludes itself.
    """

    comment: str | None = None
    ssh: Path | None = None
    from_agent: bool = False
    wants_passphrase: bool | None = None
    passphrase_file: Path | None = None
    wants_keyring: bool = False

    def __post_init__(self) -> None:
        if self.ssh is not None and self.from_agent:
            raise _exclude("--ssh", "--agent")
        if self.wants_passphrase is False and self.wants_keyring:
            raise _exclude("--no-passphrase", "--keyring")


def make(wanted: Wanted, tell: "Tell", choose: "Choose | None") -> Identity:
    """The key, which nothing has been written of. Raises Trouble and OSError.

    `tell` is told what ssh-agent waits for; `choose` chooses among its keys.
    """
    comment = usual_comment() if wanted.comment is None else wanted.comment
    if wanted.ssh is None and not wanted.from_agent:
        return identity.generate(comment)
    from keys import agentkey  # noqa: PLC0415 - most keys never need it

    if wanted.ssh is not None:
        return agentkey.of_file(wanted.ssh, comment, tell)
    return agentkey.of_agent(comment, tell, choose)


def new_passphrase(
    wanted: bool | None, file: Path | None, ask: Ask | None, what: str = "Passphrase"
) -> str | None:
    """The passphrase of a new key, or None for none. Raises Trouble.

    `wanted` None leaves it to whoever is asked; `file` holds one; `ask` None says that there is no
    terminal; `what` is what the question calls it.
    """
    if wanted is False:
        return None
    if file is not None:
        return passphrase.from_file(file)
    if ask is None:
        hint = "give --no-passphrase or --passphrase-file"
        what = "there is no terminal to ask for a passphrase"
        raise Trouble(what, hint, exit_code=ExitCode.USAGE)
    return passphrase.asked_twice(ask, may_be_empty=wanted is None, what=what)


def in_keyring(key_id: str, passphrase: str, tell: "Tell") -> bool:
    """Puts the passphrase into the system's keyring. Whether it is there; if not, `tell` says."""
    from keys import oskeyring  # noqa: PLC0415 - slow, and most keys never need it

    try:
        oskeyring.keep(key_id, passphrase)
    except oskeyring.NoKeyring as none:
        tell(f"{none}; the passphrase will be asked for")
        return False
    return True


def out_of_keyring(key_id: str, tell: "Tell") -> None:
    """Takes the passphrase out of the system's keyring; where that fails, `tell` says so."""
    from keys import oskeyring  # noqa: PLC0415 - as above

    try:
        oskeyring.forget(key_id)
    except oskeyring.NoKeyring as none:
        tell(f"{none}; it may still keep the former passphrase of {key_id}")


def user_name() -> str:
    """Who runs this, by the system's own word; the environment is not asked."""
    if sys.platform != "win32":
        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            return f"uid {os.geteuid()}"
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # which one, depends on the version of Python
        return "unknown"


def usual_comment() -> str:
    """The comment of a key where none is given: `user@host`."""
    return f"{user_name()}@{platform.node() or 'localhost'}"


def _exclude(one: str, other: str) -> Trouble:
    return Trouble(f"{one} and {other} exclude each other", exit_code=ExitCode.USAGE)
