"""A translation as the text of a policy, with the tests that show what it allows: spa-policy(5)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from keys.text import printable
from keys.tomlfile import quoted, string
from keys.when import rfc3339
from spa_protocol.access import Access, Protocol
from spa_server.fwknop import values
from spa_server.fwknop.translation import Rule, TranslatedRole, Translation

_SECOND_US: Final = 1_000_000
_HEAD: Final = """\
# Made of {file} of fwknop by spa-server import-fwknop. It allows what fwknopd
# opened on this host, and no more (DESTINATION apart); what is not carried over was told with it.
# Read it, then: spa-server policy test FILE
"""
_EMPTY: Final = """\
# Allows nothing: {why}.
# Write what it needs, and take out its test below:
# [[roles.{name}.allow]]
# services = ["ssh"]            # and in [services]: ssh = "tcp/22"
"""


def policy_text(translation: Translation, file: Path) -> str:
    """The whole file. `file` is the access.conf, for the head."""
    parts = [_HEAD.format(file=printable(str(file)))]
    accesses = {
        a: None for role in translation.roles if not role.why_empty for a in role.rule.accesses
    }
    if accesses:
        parts.append("\n".join(["[services]", *map(_service, accesses), ""]))
    parts += map(_role, translation.roles)
    for role in translation.roles:
        parts += ["\n".join(_test(role, case)) for case in _cases(role)]
    return "\n".join(parts)


def invitation(person: str, roles: tuple[str, ...]) -> str:
    """The command that invites somebody."""
    return " ".join(["spa-keys invite", person, *(f"--role {role}" for role in roles)])


def _service(access: Access) -> str:
    return f"{_name(access)} = {string(str(access))}"


def _name(access: Access) -> str:
    return str(access).replace("/", "-")


def _role(role: TranslatedRole) -> str:
    name = quoted(role.name)
    lines = [
        f"# {role.place}: for {', '.join(role.people)}",
        f"[roles.{name}]",
        f"description = {string(f'fwknop, {role.place}'[-200:])}",
    ]
    if role.why_empty:
        usual = [f"# {line}" for line in _allow(role.rule)][1:]
        text = _EMPTY.format(why=role.why_empty, name=name)
        return "\n".join([*lines, text + "\n".join(usual), ""])
    return "\n".join([*lines, f"[[roles.{name}.allow]]", *_allow(role.rule), ""])


def _allow(rule: Rule) -> Iterator[str]:
    yield f"services = [{', '.join(string(_name(access)) for access in rule.accesses)}]"
    anywhere = values.EVERYWHERE in rule.sources
    more = "     # fwknop has no IPv6; leave this out for both" if anywhere else ""
    yield f"from = [{', '.join(string(str(network)) for network in rule.sources)}]{more}"
    yield f'lifetime = "{rule.lifetime_s}s"'
    yield f'max_lifetime = "{rule.max_lifetime_s}s"'
    if rule.declared:
        yield 'require = ["declared-source"]'
    if rule.expires_at_us is not None:
        yield f"expires = {rfc3339(rule.expires_at_us)}"


@dataclass(frozen=True, slots=True)
class _Case:
    """What a test asks, and whether it is allowed."""

    name: str
    access: Access
    source: str
    is_allowed: bool = False
    declared: bool = False
    at_us: int | None = None


def _cases(role: TranslatedRole) -> Iterator[_Case]:
    """One for each port, and one for each thing that keeps somebody out."""
    rule = role.rule
    if role.why_empty:
        yield _Case("reaches nothing", Access.parse("tcp/22"), "192.0.2.1")
        return
    ends_us = rule.expires_at_us
    before_us = None if ends_us is None else max(ends_us - _SECOND_US, 0)
    usual = _Case(
        "",
        rule.accesses[0],
        str(values.address_in(rule.sources[0])),
        declared=rule.declared,
        at_us=before_us,
    )
    for access in rule.accesses:
        yield replace(usual, name=f"reaches {access}", access=access, is_allowed=True)
    shut = _shut(rule)
    if shut is not None:
        yield replace(usual, name=f"does not reach {shut}", access=shut)
    outside = values.address_outside(rule.sources)
    if outside is not None:
        yield replace(usual, name=f"is not let in from {outside}", source=str(outside))
    if rule.declared:
        yield replace(usual, name="has to declare its source", declared=False)
    if ends_us is not None:
        yield replace(usual, name="comes to an end", at_us=ends_us)


def _test(role: TranslatedRole, case: _Case) -> Iterator[str]:
    yield "[[tests]]"
    yield f"name = {string(f'{role.name} {case.name}')}"
    yield f"role = {string(role.name)}"
    yield f"access = {string(str(case.access))}"
    yield f"from = {string(case.source)}"
    if case.at_us is not None:
        yield f"at = {rfc3339(case.at_us)}"
    if case.declared:
        yield "declared = true"
    yield f'expect = "{"allow" if case.is_allowed else "deny"}"'
    yield ""


def _shut(rule: Rule) -> Access | None:
    """A port that the rule does not open: ssh's, where it is not among them."""
    opened = frozenset(rule.accesses)
    ports = (Access(Protocol.TCP, port, port) for port in (22, *range(1, 2048)))
    return next((access for access in ports if access not in opened), None)
