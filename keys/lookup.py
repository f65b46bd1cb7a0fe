"""Reading the registry: what is enrolled and what was changed.

A row that is not whole is passed over and reported by `broken`; the others load.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from keys.enrolled import (
    CHANGE_COLUMNS,
    INVITE_COLUMNS,
    KEY_COLUMNS,
    LATE_US,
    Broken,
    BrokenRow,
    Change,
    EnrolledInvite,
    EnrolledKey,
    change_of,
    invite_of,
    key_of,
)
from spa_protocol.seal import WeakKey

_SELECT_KEYS: Final = f'SELECT {KEY_COLUMNS} FROM "key"'  # noqa: S608
_SELECT_INVITES: Final = f"SELECT {INVITE_COLUMNS} FROM invite"  # noqa: S608
_SELECT_CHANGES: Final = f"SELECT {CHANGE_COLUMNS} FROM registry_change"  # noqa: S608
_SELECT_HEADS: Final = """
    SELECT * FROM (
        SELECT 'key' AS kind, key_id, identity, revoked_at_us, 0 AS is_redeemed FROM "key"
        UNION ALL
        SELECT 'invite', key_id, identity, revoked_at_us, redeemed_by IS NOT NULL FROM invite
    )"""
# As `is_heard` of an enrolled key and of an invite (enrolled.py).
_COUNT_HEARD: Final = """
    SELECT (SELECT count(*) FROM "key"
            WHERE revoked_at_us IS NULL AND coalesce(expires_at_us > ?, 1))
        + (SELECT count(*) FROM invite
            WHERE expires_at_us > ? AND coalesce(revoked_at_us > ?, 1))"""
_Row = Sequence[Any]
_T = TypeVar("_T", EnrolledKey, EnrolledInvite)


@dataclass(frozen=True, slots=True)
class Head:
    """What revoking needs to know of a key or an invite, be its row whole or not.

    So a key of a type that only a later version knows can be revoked by this one.
    """

    kind: str
    key_id: str
    identity: str
    revoked_at_us: int | None
    is_redeemed: bool


class Lookup:
    """The reading half of a registry. Methods raise sqlite3.Error when the database fails."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def keys(self) -> list[EnrolledKey]:
        """Every key, the revoked and the expired ones too."""
        sql = f"{_SELECT_KEYS} ORDER BY identity, enrolled_at_us, key_id"
        return whole(self._rows(sql), key_of)

    def keys_of(self, identity: str) -> list[EnrolledKey]:
        """The same of one identity."""
        sql = f"{_SELECT_KEYS} WHERE identity = ? ORDER BY enrolled_at_us, key_id"
        return whole(self._rows(sql, identity), key_of)

    def key(self, key_id: str) -> EnrolledKey | None:
        """The key of this id, if there is one and its row is whole."""
        rows = self._rows(f"{_SELECT_KEYS} WHERE key_id = ?", key_id)
        return next(iter(whole(rows, key_of)), None)

    def invites(self) -> list[EnrolledInvite]:
        """Every invite, in whatever state."""
        sql = f"{_SELECT_INVITES} ORDER BY identity, created_at_us, key_id"
        return whole(self._rows(sql), invite_of)

    def invite(self, key_id: str) -> EnrolledInvite | None:
        """The invite of this id, if there is one and its row is whole."""
        rows = self._rows(f"{_SELECT_INVITES} WHERE key_id = ?", key_id)
        return next(iter(whole(rows, invite_of)), None)

    def heard(self, now_us: int) -> int:
        """How many keys and invites are heard, or will be once they are approved."""
        late_us = now_us - LATE_US
        return self._number(_COUNT_HEARD, now_us, late_us, late_us)

    def identities(self) -> Mapping[str, frozenset[str]]:
        """Every identity by name, with its roles."""
        roles: dict[str, set[str]] = {}
        for name, role in self._rows(
            "SELECT name, role FROM identity LEFT JOIN identity_role ON identity = name "
            "ORDER BY name"
        ):
            roles.setdefault(name, set()).update([] if role is None else [role])
        return {name: frozenset(of_name) for name, of_name in roles.items()}

    def roles_of(self, identity: str) -> frozenset[str]:
        """The roles of an identity; none where it is not known."""
        rows = self._rows("SELECT role FROM identity_role WHERE identity = ?", identity)
        return frozenset(role for (role,) in rows)

    def broken(self) -> list[Broken]:
        """The rows that cannot be used, weak keys among them. Slow: 60 us for each key."""
        found = [
            *(_diagnosis("key", row, key_of) for row in self._rows(_SELECT_KEYS)),
            *(_diagnosis("invite", row, invite_of) for row in self._rows(_SELECT_INVITES)),
        ]
        return [broken for broken in found if broken is not None]

    def changes_since(self, change_id: int) -> list[Change]:
        """The changes after the one of this id, oldest first."""
        rows = self._rows(f"{_SELECT_CHANGES} WHERE id > ? ORDER BY id", change_id)
        return [change_of(row) for row in rows]

    def last_change_id(self) -> int:
        """The id of the latest change, 0 if there was none."""
        return self._number("SELECT coalesce(max(id), 0) FROM registry_change")

    def data_version(self) -> int:
        """A number that moves whenever another connection has changed the database file."""
        return self._number("PRAGMA data_version")

    def _heads_of(self, identity: str) -> list[Head]:
        return self._heads("identity = ?", identity)

    def _heads_beginning(self, beginning: str) -> list[Head]:
        return self._heads("substr(key_id, 1, ?) = ?", len(beginning), beginning)

    def _head(self, key_id: str) -> Head | None:
        return next(iter(self._heads("key_id = ?", key_id)), None)

    def _heads(self, where: str, *values: object) -> list[Head]:
        rows = self._rows(f"{_SELECT_HEADS} WHERE {where}", *values)
        return [Head(kind, key, name, at_us, bool(used)) for kind, key, name, at_us, used in rows]

    def _has_identity(self, name: str) -> bool:
        return any(self._rows("SELECT 1 FROM identity WHERE name = ?", name))

    def _number(self, sql: str, *values: object) -> int:
        ((number,),) = self._rows(sql, *values)
        return int(number)

    def _rows(self, sql: str, *values: object) -> Iterable[_Row]:
        return self._connection.execute(sql, values)


def whole(rows: Iterable[_Row], make: Callable[[_Row], _T]) -> list[_T]:
    """The values of those rows that make one; a broken row is passed over."""
    found = []
    for row in rows:
        with contextlib.suppress(BrokenRow):
            found.append(make(row))
    return found


def _diagnosis(
    table: str, row: _Row, make: Callable[[_Row], EnrolledKey | EnrolledInvite]
) -> Broken | None:
    try:
        make(row).public.check()
    except (BrokenRow, WeakKey) as error:
        return Broken(table, str(row[0]), str(error))
    return None
