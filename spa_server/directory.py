"""The directory: the registry as the daemon sees it, kept in memory and kept current.

Whose key is it, what roles has its owner, and which tags name it. The registry (keys/registry.py)
is the truth; this is read again, for the keys concerned, whenever another process changed the file.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from keys.enrolled import Change, EnrolledInvite, EnrolledKey
from keys.registry import Registry
from keys.serverkey import ServerKey
from spa_protocol.publickey import Sender, server_pair
from spa_protocol.seal import WeakKey
from spa_server.admission import Admission, Tag
from spa_server.ruling import Owner

Entry: TypeAlias = EnrolledKey | EnrolledInvite


@dataclass(slots=True)
class Refreshed:
    """What a look at the registry has changed: tags to admit and to withdraw, and the changes.

    `disowned` are all keys that were replaced, where no other stands for one of them any more.
    """

    admit: list[Tag] = field(default_factory=list)
    withdraw: list[bytes] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    disowned: frozenset[str] = frozenset()


class Directory:
    """Every active key and invite of a host."""

    def __init__(self, registry: Registry, server_key: ServerKey, admission: Admission) -> None:
        self._registry = registry
        self._server_key = server_key
        self._admission = admission
        self._keys: dict[str, EnrolledKey] = {}
        self._roles: dict[str, frozenset[str]] = {}
        self._expiries: list[tuple[int, str]] = []
        self._successions: dict[str, str] = {}
        self._last_change_id = 0

    def load(self, now_us: int) -> None:
        """Reads the whole registry. A key that cannot be used is passed over."""
        self._last_change_id = self._registry.last_change_id()
        self._roles = dict(self._registry.identities())
        self._successions = self._registry.successions()
        entries: list[Entry] = [*self._registry.keys(), *self._registry.invites()]
        for entry in entries:
            self._enter(entry, now_us)

    def refresh(self, now_us: int) -> Refreshed:
        """Reads what has changed since the last look, and lets go of what has expired."""
        refreshed = Refreshed(changes=self._registry.changes_since(self._last_change_id))
        for identity in {change.identity for change in refreshed.changes}:
            self._roles[identity] = self._registry.roles_of(identity)
        touched = dict.fromkeys(c.key_id for c in refreshed.changes if c.key_id is not None)
        for key_id in [*touched, *self._expired(now_us)]:
            self._look_again(key_id, now_us, refreshed)
        if refreshed.changes:
            before, self._successions = self._successions, self._registry.successions()
            if before.keys() - self._successions.keys():
                refreshed.disowned = frozenset(before)
            self._last_change_id = refreshed.changes[-1].change_id
        return refreshed

    def take_back(self, now_us: int) -> None:
        """Hears again who had expired by a clock that was wrong; their tags come with `load`."""
        entries: list[Entry] = [*self._registry.keys(), *self._registry.invites()]
        for entry in entries:
            if entry.key_id not in self._admission:
                self._enter(entry, now_us)

    def owner(self, key_id: str) -> Owner | None:
        """Whose key it is; None for an invite and for a key that is not active."""
        key = self._keys.get(key_id)
        if key is None:
            return None
        roles = self._roles.get(key.identity, frozenset())
        return Owner(key_id, key.identity, roles, key.expires_at_us, key.enrolled_at_us)

    def successors(self, key_id: str) -> Iterator[str]:
        """The keys that stand for one that was replaced, one after another (registry, rule 8)."""
        seen = {key_id}
        following = self._successions.get(key_id)
        while following is not None and following not in seen:
            seen.add(following)
            yield following
            following = self._successions.get(following)

    def next_expiry_us(self) -> int | None:
        """When the next key or invite expires."""
        return self._expiries[0][0] if self._expiries else None

    def _expired(self, now_us: int) -> Iterable[str]:
        while self._expiries and self._expiries[0][0] <= now_us:
            yield heapq.heappop(self._expiries)[1]

    def _look_again(self, key_id: str, now_us: int, refreshed: Refreshed) -> None:
        refreshed.withdraw += self._admission.remove(key_id)
        self._keys.pop(key_id, None)
        entry = self._registry.key(key_id) or self._registry.invite(key_id)
        if entry is not None:
            refreshed.admit += self._enter(entry, now_us)

    def _enter(self, entry: Entry, now_us: int) -> list[Tag]:
        if not entry.is_heard(now_us):
            return []
        is_invite = isinstance(entry, EnrolledInvite)
        try:
            pair = server_pair(self._server_key.secret, self._server_key.public, entry.public)
        except WeakKey:
            return []
        if isinstance(entry, EnrolledKey):
            self._keys[entry.key_id] = entry
        if entry.heard_until_us is not None:
            heapq.heappush(self._expiries, (entry.heard_until_us, entry.key_id))
        sender = Sender(entry.public, self._server_key.public, pair, is_invite)
        return self._admission.add(entry.key_id, sender)
