"""Invites and the keys that join with them: one half of the registry, whose rules are its own."""

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlite_utils import Database

from keys import capacity
from keys.changes import Changes, Refused
from keys.enrolled import (
    INVITE_COLUMNS,
    KEY_COLUMNS,
    EnrolledInvite,
    EnrolledKey,
    invite_of,
    key_of,
)
from keys.identity import Identity
from keys.lookup import Lookup, whole
from keys.names import identity_name, role_name
from keys.schema import writing
from spa_protocol.layout import KEY_SIZE
from spa_protocol.publickey import PublicKey
from spa_protocol.seal import WeakKey

MIN_BEGINNING: Final = 6

_WAITING: Final = (
    f'SELECT {KEY_COLUMNS} FROM "key" WHERE is_pending = 1 AND revoked_at_us IS NULL '  # noqa: S608
    "ORDER BY enrolled_at_us, key_id"
)
_REDEEMED: Final = f"SELECT {INVITE_COLUMNS} FROM invite WHERE redeemed_by = ?"  # noqa: S608


class JoinRefusal(StrEnum):
    """Why an invite enrolled no key."""

    UNKNOWN = "there is no such invite"
    REVOKED = "the invite was revoked"
    USED = "the invite was used already"
    EXPIRED = "the invite has expired"
    WEAK = "the new key is weak"
    KEY_KNOWN = "the key was enrolled before"
    REJECTED = "an operator rejected the key"
    FULL = "this host hears as many keys as it can"


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A key that an invite enrolled. `again` says that it had done so before.

    One that is `pending` may not knock yet: somebody has to approve it first.
    """

    key_id: str
    identity: str
    roles: frozenset[str]
    again: bool = False
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """A key that waits for approval, and the invite that it came with."""

    key: EnrolledKey
    invite: EnrolledInvite


class Joining(Lookup):
    """The half of a registry that is about invites. `_db` is the registry's database.

    `max_keys` is how many keys and invites may be heard; None where nobody said.
    """

    _db: Database
    max_keys: int | None = None

    def create_invite(
        self,
        identity: str,
        *,
        roles: Iterable[str] = (),
        expires_at_us: int,
        needs_approval: bool = False,
        now_us: int,
        actor: str,
    ) -> bytes:
        """A token of 32 bytes that enrols one key for this identity; its public half is kept.

        Raises BadName, and NoRoom where no more are heard.
        """
        identity_name(identity)
        names = frozenset(role_name(role) for role in roles)
        token = secrets.token_bytes(KEY_SIZE)
        public = Identity.from_invite(token).public
        with self._changing(now_us, actor) as changes, self.within_capacity(now_us):
            changes.add_invite(
                identity, public, names, expires_at_us, needs_approval=needs_approval
            )
        return token

    def redeem(self, invite_key_id: str, public: PublicKey, now_us: int) -> Redeemed | JoinRefusal:
        """Enrols the key that came with an invite; of two that race, exactly one."""
        with self._changing(now_us, f"invite:{invite_key_id}") as changes:
            invite = self.invite(invite_key_id)
            if invite is None:
                return JoinRefusal.UNKNOWN
            if invite.redeemed_by is not None:
                return self._redeemed_again(invite, public, now_us)
            refusal = self._may_join(invite, public, now_us)
            if refusal is not None:
                return refusal
            changes.redeem(invite, public, self.roles_of(invite.identity))
            roles = self.roles_of(invite.identity)
        return Redeemed(public.key_id, invite.identity, roles, pending=invite.needs_approval)

    def waiting(self) -> list[Waiting]:
        """Every key that waits for approval, in the order in which they came."""
        found = []
        for key in whole(self._rows(_WAITING), key_of):
            invites = whole(self._rows(_REDEEMED, key.key_id), invite_of)
            found += [Waiting(key, invite) for invite in invites]
        return found

    def approve(
        self,
        identity_or_key_id: str,
        *,
        expires_at_us: int | None = None,
        now_us: int,
        actor: str,
    ) -> Waiting:
        """Lets a key knock that waits, in the roles of its invite; returns it as it was.

        A key id may be given by its beginning, 6 letters at least. Raises Refused where no such
        key waits, or more than one.
        """
        with self._changing(now_us, actor) as changes:
            found = self._one_waiting(identity_or_key_id)
            changes.approve(found.key, expires_at_us)
            identity = found.key.identity
            changes.grant(identity, found.invite.roles, self.roles_of(identity))
        return found

    def reject(self, identity_or_key_id: str, *, now_us: int, actor: str) -> Waiting:
        """Revokes a key that waits, which is named as for `approve`. Raises Refused."""
        with self._changing(now_us, actor) as changes:
            found = self._one_waiting(identity_or_key_id)
            changes.reject(found.key)
        return found

    def _one_waiting(self, text: str) -> Waiting:
        beginning, waiting = text.lower(), self.waiting()
        found = [w for w in waiting if w.key.key_id == beginning]
        found = found or [w for w in waiting if w.key.identity == text]
        if not found and len(beginning) >= MIN_BEGINNING:
            found = [w for w in waiting if w.key.key_id.startswith(beginning)]
        if not found:
            raise Refused(f"nothing called {text!r} waits for approval", "see: spa-keys pending")
        if len(found) > 1:
            ids = ", ".join(w.key.key_id for w in found)
            raise Refused(f"{len(found)} keys of {text!r} wait for approval: {ids}", "name one")
        return found[0]

    def _may_join(
        self, invite: EnrolledInvite, public: PublicKey, now_us: int
    ) -> JoinRefusal | None:
        if invite.revoked_at_us is not None:
            return JoinRefusal.REVOKED
        if not invite.is_active(now_us):
            return JoinRefusal.EXPIRED
        if self._head(public.key_id) is not None:
            return JoinRefusal.KEY_KNOWN
        if self.max_keys is not None and self.heard(now_us) >= self.max_keys:
            return JoinRefusal.FULL
        try:
            public.check()
        except WeakKey:
            return JoinRefusal.WEAK
        return None

    def _redeemed_again(
        self, invite: EnrolledInvite, public: PublicKey, now_us: int
    ) -> Redeemed | JoinRefusal:
        """The same key asks again and is still good, or it is another's."""
        key = self.key(public.key_id) if invite.redeemed_by == public.key_id else None
        if key is None:
            return JoinRefusal.USED
        if key.is_pending and key.revoked_at_us is not None:
            return JoinRefusal.REJECTED
        if not (key.is_pending or key.is_active(now_us)):
            return JoinRefusal.USED
        roles = self.roles_of(invite.identity)
        return Redeemed(key.key_id, key.identity, roles, again=True, pending=key.is_pending)

    def within_capacity(self, now_us: int) -> contextlib.AbstractContextManager[None]:
        """For a change inside a transaction: raises NoRoom behind it where it does not fit."""
        return capacity.within(lambda: self.heard(now_us), self.max_keys)

    @contextlib.contextmanager
    def _changing(self, now_us: int, actor: str) -> Iterator[Changes]:
        with writing(self._db):
            yield Changes(self._db, now_us, actor)
