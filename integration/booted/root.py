"""A Debian 12 root with what README.md takes for granted, made once and kept under build/.

What README has fetched (`apt install`, `pip install`) lies in it already, not installed: packages
in apt's own cache, wheels in a directory that is pip's only index. For the hosts of a lab have no
way out, and yet the lines that are typed there are README's own.
"""

import fcntl
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Final

TREE: Final = Path(__file__).parent.parent.parent
_PLACE: Final = TREE / "build" / "booted"
_SUITE: Final = "bookworm"
_SOURCE: Final = f"deb http://deb.debian.org/debian {_SUITE} main"
_PYTHON: Final = "3.11"  # that of the suite
# What is on the host of an operator, and on the laptop of whoever connects, before README begins.
_THERE: Final = (
    "systemd systemd-sysv dbus kmod procps netbase iproute2 python3 man-db openssh-server"
    " openssh-client ca-certificates"
)
# What README's lines fetch, and pipx, which it takes for granted on the laptop.
_FETCHED: Final = "nftables python3-venv pipx"
_WHEELS: Final = "/usr/share/wheels"
# `apt install` asks whether it may; whoever follows README says yes. What is merely recommended is
# not among what was fetched.
_APT_CONF: Final = 'APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n'
# pip builds the project with the first, pipx looks for newer ones of the others.
_BUILT_WITH: Final = ("hatchling", "pip", "setuptools", "wheel")
_PIP_CONF: Final = f"""\
[global]
no-index = true
find-links = {_WHEELS}
disable-pip-version-check = true
"""
_PROGRAMS: Final = ("mmdebstrap", "systemd-nspawn", "nsenter", "unshare", "setpriv", "git")


class CannotBeMade(Exception):
    """There is no root, and none can be made: no mirror within reach, say."""


def missing() -> str:
    """Why no host can be booted here, or nothing."""
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"a booted host needs {', '.join(absent)}: scripts/prepare test" if absent else ""


def root() -> Path:
    """The root, which nobody may write to. Raises CannotBeMade.

    It is made anew when anything changes that it is made from. Of several processes one makes it.
    """
    made_from = json.dumps([Path(__file__).read_text(), _requirements()])
    name = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    _PLACE.mkdir(parents=True, exist_ok=True)
    with (_PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = _PLACE / name
        if not made.exists():
            for other in _PLACE.iterdir():
                if other.is_dir():
                    shutil.rmtree(other)
            unnamed = _PLACE / "unfinished"
            _make(unnamed)
            unnamed.rename(made)
    return made


def _requirements() -> list[str]:
    """What pip has to find for every line of README."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["server"], *extras["report"], *_BUILT_WITH]


def _make(at: Path) -> None:
    fetch = f'chroot "$1" apt-get install --yes --download-only --no-install-recommends {_FETCHED}'
    _run(
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--skip=cleanup/apt"),
        f"--include={','.join(_THERE.split())}",
        f"--customize-hook={fetch}",
        *(_SUITE, str(at), _SOURCE),
    )
    (at / "etc" / "pip.conf").write_text(_PIP_CONF)
    (at / "etc" / "apt" / "apt.conf.d" / "90spaknock").write_text(_APT_CONF)
    # Each host is another; mmdebstrap has given it the name of this machine.
    (at / "etc" / "machine-id").write_text("")
    (at / "etc" / "hostname").unlink(missing_ok=True)
    _fetch_wheels(at / _WHEELS.lstrip("/"))


def _fetch_wheels(directory: Path) -> None:
    """By the pip that runs the tests, which knows where this machine has its index."""
    machine = platform.machine()
    platforms = [
        f"--platform={kind}_{machine}" for kind in ("manylinux2014", "manylinux_2_28", "linux")
    ]
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"),
        *(f"--python-version={_PYTHON}", *platforms, f"--dest={directory}", *_requirements()),
    )


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        with suppress(OSError):
            shutil.rmtree(_PLACE / "unfinished")
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise CannotBeMade(f"{argv[0]} failed: {' / '.join(lines[-3:])}")
