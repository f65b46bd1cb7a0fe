"""server.toml: where things are and how the host is guarded. spa-server(8), "Configuration".

Every key has a default; an empty file is a working configuration.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from keys import tomlfile
from keys.capacity import DEFAULT_MAX_KEYS, LEAST_MAX_KEYS, MOST_MAX_KEYS
from keys.invite import parse_host
from keys.tomlfile import FileProblem, convert, lower_first
from keys.when import parse_duration
from spa_protocol.carrier import UDP, Carrier
from spa_protocol.layout import (
    DEFAULT_FRESHNESS_S,
    DEFAULT_PORT,
    EPOCH_S,
    Address,
    is_plain,
    may_be_elsewhere,
    unmapped,
)
from spa_server.anomaly.settings import Settings, Watching
from spa_server.audit.outputs import OutputSpec
from spa_server.firewall.plan import is_interface_name
from spa_server.listen import ListenAddress
from spa_server.policy.load import parse_network
from spa_server.policy.model import Network

CONFIG_PATH: Final = Path("/etc/spa/server.toml")
CONFIG_VARIABLE: Final = "SPA_SERVER_CONFIG"
_MOST_CARRIERS: Final = 16
_INTERFACE_PREFIX: Final = "interface:"
_NoneOrMore = Annotated[int, msgspec.Meta(ge=0)]
_Days = Annotated[int, msgspec.Meta(ge=1, le=60)]
_Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]
_MaxKeys = Annotated[int, msgspec.Meta(ge=LEAST_MAX_KEYS, le=MOST_MAX_KEYS)]
_MAX_HOOK_S: Final = 300
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Mode(StrEnum):
    """What the gate does with what the policy does not allow."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class WhenFull(StrEnum):
    """What the daemon does while the disk has no room for the record."""

    DENY = "deny"
    SERVE = "serve"


class Undeclared(StrEnum):
    """What becomes of a request that signs no target, and so names no host."""

    REFUSE = "refuse"
    ACCEPT = "accept"


class _AnomaliesTable(msgspec.Struct, forbid_unknown_fields=True):
    watch: bool = True
    threshold: _Share = 0.5
    learning_days: _Days = 5
    trusted: list[str] = []
    hook: str | None = None
    hook_timeout: str = "10s"


class _ServerFile(msgspec.Struct, forbid_unknown_fields=True):
    policy: str = "/etc/spa/policy.toml"
    key: str = "/etc/spa/server.key"
    database: str = "/var/lib/spa/spa.db"
    control: str = "/run/spa/control.sock"
    host: str | None = None
    knock_port: _Port = DEFAULT_PORT
    capture: str = "nflog"
    carriers: tuple[str, ...] = (str(UDP),)
    outer: list[str] | None = None
    shared_sources: list[str] = []
    also_addressed_as: list[str] = []
    undeclared_target: str = Undeclared.REFUSE
    freshness: str = f"{DEFAULT_FRESHNESS_S}s"
    max_keys: _MaxKeys = DEFAULT_MAX_KEYS
    mode: str = Mode.ENFORCE
    observe: list[str] = []
    metrics: str | None = None
    metrics_beyond_loopback: bool = False
    outputs: list[str] | None = None
    retention_days: _NoneOrMore = 400
    retention_mb: _NoneOrMore = 1024
    when_disk_full: str = WhenFull.DENY
    anomalies: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one host, as `path` has them.

    `outer` None: the interfaces that have a default route. `observe` names services of the policy
    which are observed whatever the mode is. `also_addressed_as`: addresses of forwarders before
    this host, which knocks name as their target. `metrics` None: they are off. `outputs` None: the
    journal, for a unit of systemd. `serves_when_full`: knocks are granted also while the disk has
    no room to record it. `max_keys` is how many keys and invites are heard at most: the kernel's
    set of tags is made for so many.
    """

    path: Path
    policy: Path
    key: Path
    database: Path
    control: Path
    knock_port: int
    capture: str
    carriers: tuple[Carrier, ...]
    outer: tuple[str, ...] | None
    shared_sources: tuple[Network, ...]
    also_addressed_as: frozenset[Address]
    accepts_undeclared_target: bool
    freshness_s: float
    max_keys: int
    mode: Mode
    observe: tuple[str, ...]
    metrics: ListenAddress | None
    outputs: tuple[OutputSpec, ...] | None
    retention_days: int
    retention_mb: int
    serves_when_full: bool
    anomalies: Watching

    @property
    def gate_wanted(self) -> Path:
        """The mark that the operator has put the gate in force: it is restored when it is gone.

        Like the one below it is beside this file, where only root may write.
        """
        return self.path.parent / "gate.wanted"

    @property
    def gate_wanted_before(self) -> Path:
        """Where 0.1.0 had it: counts until the gate is applied anew, or removed."""
        return self.database.parent / "gate.wanted"

    @property
    def unrecorded(self) -> Path:
        """The note about requests that could not be recorded, away from the database's disk."""
        return self.control.parent / "unrecorded"

    @property
    def gate_pending(self) -> Path:
        """The mark of a gate that waits to be confirmed (spa_server/marks.py)."""
        return self.path.parent / "gate.pending"


def load_config(path: Path | None = None) -> Config:
    """The configuration in a file; without one named, SPA_SERVER_CONFIG's or the usual file.

    A usual file that is not there means the defaults. Raises FileProblem.
    """
    in_environment = os.environ.get(CONFIG_VARIABLE)
    named = path or (Path(in_environment) if in_environment else None)
    return _load(named or CONFIG_PATH, may_be_missing=named is None)


def reread(config: Config) -> Config:
    """The same with `mode`, `observe` and `carriers` as the file has them now.

    A capture at an interface hears the carriers that it began with. Raises FileProblem.
    """
    now = _load(config.path, may_be_missing=config.path == CONFIG_PATH)
    carriers = now.carriers if config.capture == "nflog" else config.carriers
    return replace(config, mode=now.mode, observe=now.observe, carriers=carriers)


def _load(path: Path, *, may_be_missing: bool) -> Config:
    value = {} if may_be_missing and not path.exists() else tomlfile.read(path)
    read = convert(value, _ServerFile, path, "")
    interface = read.capture.removeprefix(_INTERFACE_PREFIX)
    if read.capture != "nflog" and (interface == read.capture or not is_interface_name(interface)):
        raise FileProblem(path, "capture", 'expected "nflog" or "interface:NAME"')
    for name in read.outer or ():
        if not is_interface_name(name):
            raise FileProblem(path, "outer", f"{name!r} is no name of a network interface")
    if read.mode not in set(Mode):
        raise FileProblem(path, "mode", 'expected "enforce" or "observe"')
    if read.when_disk_full not in set(WhenFull):
        raise FileProblem(path, "when_disk_full", 'expected "deny" or "serve"')
    if read.undeclared_target not in set(Undeclared):
        raise FileProblem(path, "undeclared_target", 'expected "refuse" or "accept"')
    if read.host is not None:  # nothing here needs it, but what tells clients where to knock
        parse_host(read.host, path)
    for key in ("policy", "key", "database", "control"):
        if "\0" in getattr(read, key):
            raise FileProblem(path, key, "no path has a NUL in it")
    home = path.absolute().parent
    return Config(
        path=path.absolute(),
        policy=home / read.policy,
        key=home / read.key,
        database=home / read.database,
        control=home / read.control,
        knock_port=read.knock_port,
        capture=read.capture,
        carriers=_carriers(read.carriers, path),
        outer=None if read.outer is None else tuple(read.outer),
        shared_sources=tuple(
            parse_network(text, path, "shared_sources") for text in read.shared_sources
        ),
        also_addressed_as=frozenset(_address_of_a_host(t, path) for t in read.also_addressed_as),
        accepts_undeclared_target=read.undeclared_target == Undeclared.ACCEPT,
        freshness_s=_duration(read.freshness, path, "freshness", EPOCH_S),
        max_keys=read.max_keys,
        mode=Mode(read.mode),
        observe=tuple(read.observe),
        metrics=_metrics(read, path),
        outputs=None
        if read.outputs is None
        else tuple(_output(text, path) for text in read.outputs),
        retention_days=read.retention_days,
        retention_mb=read.retention_mb,
        serves_when_full=read.when_disk_full == WhenFull.SERVE,
        anomalies=_anomalies(read.anomalies, path),
    )


def _anomalies(table: dict[str, Any], path: Path) -> Watching:
    read = convert(table, _AnomaliesTable, path, "anomalies")
    hook = None if read.hook is None else Path(read.hook)
    if hook is not None and (not hook.is_absolute() or "\0" in str(hook)):
        raise FileProblem(path, "anomalies.hook", f"{read.hook!r} is no absolute path")
    trusted = [parse_network(text, path, "anomalies.trusted") for text in read.trusted]
    settings = Settings(
        threshold=read.threshold, learning_days=read.learning_days, trusted=tuple(trusted)
    )
    timeout_s = _duration(read.hook_timeout, path, "anomalies.hook_timeout", _MAX_HOOK_S)
    return Watching(read.watch, hook, timeout_s, settings)


def _address_of_a_host(text: str, path: Path) -> Address:
    """Raises FileProblem."""
    with suppress(ValueError):
        address = unmapped(ip_address(text))
        if is_plain(address) and may_be_elsewhere(address) and not address.is_link_local:
            return address
    raise FileProblem(path, "also_addressed_as", f"{text!r} is the address of no single host")


def _carriers(texts: tuple[str, ...], path: Path) -> tuple[Carrier, ...]:
    try:
        carriers = tuple(dict.fromkeys(map(Carrier.parse, texts)))
    except ValueError as error:
        raise FileProblem(path, "carriers", str(error)) from None
    if len(carriers) > _MOST_CARRIERS:
        raise FileProblem(path, "carriers", f"expected {_MOST_CARRIERS} at most")
    if UDP not in carriers:
        raise FileProblem(path, "carriers", 'expected "udp" among them, which is always heard')
    return carriers


def _metrics(read: _ServerFile, path: Path) -> ListenAddress | None:
    if read.metrics is None:
        return None
    try:
        return ListenAddress.parse(read.metrics, beyond_loopback=read.metrics_beyond_loopback)
    except ValueError as error:
        raise FileProblem(path, "metrics", str(error)) from None


def _output(text: str, path: Path) -> OutputSpec:
    try:
        return OutputSpec.parse(text)
    except ValueError as error:
        raise FileProblem(path, "outputs", str(error)) from None


def _duration(text: str, path: Path, key: str, most_s: int) -> float:
    """In seconds: one at least, and `most_s` at most. Raises FileProblem."""
    try:
        duration_s = parse_duration(text)
    except ValueError as error:
        raise FileProblem(path, key, lower_first(str(error))) from None
    if not 1 <= duration_s <= most_s:
        raise FileProblem(path, key, f"{text!r} is not between 1s and {most_s}s")
    return duration_s
