"""What the commands of `spa-keys` have in common: options, and what they read and say."""

import time
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeAlias

import click

from keys import offers, places
from keys.actor import Actor
from keys.console import Parsed, note
from keys.hostconfig import IN_CONTEXT, HostConfig, host_config, unknown_roles
from keys.names import identity_name, key_name, role_name
from keys.poke import poke
from keys.registry import Refused
from keys.when import parse_expiry

PROGRAM: Final = "spa-keys"

_Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

IDENTITY: Final = Parsed("identity", identity_name, offers.identities)
ROLE: Final = Parsed("role", role_name, offers.roles)
EXPIRY: Final = Parsed("moment", lambda text: parse_expiry(text, now_us()))
NAME: Final = Parsed("name", key_name, offers.key_files)
PATH: Final = click.Path(path_type=Path, readable=False)
PATH_OR_STDIN: Final = click.Path(path_type=Path, readable=False, allow_dash=True)


def _path_option(flag: str, help: str, **more: Any) -> _Decorator:
    """An option for a file, which the environment may name too: --database is SPA_DATABASE."""
    variable = f"SPA_{flag.removeprefix('--').replace('-', '_').upper()}"
    usual: dict[str, Any] = {"type": PATH, "envvar": variable, "show_envvar": True}
    return click.option(flag, help=help, **(usual | more))


directory_option: Final = _path_option(
    "--directory",
    "Where your private keys are.",
    envvar="SPA_KEYS_DIR",
    default=places.keys_directory,
    show_default="~/.config/spa/keys",
)
config_option: Final = _path_option(
    "--config",
    "The configuration of spa-client.",
    default=lambda: places.configuration_directory() / "config.toml",
    show_default="~/.config/spa/config.toml",
)
passphrase_file_option: Final = _path_option(
    "--passphrase-file",
    "Take the passphrase from the first line of this private file, or of a pipe.",
)
wants_passphrase_option: Final = click.option(
    "--passphrase/--no-passphrase",
    "wants_passphrase",
    default=None,
    help="Insist on a passphrase, or on none.  [default: ask, and take an empty answer for none]",
)
keyring_option: Final = click.option(
    "--keyring",
    "wants_keyring",
    is_flag=True,
    help="Keep the passphrase in this system's keyring, so that nobody is asked for it.",
)
_NEW_KEY: Final = (
    click.option("--comment", help="What the key is called in lists.  [default: user@host]"),
    click.option(
        "--ssh",
        type=PATH_OR_STDIN,
        metavar="FILE.pub",
        help="Sign with this SSH key, which stays in ssh-agent: Ed25519, also on a security key.",
    ),
    click.option(
        "--agent",
        "from_agent",
        is_flag=True,
        help="Sign with the key that ssh-agent holds; where it holds several, choose one.",
    ),
    wants_passphrase_option,
    passphrase_file_option,
    keyring_option,
    directory_option,
)


def new_key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What can be said of a key that is to be made: the fields of `newkey.Wanted`."""
    return reduce(lambda made, option: option(made), reversed(_NEW_KEY), command)


def _note_host(ctx: click.Context, param: click.Parameter, config: Path | None) -> None:  # noqa: ARG001 - click's own
    ctx.meta[IN_CONTEXT] = host_config(config)


def host_here() -> HostConfig:
    """What the server's configuration says, for a command with `database_option`."""
    here: HostConfig = click.get_current_context().meta[IN_CONTEXT]
    return here


def _of_this_host(ctx: click.Context, param: click.Parameter, given: Path | None) -> Path:
    """What the server's configuration names, unless the option says otherwise; then it is told."""
    here: HostConfig = ctx.meta[IN_CONTEXT]
    configured: Path = getattr(here, str(param.name))
    if given is None or given.absolute() == configured:
        return configured
    if here.path.exists():
        tell(f"--{param.name} is {given}, while {here.path} has {configured}")
    return given


_server_config_option: Final = _path_option(
    "--server-config",
    "The server's configuration: where registry, daemon and key are.  "
    "[default: /etc/spa/server.toml]",
    is_eager=True,
    expose_value=False,
    callback=_note_host,
)
_database_option: Final = _path_option(
    "--database",
    "The registry's file.  [default: as the server's configuration has it]",
    callback=_of_this_host,
)
control_option: Final = _path_option(
    "--control",
    "The socket of the daemon, which is told at once.  [default: as the configuration has it]",
    callback=_of_this_host,
)


def database_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The registry, found by the same configuration as the daemon finds it by."""
    return _server_config_option(_database_option(command))


as_json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="For programs: times in UTC, all fields."
)


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def actor() -> str:
    """Who changes the registry, for its record."""
    return Actor.here().name


def check_roles(roles: Iterable[str]) -> None:
    """Raises Refused for a role that the policy of this host does not have: a slip, most likely."""
    policy = host_here().policy
    if unknown := unknown_roles(roles, policy):
        raise Refused(f"{policy} has no role {', '.join(unknown)}", "see: spa-server policy show")


def tell(line: str) -> None:
    """What a person has to know or do before a command can go on, on stderr."""
    note(f"{PROGRAM}: {line}")


def tell_daemon(control: Path) -> bool:
    """Whether a daemon runs. One that could not be told notices by itself, a little later."""
    poked = poke(control)
    if poked.problem:
        note(f"The daemon could not be told at once ({poked.problem}); it will notice by itself.")
    return poked.is_running
