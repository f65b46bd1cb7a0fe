"""An export: the configuration and the private keys of one person, in one file for a new machine.

It is a key file of the kind `export` (keys/keyfile.py), sealed with a passphrase of its own by
Argon2id. Its secret is JSON: the text of `config.toml`, and each key file as it is, so one that has
a passphrase keeps it:

    {"config": "key = ...", "keys": {"default": "spa-private-key 1 client ..."}}

What comes out of an export is believed no further than any file: names are names, keys are whole.
"""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from keys import keyfile, privatefile, tomlfile
from keys.keyfile import KeyFile, Kind, Torn
from keys.names import BadName, key_name
from keys.passphrase import Ask
from keys.privatefile import KeyFileError
from keys.readfile import read_file
from keys.trouble import Trouble

_NOTHING_SIGNS: Final = "none"
_SUFFIX: Final = ".key"


class _Content(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    config: str | None
    keys: dict[str, str]


@dataclass(frozen=True, slots=True)
class Export:
    """What is carried over. `keys` are the contents of key files by the names of the keys."""

    config: str | None
    keys: dict[str, bytes] = field(repr=False)

    def __bytes__(self) -> bytes:
        texts = {name: content.decode() for name, content in self.keys.items()}
        return msgspec.json.encode(_Content(self.config, texts))

    @classmethod
    def parse(cls, content: bytes) -> "Export":
        """The inverse of `bytes()`. Raises Torn."""
        try:
            decoded = msgspec.json.decode(content, type=_Content)
            keys = {key_name(name): text.encode() for name, text in decoded.keys.items()}
            for key in keys.values():
                _check_key(key)
        except (msgspec.MsgspecError, BadName, KeyFileError, UnicodeEncodeError) as error:
            raise Torn(str(error)) from None
        return cls(decoded.config, keys)


def collect(directory: Path, config: Path, names: Sequence[str]) -> Export:
    """What there is to export: the configuration, if any, and these keys, or all of them.

    Raises Trouble for a key that is missing or damaged.
    """
    found = names or sorted(path.name.removesuffix(_SUFFIX) for path in _key_files(directory))
    keys = {}
    for name in found:
        path = directory / f"{key_name(name)}{_SUFFIX}"
        keyfile.load(path, Kind.CLIENT)
        keys[name] = privatefile.read(path)
    export = Export(tomlfile.read_text(config), keys)
    if export.config is None and not keys:
        hint = "make a key with 'spa-keys generate'"
        raise Trouble(f"there is nothing to export: no key in {directory}, no {config}", hint)
    return export


def elsewhere(config: str | None) -> list[str]:
    """The keys that a configuration names by a path: those are in no export."""
    try:
        table = tomllib.loads(config or "")
    except tomllib.TOMLDecodeError:
        return []
    hosts = table.get("hosts", {})
    tables: list[Any] = [table, *(hosts.values() if isinstance(hosts, dict) else ())]
    written = [each.get("key") for each in tables if isinstance(each, dict)]
    return [key for key in dict.fromkeys(written) if isinstance(key, str) and not _is_name(key)]


def save(export: Export, path: Path, comment: str, passphrase: str) -> None:
    """Writes the export, mode 0600, whole or not at all; never over a file. Raises KeyFileError."""
    file = keyfile.seal_file(
        Kind.EXPORT,
        comment=comment,
        public=b"",
        signing=_NOTHING_SIGNS,
        secret=bytes(export),
        passphrase=passphrase,
    )
    content = bytes(file)
    if len(content) > privatefile.MAX_SIZE:
        size = f"{len(content) // 1024} KiB, and {privatefile.MAX_SIZE // 1024} KiB is the most"
        raise KeyFileError(f"the export would take {size}", "export fewer keys, with --key")
    privatefile.write(path, content)


def load(path: Path, ask: Ask | None) -> Export:
    """The export in a file. Raises KeyFileError; `ask` is for its passphrase."""
    file = keyfile.load(path, Kind.EXPORT)
    if file.kdf is None:
        raise keyfile.damaged(path, "an export without a passphrase")
    try:
        return Export.parse(keyfile.open_secret(path, file, None, ask))
    except Torn as torn:
        raise keyfile.damaged(path, str(torn)) from None


@dataclass(frozen=True, slots=True)
class File:
    """One file to be written; `is_there` says that it is, as it should be."""

    path: Path
    content: bytes = field(repr=False)
    is_there: bool


def unpack(export: Export, directory: Path, config: Path, *, overwrite: bool) -> list[File]:
    """Writes what is not there yet: all of it, or nothing where something else is in its place.

    With `overwrite` that is replaced. Raises Trouble.
    """
    wanted = {directory / f"{name}{_SUFFIX}": key for name, key in export.keys.items()}
    if export.config is not None:
        wanted[config] = export.config.encode()
    files = [File(path, content, _holds(path, content)) for path, content in wanted.items()]
    in_the_way = [str(each.path) for each in files if not each.is_there and each.path.exists()]
    if in_the_way and not overwrite:
        what = f"{', '.join(in_the_way)} would be replaced by another"
        raise Trouble(what, "move it away, or give --force")
    for each in files:
        if not each.is_there:
            privatefile.write(each.path, each.content, overwrite=overwrite)
    return files


def _holds(path: Path, content: bytes) -> bool:
    try:
        return read_file(path) == content
    except FileNotFoundError:
        return False


def _key_files(directory: Path) -> Iterable[Path]:
    return (path for path in directory.glob(f"*{_SUFFIX}") if _is_name(path.stem))


def _is_name(written: str) -> bool:
    try:
        key_name(written)
    except BadName:
        return False
    return not written.endswith(_SUFFIX)


def _check_key(content: bytes) -> None:
    """Raises Torn and KeyFileError."""
    if KeyFile.parse(content).kind is not Kind.CLIENT:
        raise Torn("a key that is no client's")
