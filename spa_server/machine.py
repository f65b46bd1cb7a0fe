"""On which machine a server's key was made, so that a clone knows that it is one.

Beside the key stands `server.key.machine`: a digest of machine-id(5), keyed by the server's public
key, since the id itself should not be shown. `spa-server init` writes it with the key, and
`spa-server adopt-key` anew. A daemon whose machine has another id does not start. Where there is no
such file (a key of 0.1.0, or one that was copied alone) nothing is known, and `check` says so.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from keys import privatefile
from keys.invite import public_of
from keys.owner import as_owner
from keys.trouble import Trouble
from spa_server.config import Config

MACHINE_ID: Final = Path("/etc/machine-id")
_DIGEST_SIZE: Final = 16
_MAX_MARK: Final = 256
_NO_ID: Final = "none"
_ADOPT: Final = "spa-server adopt-key"


class Origin(Enum):
    """Where a key was made, as far as its mark tells."""

    HERE = "here"
    ELSEWHERE = "elsewhere"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Mark:
    """The file beside a server's key that says which machine the key belongs to."""

    key: Path

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.key.with_name(f"{self.key.name}.machine")

    def write(self) -> None:
        """Says that the key belongs to this machine. Raises Trouble."""
        privatefile.write(self.path, f"{self._here()}\n".encode(), overwrite=True)
        try:
            with as_owner(self.path):
                self.path.chmod(0o644)  # the daemon reads what root has written
        except OSError as error:
            raise Trouble(f"{self.path}: {error.strerror}") from None

    def origin(self) -> Origin:
        """Where the key was made. Raises Trouble for a mark that cannot be read: it is in doubt."""
        try:
            with self.path.open("rb") as file:
                written = file.read(_MAX_MARK).decode(errors="replace").strip()
        except FileNotFoundError:
            return Origin.UNKNOWN
        except OSError as error:
            hint = f"if the key belongs to this machine: {_ADOPT}"
            raise Trouble(f"{self.path} cannot be read: {error.strerror}", hint) from None
        return Origin.HERE if written == self._here() else Origin.ELSEWHERE

    def _here(self) -> str:
        machine = machine_id()
        if machine is None:
            return _NO_ID
        public = public_of(self.key)
        return hashlib.blake2b(
            machine.encode(), key=public, digest_size=_DIGEST_SIZE, person=b"spa1 machine"
        ).hexdigest()


def machine_id() -> str | None:
    """machine-id(5); None where the machine has none, as many a container, or has not got it yet.

    Raises nothing: what cannot be read is none.
    """
    with suppress(OSError, UnicodeDecodeError):
        text = MACHINE_ID.read_text(encoding="ascii").strip()
        if text and text != "uninitialized":
            return text
    return None


def must_be_here(config: Config) -> None:
    """Raises Trouble where the server's key came with another machine."""
    mark = Mark(config.key)
    if mark.origin() is Origin.ELSEWHERE:
        raise Trouble(
            f"{config.key} came with another machine: as long as both run, a knock for one may "
            "open the other",
            f"where this machine takes that one's place: {_ADOPT}; where it is a copy, give it a "
            f"key of its own: delete {config.key} and run spa-server init",
        )
