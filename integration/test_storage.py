"""The disk is really full, or the database is damaged: what is told, what is kept, what is refused.

What a client reads on a full disk, and that nothing opens by default: integration/test_faults.py.
"""

import random
import re
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from integration.lab import Host, Lab, Reach, echoes, wait_until
from integration.site import PROGRAMS
from integration.smalldisk import SmallDisk
from keys.when import parse_moment

KNOCK_PORT: Final = 62201
TROUBLE: Final = 4
REFUSED: Final = 1
METRICS: Final = "127.0.0.1:9062"
PARTS: Final = ("", "-wal", "-shm")


class Scene(SmallDisk):
    """And how it is with the recording."""

    def metric(self, name: str) -> float:
        """What Prometheus would read."""
        time.sleep(1.1)  # a snapshot is good for a second
        with self.site.host.inside(), urllib.request.urlopen(f"http://{METRICS}/metrics") as told:
            found = re.search(rf"^{name} (\S+)$", told.read().decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])

    def reach(self, port: int, at: Host | None = None) -> Reach:
        return (at or self.client).reach_tcp(self.site.host.v4, port)

    @property
    def said(self) -> list[str]:
        """What the daemon has printed, which is what the journal has."""
        assert self.site.daemon is not None
        return self.site.daemon.output.splitlines()


def made(lab: Lab, settings: str, size: str = "1m") -> Scene:
    return Scene.new(lab, f'\nmetrics = "{METRICS}"\n{settings}', size)


@pytest.fixture
def denies(lab: Lab) -> Scene:
    scene = made(lab, "")
    scene.site.start()
    return scene


@pytest.fixture
def serves(lab: Lab) -> Scene:
    scene = made(lab, 'when_disk_full = "serve"\n')
    scene.site.start()
    return scene


# The disk is full


def test_a_full_disk_is_told_and_so_is_its_end(denies: Scene) -> None:
    site = denies.site
    assert (site.status()["record_trouble"], denies.metric("spa_ledger_behind")) == ("", 0)
    since_us = time.time_ns() // 1000
    denies.fill()
    for _ in range(3):
        assert denies.alice.knock(denies.client, "tcp/22", check=False).returncode == REFUSED
    assert site.status()["record_trouble"] == "database or disk is full"
    assert denies.metric("spa_ledger_behind") == 1
    trouble = "spa-server: the record cannot be written: database or disk is full"
    assert denies.said == [f"{trouble}; until it can, nothing is granted"]

    denies.make_room()
    wait_until(denies.is_up_to_date, what="the record to be written")
    until_us = time.time_ns() // 1000
    assert (site.status()["record_trouble"], denies.metric("spa_ledger_behind")) == ("", 0)
    [late] = site.events("records.late")
    count = late["detail"]["count"]  # the refusals, and drift that was found meanwhile
    assert denies.said[1:] == [f"spa-server: the record is written again; {count} lines had waited"]
    begun_us, ended_us = (parse_moment(at, 0) for at in (late["at"], late["detail"]["until"]))
    assert since_us < begun_us < ended_us < until_us
    assert (count >= 3, late["detail"]["granted"]) == (True, 0)
    assert late["reason"] == "database or disk is full"
    assert site.server("audit", "verify").returncode == 0


def test_where_the_operator_wished_it_knocks_are_served_and_recorded_later(serves: Scene) -> None:
    site = serves.site
    serves.fill()
    serves.alice.knock(serves.client, "tcp/22", "--lifetime", "10m")
    with serves.client.connection(site.host.v4, 22) as session:
        assert echoes(session)
    serves.alice.knock(serves.client, "tcp/80", "--lifetime", "1s")
    wait_until(lambda: serves.reach(80) is Reach.SILENT, what="a hole to close on time")
    assert serves.reach(22, serves.other) is Reach.SILENT
    assert not serves.is_up_to_date()
    assert [hole["access"] for hole in site.holes()] == ["tcp/22"]
    assert serves.said[0].endswith("until it can, what is granted is kept in memory")
    assert site.events("knock.accepted") == []

    serves.make_room()
    wait_until(serves.is_up_to_date, what="the record to be written")
    for event in ("knock.accepted", "hole.opened"):
        lines = site.events(event)
        assert [(line["identity"], line["access"]) for line in lines] == [
            ("alice", "tcp/22"),
            ("alice", "tcp/80"),
        ]
    assert {line["identity"] for line in site.events("connection.permitted")} == {"alice"}
    assert [line["access"] for line in site.events("hole.expired")] == ["tcp/80"]
    [late] = site.events("records.late")
    assert late["detail"]["granted"] == 2
    assert late["at"] <= site.events("knock.accepted")[0]["at"] <= late["detail"]["until"]
    assert site.server("audit", "verify").returncode == 0
    site.restart(signal.SIGKILL)
    assert [hole["access"] for hole in site.holes()] == ["tcp/22"]


def test_what_was_served_unrecorded_is_never_served_again(serves: Scene) -> None:
    """Neither by this daemon, nor by those after it: while the disk is full, and when it is not."""
    site, other = serves.site, serves.other
    with other.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as knocking:
        knocking.bind(("", KNOCK_PORT))
        target = ("--target", str(site.host.v4))
        options = (*target, "--source", "none", "--no-reply", "--lifetime", "10m")
        serves.alice.knock_at(serves.client, other.v4, "tcp/22", *options)
        recorded = knocking.recv(1000)
        serves.fill()

        def send() -> Reach:
            knocking.sendto(recorded, (str(site.host.v4), KNOCK_PORT))
            site.status()
            site.status()
            return serves.reach(22, other)

        assert send() is Reach.OPEN
        site.server("close", "--all")
        assert send() is Reach.SILENT
        last = site.audit("--limit", "1")[-1]["at"]

        site.restart(signal.SIGKILL)
        assert send() is Reach.SILENT
        serves.alice.knock(serves.client, "tcp/80", "--lifetime", "10m")
        assert serves.reach(80) is Reach.OPEN

        site.stop(signal.SIGKILL)
        serves.make_room()
        assert serves.reach(80) is Reach.OPEN
        site.start()
        assert serves.reach(80) is Reach.SILENT  # nobody knows whose it is
        assert send() is Reach.SILENT
    [started] = site.events("daemon.started")[1:]
    assert started["detail"]["since"] == last
    assert site.events("hole.opened") == []
    refused = site.events("knock.refused")
    assert [line["reason"] for line in refused] == ["replayed"]
    serves.alice.knock(serves.client, "tcp/80")
    assert serves.reach(80) is Reach.OPEN


def test_a_daemon_that_is_stopped_meanwhile_says_what_is_lost(serves: Scene) -> None:
    serves.fill()
    serves.alice.knock(serves.client, "tcp/22")
    serves.site.stop()
    assert re.fullmatch(r"spa-server: .* could not be written: \d+ lines are lost", serves.said[-1])
    serves.make_room()
    serves.site.start()
    started = serves.site.events("daemon.started")
    assert [line["reason"] is None for line in started] == [True, False]


# The database is damaged


def garble(path: Path, start: int = 0, end: int | None = None) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(start)
        file.write(random.Random(1).randbytes((end or size) - start))


def truncate(path: Path) -> None:
    path.write_bytes(b"")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("of somebody's")


DAMAGES: Final[dict[str, Callable[[Path], None]]] = {
    "garbage in the middle": lambda path: garble(path, 4096, 40_960),
    "garbage at its head": lambda path: garble(path, 0, 100),
    "no byte": truncate,
    "a directory": make_directory,
}


def content(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {each.name: each.read_bytes() for each in path.iterdir()}
    return {"": path.read_bytes()}


@pytest.fixture(scope="module")
def stopped() -> Iterator[Scene]:
    """A site that has been used, whose daemon was stopped in good order."""
    with Lab() as lab:
        scene = made(lab, 'freshness = "2s"\n', "64m")
        scene.site.start()
        scene.alice.knock(scene.client, "tcp/22", "--lifetime", "1s")
        scene.site.stop()
        yield scene


@pytest.fixture
def backup(stopped: Scene, tmp_path: Path) -> Iterator[Path]:
    """A sound copy of the database, which is put back in the end."""
    copy = tmp_path / "backup"
    shutil.copy2(stopped.site.database, copy)
    yield copy
    assert stopped.site.daemon is not None
    stopped.site.stop()
    for each in stopped.site.directory.glob("spa.db*"):
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    shutil.copy2(copy, stopped.site.database)


def refusal(scene: Scene, *, without: str = "") -> str:
    """What a daemon says that does not start: one line."""
    prefix = ["setpriv", f"--bounding-set={without}"] if without else []
    argv = [*prefix, str(PROGRAMS / "spa-server"), "--config", str(scene.site.config), "run"]
    done = scene.site.host.run(argv, check=False)
    assert (done.returncode, done.stdout) == (TROUBLE, "")
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.usefixtures("backup")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_told_kept_and_set_aside(stopped: Scene, damage: str) -> None:
    site = stopped.site
    DAMAGES[damage](site.database)
    before = content(site.database)
    for _ in range(2):
        line = refusal(stopped)
        assert str(site.database) in line
        assert line.endswith(
            "restore a backup: spa-server restore FILE;"
            " or: spa-server audit set-aside --keep-registry"
        )
        assert content(site.database) == before
    wait_until(lambda: stopped.reach(22) is Reach.SILENT, what="the hole before to end")

    site.server("audit", "set-aside", "--keep-registry", "--yes")
    aside = [path for path in site.directory.glob("spa.db.damaged-*Z") if "-wal" not in path.name]
    assert [content(path) for path in aside] == [before]
    site.start()
    [lost, started, *_] = site.audit()
    assert aside[0].name in lost["reason"]
    assert (started["event"], started["reason"]) == ("daemon.started", None)
    dora = site.enrol("dora", "ops")
    site.status()  # as spa-keys has it look, where it knows the socket
    time.sleep(2.5)  # until then every knock counts as replayed
    dora.knock(stopped.client, "tcp/22", "--lifetime", "1s")
    assert stopped.reach(22) is Reach.OPEN


def test_a_backup_in_its_place_does_as_well(stopped: Scene, backup: Path) -> None:
    truncate(stopped.site.database)
    refusal(stopped)
    shutil.copy2(backup, stopped.site.database)
    stopped.site.start()
    time.sleep(2.5)  # it is older than what was signed: until then every knock counts as replayed
    stopped.alice.knock(stopped.client, "tcp/22", "--lifetime", "1s")


@pytest.mark.usefixtures("backup")
def test_a_database_that_may_not_be_opened(stopped: Scene) -> None:
    """It is not damaged, and nobody is told to set it aside."""
    database = stopped.site.database
    before = content(database)
    database.chmod(0)
    line = refusal(stopped, without="-dac_override,-dac_read_search")
    assert str(database) in line
    assert line.endswith("run this as its owner or as root")
    assert content(database) == before
    database.chmod(0o600)
    stopped.site.start()


def test_damaged_while_the_daemon_runs(denies: Scene) -> None:
    """Nothing is granted, the client is told, and what is said is one line, however long it is."""
    site = denies.site
    denies.alice.knock(denies.client, "tcp/22", "--lifetime", "10m")
    for part in PARTS:
        garble(Path(f"{site.database}{part}"))
    damaged = content(site.database)
    for _ in range(3):
        knock = denies.alice.knock(denies.client, "tcp/80", check=False)
        assert knock.returncode == REFUSED
        assert "the gate is unavailable; try again, or tell an operator" in knock.stderr
        assert denies.reach(80) is Reach.SILENT
    assert (site.status()["record"], denies.metric("spa_ledger_behind")) == ("behind", 1)
    assert "not a database" in site.status()["record_trouble"]
    time.sleep(1.5)
    [line] = denies.said
    assert "the registry cannot be read: file is not a database" in line
    assert line.endswith("until it can, nothing is granted")
    assert denies.reach(22) is Reach.OPEN
    site.server("close", "--all")
    assert denies.reach(22) is Reach.SILENT
    site.stop()
    assert content(site.database) == damaged
    assert "spa-server audit set-aside" in refusal(denies)
