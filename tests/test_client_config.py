"""The configuration file: what it says, what it refuses and with which words, and `add`."""

import stat
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from keys import places
from spa_client import config
from spa_client.compose import SourceRule
from spa_client.config import FileProblem, NewHost, UnknownHost
from spa_protocol.keytext import Endpoint, ServerLine

USUAL = "AppData/Roaming/spa" if sys.platform == "win32" else ".config/spa"
LINE = str(ServerLine(bytes(range(32)), Endpoint("db1.internal", 62201)))
LINE_2 = str(ServerLine(bytes(range(1, 33)), Endpoint("2001:db8::7", 443)))

FULL = f"""
key = "laptop"
[hosts.db1]
server = "{LINE}"
address = "10.0.0.5"
key = "~/spare/work.key"
source = "203.0.113.9"
access = ["tcp/22", "udp/60000-60010"]
[hosts."my gate"]
server = "{LINE_2}"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_a_full_file(path: Path, home: Path) -> None:
    known = config.parse(FULL, path)
    db1, gate = known.hosts["db1"], known.hosts["my gate"]
    assert str(db1.server) == LINE
    assert (db1.address, db1.key) == ("10.0.0.5", home / "spare" / "work.key")
    assert db1.source == ip_address("203.0.113.9")
    assert [str(access) for access in db1.access] == ["tcp/22", "udp/60000-60010"]
    assert (gate.address, gate.knocks_on.port) == ("2001:db8::7", 443)
    assert gate.key == home / USUAL / "keys" / "laptop.key"
    assert gate.source is SourceRule.AUTO
    assert gate.access == ()


def test_no_file_says_nothing_unless_it_was_chosen(home: Path, path: Path) -> None:
    known = config.load(None)
    assert (known.path, known.hosts) == (home / USUAL / "config.toml", {})
    assert known.key == home / USUAL / "keys" / "default.key"
    with pytest.raises(FileProblem, match="does not exist"):
        config.load(path)


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", {}, "{home}/.config/spa/config.toml"),
        ("linux", {"XDG_CONFIG_HOME": "/x"}, "/x/spa/config.toml"),
        ("linux", {"XDG_CONFIG_HOME": "relative"}, "{home}/.config/spa/config.toml"),
        ("darwin", {}, "{home}/.config/spa/config.toml"),
        ("win32", {"APPDATA": "/appdata"}, "/appdata/spa/config.toml"),
    ],
)
def test_default_path(
    platform: str, environ: dict[str, str], expected: str, home: Path, monkeypatch
) -> None:
    monkeypatch.setattr(places.sys, "platform", platform)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert str(config.default_path()) == expected.format(home=home)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("work", "/keys/work.key"),
        ("alice@laptop.lan", "/keys/alice@laptop.lan.key"),
        ("work.key", "/base/work.key"),
        ("./work", "/base/work"),
        ("sub/work", "/base/sub/work"),
        ("/etc/spa/my.key", "/etc/spa/my.key"),
        ("~/my.key", "{home}/my.key"),
    ],
)
def test_key_path(written: str, expected: str, home: Path) -> None:
    path = config.key_path(written, keys=Path("/keys"), base=Path("/base"))
    assert str(path) == expected.format(home=home)


HOST = f'[hosts.db1]\nserver = "{LINE}"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("key = ", "not TOML"),
        ('key = "a"\nkey = "b"', "not TOML"),
        ("key = 3", "key: expected text, got a number"),
        ('kye = "a"', "kye: is not known; expected key, hosts"),
        ("hosts = 3", "hosts: expected a table, got a number"),
        ("[hosts]\ndb1 = 3", "hosts.db1: expected a table, got a number"),
        ("[hosts.db1]", "hosts.db1.server: is missing"),
        ('[hosts."a b"]', 'hosts."a b".server: is missing'),
        ("[hosts.db1]\nserver = 3", "hosts.db1.server: expected text, got a number"),
        ('[hosts.db1]\nserver = "x"', "hosts.db1.server: not a server line; expected"),
        (
            f'[hosts.db1]\nserver = "{LINE.replace("db1.internal", "db2.internal")}"',
            "hosts.db1.server: the server line is not whole",
        ),
        (HOST + 'adress = "x"', "hosts.db1.adress: is not known; expected server, address, key"),
        (HOST + 'address = ""', "hosts.db1.address: expected a host name or an address"),
        (HOST + 'address = "a b"', "hosts.db1.address: expected a host name or an address"),
        (HOST + "key = true", "hosts.db1.key: expected text, got true or false"),
        (HOST + 'source = "me"', "hosts.db1.source: 'me' is no source; expected an address"),
        (HOST + 'source = "0.0.0.0"', "hosts.db1.source: '0.0.0.0' is the address of no single"),
        (HOST + 'source = "224.0.0.1"', "hosts.db1.source: '224.0.0.1' is the address of no"),
        (HOST + 'access = "tcp/22"', "hosts.db1.access: expected a list, got text"),
        (HOST + "access = [22]", "hosts.db1.access[0]: expected text, got a number"),
        (HOST + 'access = ["22"]', "hosts.db1.access: '22' is no access; write it like tcp/22"),
        (HOST + 'access = ["tcp/1-9", "tcp/5"]', "hosts.db1.access: tcp/1-9 overlaps another"),
    ],
)
def test_what_is_refused(text: str, problem: str, path: Path) -> None:
    with pytest.raises(FileProblem) as caught:
        config.parse(text, path)
    assert str(caught.value).startswith(f"{path}")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(path: Path) -> None:
    path.write_bytes(b"key = '\xff'")
    with pytest.raises(FileProblem, match="not a text file in UTF-8"):
        config.load(path)


def test_a_directory_is_no_file(path: Path) -> None:
    path.mkdir()
    with pytest.raises(FileProblem, match="is a directory"):
        config.load(path)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("db1", "db1"),
        ("10.0.0.5", "db1"),
        ("db1.internal", "db1"),
        ("DB1.Internal.", "db1"),
        ("2001:db8::7", "my gate"),
    ],
)
def test_find(written: str, name: str, path: Path) -> None:
    assert config.parse(FULL, path).find(written).name == name


def test_find_nothing_or_too_much(path: Path) -> None:
    known = config.parse(FULL + f'[hosts.again]\nserver = "{LINE}"', path)
    with pytest.raises(UnknownHost, match="spa-client add nowhere") as caught:
        known.find("nowhere")
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownHost, match="is the address of db1, again; say which"):
        known.find("db1.internal")


def test_add_makes_the_file(path: Path) -> None:
    path = path.parent / "new" / "config.toml"
    added = config.add(path, NewHost("db1", LINE))
    assert (added.name, str(added.server)) == ("db1", LINE)
    assert config.load(path).find("db1") == added
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_add_keeps_every_byte_that_is_there(path: Path) -> None:
    before = f'# mine\nkey = "laptop"   # this one\n\n[hosts.db1]\nserver = "{LINE}"\n# the end'
    path.write_text(before)
    new = NewHost("gate", LINE_2, "gate.lan", "w\u00f6rk", "none", ("tcp/22", "udp/53"))
    added = config.add(path, new)
    assert path.read_text().startswith(before + "\n\n[hosts.gate]\n")
    assert (added.address, added.source) == ("gate.lan", SourceRule.NONE)
    assert list(config.load(path).hosts) == ["db1", "gate"]


@pytest.mark.parametrize("name", ["a b", 'say "hi"', "d.b", "back\\slash", "", "ü", "[x]"])
def test_add_quotes_any_name(name: str, path: Path) -> None:
    config.add(path, NewHost("first", LINE))
    config.add(path, NewHost(name, LINE))
    assert list(config.load(path).hosts) == ["first", name]


@pytest.mark.parametrize(
    ("before", "new", "problem"),
    [
        (HOST, NewHost("db1", LINE), "has a host 'db1' already"),
        (HOST, NewHost("gate", "spa-server x y"), "hosts.gate.server"),
        (HOST, NewHost("gate", LINE, source="me"), "hosts.gate.source"),
        (HOST, NewHost("gate", LINE, access=("22",)), "hosts.gate.access"),
        (HOST, NewHost("g\x7f", LINE), "not TOML"),
        ("hosts = {}", NewHost("gate", LINE), "cannot be appended to; write its hosts as tables"),
        ("oops", NewHost("gate", LINE), "not TOML"),
    ],
)
def test_add_leaves_the_file_alone_when_it_cannot(
    before: str, new: NewHost, problem: str, path: Path
) -> None:
    path.write_text(before)
    with pytest.raises(FileProblem) as caught:
        config.add(path, new)
    assert problem in str(caught.value)
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_add_follows_a_link(path: Path) -> None:
    real = path.with_name("real.toml")
    real.write_text(HOST)
    path.symlink_to(real)
    config.add(path, NewHost("gate", LINE_2))
    assert path.is_symlink()
    assert list(config.load(real).hosts) == ["db1", "gate"]
