"""A damaged file gets another name: it is never overwritten, and never deleted."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from keys.owner import as_owner

# In this order: a log alone is nothing, but beside another database it would be played into it.
SUFFIXES: Final = ("-wal", "-shm", "")


def move(path: Path, now_us: int, what: str = "damaged") -> Path:
    """Gives the database and its log the name of a damaged one, and returns it. Raises OSError.

    `what` is what the name says instead: that it was replaced.
    """
    with as_owner(path):
        aside = _free_name(path, now_us, what)
        for suffix in SUFFIXES:
            old, new = Path(f"{path}{suffix}"), Path(f"{aside}{suffix}")
            if old.is_dir():
                old.rename(new)
            elif os.path.lexists(old):
                os.link(old, new, follow_symlinks=False)
                old.unlink()
    return aside


def _free_name(path: Path, now_us: int, what: str) -> Path:
    at = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    named = f"{path.name}.{what}-{at:%Y%m%dT%H%M%SZ}"
    aside, number = path.with_name(named), 1
    while any(Path(f"{aside}{suffix}").exists() for suffix in SUFFIXES):
        number += 1
        aside = path.with_name(f"{named}-{number}")
    return aside
