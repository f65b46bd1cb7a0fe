"""The lines of README.md that are for a shell, so that what is tested is what is written."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

README: Final = Path(__file__).parent.parent.parent / "README.md"
_INDENT: Final = "    "
_NO_SHELL: Final = re.compile(r"^(\[|#|\w+ = |\"\"\")")


@dataclass(frozen=True, slots=True)
class Block:
    """Some lines that stand together under a heading, comments and all."""

    heading: str
    lines: tuple[str, ...]


def blocks(heading: str) -> list[Block]:
    """The blocks of commands under a heading, in order; those of configuration are left out."""
    return [block for block in _blocks(heading) if not _NO_SHELL.match(block.lines[0])]


def configuration(heading: str) -> tuple[str, ...]:
    """The lines of the first block under a heading that is no shell's."""
    return next(block for block in _blocks(heading) if _NO_SHELL.match(block.lines[0])).lines


def _blocks(heading: str) -> list[Block]:
    found: list[list[str]] = []
    is_inside = is_in_block = False
    for line in README.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            is_inside = line == f"## {heading}"
        if not is_inside:
            continue
        if line.startswith(_INDENT):
            if not is_in_block:
                found.append([])
            found[-1].append(line.removeprefix(_INDENT))
        is_in_block = line.startswith(_INDENT) or (is_in_block and not line)
    return [Block(heading, tuple(filter(None, lines))) for lines in found]


def lines(heading: str) -> list[str]:
    """All of its commands, in order."""
    return [line for block in blocks(heading) for line in block.lines]
