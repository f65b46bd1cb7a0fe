"""The small C programs, built when they are first needed."""

import subprocess
from pathlib import Path
from typing import Final

_SOURCES: Final = Path(__file__).parent
_FLAGS: Final = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


def built(name: str, cache: Path) -> Path:
    """The path of a program, compiled anew where its source is newer.

    Raises RuntimeError, with what the compiler said, where it cannot be.
    """
    source, program = _SOURCES / f"{name}.c", cache / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["gcc", *_FLAGS, "-o", program, source, "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")
    return program
