"""Where passphrases come from: a person at the terminal, or a private file. Never an argument."""

from collections.abc import Callable
from pathlib import Path

from keys import privatefile
from keys.privatefile import KeyFileError
from keys.trouble import Trouble

Ask = Callable[[str], str]


def from_file(path: Path) -> str:
    """The first line of a private file, or of a pipe. Raises KeyFileError."""
    try:
        text = privatefile.read(path).decode()
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} holds no passphrase: it is not UTF-8") from None
    line = text.partition("\n")[0].removesuffix("\r")
    if not line:
        raise KeyFileError(f"{path} holds no passphrase: its first line is empty")
    return line


def asked_twice(ask: Ask, *, may_be_empty: bool, what: str = "Passphrase") -> str | None:
    """A new passphrase, the same both times; None where it was left empty. Raises Trouble.

    `what` is what the question calls it.
    """
    first = ask(f"{what} (empty for none): " if may_be_empty else f"{what}: ")
    if not first and may_be_empty:
        return None
    if not first:
        raise Trouble("the passphrase is empty", "for a key without one, give --no-passphrase")
    if ask("The same again: ") != first:
        raise Trouble("the two passphrases differ", "try again")
    return first
