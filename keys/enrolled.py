"""What the registry holds, as values: an enrolled key, an invite, a change.

Times are microseconds since the Unix epoch. A row of the database becomes a value only if it is
whole; `BrokenRow` says what is wrong with another.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

from keys.names import BadName, identity_name, role_name
from spa_protocol.layout import KEY_SIZE
from spa_protocol.publickey import PublicKey
from spa_protocol.sshsig import KeyType

KEY_COLUMNS: Final = (
    "key_id, identity, key_type, signing, agreement, comment, "
    "enrolled_at_us, expires_at_us, revoked_at_us, last_seen_us, is_pending"
)
INVITE_COLUMNS: Final = (
    "key_id, identity, signing, agreement, roles, "
    "created_at_us, expires_at_us, revoked_at_us, redeemed_by, redeemed_at_us, needs_approval"
)
CHANGE_COLUMNS: Final = "id, at_us, actor, action, identity, key_id, detail"

LATE_US: Final = 7 * 86_400_000_000
"""For how long an invite is heard after its end, so that whoever comes late is told why."""

_LAST_US: Final = 253_402_300_799_999_999  # the end of the year 9999
_P: Final = 2**255 - 19
# The points of small order on Curve25519, and the other ways to write them. `PublicKey.check` finds
# them too, and the weak signing keys as well, but takes 60 us for each of 100,000 keys at a start.
_SMALL_ORDER: Final = frozenset(
    u.to_bytes(32, "little")
    for u in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
        _P,
        _P + 1,
    )
)


class BrokenRow(ValueError):
    """A row that is no key or invite. The message says why."""


class State(StrEnum):
    """What an enrolled key or an invite is good for at a moment."""

    ACTIVE = "active"
    PENDING = "pending"
    EXPIRED = "expired"
    REVOKED = "revoked"
    REDEEMED = "redeemed"


class Action(StrEnum):
    """What was done to the registry."""

    KEY_ENROLLED = "key.enrolled"
    KEY_RENEWED = "key.renewed"
    KEY_REVOKED = "key.revoked"
    KEY_ASKED = "key.asked"
    KEY_APPROVED = "key.approved"
    KEY_REJECTED = "key.rejected"
    ROLE_GRANTED = "role.granted"
    ROLE_UNGRANTED = "role.ungranted"
    INVITE_CREATED = "invite.created"
    INVITE_REVOKED = "invite.revoked"
    INVITE_REDEEMED = "invite.redeemed"


@dataclass(frozen=True, slots=True)
class EnrolledKey:
    """A public key and whose it is. None as `expires_at_us` is never.

    One that `is_pending` came with an invite and waits for an operator's approval.
    """

    key_id: str
    identity: str
    public: PublicKey
    comment: str
    enrolled_at_us: int
    expires_at_us: int | None
    revoked_at_us: int | None
    last_seen_us: int | None
    is_pending: bool = False

    def state(self, now_us: int) -> State:
        """Revoked is for good, whatever the clock says."""
        if self.revoked_at_us is not None:
            return State.REVOKED
        if self.is_pending:
            return State.PENDING
        expired = self.expires_at_us is not None and self.expires_at_us <= now_us
        return State.EXPIRED if expired else State.ACTIVE

    def is_active(self, now_us: int) -> bool:
        """Whether it may knock."""
        return self.state(now_us) is State.ACTIVE

    @property
    def heard_until_us(self) -> int | None:
        """When it is heard no longer by itself; None is never."""
        return self.expires_at_us

    def is_heard(self, now_us: int) -> bool:
        """Whether its tags are admitted: a key that may not knock is a stranger."""
        return self.is_active(now_us)


@dataclass(frozen=True, slots=True)
class EnrolledInvite:
    """The public half of an invite: who it is for and which roles it brings.

    `redeemed_by` is the id of the key that joined with it; where the invite `needs_approval`, that
    key is pending at first.
    """

    key_id: str
    identity: str
    public: PublicKey
    roles: frozenset[str]
    created_at_us: int
    expires_at_us: int
    revoked_at_us: int | None
    redeemed_by: str | None
    redeemed_at_us: int | None
    needs_approval: bool = False

    def state(self, now_us: int) -> State:
        """Redeemed goes before expired, revoked before both."""
        if self.revoked_at_us is not None:
            return State.REVOKED
        if self.redeemed_by is not None:
            return State.REDEEMED
        return State.EXPIRED if self.expires_at_us <= now_us else State.ACTIVE

    def is_active(self, now_us: int) -> bool:
        """Whether it has not come to its end: until it expires or is revoked, even if redeemed.

        For whoever joined and missed the answer asks again, and is answered again.
        """
        return self.revoked_at_us is None and now_us < self.expires_at_us

    @property
    def heard_until_us(self) -> int:
        """When it is heard no longer. Until then its holder is told that it has come to its end.

        And the operator learns of it, should somebody try an invite that was used or revoked.
        """
        ends = (self.expires_at_us, self.revoked_at_us)
        return min(end_us for end_us in ends if end_us is not None) + LATE_US

    def is_heard(self, now_us: int) -> bool:
        """Whether its tags are admitted."""
        return now_us < self.heard_until_us


@dataclass(frozen=True, slots=True)
class Change:
    """One change to the registry. `action` is one of `Action`, or a later version's."""

    change_id: int
    at_us: int
    actor: str
    action: str
    identity: str
    key_id: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that is passed over, and why: `table` is `key` or `invite`."""

    table: str
    key_id: str
    what: str


def key_of(row: Sequence[Any]) -> EnrolledKey:
    """From the columns `KEY_COLUMNS`. Raises BrokenRow."""
    key_id, identity, key_type, signing, agreement, comment, *times, pending = row
    enrolled, expires, revoked, seen = times
    return EnrolledKey(
        key_id=key_id,
        identity=_identity(identity),
        public=_public(key_id, key_type, signing, agreement),
        comment=_typed(comment, str, "a comment"),
        enrolled_at_us=_moment(enrolled),
        expires_at_us=_moment_or_none(expires),
        revoked_at_us=_moment_or_none(revoked),
        last_seen_us=_moment_or_none(seen),
        is_pending=_flag(pending),
    )


def invite_of(row: Sequence[Any]) -> EnrolledInvite:
    """From the columns `INVITE_COLUMNS`. Raises BrokenRow."""
    key_id, identity, signing, agreement, roles, created, expires, revoked, *joined = row
    by, redeemed, needs_approval = joined
    return EnrolledInvite(
        key_id=key_id,
        identity=_identity(identity),
        public=_public(key_id, KeyType.ED25519, signing, agreement),
        roles=_roles(roles),
        created_at_us=_moment(created),
        expires_at_us=_moment(expires),
        revoked_at_us=_moment_or_none(revoked),
        redeemed_by=None if by is None else _typed(by, str, "a key id"),
        redeemed_at_us=_moment_or_none(redeemed),
        needs_approval=_flag(needs_approval),
    )


def change_of(row: Sequence[Any]) -> Change:
    """From the columns `CHANGE_COLUMNS`."""
    return Change(*row)


def roles_text(roles: frozenset[str]) -> str:
    """How an invite's roles stand in its row."""
    return json.dumps(sorted(roles))


def _roles(text: Any) -> frozenset[str]:
    try:
        return frozenset(role_name(role) for role in json.loads(text))
    except (TypeError, ValueError):
        raise BrokenRow("its roles are no list of names") from None


def _identity(value: Any) -> str:
    try:
        return identity_name(_typed(value, str, "an identity"))
    except BadName as bad:
        raise BrokenRow(bad.message) from None


def _public(key_id: Any, key_type: Any, signing: Any, agreement: Any) -> PublicKey:
    if key_type not in _KEY_TYPES:
        raise BrokenRow(f"key type {key_type!r} is not known")
    for value, what in ((signing, "signing key"), (agreement, "agreement key")):
        if not isinstance(value, bytes) or len(value) != KEY_SIZE:
            raise BrokenRow(f"the {what} is not {KEY_SIZE} bytes")
    public = PublicKey(_KEY_TYPES[key_type], signing, agreement)
    if public.key_id != key_id:
        raise BrokenRow("the key id is another key's")
    if agreement[:31] + bytes([agreement[31] & 0x7F]) in _SMALL_ORDER:
        raise BrokenRow("the agreement key is of small order")
    return public


_KEY_TYPES: Final = {int(key_type): key_type for key_type in KeyType}

_T = TypeVar("_T")


def _typed(value: Any, kind: type[_T], what: str) -> _T:
    if not isinstance(value, kind):
        raise BrokenRow(f"{value!r} is not {what}")
    return value


def _moment(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= _LAST_US:
        raise BrokenRow(f"{value!r} is not a time in microseconds")
    return value


def _moment_or_none(value: Any) -> int | None:
    return None if value is None else _moment(value)


def _flag(value: Any) -> bool:
    if value not in (0, 1):
        raise BrokenRow(f"{value!r} is neither 0 nor 1")
    return bool(value)
