"""How `spa-keys list` shows keys: a table of 80 columns, or JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from keys.enrolled import EnrolledKey
from keys.table import table
from keys.text import printable
from keys.when import local_minute, rfc3339

_COLUMNS: Final = ("IDENTITY", "KEY", "STATE", "EXPIRES", "LAST SEEN")
_INDENT: Final = "  "

Roles = Mapping[str, frozenset[str]]


def as_table(keys: Sequence[EnrolledKey], roles: Roles, now_us: int) -> str:
    """Two lines for each key, the second with what would not fit: comment, roles, enrolment."""
    rows = [_row(key, now_us) for key in keys]
    heading, *lines = table(_COLUMNS, rows).split("\n")
    more = (_second_line(key, roles.get(key.identity, frozenset())) for key in keys)
    pairs = (f"{first}\n{second}" for first, second in zip(lines, more, strict=True))
    return "\n".join([heading, *pairs])


def as_json(keys: Iterable[EnrolledKey], roles: Roles, now_us: int) -> list[dict[str, Any]]:
    """One object for each key; times in UTC by RFC 3339, null for never."""
    return [
        {
            "identity": key.identity,
            "roles": sorted(roles.get(key.identity, frozenset())),
            "key": key.key_id,
            "type": key.public.key_type.name.lower().replace("_", "-"),
            "comment": key.comment,
            "state": key.state(now_us),
            "enrolled_at": rfc3339(key.enrolled_at_us),
            "expires_at": _utc(key.expires_at_us),
            "revoked_at": _utc(key.revoked_at_us),
            "last_seen": _utc(key.last_seen_us),
        }
        for key in keys
    ]


def _row(key: EnrolledKey, now_us: int) -> tuple[str, ...]:
    expires, seen = _local(key.expires_at_us), _local(key.last_seen_us)
    return key.identity, key.key_id, key.state(now_us), expires, seen


def _second_line(key: EnrolledKey, roles: frozenset[str]) -> str:
    parts = [
        key.comment,
        f"roles {', '.join(sorted(roles))}" if roles else "no role",
        f"enrolled {local_minute(key.enrolled_at_us)}",
        f"revoked {local_minute(key.revoked_at_us)}" if key.revoked_at_us is not None else "",
    ]
    return _INDENT + printable("; ".join(part for part in parts if part))


def _local(at_us: int | None) -> str:
    return "never" if at_us is None else local_minute(at_us)


def _utc(at_us: int | None) -> str | None:
    return None if at_us is None else rfc3339(at_us)
