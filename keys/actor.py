"""Who acts: for the record of what an operator did to a host.

What a program says of itself is one thing, and what the kernel says of it another. Of a request to
a daemon `uid` is the kernel's word (SO_PEERCRED); name and terminal are what the program said.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from keys.newkey import user_name
from keys.text import clean_comment

SUDO_VARIABLE: Final = "SUDO_USER"
_TERMINAL: Final = 2  # stderr: the one that is seldom sent elsewhere


@dataclass(frozen=True, slots=True)
class Actor:
    """A user by number and name, whoever is behind it by sudo in its name, and the terminal.

    `uid` None: the system has no such numbers. `tty` is empty where there is no terminal.
    """

    name: str
    uid: int | None = None
    tty: str = ""

    @classmethod
    def here(cls) -> "Actor":
        """Who runs this program. Root's sudo says by whom; nobody can check that any more."""
        behind = os.environ.get(SUDO_VARIABLE, "")
        name = clean_comment(f"{user_name()} (sudo by {behind})" if behind else user_name())
        return cls(name, None if sys.platform == "win32" else os.geteuid(), _tty())

    @classmethod
    def of_request(cls, said: object, uid: int) -> "Actor":
        """Whoever sent a request, by the kernel's word and by what the program said of itself."""
        claims: Mapping[str, Any] = said if isinstance(said, dict) else {}
        name = clean_comment(str(claims.get("actor", ""))) or f"uid {uid}"
        return cls(name, uid, clean_comment(str(claims.get("tty", ""))))

    @property
    def detail(self) -> dict[str, Any]:
        """As it stands in the record, and in a request."""
        detail: dict[str, Any] = {"actor": self.name}
        if self.uid is not None:
            detail["uid"] = self.uid
        if self.tty:
            detail["tty"] = self.tty
        return detail


def _tty() -> str:
    try:
        return clean_comment(os.ttyname(_TERMINAL))
    except (OSError, AttributeError):  # no terminal; no such function on this system
        return ""
