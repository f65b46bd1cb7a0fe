"""What goes wrong at a command, in the words that its user reads."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a program of this project ends."""

    FINE = 0
    REFUSED = 1
    USAGE = 2
    NO_ANSWER = 3
    TROUBLE = 4
    INTERRUPTED = 130
    CLOSED_PIPE = 141


class Trouble(Exception):
    """An expected failure: `message` says what went wrong, `hint` what to do about it.

    Both are written for a person: lower case, one line, no full stop, no secret. A command that
    raises it ends with the line `prog: message; hint` and with `exit_code`, for which a subclass
    may set a default of its own.
    """

    exit_code: int = ExitCode.TROUBLE

    def __init__(self, message: str, hint: str = "", *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message
