"""TOML files into typed values, with errors that name file, key path and what was expected."""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from keys.readfile import read_file
from keys.text import printable
from keys.trouble import Trouble

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_FIELD_NAMED: Final = re.compile(r"(?:unknown|required) field `(.*)`")
_TYPE_NAMED: Final = re.compile(r"`(\w+)(?: \| null)?`")
_NAME_IT: Final = "name the file that you mean"
_TYPES: Final = {
    "str": "text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_S = TypeVar("_S", bound=msgspec.Struct)


class FileProblem(Trouble):
    """A file that cannot be used: `path: key.path: what is wrong; what was expected`."""

    def __init__(self, path: Path, where: str, problem: str, hint: str = "") -> None:
        place = f"{path}: {where.lstrip('.')}" if where else f"{path}"
        super().__init__(printable(f"{place}: {problem}"), hint)


def read(path: Path) -> dict[str, Any]:
    """The file as plain values. Raises FileProblem, also where there is none."""
    text = read_text(path)
    if text is None:
        raise FileProblem(path, "", "no such file or directory", _NAME_IT)
    return parse(text, path)


def read_text(path: Path, *, how: Callable[[Path], bytes] = read_file) -> str | None:
    """The file's text, or None where there is none. Raises FileProblem.

    `how` is read_plain where it lies in another's directory (keys/readfile.py).
    """
    try:
        # Not read as text: there a lone carriage return ends a line, and with it a comment.
        return how(path).decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise FileProblem(path, "", "not a text file in UTF-8", _NAME_IT) from None
    except ValueError as error:  # a NUL in its name
        raise FileProblem(path, "", str(error), _NAME_IT) from None
    except OSError as error:
        hint = (
            "run this as its owner or as root" if isinstance(error, PermissionError) else _NAME_IT
        )
        raise FileProblem(path, "", lower_first(error.strerror or str(error)), hint) from None


def parse(text: str, path: Path) -> dict[str, Any]:
    """TOML as plain values; `path` is for the message. Raises FileProblem."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise FileProblem(path, "", "not TOML: nested too deeply") from None
    except ValueError as error:  # also of a number that has too many digits for Python
        raise FileProblem(path, "", f"not TOML: {lower_first(str(error))}") from None


def convert(value: object, kind: type[_S], path: Path, where: str) -> _S:
    """A plain value as a msgspec struct. Raises FileProblem with the key path of what is wrong."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, inside = str(error).partition(" - at `$")
        at = where + inside.rstrip("`")
        field = _FIELD_NAMED.search(problem)
        if field is None:
            raise FileProblem(path, at, _in_words(problem)) from None
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(kind))
        what = "is missing" if "missing" in problem else f"is not known; expected {known}"
        raise FileProblem(path, f"{at}.{quoted(field[1])}", what) from None


def table(value: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The table under a key, empty when it is not there. Raises FileProblem for anything else."""
    found = value.get(key, {})
    if not isinstance(found, dict):
        raise FileProblem(path, key, f"expected a table, written [{key}]")
    return found


def quoted(name: str) -> str:
    """A key as TOML writes it."""
    return name if _BARE_KEY.fullmatch(name) else string(name)


def string(value: str) -> str:
    """A basic string of TOML, whose escapes are those of JSON."""
    return json.dumps(value, ensure_ascii=False)


def lower_first(sentence: str) -> str:
    """A library's message in the middle of one of ours."""
    return sentence[:1].lower() + sentence[1:]


def _in_words(problem: str) -> str:
    """A message of msgspec's with the types of TOML in words."""
    return lower_first(_TYPE_NAMED.sub(lambda found: _TYPES.get(found[1], found[1]), problem))
