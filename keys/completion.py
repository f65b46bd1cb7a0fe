"""What the shell completes for the three programs: the script, and the values of arguments.

    @offering
    def hosts(ctx: click.Context) -> Iterator[str]: ...

    @click.argument("host", shell_complete=hosts)

Whatever goes wrong while the shell asks, it gets no offers instead of an error in the middle of
somebody's line. What is offered is plain: the shells take it as words of their own.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHELLS: Final = ("bash", "zsh", "fish")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@%+/:-]*")

Find: TypeAlias = Callable[[click.Context], Iterable[str]]
Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[str]]


def offering(find: Find) -> Complete:
    """Makes click's `shell_complete` of what finds all values there are; each is offered once."""

    @functools.wraps(find)
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's own
        try:
            found = list(dict.fromkeys(find(ctx)))
        except Exception:
            return []
        return [v for v in found if v.startswith(incomplete) and _PLAIN.fullmatch(v)]

    return complete


def items(values: Iterable[str]) -> list["CompletionItem[Any]"]:
    """As click's parameter types give them."""
    from click import shell_completion  # noqa: PLC0415 - every start of a program would pay for it

    return [shell_completion.CompletionItem(value) for value in values]


def script(program: click.Command, name: str, shell: str) -> str:
    """What the shell has to read so that it completes a program, which it calls by this name."""
    from click import shell_completion  # noqa: PLC0415 - every start of a program would pay for it

    completion = shell_completion.get_completion_class(shell)
    if completion is None:
        raise click.BadParameter(f"{shell!r} is none of {', '.join(SHELLS)}")
    variable = f"_{name.replace('-', '_')}_COMPLETE".upper()
    made = completion(program, {}, name, variable)
    return made.source_template % made.source_vars()


@click.command(
    name="completion",
    epilog="\b\nExamples, where PROGRAM is this program:\n"
    '  bash, in ~/.bashrc:  eval "$(PROGRAM completion bash)"\n'
    '  zsh, in ~/.zshrc:    eval "$(PROGRAM completion zsh)"     behind compinit\n'
    "  fish:                PROGRAM completion fish > ~/.config/fish/completions/PROGRAM.fish",
)
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Prints what makes a shell complete commands, options, names."""
    root = ctx.find_root()
    click.echo(script(root.command, root.info_name or "", shell), nl=False)
