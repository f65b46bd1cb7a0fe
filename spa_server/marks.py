"""The two marks about the gate, beside server.toml: only root may write there.

    gate.wanted     the operator has put the gate in force, and it stays so
    gate.pending    a gate on trial, taken back unless it is confirmed; it does not outlive the boot

So the daemon's user, who only reads them, can neither forget that a gate is wanted nor have root
follow a link. 0.1.0 kept them in that user's directories: its `gate.wanted` still counts.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from keys import privatefile
from keys.owner import as_owner
from keys.trouble import Trouble
from spa_server import clock
from spa_server.config import Config

_FOR_GROUP: Final = 0o640


@dataclass(frozen=True, slots=True)
class Trial:
    """What `gate.pending` holds: `before` is the ruleset to go back to, None where was no gate."""

    token: str
    before: str | None
    was_wanted: bool
    boot_id: str


def is_wanted(config: Config) -> bool:
    """Whether the gate is to be in force for good."""
    return config.gate_wanted.exists() or os.path.lexists(config.gate_wanted_before)


def waiting(config: Config) -> Trial | None:
    """The trial that waits to be confirmed, of those that can be read."""
    try:
        trial = Trial(**json.loads(config.gate_pending.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return trial if trial.boot_id == clock.boot_id() else None


def is_on_trial(config: Config) -> bool:
    """Whether a gate waits to be confirmed. One that cannot be read counts."""
    try:
        trial = Trial(**json.loads(config.gate_pending.read_bytes()))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError):
        return True
    return trial.boot_id == clock.boot_id()


def begin(config: Config, trial: Trial) -> None:
    """Sets the mark of a trial, readable by the daemon's group. Raises Trouble."""
    content = json.dumps(asdict(trial)).encode()
    try:
        with privatefile.new_file(config.gate_pending, overwrite=True) as unnamed:
            unnamed.write_bytes(content)
            _show_to_the_daemon(unnamed, config)
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise Trouble(f"{config.gate_pending} cannot be written: {what}", "run as root") from None


def _show_to_the_daemon(unnamed: Path, config: Config) -> None:
    """Not to everybody: the ruleset names the people's addresses."""
    if os.geteuid() == 0 and config.database.parent.exists():
        os.chown(unnamed, -1, config.database.parent.stat().st_gid, follow_symlinks=False)
        unnamed.chmod(_FOR_GROUP)


def want(config: Config) -> None:
    """The gate is in force for good, and no trial waits. Raises OSError and Trouble.

    At the boot, where all is as it should be, nothing is written, for the unit may not; also where
    0.1.0's mark is all there is, which root moves.
    """
    if not is_wanted(config) or (os.geteuid() == 0 and not config.gate_wanted.exists()):
        privatefile.write(config.gate_wanted, b"")  # that it is there is all that anybody asks
    end_trial(config)
    if config.gate_wanted.exists() and config.gate_wanted_before != config.gate_wanted:
        _take_away(config.gate_wanted_before)


def end_trial(config: Config) -> None:
    """Takes the mark of a trial away. Raises OSError and Trouble."""
    _take_away(config.gate_pending)


def forget(config: Config) -> None:
    """No gate is wanted, for good or on trial. Raises OSError and Trouble."""
    for mark in (config.gate_wanted, config.gate_wanted_before, config.gate_pending):
        _take_away(mark)


def _take_away(mark: Path) -> None:
    """Looks first: where nothing may be written, nothing is there to be taken away either."""
    if os.path.lexists(mark):
        with as_owner(mark):
            mark.unlink(missing_ok=True)
