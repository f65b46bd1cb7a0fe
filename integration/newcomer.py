"""A newcomer's path, from an installed package to a session of ssh, each command with its time.

    python -m integration.newcomer      (as root)

Two machines that nobody has used: each has a name, a network, an /etc, a /var/lib, a /run and a
home of its own, and nothing of ours in them but the user `spa`. The commands are those of
README.md, as a person types them into bash. `systemctl start` is stood in for by what the unit
does: the directories that it makes, and the daemon as its user with one capability.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

from integration.lab import Host, Lab, Running, missing, wait_until
from integration.site import PROGRAMS
from integration.test_unprivileged import passage

NAME: Final = "db1.internal"
_ASK: Final = "'echo $SSH_CONNECTION'"
SSHD: Final = "/usr/sbin/sshd"
MAX_COMMANDS: Final = 6

# In the mount namespace that `ip netns exec` makes, and so for the program that is run there alone.
_OWN_DIRECTORIES: Final = """
mount --bind "$1/etc" /etc
mount --bind "$1/lib" /var/lib
mount --bind "$1/run" /run
hostname "$2"
shift 2
exec "$@"
"""
_UNIT: Final = (
    "setpriv",
    "--reuid=spa",
    "--regid=spa",
    "--clear-groups",
    "--no-new-privs",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=-all,+net_admin",
    "--bounding-set=-all,+net_admin",
)
_SSHD_CONFIG: Final = """
Port 22
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PidFile none
"""


@dataclass(frozen=True)
class Machine:
    """A host with directories of its own, in which somebody types commands."""

    host: Host
    name: str
    directory: Path

    @classmethod
    def new(cls, lab: Lab, name: str) -> "Machine":
        """One with a copy of this machine's /etc, in which root lives elsewhere."""
        machine = cls(lab.host(name), f"{name}.internal", lab.new_file(name))
        for inside in ("lib", "run", "home/.ssh"):
            (machine.directory / inside).mkdir(mode=0o755, parents=True)
        machine.host.run(["cp", "-a", "/etc", machine.directory / "etc"])
        machine.host.run(["rm", "-rf", machine.directory / "etc" / "spa"])
        home = str(machine.home).replace("/", r"\/")
        machine.type(f"sed -i 's/^\\(root:.*\\):[^:]*:\\([^:]*\\)$/\\1:{home}:\\2/' /etc/passwd")
        return machine

    @property
    def prompt(self) -> str:
        """What stands before the commands that are typed there."""
        return f"root@{self.host.name}#"

    @property
    def home(self) -> Path:
        """Where its root lives."""
        return self.directory / "home"

    @property
    def etc(self) -> Path:
        """What is /etc there."""
        return self.directory / "etc"

    def command(self, *argv: str) -> list[str]:
        """The command, run in the machine's own directories."""
        alone = ["unshare", "--uts", "sh", "-ec", _OWN_DIRECTORIES, "sh"]
        return [*alone, str(self.directory), self.name, *argv]

    def type(
        self, line: str, *, text: str | None = None, check: bool = True
    ) -> CompletedProcess[str]:
        """Runs a line as bash does; `text` is typed next."""
        path = f"{PROGRAMS}:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {"HOME": str(self.home), "PATH": path, "XDG_CONFIG_HOME": "", "LANG": "C.UTF-8"}
        return self.host.run(self.command("bash", "-c", line), env=env, text=text, check=check)


@dataclass(frozen=True, slots=True)
class Step:
    """A command that was typed, what came of it, and how long it took."""

    prompt: str
    command: str
    output: str
    seconds: float


@dataclass
class Walk:
    """The path of two people who have never seen these programs: an operator, and alice."""

    lab: Lab
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server, self.laptop = (Machine.new(self.lab, name) for name in ("db1", "laptop"))
        self.server.type("useradd --system --home-dir /var/lib/spa --shell /usr/sbin/nologin spa")
        self._prepare_ssh()
        for machine in (self.server, self.laptop):
            machine.type(f"echo '{self.server.host.v4} {NAME} db1' >> /etc/hosts")
        self._daemon: Running | None = None

    @property
    def seconds(self) -> float:
        """How long all the commands took."""
        return sum(step.seconds for step in self.steps)

    def go(self) -> Iterator[Step]:
        """Each command of the path, when it has ended; the sixth is a session of ssh."""
        yield self._typed(self.server, f"spa-server init --host {NAME}")
        invite = self._typed(self.server, "spa-keys invite alice --role admin")
        yield invite
        yield self._typed(self.server, "spa-server gate apply")
        yield self._started()
        line = invite.output.split("\n")[0]
        yield self._typed(self.laptop, "spa-client join - --ssh --no-passphrase", text=line)
        yield self._typed(self.laptop, f"ssh {NAME} {_ASK}")

    def _typed(self, at: Machine, line: str, text: str | None = None) -> Step:
        begun = time.monotonic()
        done = at.type(line, text=text)
        return self._step(at, line, done.stdout + done.stderr, begun)

    def _started(self) -> Step:
        """Until systemd would say that the unit has started: the daemon says so itself."""
        begun = time.monotonic()
        self.server.type("install -d -o spa -g spa -m 755 /run/spa")
        argv = (*passage(self.lab), *_UNIT, str(PROGRAMS / "spa-server"), "run")
        daemon = self._daemon = self.server.host.start(self.server.command(*argv))

        def is_up() -> bool:
            if daemon.process.poll() is not None:
                raise RuntimeError(f"the daemon ended: {daemon.output}")
            return (self.server.directory / "run" / "spa" / "control.sock").exists()

        wait_until(is_up, within_s=20, what="the daemon")
        return self._step(self.server, "systemctl start spa-server", "", begun)

    def _step(self, at: Machine, line: str, output: str, begun: float) -> Step:
        step = Step(at.prompt, line, output, time.monotonic() - begun)
        self.steps.append(step)
        return step

    def _prepare_ssh(self) -> None:
        """An sshd that knew alice's key, and an ssh that knew the host, before the path begins."""
        self.laptop.type("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
        self.server.type("ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/newcomer")
        public = (self.laptop.home / ".ssh" / "id_ed25519.pub").read_text()
        (self.server.home / ".ssh" / "authorized_keys").write_text(public)
        host_key = (self.server.etc / "ssh" / "newcomer.pub").read_text()
        (self.laptop.home / ".ssh" / "known_hosts").write_text(f"{NAME} {host_key}")
        config = self.server.etc / "ssh" / "newcomer_config"
        config.write_text(_SSHD_CONFIG + "HostKey /etc/ssh/newcomer\n")
        (self.server.directory / "run" / "sshd").mkdir()
        sshd = self.server.command(SSHD, "-D", "-e", "-f", "/etc/ssh/newcomer_config")
        self.server.host.start(sshd).wait_for("Server listening on 0.0.0.0 port 22.")


def _print(step: Step) -> None:
    print(f"{step.seconds:5.2f} s  {step.prompt} {step.command}", flush=True)
    for line in step.output.rstrip().splitlines():
        print(f"         {line}")


def main() -> int:
    """Prints the path as it is walked."""
    if reason := missing():
        print(f"newcomer: {reason}", file=sys.stderr)
        return 4
    with Lab() as lab:
        walk = Walk(lab)
        for step in walk.go():
            _print(step)
        print(f"{walk.seconds:5.2f} s  {len(walk.steps)} commands to a session")
    return 0


if __name__ == "__main__":
    sys.exit(main())
