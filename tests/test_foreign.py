"""What another laid for root to read has an end, and is told as what it is."""

import asyncio
import io
import json
import os
import pwd
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from keys import readfile, schema
from keys.trouble import Trouble
from spa_server import backup, control, operations, restore, setup
from spa_server.audit import backlog, upkeep
from spa_server.config import load_config
from spa_server.firewall.gate import is_plain
from spa_server.fwknop import reading
from spa_server.rulebook import Rulebook

SERVER = Path(sys.executable).parent / "spa-server"
ANOTHER = 61_234
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is led astray")


@pytest.fixture(params=["pipe", "device", "endless"])
def laid(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A pipe that nobody writes to, a link to a device, and a file larger than the memory."""
    path = tmp_path / "laid"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    return path


def test_a_note_is_a_small_file(laid: Path) -> None:
    assert backlog.read_note(laid) == 0
    assert upkeep.read_note(laid) is None
    with pytest.raises(OSError):  # noqa: PT011 - ELOOP, or one of ours
        readfile.read_plain(laid)


def test_the_last_good_policy_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy.good.toml")
    config = tmp_path / "server.toml"
    config.write_text('database = "spa.db"\npolicy = "policy.toml"\n')
    with pytest.raises(Trouble, match="is no file"):
        Rulebook(load_config(config), lambda _: frozenset()).begin()


def test_an_included_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "access.conf").write_text("SOURCE ANY\n%include pipe\n")
    with pytest.raises(Trouble, match="is no file"):
        reading.read(tmp_path / "access.conf")


def made_in(directory: Path, *statements: str) -> Path:
    """A database of another's, in their directory."""
    path = directory / "spa.db"
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
    os.chown(directory, ANOTHER, ANOTHER)
    os.chown(path, ANOTHER, ANOTHER)
    # pytest's directories are root's alone, and so nobody's else.
    for each in (directory, *list(directory.parents)[:3]):
        if each.parent != Path("/"):
            each.chmod(0o755)
    return path


@only_root
def test_a_database_of_anothers_has_tables_only(tmp_path: Path) -> None:
    without_end = "with recursive c(x) as (select 1 union all select x + 1 from c) select x from c"
    path = made_in(tmp_path, f"create view event as {without_end}")
    with pytest.raises(schema.Damaged, match="a view or a trigger"):
        schema.open_file(path, "ro")


@only_root
def test_a_value_of_anothers_is_bounded(tmp_path: Path) -> None:
    path = made_in(tmp_path, "create table event (x)")
    with closing(schema.open_file(path, "ro")) as connection, pytest.raises(sqlite3.DataError):
        connection.execute("select zeroblob(100000000)")


@only_root
def test_a_pipe_is_no_database(tmp_path: Path) -> None:
    path = made_in(tmp_path)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(schema.Damaged, match="is no file"):
        schema.open_file(path, "ro")


@pytest.mark.parametrize(
    "listing",
    [
        'table inet spa {\n\tchain c {\n\t\taccept comment "x"\ninclude "/f"\n#"\n\t}\n}\n',
        'table inet spa { comment "\x1b]0;x\x07"\n}\n',
        'include "/etc/shadow"\n',
    ],
)
def test_a_listing_that_would_be_more_than_a_gate_is_not_gone_back_to(listing: str) -> None:
    assert not is_plain(listing)
    assert is_plain("table inet spa {\n\tset tags {\n\t\ttype ipv4_addr\n\t}\n}\n")


@only_root
@pytest.mark.parametrize(
    ("request_", "is_told"),
    [
        ({"do": "reload"}, "heard"),
        ({"do": "status"}, "heard"),
        ({"do": "reload", "gate": True}, "root's alone to ask; run this as root"),
        ({"do": "confirm"}, "root's alone to ask; run this as root"),
        ({"do": "take-back"}, "root's alone to ask; run this as root"),
    ],
)
def test_the_gate_is_roots_alone(request_: dict[str, Any], is_told: str, tmp_path: Path) -> None:
    handlers = {
        do: lambda _: {"what": "heard"} for do in ("reload", "status", "confirm", "take-back")
    }
    server = control.ControlServer(tmp_path / "s", handlers, is_roots=operations.is_roots)
    line = json.dumps(request_).encode()

    def answer(user: int) -> str:
        return str(asyncio.run(server._answer(line, user)))

    assert is_told in answer(ANOTHER)
    assert "heard" in answer(0)
    assert "heard" in answer(os.geteuid())


# An archive

_MANIFEST = {"format": 1, "version": "0", "host": "h", "made_at_us": 1}


def archive(file: Path, manifest: bytes, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(file, "w") as written:
        first = tarfile.TarInfo(backup.MANIFEST)
        first.size = len(manifest)
        written.addfile(first, io.BytesIO(manifest))
        for member, content in members:
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
    return file


@pytest.mark.parametrize(
    "manifest",
    [
        b"[" * 200_000,
        *(
            json.dumps(_MANIFEST | {"made_at_us": value}).encode()
            for value in ("x", 10**30, -1, float("nan"), None)
        ),
        json.dumps(_MANIFEST | {"host": {}}).encode(),
    ],
)
def test_a_manifest_that_is_none_is_told(manifest: bytes, tmp_path: Path) -> None:
    file = archive(tmp_path / "a", manifest, (tarfile.TarInfo("spa.db"), b""))
    (tmp_path / "into").mkdir()
    with file.open("rb") as content, pytest.raises(backup.NoBackup, match="is no whole backup"):
        backup.unpack(file, content, tmp_path / "into")


def test_nothing_in_an_archive_is_larger_than_it(tmp_path: Path) -> None:
    for name, content in (("spaknock-backup.json", json.dumps(_MANIFEST)), ("spa.db", "")):
        (tmp_path / name).write_text(content)
    with (tmp_path / "denials.db").open("wb") as file:
        file.truncate(1 << 34)
    names = ["spaknock-backup.json", "spa.db", "denials.db"]
    subprocess.run(["tar", "-Scf", "a", *names], cwd=tmp_path, check=True)
    (tmp_path / "into").mkdir()
    with (tmp_path / "a").open("rb") as content, pytest.raises(backup.NoBackup, match="no plain"):
        backup.unpack(tmp_path / "a", content, tmp_path / "into")
    assert not (tmp_path / "into" / "denials.db").exists()


@pytest.mark.parametrize("kind", ["empty", "other", "view", "trigger"])
def test_a_database_that_is_none_replaces_nothing(kind: str, tmp_path: Path) -> None:
    config, file = tmp_path / "server.toml", tmp_path / "good"

    def server(*arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = [SERVER, "--config", config, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=check, timeout=60)

    server("init", "--host", "h")
    server("backup", file)
    with tarfile.open(file) as there:
        taken = there.extractfile("spa.db")
        assert taken is not None
        database = tmp_path / "made.db"
        database.write_bytes(b"" if kind in {"empty", "other"} else taken.read())
    statement = {
        "other": "create table a (b)",
        "view": "create view v as select 1",
        "trigger": "create trigger t after insert on identity begin delete from identity; end",
    }.get(kind)
    if statement is not None:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute(statement)
    content = database.read_bytes()
    bad = archive(
        tmp_path / "bad", json.dumps(_MANIFEST).encode(), (tarfile.TarInfo("spa.db"), content)
    )
    before = (tmp_path / "spa.db").read_bytes()
    done = server("restore", bad, "--yes", check=False)
    assert done.returncode == 4
    assert str(bad) in done.stderr
    assert "rm " not in done.stderr
    assert (tmp_path / "spa.db").read_bytes() == before
    assert not list(tmp_path.glob("*.replaced-*"))


@only_root
def test_on_a_new_machine_what_is_restored_is_the_daemons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    argv = [SERVER, "--config", old / "server.toml"]
    subprocess.run([*argv, "init", "--host", "h"], check=True, capture_output=True)
    subprocess.run([*argv, "backup", tmp_path / "good"], check=True, capture_output=True)
    places = {"database": "state/spa.db", "control": "run/control.sock"}
    places |= {"key": "server.key", "policy": "policy.toml"}  # which are absolute, left out
    (new / "server.toml").write_text("".join(f'{k} = "{v}"\n' for k, v in places.items()))
    daemon = pwd.struct_passwd(("spa", "x", ANOTHER, ANOTHER, "", "/", "/bin/false"))
    monkeypatch.setattr(setup, "_daemon_user", lambda: daemon)
    restore.restore(load_config(new / "server.toml"), tmp_path / "good", 1_800_000_000_000_000)
    made = ("state", "state/spa.db", "run", "run/unrecorded", "server.key")
    assert {name: (new / name).stat().st_uid for name in made} == dict.fromkeys(made, ANOTHER)
