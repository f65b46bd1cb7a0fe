"""`spa-server import-fwknop`: a policy and invites from the access.conf of fwknop."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keys.console import Parsed, Trouble, note, print_json, say, say_file
from keys.invite import USUAL_EXPIRY, WrittenHost
from keys.options import EXPIRY
from keys.when import rfc3339
from spa_server import clock
from spa_server.commands.common import PATH, explained, json_option
from spa_server.config import load_config

if TYPE_CHECKING:
    from spa_server.fwknop.translation import Translation


@dataclass(frozen=True, slots=True)
class _Terms:
    """How people are invited."""

    host: WrittenHost | None
    expires_at_us: int
    needs_approval: bool


@dataclass(frozen=True, slots=True)
class _Made:
    """An invite: its line, which is a secret, and its id."""

    line: str
    invite_id: str


@click.command(
    "import-fwknop",
    epilog="\b\nExamples:\n"
    "  spa-server import-fwknop /etc/fwknop/access.conf\n"
    "  spa-server import-fwknop access.conf --output new-policy.toml\n"
    "  spa-server policy diff - new-policy.toml\n"
    "  spa-server import-fwknop access.conf --output /etc/spa/policy.toml --force --invite\n"
    "\b\n"
    "Exit codes: 0 translated, 2 usage, 4 a file that cannot be used.",
)
@click.argument("file", type=PATH)
@click.option("--output", type=PATH, help="Write the policy to this file, not to stdout.")
@click.option("--force", is_flag=True, help="Even where that file exists.")
@click.option("--invite", "invites", is_flag=True, help="Make the invites, and print their lines.")
@click.option(
    "--expires",
    "expires_at_us",
    type=EXPIRY,
    default=USUAL_EXPIRY,
    show_default=True,
    help="With --invite: until when one may join: 24h, 7d, 2027-01-31.",
)
@click.option("--approve", is_flag=True, help="With --invite: keys wait for 'spa-keys approve'.")
@click.option(
    "--host",
    metavar="HOST[:PORT]",
    type=Parsed("host", WrittenHost.parse),
    help="With --invite: where clients knock.  [default: this host's name]",
)
@json_option
@click.pass_obj
def import_fwknop(
    path: Path | None,
    file: Path,
    output: Path | None,
    force: bool,
    invites: bool,
    expires_at_us: int,
    approve: bool,
    host: WrittenHost | None,
    as_json: bool,
) -> None:
    """Translates an access.conf of fwknop into policy and invites.

    FILE is of fwknop 2.6; the policy has tests.

    Each stanza becomes a role that allows no more than the stanza did on this host (DESTINATION
    apart, which no rule can say). What cannot be carried over is told on stderr, a line each, with
    what to do. A stanza without OPEN_PORTS let its client choose the port: its role allows nothing
    until you write what is needed.

    No key is read into anything: people join with keys of their own. Without --invite, the
    commands that invite them are printed; nothing on this host is changed but by --output and
    --invite. The whole way is in docs/from-fwknop.md.
    """
    from spa_server.fwknop import reading, translation, writing

    if force and output is None:
        raise click.UsageError("--force goes with --output")
    if invites and output is None and not as_json:
        raise click.UsageError("--invite goes with --output: invites are no part of a policy")
    if (approve or host is not None) and not invites:
        raise click.UsageError("--approve and --host go with --invite")
    now_us = clock.now_us()
    terms = _Terms(host, expires_at_us, approve)
    translated = translation.translate(reading.read(file), now_us)
    text = writing.policy_text(translated, file)
    _prove(text, output or Path("policy.toml"))
    if output is not None:
        _write(output, text, force=force)
    made = _invite(path, translated, now_us, terms) if invites else {}
    if as_json:
        print_json(_value(translated, text, output, made, terms))
        return
    for each in translated.notes:
        note(str(each))
    if output is None:
        say_file(text)
    _tell(translated, output, made)


def _prove(text: str, path: Path) -> None:
    """Raises FileProblem where the text is no sound policy, or fails its own tests."""
    from keys import tomlfile
    from spa_server.policy import testing
    from spa_server.policy.lines import lines_of
    from spa_server.policy.load import parse_policy

    policy = parse_policy(tomlfile.parse(text, path), path, lines_of(text))
    testing.check(policy, path, (), lambda _identity: frozenset())


def _write(path: Path, text: str, *, force: bool) -> None:
    """Whole or not at all; readable by the daemon, since there is no secret in it."""
    from keys import privatefile

    if not path.parent.is_dir():
        raise Trouble(f"{path.parent} is no directory", "make it, or run: spa-server init")
    try:
        with privatefile.new_file(path, overwrite=force) as unnamed:
            unnamed.write_text(text, encoding="utf-8")
            unnamed.chmod(0o644)
    except privatefile.NotRegular as other:
        raise Trouble(str(other), "choose another name") from None
    except FileExistsError:
        raise Trouble(f"{path} exists already", "choose another name, or give --force") from None


def _invite(
    path: Path | None, translated: "Translation", now_us: int, terms: _Terms
) -> dict[str, _Made]:
    """One invite for each person, all or none of them."""
    from keys import invite
    from keys.identity import Identity
    from keys.options import actor, tell_daemon
    from keys.registry import opened

    config = load_config(path)
    server = invite.server_here(path, terms.host)
    made: dict[str, _Made] = {}
    with explained(config.database), opened(config.database) as registry, registry.at_once():
        for person, roles in translated.people.items():
            token = registry.create_invite(
                person,
                roles=roles,
                expires_at_us=terms.expires_at_us,
                needs_approval=terms.needs_approval,
                now_us=now_us,
                actor=actor(),
            )
            invite_id = Identity.from_invite(token).public.key_id
            made[person] = _Made(server.invite(token).reveal(), invite_id)
    tell_daemon(config.control)
    return made


def _tell(translated: "Translation", output: Path | None, made: Mapping[str, _Made]) -> None:
    from spa_server.fwknop import writing

    if output is not None:
        note(f"{output}: {len(translated.roles)} roles; try it: spa-server policy test {output}")
    if made:
        note("Each line is a secret, good for one key: hand it over privately.")
        for person, invite in made.items():
            say(f"{person} {invite.line}")
        return
    tell = note if output is None else say
    note("Then, with the policy in force, invite them:")
    for person, roles in translated.people.items():
        tell(writing.invitation(person, roles))


def _value(
    translated: "Translation",
    text: str,
    output: Path | None,
    made: Mapping[str, _Made],
    terms: _Terms,
) -> dict[str, Any]:
    from spa_server.fwknop import writing

    people = []
    for person, roles in translated.people.items():
        one: dict[str, Any] = {"identity": person, "roles": list(roles)}
        if person in made:
            one |= {"line": made[person].line, "invite": made[person].invite_id}
            one |= {"expires_at": rfc3339(terms.expires_at_us)}
        else:
            one |= {"command": writing.invitation(person, roles)}
        people.append(one)
    return {
        "file": None if output is None else str(output),
        "policy": text,
        "people": people,
        "notes": [
            {
                "file": str(each.place.file),
                "line": each.place.line,
                "variable": each.variable,
                "what": each.what,
                "do": each.hint,
            }
            for each in translated.notes
        ],
    }
