"""Whether the record is as it was written: docs/record.md, "Verifying"."""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from keys.trouble import Trouble
from spa_server import control, hostkey
from spa_server.audit import tables
from spa_server.audit.checkpoint import Signer, record_key
from spa_server.audit.upkeep import note_in, read_note
from spa_server.audit.verify import Claim, Report, verify
from spa_server.config import Config
from spa_server.report.facts import State

_FINDINGS_TOLD: Final = 200


def state(config: Config, connection: sqlite3.Connection) -> State:
    """Reads the whole record, by the server's own key. Raises sqlite3.Error.

    Where that key cannot be read nothing is verified, and the state says so.
    """
    if tables.version_of(connection) < tables.VERSION:
        return State(problem="the record is not chained yet: the daemon does so when it starts")
    try:
        signer = record_key(hostkey.load(config).secret).signer
    except Trouble as trouble:
        return State(problem=f"the server's key cannot be used: {trouble.message}")
    return _state(verify(connection, [signer], _claims(config, signer)), signer)


def _claims(config: Config, signer: Signer) -> Iterator[Claim]:
    """What the note in the runtime directory and the daemon that runs know of the record."""
    noted = read_note(note_in(config.control.parent))
    if noted is not None and signer.verifies(noted):
        yield Claim(noted.event_id, noted.digest, "the note of a checkpoint", noted.at_us)
    with suppress(Trouble, KeyError, TypeError, ValueError):
        head = control.ask(config.control, {"do": "record"})
        digest = bytes.fromhex(head["digest"])
        yield Claim(int(head["event_id"]), digest, "the daemon's own last line")


def _state(found: Report, signer: Signer) -> State:
    base = found.base
    return State(
        findings=tuple(map(str, found.findings[:_FINDINGS_TOLD])),
        findings_left_out=max(0, len(found.findings) - _FINDINGS_TOLD),
        lines=found.lines,
        first_id=found.first_id,
        last_id=found.last_id,
        digest=found.digest.hex(),
        signer=str(signer),
        checkpoints=found.checkpoints,
        signed_id=found.signed_id,
        signed_at_us=found.signed_at_us,
        unsigned=found.unsigned,
        removed_before_id=base.first_id if base else None,
        removed_until_us=base.until_us if base else None,
    )
