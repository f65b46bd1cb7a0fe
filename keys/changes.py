"""Changing the registry: rows, and for each change its entry in `registry_change`.

Everything here happens inside a transaction that the registry has begun, with its rules checked.
"""

from collections.abc import Iterable
from typing import Final

from sqlite_utils import Database

from keys.enrolled import Action, EnrolledInvite, EnrolledKey, roles_text
from keys.lookup import Head
from keys.when import rfc3339
from spa_protocol.publickey import PublicKey

_REVOKED: Final = {"key": Action.KEY_REVOKED, "invite": Action.INVITE_REVOKED}


class Changes:
    """What one transaction changes, at one time and by one actor."""

    def __init__(self, db: Database, now_us: int, actor: str) -> None:
        self._db = db
        self._now_us = now_us
        self._actor = actor

    def add_key(
        self, identity: str, public: PublicKey, comment: str, expires_at_us: int | None
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
            }
        )
        self._note(Action.KEY_ENROLLED, identity, public.key_id, _expiry(expires_at_us))

    def renew(self, key: EnrolledKey, comment: str, expires_at_us: int | None) -> None:
        """Another comment or expiry for a key. Where both are as they were, nothing happens."""
        if (comment, expires_at_us) == (key.comment, key.expires_at_us):
            return
        self._db.table("key").update(
            key.key_id, {"comment": comment, "expires_at_us": expires_at_us}
        )
        self._note(Action.KEY_RENEWED, key.identity, key.key_id, _expiry(expires_at_us))

    def revoke(self, head: Head) -> None:
        """A key or an invite that is no longer good."""
        self._db.table(head.kind).update(head.key_id, {"revoked_at_us": self._now_us})
        self._note(_REVOKED[head.kind], head.identity, head.key_id)

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
        self, identity: str, public: PublicKey, roles: frozenset[str], expires_at_us: int
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
            }
        )
        self._note(Action.INVITE_CREATED, identity, public.key_id, _expiry(expires_at_us))

    def redeem(self, invite: EnrolledInvite, public: PublicKey, before: frozenset[str]) -> None:
        """A key that joined with an invite, and the roles that the invite brings."""
        self.add_key(invite.identity, public, f"joined by invite {invite.key_id}", None)
        self.grant(invite.identity, invite.roles, before)
        self._db.table("invite").update(
            invite.key_id, {"redeemed_by": public.key_id, "redeemed_at_us": self._now_us}
        )
        self._note(Action.INVITE_REDEEMED, invite.identity, invite.key_id, public.key_id)

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


def _expiry(expires_at_us: int | None) -> str:
    return "never expires" if expires_at_us is None else f"expires {rfc3339(expires_at_us)}"
