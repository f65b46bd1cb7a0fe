"""What the three programs have in common at the terminal.

    @click.group("spa-keys", cls=Program)
    def main() -> None: ...

A `Program` turns everything that is expected to go wrong into one line, `prog: what; what to do`,
and an exit code (`ExitCode`). A command raises `Trouble`; where it ends neither well nor badly, it
returns an exit code. SPA_DEBUG=1 shows the traceback as well.
"""

import getpass
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keys import completion
from keys.table import table
from keys.text import printable
from keys.trouble import ExitCode, Trouble
from keys.when import BadTime
from spa_protocol.keytext import BadKeyText
from spa_protocol.layout import Malformed

__all__ = [
    "ExitCode",
    "Parsed",
    "Program",
    "Trouble",
    "asker",
    "note",
    "print_json",
    "printable",
    "say",
    "say_file",
    "say_lines",
    "table",
]

DEBUG_VARIABLE = "SPA_DEBUG"
_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic only since click 8.4


class _ClosedPipe(Exception):
    """Whoever read this program's output has had enough."""


class _Interrupted(Exception):
    """Ctrl-C anywhere, or Ctrl-D at a question."""


class Program(click.Group):
    """A click group whose errors are one line. Its name is the program's name.

    It has a command more than it is given: `completion` (keys/completion.py).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_command(completion.command)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the program and exits; with `standalone_mode=False`, as any click group does."""

        def run() -> Any:
            return super(Program, self).main(
                args,
                self.name or prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )

        return sys.exit(self._guard(run)) if standalone_mode else run()

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Reads the arguments, and prints the help that they ask for."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            raise _ClosedPipe from None

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command and flushes what it printed, while a closed pipe can still be told.

        Interrupts are caught here because click would print an empty line for them.
        """
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise _ClosedPipe from None
        except (KeyboardInterrupt, EOFError):
            raise _Interrupted from None
        return result

    def _guard(self, run: Callable[[], Any]) -> int:
        _open_what_is_closed()
        _escape_what_cannot_be_encoded()
        try:
            result = run()
        except _ClosedPipe:
            _drop_output()
            return ExitCode.CLOSED_PIPE
        except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:
            code = _report(self.name, _only_leaf(error))
            _flush_or_drop()
            return code
        return result if isinstance(result, int) else ExitCode.FINE


def _report(program: str | None, error: BaseException) -> int:
    if isinstance(error, (_Interrupted, KeyboardInterrupt, click.Abort)):
        return _stopped(program, error)
    if isinstance(error, _NO_ARGUMENTS):
        click.echo(str(error), err=True)
        return ExitCode.USAGE
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    trouble = diagnose(error)
    note(f"{program}: {trouble}")
    return trouble.exit_code


def _stopped(program: str | None, error: BaseException) -> int:
    """By a key at the terminal; or, for click's Abort, by a question answered with no."""
    if isinstance(error, click.Abort) and not isinstance(
        error.__context__, (KeyboardInterrupt, EOFError)
    ):
        note(f"{program}: stopped, as asked")
        return ExitCode.REFUSED
    is_question = isinstance(error, click.Abort)
    if is_question and isinstance(error.__context__, EOFError) and not sys.stdin.isatty():
        note(f"{program}: nobody is there to answer; run this at a terminal, or give --yes")
        return ExitCode.TROUBLE
    if sys.stderr.isatty():
        click.echo(err=True)  # ends the line on which the terminal shows ^C
    note(f"{program}: interrupted")
    return ExitCode.INTERRUPTED


def diagnose(error: BaseException) -> Trouble:
    """An exception in the words for its user, with the exit code that belongs to it."""
    match error:
        case Trouble():
            return error
        case click.UsageError():
            message = _as_ours(error.format_message())
            path = error.ctx.command_path if error.ctx else ""
            hint = f"try '{path} --help'" if path and not message.endswith("?") else ""
            return Trouble(message, hint, exit_code=ExitCode.USAGE)
        case click.ClickException():
            return Trouble(_as_ours(error.format_message()))
        case BadKeyText() | BadTime() | Malformed():
            return Trouble(str(error))
        case OSError():
            return of_os_error(error)
    kind = type(error).__name__
    hint = f"this is a bug; run it again with {DEBUG_VARIABLE}=1 and report what it says"
    return Trouble(f"unexpected {kind}: {error}".rstrip(": "), hint)


def of_os_error(error: OSError) -> Trouble:
    """What the system refused, and for which file."""
    what = (error.strerror or str(error) or type(error).__name__).lower()
    names = [name for name in (error.filename, error.filename2) if name is not None]
    where = [os.fsdecode(name) if isinstance(name, str | bytes) else str(name) for name in names]
    if not where:
        return Trouble(what)
    is_denied = isinstance(error, PermissionError)
    hint = "run this as its owner or as root" if is_denied else "name the file that you mean"
    return Trouble(f"{' -> '.join(where)}: {what}", hint)


def _only_leaf(error: BaseException) -> BaseException:
    """The first error of a group, as a TaskGroup raises it: one line can tell one error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _as_ours(message: str) -> str:
    """Click writes sentences; ours begin in lower case and end without a full stop."""
    sentences = re.split(r"[.] (?=[A-Z])", " ".join(message.split()).rstrip("."))
    return "; ".join(sentence[:1].lower() + sentence[1:] for sentence in sentences)


def _open_what_is_closed() -> None:
    """Whoever started this program may have closed a standard stream (`>&-`).

    Its number must not go to the next file or connection that is opened: what is meant for the
    stream would be written there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - for good
            setattr(sys, name, stream)


def _escape_what_cannot_be_encoded() -> None:
    """A terminal that knows no UTF-8 shows an escape, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush_or_drop() -> None:
    """What the disk or the reader does not take was told already."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    """Python flushes at its end; into a closed pipe that would be a message nobody asked for."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def say(line: str) -> None:
    """One line of a command's result, on stdout, safe for a terminal."""
    click.echo(printable(line))


def note(line: str) -> None:
    """One line for the person at the terminal, on stderr, so that stdout can be piped."""
    click.echo(printable(line), err=True)


def say_lines(block: str) -> None:
    """Lines that are laid out already, a table for one, on stdout, each safe for a terminal."""
    click.echo("\n".join(map(printable, block.split("\n"))))


def say_file(text: str) -> None:
    """The text of a file, on stdout: as it is, or with each line safe, where that is a terminal."""
    if sys.stdout.isatty():
        say_lines(text.expandtabs().removesuffix("\n"))
    else:
        click.echo(text, nl=False, color=True)  # else it takes colours out of the file


def print_json(value: object, *, indent: int | None = 2) -> None:
    """A command's result for other programs, on stdout; printable ASCII, so safe for a terminal.

    Without `indent` it is one line.
    """
    click.echo(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


def asker() -> Callable[[str], str] | None:
    """What asks a person for a secret without showing it, or None where no terminal is.

    It speaks to the terminal itself, so it works while stdin and stdout are pipes: under ssh's
    ProxyCommand, for one.
    """
    if sys.platform == "win32":
        return getpass.getpass if sys.stdin.isatty() else None
    try:
        with Path("/dev/tty").open("r+b", buffering=0):
            return getpass.getpass
    except OSError:
        return None


class Parsed(_ParamType):
    """A click parameter type made of a parser that raises ValueError (`Parsed("duration", ...)`).

    A value that does not parse is a usage error with the parser's own message. `complete` is what
    the shell offers for it (keys/completion.py).
    """

    def __init__(
        self,
        name: str,
        parse: Callable[[str], object],
        complete: completion.Complete | None = None,
    ) -> None:
        self.name = name
        self._parse = parse
        self._complete = complete

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A default that is no text is taken to be a value already."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list["CompletionItem[Any]"]:
        """What click asks for."""
        found = self._complete(ctx, param, incomplete) if self._complete else []
        return completion.items(found)
