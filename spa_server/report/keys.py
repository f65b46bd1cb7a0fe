"""The keys of a registry by their age, and what was changed in it."""

from collections.abc import Iterable, Mapping
from typing import Final

from keys.enrolled import EnrolledKey, State
from keys.lookup import Lookup
from spa_server.report.buckets import DAY_US
from spa_server.report.facts import Key, Line, Listing

_GONE: Final = (State.REVOKED, State.EXPIRED)
_AGES: Final = (
    ("under 30 days", 30),
    ("30 to 89 days", 90),
    ("90 to 179 days", 180),
    ("180 to 364 days", 365),
    ("1 to 2 years", 730),
    ("over 2 years", None),
)


def keys(registry: Lookup, since_us: int, now_us: int) -> list[Key]:
    """The keys in force and waiting, the oldest first; then those that ended in the time.

    Raises sqlite3.Error.
    """
    known = registry.keys()
    enrolled = [key for key in known if not _ended_before(key, since_us, now_us)]
    found = [_key(key, now_us) for key in enrolled]
    return sorted(found, key=lambda key: (key.state in _GONE, key.enrolled_at_us, key.key_id))


def _ended_before(key: EnrolledKey, since_us: int, now_us: int) -> bool:
    end_us = key.revoked_at_us
    if key.state(now_us) is State.EXPIRED:
        end_us = key.expires_at_us
    return end_us is not None and end_us < since_us


def _key(key: EnrolledKey, now_us: int) -> Key:
    return Key(
        identity=key.identity,
        key_id=key.key_id,
        kind=key.public.key_type.name.lower().replace("_", "-"),
        state=key.state(now_us).value,
        enrolled_at_us=key.enrolled_at_us,
        age_days=max(0, now_us - key.enrolled_at_us) // DAY_US,
        expires_at_us=key.expires_at_us,
        last_seen_at_us=key.last_seen_us,
        comment=key.comment,
    )


def ages(found: Iterable[Key]) -> Mapping[str, int]:
    """How many of the keys in force are how old."""
    counts = dict.fromkeys((label for label, _ in _AGES), 0)
    for key in found:
        if key.state == State.ACTIVE:
            counts[_age(key.age_days)] += 1
    return counts


def _age(days: int) -> str:
    return next(label for label, below in _AGES if below is None or days < below)


def changes(registry: Lookup, since_us: int, most: int) -> Listing:
    """The latest changes to the registry, `most` of them. Raises sqlite3.Error."""
    found = [change for change in registry.changes_since(0) if change.at_us >= since_us]
    latest = [
        Line(
            at_us=change.at_us,
            event=change.action,
            who=change.actor,
            what=" ".join(filter(None, (change.identity, change.key_id, change.detail))),
        )
        for change in reversed(found[-most:])
    ]
    return Listing(tuple(latest), max(0, len(found) - most))
