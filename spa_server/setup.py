"""Setting up a host: the files that `spa-server init` makes, each only where it is missing."""

import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from keys import schema, serverkey
from keys.invite import WrittenHost, server_here
from keys.owner import owner_of
from keys.privatefile import make_directory
from keys.registry import Registry
from keys.trouble import Trouble
from spa_protocol.keytext import ServerLine
from spa_server.config import CONFIG_PATH, Config, load_config
from spa_server.machine import Mark

DAEMON_USER: Final = "spa"

_USUAL: Final = """\
# How this host is guarded. Every key has a default, shown here; see spa-server(8).
# policy = "/etc/spa/policy.toml"
# key = "/etc/spa/server.key"
# database = "/var/lib/spa/spa.db"
# control = "/run/spa/control.sock"
"""
_ELSEWHERE: Final = """\
# How this host is guarded; see spa-server(8). Paths are relative to this file.
policy = "policy.toml"
key = "server.key"
database = "spa.db"
control = "control.sock"
"""
_REST: Final = """\
{host}
# knock_port = 62201
# carriers = ["udp"]            # where UDP is blocked, also "udp:53", "icmp", "tcp-syn"
# capture = "nflog"             # or "interface:eth0"
# outer = ["eth0"]              # left out: the interfaces that have a default route
# shared_sources = []           # addresses behind which many stand; no hole is opened for them
# also_addressed_as = []        # a port forwarder's addresses, by which clients know this host
# undeclared_target = "refuse"  # or "accept": knocks that name no host (0.1.0's)
# freshness = "30s"             # how far a client's clock may be from this one's
# max_keys = 150000             # keys and invites that are heard at most
# mode = "enforce"              # or "observe": let in and record what would be denied
# observe = []                  # services that are observed while all others are enforced
# metrics = "127.0.0.1:9062"    # left out: no metrics
# metrics_beyond_loopback = false
# outputs = ["journald"]        # or "syslog:unix:///dev/log"; left out: the journal, under systemd
# retention_days = 400          # how long the record is kept; 0: for good
# retention_mb = 1024           # and how large it may grow; 0: without limit
# when_disk_full = "deny"       # or "serve": grant, and keep in memory what cannot be recorded

# [anomalies]                   # what is out of the ordinary is recorded; docs/anomalies.md
# watch = true
# threshold = 0.5               # from which score on, between 0 and 1
# learning_days = 5             # on how many days a key is heard before it is judged by its habits
# trusted = []                  # networks whose scans are meant
# hook = "/usr/local/bin/tell"  # a program that is given each anomaly; left out: none
# hook_timeout = "10s"
"""
_POLICY: Final = """\
# Who may reach what: roles are given to people with `spa-keys grant`; see spa-policy(5).
# What no role allows is denied.

[services]
ssh = "tcp/22"

[roles.admin]
description = "Operators of this host"
[[roles.admin.allow]]
services = ["ssh"]
# from = ["10.20.0.0/16"]       # left out: from anywhere
lifetime = "30s"                # how long the port is open to a knock; the session lives on
max_lifetime = "8h"
"""


class Made(NamedTuple):
    """A file that was made, and what it is."""

    path: Path
    what: str = ""

    def __str__(self) -> str:
        """In words."""
        return f"made {self.path}: {self.what}" if self.what else f"made {self.path}"


def initialise(config_path: Path | None, host: WrittenHost | None = None) -> Iterator[Made]:
    """Makes what is missing, and says what it made.

    `host` is where clients knock, if a new configuration is to name it.
    """
    path = config_path or CONFIG_PATH
    head = _USUAL if path == CONFIG_PATH else _ELSEWHERE
    if _write_new(path, head + _REST.format(host=_host_line(host))):
        yield Made(path)
    config = load_config(path)
    if _write_new(config.policy, _POLICY):
        yield Made(config.policy, "the role admin may reach ssh")
    if not os.path.lexists(config.key):
        Mark(config.key).path.unlink(missing_ok=True)  # of a key that is no more
        serverkey.save(serverkey.generate(), config.key)
        give_to_daemon(config.key)
        Mark(config.key).write()
        yield Made(config.key, "the server's private key")
    if not os.path.lexists(config.database):
        make_directory(config.database.parent)
        give_to_daemon(config.database.parent)
        Registry(schema.connect(config.database)).close()
        yield Made(config.database, "the registry and the record")


def server_line(config_path: Path | None, host: WrittenHost | None) -> ServerLine:
    """The line that clients put into their configuration. Raises Trouble.

    Of the key only the public half is looked at, so root may ask while the key is the daemon's.
    Without a port in `host`, it is the configuration's `knock_port`.
    """
    path = config_path or CONFIG_PATH
    _check_key(load_config(path))
    server = server_here(path, host)
    return ServerLine(server.public, server.endpoint)


def other_host(config_path: Path | None, host: WrittenHost) -> str:
    """What the configuration names in the place of `host`; empty where it is the same, or where
    neither that nor this machine has a name."""
    path = config_path or CONFIG_PATH
    try:
        named, meant = (server_here(path, each).endpoint for each in (None, host))
    except Trouble:
        return ""
    return "" if named == meant else str(named)


def _host_line(host: WrittenHost | None) -> str:
    if host is None:
        return '# host = "db1.internal"         # where clients knock; left out: this host\'s name'
    return f'host = "{host}"'


def _check_key(config: Config) -> None:
    """Raises Trouble where others can reach the key, or the daemon's user cannot use it."""
    try:
        status = config.key.stat()
    except OSError:
        return  # server_here says what is wrong with it
    quoted = shlex.quote(str(config.key))
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        problem = f"{config.key} is open to other users (mode {mode})"
        raise Trouble(problem, f"run: chmod 600 {quoted}")
    user = _daemon_user()
    if status.st_uid not in {os.geteuid(), 0, user.pw_uid if user is not None else 0}:
        hint = f"run: chown {DAEMON_USER} {quoted}"
        raise Trouble(f"{config.key} belongs to another user than the daemon's", hint)


def _daemon_user() -> pwd.struct_passwd | None:
    """None where the host has no such user."""
    with suppress(KeyError):
        return pwd.getpwnam(DAEMON_USER)
    return None


def _write_new(path: Path, text: str) -> bool:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def give_to_daemon(path: Path) -> None:
    """So that the unprivileged daemon can read what root has made, in a place that is root's."""
    user = _daemon_user()
    if os.geteuid() == 0 and user is not None and owner_of(path.parent) is None:
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
