"""What `spa-keys` takes from the server's configuration: where the registry and the daemon are.

`spa-server` reads the same file whole (spa_server/config.py). So that all programs of a host mean
one registry and one daemon, nothing here has a default of its own that the file could contradict.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keys import places, tomlfile
from keys.tomlfile import FileProblem
from spa_protocol.layout import DEFAULT_PORT

SERVER_CONFIG: Final = Path("/etc/spa/server.toml")
_KEY: Final = "server.key"


@dataclass(frozen=True, slots=True)
class HostConfig:
    """The files of a host as its configuration names them, and the UDP port that it hears at.

    `host` is what the file has under that name, not parsed yet.
    """

    path: Path
    key: Path
    database: Path
    control: Path
    knock_port: int
    host: object


def host_config(config: Path | None) -> HostConfig:
    """Reads `config`, or the usual file, which need not exist. Raises FileProblem."""
    path = config or SERVER_CONFIG
    value = {} if config is None and not path.exists() else tomlfile.read(path)
    port = value.get("knock_port", DEFAULT_PORT)
    if not isinstance(port, int) or not 1 <= port <= 65535:
        raise FileProblem(path, "knock_port", "expected a number from 1 to 65535")
    return HostConfig(
        path=path,
        key=_file(value, "key", _KEY, path),
        database=_file(value, "database", str(places.DATABASE), path),
        control=_file(value, "control", str(places.CONTROL_SOCKET), path),
        knock_port=port,
        host=value.get("host"),
    )


def _file(value: dict[str, Any], name: str, usual: str, path: Path) -> Path:
    """A relative path is meant from the configuration's directory."""
    found = value.get(name, usual)
    if not isinstance(found, str):
        raise FileProblem(path, name, "expected text")
    return path.absolute().parent / found
