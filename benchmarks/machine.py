"""Where the figures were taken."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def described() -> dict[str, str]:
    """The machine and the versions of everything that the figures depend on."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} of them",
        "memory": f"{_memory_gb():.0f} GB",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "spaknock": version("spaknock"),
        "pynacl": version("pynacl"),
        "fwknopd": _said("fwknopd", "--version").split()[2].rstrip(","),
        "nftables": _said("nft", "--version").split()[1],
        "iptables": _said("iptables", "--version").split(maxsplit=1)[1],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _said(*argv: str) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip()
