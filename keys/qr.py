"""A QR code for a terminal, two rows of it in one line of text.

It is painted black on white whatever the terminal's colours are: many cameras read no other.
"""

from collections.abc import Sequence
from typing import Final

_QUIET: Final = 2  # modules of white around it; four by ISO/IEC 18004, of which cameras need two
_BLOCKS: Final = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
_BLACK_ON_WHITE: Final = "\x1b[30;107m"
_PLAIN: Final = "\x1b[0m"


def drawn(text: str, *, coloured: bool) -> str | None:
    """Lines of half blocks, or None where the library segno is not installed.

    Without colours, for a file, black is what is printed.
    """
    try:
        import segno  # noqa: PLC0415  an extra of the server's side, and seldom needed
    except ImportError:
        return None
    code = segno.make(text, error="l", micro=False)
    rows = [list(row) for row in code.matrix_iter(border=_QUIET)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return "\n".join(_line(upper, lower, coloured=coloured) for upper, lower in pairs)


def _line(upper: Sequence[int], lower: Sequence[int], *, coloured: bool) -> str:
    blocks = "".join(_BLOCKS[bool(up), bool(low)] for up, low in zip(upper, lower, strict=True))
    return f"{_BLACK_ON_WHITE}{blocks}{_PLAIN}" if coloured else blocks
