"""The record for those who may ask the daemon but not read its files: the group spa.

It runs in a thread, with a connection of its own that can only read, and for a few seconds at most:
whatever is asked, knocks are answered meanwhile. The files stay the daemon's alone
(docs/decisions/0032-record-for-the-group.md).
"""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import msgspec

from keys import schema
from spa_server.audit import asking, denials

AT_ONCE: Final = 1000
"""How many lines one answer has at most."""
_WITHIN_S: Final = 3.0
_STEPS: Final = 20_000  # of SQLite's machine between two looks at the clock: some 100 us


def answer(database: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """The latest lines that fit `wanted` (asking.Filter), `limit` at most, oldest first.

    `after` are the numbers of the last line and the last denial that are known already; `heads` are
    those of now. `is_known` is whether anybody has heard of the identity. Raises ValueError, and
    whatever reading the database raises.
    """
    wanted = _filter(request.get("wanted", {}))
    limit = msgspec.convert(request.get("limit", AT_ONCE), int)
    after, after_denial = msgspec.convert(request.get("after", (0, 0)), tuple[int, int])
    apart = denials.beside(database)
    with ExitStack() as stack:
        record = stack.enter_context(_reading(database))
        beside = stack.enter_context(_reading(apart)) if apart.exists() else None
        if wanted.identity is not None and not asking.is_known(record, wanted.identity):
            return {"is_known": False, "lines": [], "heads": [after, after_denial]}
        heads = [_last(record, "event"), 0 if beside is None else _last(beside, "denial")]
        lines = asking.ask(
            record,
            wanted,
            limit=max(1, min(limit, AT_ONCE)),
            after_id=after,
            denials=beside,
            after_denial=after_denial,
        )
    return {"is_known": True, "lines": lines, "heads": heads}


def _filter(given: object) -> asking.Filter:
    """Raises ValueError for what this version does not know, lest it be passed over."""
    known = {field.name for field in fields(asking.Filter)}
    if not isinstance(given, dict) or not given.keys() <= known:
        raise ValueError(f"a filter has any of: {', '.join(sorted(known))}")
    return msgspec.convert(given, asking.Filter)


def _last(connection: sqlite3.Connection, table: str) -> int:
    row = connection.execute(f"select max(id) from {table}").fetchone()  # noqa: S608 - our own name
    return row[0] or 0


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A database to be read for so long. Raises ValueError where it took longer."""
    until_s = time.monotonic() + _WITHIN_S
    with closing(schema.connect(path, read_only=True)) as connection:
        connection.set_progress_handler(lambda: time.monotonic() > until_s, _STEPS)
        try:
            yield connection
        except sqlite3.OperationalError as error:
            if time.monotonic() <= until_s:
                raise
            raise ValueError(f"it takes longer than {_WITHIN_S:g} s; ask with --since") from error
