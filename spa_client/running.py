"""Running another program in this one's place, or watching over it until it ends.

Where nothing is left to be done behind it, the program takes this process over: its signals, its
terminal and its exit code are its own. Else it is a child in the same process group. What a person
types at the terminal (Ctrl-C, Ctrl-Z) then reaches both, and only the child heeds it; a request to
end that comes to this process alone is passed on.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from keys.trouble import Trouble

ADDRESS_WORD: Final = "{address}"
ADDRESS_VARIABLE: Final = "SPA_ADDRESS"
_CANNOT_RUN: Final = 126
_NOT_FOUND: Final = 127
_KILLED: Final = 128
_TYPED: Final = ("SIGINT", "SIGQUIT", "SIGBREAK")
_PASSED_ON: Final = ("SIGTERM", "SIGHUP")


class CannotRun(Trouble):
    """The program is not there, or may not be run; the exit codes are those of a shell."""

    exit_code = _CANNOT_RUN


def find_program(name: str) -> str:
    """Its path, found as a shell finds it. Raises CannotRun."""
    found = shutil.which(name)
    if found is not None:
        return found
    if Path(name).name != name and Path(name).exists():
        raise CannotRun(f"{name} cannot be run", "it is no program, or you may not run it")
    hint = "it was not found, so nothing was knocked for"
    raise CannotRun(f"no program {name!r}", hint, exit_code=_NOT_FOUND)


def with_address(argv: Sequence[str], address: str) -> list[str]:
    """The arguments, with the address in place of `{address}`."""
    return [argument.replace(ADDRESS_WORD, address) for argument in argv]


def environment(address: str) -> dict[str, str]:
    """This process's environment, and the address."""
    return {**os.environ, ADDRESS_VARIABLE: address}


def become(program: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Runs it in this process's place; returns its exit code where the system cannot do that."""
    if sys.platform == "win32":
        return watch(program, argv, env)
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores this one, and what is ignored stays so in the program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execve(program, list(argv), env)  # noqa: S606 - what the person asked to run
    except OSError as error:
        raise _cannot_run(program, error) from None


def watch(program: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Runs it and waits for its end. Its exit code, or 128 and the signal that ended it."""
    with _Watch() as watching:
        try:
            child = subprocess.Popen(list(argv), executable=program, env=dict(env))
        except OSError as error:
            raise _cannot_run(program, error) from None
        watching.over(child)
        code = child.wait()
    return code if code >= 0 else _KILLED - code


def _cannot_run(program: str, error: OSError) -> CannotRun:
    return CannotRun(f"{program} cannot be run: {(error.strerror or str(error)).lower()}")


class _Watch:
    """Keeps signals from ending this process while its child runs."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._restore: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> "_Watch":
        for names, handler in ((_TYPED, self._leave), (_PASSED_ON, self._pass_on)):
            for name in names:
                number = getattr(signal, name, None)
                if number and signal.getsignal(number) is not signal.SIG_IGN:
                    self._restore.append((number, signal.signal(number, handler)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._restore:
            signal.signal(*self._restore.pop())

    def over(self, child: subprocess.Popen[bytes]) -> None:
        """From now on signals go to it; those that came before, too."""
        self._child = child
        for number in self._early:
            child.send_signal(number)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """The terminal has told the child as well."""

    def _pass_on(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's own
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)
