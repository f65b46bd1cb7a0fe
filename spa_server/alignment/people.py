"""Findings about the policy's rules and the people who have them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from keys.enrolled import Broken
from keys.registry import Registry
from keys.when import rfc3339
from spa_protocol.access import Access, Protocol
from spa_server.alignment.finding import Finding
from spa_server.policy.model import Allow, Policy
from spa_server.policy.schedule import Schedule

NEARLY_FULL_PERCENT: Final = 80
SSH: Final = Access(Protocol.TCP, 22, 22)
_DAY_US: Final = 86_400_000_000
_SOON_US: Final = 14 * _DAY_US


@dataclass(frozen=True, slots=True)
class People:
    """Who is enrolled: the identities with a key that works now, and every identity's roles.

    `broken` are the rows that cannot be used, as far as somebody looked for them. `heard` is how
    many keys and invites are heard, `invited` the roles that somebody gets who has yet to join.
    """

    active: frozenset[str]
    roles: Mapping[str, frozenset[str]]
    broken: tuple[Broken, ...] = ()
    heard: int = 0
    invited: frozenset[str] = frozenset()


def people_in(registry: Registry, now_us: int, *, broken_too: bool = True) -> People:
    """The people in a registry. To look for broken rows takes 60 us for each key.

    Raises sqlite3.Error.
    """
    keys = registry.keys()
    return People(
        active=frozenset(key.identity for key in keys if key.is_active(now_us)),
        roles=registry.identities(),
        broken=tuple(registry.broken()) if broken_too else (),
        heard=registry.heard(now_us),
        invited=frozenset[str]().union(
            *(invite.roles for invite in registry.invites() if invite.is_active(now_us))
        ),
    )


def check_people(policy: Policy | None, people: People) -> Iterator[Finding]:
    """Who could get in, and who holds a role that means nothing, where there is a policy."""
    if not people.active:
        yield Finding(
            "nobody-enrolled",
            "registry",
            "no key is enrolled: with the gate in force nobody can get in",
            "spa-keys invite IDENTITY --role ROLE; who was invited has yet to join",
        )
    elif policy is not None and not any(
        _reaches_ssh(policy, people.roles.get(name, ())) for name in people.active
    ):
        yield Finding(
            "nobody-reaches-ssh",
            "registry",
            "nobody who is enrolled could reach tcp/22: the gate may lock you out",
            "give somebody a role that allows ssh: spa-keys grant IDENTITY ROLE",
        )
    if policy is not None:
        yield from _unknown_roles(policy, people.roles)
    for broken in people.broken:
        yield Finding(
            "broken-key",
            broken.key_id,
            f"the {broken.table} {broken.key_id} cannot be used: {broken.what}",
            "revoke it and enrol the key anew",
        )


def check_room(people: People, max_keys: int) -> Iterator[Finding]:
    """Whether soon nobody more can be enrolled."""
    if people.heard * 100 >= max_keys * NEARLY_FULL_PERCENT:
        yield Finding(
            "registry-nearly-full",
            "registry",
            f"{people.heard} keys and invites are heard, of {max_keys} that this host can hear",
            "revoke what is not used, or set a larger max_keys in server.toml and restart",
        )


def _reaches_ssh(policy: Policy, roles: frozenset[str] | tuple[()]) -> bool:
    open_to_all = any(SSH in access for rule in policy.always_open for access in rule.accesses)
    allows = (a for name in roles if name in policy.roles for a in policy.roles[name].allows)
    return open_to_all or any(allow.covers(SSH) for allow in allows)


def _unknown_roles(policy: Policy, roles: Mapping[str, frozenset[str]]) -> Iterator[Finding]:
    for identity, names in roles.items():
        for name in sorted(names - set(policy.roles)):
            yield Finding(
                "unknown-role",
                f"{identity} {name}",
                f"{identity} has the role {name}, which the policy does not define",
                f"define it, or: spa-keys ungrant {identity} {name}",
            )


def check_roles(policy: Policy, people: People) -> Iterator[Finding]:
    """Roles that nobody has, and nobody gets who was invited."""
    held = people.invited.union(*people.roles.values())
    for role in policy.roles.values():
        if role.name not in held:
            yield Finding(
                "role-unused",
                f"roles.{role.name}",
                f"nobody has the role {role.name}{_at(role.line)}",
                f"delete it from the policy, or: spa-keys grant IDENTITY {role.name}",
            )


def check_reviews(policy: Policy, now_us: int) -> Iterator[Finding]:
    """Roles and rules whose `review_by` has come."""
    today = datetime.fromtimestamp(now_us / 1_000_000, UTC).date()
    for path, line, due in policy.reviews_due(today):
        yield Finding(
            "review-due",
            path,
            f"{path}{_at(line)} was to be reviewed by {due}",
            "see who has it (spa-server policy show), then set a later review_by",
        )


def check_expiry(policy: Policy, now_us: int) -> Iterator[Finding]:
    """Roles and rules that allow nothing any more, or soon will not; a rule that ends with its
    role is the role's matter."""
    ends = [(f"roles.{r.name}", r.line, r.expires_at_us) for r in policy.roles.values()]
    ends += [
        (allow.path, allow.line, allow.expires_at_us)
        for allow in policy.allows
        if allow.expires_at_us != policy.roles[allow.role].expires_at_us
    ]
    for path, line, at_us in ends:
        if at_us is not None and at_us <= now_us + _SOON_US:
            yield _ended(path, line, at_us, now_us)


def _ended(path: str, line: int, at_us: int, now_us: int) -> Finding:
    is_over = at_us <= now_us
    return Finding(
        "rule-expired" if is_over else "rule-expiring",
        path,
        f"{path}{_at(line)} {'expired' if is_over else 'expires'} at {rfc3339(at_us)}",
        "delete it, or set a later `expires`" if is_over else "set a later `expires`, or let it go",
    )


def check_schedules(policy: Policy, now_us: int) -> Iterator[Finding]:
    """Rules whose `when` lies in the past.

    A schedule remembers what it was asked last, and another thread may be deciding by it: copies of
    it are asked.
    """
    for allow in policy.allows:
        if allow.when is None or _is_over(allow, now_us):
            continue
        when = Schedule(allow.when.text, allow.when.timezone, allow.when.country)
        if not when.is_open(now_us) and when.changes_at_us(now_us) is None:
            yield Finding(
                "schedule-over",
                allow.path,
                f"{allow.path}{_at(allow.line)} does not open again: when = {when.text}",
                "delete the rule, or correct its `when`",
            )


def _is_over(allow: Allow, now_us: int) -> bool:
    return allow.expires_at_us is not None and allow.expires_at_us <= now_us


def _at(line: int) -> str:
    return f" (line {line})" if line else ""
