"""The client elsewhere: on macOS and Windows, as far as Linux can tell, and how fast it starts.

tests/pretending.py says what is taken away. Sockets are this kernel's all the same.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ELSEWHERE = ("darwin", "win32")
UNIT_TESTS = ("carriers", "compose", "config", "connect", "holding", "outcome", "resolve")

# What nobody waits for who only wants to knock.
HEAVY = {
    *("asyncio", "concurrent.futures", "ctypes", "email", "http", "logging", "multiprocessing"),
    *("queue", "sqlite3", "sqlite_utils", "ssl", "subprocess", "unittest", "xml"),
    *("hypothesis", "pyroute2", "pytest", "rich", "scapy", "segno"),
    *("keys.registry", "keys.joining", "keys.qr", "spa_server", "click.shell_completion"),
    *("spa_client.connect", "spa_client.doctor", "spa_client.holding", "spa_client.join"),
}


def python(code: str, *argv: str, **environment: str) -> str:
    """What a Python process of its own prints."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPA_", "XDG_", "APPDATA"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *argv],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def elsewhere(platform: str, code: str, **environment: str) -> str:
    begin = "import sys; from tests.pretending import pretend; pretend(sys.argv[1])\n"
    return python(begin + code, platform, **environment)


@pytest.mark.parametrize("platform", ELSEWHERE)
def test_every_command_can_be_imported(platform: str) -> None:
    code = "from spa_client.cli import main; print(*[c.name for c in main.commands.values()])"
    names = elsewhere(platform, code).split()
    assert {"knock", "connect", "exec", "forward", "hold", "doctor", "ssh-config"} <= set(names)


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "/home/ann/.config/spa"),
        ("linux", {"XDG_CONFIG_HOME": "/home/ann/conf"}, "/home/ann/conf/spa"),
        ("linux", {"XDG_CONFIG_HOME": "relative"}, "/home/ann/.config/spa"),
        ("darwin", {}, "/home/ann/.config/spa"),
        ("darwin", {"XDG_CONFIG_HOME": "/home/ann/conf"}, "/home/ann/conf/spa"),
        ("win32", {"APPDATA": "/c/AppData"}, "/c/AppData/spa"),
        ("win32", {}, "/home/ann/AppData/Roaming/spa"),
        ("win32", {"XDG_CONFIG_HOME": "/home/ann/conf"}, "/home/ann/AppData/Roaming/spa"),
    ],
)
def test_where_the_configuration_and_the_keys_are(
    platform: str, environment: dict[str, str], expected: str
) -> None:
    code = (
        "import json; from keys import places; from spa_client import config\n"
        "print(json.dumps([str(config.default_path()), str(places.keys_directory())]))"
    )
    found = json.loads(elsewhere(platform, code, HOME="/home/ann", **environment))
    assert found == [f"{expected}/config.toml", f"{expected}/keys"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody who is unknown")
def test_a_user_without_a_home_is_told_what_to_set() -> None:
    """As in a container that runs under any number."""
    code = (
        "import os; from click.testing import CliRunner\n"
        "from spa_client.cli import main as client\n"
        "from keys.cli import main as keys\n"
        "asked = ((client, ['hosts']), (client, ['knock', 'x', 'ssh']), (keys, ['show']))\n"
        "for main, argv in asked: main.get_command(None, argv[0])\n"
        "os.environ.pop('HOME', None); os.setgid(54321); os.setuid(54321)\n"
        "for main, argv in asked:\n"
        "    done = CliRunner().invoke(main, argv); print(done.exit_code, done.output.strip())"
    )
    said = ": this user has no home directory; set HOME, or name the files"
    programs = ("spa-client", "spa-client", "spa-keys")
    assert python(code).splitlines() == [f"4 {program}{said}" for program in programs]


def test_a_windows_that_does_not_know_its_user() -> None:
    """`getpass` then looks for a module that is not there."""
    code = (
        "import os\n"
        "for name in ('LOGNAME', 'USER', 'LNAME', 'USERNAME'): os.environ.pop(name, None)\n"
        "from keys import newkey; print(newkey.user_name())"
    )
    assert elsewhere("win32", code) == "unknown\n"


@pytest.mark.parametrize("platform", ELSEWHERE)
def test_a_key_and_a_host_are_written_and_found_again(platform: str, tmp_path: Path) -> None:
    """Windows knows neither modes nor owners: nothing there may ask for them."""
    code = """
from click.testing import CliRunner
from keys import identity, places
from spa_client import config
from spa_client.cli import main
from spa_protocol.keytext import Endpoint, ServerLine
made = identity.generate("ann")
identity.save(made, places.keys_directory() / "default.key", None)
line = str(ServerLine(made.public.agreement, Endpoint("127.0.0.1", 9)))
for argv in (["add", "db1", line], ["hosts"], ["knock", "db1", "tcp/22", "--timeout", "0.2"]):
    done = CliRunner().invoke(main, argv)
    print(done.exit_code, done.output)
"""
    appdata = {"APPDATA": str(tmp_path / "Roaming")} if platform == "win32" else {}
    printed = elsewhere(platform, code, HOME=str(tmp_path), **appdata)
    assert "0 db1 added to" in printed
    assert "3 spa-client: no answer from db1" in printed or "3 \n" in printed
    where = tmp_path / ("Roaming/spa" if platform == "win32" else ".config/spa")
    assert sorted(path.name for path in where.iterdir()) == ["config.toml", "keys"]


@pytest.mark.parametrize("platform", ELSEWHERE)
@pytest.mark.parametrize("name", UNIT_TESTS)
def test_its_unit_tests_pass(platform: str, name: str, tmp_path: Path) -> None:
    options = [
        "-q",
        f"--basetemp={tmp_path}/nested",
        "-p",
        "tests.pretending",
        "-p",
        "no:cacheprovider",
        "--capture=sys",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/test_client_{name}.py"],
        cwd=ROOT,
        env={**os.environ, "PRETEND": platform},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_knock_imports_nothing_that_it_does_not_need() -> None:
    """The time that a program takes to start is the time that its imports take."""
    code = (
        "import sys; from spa_client.cli import main\n"
        "try: main(['knock', 'nobody', 'tcp/22'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    there = set(python(code, HOME="/nowhere").split())
    assert "spa_client.carriers" in there
    heavy = {
        name for name in there for each in HEAVY if name == each or name.startswith(f"{each}.")
    }
    assert heavy == set()
