"""A host to be guarded and a laptop, with the project installed on them by README's own lines.

What README takes for granted is there before: on the host an account for alice, who may log in by
her key, and PostgreSQL (something that listens on its port); on the laptop alice, pipx, and a psql
(something that connects).
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.booted import readme
from integration.booted.machine import Machine
from integration.booted.root import TREE
from integration.lab import Lab

NAME: Final = "db1.internal"
CHECKOUT: Final = "~/spaknock"
OLD: Final = "fee1660"
"""The commit that people come from who upgrade."""

_POSTGRES: Final = """\
[Unit]
Description=Something that listens where PostgreSQL does
[Service]
ExecStart=python3 -m http.server 5432
[Install]
WantedBy=multi-user.target
"""
_PSQL: Final = """\
#!/bin/bash
timeout 3 bash -c "exec 3<>/dev/tcp/$2/5432" && echo "connected to $2"
"""


def tree() -> bytes:
    """This tree, as somebody has it who checked it out: a tar archive."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TREE,
        capture_output=True,
        check=True,
    ).stdout
    there = b"".join(
        name + b"\0" for name in listed.split(b"\0") if (TREE / name.decode()).is_file()
    )
    tar = ["tar", "--create", "--null", "--files-from=-", "--owner=0", "--group=0"]
    return subprocess.run(tar, cwd=TREE, input=there, capture_output=True, check=True).stdout


def old_tree() -> bytes | None:
    """The tree of the commit that people upgrade from; None where git has not got it."""
    archive = ["git", "archive", OLD]
    done = subprocess.run(archive, cwd=TREE, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def install_server(machine: Machine, archive: bytes) -> None:
    """README's lines for the host that is to be guarded."""
    machine.unpack(archive, "/root/spaknock")
    for line in readme.blocks("Install")[0].lines:
        machine.type(line, at=CHECKOUT)


def install_client(machine: Machine, archive: bytes) -> None:
    """README's lines for the machine of whoever connects, as alice."""
    machine.unpack(archive, "/home/alice/spaknock", "alice")
    for line in readme.blocks("Install")[1].lines:
        machine.type(line, user="alice", at=CHECKOUT)


@dataclass(frozen=True, slots=True)
class Company:
    """The host and the laptop, both booted."""

    server: Machine
    laptop: Machine

    @classmethod
    def new(cls, lab: Lab, *layers: Path, laptop: tuple[Path, ...] = ()) -> "Company":
        """Two machines with nothing of ours on them, unless their layers have it."""
        made = cls(
            Machine.new(lab, "db1", *layers), Machine.new(lab, "laptop", *(laptop or layers))
        )
        for machine in (made.server, made.laptop):
            assert machine.boot() == "running", machine.type("systemctl --failed").stdout
            machine.type(f"echo '{made.server.host.v4} {NAME} db1' >> /etc/hosts")
            machine.type("id -u alice || useradd --create-home --shell /bin/bash alice")
        return made

    def furnish(self) -> None:
        """What README takes for granted."""
        self.server.unpack(tree(), "/root/spaknock")
        self.laptop.unpack(tree(), "/home/alice/spaknock", "alice")
        self.laptop.type("apt install pipx")
        self._write(self.laptop, "/usr/local/bin/psql", _PSQL, "755")
        self._write(self.server, "/etc/systemd/system/postgres.service", _POSTGRES, "644")
        self.server.type("systemctl enable --now --quiet postgres")
        self.laptop.type("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519", user="alice")
        public = self.laptop.type("cat ~/.ssh/id_ed25519.pub", user="alice").stdout
        self.server.type(
            "mkdir -m 700 ~/.ssh && cat >> ~/.ssh/authorized_keys", user="alice", text=public
        )

    def _write(self, machine: Machine, path: str, text: str, mode: str) -> None:
        machine.type(f"install -D -m {mode} /dev/stdin {path}", text=text)
