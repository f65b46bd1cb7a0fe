"""Invites as an operator meets them: what a line says of the server, and lists for the eye.

The registry makes the token and keeps its public half (keys/joining.py); what is handed over is
made here, and kept nowhere.
"""

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keys import keyfile, serverkey
from keys.enrolled import EnrolledInvite
from keys.hostconfig import HostConfig, host_config
from keys.joining import Waiting
from keys.keyfile import KeyFile, Kind, Torn
from keys.names import roles_in_words
from keys.privatefile import KeyFileError
from keys.readfile import read_file
from keys.table import table
from keys.text import printable
from keys.tomlfile import FileProblem
from keys.trouble import Trouble
from keys.when import local_minute, rfc3339
from spa_protocol.keytext import BadKeyText, Endpoint, Invite
from spa_protocol.layout import KEY_SIZE

USUAL_EXPIRY: Final = "24h"

_INDENT: Final = "  "


@dataclass(frozen=True, slots=True)
class Server:
    """What an invite says of the server: its public key, 32 bytes, and where to knock."""

    public: bytes
    endpoint: Endpoint

    def invite(self, token: bytes) -> Invite:
        """The invite to hand over; `reveal` makes its line."""
        return Invite(token, self.public, self.endpoint)


@dataclass(frozen=True, slots=True)
class WrittenHost:
    """A host as an operator wrote it; `port` None leaves it to the server's configuration."""

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "WrittenHost":
        """Raises BadKeyText."""
        endpoint = Endpoint.parse(text)
        if "%" in endpoint.host:
            raise BadKeyText("a zone means nothing to clients; write the address without it")
        names_none = text in (endpoint.host, f"[{endpoint.host}]")
        return cls(endpoint.host, None if names_none else endpoint.port)

    def __str__(self) -> str:
        return self.host if self.port is None else str(Endpoint(self.host, self.port))


def server_here(config: Path | None, host: WrittenHost | None) -> Server:
    """The server of this machine, as its configuration says. Raises Trouble.

    Without `config`, the usual file, which need not exist; without `host`, the one that it names,
    else the machine's own name.
    """
    return server_of(host_config(config), host)


def server_of(here: HostConfig, host: WrittenHost | None) -> Server:
    """The same of a configuration that was read. Raises Trouble."""
    public = public_of(here.key)
    written = host or (None if here.host is None else parse_host(here.host, here.path))
    name = written.host if written is not None else _own_name()
    return Server(public, Endpoint(name, (written.port if written else None) or here.knock_port))


def parse_host(value: object, path: Path) -> WrittenHost:
    """What `host` in server.toml says. Raises FileProblem."""
    if not isinstance(value, str):
        raise FileProblem(path, "host", "expected text")
    try:
        return WrittenHost.parse(value)
    except BadKeyText as error:
        raise FileProblem(path, "host", f"expected NAME or NAME:PORT; {error}") from None


def public_of(path: Path) -> bytes:
    """The public half of the server's key. Raises Trouble and OSError.

    Nothing secret is taken from the file, so it need not be private to whoever runs this: root
    runs it, and the file is the daemon's.
    """
    try:
        file = KeyFile.parse(read_file(path))
    except FileNotFoundError:
        hint = "set this host up: spa-server init; or name its configuration by --server-config"
        raise Trouble(f"{path} does not exist", hint) from None
    except KeyFileError as other:
        raise Trouble(f"{path} {other.message}", other.hint) from None
    except Torn as torn:
        raise keyfile.damaged(path, str(torn)) from None
    if file.kind is not Kind.SERVER:
        raise Trouble(f"{path} holds the key of a {file.kind}, not of a server")
    if len(file.secret) != KEY_SIZE or serverkey.from_secret(file.secret).public != file.public:
        raise keyfile.damaged(path, "its public key is another's")
    return file.public


def _own_name() -> str:
    name = socket.getfqdn()
    if not name or name.partition(".")[0] in ("localhost", "ip6-localhost"):
        hint = "say where clients knock: --host NAME, or --host ADDRESS"
        raise Trouble("this host has no name of its own", hint)
    return name


def invites_table(invites: Sequence[EnrolledInvite], now_us: int) -> str:
    """Two lines for each invite, the second with its roles and what became of it."""
    rows = ((i.identity, i.key_id, i.state(now_us), local_minute(i.expires_at_us)) for i in invites)
    return _in_pairs(("IDENTITY", "INVITE", "STATE", "EXPIRES"), rows, map(_invite_line, invites))


def invites_json(invites: Iterable[EnrolledInvite], now_us: int) -> list[dict[str, Any]]:
    """One object for each invite; times in UTC by RFC 3339, null for never."""
    return [
        {
            "identity": i.identity,
            "roles": sorted(i.roles),
            "invite": i.key_id,
            "state": i.state(now_us),
            "needs_approval": i.needs_approval,
            "created_at": rfc3339(i.created_at_us),
            "expires_at": rfc3339(i.expires_at_us),
            "revoked_at": _utc(i.revoked_at_us),
            "redeemed_at": _utc(i.redeemed_at_us),
            "redeemed_by": i.redeemed_by,
        }
        for i in invites
    ]


def waiting_table(waiting: Sequence[Waiting]) -> str:
    """Two lines for each key that waits, the second with the roles that it would get."""
    rows = ((w.key.identity, w.key.key_id, local_minute(w.key.enrolled_at_us)) for w in waiting)
    lines = (
        f"{roles_in_words(w.invite.roles, 'no role')}; by invite {w.invite.key_id}" for w in waiting
    )
    return _in_pairs(("IDENTITY", "KEY", "ASKED"), rows, lines)


def waiting_json(waiting: Iterable[Waiting]) -> list[dict[str, Any]]:
    """One object for each key that waits; times in UTC by RFC 3339."""
    return [
        {
            "identity": w.key.identity,
            "roles": sorted(w.invite.roles),
            "key": w.key.key_id,
            "invite": w.invite.key_id,
            "asked_at": rfc3339(w.key.enrolled_at_us),
        }
        for w in waiting
    ]


def _in_pairs(
    columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], seconds: Iterable[str]
) -> str:
    heading, *firsts = table(columns, rows).split("\n")
    pairs = zip(firsts, seconds, strict=True)
    return "\n".join(
        [heading, *(f"{first}\n{_INDENT}{printable(second)}" for first, second in pairs)]
    )


def _invite_line(invite: EnrolledInvite) -> str:
    parts = [
        roles_in_words(invite.roles, "no role"),
        "needs approval" if invite.needs_approval else "",
        f"made {local_minute(invite.created_at_us)}",
        f"used by {invite.redeemed_by}" if invite.redeemed_by is not None else "",
        f"revoked {local_minute(invite.revoked_at_us)}" if invite.revoked_at_us is not None else "",
    ]
    return "; ".join(part for part in parts if part)


def _utc(at_us: int | None) -> str | None:
    return None if at_us is None else rfc3339(at_us)
