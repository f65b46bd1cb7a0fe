"""The two systems side by side: this one and fwknopd, each on a host of a lab of its own.

Both guard the same sort of host, hear knocks on the same UDP port, and open a TCP port to the
address that a knock names. fwknopd runs with its defaults: it captures with libpcap, authenticates
by HMAC and encrypts with Rijndael, and its client is the last of as many access stanzas as there
are people.
"""

import base64
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from benchmarks import crowd
from benchmarks.crowd import Order
from benchmarks.native import built
from integration.lab import Host, Lab, Running
from integration.site import PROGRAMS, Site
from spa_protocol.keytext import ServerLine

# The processor of the daemon that is measured, and that of whatever makes its load.
MEASURED: Final = 0
LOADING: Final = 1

FIRST_PORT: Final = 20_000
LIFETIME_S: Final = 2
_READY_WITHIN_S: Final = 120.0
_LOOK_S: Final = 0.5
_AHEAD_US: Final = 5_000_000
_FWKNOP_PACKET_SIZE: Final = 225

_POLICY: Final = f"""
[limits]
max_open = 1_000_000
knocks_per_minute = 1_000_000

[services]
measured = "tcp/1000-65535"

[roles.{crowd.ROLE}]
[[roles.{crowd.ROLE}.allow]]
services = ["measured"]
lifetime = "{LIFETIME_S}s"
max_lifetime = "1h"
"""


@dataclass(frozen=True)
class Scene:
    """A guarded host, somebody who knocks, and somebody else; and where the C programs are."""

    lab: Lab
    cache: Path
    server: Host
    client: Host
    other: Host

    @classmethod
    def in_lab(cls, lab: Lab, cache: Path) -> "Scene":
        """Three hosts on one segment."""
        return cls(lab, cache, lab.host("server"), lab.host("client"), lab.host("other"))

    def program(self, name: str) -> Path:
        """One of the C programs."""
        return built(name, self.cache)

    def serve(self, first: int, last: int) -> Running:
        """TCP services on a range of the server's ports, that greet whoever connects."""
        serving = self.server.start([self.program("connections"), "serve", str(first), str(last)])
        serving.wait_for("listening")
        return serving


def as_records(payloads: Iterable[bytes]) -> bytes:
    """Datagrams as the C programs read them: u16 length (little-endian), payload."""
    return b"".join(struct.pack("<H", len(payload)) + payload for payload in payloads)


class Peer(Protocol):
    """What is asked of both systems."""

    name: str
    scene: Scene

    @property
    def pid(self) -> int:
        """The daemon's process."""

    @property
    def junk(self) -> str:
        """The kind of junk that gets furthest, as flood.c names it."""

    def start(self) -> float:
        """Starts the daemon; how many seconds it took until it heard knocks."""

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends the daemon."""

    def knocks(self, count: int, first_port: int = FIRST_PORT) -> list[bytes]:
        """Knocks of the last of the people, each for the next port, to be sent right now."""


@dataclass
class Ours:
    """spa-server with a crowd enrolled."""

    scene: Scene
    people: int = 1
    name: str = "spaknock"
    site: Site = field(init=False)

    def __post_init__(self) -> None:
        directory = self.scene.lab.new_file("spa")
        directory.mkdir()
        crowd.kept(self.people, self.scene.cache, directory)
        self.site = Site(
            self.scene.lab,
            self.scene.server,
            policy=_POLICY,
            settings='undeclared_target = "accept"\n',
            directory=directory,
        )
        self.site.apply_gate()

    @property
    def server_key(self) -> bytes:
        """The server's public key."""
        return ServerLine.parse(self.site.line).public

    @property
    def pid(self) -> int:
        assert self.site.daemon is not None
        return self.site.daemon.pid

    @property
    def junk(self) -> str:
        return "random:240"

    def start(self) -> float:
        """The daemon itself says when it is ready (sd_notify)."""
        path = self.scene.lab.new_file("ready")
        argv = pinned(MEASURED, PROGRAMS / "spa-server", "--config", self.site.config, "run")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(path))
            began_s = time.monotonic()
            daemon = self.site.daemon = self.scene.server.start(
                argv, env={"NOTIFY_SOCKET": str(path)}
            )
            while not select.select([ready], [], [], _LOOK_S)[0]:
                has_ended = daemon.process.poll() is not None
                if has_ended or time.monotonic() > began_s + _READY_WITHIN_S:
                    raise RuntimeError(f"spa-server is not ready: {daemon.output}")
            return time.monotonic() - began_s

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        self.site.stop(by)

    def knocks(
        self, count: int, first_port: int = FIRST_PORT, *, lifetime_s: int = 0
    ) -> list[bytes]:
        return self.knocks_of([self.people - 1], count, first_port, lifetime_s)

    def knocks_of(
        self,
        people: Sequence[int],
        count: int,
        first_port: int = FIRST_PORT,
        lifetime_s: int = 0,
    ) -> list[bytes]:
        """Knocks of several people in turn."""
        sent_at_us = time.time_ns() // 1000 + _AHEAD_US
        orders = [
            Order(
                people[n % len(people)],
                (f"tcp/{first_port + n}",),
                sent_at_us,
                lifetime_s=lifetime_s,
            )
            for n in range(count)
        ]
        return [crowd.compose(order, self.server_key).payload for order in orders]

    def tag_of(self, person: int) -> bytes:
        """The 8 bytes by which a person's knocks are admitted now."""
        return crowd.tag_of(person, self.server_key, time.time_ns() // 1000)


@dataclass
class Fwknop:
    """fwknopd behind iptables."""

    scene: Scene
    people: int = 1
    lifetime_s: int = LIFETIME_S
    name: str = "fwknopd"
    directory: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory = self.scene.lab.new_file("fwknop")
        self.directory.mkdir()
        (self.directory / "fwknopd.conf").write_text(
            f"PCAP_INTF {next(iter(self.scene.server.places.values())).interface};\n"
            f"FWKNOP_RUN_DIR {self.directory};\n"
        )
        self._rijndael = base64.b64encode(secrets.token_bytes(32)).decode()
        self._hmac = base64.b64encode(secrets.token_bytes(64)).decode()
        stanzas = [self._stanza(*_random_keys()) for _ in range(self.people - 1)]
        stanzas.append(self._stanza(self._rijndael, self._hmac))
        access = self.directory / "access.conf"
        access.write_text("\n".join(stanzas))
        access.chmod(0o600)
        (self.directory / "fwknopd.conf").chmod(0o600)
        for rule in (
            "-P INPUT DROP",
            "-A INPUT -i lo -j ACCEPT",
            "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        ):
            self.scene.server.run(["iptables", *rule.split()])
        self._running: Running | None = None

    def _stanza(self, rijndael: str, hmac: str) -> str:
        return (
            f"SOURCE ANY\nKEY_BASE64 {rijndael}\nHMAC_KEY_BASE64 {hmac}\n"
            f"FW_ACCESS_TIMEOUT {self.lifetime_s}\n"
        )

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    @property
    def junk(self) -> str:
        return f"base64:{_FWKNOP_PACKET_SIZE}"

    def start(self) -> float:
        began = time.monotonic()
        files = ("-c", "fwknopd.conf", "-a", "access.conf", "-d", "digests", "-p", "pid")
        options = [part if part.startswith("-") else self.directory / part for part in files]
        argv = pinned(MEASURED, "fwknopd", "-f", *options)
        self._running = self.scene.server.start(argv)
        self._running.wait_for("Starting fwknopd main event loop", within_s=_READY_WITHIN_S)
        return time.monotonic() - began

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        assert self._running is not None
        self._running.stop(by)

    def knocks(self, count: int, first_port: int = FIRST_PORT) -> list[bytes]:
        """Made by its own client, which is told not to send them."""
        return [self._knock(f"tcp/{first_port + n}") for n in range(count)]

    def client_argv(self, access: str) -> list[str]:
        """Its client, asking for one access."""
        ends = ["-a", str(self.scene.client.v4), "-D", str(self.scene.server.v4)]
        keys = ["--key-base64-rijndael", self._rijndael, "--use-hmac"]
        keys += ["--key-base64-hmac", self._hmac]
        return ["fwknop", "--no-rc-file", "-A", access, *ends, *keys]

    @property
    def client_env(self) -> dict[str, str]:
        """It writes into its user's home."""
        return {**os.environ, "HOME": str(self.directory)}

    def _knock(self, access: str) -> bytes:
        saved = self.directory / "packet"
        saved.unlink(missing_ok=True)
        argv = [*self.client_argv(access), "--test", "--save-packet", str(saved)]
        subprocess.run(argv, env=self.client_env, check=True, capture_output=True)
        return saved.read_bytes().rstrip(b"\n")

    def open_ports(self) -> int:
        """How many ports it holds open."""
        listed = self.scene.server.run(["iptables", "-S", "FWKNOP_INPUT"], check=False).stdout
        return sum(line.startswith("-A") for line in listed.splitlines())


def pinned(processor: int, *argv: object) -> list[str]:
    """A command that runs on one processor alone, where there are several."""
    prefix = ["taskset", "-c", str(processor)] if (os.cpu_count() or 1) > 1 else []
    return [*prefix, *map(str, argv)]


def _random_keys() -> tuple[str, str]:
    return (
        base64.b64encode(secrets.token_bytes(32)).decode(),
        base64.b64encode(secrets.token_bytes(64)).decode(),
    )
