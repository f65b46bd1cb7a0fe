"""Backup and restore: one moment of a host, put back so that nothing that was over begins again."""

import io
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result

from keys import identity, schema, serverkey
from keys.registry import Registry
from keys.trouble import Trouble
from spa_server.audit import aside, lastrun
from spa_server.audit.backlog import Batch
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.cleanup import working_directory
from spa_server.cli import main
from spa_server.commands.common import explained
from spa_server.config import Config, load_config
from spa_server.replay import Burn
from tests.world import NOW_US, SECOND

POLICY = '[services]\nssh = "tcp/22"\n'


@dataclass
class Host:
    """A host that a daemon might guard, with a database that stays open."""

    path: Path

    def __post_init__(self) -> None:
        self.path.mkdir(exist_ok=True)
        names = ("policy.toml", "server.key", "spa.db", "control.sock")
        keys = ("policy", "key", "database", "control")
        lines = [f'{key} = "{name}"\n' for key, name in zip(keys, names, strict=True)]
        (self.path / "server.toml").write_text("".join(lines))

    @property
    def config(self) -> Config:
        return load_config(self.path / "server.toml")

    def furnish(self) -> "Host":
        (self.path / "policy.toml").write_text(POLICY)
        serverkey.save(serverkey.generate(), self.path / "server.key")
        return self

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["--config", str(self.config.path), *arguments])

    def backup(self) -> Path:
        file = self.path / "host.backup"
        done = self.run("backup", str(file), "--force")
        assert done.exit_code == 0, done.output
        return file

    def restore(self, file: Path) -> Result:
        return self.run("restore", str(file), "--yes")

    def names(self, statement: str) -> list[str]:
        with closing(sqlite3.connect(self.path / "spa.db")) as connection:
            return sorted(str(row[0]) for row in connection.execute(statement))


class Running:
    """What a daemon has open."""

    def __init__(self, host: Host) -> None:
        self.connection = schema.connect(host.config.database)
        self.registry = Registry(self.connection)
        self.ledger = Ledger(
            self.connection,
            self.registry.seen,
            unrecorded=host.config.unrecorded,
            boot_id="this boot",
        )

    def burn(self, key_id: str, at_us: int) -> None:
        records = [Record(Event.KNOCK_ACCEPTED, at_us, identity="alice", key_id=key_id)]
        burned = [Burn(key_id, bytes(24), at_us)]
        self.ledger.commit(Batch(burned=burned, records=records), at_us)

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host").furnish()


def test_a_backup_of_a_daemon_that_runs_has_what_is_only_in_the_log(host: Host) -> None:
    with closing(Running(host)) as running:
        running.connection.execute("pragma wal_autocheckpoint = 0")
        running.burn("first", NOW_US)
        file = host.backup()
        running.burn("second", NOW_US + SECOND)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = Host(host.path.parent / "other")
    assert other.restore(file).exit_code == 0
    assert other.names("select key_id from burned") == ["first"]
    assert (other.path / "server.key").read_text() == (host.path / "server.key").read_text()
    assert (other.path / "policy.toml").read_text() == POLICY
    assert not list(other.path.glob("*-wal"))
    assert not list(other.path.glob(".spa*"))


def test_what_was_burned_and_revoked_since_the_backup_stays_so(host: Host) -> None:
    with closing(Running(host).connection) as connection:
        registry = Registry(connection)
        for name in ("alice", "bob"):
            registry.enroll(name, identity.generate().public, roles=[], now_us=NOW_US, actor="test")
    file = host.backup()
    running = Running(host)
    running.burn("since", NOW_US)
    with schema.transaction(running.connection):
        running.connection.execute("insert into burned_floor values ('long ago', 7)")
        running.connection.execute("update \"key\" set revoked_at_us = 5 where identity = 'bob'")
    running.close()
    done = host.restore(file)
    assert done.exit_code == 0, done.output
    assert host.names("select key_id from burned") == ["since"]
    assert host.names("select key_id from burned_floor") == ["long ago"]
    assert host.names('select identity from "key" where revoked_at_us is null') == ["alice"]


def test_after_a_restore_no_key_stands_for_one_that_was_revoked(host: Host) -> None:
    """In the backup it is being replaced; it was revoked since, which took its place away."""
    with closing(Running(host).connection) as connection:
        registry = Registry(connection)
        keys = [identity.generate().public for _ in range(2)]
        for key, old in zip(keys, (None, keys[0].key_id), strict=True):
            registry.enroll("alice", key, replaces=old, now_us=NOW_US, actor="test")
    file = host.backup()
    with closing(Running(host).connection) as connection:
        Registry(connection).revoke(keys[0].key_id, now_us=NOW_US, actor="test")
    assert host.restore(file).exit_code == 0
    with closing(Running(host).connection) as connection:
        assert Registry(connection).successions() == {}


def test_nothing_that_could_be_fresh_is_heard_after_a_restore(host: Host) -> None:
    Running(host).close()
    done = host.restore(host.backup())
    assert done.exit_code == 0, done.output
    floor_us = int(host.config.unrecorded.read_text())
    with closing(Running(host).connection) as connection:
        told_at = connection.execute("select at_us from event where event = 'records.lost'")
        assert floor_us == told_at.fetchone()[0] + 30 * SECOND


def test_what_was_there_gets_another_name_and_its_log_with_it(host: Host) -> None:
    running = Running(host)
    running.connection.execute("pragma wal_autocheckpoint = 0")
    file = host.backup()
    running.burn("in the log only", NOW_US)
    assert (host.path / "spa.db-wal").stat().st_size
    assert host.restore(file).exit_code == 0
    (moved,) = host.path.glob("spa.db.replaced-*Z")
    assert Path(f"{moved}-wal").stat().st_size
    assert "restored from a backup" in host.names("select reason from event")[-1]
    running.close()


def test_settings_that_are_there_stay_and_are_named(host: Host) -> None:
    Running(host).close()
    file = host.backup()
    (host.path / "policy.toml").write_text(POLICY + "# newer\n")
    done = host.restore(file)
    assert (host.path / "policy.toml").read_text().endswith("# newer\n")
    assert "policy.toml stays, and differs from the backup's" in done.stderr
    assert "server.key stays" not in done.stderr


def test_a_damaged_database_is_replaced(host: Host) -> None:
    Running(host).close()
    file = host.backup()
    (host.path / "spa.db").write_bytes(b"not a database" * 1000)
    done = host.restore(file)
    assert done.exit_code == 0, done.output
    assert "compare spa-keys list" in done.stderr
    Running(host).close()


@pytest.mark.parametrize("content", [b"", b"no archive", bytes(10240)])
def test_what_is_no_backup_changes_nothing(host: Host, content: bytes) -> None:
    Running(host).close()
    before = (host.path / "spa.db").read_bytes()
    file = host.path / "x"
    file.write_bytes(content)
    done = host.restore(file)
    assert (done.exit_code, done.stderr.count("\n")) == (4, 1)
    assert "is no whole backup; name a file that" in done.stderr
    assert (host.path / "spa.db").read_bytes() == before
    assert not list(host.path.glob(".spa*"))


def test_a_backup_that_was_cut_short_changes_nothing(host: Host) -> None:
    Running(host).close()
    file = host.backup()
    file.write_bytes(file.read_bytes()[:40_000])
    assert host.restore(file).exit_code == 4
    assert not list(host.path.glob("*.replaced-*"))


@pytest.mark.parametrize("name", ["../evil", "evil", "spa.db", "server.key"])
def test_an_archive_writes_nothing_but_what_a_backup_holds(host: Host, name: str) -> None:
    """A link instead of a database, or a file outside."""
    Running(host).close()
    file = host.backup()
    with tarfile.open(file, "a") as archive:
        member = tarfile.TarInfo(name)
        if name == "spa.db":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
        else:
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
    done = host.restore(file)
    assert done.exit_code == (4 if name in {"spa.db", "server.key"} else 0), done.output
    assert not (host.path / "evil").exists()
    assert not (host.path.parent / "evil").exists()
    assert not (host.path / "spa.db").is_symlink()


def test_a_backup_replaces_no_file_and_follows_no_link_unless_forced(host: Host) -> None:
    Running(host).close()
    file = host.path / "there"
    file.write_text("mine")
    assert "exists already" in host.run("backup", str(file)).stderr
    assert file.read_text() == "mine"
    link = host.path / "link"
    link.symlink_to(file)
    assert host.run("backup", str(link), "--force").exit_code == 0
    assert file.read_text() == "mine"
    assert "is no file" in host.run("backup", "/dev/null", "--force").stderr
    assert Path("/dev/null").is_char_device()


def test_the_log_of_another_database_beside_a_copy_is_named(host: Host) -> None:
    """Somebody copied an older database to the place of one whose daemon was killed."""
    running = Running(host)
    for name in ("registry", "record"):  # pages that the log then holds no more
        running.connection.execute("pragma wal_checkpoint(truncate)")
        older = (host.path / "spa.db").read_bytes()
        with schema.transaction(running.connection):
            running.connection.executemany(
                "insert into identity values (?, 1)", [(f"{name}{n:05}",) for n in range(5000)]
            )
    running.connection.execute("pragma wal_checkpoint(truncate)")
    running.burn("last", NOW_US)
    with schema.transaction(running.connection):
        running.connection.execute("delete from identity where name like '%7'")
    log = (host.path / "spa.db-wal").read_bytes()
    running.close()
    (host.path / "spa.db").write_bytes(older[: len(older) // 4096 // 2 * 4096])
    (host.path / "spa.db-wal").write_bytes(log)
    copied = "if it was copied to this place"
    with pytest.raises(Trouble, match=copied) as raised, explained(host.path / "spa.db"):
        schema.must_be_sound(host.path / "spa.db", schema.TABLES)
    assert f"its log is another's: rm {host.path}/spa.db-wal; else restore" in raised.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_what_root_restores_belongs_to_the_owner_of_the_directory_and_follows_no_link(
    tmp_path: Path,
) -> None:
    host = Host(tmp_path / "host").furnish()
    Running(host).close()
    file = host.backup()
    (host.path / "server.key").unlink()
    for directory in tmp_path.parents:
        if directory.name.startswith("pytest-"):
            directory.chmod(0o755)
    tmp_path.chmod(0o755)
    for each in (host.path, *host.path.iterdir()):
        os.chown(each, 65534, 65534)
    file.chmod(0o600)
    os.chown(file, 0, 0)
    victim = tmp_path / "roots"
    victim.write_text("mine")
    for name in (".spa-restore", "denials.db"):
        (host.path / name).symlink_to(victim)
        os.chown(host.path / name, 65534, 65534, follow_symlinks=False)
    done = host.restore(file)
    assert done.exit_code == 0, done.output
    for name in ("spa.db", "server.key", "unrecorded"):
        assert (host.path / name).stat().st_uid == 65534
    assert victim.read_text() == "mine"
    assert victim.stat().st_uid == 0


STOPPED: Final = """
import os, sys
from spa_server import {module} as module
from spa_server.cleanup import working_directory
from spa_server.cli import main
def stop(*_arguments, **_options):
    os.kill(os.getpid(), {number})
    raise SystemExit("it went on")
module.{step} = stop
main(sys.argv[1:])
"""


def stopped(host: Host, module: str, step: str, by: signal.Signals, *arguments: str) -> int:
    """Runs a command that is sent a signal when it comes to a step; how it ended."""
    code = STOPPED.format(module=module, step=step, number=int(by))
    argv = [sys.executable, "-c", code, "--config", str(host.config.path), *arguments]
    outside = host.path.parent / "elsewhere"
    outside.mkdir(exist_ok=True)
    env = {**os.environ, "TMPDIR": str(outside)}
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert list(outside.iterdir()) == []
    assert "Traceback" not in ended.stderr
    assert "it went on" not in ended.stderr
    return ended.returncode


def files(host: Host) -> set[Path]:
    """All but what SQLite keeps beside a database that is open, or was."""
    return {each for each in host.path.iterdir() if not each.name.endswith(("-wal", "-shm"))}


RESTORING: Final = [("backup", "unpack"), ("restore", "_carry_over"), ("restore", "_enter")]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(("module", "step"), RESTORING)
def test_a_restore_that_is_told_to_stop_leaves_nothing(
    host: Host, module: str, step: str, by: signal.Signals
) -> None:
    Running(host).connection.close()
    file = host.backup()
    before = files(host)
    assert stopped(host, module, step, by, "restore", str(file), "--yes") == 130
    assert files(host) == before


@pytest.mark.parametrize(("module", "step"), RESTORING)
def test_what_a_killed_restore_leaves_is_beside_the_database_and_goes_with_the_next(
    host: Host, module: str, step: str
) -> None:
    Running(host).connection.close()
    file = host.backup()
    before = {*files(host), host.path / ".spa-restore"}
    killed = stopped(host, module, step, signal.SIGKILL, "restore", str(file), "--yes")
    assert killed == -signal.SIGKILL
    assert files(host) == before
    left = host.path / ".spa-restore"
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    assert {each.name for each in left.iterdir()}.isdisjoint({"server.key", "policy.toml"})
    (left / "link").symlink_to(host.path)
    assert host.restore(file).exit_code == 0
    assert not left.exists()
    assert (host.path / "server.toml").exists()


def test_a_restore_is_whole_once_it_has_begun_to_replace(host: Host) -> None:
    """Ctrl-C waits meanwhile."""
    Running(host).connection.close()
    file = host.backup()
    code = STOPPED.format(module="restore", step="_move_away", number=int(signal.SIGTERM))
    code = code.replace("def stop", "before = module._move_away\ndef stop")
    code = code.replace('raise SystemExit("it went on")', "return before(*_arguments)")
    argv = [sys.executable, "-c", code, "--config", str(host.config.path)]
    ended = subprocess.run([*argv, "restore", str(file), "--yes"], timeout=60, check=False)
    assert ended.returncode == 130
    assert "restored from a backup" in host.names("select reason from event")[-1]
    assert not (host.path / ".spa-restore").exists()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_backup_that_is_stopped_leaves_no_key(host: Host, by: signal.Signals) -> None:
    Running(host).connection.close()
    before = files(host)
    file = host.path / "host.backup"
    stopped(host, "backup", "_flush", by, "backup", str(file))
    left = files(host) - before
    if by is signal.SIGTERM:
        assert left == set()
    assert all(each.is_dir() or each.stat().st_size == 0 for each in left)
    host.backup()
    assert not list(host.path.glob(".*spa-backup"))


def test_two_restores_at_once_are_one(host: Host) -> None:
    Running(host).connection.close()
    file = host.backup()
    with working_directory(host.path / ".spa-restore"):
        refused = host.restore(file)
    assert refused.exit_code == 4
    assert "another works in" in refused.stderr


def test_the_daemon_after_a_restore_is_no_successor_of_one_that_broke_off(host: Host) -> None:
    running = Running(host)
    begun = [Record(Event.DAEMON_STARTED, NOW_US)]
    running.ledger.commit(Batch(records=begun), NOW_US)
    assert lastrun.broken_off_at_us(running.connection) == NOW_US
    file = host.backup()
    running.connection.close()
    assert host.restore(file).exit_code == 0
    with closing(schema.connect(host.config.database)) as connection:
        assert lastrun.broken_off_at_us(connection) is None
        connection.execute("update event set detail = 'junk'")
        assert lastrun.broken_off_at_us(connection) is not None


def test_a_name_for_what_was_replaced_is_free(tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "spa.db").write_text("")
        aside.move(tmp_path / "spa.db", NOW_US, "replaced")
    assert len(list(tmp_path.glob("spa.db.replaced-*"))) == 2
