"""Changing the registry: rows, and for each change its entry in `registry_change`.

Everything here happens inside a transaction that the registry has begun, with its rules checked.
"""

from collections.abc import Iterable
from typing import Final

from sqlite_utils import Database

from keys.enrolled import Action, EnrolledInvite, EnrolledKey, roles_text
from keys.lookup import Head
from keys.schema import RegistryError
from keys.trouble import ExitCode
from keys.when import rfc3339
from spa_protocol.publickey import PublicKey

_REVOKED: Final = {"key": Action.KEY_REVOKED, "invite": Action.INVITE_REVOKED}


class Refused(RegistryError):
    """A change that the rules forbid, or that has nothing to change."""

    exit_code = ExitCode.REFUSED


class Changes:
    """What one transaction changes, at one time and by one actor."""

    def __init__(self, db: Database, now_us: int, actor: str) -> None:
        self._db = db
        self._now_us = now_us
        self._actor = actor

    def add_key(
        self,
        identity: str,
        public: PublicKey,
        comment: str,
        expires_at_us: int | None,
        *,
        is_pending: bool = False,
    ) -> None:
        """A new key, and its identity where that is new too."""
        self._db.table("identity").insert(
            {"name": identity, "created_at_us": self._now_us}, ignore=True
        )
        self._db.table("key").insert(
            {
                "key_id": public.key_id,
                "identity": identity,
                "key_type": int(public.key_type),
                "signing": public.signing,
                "agreement": public.agreement,
                "comment": comment,
                "enrolled_at_us": self._now_us,
                "expires_at_us": expires_at_us,
                "is_pending": is_pending,
            }
        )
        action = Action.KEY_ASKED if is_pending else Action.KEY_ENROLLED
        self._note(action, identity, public.key_id, _expiry(expires_at_us))

    def approve(self, key: EnrolledKey, expires_at_us: int | None) -> None:
        """A pending key that may knock from now on, for the identity that it is given with.

        Where it was another's, it takes the place of none of theirs, nor they of it.
        """
        self._db.table("replacement").delete_where("? in (old_key_id, new_key_id)", [key.key_id])
        self._db.table("identity").insert(
            {"name": key.identity, "created_at_us": self._now_us}, ignore=True
        )
        self._db.table("key").update(
            key.key_id,
            {
                "identity": key.identity,
                "comment": key.comment,
                "is_pending": False,
                "enrolled_at_us": self._now_us,
                "expires_at_us": expires_at_us,
            },
        )
        self._note(Action.KEY_APPROVED, key.identity, key.key_id, _expiry(expires_at_us))

    def reject(self, key: EnrolledKey) -> None:
        """A pending key that shall never knock: it stays pending, and is revoked."""
        self._db.table("key").update(key.key_id, {"revoked_at_us": self._now_us})
        self._note(Action.KEY_REJECTED, key.identity, key.key_id)

    def renew(self, key: EnrolledKey, comment: str, expires_at_us: int | None) -> None:
        """Another comment or expiry for a key. Where both are as they were, nothing happens.

        A key that was being replaced is to be kept after all.
        """
        self._drop_replacement(key.key_id)
        if (comment, expires_at_us) == (key.comment, key.expires_at_us):
            return
        self._db.table("key").update(
            key.key_id, {"comment": comment, "expires_at_us": expires_at_us}
        )
        self._note(Action.KEY_RENEWED, key.identity, key.key_id, _expiry(expires_at_us))

    def replace(self, old: EnrolledKey, new_key_id: str, until_us: int) -> None:
        """A key that ends when another is first used, and at `until_us` at the latest."""
        expires_at_us = min(until_us, old.expires_at_us or until_us)
        self._db.table("key").update(old.key_id, {"expires_at_us": expires_at_us})
        self._db.table("replacement").insert(
            {"old_key_id": old.key_id, "new_key_id": new_key_id}, replace=True
        )
        detail = f"replaced by {new_key_id}, {_expiry(expires_at_us)} at the latest"
        self._note(Action.KEY_RENEWED, old.identity, old.key_id, detail)

    def revoke(self, head: Head) -> None:
        """A key or an invite that is no longer good, and that no other key stands for."""
        self._drop_replacement(head.key_id)
        self._end(head)

    def succeed(self, head: Head, new_key_id: str) -> None:
        """A key that ends because its replacement was used: that stands for it from now on."""
        self._end(head, f"replaced by {new_key_id}")

    def _end(self, head: Head, detail: str = "") -> None:
        at_us = self._now_us if head.revoked_at_us is None else head.revoked_at_us
        self._db.table(head.kind).update(head.key_id, {"revoked_at_us": at_us})
        self._note(_REVOKED[head.kind], head.identity, head.key_id, detail)

    def grant(self, identity: str, roles: Iterable[str], before: frozenset[str]) -> None:
        """Roles that the identity did not have `before`."""
        for role in sorted(set(roles) - before):
            self._db.table("identity_role").insert({"identity": identity, "role": role})
            self._note(Action.ROLE_GRANTED, identity, detail=role)

    def ungrant(self, identity: str, roles: Iterable[str]) -> None:
        """Roles that the identity has no longer."""
        for role in roles:
            self._db.table("identity_role").delete((identity, role))
            self._note(Action.ROLE_UNGRANTED, identity, detail=role)

    def add_invite(
        self,
        identity: str,
        public: PublicKey,
        roles: frozenset[str],
        expires_at_us: int,
        *,
        needs_approval: bool,
    ) -> None:
        """A new invite, by its public half."""
        self._db.table("invite").insert(
            {
                "key_id": public.key_id,
                "identity": identity,
                "signing": public.signing,
                "agreement": public.agreement,
                "roles": roles_text(roles),
                "created_at_us": self._now_us,
                "expires_at_us": expires_at_us,
                "needs_approval": needs_approval,
            }
        )
        self._note(Action.INVITE_CREATED, identity, public.key_id, _expiry(expires_at_us))

    def redeem(self, invite: EnrolledInvite, public: PublicKey, before: frozenset[str]) -> None:
        """A key that joined with an invite, and the roles that the invite brings.

        A key that waits for approval gets them with it: the identity may have other keys.
        """
        waits = invite.needs_approval
        self.add_key(invite.identity, public, joined_by(invite), None, is_pending=waits)
        if not waits:
            self.grant(invite.identity, invite.roles, before)
        self._redeemed_by(invite, public.key_id)

    def claim(self, invite: EnrolledInvite, key_id: str) -> None:
        """A join with a key that joined for another: it changes nothing but the invite."""
        self._redeemed_by(invite, key_id)
        self._note(Action.KEY_ASKED, invite.identity, key_id, joined_by(invite))

    def give_up(self, invite: EnrolledInvite, owner: str) -> None:
        """An invite's claim to a key that is `owner`'s, or was rejected: it is no longer good."""
        self._db.table("invite").update(invite.key_id, {"revoked_at_us": self._now_us})
        self._note(Action.INVITE_REVOKED, invite.identity, invite.key_id)
        if invite.identity != owner:
            why = f"it is {owner}'s"
            self._note(Action.KEY_REVOKED, invite.identity, invite.redeemed_by, why)
        else:
            self._note(Action.KEY_REJECTED, invite.identity, invite.redeemed_by)

    def _redeemed_by(self, invite: EnrolledInvite, key_id: str) -> None:
        self._db.table("invite").update(
            invite.key_id, {"redeemed_by": key_id, "redeemed_at_us": self._now_us}
        )
        self._note(Action.INVITE_REDEEMED, invite.identity, invite.key_id, key_id)

    def _drop_replacement(self, old_key_id: str) -> None:
        self._db.table("replacement").delete_where("old_key_id = ?", [old_key_id])

    def _note(
        self, action: Action, identity: str, key_id: str | None = None, detail: str = ""
    ) -> None:
        self._db.table("registry_change").insert(
            {
                "at_us": self._now_us,
                "actor": self._actor,
                "action": str(action),
                "identity": identity,
                "key_id": key_id,
                "detail": detail,
            }
        )


def joined_by(invite: EnrolledInvite) -> str:
    """The comment of a key that joined with it."""
    return f"joined by invite {invite.key_id}"


def _expiry(expires_at_us: int | None) -> str:
    return "never expires" if expires_at_us is None else f"expires {rfc3339(expires_at_us)}"
