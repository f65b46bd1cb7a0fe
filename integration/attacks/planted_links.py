"""Links in the directories of the daemon's user, for root to follow.

The attacker has taken the daemon over, and so is its user: they may write where the database, the
sockets and the notes are. They put links to files of root's under every name there that root's own
commands touch, and wait for an operator. They want root to write, make, or give away those files.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from integration.attacks import Figure
from integration.lab import Lab
from integration.site import Site

UID = 61_234
_SECRET = "root's alone\n"
_NAMES = (
    "gate.wanted", "gate.pending", "unrecorded", "unrecorded.new", ".unrecorded.new",
    "record.checkpoint", ".record.checkpoint.new", "alignment.json", "policy.good.toml",
    "denials.db", "denials.db-wal", "anomalies.db", "spa.db-wal", "spa.db-shm", "spa.db-journal",
)  # fmt: skip
_SETTINGS = """
database = "state/spa.db"
control = "run/control.sock"
"""
_COMMANDS = (
    ("gate", "apply"), ("gate", "apply", "--confirm-within", "1h"), ("gate", "confirm"),
    ("check",), ("audit",), ("audit", "verify"), ("audit", "export"),
    ("audit", "set-aside", "--keep-registry", "--yes"), ("audit", "set-aside", "--yes"),
    ("gate", "remove", "--yes"), ("init",),
)  # fmt: skip


def run(lab: Lab) -> Iterator[Figure]:
    """Every command once for links to what is there, and once for links to what is not."""
    server = lab.host("server")
    touched = made = 0
    with tempfile.TemporaryDirectory(prefix="spa-links") as directory:
        Path(directory).chmod(0o755)
        for target in (Path(directory) / "secret", Path(directory) / "not-there"):
            home = Path(directory) / f"host-{target.name}"
            site = Site(lab, server, directory=home)
            _move(site)
            for command in _COMMANDS:
                _plant(home, target)
                if target.name == "secret":
                    target.unlink(missing_ok=True)
                    target.write_text(_SECRET)
                    target.chmod(0o600)
                site.server(*command, check=False)
                site.keys("list", check=False)
                if target.name == "secret":
                    touched += target.read_text() != _SECRET or target.stat().st_uid != 0
                elif os.path.lexists(target):
                    made += 1
                    target.unlink()
        server.run(["nft", "flush", "ruleset"])
    yield Figure("commands that changed a file of root's", touched, touched == 0)
    yield Figure("commands that made a file for root", made, made == 0)


def _move(site: Site) -> None:
    """The daemon's places become another user's, apart from the configuration's."""
    for name in ("state", "run"):
        place = site.directory / name
        place.mkdir()
        os.chown(place, UID, UID)
    text = site.config.read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("database", "control"))]
    site.config.write_text("\n".join(kept).replace("# knock_port", _SETTINGS + "# knock_port", 1))
    site.server("init", check=False)


def _plant(home: Path, target: Path) -> None:
    for place in (home / "state", home / "run"):
        for name in _NAMES:
            if not os.path.lexists(place / name) or (place / name).is_symlink():
                (place / name).unlink(missing_ok=True)
                (place / name).symlink_to(target)
