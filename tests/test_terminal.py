"""What a program writes to a terminal goes through keys/console.py, which makes it safe."""

import ast
from pathlib import Path
from typing import Final

import pytest

from keys import console

ROOT: Final = Path(__file__).parent.parent
EVIL: Final = "a\x1b[2J\x9b\x7f\u202e\r\nb"
# Each says why it may: what it writes is its own, or made printable there.
MAY_WRITE: Final = {
    "keys/console.py",
    "keys/completion.py",  # a script for a shell
    "keys/invite_commands.py",  # a picture, in colours
    "spa_client/commands/hold.py",  # a line that is written over
    "spa_server/audit/backlog.py",
    "spa_server/commands/top.py",  # rich; spa_server/topframe.py
    "spa_server/daemon.py",
    "spa_server/program.py",  # before anything could be imported
}


def _writes(file: Path) -> bool:
    calls = (
        node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
    )
    return any(ast.unparse(call) in {"click.echo", "click.secho", "print"} for call in calls)


def test_nothing_else_writes_to_one() -> None:
    files = (
        file for top in ("keys", "spa_client", "spa_server") for file in (ROOT / top).rglob("*.py")
    )
    found = {str(file.relative_to(ROOT)) for file in files if _writes(file)}
    assert found - MAY_WRITE == set()


@pytest.mark.parametrize(
    ("write", "shown"),
    [
        (console.say, r"a\x1b[2J\x9b\x7f\u202e\r\nb"),
        (console.say_lines, r"a\x1b[2J\x9b\x7f\u202e\r" "\nb"),
        (console.print_json, r'"a\u001b[2J\u009b\u007f\u202e\r\nb"'),
    ],
)
def test_each_way_is_safe(capsys: pytest.CaptureFixture[str], write, shown: str) -> None:
    write(EVIL)
    assert capsys.readouterr().out == shown + "\n"


def test_a_file_is_printed_as_it_is_but_not_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"\t# {EVIL}\n"
    console.say_file(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    console.say_file(text)
    assert capsys.readouterr().out == "        # a\\x1b[2J\\x9b\\x7f\\u202e\\r\nb\n"
