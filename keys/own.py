"""One's own private keys: which there are in the keys directory, and which is meant by no name.

`spa-client join` names a key after its server, so many people have no `default`. A command that is
given no name takes `default` if it is there, else the only key that there is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keys import identity
from keys.table import table
from keys.trouble import ExitCode, Trouble

DEFAULT: Final = "default"
_SUFFIX: Final = ".key"
_ROTATION: Final = (".next", ".old")
_COLUMNS: Final = ("NAME", "KEY", "GUARDED BY", "SIGNED BY", "COMMENT")


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A private key file. Where it cannot be read, `problem` says why and the rest is empty.

    `guard` is `passphrase`, `keyring` (which keeps the passphrase) or `nothing`; `signs` is
    `itself` or `ssh-agent`.
    """

    name: str
    path: Path
    key_id: str = ""
    comment: str = ""
    guard: str = ""
    signs: str = ""
    problem: str = ""


def own_keys(directory: Path) -> list[OwnKey]:
    """Those in a directory, by name; none where it does not exist. Raises Trouble."""
    return [_look(directory / f"{name}{_SUFFIX}") for name in _names(directory)]


def meant(directory: Path, name: str | None) -> str:
    """The key of this name; of none, the one that the head of this file says. Raises Trouble."""
    if name is not None:
        return name
    try:
        names = [each for each in _names(directory) if not each.endswith(_ROTATION)]
    except Trouble:
        return DEFAULT  # whoever opens it says what is the matter
    if DEFAULT in names or not names:
        return DEFAULT
    if len(names) == 1:
        return names[0]
    hint = f"say which: {', '.join(names)}"
    raise Trouble(f"there is no {DEFAULT}{_SUFFIX} in {directory}", hint, exit_code=ExitCode.USAGE)


def as_table(keys: Iterable[OwnKey]) -> str:
    """One line for each key that can be read."""
    return table(
        _COLUMNS,
        [(k.name, k.key_id, k.guard, k.signs, k.comment) for k in keys if not k.problem],
    )


def as_json(keys: Iterable[OwnKey]) -> list[dict[str, Any]]:
    """One object for each key; `problem` is null where it could be read."""
    return [
        {
            "name": key.name,
            "path": str(key.path),
            "key": key.key_id or None,
            "comment": key.comment,
            "guarded_by": key.guard or None,
            "signed_by": key.signs or None,
            "problem": key.problem or None,
        }
        for key in keys
    ]


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.stem for path in directory.iterdir() if path.suffix == _SUFFIX)
    except FileNotFoundError:
        return []
    except OSError as error:
        what = f"{directory} cannot be read: {str(error.strerror).lower()}"
        raise Trouble(what, "name another by --directory") from None


def _look(path: Path) -> OwnKey:
    try:
        found = identity.describe(path)
    except Trouble as problem:
        return OwnKey(path.stem, path, problem=str(problem))
    signs = "ssh-agent" if found.is_in_agent else "itself"
    return OwnKey(path.stem, path, found.public.key_id, found.comment, found.guard, signs)
