"""The chain of the record: each line bears a digest of itself and of everything before it.

    digest(n) = BLAKE2b-256(digest(n - 1) || canonical(n)), person = "spa1 record"

`canonical` is the line as JSON: UTF-8, no blanks, the keys in the order of `COLUMNS`, those without
a value left out, so that a column added later changes no digest of today. Text is escaped as in
RFC 8785 section 3.2.2.2. `detail` stands last and as it is kept: what comes before it can be read
in one way only, and so no value can pass for another's. The ids have no gaps; the chain begins at
id 1 behind 32 zero bytes, or where the signed `base` says (spa_server/audit/retention.py).

docs/record.md, "The chain", is the specification.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from spa_server.audit.record import Record

DIGEST_SIZE: Final = 32
GENESIS: Final = bytes(DIGEST_SIZE)
COLUMNS: Final = (
    "id",
    "at_us",
    "event",
    "identity",
    "key_id",
    "source",
    "target",
    "access",
    "reason",
    "rule",
    "grant_id",
    "detail",
)
Columns: TypeAlias = tuple[Any, ...]
"""The values of one line in the order of `COLUMNS`; `detail` is text."""


class Head(NamedTuple):
    """The latest line's id, 0 where there never was one, and its digest, 32 bytes."""

    event_id: int = 0
    digest: bytes = GENESIS


class _Line(msgspec.Struct, omit_defaults=True):
    """All but `detail`, in this order: it is the order of the keys."""

    id: int
    at_us: int
    event: str
    identity: str | None = None
    key_id: str | None = None
    source: str | None = None
    target: str | None = None
    access: str | None = None
    reason: str | None = None
    rule: str | None = None
    grant_id: int | None = None


_encode = msgspec.json.Encoder(order="sorted").encode
_encode_line = msgspec.json.Encoder().encode
_EMPTY: Final = hashlib.blake2b(digest_size=DIGEST_SIZE, person=b"spa1 record")


def canonical(columns: Columns) -> bytes:
    """The bytes that the digest covers. Raises UnicodeEncodeError for text that is none."""
    line = _encode_line(_Line(*columns[:-1]))
    detail: str = columns[-1]
    return b'%b,"detail":%b}' % (line[:-1], detail.encode())


def digest_of(previous: bytes, columns: Columns) -> bytes:
    """The digest, 32 bytes, of a line behind the line with the digest `previous`."""
    hashed = _EMPTY.copy()
    hashed.update(previous + canonical(columns))
    return hashed.digest()


def link(head: Head, records: Iterable[Record]) -> tuple[list[Columns], Head]:
    """The rows of new records behind a head, each with its digest last, and the head after them."""
    event_id, digest = head
    rows = []
    for record in records:
        event_id += 1
        columns = _columns(event_id, record)
        try:
            digest = digest_of(digest, columns)
        except UnicodeEncodeError:
            columns = tuple(encodable(value) for value in columns)
            digest = digest_of(digest, columns)
        rows.append((*columns, digest))
    return rows, Head(event_id, digest)


def _columns(event_id: int, record: Record) -> Columns:
    return (
        event_id,
        record.at_us,
        record.event.value,
        record.identity,
        record.key_id,
        record.source,
        record.target,
        record.access,
        record.reason,
        record.rule,
        record.grant_id,
        detail_text(record.detail),
    )


def detail_text(detail: dict[str, Any]) -> str:
    """The detail as it is kept: JSON, its keys sorted."""
    try:
        return _encode(detail).decode()
    except UnicodeEncodeError:
        return _encode(encodable(detail)).decode()


def encodable(value: Any) -> Any:
    """Text as UTF-8 can hold it, also inside lists and dicts.

    File names and messages of the system may hold bytes that are no UTF-8: they are escaped.
    """
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {encodable(key): encodable(each) for key, each in value.items()}
        case list() | tuple():
            return [encodable(each) for each in value]
    return value
