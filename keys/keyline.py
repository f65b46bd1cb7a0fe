"""Key lines from a file or a pipe, as the operator was given them: one, or a list.

A list names an identity in each line, and the roles that it gets, in any number:

    # who       in which roles   with which key
    alice       dba,oncall       spa-key AX... alice@laptop
    backup                       spa-key AX...

A list for one identity needs key lines only. It may be an authorized_keys file of OpenSSH's: there
the key lines stand in comments, and the SSH keys are counted. An SSH key alone cannot knock, since
it lacks the other half, the agreement key.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keys.keyfile import MAGIC
from keys.names import identity_name, role_name
from keys.trouble import Trouble
from spa_protocol.keytext import BadKeyText, parse_key
from spa_protocol.publickey import PublicKey

_STDIN: Final = Path("-")
_MAX_SIZE: Final = 65_536
_MAX_LIST: Final = 16 * 2**20
_MAX_NUMBERS: Final = 10
_KEY_WORD: Final = "spa-key"
_SSH_KEY: Final = re.compile(
    r"(?:^|\s)(?:ssh-(?:ed25519|rsa|dss)|ecdsa-sha2-nistp[0-9]+|sk-[a-z0-9-]+@openssh\.com)\s+AAAA"
)
_FOR_SSH: Final = "its owner runs 'spa-keys generate' and sends that line, or joins by an invite"


@dataclass(frozen=True, slots=True)
class Entry:
    """A key to be enrolled, and the number of the line that asks for it."""

    line: int
    identity: str
    roles: tuple[str, ...]
    public: PublicKey
    comment: str


@dataclass(frozen=True, slots=True)
class KeyList:
    """What a list holds: entries, and how many SSH keys, which cannot be enrolled.

    `where` names it, for messages; None is no list, but a key that was given by itself.
    """

    where: str | None
    entries: tuple[Entry, ...]
    ssh_keys: int = 0


class BadLine(Trouble):
    """A line of a list that cannot be used: `file: line 3: what is wrong; what to do`."""

    def __init__(self, where: str, line: int, why: Exception, exit_code: int | None = None) -> None:
        message, hint = (why.message, why.hint) if isinstance(why, Trouble) else (str(why), "")
        super().__init__(f"{where}: line {line}: {message}", hint, exit_code=exit_code)


def read(path: Path) -> tuple[PublicKey, str]:
    """The one key line of a file, `-` being stdin, and its comment. Raises Trouble and OSError.

    Empty lines and lines that begin with # are passed over.
    """
    where = _name(path)
    lines = [line.strip() for line in _text(path, _MAX_SIZE).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) != 1:
        what = f"{where} has {'no line' if not lines else f'{len(lines)} lines'}"
        raise Trouble(what, "expected one, 'spa-key <base64> comment'; for many, give --from")
    try:
        return parse_key(lines[0])
    except BadKeyText as bad:
        raise Trouble(f"{where}: {bad}") from None


def of_one(identity: str, public: PublicKey, comment: str) -> KeyList:
    """The list of one key, which comes from nowhere."""
    return KeyList(None, (Entry(0, identity, (), public, comment),))


def read_list(path: Path, identity: str | None) -> KeyList:
    """The entries of a list; where `identity` is given, all of them are its own.

    Raises Trouble, which names every line that is wrong, and OSError.
    """
    where, lines = _name(path), _text(path, _MAX_LIST).splitlines()
    entries: dict[str, Entry] = {}
    bad: dict[int, Exception] = {}
    ssh_keys = 0
    for number, line in enumerate(lines, start=1):
        try:
            if _SSH_KEY.search(line) and not line.lstrip().startswith("#"):
                ssh_keys += 1
                _require_own_list(identity)
            elif (entry := _entry(number, line.strip(), identity)) is not None:
                _require_new(entry, entries)
                entries[entry.public.key_id] = entry
        except (BadKeyText, Trouble) as why:
            bad[number] = why
    if bad:
        raise _bad_lines(where, bad)
    if not entries:
        raise _nothing(where, ssh_keys)
    return KeyList(where, tuple(entries.values()), ssh_keys)


def _entry(number: int, line: str, identity: str | None) -> Entry | None:
    """What a line asks for, if it asks for anything. Raises BadKeyText and Trouble."""
    if line.startswith("#"):
        inside = line.lstrip("# \t")
        is_key = identity is not None and inside.split(maxsplit=1)[:1] == [_KEY_WORD]
        line = inside if is_key else ""
    if not line:
        return None
    before, key_line = _divided(line)
    public, comment = parse_key(key_line)
    names = before if identity is None else [identity, *before]
    if not names:
        raise Trouble("nobody is named", "write the identity, its roles and then the key line")
    owner, *roles = names
    return Entry(number, identity_name(owner), tuple(map(role_name, roles)), public, comment)


def _divided(line: str) -> tuple[list[str], str]:
    """The names that stand before a key line, and the key line."""
    words = line.split()
    if _KEY_WORD not in words:
        return [], line
    at = words.index(_KEY_WORD)
    return " ".join(words[:at]).replace(",", " ").split(), " ".join(words[at:])


def _require_own_list(identity: str | None) -> None:
    """Among the keys of many, an SSH key is a mistake; in authorized_keys it is no wonder."""
    if identity is None:
        raise Trouble("an SSH key alone cannot knock", _FOR_SSH)


def _require_new(entry: Entry, known: dict[str, Entry]) -> None:
    first = known.get(entry.public.key_id)
    if first is not None:
        raise Trouble(f"the same key as in line {first.line}", "a key is one identity's, once")


def _bad_lines(where: str, bad: dict[int, Exception]) -> BadLine:
    first, *others = bad
    trouble = BadLine(where, first, bad[first])
    if others:
        numbers = ", ".join(map(str, others[:_MAX_NUMBERS]))
        more = f" and {len(others) - _MAX_NUMBERS} more" if len(others) > _MAX_NUMBERS else ""
        trouble.hint = "; ".join(filter(None, [trouble.hint, f"also wrong: {numbers}{more}"]))
    return trouble


def _nothing(where: str, ssh_keys: int) -> Trouble:
    if not ssh_keys:
        return Trouble(f"{where} holds no key line", "expected lines like 'spa-key ...'")
    keys = "an SSH key" if ssh_keys == 1 else f"{ssh_keys} SSH keys"
    return Trouble(f"{where} holds {keys}, which alone cannot knock", _FOR_SSH)


def _name(path: Path) -> str:
    return "stdin" if path == _STDIN else str(path)


def _text(path: Path, limit: int) -> str:
    content = _read(path, limit + 1)
    if content.startswith(MAGIC.encode()):
        hint = "enroll the line that 'spa-keys show' prints"
        raise Trouble(f"{_name(path)} is a private key, which stays with its owner", hint)
    if len(content) > limit:
        raise Trouble(f"{_name(path)} is larger than {limit // 1024} KiB")
    return content.decode(errors="replace")


def _read(path: Path, size: int) -> bytes:
    if path == _STDIN:
        return sys.stdin.buffer.read(size)
    with path.open("rb") as file:
        return file.read(size)
