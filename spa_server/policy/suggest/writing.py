"""The least policy as policy.toml, to be read by a person before it is put in force."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keys import tomlfile
from keys.text import printable
from keys.tomlfile import quoted, string
from keys.when import rfc3339
from spa_protocol.access import Access
from spa_server.policy.difference.words import lasting, listed
from spa_server.policy.lines import lines_of
from spa_server.policy.load import ANYWHERE, parse_policy
from spa_server.policy.model import (
    Limits,
    Network,
    Policy,
    Requirement,
    Role,
    Sessions,
)
from spa_server.policy.suggest.least import LeastAllow, LeastRole
from spa_server.policy.suggest.naming import Services
from spa_server.policy.suggest.prefixes import Seen
from spa_server.policy.suggest.proofs import tests_of
from spa_server.policy.suggest.usage import counted

_DAYS: Final = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
_PEOPLE: Final = 8
_MIDNIGHT: Final = "T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Written:
    """A policy's text, and what it says."""

    text: str
    policy: Policy


class Writer:
    """Writes one least policy. `policy` is the one in force, `shared` are server.toml's
    shared_sources, from which no test of the policy's can be granted."""

    def __init__(
        self, policy: Policy, roles: Sequence[LeastRole], shared: Sequence[Network] = ()
    ) -> None:
        self._policy = policy
        self._roles = roles
        self._shared = shared
        self.services = Services(dict(policy.services))

    def write(
        self, head: Iterable[str], after: Iterable[str] = (), offered: Iterable[Access] = ()
    ) -> Written:
        """The whole file, parsed again. Raises FileProblem where it is none.

        `head` and `after` are lines of comments, at the top and behind the rules; `offered` are
        accesses that `after` names services for.
        """
        rules = [line for role in self._roles for line in self._role(role)]
        rules += self._always_open()
        parts = [
            _comments(head),
            [*self._services(offered), ""],
            _limits("limits", self._policy.limits.said),
            rules,
            after,
        ]
        draft = "\n".join(line for part in parts for line in part)
        policy = _parse(draft)
        tests = "\n".join(tests_of(self._policy, policy, self._roles, self._shared))
        text = (f"{draft}\n{tests}" if tests else draft).rstrip("\n") + "\n"
        return Written(text, _parse(text))

    def _services(self, offered: Iterable[Access]) -> Iterator[str]:
        yield "[services]"
        used = self.services.used
        for name in (*self._policy.services, *(n for n in used if n not in self._policy.services)):
            if name in used:
                yield f"{quoted(name)} = {_accesses(used[name])}"
        for access in dict.fromkeys(offered):
            name = self.services.alone(access)
            if name not in used:
                yield f"# {quoted(name)} = {_accesses((access,))}"

    def _role(self, role: LeastRole) -> Iterator[str]:
        name, like = quoted(role.name), role.like
        uses = [use for allow in role.allows for use in allow.uses]
        last_us = max(use.last_us for use in uses)
        connections = counted(sum(use.connections for use in uses), "connection")
        yield f"# {_people(role.people)}: {connections}, the last {_day(last_us)}"
        yield f"[roles.{name}]"
        if like is not None:
            yield from _about(like)
            yield from _limits(f"roles.{name}.limits", like.limits)
        for allow in role.allows:
            yield f"[[roles.{name}.allow]]"
            yield from self._allow(allow, like)
            yield ""

    def _allow(self, allow: LeastAllow, role: Role | None) -> Iterator[str]:
        like = allow.like
        if like is None:
            yield "# the policy in force does not allow this"
        names = self.services.named(allow.accesses, like.services if like else ())
        yield f"services = {_list(names)}"
        connected = {port for use in allow.uses for port in use.ports}
        for access in allow.accesses:
            ports = sorted(port for port in connected if port in access and port != access)
            if ports and access not in connected:
                yield f"# of {access} only {listed([str(p) for p in ports])} was connected to"
        yield from _from(allow.seen)
        yield from _when(allow)
        yield f'lifetime = "{lasting(allow.lifetime_s)}"'
        if allow.max_lifetime_s != allow.lifetime_s:
            yield f'max_lifetime = "{lasting(allow.max_lifetime_s)}"'
        if allow.sessions is Sessions.CUT:
            yield 'sessions = "cut"'
        if allow.once:
            yield "once = true"
        if like is not None:
            yield from _conditions(like.require, like.expires_at_us, role)
            if like.review_by is not None:
                yield f"review_by = {like.review_by}"

    def _always_open(self) -> Iterator[str]:
        if self._policy.always_open:
            yield "# As in force: the record does not say who comes in by these."
        for rule in self._policy.always_open:
            self.services.used.update((n, self._policy.services[n]) for n in rule.services)
            yield "[[always_open]]"
            yield f"services = {_list(rule.services)}"
            open_to = _list(map(str, rule.sources.networks)) if rule.sources.networks else ""
            yield f"from = {open_to or string(ANYWHERE)}"
            yield ""


def _parse(text: str) -> Policy:
    path = Path("the suggested policy")
    return parse_policy(tomlfile.parse(text, path), path, lines_of(text))


def _about(role: Role) -> Iterator[str]:
    if role.description:
        yield f"description = {string(role.description)}"
    if role.expires_at_us is not None:
        yield f"expires = {_moment(role.expires_at_us)}"
    if role.review_by is not None:
        yield f"review_by = {role.review_by}"


def _limits(where: str, limits: Limits) -> list[str]:
    if not limits:
        return []
    lines = [f"[{where}]"]
    for name in ("max_open", "knocks_per_minute"):
        value = getattr(limits, name)
        lines += [] if value is None else [f"{name} = {value}"]
    if limits.max_key_age_s is not None:
        lines.append(f'max_key_age = "{limits.max_key_age_s}s"')
    return [*lines, ""]


def _conditions(
    require: Iterable[Requirement], expires_at_us: int | None, role: Role | None
) -> Iterator[str]:
    names = sorted(require)
    if names:
        yield f"require = {_list(names)}"
    if expires_at_us is not None and (role is None or expires_at_us != role.expires_at_us):
        yield f"expires = {_moment(expires_at_us)}"


def _from(seen: Sequence[Seen]) -> Iterator[str]:
    """A pool is told with how much of it was seen."""
    if len(seen) <= 3 and all(each.is_whole for each in seen):
        yield f"from = {_list(str(each.network) for each in seen)}"
        return
    yield "from = ["
    for each in seen:
        yield f'    "{each.network}",{"" if each.is_whole else f"  # {_how_much(each)}"}'
    yield "]"


def _how_much(seen: Seen) -> str:
    size = seen.network.num_addresses
    of = f" of its {size:,}" if seen.network.version == 4 else " of its"
    return f"{seen.addresses:,}{of} addresses were seen"


def _when(allow: LeastAllow) -> Iterator[str]:
    """The rule's own schedule; the hours that were seen as a comment."""
    when = allow.like.when if allow.like else None
    if when is None:
        yield f'# when = "{observed(allow.hours, allow.days)}"  # as seen, in UTC'
        return
    yield f"when = {string(when.text)}"
    if when.timezone != "UTC":
        yield f"timezone = {string(when.timezone)}"
    if when.country is not None:
        yield f"country = {string(when.country)}"


def observed(hours: int, days: int) -> str:
    """`Mo-Fr,Su 07:00-18:00`: the days of the bits, and the hours from the first to the last."""
    spans: list[list[int]] = []
    for day in range(len(_DAYS)):
        if days >> day & 1:
            if spans and spans[-1][1] == day - 1:
                spans[-1][1] = day
            else:
                spans.append([day, day])
    named = ",".join(_DAYS[a] if a == b else f"{_DAYS[a]}-{_DAYS[b]}" for a, b in spans)
    first, last = (hours & -hours).bit_length() - 1, hours.bit_length()
    return f"{named} {first:02}:00-{last:02}:00"


def _moment(at_us: int) -> str:
    """A day where it is one."""
    return rfc3339(at_us).removesuffix(_MIDNIGHT)


def _day(at_us: int) -> str:
    return rfc3339(at_us)[:10]


def _people(names: Sequence[str]) -> str:
    return printable(listed(names, _PEOPLE))


def _comments(lines: Iterable[str]) -> list[str]:
    return [f"# {printable(line)}".rstrip() for line in lines] + [""]


def _list(names: Iterable[str]) -> str:
    return f"[{', '.join(string(name) for name in names)}]"


def _accesses(accesses: Sequence[Access]) -> str:
    texts = [str(access) for access in accesses]
    return string(texts[0]) if len(texts) == 1 else _list(texts)
