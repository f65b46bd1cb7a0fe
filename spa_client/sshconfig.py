"""The lines of ssh_config(5) by which ssh knocks by itself.

    Host db1 db1.internal
        ProxyCommand spa-client connect %h %p

A host is named as the configuration names it, by its address, and by the first label of either
(`db1` of `db1.internal`), where that is its alone: whichever ssh is called with, `connect` finds
it. A first label for which a person has a block of their own is left to that. What could mean
something else in ssh_config, a pattern for one, is left out.
"""

import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from spa_client.config import Host, plain_name

PROGRAM: Final = "spa-client"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]*")


def block(
    host: Host, known: Iterable[Host], command: str, taken: Collection[str] = ()
) -> str | None:
    """The lines of one host among those that are known; None where no name can stand there.

    `taken` are the names of the blocks that a person has written.
    """
    names = [name for name in _names(host, list(known), taken) if _PLAIN.fullmatch(name)]
    if not names:
        return None
    return f"Host {' '.join(names)}\n    ProxyCommand {command}"


def _names(host: Host, known: Sequence[Host], taken: Collection[str]) -> list[str]:
    """What `Config.find` takes for this host and no other."""
    uses = Counter(name for each in known for name in each.found_by)
    short_uses = Counter(name for each in known for name in each.short_names)
    own = [a for a in (host.address, host.server.endpoint.host) if uses[plain_name(a)] == 1]
    short = [
        name
        for name in sorted(host.short_names)
        if short_uses[name] == 1 and name not in uses and name not in taken
    ]
    return list(dict.fromkeys([host.name, *own, *short]))


def proxy_command(options: Sequence[str]) -> str:
    """The command with these options; percent signs are doubled, as ssh wants them."""
    words = [_program(), "connect", *options]
    return " ".join([*(_quoted(word) for word in words), "%h", "%p"])


def _program() -> str:
    """The program's name where the shell finds it by that, else its path."""
    if shutil.which(PROGRAM) is not None:
        return PROGRAM
    here = Path(sys.argv[0])
    return str(here.absolute()) if here.stem == PROGRAM and here.exists() else PROGRAM


def _quoted(word: str) -> str:
    escaped = word.replace("%", "%%")
    if sys.platform == "win32":
        return f'"{escaped}"' if " " in escaped else escaped
    return shlex.quote(escaped)
