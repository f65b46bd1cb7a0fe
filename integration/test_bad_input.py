"""What goes wrong at a command: one clear line, what it is and what to do, and an exit code.

Exit codes: 1 refused, 2 usage, 3 no answer, 4 trouble on this side (a key, a file, the firewall).
"""

import os
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import pytest

from integration.lab import Host, Lab
from integration.site import PROGRAMS, Person, Site
from integration.test_unprivileged import passage

REFUSED, USAGE, NO_ANSWER, TROUBLE = 1, 2, 3, 4
NOBODY_UID: Final = 61_234
NOBODY: Final = (
    "setpriv",
    f"--reuid={NOBODY_UID}",
    f"--regid={NOBODY_UID}",
    "--clear-groups",
    "--bounding-set=-all",
)
DAEMON_HINT: Final = "start it: systemctl start spa-server"
MEANT: Final = "name the file that you mean"
FIREWALL_HINT: Final = "is this run as root, with nft installed?"
NAME_HINT: Final = "use 1 to 64 letters, digits and . _ @ + -, a letter or digit first"
DURATION_HINT: Final = "write it like 30s, 15m, 8h, 90d or 1h30m"

# In these tables, {d} is the server's directory, {h} alice's home, {k} a key line of a stranger.
SERVER: Final = [
    # Usage
    ("frobnicate", USAGE, "no such command 'frobnicate'; try 'spa-server --help'"),
    ("status --frob", USAGE, "no such option*--frob*; try*"),
    ("close", USAGE, "name the grants to close, or give --identity or --all; try*"),
    ("close x", USAGE, "invalid value for '[GRANTS]...': 'x' is not a valid integer; try*"),
    ("audit --since yesterday", USAGE, "*'yesterday' is no moment; write it like 90d, *"),
    ("audit --access tcp/0", USAGE, "*0 is no port from 1 to 65535; try *"),
    ("audit --access http", USAGE, "*'http' is no access; write it like tcp/22 or udp/60000-*"),
    ("audit --source 192.0.2.300", USAGE, "*'192.0.2.300' does not appear to be an IPv4 or*"),
    ("audit --limit 0", USAGE, "*0 is not in the range x>=1*"),
    ("gate apply --confirm-within 60", USAGE, f"*'60' is no duration; {DURATION_HINT}*"),
    ("gate apply --confirm-within 0s", USAGE, "*'0s' is not between 1s and 1d; try*"),
    ("explain alice tcp/22", USAGE, "missing option '--from'; try 'spa-server explain --help'"),
    ("explain 'a b' tcp/22 --from 1.1.1.1", USAGE, f"*'a b' cannot name an identity; {NAME_HINT}*"),
    ("explain alice 22 --from 1.1.1.1", USAGE, "*'22' is no access; write it like tcp/22*"),
    ("explain alice tcp/22 --from here", USAGE, "*'here' does not appear to be an IPv4 or*"),
    ("init --host 'a b'", USAGE, "*write host, host:port or [IPv6]:port*"),
    # Files
    ("--config {d}/none.toml status", TROUBLE, "{d}/none.toml: no such file or directory; na*"),
    ("--config {d} status", TROUBLE, f"{{d}}: is a directory; {MEANT}"),
    ("--config {d}/torn.toml status", TROUBLE, "{d}/torn.toml: not TOML: *(at line 1, column 14)"),
    ("--config {d}/bad.toml gate apply", TROUBLE, "{d}/bad.toml: outer: 'eth0;x' is no name of *"),
    (
        "--config {d}/no-policy.toml gate apply",
        TROUBLE,
        "{d}/none: no such file or directory; spa-server init makes one",
    ),
    (
        "--config {d}/bad-policy.toml gate apply",
        TROUBLE,
        "{d}/bad-policy: roles.ops.allow[0].services: no service 'shs'; known: ssh",
    ),
    ("--config {d}/no-key.toml run", TROUBLE, "{d}/none does not exist*"),
    (
        "--config {d}/open-key.toml run",
        TROUBLE,
        "{d}/open.key is open to other users (mode 0640); run: chmod 600 {d}/open.key",
    ),
    ("--config {d}/torn-key.toml run", TROUBLE, "{d}/torn.key is not a whole key file (*); take*"),
    ("--config {d}/not-a-key.toml run", TROUBLE, "{d}/server.toml is *; run: chmod 600 *"),
    ("--config {d}/no-database.toml audit", TROUBLE, "there is no registry at {d}/none; spa-*"),
    (
        "--config {d}/bad-database.toml run",
        TROUBLE,
        "{d}/server.toml is not a database; set `database` in server.toml to the registry's *",
    ),
    ("--config {d}/bad-database.toml audit", TROUBLE, "{d}/server.toml is not a database; set*"),
    ("--config {d}/bad-database.toml check", TROUBLE, "{d}/server.toml is not a database; set*"),
    ("inspect {d}/none.pcap", TROUBLE, "{d}/none.pcap cannot be read: no such file or directory"),
    ("inspect {d}", TROUBLE, "{d} cannot be read: is a directory"),
    ("inspect {d}/server.toml", TROUBLE, "{d}/server.toml is no capture; tcpdump -w writes one"),
    ("explain carol tcp/22 --from 1.1.1.1", REFUSED, "*no identity 'carol'; see: spa-keys list"),
    # The daemon does not run
    ("status", TROUBLE, f"no daemon answers at {{d}}/control.sock; {DAEMON_HINT}"),
    ("holes", TROUBLE, f"no daemon answers at {{d}}/control.sock; {DAEMON_HINT}"),
    ("close --all", TROUBLE, f"no daemon answers at {{d}}/control.sock; {DAEMON_HINT}"),
    ("reload", TROUBLE, f"no daemon answers at {{d}}/control.sock; {DAEMON_HINT}"),
    ("--config {d}/file-as-socket.toml status", TROUBLE, "no daemon answers at {d}/policy.toml;*"),
    # It cannot
    (
        "run",
        TROUBLE,
        "the gate is not in force on this host; "
        "put it in force: spa-server gate apply --confirm-within 60s",
    ),
    (
        "--config {d}/wanted/file-as-socket.toml run",
        TROUBLE,
        "{d}/policy.toml is no socket; move it away, or set `control`",
    ),
    (
        "--config {d}/wanted/no-place-for-socket.toml run",
        TROUBLE,
        "the control socket {d}/policy.toml/control.sock cannot be made: *; run as root, or set*",
    ),
    ("gate show", REFUSED, "the gate is not loaded; put it in force: spa-server gate apply --*"),
    ("gate confirm", REFUSED, "no gate waits to be confirmed; see: spa-server gate show"),
]

CLIENT: Final = [
    # Usage
    ("knock", USAGE, "missing argument 'HOST'; try 'spa-client knock --help'"),
    ("knock site", USAGE, "say which access, like tcp/22; site has none configured; try*"),
    ("knock site tcp22", USAGE, "*'tcp22' is not in the services database; write it like tcp/22;*"),
    ("knock site tcp/22222222", USAGE, "*'tcp/22222222' has no port number; write it like tcp/22*"),
    ("knock site tcp/0", USAGE, "*0 is no port from 1 to 65535*"),
    ("knock site tcp/9-1", USAGE, "*9-1 is no range of ports; write it 1-9*"),
    ("knock site tcp/1-300", USAGE, "more than 256 ports in one knock; try*"),
    ("knock site tcp/22 tcp/20-30", USAGE, "tcp/22 overlaps another access; try*"),
    ("knock site ssh --lifetime 5", USAGE, f"*'5' is no duration; {DURATION_HINT}*"),
    ("knock site ssh --lifetime 0s", USAGE, "*'0s' is no lifetime; ask for a second at least*"),
    ("knock site ssh --timeout 0", USAGE, "*'0' is no timeout; give seconds, 600 at most*"),
    ("knock site ssh --source 1.2", USAGE, "*'1.2' is no source; expected an address, auto or*"),
    ("knock site ssh --source 224.0.0.1", USAGE, "*'224.0.0.1' is the address of no single host*"),
    ("knock site ssh --target 1.2", USAGE, "*'1.2' is no target; expected an address, auto or*"),
    ("knock site ssh --port 0", USAGE, "*0 is not in the range 1<=x<=65535*"),
    ("knock site ssh --server 'spa-server x y'", USAGE, "*the server line is not whole: it is no*"),
    ("connect site 0", USAGE, "*0 is no port from 1 to 65535*"),
    ("connect site 22-23", USAGE, "*'22-23' is more than one port; a connection goes to one*"),
    ("knock elsewhere ssh", USAGE, "no host 'elsewhere' in {h}/.config/spa/config.toml; see 'spa*"),
    ("add db1 hello", USAGE, "*not a server line; expected 'spa-server <base64> host:port'*"),
    # Files and keys
    ("hosts --config {h}/none.toml", TROUBLE, "{h}/none.toml: does not exist; see 'spa-client*"),
    ("hosts --config {h}", TROUBLE, f"{{h}}: is a directory; {MEANT}"),
    ("hosts --config {h}/torn.toml", TROUBLE, "{h}/torn.toml: not TOML: *"),
    (
        "hosts --config {h}/bad.toml",
        TROUBLE,
        "{h}/bad.toml: hosts.a.adress: is not known; "
        "expected server, address, key, source, access, carrier, target",
    ),
    ("knock site ssh --key none", TROUBLE, "{h}/.config/spa/keys/none.key does not exist; make*"),
    ("knock site ssh --key {h}", TROUBLE, f"{{h}} cannot be read: is a directory; {MEANT}"),
    ("knock site ssh --key {h}/open.key", TROUBLE, "{h}/open.key is open to other users (mode 06*"),
    ("knock site ssh --key {h}/torn.key", TROUBLE, "{h}/torn.key is not a whole key file (*); ta*"),
    ("knock site ssh --key {h}/no.key", TROUBLE, "{h}/no.key is no private key of this program; *"),
    ("knock site ssh --key {d}/server.key", TROUBLE, "*the key of a server, not of a client; *"),
    ("knock site ssh --key locked", TROUBLE, "*needs its passphrase and there is nobody to ask; *"),
    (
        "knock site ssh --key locked --passphrase-file {h}/wrong",
        TROUBLE,
        "wrong passphrase for {h}/.config/spa/keys/locked.key, or the file was altered; try again",
    ),
    ("knock site ssh --passphrase-file {h}/none --key locked", TROUBLE, "{h}/none does not exist"),
    # The network
    ("knock site ssh -6", TROUBLE, "* has no IPv6 address that a knock can be sent to"),
    (
        "knock away ssh",
        TROUBLE,
        "cannot send to away: 198.51.100.1: network is unreachable; *",
    ),
    (
        "connect away 22",
        TROUBLE,
        "cannot send to away: 198.51.100.1: network is unreachable; *",
    ),
    ("knock a..b ssh --server '{line}'", TROUBLE, "cannot resolve a..b: this is no host name; *"),
    ("knock site ssh --timeout 0.3", NO_ANSWER, "no answer from site (*, udp/62201*); a server *"),
]

KEYS: Final = [
    ("frob", USAGE, "no such command 'frob'; try 'spa-keys --help'"),
    ("generate a/b", USAGE, f"*'a/b' cannot name a key; {NAME_HINT}*"),
    (
        "generate new",
        USAGE,
        "there is no terminal to ask for a passphrase; give --no-*",
    ),
    ("generate", TROUBLE, "{h}/.config/spa/keys/default.key exists already; show it with*"),
    ("generate new --passphrase-file {h}/none", TROUBLE, "{h}/none does not exist"),
    (
        "generate new --no-passphrase --directory /proc",
        TROUBLE,
        "/proc/new.key cannot be *",
    ),
    ("show none", TROUBLE, "{h}/.config/spa/keys/none.key does not exist; make one with *"),
    ("enroll alice --key 'spa-key abc'", USAGE, "*the key line is not whole: it is no base64; *"),
    ("enroll alice --key hello", USAGE, "*not a key line; expected 'spa-key <base64> comment'; *"),
    ("enroll alice", USAGE, "give the key by --key or by --key-file; try 'spa-keys enroll --help'"),
    ("enroll 'a b' --key '{k}'", USAGE, f"*'a b' cannot name an identity; {NAME_HINT}*"),
    ("enroll alice --key '{k}' --role 'x y'", USAGE, f"*'x y' cannot name a role; {NAME_HINT}*"),
    ("enroll alice --key '{k}' --expires soon", USAGE, "*'soon' is no moment; write it like 90d,*"),
    ("enroll alice --key '{k}' --expires 2001-01-01", USAGE, "*'2001-01-01' is past; an expiry *"),
    ("enroll alice --key-file {h}/none", TROUBLE, "{h}/none: no such file or directory; name*"),
    (
        "grant carol ops",
        REFUSED,
        "there is no identity 'carol'; see: spa-keys list; or: spa-keys invite carol",
    ),
    (
        "ungrant carol ops",
        REFUSED,
        "there is no identity 'carol'; see: spa-keys list; or: spa-keys invite carol",
    ),
    ("revoke carol", REFUSED, "no identity or key is called 'carol'; see: spa-keys list --all"),
    (
        "list --database {d}/none",
        TROUBLE,
        "there is no registry at {d}/none; spa-server init *",
    ),
    ("list --database {d}/server.toml", TROUBLE, "{d}/server.toml is not a database; set --data*"),
]


@dataclass
class Scene:
    """A server with no daemon and no gate, alice, and what is wrong with their files."""

    site: Site
    server: Host
    alice: Person
    stranger_line: str
    to_nobody: tuple[str, ...]

    def fill_in(self, text: str) -> str:
        """The text with this scene's paths and lines."""
        places = {"d": self.site.directory, "h": self.alice.home}
        return text.format(**places, k=self.stranger_line, line=self.site.line)

    def run(self, program: str, *arguments: str | Path) -> CompletedProcess[str]:
        """Runs a program on the server, in alice's home."""
        env = {**self.alice.env, "SPA_DATABASE": str(self.site.database)}
        return self.server.run([PROGRAMS / program, *arguments], check=False, env=env)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server = lab.host("server")
        to_nobody = (*passage(lab), *NOBODY)
        site = Site(lab, server)
        alice = site.enrol("alice", "ops")
        stranger_line = site.stranger().generate()
        spoil_server_files(site)
        spoil_client_files(alice)
        yield Scene(site, server, alice, stranger_line, to_nobody)


def spoil_server_files(site: Site) -> None:
    d = site.directory
    config = site.config.read_text()
    policy = '[services]\nssh = "tcp/22"\n[roles.ops]\n[[roles.ops.allow]]\nservices = ["shs"]\n'
    (d / "bad-policy").write_text(policy)
    shutil.copy(d / "server.key", d / "open.key")
    (d / "open.key").chmod(0o640)
    torn = (d / "server.key").read_text().replace("secret: ", "secret: AA")
    (d / "torn.key").write_text(torn)
    (d / "torn.key").chmod(0o600)
    (d / "torn.toml").write_text("knock_port = \n")
    (d / "bad.toml").write_text('outer = ["eth0;x"]\n')
    for name, what, value in (
        ("no-policy", "policy.toml", "none"),
        ("bad-policy", "policy.toml", "bad-policy"),
        ("no-key", "server.key", "none"),
        ("open-key", "server.key", "open.key"),
        ("torn-key", "server.key", "torn.key"),
        ("not-a-key", "server.key", "server.toml"),
        ("no-database", "spa.db", "none"),
        ("bad-database", "spa.db", "server.toml"),
        ("file-as-socket", "control.sock", "policy.toml"),
    ):
        (d / f"{name}.toml").write_text(config.replace(f'"{what}"', f'"{value}"'))
    wanted = d / "wanted"
    wanted.mkdir()
    (wanted / "gate.wanted").touch()
    shutil.copy(site.database, wanted)
    elsewhere = config.replace('"policy.toml"', '"../policy.toml"').replace(
        '"server.key"', '"../server.key"'
    )
    for name, value in (
        ("file-as-socket", "policy.toml"),
        ("no-place-for-socket", "policy.toml/control.sock"),
    ):
        text = elsewhere.replace('"control.sock"', f'"{d}/{value}"')
        (wanted / f"{name}.toml").write_text(text)


def spoil_client_files(alice: Person) -> None:
    home = alice.home
    key = (home / ".config/spa/keys/default.key").read_text()
    for name, text, mode in (
        ("open.key", key, 0o644),
        ("torn.key", key.replace("secret: ", "secret: AA"), 0o600),
        ("no.key", "hello\n", 0o600),
        ("right", "right\n", 0o600),
        ("wrong", "wrong\n", 0o600),
        ("torn.toml", "[hosts\n", 0o600),
        ("bad.toml", '[hosts.a]\nadress = "x"\n', 0o600),
    ):
        (home / name).write_text(text)
        (home / name).chmod(mode)
    argv = (PROGRAMS / "spa-keys", "generate", "locked", "--passphrase-file", home / "right")
    alice.site.host.run(argv, env=alice.env)
    alice.client(alice.site.host, "add", "away", alice.site.line, "--address", "198.51.100.1")


def check_line(program: str, done: CompletedProcess[str], exit_code: int, expected: str) -> None:
    """Nothing on stdout, one line on stderr, and the exit code that belongs to it."""
    said = f"exit code {done.returncode}, {done.stdout!r}, {done.stderr!r}"
    pattern = ".*".join(map(re.escape, f"{program}: {expected}\n".split("*")))
    assert (done.returncode, done.stdout) == (exit_code, ""), said
    assert re.fullmatch(pattern, done.stderr), said
    assert not done.stderr.endswith(".\n"), said


Cases = list[tuple[str, int, str]]


def each_of(cases: Cases) -> Callable[..., pytest.MarkDecorator]:
    names = ("arguments", "exit_code", "expected")
    return pytest.mark.parametrize(names, cases, ids=[arguments for arguments, _, _ in cases])


@each_of(SERVER)
def test_spa_server(scene: Scene, arguments: str, exit_code: int, expected: str) -> None:
    argv = shlex.split(scene.fill_in(arguments))
    done = scene.run("spa-server", "--config", scene.site.config, *argv)
    check_line("spa-server", done, exit_code, scene.fill_in(expected))


@each_of(CLIENT)
def test_spa_client(scene: Scene, arguments: str, exit_code: int, expected: str) -> None:
    done = scene.run("spa-client", *shlex.split(scene.fill_in(arguments)))
    check_line("spa-client", done, exit_code, scene.fill_in(expected))


@each_of(KEYS)
def test_spa_keys(scene: Scene, arguments: str, exit_code: int, expected: str) -> None:
    done = scene.run("spa-keys", *shlex.split(scene.fill_in(arguments)))
    check_line("spa-keys", done, exit_code, scene.fill_in(expected))


@pytest.mark.parametrize("program", ["spa-server", "spa-client", "spa-keys"])
def test_a_program_without_arguments_shows_its_help(scene: Scene, program: str) -> None:
    done = scene.run(program)
    assert done.returncode == USAGE
    assert done.stdout == ""
    assert done.stderr.startswith(f"Usage: {program} ")


def test_a_question_that_is_answered_with_no(scene: Scene) -> None:
    argv = (PROGRAMS / "spa-server", "--config", scene.site.config, "gate", "remove")
    done = scene.server.run(argv, check=False, text="n\n")
    assert done.returncode == REFUSED
    assert done.stderr.endswith("spa-server: stopped, as asked\n")


# The host is not as it should be


def test_nft_is_not_installed(scene: Scene) -> None:
    program = (PROGRAMS / "spa-server", "--config", scene.site.config)
    done = scene.server.run(["env", "PATH=/none", *program, "gate", "apply"], check=False)
    expected = f"the firewall: nft could not be run: No such file or directory; {FIREWALL_HINT}"
    check_line("spa-server", done, TROUBLE, expected)
    assert not (scene.site.directory / "gate.wanted").exists()


def test_not_root(scene: Scene) -> None:
    """A user without any capability, for whom all the files are in order."""
    with tempfile.TemporaryDirectory(prefix="spa-bad-input") as directory:
        site = Site(scene.site.lab, scene.server, directory=Path(directory))
        (site.directory / "gate.wanted").touch()
        for path in (site.directory, *site.directory.rglob("*")):
            os.chown(path, NOBODY_UID, -1)
        program = (*scene.to_nobody, f"{PROGRAMS}/spa-server", "--config", str(site.config))
        refused = f"the firewall: reading the gate: Operation not permitted; {FIREWALL_HINT}"
        for arguments, expected in (
            ("gate apply", refused),
            ("gate show", refused),
            ("gate remove", refused),
            ("run", "*CAP_NET_ADMIN*"),
            (f"--config {scene.site.config} status", f"{scene.site.config}: permission denied; *"),
        ):
            done = scene.server.run([*program, *arguments.split()], check=False)
            check_line("spa-server", done, TROUBLE, expected)
        with closing(socket.socket(socket.AF_UNIX)) as of_root:
            path = site.directory / "control.sock"
            of_root.bind(str(path))
            path.chmod(0o660)
            done = scene.server.run([*program, "status"], check=False)
        expected = f"the daemon cannot be asked at {path}: permission denied; run as root or *"
        check_line("spa-server", done, TROUBLE, expected)


@pytest.fixture(scope="module")
def running(scene: Scene) -> Site:
    """A site on another host, whose daemon runs."""
    site = Site(scene.site.lab, scene.site.lab.host("guarded"))
    site.apply_gate()
    site.start()
    return site


def test_another_daemon_runs_already(running: Site) -> None:
    """Before the second one touches anything, it is told that its socket is taken."""
    expected = f"a daemon answers at {running.directory}/control.sock already; stop it first"
    check_line("spa-server", running.server("run", check=False), TROUBLE, expected)
    assert running.is_up()


def test_the_daemon_cannot_do_what_it_is_asked(running: Site) -> None:
    closed = running.server("close", "7", check=False)
    assert closed.returncode == REFUSED
    assert closed.stderr == "spa-server: nothing to close; see: spa-server holes\n"
    running.write_policy("[services]\nssh = 'tcp/0'\n")
    file = f"{running.directory}/policy.toml"
    expected = f"the daemon says: {file}: services.ssh: 0 is no port from 1 to 65535"
    expected += "; the policy in force stays"
    check_line("spa-server", running.server("reload", check=False), TROUBLE, expected)
    assert running.is_up()
