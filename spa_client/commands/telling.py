"""What the commands say, and to which stream: results to stdout, all else to stderr."""

from collections.abc import Iterable

from keys.console import note, print_json, say
from spa_client.commands.options import PROGRAM
from spa_client.outcome import Line, Story


def tell(story: Story, *, as_json: bool) -> int:
    """Prints what came of it, and says how to end."""
    if as_json:
        print_json(story.as_json())
    else:
        tell_lines(story.lines())
    return story.exit_code


def tell_lines(lines: Iterable[Line]) -> None:
    """Results to stdout, the rest to stderr behind the program's name."""
    for line in lines:
        if line.good:
            say(line.text)
        else:
            note_line(line.text)


def note_all(story: Story) -> None:
    """For programs whose stdout belongs to somebody else."""
    for line in story.lines():
        note_line(line.text)


def note_line(text: str) -> None:
    """One line on stderr, behind the program's name."""
    note(f"{PROGRAM}: {text}")
