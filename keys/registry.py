"""The registry: who may knock, with which keys, and in which roles.

1.  A key is one identity's. It may be enrolled for the same identity again, which renews it.
2.  A revoked key never comes back. What was revoked or has expired stays on record.
3.  An identity keeps its roles when its keys are revoked; `ungrant` takes them.
4.  An invite enrols one key. Whoever asks again with that key is answered again; whoever comes with
    another is refused.
5.  Revoking an identity revokes its invites as well, those for its first key included.
6.  Each change and its entry in `registry_change` are one transaction.

No method reads a clock: the caller passes the time, in microseconds since the Unix epoch.
"""

import contextlib
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from keys import schema
from keys.changes import Changes
from keys.enrolled import Action, Broken, Change, EnrolledInvite, EnrolledKey, State
from keys.identity import Identity
from keys.lookup import Head, Lookup
from keys.names import identity_name, role_name
from keys.schema import RegistryError, writing
from keys.text import clean_comment
from keys.trouble import ExitCode
from keys.when import local_minute
from spa_protocol.layout import KEY_SIZE
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
    "opened",
]

MIN_BEGINNING: Final = 6


class Refused(RegistryError):
    """A change that the rules forbid, or that has nothing to change."""

    exit_code = ExitCode.REFUSED


class JoinRefusal(StrEnum):
    """Why an invite enrolled no key."""

    UNKNOWN = "there is no such invite"
    REVOKED = "the invite was revoked"
    USED = "the invite was used already"
    EXPIRED = "the invite has expired"
    WEAK = "the new key is weak"
    KEY_KNOWN = "the key was enrolled before"


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A key that an invite enrolled. `again` says that it had done so before."""

    key_id: str
    identity: str
    roles: frozenset[str]
    again: bool = False


class Registry(Lookup):
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
        now_us: int,
        actor: str,
    ) -> EnrolledKey:
        """Enrols a key, or renews it: its expiry is set anew, roles are added and none is taken.

        Raises BadName, and Refused for a weak or revoked key, an invite's or another identity's.
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
            (enrolled,) = (k for k in self.keys_of(identity) if k.key_id == public.key_id)
        return enrolled

    def revoke(self, identity_or_key_id: str, *, now_us: int, actor: str) -> list[str]:
        """Revokes one key or invite, or all of an identity's; returns the ids of what it took.

        Raises Refused where `revocable` does.
        """
        with self._changing(now_us, actor) as changes:
            taken = self.revocable(identity_or_key_id)
            for head in taken:
                changes.revoke(head)
        return [head.key_id for head in taken]

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

    def create_invite(
        self,
        identity: str,
        *,
        roles: Iterable[str] = (),
        expires_at_us: int,
        now_us: int,
        actor: str,
    ) -> bytes:
        """A token of 32 bytes that enrols one key for this identity; its public half is kept.

        Raises BadName.
        """
        identity_name(identity)
        names = frozenset(role_name(role) for role in roles)
        token = secrets.token_bytes(KEY_SIZE)
        public = Identity.from_invite(token).public
        with self._changing(now_us, actor) as changes:
            changes.add_invite(identity, public, names, expires_at_us)
        return token

    def redeem(self, invite_key_id: str, public: PublicKey, now_us: int) -> Redeemed | JoinRefusal:
        """Enrols the key that came with an invite; of two that race, exactly one."""
        with self._changing(now_us, f"invite:{invite_key_id}") as changes:
            invite = self.invite(invite_key_id)
            if invite is None:
                return JoinRefusal.UNKNOWN
            again = invite.redeemed_by is not None
            refusal = (
                self._joined(invite, public, now_us)
                if again
                else self._may_join(invite, public, now_us)
            )
            if refusal is not None:
                return refusal
            if not again:
                changes.redeem(invite, public, self.roles_of(invite.identity))
            return Redeemed(public.key_id, invite.identity, self.roles_of(invite.identity), again)

    def seen(self, sightings: Iterable[tuple[str, int]]) -> None:
        """Notes when keys were last heard, many at once: pairs of key id and time."""
        with writing(self._db):
            self._connection.executemany(
                'UPDATE "key" SET last_seen_us = max(coalesce(last_seen_us, 0), ?2) '
                "WHERE key_id = ?1",
                sightings,
            )

    @contextlib.contextmanager
    def _changing(self, now_us: int, actor: str) -> Iterator[Changes]:
        with writing(self._db):
            yield Changes(self._db, now_us, actor)

    def _may_join(
        self, invite: EnrolledInvite, public: PublicKey, now_us: int
    ) -> JoinRefusal | None:
        if invite.revoked_at_us is not None:
            return JoinRefusal.REVOKED
        if not invite.is_active(now_us):
            return JoinRefusal.EXPIRED
        if self._head(public.key_id) is not None:
            return JoinRefusal.KEY_KNOWN
        try:
            public.check()
        except WeakKey:
            return JoinRefusal.WEAK
        return None

    def _joined(self, invite: EnrolledInvite, public: PublicKey, now_us: int) -> JoinRefusal | None:
        """Whether it is the same key that asks again, and is still good."""
        key = self.key(public.key_id) if invite.redeemed_by == public.key_id else None
        return None if key is not None and key.is_active(now_us) else JoinRefusal.USED

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
        return known

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
            raise Refused(f"there is no identity {identity!r}", "enroll a key for it first")


@contextlib.contextmanager
def opened(path: Path, *, read_only: bool = False, create: bool = False) -> Iterator[Registry]:
    """The registry in a file, for as long as the block lasts. Raises RegistryError.

    Only with `create` is the file made where it is missing.
    """
    with schema.explained(path):
        registry = Registry(path, read_only=read_only, create=create)
        try:
            yield registry
        finally:
            registry.close()
