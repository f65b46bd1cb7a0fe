"""`spa-server audit verify`, `key` and `checkpoint`: has anybody changed the record?"""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keys import schema
from keys.console import ExitCode, Parsed, Trouble, print_json, say, say_lines
from keys.readfile import read_file
from keys.when import rfc3339
from spa_server import hostkey
from spa_server.commands.common import PATH, ask, explained, json_option
from spa_server.config import Config, load_config

if TYPE_CHECKING:
    from spa_server.audit.checkpoint import Checkpoint, Signer
    from spa_server.audit.verify import Claim, Report
    from spa_server.audit.walk import Finding


def _signer(text: str) -> "Signer":
    from spa_server.audit.checkpoint import Signer

    return Signer.parse(text)


@click.command()
@click.argument("file", required=False, type=PATH)
@click.option(
    "--key",
    "trusted",
    type=Parsed("record key", _signer),
    multiple=True,
    help="Trust this record key, as 'audit key' printed it, and no other. Can be repeated.",
)
@click.option("--kept", type=PATH, help="A file of checkpoints kept elsewhere, a line each.")
@json_option
@click.pass_obj
def verify(
    path: Path | None,
    file: Path | None,
    trusted: tuple["Signer", ...],
    kept: Path | None,
    as_json: bool,
) -> None:
    """Has anybody altered the record?

    Has a line been altered, removed, reordered, inserted or cut off?

    Reads the record of this host, or a copy in FILE. Each finding is a line; exit code 1 where
    there is one. Without --key the server's own key is trusted: whoever holds that can sign
    anything, so keep the key and some checkpoints elsewhere.

    \b
    Examples:
      spa-server audit verify
      spa-server audit verify --key 'xY3...' --kept checkpoints.txt
      spa-server audit verify --key 'xY3...' copy-of-spa.db
    """
    from spa_server.audit import tables
    from spa_server.audit import verify as verifying

    config = load_config(path)
    database = file or config.database
    signers = list(trusted) or [_own_signer(config)]
    claims, problems = _claims(config, signers, kept, is_copy=file is not None)
    with explained(database), closing(schema.connect(database, read_only=True)) as record:
        if tables.version_of(record) < tables.VERSION:
            what = f"the record in {database} is not chained yet"
            raise Trouble(what, "the daemon does so when it starts: systemctl start spa-server")
        with _progress(record, quiet=as_json) as progress:
            report = verifying.verify(record, signers, claims, progress)
    report.findings = problems + report.findings
    if as_json:
        print_json(_as_json(report))
    else:
        _tell(report)
    if report.findings:
        raise SystemExit(ExitCode.REFUSED)


def _own_signer(config: Config) -> "Signer":
    from spa_server.audit.checkpoint import record_key

    try:
        return record_key(hostkey.load(config).secret).signer
    except Trouble as trouble:
        raise Trouble(trouble.message, "run this as root, or name the key: --key") from None


def _claims(
    config: Config, signers: list["Signer"], kept: Path | None, *, is_copy: bool
) -> tuple[list["Claim"], list["Finding"]]:
    """What others say of the record: a file of checkpoints, the note, and the daemon that runs."""
    from spa_server.audit.upkeep import note_in, read_note
    from spa_server.audit.verify import Claim
    from spa_server.audit.walk import Finding

    said = [(f"the checkpoint in {kept}", each) for each in _read_kept(kept)]
    claims = []
    if not is_copy:
        noted = read_note(note_in(config.control.parent))
        said += [("the note of a checkpoint in the runtime directory", noted)] if noted else []
        with suppress(Trouble, KeyError, ValueError):
            head = ask(config, do="record")
            digest = bytes.fromhex(head["digest"])
            claims.append(Claim(head["event_id"], digest, "the daemon's own last line"))
    problems = []
    for who, made in said:
        if any(signer.verifies(made) for signer in signers):
            claims.append(Claim(made.event_id, made.digest, who, made.at_us))
        else:
            what = f"{who}, at line {made.event_id}, is not signed by a key that is trusted"
            problems.append(Finding("bad-signature", what, made.event_id, made.event_id))
    return claims, problems


def _read_kept(path: Path | None) -> Iterator["Checkpoint"]:
    from spa_server.audit.checkpoint import BadCheckpoint, Checkpoint

    if path is None:
        return
    try:
        lines = read_file(path).decode("ascii", errors="replace").splitlines()
    except OSError as error:
        raise Trouble(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield Checkpoint.parse(line)
            except BadCheckpoint as bad:
                raise Trouble(f"{path}, line {number}: {bad}") from None


@contextmanager
def _progress(record: Any, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda _lines: None
        return
    first, last = record.execute("select min(id), max(id) from event").fetchone()
    length = last - first + 1 if last else 0
    with click.progressbar(length=length, label="Reading", file=sys.stderr) as bar:
        yield bar.update


def _as_json(report: "Report") -> dict[str, Any]:
    base = report.base
    return {
        "sound": not report.findings,
        "lines": report.lines,
        "first": report.first_id,
        "last": report.last_id,
        "digest": report.digest.hex(),
        "checkpoints": report.checkpoints,
        "signed_to": report.signed_id,
        "signed_at": _moment(report.signed_at_us),
        "unsigned": report.unsigned,
        "removed_before": base.first_id if base else None,
        "removed_until": _moment(base.until_us) if base else None,
        "removed_at": _moment(base.at_us) if base else None,
        "findings": [
            {"name": f.name, "what": f.what, "first": f.first_id, "last": f.last_id}
            for f in report.findings
        ],
    }


def _moment(at_us: int | None) -> str | None:
    """Also for what a damaged file says, which no calendar may have."""
    try:
        return None if at_us is None else rfc3339(at_us)
    except OverflowError:
        return None


def _tell(report: "Report") -> None:
    for finding in report.findings:
        say(str(finding))
    if report.base is not None:
        until, at = _moment(report.base.until_us), _moment(report.base.at_us)
        say(f"lines before {report.base.first_id}, up to {until}, were removed as too old, at {at}")
    if report.findings:
        say(f"{len(report.findings)} findings in {report.lines} lines")
        return
    say(f"{report.lines} lines, {report.first_id} to {report.last_id}, are as they were written")
    if report.signed_at_us is not None:
        say(f"signed up to line {report.signed_id} at {_moment(report.signed_at_us)}")
    say(f"{report.unsigned} lines are not signed yet")


# The key, and checkpoints to be kept


@click.command(
    epilog="\b\nExample:\n  spa-server audit key > db1.record-key",
)
@click.pass_obj
def key(path: Path | None) -> None:
    """Prints the public key of the record, to be kept elsewhere.

    It follows from the server's key, and changes only with that.
    """
    say_lines(str(_own_signer(load_config(path))))


@click.command(
    epilog="\b\nExample:\n  spa-server audit checkpoint >> db1.checkpoints",
)
@click.pass_obj
def checkpoint(path: Path | None) -> None:
    """Prints the latest checkpoint, one line, to be kept elsewhere.

    Nothing before it can be changed without 'audit verify --kept FILE' finding it: not even by who
    holds the server's key.
    """
    from spa_server.audit.checkpoint import Checkpoint

    config = load_config(path)
    with (
        explained(config.database),
        closing(schema.connect(config.database, read_only=True)) as record,
    ):
        row = record.execute(
            "select event_id, at_us, digest, signer, signature from checkpoint"
            " order by event_id desc limit 1"
        ).fetchone()
    if row is None:
        raise Trouble(
            "there is no checkpoint yet",
            "the daemon makes one a minute after it has recorded something",
            exit_code=ExitCode.REFUSED,
        )
    say_lines(str(Checkpoint(*row)))
