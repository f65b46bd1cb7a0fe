"""Root in a directory that the daemon's user may write: a link there leads root nowhere."""

import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from keys import privatefile, schema
from keys.owner import Owner, acting_as, as_owner, owner_of
from keys.registry import Registry, RegistryError
from keys.trouble import Trouble
from spa_server.audit.backlog import leave_note, read_note
from spa_server.firewall import programs

UID = 61_234
SECRET = b"root's alone"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has anything to lose")


@dataclass(frozen=True)
class Places:
    """`theirs` is the daemon's user's; `secret` is a file of root's that nobody else can reach."""

    theirs: Path
    secret: Path

    def is_untouched(self) -> bool:
        status = self.secret.stat()
        return (self.secret.read_bytes(), status.st_uid) == (SECRET, 0)


@pytest.fixture(params=["reached", "behind root's"])
def places(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Places]:
    """Once where its owner gets to, and once behind a directory of root's alone."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    above = None if request.param == "reached" else tmp_path
    with tempfile.TemporaryDirectory(prefix="spa-owner", dir=above) as theirs:
        os.chown(theirs, UID, UID)
        yield Places(Path(theirs), secret)


def test_what_root_makes_there_is_theirs(places: Places) -> None:
    with closing(schema.connect(places.theirs / "spa.db")) as connection:
        Registry(connection)
        leave_note(places.theirs / "unrecorded", 7)
        privatefile.write(places.theirs / "policy.good.toml", b"")
        owners = {path.name: path.stat().st_uid for path in places.theirs.iterdir()}
    assert set(owners) == {"spa.db", "spa.db-wal", "spa.db-shm", "unrecorded", "policy.good.toml"}
    assert set(owners.values()) == {UID}


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "old"])
def test_a_link_in_place_of_a_database(places: Places, suffix: str, is_there: bool) -> None:
    database = places.theirs / "spa.db"
    if is_there:
        Registry(schema.connect(database)).close()
    for each in places.theirs.glob(f"spa.db{suffix}"):
        each.unlink()
    (places.theirs / f"spa.db{suffix}").symlink_to(places.secret)
    with suppress(RegistryError, sqlite3.Error), closing(schema.connect(database)) as connection:
        Registry(connection)
    assert places.is_untouched()


def test_a_database_of_roots_is_not_opened_by_a_link(places: Places, tmp_path: Path) -> None:
    roots = tmp_path / "roots.db"
    with closing(sqlite3.connect(roots)) as connection:
        connection.execute("create table t (a)")
    before = roots.read_bytes()
    (places.theirs / "spa.db").symlink_to(roots)
    with pytest.raises((RegistryError, sqlite3.Error)):
        Registry(places.theirs / "spa.db")
    assert roots.read_bytes() == before


@pytest.mark.parametrize("name", ["unrecorded", "unrecorded.new", ".unrecorded.new"])
def test_a_link_in_place_of_a_note(places: Places, name: str) -> None:
    (places.theirs / name).symlink_to(places.secret)
    with suppress(OSError, Trouble):
        leave_note(places.theirs / "unrecorded", 7)
    assert places.is_untouched()


@pytest.mark.parametrize("places", ["reached"], indirect=True)
def test_what_a_link_names_is_not_told(places: Places) -> None:
    places.secret.write_bytes(b"12345")
    (places.theirs / "unrecorded").symlink_to(places.secret)
    assert read_note(places.theirs / "unrecorded") == 0


def test_the_rights_are_those_of_the_thread_and_come_back() -> None:
    with acting_as(Owner(UID, UID)):
        with pytest.raises(PermissionError):
            Path("/etc/shadow").read_bytes()
        with acting_as(Owner(UID + 1, UID + 1)):
            pass
        with pytest.raises(PermissionError):
            Path("/etc/shadow").read_bytes()
    assert Path("/etc/shadow").read_bytes()
    assert os.geteuid() == 0


def test_who_may_decide_what_is_at_a_path(tmp_path: Path) -> None:
    """The first on the way that is not root's, whatever comes behind."""
    theirs = tmp_path / "theirs"
    (theirs / "roots").mkdir(parents=True)
    os.chown(theirs, UID, UID)
    assert owner_of(tmp_path) is None
    assert owner_of(theirs / "roots") == owner_of(theirs / "not there") == Owner(UID, UID)
    assert owner_of(tmp_path / "not there" / "either") is None
    (tmp_path / "link").symlink_to("theirs/roots")
    assert owner_of(tmp_path / "link") == Owner(UID, UID)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(Trouble, match="too many links"):
        owner_of(tmp_path / "loop")


def test_a_directory_of_roots_that_all_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(Trouble) as refused, as_owner(tmp_path / "open" / "spa.db"):
        pass
    assert refused.value.hint.startswith("run: chmod go-w")
    (tmp_path / "open").chmod(0o1777)
    with as_owner(tmp_path / "open" / "spa.db"):
        assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o1777


def test_no_program_is_run_from_where_others_may_put_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "nft").write_text("#!/bin/sh")
    (theirs / "nft").chmod(0o755)
    monkeypatch.chdir(theirs)
    monkeypatch.setenv("PATH", f"{theirs}:.::/usr/sbin:/usr/bin")
    assert programs.find("nft") == str(theirs / "nft")
    os.chown(theirs, UID, UID)
    assert programs.find("nft") == "/usr/sbin/nft"
    monkeypatch.setenv("PATH", ".")
    with pytest.raises(FileNotFoundError):
        programs.find("nft")
