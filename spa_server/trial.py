"""A gate on trial: put in force now, taken back unless somebody confirms it in time.

Whoever locks themselves out of a remote host cannot type any more, so the way back does not hang on
their session: a process of its own, in a session of its own, is started before the gate is touched
and waits for the time to be over. The mark `gate.pending` says what it goes back to.
"""

import json
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from keys.trouble import Trouble
from spa_server import control
from spa_server.config import Config, load_config
from spa_server.firewall.backstop import BackstopHeld
from spa_server.firewall.kernel import Gate
from spa_server.gatehouse import Gatehouse
from spa_server.netlink import NetlinkError

_ENDS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Trial:
    """What the mark holds: `before` is the ruleset to go back to, None where there was no gate."""

    token: str
    before: str | None
    was_wanted: bool


def begin(config: Config, config_path: Path | None, gate: Gate, within_s: float) -> None:
    """Sets the mark and starts the process that will take the gate back.

    A trial during another goes back to what was before that one.
    """
    token = secrets.token_hex(8)
    earlier = waiting(config)
    if earlier is not None:
        trial = replace(earlier, token=token)
    else:
        before = gate.ruleset() if gate.is_loaded() else None
        trial = Trial(token, before, config.gate_wanted.exists())
    config.gate_pending.parent.mkdir(parents=True, exist_ok=True)
    named = [] if config_path is None else [str(config_path)]
    # A hangup must not come between the mark and the process that takes it away.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        config.gate_pending.write_text(json.dumps(asdict(trial)), encoding="utf-8")
        subprocess.Popen(
            [sys.executable, "-m", "spa_server.trial", trial.token, str(within_s), *named],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def waiting(config: Config) -> Trial | None:
    """The trial that waits to be confirmed."""
    try:
        return Trial(**json.loads(config.gate_pending.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def take_back(config: Config, gate: Gate, token: str) -> bool:
    """Puts the old state back if this trial is still waiting; whether it was.

    A running daemon does it itself, before the mark is gone: it holds the policy of before.
    """
    trial = waiting(config)
    if trial is None or trial.token != token:
        return False
    if trial.before is None and not trial.was_wanted:
        Gatehouse(config, gate).remove(by_force=True)
        return True
    try:
        control.ask(config.control, {"do": "take-back"})
    except Trouble:
        if trial.before is not None:
            # A daemon that hangs would hold on to it, and behind an older gate it lets nobody in.
            with suppress(BackstopHeld, NetlinkError):
                gate.backstop.remove(by_force=True)
            gate.restore(trial.before)
    config.gate_pending.unlink(missing_ok=True)
    return True


def _forget_what_was_meant_for_the_operator() -> None:
    """A signal that came before the process was in a session of its own still waits for it."""
    for each in _ENDS:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
    for each in _ENDS:
        signal.signal(each, signal.SIG_DFL)


def main(token: str, within_s: str, config_path: str | None = None) -> None:
    """The process that waits: SIGHUP of the operator's terminal does not reach it."""
    _forget_what_was_meant_for_the_operator()
    time.sleep(float(within_s))
    config = load_config(Path(config_path) if config_path else None)
    take_back(config, Gate(), token)


if __name__ == "__main__":
    main(*sys.argv[1:])
