"""Grants as rows of the table `hole_grant`, and back."""

from ipaddress import ip_address
from typing import Final, TypeAlias

from spa_protocol.access import Access
from spa_protocol.layout import text_of
from spa_server.grants import Grant
from spa_server.policy.model import Sessions

GrantRow: TypeAlias = tuple[int, str, str, str, str, str, str, int, str, int, int, float, int, int]

INSERT_GRANT: Final = (
    "insert into hole_grant values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, null, null, ?, ?)"
)
SELECT_LIVE: Final = (
    "select grant_id, key_id, identity, rule, source, target, access, once, sessions,"
    " opened_at_us, expires_at_us, ends_at_s, declared, touched from hole_grant"
    " where ended_at_us is null and boot_id = ? order by grant_id"
)


def row_of(grant: Grant, boot_id: str) -> tuple[object, ...]:
    """The values for `INSERT_GRANT`."""
    return (
        grant.grant_id,
        grant.key_id,
        grant.identity,
        grant.rule,
        text_of(grant.source),
        text_of(grant.target),
        str(grant.access),
        int(grant.once),
        grant.sessions.value,
        grant.opened_at_us,
        grant.expires_at_us,
        grant.ends_at_s,
        boot_id,
        int(grant.declared),
        int(grant.touched),
    )


def grant_of(row: GrantRow) -> Grant:
    """The grant in a row of `SELECT_LIVE`."""
    grant_id, key_id, identity, rule, source, target, access, once, sessions = row[:9]
    opened_at_us, expires_at_us, ends_at_s, declared, touched = row[9:]
    return Grant(
        grant_id,
        key_id,
        identity,
        rule,
        ip_address(source),
        ip_address(target),
        Access.parse(access),
        bool(once),
        Sessions(sessions),
        opened_at_us,
        expires_at_us,
        ends_at_s,
        bool(declared),
        bool(touched),
    )
