"""`spa-client remove`: what goes, what stays, and in which words."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from keys import identity
from spa_client import config
from spa_client.config import FileProblem, NewHost
from tests.test_client_fake_server import serving

PROGRAM = [sys.executable, "-c", "from spa_client.cli import main; main()"]
with serving() as _server:
    LINE = str(_server.line)


@dataclass
class Home:
    """A person's files, with two hosts and a key for each."""

    path: Path

    def __post_init__(self) -> None:
        for name in ("db1", "db2"):
            entry = NewHost(name, LINE, address=f"{name}.internal", key=name)
            config.add(self.config, entry)
            identity.save(identity.generate(), self.key(name), None)

    @property
    def config(self) -> Path:
        return self.path / ".config" / "spa" / "config.toml"

    @property
    def ssh(self) -> Path:
        return self.path / ".ssh" / "spa_hosts"

    def key(self, name: str) -> Path:
        return self.config.parent / "keys" / f"{name}.key"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.path)}
        return subprocess.run(
            [*PROGRAM, *arguments], env=environment, capture_output=True, text=True, check=False
        )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_the_host_goes_its_key_stays_and_ssh_no_longer_knocks(home: Home) -> None:
    assert home.run("ssh-config", "--install").returncode == 0
    key_id = identity.load_public(home.key("db1"))[0].key_id
    done = home.run("remove", "db1")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"db1 is no longer in {home.config}",
            f"ssh no longer knocks for it ({home.ssh})",
            f"its key {home.key('db1')} stays; delete it when nothing needs it",
        ],
    )
    assert done.stderr == (
        f"The server still knows the key; its operator: spa-keys revoke {key_id}\n"
    )
    assert list(config.load(home.config).hosts) == ["db2"]
    assert "db1" not in home.ssh.read_text()
    assert "db2" in home.ssh.read_text()
    assert home.run("remove", "db1").returncode == 2


def test_with_its_key(home: Home) -> None:
    done = home.run("remove", "db1", "--with-key", "--json")
    said = json.loads(done.stdout)
    assert (said["host"], said["key_deleted"], said["ssh_config_written"]) == ("db1", True, False)
    assert not home.key("db1").exists()
    assert home.key("db2").exists()
    assert not home.ssh.exists()


def test_a_key_that_another_host_uses_is_not_deleted(home: Home) -> None:
    config.add(home.config, NewHost("db3", LINE, key="db1"))
    before = home.config.read_text()
    done = home.run("remove", "db1", "--with-key")
    assert done.returncode == 4
    assert "db3 uses " in done.stderr
    assert (home.config.read_text(), home.key("db1").exists()) == (before, True)
    assert "db3 uses it as well" in home.run("remove", "db1").stdout


def test_what_is_no_key_is_not_deleted(home: Home) -> None:
    home.key("db1").write_text("a will")
    done = home.run("remove", "db1", "--with-key")
    assert done.returncode == 4
    assert "is no key that can be read; leave --with-key out" in done.stderr
    assert home.key("db1").read_text() == "a will"
    assert "db1" in config.load(home.config).hosts


def test_a_file_for_ssh_that_is_another_s_is_left_alone(home: Home) -> None:
    home.run("ssh-config", "--install")
    home.ssh.write_text("Host other\n")
    done = home.run("remove", "db1")
    assert done.returncode == 0
    assert "spa-client ssh-config --install" in done.stderr
    assert home.ssh.read_text() == "Host other\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('[hosts.db1]\nserver = "LINE"\n', ""),
        ('key = "k" # mine\n\n[hosts.db1]\nserver = "LINE"\n', 'key = "k" # mine\n'),
        (
            '[hosts.a]\nserver = "LINE"\n\n[hosts."db1"] # x\n# y\nserver = "LINE"\n\n'
            '# of b\n[hosts.b]\nserver = "LINE"\n',
            '[hosts.a]\nserver = "LINE"\n\n# of b\n[hosts.b]\nserver = "LINE"\n',
        ),
    ],
)
def test_all_other_lines_stay_as_they_are(tmp_path: Path, text: str, left: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text.replace("LINE", LINE))
    config.remove(path, "db1")
    assert path.read_text().strip() == left.replace("LINE", LINE).strip()


@pytest.mark.parametrize(
    "text",
    [
        'hosts = {db1 = {server = "LINE"}}',
        'hosts.db1.server = "LINE"',
        '[hosts]\ndb1 = {server = "LINE"}',
    ],
)
def test_what_no_program_can_take_out_safely_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text.replace("LINE", LINE))
    with pytest.raises(FileProblem, match="take it out by hand"):
        config.remove(path, "db1")
    assert path.read_text() == text.replace("LINE", LINE)
