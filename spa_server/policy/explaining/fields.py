"""An explanation for other programs, in fields.

The fields, which keep their names:

    identity, roles, unknown_roles   who, and those of the roles that the policy does not define
    access, source, at, policy       what, from where, when (RFC 3339), by which file
    asked                            lifetime_s (0: what the policy gives), once, declared, touched
    has_key                          whether a key is there to knock with
    observed                         whether it is let in all the same, since the gate observes
    granted                          whether a knock would open a hole
    code, reason                     the outcome as a name that does not change, and in words
    rule, line                       key path and line of the rule that allows it, or null; told
                                     also where nothing but the key is missing
    lifetime_s, until, because       for how long, until when (RFC 3339), and what it is as long as:
                                     asked, lifetime, max_lifetime, key, expires or when
    once, sessions                   for a single connection; "keep" or "cut", or null
    reply                            what the client is told in the reply's message, or empty
    near                             rules that came near, the nearest first: rule, line, condition,
                                     conditions (code, condition)
    others                           rules that would have allowed it too: rule, line, lifetime_s,
                                     once
    partly                           rules about some of the ports: rule, line, accesses
    roles_that_allow                 roles that are not had and would allow it: role, rule, line
    roles_near                       the same that would not: role, rule, line, condition
    always_open                      rule and line by which no knock is needed, or null
    shared_source                    the network behind which many stand, or null
    reviews_due                      rule, line, review_by
    limits                           max_open, knocks_per_minute, max_key_age_s: a number or null
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keys.when import rfc3339
from spa_protocol.reason import Code
from spa_server.policy.decide import NearMiss
from spa_server.policy.explaining.explain import Explanation
from spa_server.policy.model import Allow


def as_fields(explained: Explanation, who: str, path: Path) -> Mapping[str, Any]:
    """The explanation for other programs: the fields above."""
    question, decision = explained.question, explained.decision
    heard = explained.has_key
    return {
        "identity": who,
        "roles": sorted(question.roles),
        "unknown_roles": list(explained.unknown),
        "access": str(question.access),
        "source": str(question.source),
        "at": rfc3339(question.at_us),
        "policy": str(path),
        "asked": {
            "lifetime_s": question.lifetime_s,
            "once": question.once,
            "declared": question.declared,
            "touched": question.touched,
        },
        "has_key": heard,
        "observed": explained.observed,
        "granted": explained.granted,
        "code": name_of(decision.code) if heard else "no-key",
        "reason": decision.code.sentence if heard else "none of its keys is active",
        **_given(explained),
        "reply": explained.reply,
        "near": [_near(miss) for miss in decision.near],
        "others": [
            {**_rule(other.rule), "lifetime_s": other.lifetime_s, "once": other.once}
            for other in explained.others
        ],
        "partly": [
            {**_rule(rule), "accesses": list(map(str, rule.accesses))} for rule in explained.partly
        ],
        **_elsewhere(explained),
        "always_open": (
            {"rule": explained.always_open.path, "line": explained.always_open.line}
            if explained.always_open
            else None
        ),
        "shared_source": str(explained.shared) if explained.shared else None,
        "reviews_due": [
            {"rule": review.path, "line": review.line, "review_by": review.due.isoformat()}
            for review in explained.overdue
        ],
        "limits": {
            "max_open": explained.limits.max_open,
            "knocks_per_minute": explained.limits.knocks_per_minute,
            "max_key_age_s": explained.limits.max_key_age_s,
        },
    }


def name_of(code: Code) -> str:
    """A code as a name, `not-from-here`."""
    return code.name.lower().replace("_", "-")


def _given(explained: Explanation) -> dict[str, Any]:
    decision, until_us = explained.decision, explained.until_us
    return {
        **_rule(decision.rule),
        "lifetime_s": decision.lifetime_s,
        "until": rfc3339(until_us) if until_us is not None else None,
        "because": explained.because.value if explained.because else None,
        "once": decision.once,
        "sessions": decision.rule.sessions.value if decision.rule else None,
    }


def _rule(rule: Allow | None) -> dict[str, Any]:
    return {"rule": rule.path if rule else None, "line": rule.line or None if rule else None}


def _near(miss: NearMiss) -> dict[str, Any]:
    return {
        **_rule(miss.rule),
        "condition": miss.condition,
        "conditions": [
            {"code": name_of(failed.code), "condition": failed.condition} for failed in miss.failed
        ],
    }


def _elsewhere(explained: Explanation) -> dict[str, Any]:
    return {
        "roles_that_allow": [
            {"role": role.name, **_rule(decision.rule)}
            for role, decision in explained.elsewhere
            if decision.rule
        ],
        "roles_near": [
            {
                "role": role.name,
                **_rule(decision.near[0].rule if decision.near else None),
                "condition": decision.near[0].condition if decision.near else decision.short,
            }
            for role, decision in explained.elsewhere
            if not decision.rule
        ],
    }
