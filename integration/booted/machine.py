"""A host that is booted: systemd, its units and its users, in a namespace of the lab's.

    with Lab() as lab:
        machine = Machine.new(lab, "db1", root())
        machine.boot()
        machine.type("systemctl is-system-running")

Its files are a layer over others that stay as they are. Nothing is mounted but in the host's own
mount namespace, and the host dies with the process that booted it: nothing is left over.
"""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

from integration.lab import Host, Lab, wait_until

_BOOT_WITHIN_S: Final = 120.0
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNT_AND: Final = 'mount -t overlay overlay -o "$1" "$2"; shift 2; "$@"'
# What is in there dies with the first process of the namespace, and that one with the test's.
_ALONE: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
)
_TOLD: Final = 4000
_CONTROL: Final = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)")
_STATES: Final = ("running", "degraded", "maintenance")


@dataclass(frozen=True, slots=True)
class Said:
    """What a terminal showed while a line was typed there, without colours, and the exit status."""

    shown: str
    status: int


@dataclass
class Machine:
    """One host. `layers` are the roots under it, the topmost first."""

    host: Host
    name: str
    layers: tuple[Path, ...]
    directory: Path
    _nspawn: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    leader: int = 0

    @classmethod
    def new(cls, lab: Lab, name: str, *layers: Path) -> "Machine":
        """One that has not been booted, with a network of its own."""
        machine = cls(lab.host(name), name, layers, lab.new_file(name))
        for inside in ("own", "work", "root"):
            (machine.directory / inside).mkdir(mode=0o755, parents=True)
        lab.at_end(machine.pull_the_plug)
        (machine.own / "etc").mkdir(mode=0o755)
        (machine.own / "etc" / "hostname").write_text(f"{name}\n")
        return machine

    # On and off

    def boot(self) -> str:
        """Boots it, and what systemd then says of itself: running, or degraded."""
        layers = ":".join(map(str, self.layers))
        own, work, root = (self.directory / name for name in ("own", "work", "root"))
        overlay = f"lowerdir={layers},upperdir={own},workdir={work}"
        # The old hierarchy of control groups, where the machine has it, and the new one elsewhere.
        env = {**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}
        if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
            env["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "0"
        nspawn = (
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"),
            *("--directory", root, "--machine", self.host.namespace, f"--hostname={self.name}"),
            f"--network-namespace-path=/run/netns/{self.host.namespace}",
            *("--capability=all", "--resolv-conf=off", "--link-journal=no", "--console=pipe"),
        )
        mounted = ("sh", "-ec", _MOUNT_AND, "sh", overlay, root)
        with (self.directory / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                [*_ALONE, *map(str, (*mounted, *nspawn))],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        return self._state_when_up()

    def _state_when_up(self) -> str:
        found = ""

        def is_up() -> bool:
            nonlocal found
            assert self._nspawn is not None
            if self._nspawn.poll() is not None:
                raise RuntimeError(f"{self.name} did not boot: {self.console[-2000:]}")
            self.leader = self._find_leader()
            if not self.leader:
                return False
            found = self.type("systemctl is-system-running", check=False).stdout.strip()
            return found in _STATES

        wait_until(is_up, within_s=_BOOT_WITHIN_S, what=f"{self.name} to boot")
        return found

    def _find_leader(self) -> int:
        """The process that is the host's first, once systemd is what runs there."""
        assert self._nspawn is not None
        below = [self._nspawn.pid]
        while below:
            pid = below.pop()
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    return pid
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                below += map(int, children)
        return 0

    def off(self) -> None:
        """Shuts it down in good order. What only the kernel knew is lost, as on a real host."""
        assert self._nspawn is not None
        self.type("systemctl poweroff", check=False)
        self._nspawn.wait(_BOOT_WITHIN_S)
        self._forget()

    def pull_the_plug(self) -> None:
        """Ends it as a power cut does; one that is off stays so."""
        if self._nspawn is None:
            return
        with suppress(ProcessLookupError):
            if self.leader:
                os.kill(self.leader, signal.SIGKILL)
            os.killpg(self._nspawn.pid, signal.SIGKILL)
        self._nspawn.wait()
        self._forget()

    def _forget(self) -> None:
        """The namespace is the lab's and lives on; rules and flows in it would not."""
        self._nspawn, self.leader = None, 0
        self.host.run(["nft", "flush", "ruleset"])
        if shutil.which("conntrack"):
            self.host.run(["conntrack", "-F"], check=False)

    def reboot(self) -> str:
        """Off, and on again; what systemd then says of itself."""
        self.off()
        return self.boot()

    # Its files and programs

    @property
    def console(self) -> str:
        """What it printed while it booted."""
        return (self.directory / "console").read_text(errors="replace")

    @property
    def own(self) -> Path:
        """Its own layer: what it has written. To be written to only while it is off."""
        return self.directory / "own"

    def type(
        self,
        line: str,
        *,
        user: str = "root",
        at: str = "~",
        text: str | None = None,
        check: bool = True,
        timeout_s: float = 240.0,
    ) -> CompletedProcess[str]:
        """Runs a line as a user's bash does, in the directory `at`; `text` is its input.

        Raises AssertionError, with what it printed, where it fails and `check` asks for success.
        """
        done = subprocess.run(
            self._command(line, user, at),
            capture_output=True,
            text=True,
            errors="replace",
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            told = f"{done.stdout}{done.stderr}"[-_TOLD:]
            raise AssertionError(
                f"{user}@{self.name}: {line!r} ended with {done.returncode}: {told}"
            )
        return done

    def at_a_terminal(
        self,
        line: str,
        answers: Sequence[tuple[str, str]] = (),
        *,
        user: str = "root",
        at: str = "~",
        within_s: float = 180.0,
        until: str | None = None,
    ) -> Said:
        """Types a line at a terminal, and an answer to each question when it is asked.

        An answer to no question is typed at once. When `until` is shown, Ctrl-C is typed. Raises
        AssertionError where it does not end.
        """
        pid, terminal = pty.fork()
        if pid == 0:
            os.execvp("nsenter", self._command(line, user, at))  # noqa: S606 - no shell is wanted
        shown, asked, left = "", 0, list(answers)
        while left and not left[0][0]:
            os.write(terminal, f"{left.pop(0)[1]}\n".encode())
        deadline = time.monotonic() + within_s
        try:
            for some in _shown(terminal, deadline):
                shown += some
                if left and left[0][0] in shown[asked:]:
                    asked = len(shown)
                    os.write(terminal, f"{left.pop(0)[1]}\n".encode())
                if until is not None and until in shown:
                    until = None
                    os.write(terminal, b"\x03")
            if time.monotonic() > deadline or left or until is not None:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError(
                    f"{line!r}: waiting for {left or until or 'the end'} in: {shown}"
                )
        finally:
            os.close(terminal)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return Said(_CONTROL.sub("", shown).replace("\r\n", "\n"), status)

    def _command(self, line: str, user: str, at: str) -> list[str]:
        home = "/root" if user == "root" else f"/home/{user}"
        env = [f"HOME={home}", f"USER={user}", f"PATH={home}/.local/bin:{_PATH}"]
        env.append(f"SSH_AUTH_SOCK={home}/agent")
        enter = ["nsenter", "--target", str(self.leader), "--all", "env", "--ignore-environment"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        shell = ["bash", "-c", f"cd {at} || exit\n{line}"]
        return [*enter, *env, "LANG=C.UTF-8", "TERM=xterm", *become, *shell]

    def unpack(self, archive: bytes, directory: str, user: str = "root") -> None:
        """Puts what is in a tar archive into a directory, which it makes, as a user's."""
        line = f"mkdir -p {directory} && tar -x -C {directory} --no-same-owner"
        done = subprocess.run(self._command(line, user, "/"), input=archive, check=False)
        assert done.returncode == 0


def _shown(terminal: int, deadline: float) -> Iterator[str]:
    """What a terminal shows, until nobody has it open any more or the time is over."""
    while (left_s := deadline - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left_s)[0]:
            return
        try:
            some = os.read(terminal, 65536)
        except OSError:  # so Linux says that the other side is closed
            return
        if not some:
            return
        yield some.decode(errors="replace")
