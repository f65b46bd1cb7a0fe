"""A gate on trial: put in force now, taken back unless somebody confirms it in time.

Whoever locks themselves out of a remote host cannot type any more, so the way back does not hang on
their session: a process of its own, in a session of its own, is started before the gate is touched
and waits for the time to be over. The mark `gate.pending` says what it goes back to.

It is root's, so nothing that others may write decides what it runs: Python in isolated mode (no
PYTHON* variable, no directory of a user's, not the current directory), an environment of our own,
and `/` as its directory.
"""

import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from keys.trouble import Trouble
from spa_server import clock, control, marks
from spa_server.config import CONFIG_PATH, Config, load_config
from spa_server.firewall import programs
from spa_server.firewall.backstop import BackstopHeld
from spa_server.firewall.gate import is_plain
from spa_server.firewall.kernel import Gate
from spa_server.gatehouse import Gatehouse
from spa_server.netlink import NetlinkError

_HANGS_AFTER_S: Final = 5.0  # whoever is locked out waits no longer for a daemon
_ENDS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def begin(config: Config, gate: Gate, within_s: float) -> None:
    """Sets the mark and starts the process that will take the gate back.

    A trial during another goes back to what was before that one. Raises Trouble.
    """
    token = secrets.token_hex(8)
    until_us = clock.now_us() + round(within_s * 1_000_000)
    earlier = marks.waiting(config)
    if earlier is not None:
        trial = replace(earlier, token=token, until_us=until_us)
    else:
        before = gate.ruleset() if gate.is_loaded() else None
        if before is not None and not is_plain(before):
            raise Trouble(
                "the gate that is in force has comments, which this program's has not:"
                " it could not be taken back to",
                "make it anew on a console: spa-server gate remove; spa-server gate apply",
            )
        trial = marks.Trial(token, before, marks.is_wanted(config), until_us)
    named = [] if config.path == CONFIG_PATH else [str(config.path)]
    # A hangup must not come between the mark and the process that takes it away.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        marks.begin(config, trial)
        subprocess.Popen(
            [sys.executable, "-I", "-m", "spa_server.trial", trial.token, str(within_s), *named],
            cwd="/",
            env=programs.ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def take_back(config: Config, gate: Gate, token: str) -> bool:
    """Puts the old state back if this trial is still waiting; whether it was.

    A running daemon does it itself, before the mark is gone: it holds the policy of before.
    """
    trial = marks.waiting(config)
    if trial is None or trial.token != token:
        return False
    if trial.before is None and not trial.was_wanted:
        Gatehouse(config, gate).remove(by_force=True)
        return True
    try:
        control.ask(config.control, {"do": "take-back"}, within_s=_HANGS_AFTER_S)
    except Trouble:
        if trial.before is not None:
            # A daemon that hangs would hold on to it, and behind an older gate it lets nobody in.
            with suppress(BackstopHeld, NetlinkError):
                gate.backstop.remove(by_force=True)
            gate.restore(trial.before)
    marks.end_trial(config)
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
