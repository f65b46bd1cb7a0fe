"""Who reaches what by the policy in force, held against what was used of it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Final

from keys.tomlfile import quoted
from spa_protocol.access import Access as Ports
from spa_server.policy.difference.diff import ANYBODY, by_identity
from spa_server.policy.difference.words import conditions
from spa_server.policy.matrix import Matrix, Reach, Row, View, matrix
from spa_server.policy.model import Allow, Policy
from spa_server.policy.suggest.finding import Evidence
from spa_server.policy.suggest.usage import Use
from spa_server.report.facts import Access, Cell, Person, Review, Rule, Usage

_AHEAD_DAYS: Final = 90
_NO_SERVICE: Final = "other ports"


class Gathering:
    """The matrix of one policy and registry, with the uses of a time."""

    def __init__(self, evidence: Evidence) -> None:
        people = evidence.people
        subjects = by_identity(people.roles)
        self._evidence = evidence
        self._matrix = matrix(evidence.policy, subjects, View(evidence.now_us), people.with_key)
        self._numbers = {rule.path: n for n, rule in enumerate(self._matrix.rules, 1)}
        self._used = _by_service(evidence.policy, evidence.uses)

    def access(self) -> Access:
        """Who reaches what."""
        found = self._matrix
        today = datetime.fromtimestamp(self._evidence.now_us // 1_000_000, UTC).date()
        return Access(
            services={name: ", ".join(map(str, ports)) for name, ports in found.services.items()},
            people=tuple(self._person(row) for row in found.rows if self._is_shown(row)),
            rules=tuple(self._rules(found)),
            without_access=tuple(row.subject.name for row in found.without_access),
            reached_by_nobody=found.reached_by_nobody,
            reviews=tuple(reviews(self._evidence.policy, today)),
        )

    def usage(self) -> list[Usage]:
        """Who used what, those with most connections first."""
        found = [
            _usage(identity, service, uses)
            for identity, services in self._used.items()
            for service, uses in services.items()
        ]
        return sorted(found, key=lambda each: (-each.connections, each.identity, each.service))

    def _is_shown(self, row: Row) -> bool:
        return bool(row.reaches) or bool(self._used.get(row.subject.name))

    def _person(self, row: Row) -> Person:
        used = {} if row.subject == ANYBODY else self._used.get(row.subject.name, {})
        names = [name for name in self._matrix.services if name in row.reaches or name in used]
        return Person(
            name=row.subject.name,
            roles=tuple(sorted(row.roles)),
            has_key=None if row.subject == ANYBODY else row.has_key,
            cells={
                name: self._cell(row.reaches.get(name, ()), used.get(name, ())) for name in names
            },
        )

    def _cell(self, reaches: Iterable[Reach], uses: Sequence[Use]) -> Cell:
        numbers = [(self._numbers[reach.rule.path], reach.is_whole) for reach in reaches]
        return Cell(
            rules=tuple(number for number, _ in numbers),
            partial=tuple(number for number, is_whole in numbers if not is_whole),
            connections=sum(use.connections for use in uses),
            holes=sum(use.opened for use in uses),
        )

    def _rules(self, found: Matrix) -> Iterable[Rule]:
        for rule in found.rules:
            is_allow = isinstance(rule, Allow)
            uses = self._evidence.by_rule.get(rule.path, [])
            holders = self._evidence.holders.get(rule.role, ()) if isinstance(rule, Allow) else ()
            yield Rule(
                number=self._numbers[rule.path],
                path=rule.path,
                line=rule.line,
                conditions="; ".join([", ".join(rule.services), *conditions(rule)]),
                people=len(holders),
                connections=sum(use.connections for use in uses),
                holes=sum(use.opened for use in uses),
                last_at_us=max((use.last_us for use in uses), default=None),
                review_by=found.review_by(rule),
                is_recorded=is_allow,
            )


def reviews(policy: Policy, today: date) -> list[Review]:
    """What is overdue, and what is due within 90 days; the earliest first."""
    roles = [
        (f"roles.{quoted(role.name)}", role.line, role.review_by) for role in policy.roles.values()
    ]
    allows = [(allow.path, allow.line, allow.review_by) for allow in policy.allows]
    found = [
        Review(where, line, due, (due - today).days)
        for where, line, due in roles + allows
        if due is not None and (due - today).days <= _AHEAD_DAYS
    ]
    return sorted(found, key=lambda review: (review.due, review.line))


def _by_service(policy: Policy, uses: Iterable[Use]) -> Mapping[str, Mapping[str, list[Use]]]:
    """Each identity's uses by the services that they were for; a use can be for several."""
    found: dict[str, dict[str, list[Use]]] = {}
    names: dict[Ports, list[str]] = {}
    for use in uses:
        if use.access not in names:
            names[use.access] = _services(policy, use.access)
        for name in names[use.access]:
            found.setdefault(use.identity, {}).setdefault(name, []).append(use)
    return found


def _services(policy: Policy, access: Ports) -> list[str]:
    found = [
        name
        for name, ports in policy.services.items()
        if any(access.overlaps(port) for port in ports)
    ]
    return found or [_NO_SERVICE]


def _usage(identity: str, service: str, uses: Sequence[Use]) -> Usage:
    return Usage(
        identity=identity,
        service=service,
        sources=len({use.source for use in uses}),
        holes=sum(use.opened for use in uses),
        connections=sum(use.connections for use in uses),
        last_at_us=max(use.last_us for use in uses),
    )
