"""Plain tables for a terminal, aligned by blanks."""

import unicodedata
from collections.abc import Iterable, Sequence

from keys.text import printable

_GAP = "  "


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of a heading and one row each, columns as wide as their widest cell.

    Cells are made printable. No line ends in blanks.
    """
    lines = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(width, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        _GAP.join(pad(cell, size) for cell, size in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def width(text: str) -> int:
    """How many columns of a terminal the text takes: wide characters two, combining ones none."""
    return sum(_character_width(c) for c in text) if not text.isascii() else len(text)


def _character_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def pad(text: str, size: int) -> str:
    """The text with blanks behind it, up to this many columns."""
    return text + " " * (size - width(text))
