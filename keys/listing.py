"""How `spa-keys list` shows keys: a table of 80 columns, or JSON."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from keys.enrolled import EnrolledKey
from keys.keyline import Entry
from keys.names import roles_in_words
from keys.table import table
from keys.text import printable
from keys.when import local_minute, rfc3339

_COLUMNS: Final = ("IDENTITY", "KEY", "STATE", "EXPIRES", "LAST SEEN")
_INDENT: Final = "  "

Roles = Mapping[str, frozenset[str]]
Replacements = Mapping[str, str]
"""Of each key that is being replaced, the id of the one that takes its place."""


def as_table(
    keys: Sequence[EnrolledKey], roles: Roles, replacements: Replacements, now_us: int
) -> str:
    """Two lines for each key, the second with what would not fit: comment, roles, enrolment.

    A key that is being replaced, or replaces another, has a third.
    """
    rows = [_row(key, now_us) for key in keys]
    heading, *lines = table(_COLUMNS, rows).split("\n")
    more = (
        "\n".join(
            [
                _second_line(key, roles.get(key.identity, frozenset())),
                *_replacing_lines(key, replacements, now_us),
            ]
        )
        for key in keys
    )
    pairs = (f"{first}\n{second}" for first, second in zip(lines, more, strict=True))
    return "\n".join([heading, *pairs])


def as_json(
    keys: Iterable[EnrolledKey], roles: Roles, replacements: Replacements, now_us: int
) -> list[dict[str, Any]]:
    """One object for each key; times in UTC by RFC 3339, null for never.

    `replaced_by` is the id of the key that ends it, null where it is not being replaced; `replaces`
    the ids of those that it ends.
    """
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
            "replaced_by": replacements.get(key.key_id),
            "replaces": _replaced_by(key.key_id, replacements),
        }
        for key in keys
    ]


def _row(key: EnrolledKey, now_us: int) -> tuple[str, ...]:
    expires, seen = _local(key.expires_at_us), _local(key.last_seen_us)
    return key.identity, key.key_id, key.state(now_us), expires, seen


def _second_line(key: EnrolledKey, roles: frozenset[str]) -> str:
    parts = [
        key.comment,
        roles_in_words(roles, "no role"),
        f"enrolled {local_minute(key.enrolled_at_us)}",
        f"revoked {local_minute(key.revoked_at_us)}" if key.revoked_at_us is not None else "",
    ]
    return _INDENT + printable("; ".join(part for part in parts if part))


def _replacing_lines(key: EnrolledKey, replacements: Replacements, now_us: int) -> Iterator[str]:
    """Which key ends for which, while both are good."""
    new = replacements.get(key.key_id)
    if new is not None and key.is_active(now_us):
        yield _INDENT + printable(f"being replaced by {new}: ends at its first use")
    old = _replaced_by(key.key_id, replacements)
    if old:
        yield _INDENT + printable(f"replaces {', '.join(old)} when it is first used")


def _replaced_by(new_key_id: str, replacements: Replacements) -> list[str]:
    return sorted(old for old, new in replacements.items() if new == new_key_id)


def enrolled_json(
    entries: Iterable[Entry],
    roles: Roles,
    ending: Iterable[EnrolledKey],
    expires_at_us: int | None,
) -> list[dict[str, Any]]:
    """One object for each key that was just enrolled; `ends` are those that it takes the place of,
    with the time at which they end at the latest."""
    ends = {key.key_id: _utc(key.expires_at_us) for key in ending}
    return [
        {
            "identity": entry.identity,
            "roles": sorted(roles[entry.identity]),
            "key": entry.public.key_id,
            "expires_at": _utc(expires_at_us),
            "ends": ends,
        }
        for entry in entries
    ]


def _local(at_us: int | None) -> str:
    return "never" if at_us is None else local_minute(at_us)


def _utc(at_us: int | None) -> str | None:
    return None if at_us is None else rfc3339(at_us)
