"""`spa-server policy diff`: what a new policy changes, in meaning."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from keys.console import ExitCode, Parsed, Trouble, note, print_json, say, say_lines
from keys.when import parse_moment
from spa_server import clock
from spa_server.commands.common import PATH, json_option, open_registry
from spa_server.commands.filters import MOMENT
from spa_server.commands.policy_history import policy_since
from spa_server.commands.policy_show import wrapped
from spa_server.config import load_config

if TYPE_CHECKING:
    from spa_server.policy.difference.diff import Subjects
    from spa_server.policy.model import Policy

_IN_USE: Final = Path("-")


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-server policy diff - new.toml            what new.toml would change here\n"
    "  spa-server policy diff old.toml new.toml --by-role\n"
    "  spa-server policy diff --since 7d            what has changed in a week, and by whom\n"
    "  spa-server policy diff - new.toml --json | jq '.changes[] | select(.gains)'\n"
    "\n\b\n"
    "A gate for pull requests, in which whoever gains something needs a second look:\n"
    "  git show origin/main:policy.toml > main.toml\n"
    "  spa-server policy diff main.toml policy.toml || ask-for-review\n"
    "\n"
    "Exit codes: 0 nobody gains anything, 1 somebody does, 2 usage, 4 a file that cannot be used."
)
@click.argument("files", nargs=-1, type=PATH, metavar="[OLD] NEW")
@click.option(
    "--since",
    "since_us",
    type=MOMENT,
    help="Compare with what was in force then, 7d or 2026-11-24T09:00, instead of OLD.",
)
@click.option("--by-role", "wants_roles", is_flag=True, help="Compare roles, not identities.")
@click.option(
    "--at",
    "begin_us",
    metavar="MOMENT",
    type=Parsed("moment", lambda text: parse_moment(text, clock.now_us())),
    help="Compare from this moment on.  [default: now]",
)
@json_option
@click.pass_obj
def diff(
    path: Path | None,
    files: tuple[Path, ...],
    since_us: int | None,
    wants_roles: bool,
    begin_us: int | None,
    as_json: bool,
) -> None:
    """Who gains, loses or changes which access from OLD to NEW.

    What counts is what is allowed, not how it is written: renamed services, rules, networks and
    schedules that are split, merged or put in other words, and another order make no difference. (A
    range of ports cut in two can no longer be asked for as one, which is told.) Exit code 1 when
    somebody gains anything: an access, a wider source, more time, a longer lifetime, fewer
    requirements, sessions that live on, many connections instead of one, a wider limit.

    OLD and NEW are files; - is the policy of this host's configuration. With --since only NEW is
    given, or nothing, which means -: OLD is the policy that was in force then, as the record has
    it, and who has put which in force since then is said.

    Identities are compared with all their roles, whether or not they have a key just now; where the
    registry cannot be read, roles are. "anybody" is whoever needs no knock, because of always_open.
    Compared are the five years from now, and later times at which a rule or schedule says that
    something changes. Lifetimes are compared as the rules give them, not as the end of their hours
    cuts them short.
    """
    from spa_server.policy.difference.diff import compare
    from spa_server.policy.difference.telling import Teller
    from spa_server.policy.difference.values import difference_values
    from spa_server.policy.load import load_policy

    if since_us is not None and len(files) <= 1:
        before, _ = policy_since(load_config(path), since_us)
        after = load_policy(_path(files[0] if files else _IN_USE, path))
    elif since_us is None and len(files) == 2:
        before, after = (load_policy(_path(one, path)) for one in files)
    else:
        raise click.UsageError("give OLD and NEW, or --since and at most NEW")
    begin_us = clock.now_us() if begin_us is None else begin_us
    subjects = _subjects(path, before, after, wants_roles=wants_roles)
    difference = compare(before, after, subjects, begin_us)
    _note_idle_roles(before, after, subjects, begin_us)
    if as_json:
        print_json(difference_values(before, after, difference))
    else:
        teller = Teller(before, after, difference)
        for sentence, more in teller.sentences():
            say_lines(wrapped(sentence, "    "))
            for line in more:
                say_lines(wrapped(f"  {line}", "    "))
        say(teller.summary())
    if difference.gaining:
        raise SystemExit(ExitCode.REFUSED)


def _path(named: Path, config: Path | None) -> Path:
    return load_config(config).policy if named == _IN_USE else named


def _subjects(path: Path | None, old: "Policy", new: "Policy", *, wants_roles: bool) -> "Subjects":
    from spa_server.policy.difference.diff import by_identity, by_role

    if not wants_roles:
        config = load_config(path)
        try:
            with open_registry(config) as registry:
                return by_identity(registry.identities())
        except Trouble as trouble:
            note(f"The registry cannot be read, so this is by role ({trouble.message}).")
    return by_role(old, new)


def _note_idle_roles(old: "Policy", new: "Policy", subjects: "Subjects", begin_us: int) -> None:
    """What a role allows that nobody has is nobody's gain now, but whoever is given it gains."""
    from spa_server.policy.difference.diff import by_role, compare

    held = frozenset().union(*subjects.values())
    idle = {role: roles for role, roles in by_role(old, new).items() if not roles <= held}
    if not idle:
        return
    difference = compare(old, new, idle, begin_us)
    names = sorted(each.name for each in difference.concerned if each in idle)
    if names:
        note(f"Not counted, since nobody has these roles: {', '.join(names)}; see --by-role.")
