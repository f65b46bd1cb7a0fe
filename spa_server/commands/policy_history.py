"""`spa-server policy history` and `policy print`: which policies were in force, and their texts."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from keys import schema
from keys.console import ExitCode, Parsed, Trouble, note, print_json, say_file, say_lines, table
from keys.when import local_minute, rfc3339
from spa_server.commands.common import PROGRAM, explained, json_option
from spa_server.commands.filters import MOMENT
from spa_server.commands.offers import DIGEST_SHOWN, policies
from spa_server.config import Config, load_config

if TYPE_CHECKING:
    from spa_server.policy.model import Policy

_SHORTEST: Final = 8


def _digest(text: str) -> str:
    """A digest, or how one begins."""
    digest = text.lower()
    if not _SHORTEST <= len(digest) <= 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"{text!r} is no digest, nor the first {_SHORTEST} characters of one")
    return digest


@click.command(
    epilog="\b\nExamples:\n"
    "  spa-server policy history\n"
    "  spa-server policy history --since 30d --json"
)
@click.option("--since", "since_us", type=MOMENT, help="From when on: 2h, 30d, 2026-11-24T09:00.")
@json_option
@click.pass_obj
def history(path: Path | None, since_us: int | None, as_json: bool) -> None:
    """Which policies came into force, and by whom.

    The latest first. The texts of the last 100 are kept, by their digests; 'policy print' shows
    one. A daemon that starts puts the policy in force that is in its file, and nobody is named.
    """
    from spa_server.audit import policytexts

    config = load_config(path)
    with _record(config) as record:
        kept = policytexts.kept(record)
        found = [
            (one, one.digest in kept)
            for one in policytexts.history(record)
            if since_us is None or one.at_us >= since_us
        ]
    if as_json:
        print_json(
            [
                {"at": rfc3339(one.at_us), **asdict(one), "is_kept": is_kept}
                for one, is_kept in found
            ]
        )
        return
    rows = [
        (
            local_minute(one.at_us),
            one.digest[:DIGEST_SHOWN] + ("" if is_kept else " (no text)"),
            one.event,
            one.actor or "",
            one.reason or "",
        )
        for one, is_kept in found
    ]
    if rows:
        say_lines(table(("WHEN", "DIGEST", "EVENT", "BY", "WHY"), rows))
    else:
        since = f" since {local_minute(since_us)}" if since_us is not None else ""
        note(f"No policy came into force{since}, as far as the record goes.")


@click.command(
    "print",
    epilog="\b\nExamples:\n"
    "  spa-server policy print 3f786850e387550f\n"
    "  spa-server policy print 3f786850e387550f > policy.before.toml",
)
@click.argument("digest", type=Parsed("digest", _digest, policies))
@click.pass_obj
def print_text(path: Path | None, digest: str) -> None:
    """Prints a policy that was in force, by its DIGEST.

    The first eight characters of it are enough, where no other begins so. Digests are in the
    record (policy.loaded, daemon.started) and in 'policy history'. The text is held against its
    digest before it is shown.
    """
    with _record(load_config(path)) as record:
        text = _text(record, digest)
    say_file(text)


def policy_since(config: Config, since_us: int) -> tuple["Policy", Path]:
    """The policy that was in force at a moment, and what to call it. Raises Trouble."""
    from spa_server.audit import policytexts
    from spa_server.rulebook import policy_of

    with _record(config) as record:
        found = policytexts.in_force_at(record, since_us)
        if found is None:
            raise Trouble(
                f"the record does not say which policy was in force at {local_minute(since_us)}",
                f"see: {PROGRAM} policy history",
                exit_code=ExitCode.REFUSED,
            )
        text = _text(record, found.digest)
        changes = [one for one in policytexts.history(record) if one.at_us > found.at_us]
    name = Path(f"policy-{found.digest[:DIGEST_SHOWN]}.toml")
    for one in reversed([found, *(one for one in changes if one.event == "policy.loaded")]):
        by = f" by {one.actor}" if one.actor else ""
        note(f"{local_minute(one.at_us)}  {one.digest[:DIGEST_SHOWN]} came into force{by}")
    return policy_of(text, name, was_in_force=True), name


def _text(record: sqlite3.Connection, digest: str) -> str:
    from spa_server.audit import policytexts

    whole = sorted(one for one in policytexts.kept(record) if one.startswith(digest))
    if len(whole) > 1:
        raise Trouble(f"{len(whole)} digests begin with {digest}", "give more of it")
    text = policytexts.text_of(record, whole[0]) if whole else None
    if text is None:
        altered = " that fits its digest: somebody has altered it" if whole else ""
        raise Trouble(
            f"no text of a policy {digest} is kept{altered}",
            f"see which are: {PROGRAM} policy history",
            exit_code=ExitCode.REFUSED,
        )
    return text


@contextmanager
def _record(config: Config) -> Iterator[sqlite3.Connection]:
    """The record, to be read. Raises Trouble."""
    with (
        explained(config.database),
        closing(schema.connect(config.database, read_only=True)) as record,
    ):
        there = record.execute("select 1 from sqlite_master where name = 'policy_text'").fetchone()
        if there is None:
            raise Trouble("no policy is kept yet", "the daemon keeps those that it puts in force")
        yield record
