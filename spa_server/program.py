"""What is called `spa-server` on the PATH, also where only the client was installed.

There is one package for both sides, so the client alone has this program too, without the libraries
that it needs: whoever calls it is told so.
"""

import sys
from typing import Final

from keys.trouble import ExitCode

_OURS: Final = ("spa_server", "spa_client", "spa_protocol", "keys")


def main() -> None:
    """Runs the program."""
    try:
        from spa_server.cli import main as run  # noqa: PLC0415 - what it needs may not be there
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        sys.exit(_without(error.name))
    run()


def _without(library: str) -> int:
    what = f"this is an installation of the client alone: {library} is missing"
    hint = "on a host to be guarded: pip install '.[server]'"
    print(f"spa-server: {what}; {hint}", file=sys.stderr)
    return ExitCode.TROUBLE
