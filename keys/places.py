"""Where things are unless an option or an environment variable says otherwise."""

import os
import sys
from pathlib import Path
from typing import Final

from keys.trouble import Trouble

DATABASE: Final = Path("/var/lib/spa/spa.db")
CONTROL_SOCKET: Final = Path("/run/spa/control.sock")


def configuration_directory() -> Path:
    """The user's own directory for this software: `~/.config/spa`, or where XDG has it.

    Raises Trouble.
    """
    if sys.platform == "win32":
        base = os.environ.get("APPDATA")
        return Path(base) / "spa" if base else _home() / "AppData" / "Roaming" / "spa"
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else _home() / ".config") / "spa"


def _home() -> Path:
    """Raises Trouble for a user whom the system does not know, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        raise Trouble("this user has no home directory", "set HOME, or name the files") from None


def keys_directory() -> Path:
    """Where the user's private keys are, one file each: `NAME.key`."""
    return configuration_directory() / "keys"
