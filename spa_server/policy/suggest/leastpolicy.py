"""The least policy of a host: its file, and what is to be known and done besides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keys.when import rfc3339
from spa_server.policy.difference.words import listed
from spa_server.policy.model import Allow, Network, Policy
from spa_server.policy.suggest import usage
from spa_server.policy.suggest.assigning import assignments, commands
from spa_server.policy.suggest.finding import People
from spa_server.policy.suggest.judging import Record
from spa_server.policy.suggest.least import LeastRole, least_roles
from spa_server.policy.suggest.unnamed import Offers, Unnamed, by_access
from spa_server.policy.suggest.writing import Writer

_COMMANDS_TOLD: Final = 40
_LET_IN_TOLD: Final = 5


@dataclass(frozen=True, slots=True)
class LeastPolicy:
    """Its text and what it says; who is to have which role, and the commands that see to that;
    what would have been denied, and what was let in, without a name."""

    text: str
    policy: Policy
    roles_of: dict[str, frozenset[str]]
    commands: tuple[str, ...]
    would_deny: tuple[Unnamed, ...]
    let_in: tuple[Unnamed, ...]

    def value(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "policy": self.text,
            "roles": {name: sorted(roles) for name, roles in self.roles_of.items() if roles},
            "commands": list(self.commands),
            "would_deny": [each.value() for each in self.would_deny],
            "let_in_without_a_name": [each.value() for each in self.let_in],
        }


def make(
    record: Record,
    policy: Policy,
    people: People,
    shared: Sequence[Network],
    *,
    whole_roles: bool = False,
) -> LeastPolicy:
    """From what the record shows. Raises sqlite3.Error."""
    uses = usage.uses(record.connection, record.period.since_us)
    roles = least_roles(policy, people.roles, uses, whole_roles=whole_roles)
    would_deny, let_in = (
        tuple(by_access(found)) for found in (record.would_deny(), record.let_in())
    )
    told = tuple(commands(roles, people.roles))
    writer = Writer(policy, roles, shared)
    offers = Offers(policy, writer.services, would_deny)
    head = [*_head(record), *_told(told), *_left_out(policy, roles), *_let_in(let_in)]
    written = writer.write(head, offers.lines(), offers.offered)
    return LeastPolicy(
        written.text, written.policy, assignments(roles, people.roles), told, would_deny, let_in
    )


def _head(record: Record) -> Iterator[str]:
    period = record.period
    begins_us = max(period.since_us, period.begins_us or 0)
    span = f"from {rfc3339(begins_us)[:10]} to {rfc3339(period.until_us)[:10]}"
    yield f"The least policy that would have allowed what was used {span},"
    yield "made by `spa-server policy suggest --least`. Read it before you put it in place."
    yield "`from` has the networks that were seen; each `when` in a comment the hours, in UTC."
    for warning in record.warnings():
        yield f"Warning: {warning}."


def _told(told: Sequence[str]) -> Iterator[str]:
    if told:
        yield ""
        yield "Roles to give and to take, so that everybody keeps what he used:"
    for command in told[:_COMMANDS_TOLD]:
        yield f"  {command}"
    if len(told) > _COMMANDS_TOLD:
        yield f"  and {len(told) - _COMMANDS_TOLD:,} more: see --json"


def _left_out(policy: Policy, roles: Sequence[LeastRole]) -> Iterator[str]:
    kept = {allow.like.path for role in roles for allow in role.allows if allow.like}
    left = [allow for allow in policy.allows if allow.path not in kept]
    if left:
        yield ""
        yield f"Left out, because nothing came through by them: {listed([*map(_place, left)], 20)}"


def _place(allow: Allow) -> str:
    return f"{allow.path} (line {allow.line})" if allow.line else allow.path


def _let_in(let_in: Sequence[Unnamed]) -> Iterator[str]:
    """A daemon that was not there when a hole was opened knows nobody who holds it."""
    if let_in:
        yield ""
    for each in let_in[:_LET_IN_TOLD]:
        yield f"Let in without a name: {each.sentence}"
