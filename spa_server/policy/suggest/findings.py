"""What a policy allows beyond what is used: each finding with the edit that it asks for.

A finding asks for an edit of the policy or of the registry. A remark does not: it is what the
record cannot show, or what may well be meant.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from keys.tomlfile import string
from keys.when import rfc3339
from spa_protocol.access import Access
from spa_server.policy.difference.cells import stretches_of
from spa_server.policy.difference.words import listed
from spa_server.policy.model import Allow, Limits, Role
from spa_server.policy.suggest.finding import Evidence, Finding
from spa_server.policy.suggest.prefixes import seen_in, spans_of
from spa_server.policy.suggest.usage import counted

_NETWORKS_TOLD: Final = 20
_PEOPLE_TOLD: Final = 6
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def find(evidence: Evidence) -> list[Finding]:
    """The findings about rules and roles, in the order of the file, then about services."""
    of_the_file = [*_allows(evidence), *_roles(evidence), *_reviews(evidence)]
    of_the_file.sort(key=lambda finding: finding.line)
    return [*of_the_file, *_services(evidence)]


def remark(evidence: Evidence) -> list[Finding]:
    """What is to be known besides."""
    return [*_always_open(evidence), *_limits(evidence)]


def _allows(evidence: Evidence) -> Iterator[Finding]:
    unheld = {role.name for role in evidence.policy.roles.values() if _is_unheld(evidence, role)}
    for allow in evidence.policy.allows:
        if allow.role in unheld or evidence.is_over(allow.expires_at_us):
            continue
        if evidence.by_rule[allow.path]:
            yield from _used(evidence, allow)
        else:
            yield _of(allow, "unused-allow", f"never used in {evidence.time}", "take it out")


def _used(evidence: Evidence, allow: Allow) -> Iterator[Finding]:
    """What of a rule that is used is not used."""
    uses = evidence.by_rule[allow.path]
    used = {use.access for use in uses}
    idle = [n for n in allow.services if not _is_used(evidence.policy.services[n], used)]
    if idle:
        left = [name for name in allow.services if name not in idle]
        what = f"used in {evidence.time}, but never for {listed(idle)}"
        edit = f"services = [{', '.join(map(string, left))}]"
        yield _of(allow, "unused-service", what, edit, services=left)
    if not any(use.connections for use in uses):
        opened = sum(use.opened for use in uses)
        holes = counted(opened, "hole")
        what = f"opened {holes} in {evidence.time}, and nothing came through"
        edit = "ask who knocks what for; take it out where it is for nothing"
        yield _of(allow, "never-connected", what, edit, holes=opened)
    seen = seen_in((use.source for use in uses), allow.sources)
    if spans_of(seen) != stretches_of(allow.sources.networks) and len(seen) <= _NETWORKS_TOLD:
        networks = [str(each.network) for each in seen]
        what = f"from {allow.sources}, but used only from {listed(networks)} in {evidence.time}"
        edit = f"from = [{', '.join(map(string, networks))}]"
        details = {str(each.network): each.addresses for each in seen}
        yield _of(allow, "wide-sources", what, edit, addresses_seen=details)


def _of(allow: Allow, name: str, what: str, edit: str, **details: object) -> Finding:
    return Finding(name, allow.path, allow.line, what, edit, details)


def _is_used(accesses: Iterable[Access], used: Iterable[Access]) -> bool:
    known = tuple(used)
    return any(access.overlaps(other) for access in accesses for other in known)


def _is_unheld(evidence: Evidence, role: Role) -> bool:
    people = evidence.people
    holders = evidence.holders.get(role.name, ())
    return people.with_key.isdisjoint(holders) and role.name not in people.promised


def _roles(evidence: Evidence) -> Iterator[Finding]:
    for role in evidence.policy.roles.values():
        where = f"roles.{role.name}"
        if _is_unheld(evidence, role):
            holders = evidence.holders.get(role.name, ())
            what = f"only {listed(holders)} has it, without a key in force"
            what = what if holders else "nobody has it"
            yield Finding("unheld-role", where, role.line, what, "take it out")
        else:
            yield from _never_used_by(evidence, role)
        if evidence.is_over(role.expires_at_us):
            yield _expired(where, role.line, role.expires_at_us or 0)
    for allow in evidence.policy.allows:
        role_expires_us = evidence.policy.roles[allow.role].expires_at_us
        if evidence.is_over(allow.expires_at_us) and allow.expires_at_us != role_expires_us:
            yield _expired(allow.path, allow.line, allow.expires_at_us or 0)


def _expired(where: str, line: int, expires_at_us: int) -> Finding:
    what = f"expired on {rfc3339(expires_at_us)[:10]}"
    return Finding("expired", where, line, what, "take it out")


def _never_used_by(evidence: Evidence, role: Role) -> Iterator[Finding]:
    """Who has had it for the whole time."""
    idle = [
        name
        for name in evidence.holders.get(role.name, ())
        if role.name not in evidence.roles_used.get(name, ())
        and evidence.people.given_at_us.get((name, role.name), 0) <= evidence.since_us
    ]
    if idle and role.allows and not evidence.is_over(role.expires_at_us):
        verb = "has it and" if len(idle) == 1 else "have it and"
        what = f"{listed(idle, _PEOPLE_TOLD)} {verb} never used it in {evidence.time}"
        commands = [f"spa-keys ungrant {name} {role.name}" for name in idle]
        details = {"identities": idle, "commands": commands}
        edit = listed(commands, 1)
        yield Finding("unused-role", f"roles.{role.name}", role.line, what, edit, details)


def _reviews(evidence: Evidence) -> Iterator[Finding]:
    today = (_EPOCH + timedelta(microseconds=evidence.now_us)).date()
    for path, line, due in evidence.policy.reviews_due(today):
        what = f"should have been reviewed by {due}"
        yield Finding("review-due", path, line, what, "review it and set review_by anew")


def _services(evidence: Evidence) -> Iterator[Finding]:
    """Those that always_open names are left out: nobody knocks for them."""
    policy = evidence.policy
    open_to_all = {name for rule in policy.always_open for name in rule.services}
    named = {name for allow in policy.allows for name in allow.services}
    for name, accesses in policy.services.items():
        if name in open_to_all:
            continue
        where = f"services.{name}"
        if name not in named:
            yield Finding("unnamed-service", where, 0, "no rule names it", "take it out")
        elif not _is_used(accesses, evidence.last_used):
            what = f"idle for {evidence.idle_time}: nobody opened or reached it"
            yield Finding("idle-service", where, 0, what, "take it out of the rules that name it")


def _always_open(evidence: Evidence) -> Iterator[Finding]:
    for rule in evidence.policy.always_open:
        what = "what comes in by it is not recorded: whether it is used cannot be told from here"
        yield Finding("always-open", rule.path, rule.line, what)


def _limits(evidence: Evidence) -> Iterator[Finding]:
    everybody = tuple(evidence.people.roles)
    yield from _unreached(evidence, "limits", 0, evidence.policy.limits.said, everybody)
    for role in evidence.policy.roles.values():
        where = f"roles.{role.name}.limits"
        yield from _unreached(
            evidence, where, role.line, role.limits, evidence.holders.get(role.name, ())
        )


def _unreached(
    evidence: Evidence, where: str, line: int, limits: Limits, holders: Sequence[str]
) -> Iterator[Finding]:
    peaks = evidence.peaks
    if not peaks.refused.isdisjoint(holders):
        return
    pairs = (
        ("max_open", limits.max_open, peaks.open),
        ("knocks_per_minute", limits.knocks_per_minute, peaks.knocks),
    )
    for key, limit, peak in pairs:
        most = max((peak.get(name, 0) for name in holders), default=0)
        if limit is not None and most < limit:
            what = f"{key} = {limit:,} was never reached in {evidence.time}: {most:,} at most"
            details = {"limit": limit, "most": most}
            yield Finding("unreached-limit", where, line, what, details=details)
