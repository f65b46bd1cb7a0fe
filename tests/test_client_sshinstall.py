"""ssh knocks by itself: our lines in a file of their own, included once, the rest untouched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keys.trouble import Trouble
from spa_client import config
from spa_client.sshinstall import install, own_names
from tests.test_client_fake_server import serving

BLOCK = "Host db1\n    ProxyCommand spa-client connect %h %p"
INCLUDE = "Include spa_hosts\n"


def test_a_new_person(tmp_path: Path) -> None:
    directory = tmp_path / ".ssh"
    assert install(BLOCK, directory) == [directory / "spa_hosts", directory / "config"]
    assert (directory / "config").read_text() == INCLUDE
    assert BLOCK in (directory / "spa_hosts").read_text()
    modes = [path.stat().st_mode & 0o777 for path in (directory, *sorted(directory.iterdir()))]
    assert modes == [0o700, 0o600, 0o600]


def test_twice_writes_nothing(tmp_path: Path) -> None:
    install(BLOCK, tmp_path)
    assert install(BLOCK, tmp_path) == []
    assert install(BLOCK.replace("db1", "db2"), tmp_path) == [tmp_path / "spa_hosts"]


@pytest.mark.parametrize(
    "before",
    [
        "Host *\n  User alice\n",
        "Host db1\n  Include spa_hosts\n",  # there it holds for db1 alone
        "# Include spa_hosts\nHost *\n",
        "no end of line",
        "Host *\r\n  User alice\r\n",
        "# caf\udce9, in Latin-1\n",
    ],
)
def test_what_a_person_has_written_stays(tmp_path: Path, before: str) -> None:
    path, raw = tmp_path / "config", before.encode("utf-8", "surrogateescape")
    path.write_bytes(raw)
    path.chmod(0o640)
    install(BLOCK, tmp_path)
    assert path.read_bytes() == INCLUDE.encode() + b"\n" + raw
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config", "spa_hosts"]


@pytest.mark.parametrize("line", ["Include spa_hosts", "  include ~/.ssh/spa_hosts # ours"])
def test_a_line_that_is_there_is_enough(tmp_path: Path, line: str) -> None:
    path = tmp_path / "config"
    path.write_text(f"ForwardAgent no\n{line}\nHost *\n")
    assert install(BLOCK, tmp_path) == [tmp_path / "spa_hosts"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    shared = tmp_path / "dotfiles" / "config"
    shared.parent.mkdir()
    shared.write_text("Host *\n")
    directory = tmp_path / ".ssh"
    directory.mkdir()
    (directory / "config").symlink_to(shared)
    install(BLOCK, directory)
    assert (directory / "config").is_symlink()
    assert shared.read_text() == f"{INCLUDE}\nHost *\n"


def test_a_block_that_a_person_has_written_keeps_its_name(tmp_path: Path) -> None:
    lines = 'Host web *.example !db9\n  Port 22\nhost=DB1 "db 2"\n# Host no\nHostName not\n'
    (tmp_path / "config").write_text(lines)
    assert own_names(tmp_path) >= {"web", "db1"}
    assert not own_names(tmp_path) & {"*.example", "!db9", "no", "not"}
    assert own_names(tmp_path / "nowhere") == frozenset()


def test_what_cannot_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    with pytest.raises(Trouble, match=r"config cannot be .*; put it there yourself"):
        install(BLOCK, tmp_path)


def test_ssh_itself_reads_it(tmp_path: Path) -> None:
    """`ssh -G` prints what it would do; -F, since ssh asks the password database for the home."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "config").write_text("Host *\n    User alice\n")
    with serving() as server:
        entry = config.NewHost("db1.internal", str(server.line))
        config.add(tmp_path / "config.toml", entry)
    program = [sys.executable, "-c", "from spa_client.cli import main; main()", "ssh-config"]
    options = ["--install", "--config", str(tmp_path / "config.toml")]
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(
        [*program, *options], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert done.stderr.count("wrote ") == 2
    config_text = (home / ".ssh" / "config").read_text()
    whole = config_text.replace("Include spa_hosts", f"Include {home}/.ssh/spa_hosts")
    (tmp_path / "whole").write_text(whole)
    for name in ("db1.internal", "db1"):
        asked = ["ssh", "-G", "-F", str(tmp_path / "whole"), name]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
        assert "user alice" in said
        assert any(line.startswith("proxycommand ") and "connect" in line for line in said)


def test_hosts_cannot_be_chosen() -> None:
    program = [sys.executable, "-c", "from spa_client.cli import main; main()", "ssh-config"]
    done = subprocess.run(
        [*program, "db1", "--install"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--install takes all hosts" in done.stderr
