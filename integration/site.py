"""A guarded host and the people who knock at it; the programs are run as their users run them.

with Lab() as lab:
    site = Site(lab, lab.host("server"))
    alice = site.enrol("alice", "ops")
    site.apply_gate()
    site.start()
    alice.knock(lab.host("client"), "tcp/22")
"""

import json
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final

from integration.lab import Address, Host, Lab, Running, wait_until
from keys.trouble import Trouble
from keys.when import rfc3339
from spa_server import control
from spa_server.config import load_config

PROGRAMS: Final = Path(sys.executable).parent
START_WITHIN_S: Final = 20.0

POLICY: Final = """
[services]
ssh = "tcp/22"
web = ["tcp/80", "udp/80"]
postgres = "tcp/5432"
console = "tcp/9090-9099"
vote = "tcp/7000"

[roles.ops]
[[roles.ops.allow]]
services = ["ssh", "web", "console"]
lifetime = "3s"
max_lifetime = "1h"

[roles.dba]
[[roles.dba.allow]]
services = ["postgres"]
lifetime = "3s"
max_lifetime = "1h"
sessions = "cut"

[roles.voter]
[[roles.voter.allow]]
services = ["vote"]
lifetime = "30s"
once = true
"""


@dataclass
class Site:
    """One guarded host. Everything that the programs keep is in `directory`."""

    lab: Lab
    host: Host
    policy: str = POLICY
    settings: str = ""
    directory: Path = Path()

    def __post_init__(self) -> None:
        if self.directory == Path():
            self.directory = self.lab.new_file(f"{self.host.name}-spa")
        self.directory.mkdir(exist_ok=True)
        self.line = self.server("init", "--host", str(self.host.v4)).stdout.strip()
        self.write_policy(self.policy)
        with self.config.open("a") as file:
            file.write(self.settings)
        self.daemon: Running | None = None

    @property
    def config(self) -> Path:
        """The path of server.toml."""
        return self.directory / "server.toml"

    @property
    def control(self) -> Path:
        """Where the daemon answers, as server.toml has it."""
        return load_config(self.config).control

    @property
    def database(self) -> Path:
        """The path of the registry and the record."""
        return self.directory / "spa.db"

    def write_policy(self, text: str) -> None:
        """Replaces policy.toml; the daemon is not told."""
        (self.directory / "policy.toml").write_text(text)

    def server(
        self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> CompletedProcess[str]:
        """Runs `spa-server` on the host."""
        argv = [PROGRAMS / "spa-server", "--config", self.config, *arguments]
        return self.host.run(argv, check=check, env=env)

    def keys(self, *arguments: str, check: bool = True) -> CompletedProcess[str]:
        """Runs `spa-keys` on the host, for this site and no other that this machine may guard."""
        argv = [PROGRAMS / "spa-keys", *arguments, "--server-config", self.config]
        return self.host.run(argv, check=check)

    def apply_gate(self, *arguments: str) -> None:
        """Puts the gate in force."""
        self.server("gate", "apply", *arguments)

    def start(self, *, env: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()) -> None:
        """Starts the daemon and waits until it answers on its control socket."""
        argv = [*prefix, PROGRAMS / "spa-server", "--config", self.config, "run"]
        self.daemon = self.host.start(argv, env=env)
        wait_until(self.is_up, within_s=START_WITHIN_S, what="the daemon to answer")

    def is_up(self) -> bool:
        """Whether the daemon answers. Raises RuntimeError where it has ended instead."""
        assert self.daemon is not None
        if self.daemon.process.poll() is not None:
            raise RuntimeError(f"the daemon ended: {self.daemon.output}")
        try:
            status = control.ask(self.control, {"do": "status"})
        except Trouble:
            return False
        return status["state"] == "serving"

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends the daemon: SIGKILL for an end without warning."""
        assert self.daemon is not None
        self.daemon.stop(by)

    def restart(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and starts another."""
        self.stop(by)
        self.start()

    def status(self) -> dict[str, Any]:
        """What `spa-server status` says."""
        return dict(json.loads(self.server("status", "--json").stdout))

    def holes(self) -> list[dict[str, Any]]:
        """What `spa-server holes` lists."""
        return list(json.loads(self.server("holes", "--json").stdout))

    def audit(self, *arguments: str) -> list[dict[str, Any]]:
        """What `spa-server audit` finds, oldest first."""
        return list(json.loads(self.server("audit", "--json", *arguments).stdout))

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines about one event, or one group of events."""
        return self.audit("--event", event, "--limit", "100000")

    def close_everything(self) -> None:
        """Ends every hole there is, so that none is left over for the next test."""
        control.ask(self.directory / "control.sock", {"do": "close", "all": True})

    def record_from_now(self) -> "RecordSince":
        """The record, without what has happened before."""
        return RecordSince(self, rfc3339(time.time_ns() // 1000))

    def enrol(self, name: str, *roles: str, expires: str | None = None) -> "Person":
        """Makes a person with a key of their own and enrols it."""
        person = Person(name, self, self.lab.new_file(f"home-{name}"))
        self.enrol_key(name, person.generate(), *roles, expires=expires)
        return person

    def enrol_key(self, name: str, line: str, *roles: str, expires: str | None = None) -> None:
        """Enrols a key line for a person."""
        options = [option for role in roles for option in ("--role", role)]
        options += [] if expires is None else ["--expires", expires]
        self.keys("enroll", name, "--key", line, *options)

    def stranger(self, name: str = "mallory") -> "Person":
        """A person with a key that nobody enrolled."""
        person = Person(name, self, self.lab.new_file(f"home-{name}"))
        person.generate()
        return person


@dataclass(slots=True)
class RecordSince:
    """What `spa-server audit` tells of one site since a moment (RFC 3339)."""

    site: Site
    since: str
    _told: list[dict[str, Any]] = field(default_factory=list)

    def lines(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """All lines of an event whose fields read so, oldest first."""
        self._told = self.site.audit("--since", self.since, "--limit", "100000")
        return self._find(event, fields)

    def line(self, event: str, **fields: object) -> dict[str, Any]:
        """The first such line, which may still be on its way."""
        try:
            wait_until(lambda: self._find(event, fields) or self.lines(event, **fields))
        except TimeoutError:
            told = self._find(event, {})
            raise AssertionError(f"no {event} with {fields} in the record, but {told}") from None
        return self._find(event, fields)[0]

    def _find(self, event: str, fields: Mapping[str, object]) -> list[dict[str, Any]]:
        return [line for line in self._told if _reads(line, {"event": event, **fields})]


def _reads(line: Mapping[str, Any], fields: Mapping[str, object]) -> bool:
    return all(str(line[name]) == str(value) for name, value in fields.items())


@dataclass
class Person:
    """Somebody with a home directory, who knows the site by the name `site`."""

    name: str
    site: Site
    home: Path

    def __post_init__(self) -> None:
        self.home.mkdir(exist_ok=True)
        self.env = {"HOME": str(self.home), "XDG_CONFIG_HOME": ""}
        self._known: set[str] = set()
        self.client(self.site.host, "add", "site", self.site.line)

    def generate(self, name: str = "default") -> str:
        """Makes a key without a passphrase; its line."""
        argv = [PROGRAMS / "spa-keys", "generate", name, "--no-passphrase", "--force"]
        return self.site.host.run(argv, env=self.env).stdout.strip()

    def key_id(self) -> str:
        """What lists and logs call the key."""
        argv = [PROGRAMS / "spa-keys", "show", "--fingerprint"]
        return self.site.host.run(argv, env=self.env).stdout.strip()

    def client(
        self,
        at: Host,
        *arguments: str,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> CompletedProcess[str]:
        """Runs `spa-client` on a host."""
        env = {**self.env, **(env or {})}
        return at.run([PROGRAMS / "spa-client", *arguments], check=check, env=env)

    def knock(self, at: Host, *arguments: str, check: bool = True) -> CompletedProcess[str]:
        """Knocks at the site, for the accesses and with the options given."""
        return self.client(at, "knock", "site", *arguments, check=check)

    def name_of(self, address: Address) -> str:
        """What `knock_at` calls one address of the site."""
        return "at-" + str(address).replace(":", "-").replace(".", "-")

    def knock_at(
        self, at: Host, address: Address, *arguments: str, check: bool = True
    ) -> CompletedProcess[str]:
        """Knocks at one address, whichever the site's line names."""
        name = self.name_of(address)
        if name not in self._known:
            self.client(at, "add", name, self.site.line, "--address", str(address))
            self._known.add(name)
        return self.client(at, "knock", name, *arguments, check=check)
