"""Reading policy.toml: strictly, and with an error that says which key is wrong and what to write.

A policy is loaded whole or not at all; whoever reloads keeps the one in force when this raises.
What can be told from one table is checked here, the rest in `soundness`.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from ipaddress import IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final

from keys import tomlfile
from keys.tomlfile import FileProblem, convert, quoted, string
from keys.when import rfc3339
from spa_protocol.access import Access, check_together
from spa_protocol.layout import Malformed
from spa_server.policy.fields import Fields
from spa_server.policy.hours import BadSchedule
from spa_server.policy.lines import lines_of
from spa_server.policy.model import (
    DEFAULT_LIMITS,
    Allow,
    AlwaysOpenRule,
    Limits,
    Network,
    Policy,
    PolicyTest,
    Requirement,
    Role,
    Sessions,
    Sources,
)
from spa_server.policy.schedule import Schedule
from spa_server.policy.soundness import check_sound
from spa_server.policy.tables import (
    AllowTable,
    AlwaysOpenTable,
    LimitsTable,
    PolicyTable,
    RoleTable,
    TestTable,
)

_PREFIX: Final = re.compile(r"[^/]+(/[0-9]{1,3})?")
_MAX_KNOWN: Final = 12
ANYWHERE: Final = "anywhere"
"""What `from` of an `always_open` says where it is for everybody."""

_NONE: Final = Limits()


class _Expect(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


def load_policy(path: Path) -> Policy:
    """The policy in a file. Raises FileProblem."""
    text = tomlfile.read_text(path)
    if text is None:
        raise FileProblem(path, "", "no such file or directory", "spa-server init makes one")
    return parse_policy(tomlfile.parse(text, path), path, lines_of(text))


def parse_policy(
    value: dict[str, Any],
    path: Path,
    lines: Mapping[str, int] | None = None,
    *,
    was_in_force: bool = False,
) -> Policy:
    """A policy from TOML's plain values. Raises FileProblem.

    `path` is for error messages, `lines` says where each table begins. What was in force under
    0.1.0 may have an `always_open` without `from`, which was for everybody.
    """
    whole = convert(value, PolicyTable, path, "")
    reader = _Reader(path, lines or {}, was_in_force=was_in_force)
    for name, texts in whole.services.items():
        reader.services[name] = reader.service(name, texts)
    roles = {name: reader.role(name, role) for name, role in whole.roles.items()}
    policy = Policy(
        reader.services,
        roles,
        tuple(reader.always_open(index, rule) for index, rule in enumerate(whole.always_open)),
        reader.limits(whole.limits, "limits", DEFAULT_LIMITS),
        tuple(reader.test(index, test, roles) for index, test in enumerate(whole.tests)),
    )
    check_sound(policy, path)
    return policy


class _Reader(Fields):
    """Turns the tables of one file into the model; it knows the file, its lines and services."""

    def __init__(self, path: Path, lines: Mapping[str, int], *, was_in_force: bool) -> None:
        super().__init__(path)
        self._was_in_force = was_in_force
        self._lines = lines
        self.services: dict[str, tuple[Access, ...]] = {}

    def service(self, name: str, value: object) -> tuple[Access, ...]:
        where = f"services.{self.name(name, f'services.{quoted(name)}')}"
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts:
            raise self.problem(where, 'expected "tcp/22" or a list like ["tcp/80", "udp/443"]')
        accesses: list[Access] = []
        for text in texts:
            access = self.access(text, where)
            if any(access.overlaps(other) for other in accesses):
                raise self.problem(where, f"{access} overlaps another port of the same service")
            accesses.append(access)
        return tuple(accesses)

    def role(self, name: str, value: object) -> Role:
        where = f"roles.{self.name(name, f'roles.{quoted(name)}')}"
        role = convert(value, RoleTable, self.path, where)
        expires_at_us = self.expiry(role.expires, f"{where}.expires")
        return Role(
            name=name,
            description=self.one_line(role.description, f"{where}.description"),
            allows=tuple(
                self._allow(f"{where}.allow[{index}]", name, allow, expires_at_us)
                for index, allow in enumerate(role.allow)
            ),
            limits=self.limits(role.limits, f"{where}.limits"),
            expires_at_us=expires_at_us,
            review_by=role.review_by,
            line=self._lines.get(where, 0),
        )

    def limits(self, value: object, where: str, default: Limits = _NONE) -> Limits:
        limits = convert(value, LimitsTable, self.path, where)
        age = limits.max_key_age
        age_s = None if age is None else self.lifetime(age, f"{where}.max_key_age")
        return Limits(
            limits.max_open or default.max_open,
            limits.knocks_per_minute or default.knocks_per_minute,
            age_s,
        )

    def _allow(self, where: str, role: str, value: object, role_expires_at_us: int | None) -> Allow:
        allow = convert(value, AllowTable, self.path, where)
        lifetime_s, max_lifetime_s = self._lifetimes(allow, where)
        sessions = self.choice(allow.sessions, Sessions, f"{where}.sessions")
        if allow.once and sessions is Sessions.CUT:
            problem = "a single connection cannot be cut with its hole"
            raise self.problem(f"{where}.once", f'{problem}; drop once or sessions = "cut"')
        return Allow(
            path=where,
            role=role,
            services=tuple(allow.services),
            accesses=self._accesses(allow.services, f"{where}.services"),
            sources=self._sources(allow.sources, f"{where}.from"),
            lifetime_s=lifetime_s,
            max_lifetime_s=max_lifetime_s,
            sessions=sessions,
            once=allow.once,
            when=self._schedule(allow, where),
            require=self._requirements(allow.require, f"{where}.require"),
            expires_at_us=self._sooner(allow.expires, role_expires_at_us, f"{where}.expires"),
            review_by=allow.review_by,
            line=self._lines.get(where, self._lines.get(f"roles.{role}", 0)),
        )

    def always_open(self, index: int, value: object) -> AlwaysOpenRule:
        where = f"always_open[{index}]"
        rule = convert(value, AlwaysOpenTable, self.path, where)
        return AlwaysOpenRule(
            path=where,
            services=tuple(rule.services),
            accesses=self._accesses(rule.services, f"{where}.services"),
            sources=self._open_to(rule.sources, f"{where}.from"),
            line=self._lines.get(where, 0),
        )

    def _open_to(self, value: list[str] | str | None, where: str) -> Sources:
        """Whom needs no knock: never everybody without a word."""
        if isinstance(value, list):
            return self._sources(value, where)
        if value == ANYWHERE or (value is None and self._was_in_force):
            return Sources()
        problem = 'needs no knock from whom? write from = ["10.9.0.0/24"]'
        raise self.problem(where, f'{problem}, or from = "{ANYWHERE}" where it is for everybody')

    def test(self, index: int, value: object, roles: Mapping[str, Role]) -> PolicyTest:
        where = f"tests[{index}]"
        test = convert(value, TestTable, self.path, where)
        if (test.identity is None) == (test.role is None):
            raise self.problem(where, "expected either identity or role, and not both")
        if test.role is not None and test.role not in roles:
            raise self.problem(f"{where}.role", f"no role {test.role!r}; {_known(roles)}")
        if test.identity is not None:
            self.name(test.identity, f"{where}.identity")
        return PolicyTest(
            path=where,
            name=self.one_line(test.name, f"{where}.name") or where,
            identity=test.identity,
            role=test.role,
            access=self._asked(test.access, f"{where}.access"),
            source=self.address(test.source, f"{where}.from"),
            at_us=self.moment(test.at, f"{where}.at"),
            declared=test.declared,
            touched=test.touched,
            is_allowed=self.choice(test.expect, _Expect, f"{where}.expect") is _Expect.ALLOW,
            line=self._lines.get(where, 0),
        )

    def _asked(self, text: str, where: str) -> Access:
        """An access that a knock may ask for."""
        access = self.access(text, where)
        try:
            check_together((access,))
        except Malformed as error:
            raise self.problem(where, str(error)) from None
        return access

    def _accesses(self, names: Iterable[str], where: str) -> tuple[Access, ...]:
        accesses: dict[Access, None] = {}
        for name in names:
            if name not in self.services:
                raise self.problem(where, f"no service {name!r}; {_known(self.services)}")
            accesses.update(dict.fromkeys(self.services[name]))
        return tuple(accesses)

    def _sources(self, texts: Iterable[str] | None, where: str) -> Sources:
        return Sources(tuple(parse_network(text, self.path, where) for text in texts or ()))

    def _lifetimes(self, allow: AllowTable, where: str) -> tuple[int, int]:
        """What a knock gets, and the most it may ask for, in seconds."""
        lifetime_s = self.lifetime(allow.lifetime, f"{where}.lifetime")
        if allow.max_lifetime is None:
            return lifetime_s, lifetime_s
        max_lifetime_s = self.lifetime(allow.max_lifetime, f"{where}.max_lifetime")
        if max_lifetime_s < lifetime_s:
            problem = f"shorter than the lifetime of {lifetime_s} s"
            raise self.problem(f"{where}.max_lifetime", problem)
        return lifetime_s, max_lifetime_s

    def _schedule(self, allow: AllowTable, where: str) -> Schedule | None:
        if allow.when is None:
            for name in ("timezone", "country"):
                if getattr(allow, name) is not None:
                    raise self.problem(f"{where}.{name}", "means nothing without when")
            return None
        timezone = "UTC" if allow.timezone is None else allow.timezone
        try:
            return Schedule(allow.when, timezone, allow.country)
        except BadSchedule as error:
            raise self.problem(f"{where}.{error.key}", str(error)) from None

    def _requirements(self, texts: list[str], where: str) -> frozenset[Requirement]:
        required = [self.choice(text, Requirement, where) for text in texts]
        for text in required:
            if required.count(text) > 1:
                raise self.problem(where, f"{string(text)} is named twice")
        return frozenset(required)

    def _sooner(self, value: object, role_expires_at_us: int | None, where: str) -> int | None:
        """When an allow expires: when it says, or with its role."""
        expires_at_us = self.expiry(value, where)
        if expires_at_us is None or role_expires_at_us is None:
            return role_expires_at_us if expires_at_us is None else expires_at_us
        if expires_at_us > role_expires_at_us:
            problem = f"its role expires before that, on {rfc3339(role_expires_at_us)[:10]}"
            raise self.problem(where, f"{problem}; take it out")
        return expires_at_us


def _known(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = ", ..." if len(ordered) > _MAX_KNOWN else ""
    return f"known: {', '.join(ordered[:_MAX_KNOWN]) or 'none'}{more}"


def parse_network(text: str, path: Path, where: str) -> Network:
    """A CIDR without host bits. Raises FileProblem."""
    try:
        network = ip_network(text, strict=False) if _PREFIX.fullmatch(text) else None
    except ValueError:
        network = None
    if network is None:
        problem = f"{text!r} is no network; write it like 10.20.0.0/16 or 2001:db8::/48"
        raise FileProblem(path, where, problem)
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise FileProblem(path, where, f"{text!r} is IPv4; write it like 10.20.0.0/16")
    if ip_address(text.partition("/")[0]) != network.network_address:
        raise FileProblem(path, where, f"{text!r} has host bits set; write {network}")
    return network
