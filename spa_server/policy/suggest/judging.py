"""Gathers what a policy is judged by, from the record, the registry and the policy's file."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keys import schema
from keys.enrolled import Action
from keys.lookup import Lookup
from keys.when import rfc3339
from spa_protocol.access import Access
from spa_server.audit.denials import beside
from spa_server.audit.record import Event
from spa_server.policy.model import Policy
from spa_server.policy.suggest import usage
from spa_server.policy.suggest.finding import Evidence, People
from spa_server.policy.suggest.peaks import NO_PEAKS, peaks
from spa_server.policy.suggest.usage import Nameless, Period, Use, in_words


@dataclass(frozen=True, slots=True)
class Record:
    """A record, looked at over a time; `idle_since_us` is where that for services begins.

    `denials` is the file that denials are kept in; None where there is none yet.
    """

    connection: sqlite3.Connection
    denials: sqlite3.Connection | None
    period: Period
    idle_since_us: int

    def evidence(self, policy: Policy, people: People) -> Evidence:
        """Raises sqlite3.Error."""
        period = self.period
        uses = usage.uses(self.connection, period.since_us)
        return Evidence(
            policy=policy,
            people=people,
            uses=uses,
            since_us=period.since_us,
            now_us=period.until_us,
            time=period.words(period.since_us),
            last_used=self._last_used(uses),
            idle_time=period.words(self.idle_since_us),
            peaks=peaks(self.connection, period.since_us) if policy.says_limits else NO_PEAKS,
        )

    def _last_used(self, uses: list[Use]) -> Mapping[Access, int]:
        """The record is read again only for another time."""
        if self.idle_since_us != self.period.since_us:
            return usage.last_used(self.connection, self.idle_since_us)
        found: dict[Access, int] = {}
        for use in uses:
            found[use.access] = max(found.get(use.access, 0), use.last_us)
        return found

    def let_in(self) -> list[Nameless]:
        """Connections that came through a hole that nobody was known to hold."""
        event = Event.CONNECTION_PERMITTED.value
        return usage.nameless(self.connection, event, self.period.since_us)

    def would_deny(self) -> list[Nameless]:
        """Connections that were let in only because the gate observes."""
        event, since_us = Event.CONNECTION_WOULD_DENY.value, self.period.since_us
        found = usage.nameless(self.connection, event, since_us)
        return found + (usage.denials(self.denials, event, since_us) if self.denials else [])

    def length(self) -> str:
        """How long the record goes back, in a sentence without a full stop."""
        period = self.period
        if period.begins_us is None:
            return "the record is empty"
        back = in_words(period.until_us - period.begins_us)
        judged = period.words(period.since_us)
        judged = f"the last {judged}" if period.covers(period.since_us) else judged
        return f"the record goes back {back}, to {_day(period.begins_us)}; judged: {judged}"

    def warnings(self, policy: Path | None = None) -> Iterator[str]:
        """Why it may not show everything. `policy` is the file of the policy that is judged."""
        period = self.period
        begins_us = period.until_us if period.begins_us is None else period.begins_us
        for since_us in sorted({period.since_us, self.idle_since_us}, reverse=True):
            if not period.covers(since_us):
                begins = f"the record begins {in_words(period.until_us - begins_us)} ago"
                yield f"{begins}: {in_words(period.until_us - since_us)} cannot be judged"
        if period.lost:
            lines = f"{period.lost:,} lines of that time were lost"
            yield f"{lines}: something may have been used that is not in the record"
        changed_us = policy.stat().st_mtime_ns // 1000 if policy else period.since_us
        if period.since_us < changed_us <= period.until_us:
            ago = in_words(period.until_us - changed_us)
            yield f"{policy} was changed {ago} ago: what is new in it cannot have been used before"

    def value(self) -> dict[str, Any]:
        """For other programs."""
        period = self.period
        return {
            "begins_at": None if period.begins_us is None else rfc3339(period.begins_us),
            "since": rfc3339(period.since_us),
            "until": rfc3339(period.until_us),
            "is_covered": period.covers(period.since_us),
            "lost": period.lost,
        }


@contextmanager
def looked_at(database: Path, now_us: int, since_us: int, idle_since_us: int) -> Iterator[Record]:
    """The record of a host. Raises sqlite3.Error and RegistryError."""
    denials = beside(database)
    with (
        closing(schema.connect(database, read_only=True)) as connection,
        closing(schema.connect(denials, read_only=True))
        if denials.exists()
        else nullcontext() as denied,
    ):
        period = usage.period_of(connection, since_us, now_us)
        yield Record(connection, denied, period, idle_since_us)


def people_of(registry: Lookup, now_us: int) -> People:
    """Who is enrolled now. Raises sqlite3.Error."""
    given = {
        (change.identity, change.detail): change.at_us
        for change in registry.changes_since(0)
        if change.action == Action.ROLE_GRANTED
    }
    enrolled = registry.keys()
    promises = (invite.roles for invite in registry.invites() if invite.is_active(now_us))
    return People(
        roles=registry.identities(),
        given_at_us=given,
        with_key=frozenset(key.identity for key in enrolled if key.is_active(now_us)),
        promised=frozenset().union(*promises),
    )


def _day(at_us: int) -> str:
    return rfc3339(at_us)[:10]
