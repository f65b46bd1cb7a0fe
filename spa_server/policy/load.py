"""Reading policy.toml: strictly, and with an error that says which key is wrong and what to write.

A policy is loaded whole or not at all; whoever reloads keeps the one in force when this raises.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from keys import tomlfile
from keys.tomlfile import FileProblem, convert, lower_first, table
from keys.when import parse_duration
from spa_protocol.access import Access
from spa_protocol.layout import MAX_LIFETIME_S, Malformed
from spa_server.policy.model import Allow, AlwaysOpenRule, Network, Policy, Role, Sessions, Sources

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_DEFAULT_LIFETIME = "30s"
_Names = Annotated[list[str], msgspec.Meta(min_length=1)]


class _AllowTable(msgspec.Struct, forbid_unknown_fields=True, rename={"sources": "from"}):
    services: _Names
    sources: _Names | None = None
    lifetime: str = _DEFAULT_LIFETIME
    max_lifetime: str | None = None
    sessions: Literal["keep", "cut"] = "keep"
    once: bool = False


class _RoleTable(msgspec.Struct, forbid_unknown_fields=True):
    description: str = ""
    allow: list[Any] = []


class _AlwaysOpenTable(msgspec.Struct, forbid_unknown_fields=True, rename={"sources": "from"}):
    services: _Names
    sources: _Names | None = None


class _PolicyFile(msgspec.Struct, forbid_unknown_fields=True):
    services: dict[str, Any] = {}
    roles: dict[str, Any] = {}
    always_open: list[Any] = []


def load_policy(path: Path) -> Policy:
    """The policy in a file. Raises FileProblem."""
    return parse_policy(tomlfile.read(path), path)


def parse_policy(value: dict[str, Any], path: Path) -> Policy:
    """A policy from TOML's plain values; `path` is for error messages. Raises FileProblem."""
    convert(value, _PolicyFile, path, "")
    reader = _Reader(path)
    services = {
        name: reader.service(name, text) for name, text in table(value, "services", path).items()
    }
    roles = {
        name: reader.role(name, role, services)
        for name, role in table(value, "roles", path).items()
    }
    always_open = tuple(
        reader.always_open(index, rule, services)
        for index, rule in enumerate(value.get("always_open", []))
    )
    policy = Policy(services, roles, always_open)
    reader.check_cut(policy)
    return policy


class _Reader:
    """Turns the tables of one file into the model; it only knows the file's name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _problem(self, where: str, problem: str) -> FileProblem:
        return FileProblem(self._path, where, problem)

    def _name(self, name: str, where: str) -> str:
        if not _NAME.fullmatch(name):
            raise self._problem(
                where, "a name is 1 to 64 letters, digits and . _ @ + -, a letter or digit first"
            )
        return name

    def service(self, name: str, value: object) -> tuple[Access, ...]:
        where = f"services.{self._name(name, f'services.{name}')}"
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts:
            raise self._problem(where, 'expected "tcp/22" or a list like ["tcp/80", "udp/443"]')
        accesses: list[Access] = []
        for text in texts:
            access = self._access(text, where)
            if any(access.overlaps(other) for other in accesses):
                raise self._problem(where, f"{access} overlaps another port of the same service")
            accesses.append(access)
        return tuple(accesses)

    def _access(self, text: object, where: str) -> Access:
        if not isinstance(text, str):
            raise self._problem(where, f'expected text like "tcp/22", got {text!r}')
        try:
            return Access.parse(text)
        except Malformed as error:
            raise self._problem(where, str(error)) from None

    def role(self, name: str, value: object, services: dict[str, tuple[Access, ...]]) -> Role:
        where = f"roles.{self._name(name, f'roles.{name}')}"
        role = convert(value, _RoleTable, self._path, where)
        allows = tuple(
            self._allow(f"{where}.allow[{index}]", name, allow, services)
            for index, allow in enumerate(role.allow)
        )
        return Role(name, role.description, allows)

    def _allow(
        self, where: str, role: str, value: object, services: dict[str, tuple[Access, ...]]
    ) -> Allow:
        allow = convert(value, _AllowTable, self._path, where)
        lifetime_s = self._lifetime(allow.lifetime, f"{where}.lifetime")
        longest = allow.max_lifetime or allow.lifetime
        max_lifetime_s = self._lifetime(longest, f"{where}.max_lifetime")
        if max_lifetime_s < lifetime_s:
            raise self._problem(
                f"{where}.max_lifetime", f"shorter than the lifetime of {lifetime_s} s"
            )
        sessions = Sessions(allow.sessions)
        if allow.once and sessions is Sessions.CUT:
            raise self._problem(
                f"{where}.once",
                'a single connection cannot be cut with its hole; drop once or sessions = "cut"',
            )
        return Allow(
            path=where,
            role=role,
            services=tuple(allow.services),
            accesses=self._accesses(allow.services, services, where),
            sources=self._sources(allow.sources, where),
            lifetime_s=lifetime_s,
            max_lifetime_s=max_lifetime_s,
            sessions=sessions,
            once=allow.once,
        )

    def always_open(
        self, index: int, value: object, services: dict[str, tuple[Access, ...]]
    ) -> AlwaysOpenRule:
        where = f"always_open[{index}]"
        rule = convert(value, _AlwaysOpenTable, self._path, where)
        accesses = self._accesses(rule.services, services, where)
        return AlwaysOpenRule(
            where, tuple(rule.services), accesses, self._sources(rule.sources, where)
        )

    def _accesses(
        self, names: Iterable[str], services: dict[str, tuple[Access, ...]], where: str
    ) -> tuple[Access, ...]:
        accesses: dict[Access, None] = {}
        for name in names:
            if name not in services:
                known = ", ".join(sorted(services)) or "none"
                raise self._problem(f"{where}.services", f"no service {name!r}; known: {known}")
            accesses.update(dict.fromkeys(services[name]))
        return tuple(accesses)

    def _sources(self, texts: list[str] | None, where: str) -> Sources:
        return Sources(tuple(self._network(text, f"{where}.from") for text in texts or ()))

    def _network(self, text: str, where: str) -> Network:
        return parse_network(text, self._path, where)

    def _lifetime(self, text: str, where: str) -> int:
        try:
            lifetime_s = parse_duration(text)
        except ValueError as error:
            raise self._problem(where, lower_first(str(error))) from None
        if not 1 <= lifetime_s <= MAX_LIFETIME_S or lifetime_s != int(lifetime_s):
            raise self._problem(where, f"{text!r} is not a number of whole seconds from 1 on")
        return int(lifetime_s)

    def check_cut(self, policy: Policy) -> None:
        """One port cannot be cut for some and kept for others: the kernel cuts by port."""
        kept = [allow for allow in policy.allows if allow.sessions is Sessions.KEEP]
        for cut in (allow for allow in policy.allows if allow.sessions is Sessions.CUT):
            for keep in kept:
                shared = next(
                    (a for a in cut.accesses for b in keep.accesses if a.overlaps(b)), None
                )
                if shared is not None:
                    raise self._problem(
                        f"{cut.path}.sessions",
                        f"cuts the sessions of {shared}, which {keep.path} keeps; "
                        "say the same in both",
                    )
        self._check_always_open(policy)

    def _check_always_open(self, policy: Policy) -> None:
        for rule in policy.always_open:
            shared = next((a for a in rule.accesses for b in policy.cut if a.overlaps(b)), None)
            if shared is not None:
                raise self._problem(
                    rule.path, f"{shared} cannot be always open: its sessions end with their hole"
                )


def parse_network(text: str, path: Path, where: str) -> IPv4Network | IPv6Network:
    """A CIDR without host bits. Raises FileProblem."""
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise FileProblem(
            path, where, f"{text!r} is no network; write it like 10.20.0.0/16 or 2001:db8::/48"
        ) from None
    raise FileProblem(path, where, f"{text!r} has host bits set; write {network}")
