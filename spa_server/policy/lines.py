"""The line that each table of a TOML file begins in, which TOML's own parser does not tell."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Final

# What a bracket or a line's end may stand in, and these themselves; whatever else there is is
# passed over. A string of several lines may end in two quotation marks of its own.
_TOKEN: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^\\"\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[\[\]\n]",
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"\[\[?[ \t]*([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)[ \t]*\]\]?")


def lines_of(text: str) -> dict[str, int]:
    """Line numbers, from 1, by key path: `roles.dba`, `roles.dba.allow[0]`.

    A table that has no header of its own is not in it. The text must be valid TOML.
    """
    lines: dict[str, int] = {}
    arrays: Counter[str] = Counter()
    for number, header in _headers(text.replace("\r\n", "\n")):
        path, is_array = _path(header)
        if is_array:
            arrays[path] += 1
            path = f"{path}[{arrays[path] - 1}]"
        lines[path] = number
    return lines


def _headers(text: str) -> Iterator[tuple[int, str]]:
    """The headers of tables, with their lines' numbers: brackets that nothing stands before."""
    number, line_begin, depth, begin = 1, 0, 0, None
    for token in _TOKEN.finditer(text):
        found = token[0]
        if found == "[":
            if depth == 0 and not text[line_begin : token.start()].strip(" \t"):
                begin = token.start()
            depth += 1
        elif found == "]":
            depth -= 1
            if depth == 0 and begin is not None:
                yield number, text[begin : token.end()]
                begin = None
        elif found[0] != "#":
            number += found.count("\n")
            line_begin = token.end() if found == "\n" else line_begin


def _path(header: str) -> tuple[str, bool]:
    """The key path of a header, and whether it is one of an array's."""
    plain = _PLAIN.fullmatch(header)
    if plain is not None:
        return plain[1], header.startswith("[[")
    value: object = tomllib.loads(header)
    path: list[str] = []
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        path.append(name)
    return ".".join(path), isinstance(value, list)
