"""A policy's conditions in the words that a person reads: sources, times, lifetimes, needs."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from keys.when import rfc3339
from spa_protocol.access import Access
from spa_server.policy.difference.cells import ANYWHERE, Rule, networks_of, stretches_of
from spa_server.policy.difference.offer import DECLARED, TOUCHED
from spa_server.policy.difference.spans import Spans, without
from spa_server.policy.model import Allow, AlwaysOpenRule, Policy, Requirement
from spa_server.policy.schedule import Schedule

_UNITS_S = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_NAMED = 4
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lasting(seconds: int) -> str:
    """A lifetime as a policy writes it: `30s`, `8h`, `1h30m`."""
    parts = []
    for unit, size_s in _UNITS_S:
        count, seconds = divmod(seconds, size_s)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def lifetimes(lifetime_s: int, max_lifetime_s: int) -> str:
    """What a knock gets, and the most that it may ask for."""
    most = f", at most {lasting(max_lifetime_s)}" if max_lifetime_s != lifetime_s else ""
    return f"for {lasting(lifetime_s)}{most}"


def listed(names: Sequence[str], shown: int = _NAMED) -> str:
    """`a, b, c and 9 more`."""
    if len(names) <= shown + 1:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown:,} more"


def from_where(sources: Spans) -> str:
    """`from 10.20.0.0/16`, `from anywhere`, `from anywhere but 10.0.0.0/8`."""
    if sources == ANYWHERE:
        return "from anywhere"
    rest = without(ANYWHERE, sources)
    # A handful is enough to see which of the two is shorter: there may be a million.
    networks, others = _first(sources), _first(rest)
    if len(others) < len(networks) and len(others) <= _NAMED:
        return f"from anywhere but {', '.join(others)}"
    return f"from {listed([str(network) for network in networks_of(sources)])}"


def _first(sources: Spans) -> list[str]:
    return [str(network) for network in islice(networks_of(sources), 64)]


def needed(require: Iterable[Requirement]) -> str:
    """`needs declared-source and touch`."""
    return f"needs {' and '.join(sorted(require))}"


def needed_bits(bits: Iterable[int]) -> str:
    """The same for sets of needs of which one is enough; the empty set needs nothing."""
    texts = []
    for each in bits:
        names = [Requirement.DECLARED_SOURCE] if each & DECLARED else []
        names += [Requirement.TOUCH] if each & TOUCHED else []
        texts.append(" and ".join(names) or "nothing")
    return f"needs {', or '.join(texts)}"


def moment(at_us: int, timezone: str = "UTC") -> str:
    """`Tue 2026-11-24 09:00 Europe/Berlin`."""
    local = (_EPOCH + timedelta(microseconds=at_us)).astimezone(ZoneInfo(timezone))
    return f"{local:%a %Y-%m-%d %H:%M} {timezone}"


def until(expires_at_us: int) -> str:
    """`until 2027-02-01`, in UTC; with the time where it is not midnight."""
    return f"until {rfc3339(expires_at_us).removesuffix('T00:00:00Z')}"


def timed(when: Schedule | None, expires_at_us: int | None) -> str:
    """When a rule holds, empty for always: `Mo-Fr 08:00-18:00 UTC until 2027-02-01`."""
    parts = [str(when)] if when else []
    parts += [until(expires_at_us)] if expires_at_us is not None else []
    return " ".join(parts)


def timed_rules(rules: Iterable[Rule]) -> str:
    """When one of these rules holds; `always` where one does."""
    texts = dict.fromkeys(
        timed(rule.when, rule.expires_at_us) if isinstance(rule, Allow) else "" for rule in rules
    )
    return "always" if "" in texts else listed(list(texts), 2)


def place(rule: Rule) -> str:
    """Where a rule stands in its file: `roles.dba.allow[0] (line 12)`."""
    return f"{rule.path} (line {rule.line})" if rule.line else rule.path


def services_of(policy: Policy, rules: Iterable[Rule], ports: Sequence[Access]) -> list[str]:
    """The names by which these rules speak of these ports."""
    names = dict.fromkeys(name for rule in rules for name in rule.services)
    return [
        name
        for name in names
        if any(port.overlaps(access) for port in ports for access in policy.services.get(name, ()))
    ]


def conditions(rule: Allow | AlwaysOpenRule) -> list[str]:
    """Everything that a rule asks for and gives, but for reviews, in a few words each."""
    told = [from_where(stretches_of(rule.sources.networks))]
    if isinstance(rule, AlwaysOpenRule):
        return [*told, "no knock needed"]
    time = timed(rule.when, rule.expires_at_us)
    told += [time] if time else []
    told += [lifetimes(rule.lifetime_s, rule.max_lifetime_s)]
    told += ["for one connection"] if rule.once else []
    told += ["sessions are cut"] if rule.sessions.value == "cut" else []
    told += [needed(rule.require)] if rule.require else []
    return told


def review(review_by: date, today: date) -> str:
    """`review due 2027-02-01`, or that it is overdue: from that day on it is."""
    return f"review {'overdue since' if review_by <= today else 'due'} {review_by}"
