"""The line that each table of a TOML file begins in, which TOML's own parser does not tell."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Final

_HEADER: Final = re.compile(r"[ \t]*\[.*\][ \t]*(#.*)?")


def lines_of(text: str) -> dict[str, int]:
    """Line numbers, from 1, by key path: `roles.dba`, `roles.dba.allow[0]`.

    A table that has no header of its own is not in it. The text must be valid TOML.
    """
    lines: dict[str, int] = {}
    arrays: Counter[str] = Counter()
    for number, header in _headers(text):
        path, is_array = _path(header)
        if is_array:
            arrays[path] += 1
            path = f"{path}[{arrays[path] - 1}]"
        lines[path] = number
    return lines


def _headers(text: str) -> Iterator[tuple[int, str]]:
    """The lines that begin a table, with their numbers.

    What looks like one may stand in a string or a list of several lines: then what is above it,
    from the last header on, is no TOML yet.
    """
    above: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if _HEADER.fullmatch(line) and _is_whole("\n".join(above)) and _is_whole(line):
            yield number, line
            above = []
        above.append(line)


def _is_whole(text: str) -> bool:
    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True


def _path(header: str) -> tuple[str, bool]:
    """The key path of a header, and whether it is one of an array's."""
    value: object = tomllib.loads(header)
    path: list[str] = []
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        path.append(name)
    return ".".join(path), isinstance(value, list)
