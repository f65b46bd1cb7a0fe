"""What the commands of `spa-server` have in common."""

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from keys import schema
from keys.console import Parsed, Trouble
from keys.registry import Registry
from keys.when import parse_duration
from spa_protocol.access import Access
from spa_server import control
from spa_server.config import Config

if TYPE_CHECKING:
    from spa_server.audit.ledger import LedgerError

PROGRAM: Final = "spa-server"

NOBODY_HEARD: Final = (
    "NOBODY IS HEARD until {}: which knocks were used before that, this host does not know;"
    " wait, then knock"
)
ACCESS: Final = Parsed("access", Access.parse)
ADDRESS: Final = Parsed("address", ip_address)
DURATION: Final = Parsed("duration", parse_duration)
PATH: Final = click.Path(path_type=Path)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="For other programs.")


@contextmanager
def explained(path: Path | None = None) -> Iterator[None]:
    """Turns what goes wrong underneath into the one line that an operator reads."""
    from spa_server.answer import AnswerError
    from spa_server.audit.ledger import LedgerError
    from spa_server.capture import CaptureError
    from spa_server.firewall.kernel import FirewallError
    from spa_server.sessions import SessionsError

    try:
        if path is None:
            yield
        else:
            with schema.explained(path):
                yield
    except FirewallError as error:
        raise Trouble(
            f"the firewall: {error}", "is this run as root, with nft installed?"
        ) from error
    except schema.RegistryError as error:
        hint = error.hint.replace("--database", "`database` in server.toml")
        if isinstance(error, schema.Damaged):
            is_it = f"{hint}; if this is it, " if hint.startswith("set ") else ""
            hint = f"restore a backup: {PROGRAM} restore FILE"
            hint = f"{hint}; or: {PROGRAM} audit set-aside --keep-registry"
            if not is_it and path is not None and Path(f"{path}-wal").exists():
                # Whoever copied another database to this place left the log of the one before.
                log = f"{shlex.quote(str(path))}-wal"
                hint = (
                    f"if it was copied to this place, its log is another's: rm {log}; else {hint}"
                )
            hint = is_it + hint
        raise Trouble(error.message, hint, exit_code=error.exit_code) from error
    except LedgerError as error:
        raise _of_the_ledger(error, path) from error
    except (CaptureError, AnswerError, SessionsError) as error:
        raise Trouble(str(error)) from error


def _of_the_ledger(error: "LedgerError", path: Path | None) -> Trouble:
    """As of the registry, for they are one file."""
    if path is not None and isinstance(error.__cause__, sqlite3.Error):
        try:
            with explained(path):
                raise error.__cause__
        except Trouble as trouble:
            return trouble
    return Trouble(f"the ledger: {error}", "is there room on the disk?")


def ask(config: Config, **request: Any) -> dict[str, Any]:
    """The daemon's answer to `request`. Raises Trouble."""
    return control.ask(config.control, request)


def must_not_run(config: Config) -> None:
    """Raises Trouble while a daemon holds the database open."""
    try:
        control.ask(config.control, {"do": "status"}, within_s=control.TIMEOUT_S)
    except control.NoDaemon:
        return
    except Trouble:
        pass
    what = "the daemon runs, and holds the database open"
    raise Trouble(what, "stop it first: systemctl stop spa-server")


@contextmanager
def open_registry(config: Config) -> Iterator[Registry]:
    """The registry, to be read. Raises Trouble."""
    with explained(config.database):
        registry = Registry(config.database, read_only=True)
        try:
            yield registry
        finally:
            registry.close()
