"""A guarded host, booted: what it does when it is rebooted, killed, filled, broken and upgraded."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.booted.company import CHECKOUT, OLD, install_server, old_tree, tree
from integration.booted.machine import Machine
from integration.booted.root import TREE
from integration.lab import Host, Lab, Reach, wait_until

pytestmark = pytest.mark.timeout(900)

NAME = "db1.internal"


class Guarded:
    """A host on which README's first steps have been taken, and somebody beside it."""

    def __init__(self, lab: Lab, layers: tuple[Path, ...]) -> None:
        self.server = Machine.new(lab, "db1", *layers)
        self.stranger = lab.host("stranger")
        self.server.boot()

    def close(self) -> None:
        """The gate in force for good, and the daemon, as README has it."""
        for line in (
            f"spa-server init --host {NAME}",
            "spa-server gate apply",
            "systemctl enable --quiet spa-gate spa-server",
            "systemctl start spa-server",
        ):
            self.server.type(line)

    def status(self) -> dict[str, object]:
        return dict(json.loads(self.server.type("spa-server status --json").stdout))

    def events(self, event: str) -> list[dict[str, object]]:
        return list(json.loads(self.server.type(f"spa-server audit --json --event {event}").stdout))

    def failed(self) -> str:
        """The units that failed."""
        return self.server.type("systemctl --failed --plain --no-legend").stdout

    def wait_for_daemon(self) -> None:
        ask = "spa-server status"
        wait_until(lambda: self.server.type(ask, check=False).returncode == 0, within_s=60)

    def reach(self, port: int = 22) -> Reach:
        return self.stranger.reach_tcp(self.server.host.v4, port)


@pytest.fixture(scope="module")
def closed(installed: tuple[Path, ...]) -> Iterator[tuple[Path, ...]]:
    """The layers of a host that is guarded, switched off in good order."""
    with Lab() as lab:
        guarded = Guarded(lab, installed)
        guarded.close()
        guarded.server.off()
        yield guarded.server.own, *installed


@pytest.fixture
def guarded(closed: tuple[Path, ...]) -> Iterator[Guarded]:
    """A copy of it, booted."""
    with Lab() as lab:
        made = Guarded(lab, closed)
        made.wait_for_daemon()
        yield made


@contextmanager
def trying(stranger: Host, target: Machine) -> Iterator[list[Reach]]:
    """Somebody connects to ssh, again and again, and keeps what came of it."""
    found: list[Reach] = []
    over = threading.Event()

    def connect() -> None:
        while not over.is_set():
            found.append(stranger.reach_tcp(target.host.v4, 22, within_s=0.02))

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def test_a_boot_ends_well_and_at_no_moment_of_it_is_a_port_open(guarded: Guarded) -> None:
    server = guarded.server
    with trying(guarded.stranger, server) as found:
        server.off()
        assert server.boot() == "running", guarded.failed()
        guarded.wait_for_daemon()
    assert Reach.OPEN not in found
    assert found[-1] is Reach.SILENT
    assert (
        server.type("systemctl is-active ssh spa-gate spa-server").stdout.split() == ["active"] * 3
    )
    loaded = "systemctl show -P ActiveEnterTimestampMonotonic {}"
    gate, network = (
        int(server.type(loaded.format(unit)).stdout) for unit in ("spa-gate", "network-pre.target")
    )
    assert 0 < gate <= network


def test_a_daemon_that_is_killed_is_back_and_nothing_was_open(guarded: Guarded) -> None:
    server = guarded.server
    before = server.type("systemctl show -P MainPID spa-server").stdout
    with trying(guarded.stranger, server) as found:
        server.type("systemctl kill --signal=KILL spa-server")
        wait_until(
            lambda: (
                server.type("systemctl show -P MainPID spa-server").stdout not in {before, "0\n"}
            ),
            within_s=30,
        )
        guarded.wait_for_daemon()
    assert set(found) == {Reach.SILENT}
    assert "did not end in good order" in str(guarded.events("daemon.started")[-1]["reason"])


def test_a_daemon_that_is_stopped_leaves_all_of_a_database_in_its_file(guarded: Guarded) -> None:
    server = guarded.server
    server.type("systemctl stop spa-server")
    names = server.type("ls -A /var/lib/spa").stdout.split()
    assert not [name for name in names if name.endswith(("-wal", "-shm"))]
    assert guarded.reach() is Reach.SILENT


def test_a_copy_by_hand_is_a_backup_and_nothing_of_it_replays(guarded: Guarded) -> None:
    server = guarded.server
    server.type("systemctl stop spa-server; cp -a /var/lib/spa /root/copy")
    server.type("systemctl start spa-server; spa-server audit verify; systemctl stop spa-server")
    server.type("cp -a /root/copy/. /var/lib/spa/ && systemctl start spa-server")
    assert "cut off" in str(guarded.events("records.lost")[-1]["reason"])
    floor_us = int(server.type("cat /run/spa/unrecorded").stdout)
    assert floor_us > (time.time() - 1) * 1_000_000


def test_backup_while_it_runs_and_restore_on_a_host_that_lost_everything(
    guarded: Guarded,
) -> None:
    server = guarded.server
    line = server.type("spa-server init").stdout
    server.type("spa-keys invite carol --role admin; spa-server backup /root/db1.spa-backup")
    assert server.type("stat -c '%a %U' /root/db1.spa-backup").stdout == "600 root\n"
    assert "stop it first" in server.type("spa-server restore f --yes", check=False).stderr
    told = server.type("journalctl --boot -u spa-server --output cat").stdout.splitlines()
    assert told.count("daemon.started") == 1  # the record is in the journal, a line once
    server.type("systemctl stop spa-server; rm -r /etc/spa /var/lib/spa/*")
    server.type("spa-server restore /root/db1.spa-backup --yes")
    owners = "stat -c %U /var/lib/spa/spa.db /etc/spa/server.key /etc/spa/policy.toml"
    assert server.type(owners).stdout.split() == ["spa", "spa", "root"]
    server.type("spa-server gate apply; systemctl start spa-server")
    assert server.type("spa-server init").stdout == line
    assert "restored from a backup" in str(guarded.events("records.lost")[-1]["reason"])
    server.type("spa-server audit verify")
    assert "carol" in server.type("spa-keys list; spa-keys list --invites || true").stdout


def test_a_policy_that_cannot_be_read_at_boot_closes_everything(guarded: Guarded) -> None:
    server = guarded.server
    server.type("echo 'roles = [' > /etc/spa/policy.toml")
    assert server.reboot() == "degraded"
    assert "spa-gate.service" in guarded.failed()
    assert guarded.reach() is Reach.SILENT
    guarded.wait_for_daemon()
    assert guarded.events("policy.refused")
    told = server.type("journalctl -u spa-gate --output cat").stdout
    assert "/etc/spa/policy.toml: not TOML" in told
    assert "Traceback" not in told


def test_a_full_disk_at_boot_leaves_the_host_closed_and_says_so(guarded: Guarded) -> None:
    server = guarded.server
    small = "tmpfs /var/lib/spa tmpfs size=24m,mode=0750,uid=spa,gid=spa 0 0"
    server.type("systemctl stop spa-server; cp -a /var/lib/spa /root/lib")
    fill = (
        "[Unit]\nDefaultDependencies=no\nBefore=spa-gate.service\n"
        "RequiresMountsFor=/var/lib/spa\n[Service]\nType=oneshot\n"
        "ExecStart=sh -c 'cp -a /root/lib/. /var/lib/spa; cat /dev/zero >/var/lib/spa/full; true'\n"
        "[Install]\nWantedBy=sysinit.target\n"
    )
    server.type(f"echo '{small}' >> /etc/fstab")
    server.type("cat > /etc/systemd/system/fill.service", text=fill)
    server.type("systemctl enable --quiet fill")
    server.reboot()
    assert server.type("df --output=avail /var/lib/spa | tail -1").stdout.strip() == "0"
    assert guarded.reach() is Reach.SILENT
    told = server.type("journalctl --boot -u spa-gate -u spa-server --output cat").stdout
    assert "Traceback" not in told
    assert "the disk is full" in told
    assert guarded.failed() == ""
    server.type("rm /var/lib/spa/full")
    guarded.wait_for_daemon()
    assert guarded.reach() is Reach.SILENT


# Locked out, at three in the morning


def _of_operations(heading: str) -> list[str]:
    """The lines for a shell under a heading of docs/operations.md."""
    text = (TREE / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def test_what_is_to_be_typed_by_who_is_locked_out_does_what_is_said(guarded: Guarded) -> None:
    server = guarded.server
    server.type("spa-keys invite alice --role admin")
    lines = _of_operations("Locked out")
    here = [line for line in lines if not line.startswith(("spa-client", "systemctl", "nft", "mv"))]
    assert guarded.reach() is Reach.SILENT
    for line in here:
        done = server.type(line, check=False)
        assert done.returncode in (0, 1), f"{line}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
    assert guarded.reach() is Reach.OPEN
    server.type("spa-server gate apply")
    assert guarded.reach() is Reach.SILENT


def test_where_the_programs_do_not_start_the_gate_is_opened_by_hand(guarded: Guarded) -> None:
    server = guarded.server
    server.type("mv /opt/spaknock /opt/broken")
    lines = _of_operations("Locked out")
    by_hand = [line for line in lines if line.startswith(("systemctl", "nft", "mv"))]
    assert len(by_hand) == 4
    assert guarded.reach() is Reach.SILENT
    for line in by_hand:
        server.type(line)
    assert guarded.reach() is Reach.OPEN
    assert server.reboot() in ("running", "degraded")
    assert guarded.reach() is Reach.OPEN


# Who may call what

_READING = (
    "spa-server check",
    "spa-server status",
    "spa-server holes",
    "spa-server audit",
    "spa-server audit verify",
    "spa-server audit key",
    "spa-server audit checkpoint",
    "spa-server audit export --format csv --out ~/x.csv; rm -f ~/x.csv",
    "spa-server inspect /tmp/empty.pcap",
    "spa-server explain nobody tcp/22 --from 10.0.0.1",
    "spa-server policy show",
    "spa-server policy history",
    "spa-server policy diff --since 0s",
    "spa-server policy suggest",
    "spa-server report --json > /dev/null",
    "spa-server whois 10.0.0.1:1",
    "spa-server top --once",
    "spa-server gate show",
    "spa-server reload",
    "spa-keys list",
)
_NEEDS_ROOT = ("spa-server gate show", "spa-server check")
_EMPTY_PCAP = (
    "printf '\\xd4\\xc3\\xb2\\xa1\\2\\0\\4\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\4\\0\\1\\0\\0\\0'"
)


def test_every_command_serves_root_and_says_to_others_what_they_may_not(guarded: Guarded) -> None:
    """As root, as the daemon's user, as a member of its group, and as anybody: no traceback, and
    where it fails one line that says what to do."""
    server = guarded.server
    server.type("useradd --create-home --groups spa member && useradd --create-home anybody")
    server.type("mkdir -p /home/spa && chown spa /home/spa")
    server.type(f"{_EMPTY_PCAP} > /tmp/empty.pcap")
    for user in ("root", "spa", "member", "anybody"):
        for line in _READING:
            done = server.type(line, user=user, check=False)
            told = f"{user}: {line}: {done.returncode}: {done.stdout}{done.stderr}"
            assert "Traceback" not in told, told
            assert "unexpected" not in told, told
            assert "chown" not in told, told
            if user == "member" and line == "spa-server audit":
                assert done.returncode == 0, told  # through the daemon
            if user == "root" or (user == "spa" and line not in _NEEDS_ROOT):
                assert done.returncode in (0, 1), told
            if done.returncode == 4:
                assert len(done.stderr.strip().splitlines()) == 1, told
                assert ";" in done.stderr, told
            assert "not verified" not in told or done.returncode == 4, told


# The tree that people come from


def test_an_upgrade_keeps_the_host_closed_and_everybody_enrolled(debian: Path) -> None:
    archive = old_tree()
    if archive is None:
        pytest.skip(f"git has not got {OLD}: git fetch --unshallow")
    with Lab() as lab:
        guarded = Guarded(lab, (debian,))
        server = guarded.server
        install_server(server, archive)
        guarded.close()
        server.type("spa-keys invite alice --role admin")
        before = server.type("spa-keys list; spa-server init").stdout
        server.type("rm -r ~/spaknock")
        server.unpack(tree(), "/root/spaknock")
        with trying(guarded.stranger, server) as found:
            for line in (
                "/opt/spaknock/bin/pip install --upgrade '.[server]'",
                "spa-server backup /root/before.spa-backup",
                "install -m 644 packaging/systemd/spa-*.service /etc/systemd/system/",
                "systemctl daemon-reload",
                "systemctl restart spa-server",
            ):
                server.type(line, at=CHECKOUT)
            guarded.wait_for_daemon()
        assert set(found) == {Reach.SILENT}
        server.type("spa-server check --only gate-differs --only gate-not-loaded")
        server.type("spa-server audit verify")
        assert server.type("spa-keys list; spa-server init").stdout == before
        assert server.reboot() == "running", guarded.failed()
        assert guarded.reach() is Reach.SILENT
        guarded.wait_for_daemon()
