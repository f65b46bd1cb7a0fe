"""Findings about the gate itself, the daemon behind it, and the files that both were made from."""

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from keys.privatefile import KeyFileError
from keys.tomlfile import FileProblem
from keys.trouble import Trouble
from keys.when import rfc3339
from spa_protocol.access import Access, Protocol
from spa_server import hostkey, marks
from spa_server.alignment.finding import Finding
from spa_server.alignment.listing import first_difference
from spa_server.config import Config, load_config
from spa_server.firewall.backstop import KERNEL_LACKS_IT
from spa_server.firewall.plan import Observed
from spa_server.machine import Mark, Origin
from spa_server.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Daemon:
    """Whether a daemon runs, and whether server.toml is as it has read it (None: nobody knows).

    `observes` is whether the gate that it has in force lets everything in. `doubt` is what it could
    not do to the gate, `no_backstop` why there is none by intent,
    `backstop_trouble` why there is none that should be. `unanswered` says why the carriers of
    server.toml could not all be answered, `hindered` why answers do not leave as they should now;
    empty where they do. `deaf_until` is when knocks are heard again, where none are now.
    """

    is_running: bool
    config_is_current: bool | None = None
    observes: bool = False
    doubt: str | None = None
    no_backstop: str | None = None
    backstop_trouble: str | None = None
    unanswered: str = ""
    hindered: str = ""
    deaf_until: str | None = None


@dataclass(frozen=True, slots=True)
class PolicyTexts:
    """The policy on disk and the one that the daemon took last; None for what is not to be read."""

    on_disk: str | None = None
    in_force: str | None = None


def config_is_current(config: Config) -> bool | None:
    """Whether server.toml still says what was read from it; None where there is no such file."""
    if not config.path.exists():
        return None
    try:
        return load_config(config.path) == config
    except FileProblem:
        return False


def check_gate(config: Config, *, is_loaded: bool) -> Iterator[Finding]:
    """Whether the gate is in force, and for good."""
    if not is_loaded:
        yield Finding(
            "gate-not-loaded",
            "gate",
            "the gate is not loaded: every port is as open as it was before",
            "spa-server gate apply --confirm-within 60s",
        )
    elif marks.is_on_trial(config) or not marks.is_wanted(config):
        yield Finding(
            "gate-not-confirmed",
            "gate",
            f"the gate is loaded, but not confirmed: it goes {_when(config)}, or at a restart",
            "spa-server gate confirm",
        )


def _when(config: Config) -> str:
    trial = marks.waiting(config)
    if trial is not None and isinstance(trial.until_us, int):
        with suppress(ValueError, OverflowError):
            return f"at {rfc3339(trial.until_us)}"
    return "when its time is over"


def check_listing(listed: str, planned: str) -> Iterator[Finding]:
    """Whether the gate in the kernel is the planned one, both as nft lists them."""
    difference = first_difference(listed, planned)
    if difference is not None:
        yield Finding(
            "gate-differs",
            "gate",
            f"the gate in the kernel is not what policy and configuration ask for: {difference}",
            "put it right: spa-server gate apply --confirm-within 60s",
        )


def check_daemon(daemon: Daemon, *, is_loaded: bool) -> Iterator[Finding]:
    """A gate without a daemon lets nobody in."""
    if is_loaded and not daemon.is_running:
        yield Finding(
            "daemon-not-running",
            "daemon",
            "the gate is loaded and no daemon runs: nobody who knocks is heard",
            "systemctl start spa-server",
        )
    if daemon.deaf_until:
        yield Finding(
            "nobody-heard",
            "daemon",
            f"nobody is heard until {daemon.deaf_until}: which knocks were used before that, this"
            " host does not know, after a restore, a boot or a lost record",
            "wait until then, and knock",
        )
    if daemon.unanswered:
        yield Finding(
            "carrier-unanswered",
            "carriers",
            daemon.unanswered,
            "then: spa-server gate apply --confirm-within 60s",
        )
    elif daemon.hindered:
        yield Finding(
            "answers-hindered",
            "daemon",
            daemon.hindered,
            "see who has the port: ss -ulpn; the daemon takes it when it is free",
        )


def check_key(config: Config) -> Iterator[Finding]:
    """Whether the daemon can use the server's key, and whether it was made on this machine."""
    try:
        hostkey.load(config)
        _must_be_readable_by_the_daemon(config)
    except KeyFileError as error:
        if os.geteuid() != 0 and config.key.exists() and not os.access(config.key, os.R_OK):
            yield Finding(
                "not-checked", "server.key", "server.key was not looked at", "run as root"
            )
            return
        yield Finding(
            "server-key-unusable",
            "server.key",
            f"the daemon cannot use server.key, and does not start: {error.message}",
            error.hint or "restore it from a backup, or move it away and run spa-server init",
        )
        return
    try:
        yield from check_machine(config)
    except Trouble as trouble:
        yield Finding("not-checked", Mark(config.key).path.name, trouble.message, trouble.hint)


def _must_be_readable_by_the_daemon(config: Config) -> None:
    """Root reads its own key anywhere; the daemon is the user to whom its directory belongs.

    Raises KeyFileError.
    """
    if os.geteuid() != 0:
        return
    with suppress(OSError):
        service, owner = config.database.parent.stat().st_uid, config.key.stat().st_uid
        if service not in (0, owner):
            hint = f"run: chown {service} {shlex.quote(str(config.key))}"
            raise KeyFileError(f"{config.key} is not the daemon's user's", hint)


def check_machine(config: Config) -> Iterator[Finding]:
    """Whether the server's key was made on this machine. Raises Trouble for an unreadable mark."""
    origin = Mark(config.key).origin()
    if origin is Origin.ELSEWHERE:
        yield Finding(
            "key-of-another-machine",
            "server.key",
            "server.key came with another machine: as long as both run, a knock for one may open "
            "the other, and the daemon does not start",
            "spa-server adopt-key if this one takes its place; else delete the key, and init",
        )
    elif origin is Origin.UNKNOWN:
        yield Finding(
            "key-of-no-machine",
            "server.key",
            "nothing says on which machine server.key was made, so a clone of this one would not "
            "know that it is one",
            "spa-server adopt-key",
        )


def check_doubts(daemon: Daemon) -> Iterator[Finding]:
    """What the daemon says that it could not do, and what stands behind the gate."""
    if daemon.doubt is not None:
        yield Finding(
            "gate-in-doubt",
            "gate",
            f"the daemon could not do all that the gate needs, and tries again: {daemon.doubt}",
            "put right what it names; the record has more: spa-server audit --event gate.failed",
        )
    if daemon.backstop_trouble is not None:
        yield Finding(
            "backstop-failed",
            "gate",
            f"the table behind the gate cannot be made: {daemon.backstop_trouble}; "
            "whoever deletes the gate opens the host until it is put back",
            "who else has a table inet spa_backstop? nft list table inet spa_backstop",
        )
    elif daemon.no_backstop and not daemon.observes:
        yield Finding(
            "no-backstop",
            "gate",
            f"no table stands behind the gate: {daemon.no_backstop}; "
            "whoever deletes the gate opens the host until it is put back",
            "a kernel from 6.9 on keeps the host closed even then"
            if daemon.no_backstop == KERNEL_LACKS_IT
            else "have the daemon make it: spa-server gate apply --confirm-within 60s",
        )


def check_files(daemon: Daemon, policy: PolicyTexts) -> Iterator[Finding]:
    """What has been written since the daemon read it."""
    if not daemon.is_running:
        return
    if daemon.config_is_current is False:
        yield Finding(
            "config-changed",
            "server.toml",
            "server.toml was changed after the daemon read it",
            "systemctl restart spa-server; holes and sessions live on. Where mode or observe closes"
            " what is open, on trial: spa-server gate apply --confirm-within 60s",
        )
    if policy.in_force is not None and policy.on_disk not in (None, policy.in_force):
        yield Finding(
            "policy-not-in-force",
            "policy.toml",
            "policy.toml is not the policy that the daemon has in force",
            "spa-server policy test, then spa-server reload",
        )


def check_observed(observed: Observed) -> Iterator[Finding]:
    """A gate that only looks on, for all ports or for some."""
    if observed:
        yield Finding(
            "gate-observes",
            "gate",
            f"the gate observes {observed}: what no rule allows is let in there, and recorded",
            "when the record shows nothing unexpected: mode = 'enforce', and no observe",
        )


def check_held_back(config: Config, kept: Observed) -> Iterator[Finding]:
    """What is observed although server.toml no longer says so: a restart closes nothing."""
    if kept:
        yield Finding(
            "config-held-back",
            "server.toml",
            f"{config.path} no longer observes {kept}, and the gate still does, as it was when it"
            " was last kept: what is open there is closed on trial, and by no restart",
            "spa-server gate apply --confirm-within 60s",
        )


def check_cut(policy: Policy, own_ports: range) -> Iterator[Finding]:
    """Whether a `cut` port may be one of this host's own: `own_ports` are those that the kernel
    gives to outgoing connections, whose answers a cut port would not let in."""
    own = Access(Protocol.TCP, own_ports.start, own_ports.stop - 1)
    for access in policy.cut:
        if Access(Protocol.TCP, access.first, access.last).overlaps(own):
            yield Finding(
                "cut-among-own-ports",
                str(access),
                f"{access} is cut, and the kernel may give its port to an outgoing connection",
                f"sysctl net.ipv4.ip_local_reserved_ports={access.first}-{access.last}",
            )
