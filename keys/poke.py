"""Telling a running daemon that the registry has changed, so that it looks at once.

The daemon also looks by itself before each decision. What the poke brings forward is the closing of
holes: those of a key that was revoked close now, not at the next knock.
"""

import json
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keys.answerline import connect, read_line

_REQUEST: Final = b'{"do": "reload-keys"}\n'
_MAX_ANSWER: Final = 65_536
TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Poked:
    """What came of it: no daemon runs here, or it was told, or it could not be (`problem`)."""

    is_running: bool
    problem: str = ""

    @property
    def is_told(self) -> bool:
        """Whether the daemon has read the registry again."""
        return self.is_running and not self.problem


def poke(control: Path, timeout_s: float = TIMEOUT_S) -> Poked:
    """Sends `reload-keys` to the daemon's control socket and waits for its answer."""
    try:
        return _judge(_exchange(control, timeout_s))
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return Poked(is_running=False)
    except TimeoutError:
        return Poked(is_running=True, problem=f"no answer in {timeout_s:g} s")
    except OSError as error:
        return Poked(is_running=True, problem=(error.strerror or str(error)).lower())


def _exchange(control: Path, timeout_s: float) -> bytes:
    if sys.platform == "win32":
        raise FileNotFoundError(control)
    with socket.socket(socket.AF_UNIX) as connection:
        connect(connection, control, timeout_s)
        connection.sendall(_REQUEST)
        return read_line(connection, _MAX_ANSWER, timeout_s)


def _judge(line: bytes) -> Poked:
    try:
        answer = json.loads(line)
        problem = "" if answer["ok"] is True else str(answer["error"])
    except (ValueError, KeyError, TypeError):
        problem = "its answer makes no sense"
    return Poked(is_running=True, problem=problem)
