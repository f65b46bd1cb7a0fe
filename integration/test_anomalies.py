"""Anomalies in a real daemon: found, told to the hook, harmless, and known after a kill."""

import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from integration.lab import Host, Lab, Reach, wait_until
from integration.site import RecordSince, Site
from integration.wire import ACCEPTS_UNDECLARED, Caller, Injector, Pen
from spa_protocol.reason import Status

SSH: Final = 22
FOUND: Final = "anomaly.found"
HANGS_S: Final = 3
SAVED_WITHIN_S: Final = 75
HOOK: Final = """#!/bin/sh
if test -e {directory}/hangs; then sleep 600 & echo $! > {directory}/child; wait; fi
cat >> {directory}/told
"""
_last = count(100)


@dataclass
class Scene:
    """A guarded host with a hook, somebody who may knock, and a stranger."""

    site: Site
    client: Host
    stranger: Host
    injector: Injector
    directory: Path

    def told(self) -> list[dict[str, Any]]:
        """The events that the hook was handed."""
        file = self.directory / "told"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def scan(self) -> IPv4Address:
        """Somebody new tries twenty closed ports; who."""
        source = IPv4Address(int(self.stranger.v4) // 256 * 256 + next(_last))
        self.stranger.add_address(f"{source}/24")
        for port in range(3000, 3020):
            with self.stranger.connection(self.site.host.v4, port, source=source):
                time.sleep(0.01)
        return source


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        directory = lab.new_file("hooked")
        directory.mkdir()
        hook = directory / "hook"
        hook.write_text(HOOK.format(directory=directory))
        hook.chmod(0o755)
        settings = f'[anomalies]\nhook = "{hook}"\nhook_timeout = "{HANGS_S}s"\n'
        server, client, stranger = lab.host("server"), lab.host("client"), lab.host("stranger")
        server.serve(SSH)
        site = Site(lab, server, settings=ACCEPTS_UNDECLARED + settings)
        site.apply_gate()
        site.start()
        yield Scene(site, client, stranger, Injector(stranger, server), directory)


@pytest.fixture
def record(scene: Scene) -> RecordSince:
    return scene.site.record_from_now()


def test_a_port_scan_is_one_anomaly_with_its_source_and_the_hook_is_told(
    scene: Scene, record: RecordSince
) -> None:
    source = scene.scan()
    line = record.line(FOUND, source=source)
    assert line["detail"]["kind"] == "scan"
    assert 0.5 <= line["detail"]["score"] <= 1
    assert "12 closed ports" in line["reason"]
    assert len(record.lines(FOUND)) == 1
    wait_until(scene.told, what="the hook to be told")
    (told,) = scene.told()
    assert (told["event"], told["source"]) == (FOUND, str(source))
    assert told["detail"]["signs"]["scan"]["ports"] == 12
    text = scene.site.server("audit", "--event", FOUND).stdout
    assert str(source) in text
    assert "closed ports" in " ".join(text.split())


def test_a_burst_of_replays_is_one(scene: Scene, record: RecordSince) -> None:
    pen = Pen.enrolled(scene.site, "alice", "ops")
    knock = pen.write("tcp/22", lifetime_s=1)
    for last in range(50, 58):
        source = IPv4Address(int(scene.stranger.v4) // 256 * 256 + last)
        scene.injector.knock(knock.payload, source)
    line = record.line(FOUND, identity="alice")
    assert line["detail"]["kind"] == "refusals"
    assert "refused within an hour, the last replayed" in line["reason"]


def test_a_hook_that_hangs_is_ended_and_knocks_are_served_meanwhile(
    scene: Scene, record: RecordSince
) -> None:
    child = scene.directory / "child"
    hangs = scene.directory / "hangs"
    pen = Pen.enrolled(scene.site, "bob", "ops")
    hangs.touch()
    try:
        scene.scan()
        wait_until(child.exists, what="the hook to begin")
        began_s = time.monotonic()
        reply = Caller(pen, scene.client, scene.site.host.v4).ask("tcp/22")
        assert reply is not None
        assert reply.status is Status.GRANTED
        assert scene.client.reach_tcp(scene.site.host.v4, SSH) is Reach.OPEN
        assert time.monotonic() - began_s < HANGS_S
        line = record.line("hook.failed")
        assert f"did not end within {HANGS_S} s and was killed" in line["reason"]
        wait_until(lambda: not _is_alive(int(child.read_text())), what="its child to end")
    finally:
        hangs.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def saved(site: Site) -> set[str]:
    """The names of what is saved."""
    path = site.database.with_name("anomalies.db")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return {name for (name,) in connection.execute("select name from baseline")}


def test_what_was_saved_is_known_after_a_kill(scene: Scene, record: RecordSince) -> None:
    pen = Pen.enrolled(scene.site, "carol", "ops")
    assert Caller(pen, scene.client, scene.site.host.v4).ask("tcp/22") is not None
    key = f"key/{pen.key_id}"
    wait_until(lambda: key in saved(scene.site), within_s=SAVED_WITHIN_S, what="it to be saved")
    told = {line["source"] for line in scene.site.events(FOUND) if line["identity"] is None}
    scene.site.restart(signal.SIGKILL)
    assert key in saved(scene.site)
    (source, *_) = told
    for port in range(4000, 4020):
        with scene.stranger.connection(scene.site.host.v4, port, source=IPv4Address(source)):
            time.sleep(0.01)
    record.line("connection.denied", source=source, access="tcp/4019")
    assert record.lines(FOUND) == [], "a scan that was told is not told again within a day"


def test_a_damaged_file_is_set_aside_and_the_daemon_starts(
    scene: Scene, record: RecordSince
) -> None:
    scene.site.stop()
    path = scene.site.database.with_name("anomalies.db")
    path.write_bytes(b"this is no database " * 1000)
    scene.site.start()
    line = record.line("baselines.lost")
    assert "set aside as anomalies.db.damaged-" in line["reason"]
    source = scene.scan()
    record.line(FOUND, source=source)
