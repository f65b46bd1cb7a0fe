"""The registry: who may knock, with which keys, and in which roles.

1.  A key is one identity's. It may be enrolled for the same identity again, which renews it.
2.  A revoked key never comes back. What was revoked or has expired stays on record.
3.  An identity keeps its roles when its keys are revoked; `ungrant` takes them.
4.  An invite enrols one key. Whoever asks again with that key is answered again; whoever comes with
    another is refused.
5.  Where an invite brings a key that another invite has enrolled for somebody else, neither has
    proven that it is theirs. The first keeps it, the second waits: an operator may approve it, and
    then the first loses it. A key that an operator enrolled is nobody else's to claim.
6.  Where an invite needs approval, its key waits: it may not knock, and its identity does not get
    the invite's roles, before an operator has approved it. One that is rejected stays on record.
7.  Revoking an identity revokes its invites as well, those for its first key included.
8.  A key may be enrolled to replace another of its identity. Both are good until the new one is
    used for the first time, which revokes the old one, or until the overlap ends. Enrolling the
    old one again keeps it. Once used, the new one stands for the old one, until an operator revokes
    the old one, which says that it is in other hands.
9.  Each change and its entry in `registry_change` are one transaction.

No method reads a clock: the caller passes the time, in microseconds since the Unix epoch.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from keys import schema
from keys.changes import Refused
from keys.enrolled import Action, Broken, Change, EnrolledInvite, EnrolledKey, State
from keys.joining import MIN_BEGINNING, Joining, JoinRefusal, Redeemed, Waiting
from keys.lookup import Head
from keys.names import identity_name, role_name
from keys.schema import RegistryError, writing
from keys.text import clean_comment
from keys.when import local_minute
from spa_protocol.publickey import PublicKey
from spa_protocol.seal import WeakKey

__all__ = [
    "Action",
    "Broken",
    "Change",
    "EnrolledInvite",
    "EnrolledKey",
    "Head",
    "JoinRefusal",
    "Redeemed",
    "Refused",
    "Registry",
    "RegistryError",
    "State",
    "Waiting",
    "opened",
]

_SELECT_REPLACEMENTS: Final = """
    SELECT old_key_id, new_key_id FROM replacement JOIN "key" ON key_id = old_key_id"""


class Registry(Joining):
    """The enrolled keys in a database file, or in a connection that the caller owns.

    Methods raise sqlite3.Error when the database fails; `opened` makes a RegistryError of it.
    Where the caller has a transaction open, a change becomes part of it.
    """

    def __init__(
        self,
        database: Path | str | sqlite3.Connection,
        *,
        read_only: bool = False,
        create: bool = True,
    ) -> None:
        """Raises RegistryError and sqlite3.Error."""
        is_ours = not isinstance(database, sqlite3.Connection)
        if not isinstance(database, sqlite3.Connection):
            database = schema.connect(Path(database), read_only=read_only, create=create)
        super().__init__(database)
        try:
            self._db = schema.prepare(database, read_only=read_only)
        except BaseException:
            if is_ours:
                database.close()
            raise

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def enroll(
        self,
        identity: str,
        public: PublicKey,
        *,
        comment: str = "",
        roles: Iterable[str] = (),
        expires_at_us: int | None = None,
        replaces: str | None = None,
        overlap_us: int = 0,
        now_us: int,
        actor: str,
    ) -> EnrolledKey:
        """Enrols a key, or renews it: its expiry is set anew, roles are added and none is taken.

        `replaces` names a key of the identity that is to end for it, at the latest `overlap_us`
        from now. Raises BadName, and Refused for a weak or revoked key, an invite's or another
        identity's, and where `replaces` names none.
        """
        identity_name(identity)
        names = [role_name(role) for role in roles]
        try:
            public.check()
        except WeakKey as weak:
            raise Refused(f"this key may not be enrolled: {weak}") from None
        comment = clean_comment(comment)
        with self._changing(now_us, actor) as changes:
            known = self._known(identity, public.key_id)
            if known is None:
                changes.add_key(identity, public, comment, expires_at_us)
            else:
                changes.renew(known, comment or known.comment, expires_at_us)
            changes.grant(identity, names, self.roles_of(identity))
            if replaces is not None:
                old = self._replaceable(identity, public.key_id, replaces)
                changes.replace(old, public.key_id, now_us + overlap_us)
            (enrolled,) = (k for k in self.keys_of(identity) if k.key_id == public.key_id)
        return enrolled

    def replacing(self) -> frozenset[str]:
        """The ids of the keys whose first use ends another: to be told to `replaced`."""
        return frozenset(self.replacements().values())

    def replacements(self) -> dict[str, str]:
        """Of each key that is being replaced, the id of the one that takes its place."""
        return self._pairs(f"{_SELECT_REPLACEMENTS} WHERE revoked_at_us IS NULL")

    def successions(self) -> dict[str, str]:
        """Of each key that was replaced, the id of the one that stands for it (rule 8)."""
        return self._pairs(f"{_SELECT_REPLACEMENTS} WHERE revoked_at_us IS NOT NULL")

    def replaced_by(self, new_key_id: str) -> list[EnrolledKey]:
        """The keys that end when this one is first used."""
        ids = sorted(old for old, new in self.replacements().items() if new == new_key_id)
        return [key for key in map(self.key, ids) if key is not None]

    def replaced(self, new_key_id: str, now_us: int) -> list[str]:
        """Revokes what this key replaces, now that it has been used; returns the ids."""
        with self._changing(now_us, f"key:{new_key_id}") as changes:
            ids = [key.key_id for key in self.replaced_by(new_key_id)]
            for head in filter(None, map(self._head, ids)):
                changes.succeed(head, new_key_id)
        return ids

    def revoke(self, identity_or_key_id: str, *, now_us: int, actor: str) -> list[Head]:
        """Revokes one key or invite, or all of an identity's; returns what it took.

        Raises Refused where `revocable` does.
        """
        with self._changing(now_us, actor) as changes:
            taken = self.revocable(identity_or_key_id)
            for head in taken:
                changes.revoke(head)
        return taken

    def revocable(self, identity_or_key_id: str) -> list[Head]:
        """What `revoke` would take.

        A key id may be given by its beginning, 6 letters at least; the name of an identity goes
        before that. Raises Refused where there is no such, more than one, or nothing left.
        """
        named = self._named(identity_or_key_id)
        left = [head for head in named if head.revoked_at_us is None and not head.is_redeemed]
        if left:
            return left
        if len(named) != 1:
            raise Refused(f"{identity_or_key_id} has no key left to revoke")
        (gone,) = named
        if gone.key_id in self.successions():
            return named
        if gone.revoked_at_us is None:
            raise Refused(f"invite {gone.key_id} was used already", "revoke the key that joined")
        raise Refused(
            f"{gone.kind} {gone.key_id} was revoked at {local_minute(gone.revoked_at_us)}"
        )

    def grant(
        self, identity: str, roles: Iterable[str], *, now_us: int, actor: str
    ) -> frozenset[str]:
        """Gives roles to an identity; returns all it then has. Raises BadName, Refused."""
        names = [role_name(role) for role in roles]
        with self._changing(now_us, actor) as changes:
            self._require_identity(identity)
            changes.grant(identity, names, self.roles_of(identity))
            return self.roles_of(identity)

    def ungrant(
        self, identity: str, roles: Iterable[str], *, now_us: int, actor: str
    ) -> frozenset[str]:
        """Takes roles from an identity; returns those it still has.

        Raises Refused where it is not known or lacks one of them; then it loses none.
        """
        names = sorted(set(roles))
        with self._changing(now_us, actor) as changes:
            self._require_identity(identity)
            lacking = sorted(set(names) - self.roles_of(identity))
            if lacking:
                raise Refused(f"{identity} does not have the role {', '.join(lacking)}")
            changes.ungrant(identity, names)
            return self.roles_of(identity)

    def seen(self, sightings: Iterable[tuple[str, int]]) -> None:
        """Notes when keys were last heard, many at once: pairs of key id and time."""
        with writing(self._db):
            self._connection.executemany(
                'UPDATE "key" SET last_seen_us = max(coalesce(last_seen_us, 0), :seen_us) '
                "WHERE key_id = :key_id",
                ({"key_id": key_id, "seen_us": seen_us} for key_id, seen_us in sightings),
            )

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        """One transaction around several changes: all of them happen, or none."""
        return writing(self._db)

    def _known(self, identity: str, key_id: str) -> EnrolledKey | None:
        """The key as this identity has it. Raises Refused where it may not be enrolled for it."""
        head = self._head(key_id)
        if head is None:
            return None
        if head.kind == "invite":
            raise Refused(f"key {key_id} is an invite's", "enroll a key of its own")
        if head.identity != identity:
            what = f"key {key_id} is enrolled for {head.identity} already"
            raise Refused(what, "a key is one identity's; generate another")
        if head.revoked_at_us is not None:
            what = f"key {key_id} was revoked at {local_minute(head.revoked_at_us)}"
            raise Refused(what, "a revoked key does not come back; generate another")
        known = self.key(key_id)
        if known is None:
            raise Refused(f"key {key_id} is enrolled but damaged", "generate another")
        if known.is_pending:
            hint = f"approve it: spa-keys approve {key_id}"
            raise Refused(f"key {key_id} joined by an invite and waits for approval", hint)
        return known

    def _replaceable(self, identity: str, new_key_id: str, text: str) -> EnrolledKey:
        """The key that `text` names, as for `revoke`: a live one of this identity. Raises Refused.

        The name of the identity means its only other key.
        """
        found = [h for h in self._named(text) if h.kind == "key" and h.key_id != new_key_id]
        if any(head.identity != identity for head in found):
            raise Refused(f"{found[0].key_id} is no key of {identity}'s", "nothing was changed")
        keys = filter(None, (self.key(head.key_id) for head in found))
        live = [key for key in keys if key.revoked_at_us is None and not key.is_pending]
        if len(live) != 1:
            how_many = f"{len(live)} other keys" if live else "no other key"
            raise Refused(f"{text!r} names {how_many} of {identity}", "name one by its id")
        return live[0]

    def _pairs(self, sql: str) -> dict[str, str]:
        return {str(old): str(new) for old, new in self._rows(sql)}

    def _named(self, text: str) -> list[Head]:
        """What the id of a key, the name of an identity or the beginning of an id stands for."""
        beginning = text.lower()
        exact = self._head(beginning)
        if exact is not None:
            return [exact]
        of_identity = self._heads_of(text)
        if of_identity or self._has_identity(text):
            return of_identity
        found = self._heads_beginning(beginning) if len(beginning) >= MIN_BEGINNING else []
        if not found:
            raise Refused(f"no identity or key is called {text!r}", "see: spa-keys list --all")
        if len(found) > 1:
            raise Refused(f"{len(found)} keys begin with {text!r}", "give more of the key id")
        return found

    def _require_identity(self, identity: str) -> None:
        if not self._has_identity(identity):
            raise Refused(
                f"there is no identity {identity!r}",
                f"see: spa-keys list; or: spa-keys invite {identity}",
            )


@contextlib.contextmanager
def opened(
    path: Path,
    *,
    read_only: bool = False,
    create: bool = False,
    max_keys: int | None = None,
) -> Iterator[Registry]:
    """The registry in a file, for as long as the block lasts. Raises RegistryError.

    Only with `create` is the file made where it is missing. `max_keys` is how many may be heard.
    """
    with schema.explained(path):
        registry = Registry(path, read_only=read_only, create=create)
        registry.max_keys = max_keys
        try:
            yield registry
        finally:
            registry.close()
