"""The difference between two policies as plain values, for other programs: spa-server(8)."""

from typing import Any, Final

from keys.when import rfc3339
from spa_server.policy.difference.cells import ANYWHERE, Rule, networks_of
from spa_server.policy.difference.diff import Change, Difference, LimitsChange, Subject
from spa_server.policy.difference.offer import DECLARED, TOUCHED, Offer
from spa_server.policy.difference.portcells import PortCell
from spa_server.policy.difference.spans import Spans
from spa_server.policy.difference.telling import services_named
from spa_server.policy.difference.words import timed_rules
from spa_server.policy.model import Limits, Policy

_LIMITS: Final = ("max_open", "knocks_per_minute", "max_key_age_s")


def difference_values(old: Policy, new: Policy, difference: Difference) -> dict[str, Any]:
    """Times are in UTC by RFC 3339, limits null where there is none."""
    whole = difference.whole
    return {
        "somebody_gains": bool(difference.gaining),
        "from_moment": rfc3339(whole[0][0]),
        "changes": [_change(old, new, change, whole) for change in difference.shown],
        "limits": [_limits(limits) for limits in difference.limits],
    }


def _change(old: Policy, new: Policy, change: Change, whole: Spans) -> dict[str, Any]:
    region = change.region
    return {
        **_who(change.subjects),
        "what": change.what.value,
        "gains": change.is_gain,
        "loses": change.is_loss,
        "services": services_named(old, new, change),
        "ports": [str(access) for access in region.ranges],
        "as_one_range": [_wide(cell) for cell in region.across],
        "anywhere": region.sources == ANYWHERE,
        "from": [str(network) for network in networks_of(region.sources)],
        "at_any_time": region.times == whole,
        "hours": None if change.hours is None else timed_rules([change.hours]),
        "first_at": rfc3339(region.times[0][0]),
        "before": _offer(region.before),
        "after": _offer(region.after),
        "old_rules": [_rule(rule) for rule in change.old.different],
        "new_rules": [_rule(rule) for rule in change.new.different],
    }


def _who(subjects: tuple[Subject, ...]) -> dict[str, Any]:
    return {"who": subjects[0].kind.value, "names": [subject.name for subject in subjects]}


def _limits(limits: LimitsChange) -> dict[str, Any]:
    return {
        **_who(limits.subjects),
        "gains": limits.is_gain,
        "loses": limits.is_loss,
        "before": _numbers(limits.before),
        "after": _numbers(limits.after),
    }


def _numbers(limits: Limits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in _LIMITS}


def _wide(cell: PortCell) -> dict[str, str]:
    """Requests whose first port is one of these, and whose last one of those."""
    return {
        "protocol": cell.protocol.label,
        "first": f"{cell.first[0]}-{cell.first[1] - 1}",
        "last": f"{cell.last[0]}-{cell.last[1] - 1}",
    }


def _offer(offer: Offer) -> list[dict[str, Any]]:
    """For each set of needs that a knock can bring, what it is given; refusals are left out."""
    return [
        {
            "declared": bool(brings & DECLARED),
            "touched": bool(brings & TOUCHED),
            "once": terms.once,
            "sessions": terms.sessions.value,
            "lifetime_s": terms.lifetime_s,
            "max_lifetime_s": terms.max_lifetime_s,
        }
        for brings, terms in enumerate(offer)
        if terms is not None
    ]


def _rule(rule: Rule) -> dict[str, Any]:
    return {"path": rule.path, "line": rule.line, "when": timed_rules([rule])}
