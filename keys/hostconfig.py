"""What `spa-keys` takes from the server's configuration: where the registry and the daemon are.

`spa-server` reads the same file whole (spa_server/config.py). So that all programs of a host mean
one registry and one daemon, nothing here has a default of its own that the file could contradict.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keys import places, tomlfile
from keys.capacity import DEFAULT_MAX_KEYS, LEAST_MAX_KEYS, MOST_MAX_KEYS
from keys.tomlfile import FileProblem
from spa_protocol.layout import DEFAULT_PORT

IN_CONTEXT: Final = "keys.hostconfig"
"""Where a command's click context has it, in `meta`."""

SERVER_CONFIG: Final = Path("/etc/spa/server.toml")
_POLICY: Final = "/etc/spa/policy.toml"
_KEY: Final = "/etc/spa/server.key"


@dataclass(frozen=True, slots=True)
class HostConfig:
    """The files of a host as its configuration names them, and the UDP port that it hears at.

    `host` is what the file has under that name, not parsed yet.
    """

    path: Path
    policy: Path
    key: Path
    database: Path
    control: Path
    knock_port: int
    max_keys: int
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
        policy=_file(value, "policy", _POLICY, path),
        key=_file(value, "key", _KEY, path),
        database=_file(value, "database", str(places.DATABASE), path),
        control=_file(value, "control", str(places.CONTROL_SOCKET), path),
        knock_port=port,
        max_keys=_max_keys(value, path),
        host=value.get("host"),
    )


def unknown_roles(roles: Iterable[str], policy: Path) -> list[str]:
    """Those that the policy does not have; none where it cannot be read, as by other users.

    What is wrong with a policy is for `spa-server check` to say.
    """
    try:
        return sorted(set(roles) - policy_roles(policy))
    except FileProblem:
        return []


def policy_roles(policy: Path) -> set[str]:
    """The roles that a policy has. Raises FileProblem."""
    return set(tomlfile.table(tomlfile.read(policy), "roles", policy))


def _max_keys(value: dict[str, Any], path: Path) -> int:
    most = value.get("max_keys", DEFAULT_MAX_KEYS)
    if type(most) is not int or not LEAST_MAX_KEYS <= most <= MOST_MAX_KEYS:
        wanted = f"expected a number from {LEAST_MAX_KEYS} to {MOST_MAX_KEYS}"
        raise FileProblem(path, "max_keys", wanted)
    return most


def _file(value: dict[str, Any], name: str, usual: str, path: Path) -> Path:
    """A relative path is meant from the configuration's directory."""
    found = value.get(name, usual)
    if not isinstance(found, str):
        raise FileProblem(path, name, "expected text")
    return path.absolute().parent / found
