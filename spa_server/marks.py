"""The two marks about the gate, beside server.toml: only root may write there.

    gate.wanted     the operator has put the gate in force, and it stays so; it holds what that gate
                    observed, so that no restart closes what nobody has tried to close (ADR 33)
    gate.pending    a gate on trial, taken back unless it is confirmed; it does not outlive the boot

So the daemon's user, who only reads them, can neither forget that a gate is wanted nor have root
follow a link. 0.1.0 kept them in that user's directories: its `gate.wanted` still counts.

That a trial is of this boot, an empty file in /run says: a boot empties that, and only root may
write there. The kernel's boot id would not do: in a container a unit sees another than a shell.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from keys import privatefile
from keys.owner import as_owner
from keys.trouble import Trouble
from spa_protocol.access import Access
from spa_server.config import Config
from spa_server.firewall.plan import Observed

OF_THIS_BOOT: Final = Path("/run")

_EVERYTHING: Final = "everything"
_FOR_GROUP: Final = 0o640


@dataclass(frozen=True, slots=True)
class Trial:
    """What `gate.pending` holds: `before` is the ruleset to go back to, None where was no gate.

    `until_us` is when it ends, by the wall clock as it was when it began; for people alone.
    """

    token: str
    before: str | None
    was_wanted: bool
    until_us: int | None = None

    @property
    def witness(self) -> Path:
        """What is there for as long as the boot in which it began. Raises ValueError."""
        if not self.token.isalnum():
            raise ValueError(f"{self.token!r} is no trial's token")
        return OF_THIS_BOOT / f"spa-trial.{self.token}"


def is_wanted(config: Config) -> bool:
    """Whether the gate is to be in force for good."""
    return config.gate_wanted.exists() or os.path.lexists(config.gate_wanted_before)


def confirmed(config: Config) -> Observed | None:
    """What the gate observed that the operator last kept; None where nobody knows."""
    try:
        told = json.loads(config.gate_wanted.read_bytes())["observed"]
        if told == _EVERYTHING:
            return Observed(everything=True)
        return Observed(accesses=tuple(Access.parse(str(each)) for each in told))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def _told(observed: Observed) -> bytes:
    told = _EVERYTHING if observed.everything else [str(each) for each in observed.accesses]
    return json.dumps({"observed": told}).encode()


def kept_open(config: Config) -> Observed:
    """What no restart may close: what was confirmed, unless a gate is on trial just now."""
    return Observed() if is_on_trial(config) else confirmed(config) or Observed()


def waiting(config: Config) -> Trial | None:
    """The trial that waits to be confirmed, of those that can be read."""
    try:
        trial = Trial(**json.loads(config.gate_pending.read_bytes()))
        return trial if trial.witness.exists() else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def is_on_trial(config: Config) -> bool:
    """Whether a gate waits to be confirmed. One that cannot be read counts."""
    try:
        trial = Trial(**json.loads(config.gate_pending.read_bytes()))
        return trial.witness.exists()
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, AttributeError):
        return True


def begin(config: Config, trial: Trial) -> None:
    """Sets the mark of a trial, readable by the daemon's group. Raises Trouble."""
    content = json.dumps(asdict(trial)).encode()
    try:
        privatefile.write(trial.witness, b"", overwrite=True)
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


def want(config: Config, observed: Observed | None = None) -> None:
    """The gate is in force for good, and no trial waits. Raises OSError and Trouble.

    `observed` is what it observes; None where that is as it was confirmed before. At the boot,
    where all is as it should be, nothing is written, for the unit may not; also where 0.1.0's mark
    is all there is, which root moves.
    """
    if observed is not None and (not is_wanted(config) or confirmed(config) != observed):
        with privatefile.new_file(config.gate_wanted, overwrite=True) as unnamed:
            unnamed.write_bytes(_told(observed))
            _show_to_the_daemon(unnamed, config)
    elif not is_wanted(config) or (os.geteuid() == 0 and not config.gate_wanted.exists()):
        privatefile.write(config.gate_wanted, b"")
    end_trial(config)
    if config.gate_wanted.exists() and config.gate_wanted_before != config.gate_wanted:
        _take_away(config.gate_wanted_before)


def end_trial(config: Config) -> None:
    """Takes the mark of a trial away. Raises OSError and Trouble."""
    trial = waiting(config)
    _take_away(config.gate_pending)
    if trial is not None:
        _take_away(trial.witness)


def forget(config: Config) -> None:
    """No gate is wanted, for good or on trial. Raises OSError and Trouble."""
    end_trial(config)
    for mark in (config.gate_wanted, config.gate_wanted_before):
        _take_away(mark)


def _take_away(mark: Path) -> None:
    """Looks first: where nothing may be written, nothing is there to be taken away either."""
    if os.path.lexists(mark):
        with as_owner(mark):
            mark.unlink(missing_ok=True)
