"""The texts of the policies that were in force, by their digests, which the record names.

The record is chained, and a text that is found is held against its digest: so that what is shown as
the policy of last month is that.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

MOST: Final = 100
"""How many are kept, the latest in force."""
_MOST_CHARACTERS: Final = 16 << 20

_FORGET: Final = """
    delete from policy_text where digest not in (
        select digest from (
            select digest, row_number() over latest as number,
                sum(length(text)) over latest as characters
            from policy_text
            window latest as (order by at_us desc, digest rows unbounded preceding)
        ) where number = 1 or (number <= :most and characters <= :characters)
    )
"""
_LOADED: Final = """
    select at_us, event, reason, detail from event
    where event in ('policy.loaded', 'daemon.started') order by id desc
"""


def digest_of(text: str) -> str:
    """BLAKE2b-256 of a policy's text, in hex."""
    return blake2b(text.encode(), digest_size=32).hexdigest()


def keep(connection: sqlite3.Connection, digest: str, text: str | None, now_us: int) -> None:
    """Notes that a policy comes into force; without its text, where it is known already.

    Within a transaction of the caller's. Raises sqlite3.Error.
    """
    if text is not None:
        connection.execute(
            "insert or ignore into policy_text (digest, at_us, text) values (?, ?, ?)",
            (digest, now_us, text),
        )
    connection.execute("update policy_text set at_us = ? where digest = ?", (now_us, digest))
    connection.execute(_FORGET, {"most": MOST, "characters": _MOST_CHARACTERS})


@dataclass(frozen=True, slots=True)
class InForce:
    """That a policy came into force: when (microseconds since 1970), by whom, and why."""

    at_us: int
    digest: str
    event: str
    actor: str | None
    uid: int | None
    reason: str | None


def history(connection: sqlite3.Connection) -> Iterator[InForce]:
    """Which policies the record says came into force, the latest first. Raises sqlite3.Error."""
    for at_us, event, reason, detail in connection.execute(_LOADED):
        values: dict[str, Any] = json.loads(detail)
        if digest := values.get("digest"):
            yield InForce(at_us, digest, event, values.get("actor"), values.get("uid"), reason)


def in_force_at(connection: sqlite3.Connection, at_us: int) -> InForce | None:
    """The policy that was in force at a moment; None where the record does not go back so far."""
    return next((one for one in history(connection) if one.at_us <= at_us), None)


def kept(connection: sqlite3.Connection) -> frozenset[str]:
    """The digests of which there is a text. Raises sqlite3.Error."""
    return frozenset(digest for (digest,) in connection.execute("select digest from policy_text"))


def text_of(connection: sqlite3.Connection, digest: str) -> str | None:
    """The text of that digest; None where none is kept, or what is kept has another digest."""
    row = connection.execute("select text from policy_text where digest = ?", (digest,)).fetchone()
    return row[0] if row is not None and digest_of(row[0]) == digest else None
