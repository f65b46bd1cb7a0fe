"""Invites and the keys that join with them: one half of the registry, whose rules are its own."""

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from sqlite_utils import Database

from keys import capacity
from keys.changes import Changes, Refused, joined_by
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
_CLAIMS: Final = (
    f"SELECT {INVITE_COLUMNS} FROM invite WHERE revoked_at_us IS NULL AND EXISTS ("  # noqa: S608
    'SELECT 1 FROM "key" WHERE "key".key_id = invite.redeemed_by '
    'AND "key".identity <> invite.identity AND "key".revoked_at_us IS NULL) '
    "ORDER BY redeemed_at_us, key_id"
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

    One that is `pending` may not knock yet: somebody has to approve it first. `claimed_by` is the
    identity that another invite had enrolled the key for before.
    """

    key_id: str
    identity: str
    roles: frozenset[str]
    again: bool = False
    pending: bool = False
    claimed_by: str = ""


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
            claimed_by = self._claimed_by(invite, public.key_id)
            if claimed_by:
                changes.claim(invite, public.key_id)
                return Redeemed(
                    public.key_id, invite.identity, frozenset(), pending=True, claimed_by=claimed_by
                )
            changes.redeem(invite, public, self.roles_of(invite.identity))
            roles = self.roles_of(invite.identity)
        return Redeemed(public.key_id, invite.identity, roles, pending=invite.needs_approval)

    def waiting(self) -> list[Waiting]:
        """Every key that waits for approval, in the order in which they came; then every claim to
        a key that joined for somebody else, as the key would be."""
        found = []
        for key in whole(self._rows(_WAITING), key_of):
            invites = whole(self._rows(_REDEEMED, key.key_id), invite_of)
            found += [Waiting(key, each) for each in invites if each.identity == key.identity]
        for invite in whole(self._rows(_CLAIMS), invite_of):
            claimed = self.key(invite.redeemed_by or "")
            if claimed is not None:
                found.append(Waiting(_as_claimed(claimed, invite), invite))
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
            identity = found.key.identity
            claims = whole(self._rows(_REDEEMED, found.key.key_id), invite_of)
            others = [each for each in claims if each.key_id != found.invite.key_id]
            for other in others:
                changes.give_up(other, identity)
            changes.approve(found.key, expires_at_us)
            changes.grant(identity, found.invite.roles, self.roles_of(identity))
        return found

    def reject(self, identity_or_key_id: str, *, now_us: int, actor: str) -> Waiting:
        """Revokes a key that waits, which is named as for `approve`. Raises Refused."""
        with self._changing(now_us, actor) as changes:
            found = self._one_waiting(identity_or_key_id)
            if self._is_claim(found.invite):
                changes.give_up(found.invite, found.key.identity)
            else:
                self._must_be_the_only(found)
                changes.reject(found.key)
        return found

    def _must_be_the_only(self, found: Waiting) -> None:
        """A rejected key never comes back, which may not befall another whose it is."""
        others = [w.key.identity for w in self.waiting() if w.key.key_id == found.key.key_id]
        others.remove(found.key.identity)
        if others:
            what = f"key {found.key.key_id} is claimed by {', '.join(others)} too"
            raise Refused(what, f"approve it for whose it is: spa-keys approve {others[0]}")

    def _one_waiting(self, text: str) -> Waiting:
        beginning, waiting = text.lower(), self.waiting()
        found = [w for w in waiting if beginning in {w.key.key_id, w.invite.key_id}]
        found = found or [w for w in waiting if w.key.identity == text]
        if not found and len(beginning) >= MIN_BEGINNING:
            found = [w for w in waiting if w.key.key_id.startswith(beginning)]
        if not found:
            raise Refused(f"nothing called {text!r} waits for approval", "see: spa-keys pending")
        if len(found) > 1:
            ids = ", ".join(w.key.key_id for w in found)
            if len({w.key.key_id for w in found}) == 1:
                people = ", ".join(w.key.identity for w in found)
                raise Refused(f"key {ids[:16]} is claimed by {people}", "name the person")
            raise Refused(f"{len(found)} keys of {text!r} wait for approval: {ids}", "name one")
        return found[0]

    def _may_join(
        self, invite: EnrolledInvite, public: PublicKey, now_us: int
    ) -> JoinRefusal | None:
        if invite.revoked_at_us is not None:
            return JoinRefusal.REVOKED
        if not invite.is_active(now_us):
            return JoinRefusal.EXPIRED
        is_known = self._head(public.key_id) is not None
        if is_known and not self._claimed_by(invite, public.key_id):
            return JoinRefusal.KEY_KNOWN
        if not is_known and self.max_keys is not None and self.heard(now_us) >= self.max_keys:
            return JoinRefusal.FULL
        try:
            public.check()
        except WeakKey:
            return JoinRefusal.WEAK
        return None

    def _claimed_by(self, invite: EnrolledInvite, key_id: str) -> str:
        """Whose the key is by another's join: its new key signs nothing, so that proves nothing."""
        key = self.key(key_id)
        if key is None or key.identity == invite.identity or key.revoked_at_us is not None:
            return ""
        joined = whole(self._rows(_REDEEMED, key_id), invite_of)
        is_only_joined = any(
            each.identity == key.identity and (key.is_pending or not each.needs_approval)
            for each in joined
        )
        return key.identity if is_only_joined else ""

    def _is_claim(self, invite: EnrolledInvite) -> bool:
        key = self.key(invite.redeemed_by or "")
        return key is not None and key.identity != invite.identity

    def _redeemed_again(
        self, invite: EnrolledInvite, public: PublicKey, now_us: int
    ) -> Redeemed | JoinRefusal:
        """The same key asks again and is still good, or it is another's."""
        key = self.key(public.key_id) if invite.redeemed_by == public.key_id else None
        if key is None:
            return JoinRefusal.USED
        if key.identity != invite.identity:
            if invite.revoked_at_us is not None or key.revoked_at_us is not None:
                return JoinRefusal.REJECTED
            return Redeemed(key.key_id, invite.identity, frozenset(), again=True, pending=True)
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


def _as_claimed(key: EnrolledKey, invite: EnrolledInvite) -> EnrolledKey:
    return replace(
        key,
        identity=invite.identity,
        comment=joined_by(invite),
        enrolled_at_us=invite.redeemed_at_us or key.enrolled_at_us,
        is_pending=True,
    )
