"""Which grants in force the registry and the policy, as they are now, would not give."""

from collections.abc import Callable, Iterable

from spa_server.grants import Grant
from spa_server.policy.decide import Question, decide
from spa_server.ruling import Owner, Terms


def disallowed(
    grants: Iterable[Grant], owner_of: Callable[[str], Owner | None], terms: Terms, now_us: int
) -> dict[str, list[Grant]]:
    """Those that are to end, by the reason why. The limits are those at the time of the knock."""
    ended: dict[str, list[Grant]] = {}
    for grant in grants:
        why = _why_not(grant, owner_of(grant.key_id), terms, now_us)
        if why is not None:
            ended.setdefault(why, []).append(grant)
    return ended


def _why_not(grant: Grant, owner: Owner | None, terms: Terms, now_us: int) -> str | None:
    if owner is None:
        return "the key was revoked or has expired"
    if owner.identity != grant.identity:
        return "the key is another's by now"
    question = Question(
        owner.roles,
        grant.source,
        grant.access,
        now_us,
        once=grant.once,
        declared=grant.declared,
        touched=grant.touched,
    )
    allowed = decide(terms.policy, terms.shared_sources, question).granted
    return None if allowed else "the policy or the roles no longer allow it"
