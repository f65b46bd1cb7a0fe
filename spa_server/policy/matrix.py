"""Who can reach what: identities (or roles) and services, with the rules that lead from one to the
other.

A service is reached by whatever covers its ports, by which name a rule speaks of them makes no
difference. Where only some of its ports are covered, it is reached in part.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from keys.when import rfc3339
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_server.policy.difference.cells import Rule
from spa_server.policy.difference.diff import ANYBODY, Subject, Subjects
from spa_server.policy.difference.spans import Spans, merged, without
from spa_server.policy.model import Allow, Policy


@dataclass(frozen=True, slots=True)
class View:
    """What is looked at: now, or what is open at `at_us`, or open to `source`; one service.

    Times are microseconds since the Unix epoch. A rule that has expired is never looked at.
    """

    now_us: int
    at_us: int | None = None
    source: Address | None = None
    service: str | None = None

    def shows(self, rule: Rule) -> bool:
        """Whether a rule can let anybody in then, from there."""
        if self.source is not None and self.source not in rule.sources:
            return False
        if not isinstance(rule, Allow):
            return True
        moment_us = self.now_us if self.at_us is None else self.at_us
        if rule.expires_at_us is not None and rule.expires_at_us <= moment_us:
            return False
        return self.at_us is None or rule.when is None or rule.when.is_open(self.at_us)


@dataclass(frozen=True, slots=True)
class Reach:
    """One rule by which a service is reached; `is_whole` says that it is all of its ports."""

    rule: Rule
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Row:
    """What one subject reaches: by the name of the service, the rules that allow it.

    `has_key` is whether it could knock at all; None where that is not known.
    """

    subject: Subject
    roles: frozenset[str]
    reaches: Mapping[str, tuple[Reach, ...]]
    has_key: bool | None = None


@dataclass(frozen=True, slots=True)
class Matrix:
    """Services with their ports, and a row for anybody and for each subject."""

    policy: Policy
    services: Mapping[str, tuple[Access, ...]]
    rows: tuple[Row, ...]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule by which somebody reaches something, in the order of the file."""
        found = {
            reach.rule.path: reach.rule
            for row in self.rows
            for reaches in row.reaches.values()
            for reach in reaches
        }
        return tuple(rule for rule in _rules(self.policy) if rule.path in found)

    @property
    def without_access(self) -> tuple[Row, ...]:
        """Those who reach nothing."""
        return tuple(row for row in self.rows if not row.reaches and row.subject != ANYBODY)

    @property
    def reached_by_nobody(self) -> tuple[str, ...]:
        """Services to which no row leads."""
        reached = {name for row in self.rows for name in row.reaches}
        return tuple(name for name in self.services if name not in reached)

    def review_by(self, rule: Rule) -> date | None:
        """When a rule is to be reviewed: by its own date or its role's, whichever is earlier."""
        if not isinstance(rule, Allow):
            return None
        dates = (rule.review_by, self.policy.roles[rule.role].review_by)
        return min((each for each in dates if each is not None), default=None)


def matrix(
    policy: Policy, subjects: Subjects, view: View, active: frozenset[str] | None = None
) -> Matrix:
    """Who reaches what by a policy. `active` are the identities that have a key to knock with."""
    services = {
        name: accesses for name, accesses in policy.services.items() if view.service in (None, name)
    }
    rows = [Row(ANYBODY, frozenset(), _reaches(services, policy.always_open, view))]
    by_role = {role.name: _reaches(services, role.allows, view) for role in policy.roles.values()}
    by_roles: dict[frozenset[str], Mapping[str, tuple[Reach, ...]]] = {}
    for subject, roles in subjects.items():
        if roles not in by_roles:
            by_roles[roles] = _together(by_role[name] for name in policy.roles if name in roles)
        has_key = None if active is None else subject.name in active
        rows.append(Row(subject, roles, by_roles[roles], has_key))
    return Matrix(policy, services, tuple(rows))


def expired(policy: Policy, now_us: int) -> tuple[Allow, ...]:
    """The rules that no longer allow anything."""
    return tuple(
        allow
        for allow in policy.allows
        if allow.expires_at_us is not None and allow.expires_at_us <= now_us
    )


def matrix_values(matrix: Matrix, now_us: int) -> dict[str, Any]:
    """For other programs. Times are in UTC by RFC 3339, null for never or not known."""
    return {
        "services": {
            name: [str(access) for access in accesses] for name, accesses in matrix.services.items()
        },
        "rules": {rule.path: _rule_values(matrix, rule, now_us) for rule in matrix.rules},
        "rows": [_row_values(row) for row in matrix.rows],
        "without_access": [row.subject.name for row in matrix.without_access],
        "reached_by_nobody": list(matrix.reached_by_nobody),
    }


def _reaches(
    services: Mapping[str, tuple[Access, ...]], rules: Iterable[Rule], view: View
) -> Mapping[str, tuple[Reach, ...]]:
    """By these rules, in their order."""
    ports = [(rule, _ports(rule.accesses)) for rule in rules if view.shows(rule)]
    found: dict[str, tuple[Reach, ...]] = {}
    for name, accesses in services.items():
        wanted = _ports(accesses)
        reaches = []
        for rule, covered in ports:
            missing = without(wanted, covered)
            if missing != wanted:
                reaches.append(Reach(rule, not missing))
        if reaches:
            found[name] = tuple(reaches)
    return found


def _together(
    parts: Iterable[Mapping[str, tuple[Reach, ...]]],
) -> Mapping[str, tuple[Reach, ...]]:
    """What several roles reach."""
    found: dict[str, tuple[Reach, ...]] = {}
    for part in parts:
        for name, reaches in part.items():
            found[name] = found.get(name, ()) + reaches
    return found


def _ports(accesses: Iterable[Access]) -> Spans:
    """Ports of all protocols on one line, each protocol's by themselves."""
    return merged(
        (access.protocol << 17 | access.first, (access.protocol << 17 | access.last) + 1)
        for access in accesses
    )


def _rules(policy: Policy) -> Iterable[Rule]:
    return (*policy.allows, *policy.always_open)


def _row_values(row: Row) -> dict[str, Any]:
    return {
        "who": row.subject.kind.value,
        "name": row.subject.name,
        "roles": sorted(row.roles),
        "has_key": row.has_key,
        "reaches": {
            service: [{"rule": reach.rule.path, "whole": reach.is_whole} for reach in reaches]
            for service, reaches in row.reaches.items()
        },
    }


def _rule_values(matrix: Matrix, rule: Rule, now_us: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "line": rule.line,
        "services": list(rule.services),
        "from": [str(network) for network in rule.sources.networks] or None,
    }
    if not isinstance(rule, Allow):
        return {**values, "always_open": True}
    due = matrix.review_by(rule)
    today = datetime.fromtimestamp(now_us // 1_000_000, UTC).date()
    return {
        **values,
        "always_open": False,
        "role": rule.role,
        "when": rule.when.text if rule.when else None,
        "timezone": rule.when.timezone if rule.when else None,
        "country": rule.when.country if rule.when else None,
        "lifetime_s": rule.lifetime_s,
        "max_lifetime_s": rule.max_lifetime_s,
        "once": rule.once,
        "sessions": rule.sessions.value,
        "require": sorted(rule.require),
        "expires_at": None if rule.expires_at_us is None else rfc3339(rule.expires_at_us),
        "review_by": None if due is None else due.isoformat(),
        "review_overdue": due is not None and due <= today,
    }
