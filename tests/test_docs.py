"""The documentation is held against the programs: every command, option, key, test and link."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import keys.cli
import spa_client.cli
import spa_server.cli
from spa_client import carriers

ROOT = Path(__file__).parent.parent
MAN = ROOT / "man"
PAGES = {
    "spa-client.1": spa_client.cli.main,
    "spa-keys.1": keys.cli.main,
    "spa-server.8": spa_server.cli.main,
}


def plain(page: str) -> str:
    """A man page's text without roff's escapes."""
    text = (MAN / page).read_text(encoding="utf-8").replace(r"\-", "-")
    return re.sub(r"\\f[A-Z]|\"", "", text)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command with its path, those of groups inside groups too."""
    for name, command in group.commands.items():
        yield " ".join([*path, name]), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_is_in_its_man_page(page: str) -> None:
    text = plain(page)
    missing = []
    for name, command in commands(PAGES[page]):
        if not isinstance(command, click.Group) and not re.search(rf"\b{name}\b", text):
            missing.append(name)
        for param in command.params:
            if isinstance(param, click.Option):
                options = [*param.opts, *param.secondary_opts]
                missing += [f"{name} {o}" for o in options if not re.search(rf"{o}\b", text)]
    assert missing == []


TIMES = {
    *("--expires", "--key-expires", "--since", "--until", "--at"),
    *("--lifetime", "--overlap", "--timeout", "--confirm-within", "--idle"),
}


def test_every_time_is_called_a_moment_or_a_duration() -> None:
    """And whatever is called so is known here, so that an option with a time cannot be new."""
    named, called = set(), set()
    for program in PAGES.values():
        for _, command in commands(program):
            ctx = click.Context(command)
            for param in command.params:
                shown = param.make_metavar(ctx) if isinstance(param, click.Option) else ""
                named |= {name for name in param.opts if name in TIMES}
                called |= {
                    (name, shown)
                    for name in param.opts
                    if name in TIMES or shown in ("MOMENT", "DURATION", "SECONDS")
                }
    assert named == TIMES == {name for name, _ in called}
    assert {shown for _, shown in called} == {"MOMENT", "DURATION"}


def help_of(program: click.Group, name: str) -> str:
    """What `program name --help` prints at a terminal of 80 columns."""
    done = CliRunner().invoke(program, [*name.split(), "--help"], terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("page", PAGES)
def test_the_help_of_every_command_has_an_example_that_it_understands(page: str) -> None:
    """The example names the command, and no option that is not there."""
    program = PAGES[page]
    for name, command in commands(program):
        _, _, examples = help_of(program, name).partition("Example")
        called = f"(?:{program.name}|PROGRAM)(?: --config \\S+)? {name}"
        lines = re.findall(rf"^ .*\b{called}\b(.*)", examples, re.MULTILINE)
        assert lines, f"{name} has no example"
        if isinstance(command, click.Group):
            continue
        there = {each for param in command.params for each in (*param.opts, *param.secondary_opts)}
        for line in lines:
            own = re.split(r" -- | [|;]| && ", line)[0]
            assert set(re.findall(r"(?<=\s)--[a-z][a-z-]*", own)) <= there, f"{name}:{line}"


@pytest.mark.parametrize("page", PAGES)
def test_no_summary_of_a_command_is_cut(page: str) -> None:
    program = PAGES[page]
    groups = [name for name, command in commands(program) if isinstance(command, click.Group)]
    for name in ("", *groups):
        _, _, listed = help_of(program, name).partition("\nCommands:\n")
        assert listed
        assert [line for line in listed.splitlines() if line.endswith("...")] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_man_page_names_no_option_that_is_not_there(page: str) -> None:
    there = {"--help", "--version"}
    for _, command in [("", PAGES[page]), *commands(PAGES[page])]:
        for param in command.params:
            there |= {*param.opts, *param.secondary_opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", plain(page)))
    assert named - there == set()


@pytest.mark.parametrize("page", sorted(path.name for path in MAN.glob("*.[1-8]")))
def test_man_has_nothing_to_complain_about(page: str) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    done = subprocess.run(
        ["man", "--warnings=all", "--encoding=UTF-8", "--local-file", MAN / page],
        capture_output=True,
        text=True,
        check=True,
        env={"MANWIDTH": "80", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    )
    assert done.stderr == ""
    assert len(done.stdout) > 1000


@pytest.mark.parametrize("page", ["spa-client.1", "spa-keys.1"])
def test_every_environment_variable_is_in_its_man_page(page: str) -> None:
    """Those of the options, and those that the code of the program names."""
    named = {
        param.envvar
        for _, command in commands(PAGES[page])
        for param in command.params
        if isinstance(param, click.Option) and param.envvar
    }
    package = "spa_client" if page == "spa-client.1" else "keys"
    for path in (ROOT / package).rglob("*.py"):
        named |= set(re.findall(r'"(SPA_[A-Z_]+|SSH_AUTH_SOCK)"', path.read_text(encoding="utf-8")))
    assert len(named) > 4
    text = plain(page).partition(".SH ENVIRONMENT")[2].partition(".SH FILES")[0]
    assert [name for name in sorted(named) if name not in text] == []


def test_the_man_page_knows_each_timeout() -> None:
    text = " ".join(plain("spa-client.1").split())
    told = text.partition("a number alone is seconds:")[2].partition("A knock that")[0]
    for name, command in commands(spa_client.cli.main):
        for param in command.params:
            if isinstance(param, click.Option) and "--timeout" in param.opts:
                before = told.partition(f" {name} ")[0]
                assert re.findall(r"\d+(?:\.\d+)?", before)[-1] == f"{param.default:g}", name


def test_the_protocol_says_how_long_a_client_waits() -> None:
    first, second, *others = carriers.waits(5.0)
    text = " ".join((ROOT / "docs" / "protocol.md").read_text(encoding="utf-8").split())
    said = f"wait {first:g} s and {second:g} s after the first two, then a second each time"
    assert said in text
    assert set(others[:3]) == {1.0}


def test_every_extra_that_is_named_is_one() -> None:
    """In what is to be typed, and in what the programs say is missing. Nothing is on PyPI under
    the project's own name: extras are those of the checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *MAN.iterdir()]
    texts += [path for package in ("keys", "spa_*") for path in ROOT.glob(f"{package}/**/*.py")]
    named = set()
    for path in texts:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"spaknock\[", text), path
        for extras in re.findall(r"(?:\(aq|')\.\[([a-z,]+)\]", text):
            named |= set(extras.split(","))
        named |= set(re.findall(r"extra `\[([a-z]+)\]`", text))
    assert named
    assert named <= set(project["optional-dependencies"])
    assert {"server", "report", "raw"} <= named


def test_every_key_of_the_server_configuration_is_documented() -> None:
    text = plain("spa-server.8")
    fields = spa_server.config._ServerFile.__struct_fields__
    assert [field for field in fields if f".BR {field} " not in text] == []


def test_the_threat_model_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|integration)/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 15
    for file, function in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{file}::{function}"


@pytest.mark.parametrize(
    "document",
    sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]),
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []


def test_every_attack_stands_in_the_threat_model_with_its_figures() -> None:
    names = {path.stem for path in (ROOT / "integration" / "attacks").glob("[!_]*.py")}
    told = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| .* \| .* \| .* \|$", told, re.MULTILINE)) == names
