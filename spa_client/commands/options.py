"""What the commands have in common: options, types of arguments, and how a wish is put together."""

import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from keys.console import Parsed
from keys.when import parse_duration
from spa_client import completing
from spa_client.carriers import DEFAULT_TIMEOUT_S, PATIENT_TIMEOUT_S
from spa_client.config import Host, parse_source, parse_target, parse_target_rule
from spa_client.services import BadAccess, parse_access, together
from spa_protocol.access import Access
from spa_protocol.carrier import Carrier
from spa_protocol.keytext import ServerLine
from spa_protocol.layout import MAX_LIFETIME_S

PROGRAM: Final = "spa-client"
_MAX_TIMEOUT_S: Final = 600
_Command = TypeVar("_Command", bound=Callable[..., Any])
Option = Callable[[Any], Any]


def with_options(*options: Option) -> Callable[[_Command], _Command]:
    """One decorator made of several options, shown in this order."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


def accesses_of(given: tuple[Access, ...], host: Host) -> tuple[Access, ...]:
    """What is asked for, or else what the configuration says. Raises UsageError."""
    if not (given or host.access):
        raise click.UsageError(f"say which access, like tcp/22; {host.name} has none configured")
    try:
        return together(given or host.access)
    except BadAccess as problem:
        raise click.UsageError(str(problem)) from None


def _lifetime(text: str) -> int:
    seconds = math.ceil(parse_duration(text))
    if not 1 <= seconds <= MAX_LIFETIME_S:
        raise ValueError(f"{text!r} is no lifetime; ask for a second at least")
    return seconds


def _timeout(text: str) -> float:
    number = text.replace(".", "", 1)
    seconds = float(text) if number.isascii() and number.isdigit() else parse_duration(text)
    if not 0 < seconds <= _MAX_TIMEOUT_S:
        raise ValueError(f"{text!r} is no timeout; give seconds, {_MAX_TIMEOUT_S} at most")
    return seconds


def _kept(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Only checks, and keeps what was written."""

    def checked(text: str) -> str:
        parse(text)
        return text

    return checked


PATH: Final = click.Path(path_type=Path)
ACCESS: Final = Parsed("access", parse_access)
SERVER_LINE: Final = Parsed("server line", ServerLine.parse)

host_argument: Final = click.argument("host", shell_complete=completing.hosts)
accesses_argument: Final = click.argument(
    "access", nargs=-1, type=ACCESS, shell_complete=completing.accesses
)

config_option: Final = click.option(
    "--config",
    "chosen",
    metavar="FILE",
    envvar="SPA_CONFIG",
    show_envvar=True,
    type=PATH,
    help="The configuration.  [default: ~/.config/spa/config.toml]",
)
keys_option: Final = click.option(
    "--keys-dir",
    "keys",
    metavar="DIR",
    envvar="SPA_KEYS_DIR",
    show_envvar=True,
    type=PATH,
    help="Where your private keys are.  [default: ~/.config/spa/keys]",
)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
once_option: Final = click.option("--once", is_flag=True, help="Open for a single connection.")
lifetime_option: Final = click.option(
    "--lifetime",
    metavar="DURATION",
    type=Parsed("duration", _lifetime),
    default=0,
    help="How long to stay open (30s, 15m, 8h), where the policy lets you choose.",
)
no_reply_option: Final = click.option(
    "--no-reply", is_flag=True, help="Send once, and do not ask what came of it."
)

passphrase_file_option: Final = click.option(
    "--passphrase-file",
    metavar="FILE",
    envvar="SPA_PASSPHRASE_FILE",
    show_envvar=True,
    type=PATH,
    help="Take the key's passphrase from the first line of this private file, or of a pipe.",
)
version_4_option: Final = click.option(
    "-4", "version", flag_value=4, type=int, help="Knock on IPv4 addresses only."
)
version_6_option: Final = click.option(
    "-6", "version", flag_value=6, type=int, help="Knock on IPv6 addresses only."
)
address_option: Final = click.option(
    "--address", metavar="HOST", help="Where to knock and connect, if not at the line's."
)
access_kept_option: Final = click.option(
    "--access",
    metavar="ACCESS",
    multiple=True,
    shell_complete=completing.accesses,
    type=Parsed("access", _kept(parse_access)),
    help="What a bare knock asks for; may be given again.",
)
source_kept_option: Final = click.option(
    "--source",
    metavar="ADDRESS|auto|none",
    type=Parsed("source", _kept(parse_source)),
    help="The source to declare.",
)
target_kept_option: Final = click.option(
    "--target",
    metavar="auto|none",
    type=Parsed("target", _kept(parse_target_rule)),
    help="Whether to sign the server's address; none where a port forwarder hides it.",
)
carrier_kept_option: Final = click.option(
    "--carrier",
    metavar="CARRIER",
    type=Parsed("carrier", _kept(Carrier.parse)),
    help="What carries knocks: udp, udp:PORT, icmp, tcp-syn or tcp-syn:PORT.",
)


def timeout_option(default_s: float) -> Option:
    """`--timeout`, with what it is where nobody says."""
    return click.option(
        "--timeout",
        "timeout_s",
        metavar="DURATION",
        type=Parsed("timeout", _timeout),
        default=default_s,
        show_default=True,
        help="How long to knock and wait for a reply: 5s, or in seconds.",
    )


_how: Final = (
    config_option,
    click.option(
        "--server",
        metavar="LINE",
        type=SERVER_LINE,
        help="A server line ('spa-server ...') in place of the configuration's.",
    ),
    click.option(
        "--key",
        metavar="NAME|FILE",
        envvar="SPA_KEY",
        show_envvar=True,
        shell_complete=completing.keys,
        help="The key to knock with: a name in the keys directory, or a path.",
    ),
    keys_option,
    passphrase_file_option,
    click.option(
        "--port",
        "knock_port",
        metavar="N",
        type=click.IntRange(1, 65535),
        help="The port to knock on.",
    ),
    click.option(
        "--carrier",
        metavar="CARRIER",
        type=Parsed("carrier", Carrier.parse),
        help="What carries the knock, where the server allows it: udp, udp:PORT, icmp, tcp-syn or "
        "tcp-syn:PORT. The last three need scapy and CAP_NET_RAW.",
    ),
    version_4_option,
    version_6_option,
    click.option(
        "--source",
        metavar="ADDRESS|auto|none",
        type=Parsed("source", parse_source),
        help="The address to open for, signed into the knock. auto: this machine's own, if it is "
        "global or in the target's network. none: whichever the knock comes from.",
    ),
    click.option(
        "--target",
        metavar="ADDRESS|auto|none",
        type=Parsed("target", parse_target),
        help="The server's address to open, signed into the knock. auto: the one that is knocked "
        "on. none: whichever the knock arrives at, for a server behind a forwarder that allows it.",
    ),
)
how_to_knock: Final = (*_how, timeout_option(DEFAULT_TIMEOUT_S))
how_to_connect: Final = (*_how, timeout_option(PATIENT_TIMEOUT_S))
