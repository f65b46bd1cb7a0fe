"""Reading access.conf: lines into settings, settings into stanzas, other files where it says so.

As fwknopd 2.6.10 reads it (tried with `fwknopd -D`):

1.  A line is `VARIABLE value`, with blanks before, between and after. The name is case-sensitive
    and may end in a colon. The value ends at a semicolon. What begins with # or ; is a comment.
2.  SOURCE begins a stanza. Whatever else stands before the first is an error.
3.  %include FILE and %include_folder FOLDER read other files, in which whole stanzas stand.
    Afterwards the stanza goes on in which they were. %include_keys FILE holds keys alone, and is
    not opened.

Stricter than fwknopd, so that a slip is seen: a file is read once.
"""

import difflib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from keys.trouble import Trouble
from spa_server.fwknop.stanza import AccessProblem, Place, Setting, Stanza
from spa_server.fwknop.variables import KNOWN, SECRET

PLACEHOLDER: Final = "__CHANGEME__"
MAX_SIZE: Final = 16 * 1024 * 1024
MAX_LINE: Final = 1023
MAX_DEPTH: Final = 8

_INCLUDE: Final = "%include"
_INCLUDE_FOLDER: Final = "%include_folder"
_NAMES: Final = KNOWN | {_INCLUDE, _INCLUDE_FOLDER}
_LINE: Final = re.compile(r"[ \t]*([^ \t]+)[ \t]+([^;\r]*)")
_COMMENT: Final = re.compile(r"[ \t]*[#;].*|[ \t\r]*")
_PRESENTABLE: Final = re.compile(r"%?[A-Za-z][A-Za-z0-9_]{0,39}")
_MARKS: Final = secrets.token_bytes(32)


def read(path: Path) -> list[Stanza]:
    """All stanzas of a file and of those that it includes. Raises Trouble."""
    reader = _Reader()
    reader.read(path, None, 0)
    if not reader.stanzas:
        raise Trouble(f"{path}: no stanza", "a stanza begins with a line like: SOURCE ANY")
    return reader.stanzas


def settings(text: str, path: Path) -> Iterator[Setting]:
    """The settings of one file, in order; `path` is for their places. Raises AccessProblem."""
    for number, line in enumerate(text.split("\n"), 1):
        place = Place(path, number)
        if len(line) > MAX_LINE:
            raise AccessProblem(place, "", f"longer than the {MAX_LINE} characters of a line")
        if _COMMENT.fullmatch(line):
            continue
        found = _LINE.match(line)
        value = found[2].strip(" \t") if found else ""
        if found is None or not value:
            name = line.split()[0].rstrip(":") if line.split() else ""
            raise AccessProblem(place, name if name in _NAMES else "", "no value is there")
        name = found[1].removesuffix(":")
        yield Setting(name, _mark(value) if name in SECRET else value, place)


def shown(name: str) -> str:
    """A name that is not known, as it may be shown: a key can have slipped to its place."""
    return name if _PRESENTABLE.fullmatch(name) else "a line"


def likely(name: str) -> str | None:
    """The variable that somebody meant by a name that is not known."""
    return next(iter(difflib.get_close_matches(name.upper(), KNOWN, 1, 0.85)), None)


def _mark(secret: str) -> str:
    """The same for the same secret while this program runs, and of no use to anybody."""
    if secret == PLACEHOLDER:
        return secret
    return hashlib.blake2b(secret.encode(), key=_MARKS, digest_size=16).hexdigest()


class _Reader:
    """Collects the stanzas; `_seen` are the files that were read, and by which line."""

    def __init__(self) -> None:
        self.stanzas: list[Stanza] = []
        self._seen: dict[Path, Place | None] = {}

    def read(self, path: Path, by: Setting | None, depth: int) -> None:
        """Reads one file that a line, or nobody, includes."""
        resolved = _resolved(path, by)
        if by is not None and resolved in self._seen:
            first = self._seen[resolved]
            where = f"by {first}" if first else "from the beginning"
            raise by.problem(f"{path} is read already, {where}", "include each file once")
        if by is not None and depth > MAX_DEPTH:
            raise by.problem(f"more than {MAX_DEPTH} files deep", "include it further up")
        self._seen[resolved] = by.place if by else None
        stanza: list[Setting] = []
        for setting in settings(_text(path, by), path):
            if setting.variable == "SOURCE":
                self._end(stanza)
                stanza = [setting]
            elif setting.variable in (_INCLUDE, _INCLUDE_FOLDER):
                for other in _included(setting):
                    self.read(other, setting, depth + 1)
            elif stanza:
                stanza.append(setting)
            else:
                raise _outside(setting)
        self._end(stanza)

    def _end(self, stanza: list[Setting]) -> None:
        if stanza:
            self.stanzas.append(Stanza(tuple(stanza)))


def _outside(setting: Setting) -> AccessProblem:
    if setting.variable.upper() == "SOURCE":
        problem = "fwknopd knows variables in capitals only; write it SOURCE"
        return AccessProblem(setting.place, shown(setting.variable), problem)
    name = "" if setting.variable not in KNOWN else setting.variable
    problem = "stands outside a stanza" if name else "a line that stands outside a stanza"
    return AccessProblem(setting.place, name, problem, "a stanza begins with SOURCE")


def _resolved(path: Path, by: Setting | None) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
        raise _unreadable(path, by, "cannot be found") from None


def _included(setting: Setting) -> list[Path]:
    """The files that a line names; a relative name is taken from the file it stands in."""
    path = setting.place.file.parent / setting.value
    if setting.variable == _INCLUDE:
        return [path]
    try:
        if not path.is_dir():
            raise setting.problem(f"{path} is no directory")
        return sorted(path.glob("*.conf"))
    except (OSError, ValueError) as error:
        raise setting.problem(f"{path} cannot be read: {_reason(error)}") from None


def _text(path: Path, by: Setting | None) -> str:
    """Bytes that are no UTF-8 can only stand in a key, and are replaced."""
    try:
        if not path.is_file():  # before it is opened, and again: a device may act, a pipe waits
            path.stat()
            raise _unreadable(path, by, "is no file")
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _unreadable(path, by, "is no file")
            if status.st_size > MAX_SIZE:
                raise _unreadable(path, by, f"is larger than {MAX_SIZE // 1024 // 1024} MiB")
            content = file.read(MAX_SIZE)
    except (OSError, ValueError) as error:
        raise _unreadable(path, by, f"cannot be read: {_reason(error)}") from None
    if b"\0" in content:
        raise _unreadable(path, by, "is binary, and no access.conf")
    return content.decode("utf-8", errors="replace")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _unreadable(path: Path, by: Setting | None, why: str) -> Trouble:
    return Trouble(f"{path} {why}") if by is None else by.problem(f"{path} {why}")


def _reason(error: Exception) -> str:
    what = error.strerror if isinstance(error, OSError) else None
    return (what or str(error)).lower()
