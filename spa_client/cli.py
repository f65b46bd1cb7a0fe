"""The program `spa-client`."""

import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from keys.console import Parsed, Program, asker, note, print_json, say, table
from keys.trouble import ExitCode
from keys.when import parse_duration
from spa_client import config, connect, knocking
from spa_client.carriers import DEFAULT_TIMEOUT_S, describe
from spa_client.compose import Wish
from spa_client.config import Host, NewHost, parse_source
from spa_client.connect import Race
from spa_client.knocking import Knocking, Options
from spa_client.outcome import Story
from spa_client.pipe import Pipe
from spa_client.resolve import plain_address
from spa_client.services import BadAccess, parse_access, parse_port, together
from spa_protocol import __version__
from spa_protocol.access import Access
from spa_protocol.keytext import ServerLine
from spa_protocol.layout import MAX_LIFETIME_S

PROGRAM: Final = "spa-client"
_MAX_TIMEOUT_S: Final = 600
_Command = TypeVar("_Command", bound=Callable[..., Any])


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


_PATH: Final = click.Path(path_type=Path)
_ACCESS: Final = Parsed("access", parse_access)
_SERVER_LINE: Final = Parsed("server line", ServerLine.parse)

_CONFIG: Final = click.option(
    "--config",
    "chosen",
    metavar="FILE",
    envvar="SPA_CONFIG",
    show_envvar=True,
    type=_PATH,
    help="The configuration.  [default: ~/.config/spa/config.toml]",
)
_KEYS: Final = click.option(
    "--keys-dir",
    "keys",
    metavar="DIR",
    envvar="SPA_KEYS_DIR",
    show_envvar=True,
    type=_PATH,
    help="Where your private keys are.  [default: ~/.config/spa/keys]",
)
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_ONCE: Final = click.option("--once", is_flag=True, help="Open for a single connection.")
_LIFETIME: Final = click.option(
    "--lifetime",
    metavar="DURATION",
    type=Parsed("duration", _lifetime),
    default=0,
    help="How long to stay open (30s, 15m, 8h), where the policy lets you choose.",
)
_NO_REPLY: Final = click.option(
    "--no-reply", is_flag=True, help="Send once, and do not ask what came of it."
)

_HOW_TO_KNOCK: Final = (
    _CONFIG,
    click.option(
        "--server",
        metavar="LINE",
        type=_SERVER_LINE,
        help="A server line ('spa-server ...') in place of the configuration's.",
    ),
    click.option(
        "--key",
        metavar="NAME|FILE",
        envvar="SPA_KEY",
        show_envvar=True,
        help="The key to knock with: a name in the keys directory, or a path.",
    ),
    _KEYS,
    click.option(
        "--passphrase-file",
        metavar="FILE",
        envvar="SPA_PASSPHRASE_FILE",
        show_envvar=True,
        type=_PATH,
        help="Take the key's passphrase from the first line of this private file, or of a pipe.",
    ),
    click.option(
        "--port",
        "knock_port",
        metavar="N",
        type=click.IntRange(1, 65535),
        help="The UDP port to knock on.",
    ),
    click.option("-4", "version", flag_value=4, type=int, help="Knock on IPv4 addresses only."),
    click.option("-6", "version", flag_value=6, type=int, help="Knock on IPv6 addresses only."),
    click.option(
        "--source",
        metavar="ADDRESS|auto|none",
        type=Parsed("source", parse_source),
        help="The address to open for, signed into the knock. auto: this machine's own, if it is "
        "global or in the target's network. none: whichever the knock comes from.",
    ),
    click.option(
        "--target",
        metavar="ADDRESS",
        type=Parsed("address", plain_address),
        help="The server's address to open, if it is not the one that is knocked on.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        metavar="SECONDS",
        type=Parsed("timeout", _timeout),
        default=DEFAULT_TIMEOUT_S,
        show_default=True,
        help="How long to knock and wait for a reply.",
    ),
)


def _with(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """One decorator made of several options, shown in this order."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


@click.group(
    PROGRAM,
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 refused, 2 usage, 3 no answer, 4 trouble on this side (a key, a "
    "file, a name, the network).",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def main() -> None:
    """Opens ports of a server for this machine, by one signed datagram.

    \b
      spa-client add db1 'spa-server AX...'   the line that its operator gave you
      spa-client knock db1 tcp/5432           open for a moment; connect meanwhile
      ssh db1                                 with this in ~/.ssh/config:
    \b
        Host db1
          ProxyCommand spa-client connect %h %p
    """


@main.command(
    epilog="\b\nExamples:\n"
    "  spa-client knock db1 tcp/5432\n"
    "  spa-client knock db1 ssh https --lifetime 15m\n"
    "  spa-client knock gate.example.org udp/51820 --server 'spa-server AX...'"
)
@click.argument("host")
@click.argument("access", nargs=-1, type=_ACCESS)
@_with(_LIFETIME, _ONCE, _NO_REPLY, _JSON, *_HOW_TO_KNOCK)
def knock(
    *,
    host: str,
    access: tuple[Access, ...],
    lifetime: int,
    once: bool,
    no_reply: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Asks HOST to open ports for this machine, on each of its addresses.

    ACCESS is tcp/22, udp/51820, tcp/9090-9099, or a name in /etc/services: ssh, udp/domain (a bare
    name is TCP's where TCP has it). Without one, what the configuration says for this host.

    It is done (0) when one address has opened everything that was asked for.
    """
    options = Options(**how)
    found = knocking.find_host(host, options)
    asked = _accesses(access, found)
    wish = Wish(asked, lifetime_s=lifetime, once=once, reply_wanted=not no_reply)
    return _tell(knocking.prepare(found, wish, options, asker()).run(), as_json=as_json)


@main.command(epilog="\b\nExamples:\n  spa-client close db1 tcp/5432")
@click.argument("host")
@click.argument("access", nargs=-1, type=_ACCESS)
@_with(_NO_REPLY, _JSON, *_HOW_TO_KNOCK)
def close(host: str, access: tuple[Access, ...], no_reply: bool, as_json: bool, **how: Any) -> int:
    """Gives back what a knock on HOST opened, before its time is up.

    Name the same ACCESS, and the same --source and --target, as with the knock.
    """
    options = Options(**how)
    found = knocking.find_host(host, options)
    wish = Wish(_accesses(access, found), closing=True, reply_wanted=not no_reply)
    return _tell(knocking.prepare(found, wish, options, asker()).run(), as_json=as_json)


@main.command(
    name="connect",
    epilog="\b\nExamples:\n"
    "  ssh -o ProxyCommand='spa-client connect %h %p' db1\n"
    "  spa-client connect db1 5432 --quiet\n"
    "\b\nIn ~/.ssh/config:\n"
    "  Host db1 *.internal\n"
    "    ProxyCommand spa-client connect %h %p",
)
@click.argument("host")
@click.argument("port", type=Parsed("port", parse_port))
@click.option("-q", "--quiet", is_flag=True, help="Say nothing unless it goes wrong.")
@_with(_LIFETIME, _ONCE, *_HOW_TO_KNOCK)
def connect_command(
    host: str, port: Access, quiet: bool, lifetime: int, once: bool, **how: Any
) -> int:
    """Knocks for TCP PORT of HOST, connects, and joins stdin and stdout to the connection.

    HOST is a name in the configuration, or the address of a host there. Nothing but what comes over
    the connection is written to stdout.
    """
    options = Options(**how)
    wish = Wish((port,), lifetime_s=lifetime, once=once)
    prepared = knocking.prepare(knocking.find_host(host, options), wish, options, asker())
    outcome = connect.race(prepared.results(), port)
    if outcome.winner is None:
        return _tell_unconnected(prepared, outcome)
    if not quiet:
        _note_all(prepared.story([outcome.winner.answer]))
    pipe = Pipe(outcome.winner.socket)
    pipe.run()
    if pipe.error is None:
        return ExitCode.FINE
    note(f"{PROGRAM}: the connection to {prepared.host.name} broke: {describe(pipe.error)}")
    return ExitCode.TROUBLE


@main.command()
@_with(_JSON, _CONFIG, _KEYS)
def hosts(as_json: bool, chosen: Path | None, keys: Path | None) -> None:
    """Lists the servers in the configuration."""
    known = config.load(chosen, keys)
    if as_json:
        print_json([_host_json(host) for host in known.hosts.values()])
    elif known.hosts:
        columns = ("NAME", "KNOCKS ON", "KEY", "SOURCE", "ACCESS")
        click.echo(table(columns, map(_row, known.hosts.values())))
    else:
        note(f"no hosts in {known.path}; add one: {PROGRAM} add NAME 'spa-server ...'")


@main.command(
    epilog="\b\nExamples:\n"
    "  spa-client add db1 'spa-server AX... db1.internal:62201'\n"
    "  spa-client add db2 'spa-server AX... 192.0.2.7:62201' --key work --access tcp/5432"
)
@click.argument("name")
@click.argument("line", nargs=-1, required=True)
@click.option("--address", metavar="HOST", help="Where to knock and connect, if not at the line's.")
@click.option("--key", metavar="NAME|FILE", help="The key to knock with, if not the usual one.")
@click.option(
    "--source",
    metavar="ADDRESS|auto|none",
    type=Parsed("source", _kept(parse_source)),
    help="The source to declare.",
)
@click.option(
    "--access",
    metavar="ACCESS",
    multiple=True,
    type=Parsed("access", _kept(parse_access)),
    help="What a bare knock asks for; may be given again.",
)
@_CONFIG
def add(
    *,
    name: str,
    line: tuple[str, ...],
    address: str | None,
    key: str | None,
    source: str | None,
    access: tuple[str, ...],
    chosen: Path | None,
) -> None:
    """Adds a server to the configuration; LINE is what 'spa-server init' printed there."""
    path = chosen or config.default_path()
    server = " ".join(line)
    _SERVER_LINE.convert(server, None, click.get_current_context())
    added = config.add(path, NewHost(name, server, address, key, source, access))
    example = "" if added.access else " tcp/22"
    say(f"{name} added to {path}; now: {PROGRAM} knock {name}{example}")


def _accesses(given: tuple[Access, ...], host: Host) -> tuple[Access, ...]:
    if not (given or host.access):
        raise click.UsageError(f"say which access, like tcp/22; {host.name} has none configured")
    try:
        return together(given or host.access)
    except BadAccess as problem:
        raise click.UsageError(str(problem)) from None


def _tell(story: Story, *, as_json: bool) -> int:
    """Prints what came of it, results to stdout and the rest to stderr, and says how to end."""
    if as_json:
        print_json(story.as_json())
        return story.exit_code
    for line in story.lines():
        if line.good:
            say(line.text)
        else:
            note(f"{PROGRAM}: {line.text}")
    return story.exit_code


def _note_all(story: Story) -> None:
    """For `connect`, whose stdout belongs to the connection."""
    for line in story.lines():
        note(f"{PROGRAM}: {line.text}")


def _tell_unconnected(prepared: Knocking, race: Race) -> int:
    if not race.failures:
        story = prepared.story(race.results)
        _note_all(story)
        return story.exit_code
    access = prepared.composer.wish.accesses[0]
    for failure in race.failures:
        at = f"{prepared.host.name} ({failure.target})"
        hint = "is the service running there?"
        note(f"{PROGRAM}: {at}: {access} is open, but connecting failed: {failure.error}; {hint}")
    return ExitCode.NO_ANSWER


def _row(host: Host) -> tuple[str, ...]:
    access = " ".join(map(str, host.access)) or "-"
    return (host.name, str(host.knocks_on), str(host.key), host.source_word, access)


def _host_json(host: Host) -> dict[str, Any]:
    return {
        "name": host.name,
        "address": host.address,
        "port": host.knocks_on.port,
        "server": str(host.server),
        "key": str(host.key),
        "source": host.source_word,
        "access": [str(access) for access in host.access],
    }
