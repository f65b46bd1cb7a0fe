"""Putting the lines for ssh where ssh looks: a file of our own, and one line that includes it.

    ~/.ssh/spa_hosts     all of it ours, written anew each time
    ~/.ssh/config        `Include spa_hosts` in front of all else, once; the rest is not touched

The line has to come first: after a `Host` line it would belong to that host alone.
"""

import os
import re
from pathlib import Path
from typing import Final

from keys import privatefile
from keys.trouble import Trouble

INCLUDED: Final = "spa_hosts"
_INCLUDE: Final = re.compile(r"\s*include\b.*\bspa_hosts\b", re.IGNORECASE)
_SECTION: Final = re.compile(r"\s*(host|match)\b", re.IGNORECASE)
_HOST: Final = re.compile(r"\s*host(?:\s*=\s*|\s+)(.*)", re.IGNORECASE)
_MAX_SIZE: Final = 1 << 20
_BY_HAND: Final = "put it there yourself: spa-client ssh-config"
_HEAD: Final = "# Written by `spa-client ssh-config --install`: changes here are lost.\n"


def ssh_directory() -> Path:
    """Where ssh has the configuration of the person who calls. Raises Trouble."""
    try:
        return Path.home() / ".ssh"
    except RuntimeError:
        raise Trouble("this user has no home directory", "set HOME") from None


def own_names(directory: Path) -> frozenset[str]:
    """The names, in small letters, of the blocks that the person has written. Raises Trouble.

    Patterns among them are left out: they are for hosts in general, as those of `Host *`.
    """
    lines = (_content(directory / "config") or "").splitlines()
    heads = (match for match in map(_HOST.match, lines) if match)
    names = (word.strip('"').lower() for head in heads for word in head[1].split())
    return frozenset(name for name in names if not set("*?!#") & set(name))


def is_installed(blocks: str, directory: Path) -> bool | None:
    """Whether the file of our own has these blocks; None where there is none. Raises Trouble."""
    content = _content(directory / INCLUDED)
    return None if content is None else content == _text(blocks)


def _text(blocks: str) -> str:
    return f"{_HEAD}\n{blocks}\n"


def install(blocks: str, directory: Path) -> list[Path]:
    """Writes the blocks, and the line that includes them if it is missing; what was written.

    Raises Trouble; the person's own configuration is then as it was.
    """
    own, written = directory / INCLUDED, []
    text = _text(blocks)
    if _content(own) != text:
        privatefile.write(own, text.encode(), overwrite=True)
        written.append(own)
    config = directory / "config"
    before = _content(config) or ""
    if not _includes(before):
        after = f"Include {INCLUDED}\n\n{before}" if before else f"Include {INCLUDED}\n"
        _replace(config, after)
        written.append(config)
    return written


def _includes(text: str) -> bool:
    """Whether the line is there, before any that would have it hold for one host only."""
    for line in text.splitlines():
        if _SECTION.match(line):
            return False
        if _INCLUDE.match(line):
            return True
    return False


def _content(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Trouble(f"{path} cannot be read: {error.strerror}", _BY_HAND) from None
    if len(text) > _MAX_SIZE:
        raise Trouble(f"{path} is larger than a megabyte", _BY_HAND)
    return text


def _replace(path: Path, text: str) -> None:
    """Whole or not at all. Where it is a link, as those who share theirs have it, what it names."""
    try:
        target = path.resolve()
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        with privatefile.new_file(target, overwrite=True) as unnamed, unnamed.open("wb") as file:
            unnamed.chmod(mode)
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Trouble(f"{path} cannot be written: {error.strerror}", _BY_HAND) from None
