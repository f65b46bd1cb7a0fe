"""The ruling: what an authentic request is given, and why. docs/architecture.md, "The one way".

Pure: the doorkeeper's knock, the key's owner, the policy and the facts of the host go in, the
ruling comes out. Whoever acts on it has burned the request first.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

import msgspec

from spa_protocol.access import Access
from spa_protocol.knock import AuthenticKnock, Close, Knock
from spa_protocol.layout import Address
from spa_protocol.reason import Code, Reason, Status
from spa_protocol.reply import Outcome, Reply, clip
from spa_server.addressing import Addressing
from spa_server.capture.datagram import Datagram
from spa_server.hole import Hole
from spa_server.policy.decide import Decision, Question, decide, message_of
from spa_server.policy.model import Network, Policy

_HOUR_US: Final = 3_600_000_000
_DAY_US: Final = 24 * _HOUR_US
_WARN_US: Final = 14 * _DAY_US
_TOO_OLD: Final = "your key is too old; get a new one: spa-keys rotate"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose key it is. `expires_at_us` is None for a key that does not expire, and
    `enrolled_at_us` for one whose age is not known."""

    key_id: str
    identity: str
    roles: frozenset[str]
    expires_at_us: int | None = None
    enrolled_at_us: int | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What is in force on this host, and which addresses are its own."""

    policy: Policy
    shared_sources: tuple[Network, ...]
    addressing: Addressing


@dataclass(frozen=True, slots=True)
class Use:
    """What an identity has already: its open holes, those of them that a batch is about to open,
    and its requests within a minute."""

    holes: AbstractSet[Hole]
    about_to_open: AbstractSet[Hole]
    knocks: int

    def count_with(self, wanted: set[Hole]) -> int:
        """How many holes it would have with these. Without looking at all that it has."""
        new = (wanted | self.about_to_open).difference(self.holes)
        return len(self.holes) + len(new)


class Ruling(msgspec.Struct, frozen=True):
    """For each access asked for, the decision; and the hole's two ends. `warning` is for the
    key's owner."""

    source: Address
    target: Address
    decisions: tuple[tuple[Access, Decision], ...]
    warning: str = ""

    @property
    def status(self) -> Status:
        """Granted when anything is."""
        granted = any(decision.granted for _, decision in self.decisions)
        return Status.GRANTED if granted else Status.REFUSED

    @property
    def message(self) -> str:
        """Why something was refused, in a few words for its owner; or what they should know."""
        return message_of(self.decisions, self.warning)


def rule(
    request: Knock,
    datagram: Datagram,
    owner: Owner,
    terms: Terms,
    now_us: int,
    *,
    touched: bool = False,
    use: Use | None = None,
) -> Ruling:
    """The policy's answer to each access of a knock. Without `use` the limits are not looked at."""
    source, target = terms.addressing.ends(request, datagram)
    if why := terms.addressing.why_not(request, datagram):
        refused = Decision(Code.NOT_A_TARGET, why=why)
        return Ruling(source, target, tuple((access, refused) for access in request.accesses))
    ends_us = key_ends_us(owner, terms.policy)
    if ends_us is not None and ends_us <= now_us:
        refused = Decision(Code.EXPIRED, why=_TOO_OLD)
        return Ruling(source, target, tuple((access, refused) for access in request.accesses))
    lives_s = None if ends_us is None else (ends_us - now_us) / 1_000_000
    decisions: list[tuple[Access, Decision]] = []
    granted: set[Hole] = set()
    for access in request.accesses:
        wanted = granted.union(_holes(request, source, target, access)) if use else granted
        question = Question(
            owner.roles,
            source,
            access,
            now_us,
            request.lifetime_s,
            request.once,
            lives_s,
            declared=request.source is not None,
            touched=touched,
            holes=use.count_with(wanted) if use else 0,
            knocks=use.knocks if use else 0,
        )
        decision = decide(terms.policy, terms.shared_sources, question)
        decisions.append((access, decision))
        if decision.granted:
            granted = wanted
    return Ruling(source, target, tuple(decisions), _warning(owner, ends_us, now_us))


def key_ends_us(owner: Owner, policy: Policy) -> int | None:
    """When a key ends: by its own expiry, or by the age that the policy allows; None is never."""
    ends_us = owner.expires_at_us
    if policy.ages_keys and owner.enrolled_at_us is not None:
        age_s = policy.limits_of(owner.roles).max_key_age_s
        if age_s is not None:
            by_age_us = owner.enrolled_at_us + age_s * 1_000_000
            ends_us = by_age_us if ends_us is None else min(ends_us, by_age_us)
    return ends_us


def _warning(owner: Owner, ends_us: int | None, now_us: int) -> str:
    """In the last tenth of a key's life, and 14 days before its end at most."""
    if ends_us is None or owner.enrolled_at_us is None:
        return ""
    left_us = ends_us - now_us
    if left_us > min(_WARN_US, (ends_us - owner.enrolled_at_us) // 10):
        return ""
    days, hours = left_us // _DAY_US, left_us // _HOUR_US
    left = f"{days} days" if days > 1 else f"{hours} h" if hours else "less than an hour"
    return f"your key ends in {left}; get a new one: spa-keys rotate"


def _holes(request: Knock, source: Address, target: Address, access: Access) -> Iterator[Hole]:
    return (Hole(source, target, access.protocol, port, request.once) for port in access.ports)


def ruling_reply(ruling: Ruling, datagram: Datagram, now_us: int) -> Reply:
    """The answer to a knock."""
    outcomes = tuple(
        Outcome(access, decision.code, decision.lifetime_s) for access, decision in ruling.decisions
    )
    return _reply(ruling.status, datagram, now_us, outcomes, ruling.message)


def unavailable_reply(accesses: Sequence[Access], datagram: Datagram, now_us: int) -> Reply:
    """The answer when something on this host failed: nothing was granted."""
    outcomes = tuple(Outcome(access, Code.UNAVAILABLE) for access in accesses)
    return _reply(Status.UNAVAILABLE, datagram, now_us, outcomes, "try again; the record says why")


def close_refused_reply(
    request: Close, code: Code, why: str, datagram: Datagram, now_us: int
) -> Reply:
    """The answer to a close that may not be about its addresses, or that is one of too many."""
    outcomes = tuple(Outcome(access, code) for access in request.accesses)
    return _reply(Status.REFUSED, datagram, now_us, outcomes, why)


def closed_reply(request: Close, ended: Sequence[Access], datagram: Datagram, now_us: int) -> Reply:
    """The answer to a close that ended grants of these accesses: no outcomes where it ended none.

    A grant ends whole, so the message names what is wider than what was asked, or was not open.
    """
    if not ended:
        return _reply(Status.CLOSED, datagram, now_us, (), "nothing was open")
    outcomes = tuple(Outcome(access, Code.GRANTED) for access in request.accesses)
    wider = [one for one in ended if not any(one in access for access in request.accesses)]
    missed = [one for one in request.accesses if not any(one.overlaps(each) for each in ended)]
    message = f"nothing was open at {', '.join(map(str, missed))}" if missed else ""
    message = f"closed as granted: {', '.join(map(str, wider))}" if wider else message
    return _reply(Status.CLOSED, datagram, now_us, outcomes, message)


def clock_reply(knock: AuthenticKnock, reason: Reason, datagram: Datagram, now_us: int) -> Reply:
    """The answer to a request that is stale or ahead: by how much the two clocks differ."""
    apart_s = abs(now_us - knock.request.sent_at_us) / 1_000_000
    side = "behind" if reason is Reason.STALE else "ahead of"
    message = f"your clock is {apart_s:.0f} s {side} the server's"
    return plain_reply(Status.CLOCK, message, datagram, now_us)


def plain_reply(status: Status, message: str, datagram: Datagram, now_us: int) -> Reply:
    """An answer that is about no access."""
    return _reply(status, datagram, now_us, (), message)


def _reply(
    status: Status,
    datagram: Datagram,
    now_us: int,
    outcomes: tuple[Outcome, ...],
    message: str,
) -> Reply:
    return Reply(status, now_us, datagram.source, datagram.target, outcomes, clip(message))
