"""Text that others wrote, made safe to show: names, comments, lines of a file."""

from typing import Final

MAX_COMMENT: Final = 200


def printable(text: str) -> str:
    r"""The text with every character that could steer a terminal written as an escape (`\x1b`).

    Control characters, line ends, marks that change the direction of writing and lone surrogates;
    what is left is one line of letters, signs and blanks.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", errors="surrogatepass").decode("ascii")


def clean_comment(text: str) -> str:
    """A comment fit to be kept: one line, single blanks, no control characters, 200 at most."""
    kept = "".join(c for c in text if c.isprintable() or c.isspace())
    return " ".join(kept.split())[:MAX_COMMENT].rstrip()
