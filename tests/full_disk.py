"""On a small disk that somebody else fills up: run by tests/test_reserve.py in a mount of its own.

    python -m tests.full_disk DIRECTORY

Prints what happened as JSON. Whoever fills the disk tries again after each commit, and takes every
byte that is given back.
"""

import json
import sys
from pathlib import Path
from typing import Final

from keys import schema
from keys.registry import Registry
from spa_server.audit.backlog import Batch
from spa_server.audit.checkpoint import record_key
from spa_server.audit.denials import Denials
from spa_server.audit.ledger import Ledger, LedgerError
from spa_server.audit.record import Event, Record
from spa_server.audit.reserve import Reserve
from spa_server.audit.upkeep import RETRY_US, Upkeep
from spa_server.audit.verify import verify

NOW_US: Final = 1_795_500_000_000_000
KEY: Final = record_key(bytes(32))


class Greedy:
    """Takes all room that there is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("ab", buffering=0)

    def take(self) -> None:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    self.file.write(bytes(size))
            except OSError:
                continue

    def let_go(self) -> None:
        self.file.truncate(0)


def main(directory: Path) -> dict[str, object]:
    """Fills the disk with, then without a reserve for the ledger; what became of it."""
    connection = schema.connect(directory / "spa.db")
    registry = Registry(connection)
    denials = Denials(directory / "denials.db")
    unrecorded = directory.parent / "unrecorded"
    ledger = Ledger(connection, registry.seen, unrecorded=unrecorded, boot_id="b", denials=denials)
    reserve = Reserve(connection, directory / "spa.db")
    upkeep = Upkeep(ledger, KEY, denials=denials, reserve=reserve)
    upkeep.start(NOW_US)
    told: dict[str, object] = {"reserve": reserve.free_bytes}
    greedy = Greedy(directory / "greedy")
    greedy.take()
    ledger.note([Record(Event.CONNECTION_DENIED, NOW_US, source="10.9.9.9")], NOW_US)
    written, now_us = 0, NOW_US
    try:
        while written < 200_000:
            now_us += RETRY_US // 10
            records = [
                Record(
                    Event.CONNECTION_PERMITTED,
                    now_us,
                    identity="alice",
                    key_id="abcdefghijklmnop",
                    source="10.20.0.9",
                    target="10.20.0.1",
                    access="tcp/22",
                    rule="roles.admin.allow[0]",
                    grant_id=written + n,
                    detail={"source_port": 40000},
                )
                for n in range(40)
            ]
            ledger.commit(Batch(records=records), now_us)
            written += len(records)
            greedy.take()
            upkeep.tend(now_us)
    except LedgerError as error:
        told["error"] = str(error)
    told["written"] = written
    told["paused"] = denials.is_paused
    greedy.let_go()
    for _ in range(500):
        now_us += RETRY_US
        ledger.note([], now_us)
        upkeep.tend(now_us)
    told["behind"] = ledger.is_behind
    told["reserve_again"] = reserve.free_bytes
    told["paused_again"] = denials.is_paused
    told["disk"] = connection.execute(
        "select event, detail from event where event like 'disk.%' order by id"
    ).fetchall()
    permits = connection.execute(
        "select count(*) from event where event = 'connection.permitted'"
    ).fetchone()[0]
    told["permits"] = permits
    told["findings"] = [str(each) for each in verify(connection, [KEY.signer]).findings]
    upkeep.close(now_us)
    with_denials = schema.connect(directory / "denials.db", read_only=True)
    told["denials"] = with_denials.execute("select * from total").fetchall()
    with_denials.close()
    connection.close()
    return told


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
