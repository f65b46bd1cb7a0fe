"""Where things are unless an option or an environment variable says otherwise."""

import os
import sys
from pathlib import Path
from typing import Final

DATABASE: Final = Path("/var/lib/spa/spa.db")
CONTROL_SOCKET: Final = Path("/run/spa/control.sock")


def configuration_directory() -> Path:
    """The user's own directory for this software: `~/.config/spa`, or where XDG has it."""
    if sys.platform == "win32":
        base = os.environ.get("APPDATA")
        return Path(base) / "spa" if base else Path.home() / "AppData" / "Roaming" / "spa"
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "spa"


def keys_directory() -> Path:
    """Where the user's private keys are, one file each: `NAME.key`."""
    return configuration_directory() / "keys"
