"""A key line from a file or a pipe, as the operator was given it."""

import sys
from pathlib import Path
from typing import Final

from keys.keyfile import MAGIC
from keys.trouble import Trouble
from spa_protocol.keytext import BadKeyText, parse_key
from spa_protocol.publickey import PublicKey

_STDIN: Final = Path("-")
_MAX_SIZE: Final = 65_536


def read(path: Path) -> tuple[PublicKey, str]:
    """The one key line of a file, `-` being stdin, and its comment. Raises Trouble and OSError.

    Empty lines and lines that begin with # are passed over.
    """
    where = "stdin" if path == _STDIN else str(path)
    content = _read(path)
    if content.startswith(MAGIC.encode()):
        hint = "enroll the line that 'spa-keys show' prints"
        raise Trouble(f"{where} is a private key, which stays with its owner", hint)
    lines = [line.strip() for line in content.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) != 1:
        raise Trouble(f"{where} has {len(lines)} lines; expected one, 'spa-key <base64> comment'")
    try:
        return parse_key(lines[0])
    except BadKeyText as bad:
        raise Trouble(f"{where}: {bad}") from None


def _read(path: Path) -> bytes:
    if path == _STDIN:
        return sys.stdin.buffer.read(_MAX_SIZE)
    with path.open("rb") as file:
        return file.read(_MAX_SIZE)
