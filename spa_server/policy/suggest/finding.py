"""What is found about a policy, and what there is to judge it by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from keys.text import printable
from spa_protocol.access import Access
from spa_server.policy.model import Allow, Policy
from spa_server.policy.suggest.attribution import Attribution
from spa_server.policy.suggest.peaks import NO_PEAKS, Peaks
from spa_server.policy.suggest.usage import Use


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to change, or to know.

    `where` is a key path or a name, `line` that of the policy's file, 0 where it has none; `edit`
    says what to do, empty where nothing is to be done; `details` are for other programs.
    """

    name: str
    where: str
    line: int
    what: str
    edit: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def sentence(self, file: Path) -> str:
        """`roles.dba.allow[1] (policy.toml:18): never used in 30 days; take it out`."""
        place = f" ({file.name}:{self.line})" if self.line else ""
        edit = f"; {self.edit}" if self.edit else ""
        return printable(f"{self.where}{place}: {self.what}{edit}")

    def value(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "name": self.name,
            "where": self.where,
            "line": self.line or None,
            "what": self.what,
            "edit": self.edit or None,
            **self.details,
        }


@dataclass(frozen=True, slots=True)
class People:
    """Who is enrolled: the roles of each identity, and since when it has had each (microseconds
    since the Unix epoch, where that is known); who has a key in force; the roles that invites
    promise."""

    roles: Mapping[str, frozenset[str]] = field(default_factory=dict)
    given_at_us: Mapping[tuple[str, str], int] = field(default_factory=dict)
    with_key: frozenset[str] = frozenset()
    promised: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Evidence:
    """What a policy is judged by: what was used since a time, in words `time` ("30 days").

    `last_used` is for services, over a time of their own, in words `idle_time`. Moments are
    microseconds since the Unix epoch.
    """

    policy: Policy
    people: People
    uses: Sequence[Use]
    since_us: int
    now_us: int
    time: str
    last_used: Mapping[Access, int]
    idle_time: str
    peaks: Peaks = NO_PEAKS

    @cached_property
    def holders(self) -> Mapping[str, Sequence[str]]:
        """Who has each role, by name."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.people.roles):
            for role in self.people.roles[name]:
                found.setdefault(role, []).append(name)
        return found

    @cached_property
    def by_rule(self) -> Mapping[str, list[Use]]:
        """The uses of each allow, by its key path; a use that can have come by several is theirs
        all."""
        found: dict[str, list[Use]] = {allow.path: [] for allow in self.policy.allows}
        for use, rules in self._traced:
            for rule in rules:
                found[rule.path].append(use)
        return found

    @cached_property
    def roles_used(self) -> Mapping[str, set[str]]:
        """The roles that each identity used."""
        found: dict[str, set[str]] = {}
        for use, rules in self._traced:
            found.setdefault(use.identity, set()).update(rule.role for rule in rules)
        return found

    @cached_property
    def unused(self) -> tuple[Allow, ...]:
        """The allows by which nothing was opened, but for those that have expired."""
        return tuple(
            allow
            for allow in self.policy.allows
            if not self.by_rule[allow.path] and not self.is_over(allow.expires_at_us)
        )

    def is_over(self, expires_at_us: int | None) -> bool:
        """Whether this expiry is past."""
        return expires_at_us is not None and expires_at_us <= self.now_us

    @cached_property
    def _traced(self) -> list[tuple[Use, list[Allow]]]:
        attribution = Attribution(self.policy, self.people.roles)
        return [(use, attribution.rules_of(use)) for use in self.uses]
