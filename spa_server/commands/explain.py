"""`spa-server explain`: one decision, told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

import click

from keys.console import ExitCode, Parsed, Trouble, print_json, say
from keys.enrolled import EnrolledKey
from keys.names import identity_name
from keys.when import parse_duration, parse_moment
from spa_protocol.access import Access, check_together
from spa_protocol.layout import MAX_LIFETIME_S, Address, is_plain
from spa_server import clock
from spa_server.commands.common import PATH, json_option, open_registry
from spa_server.commands.offers import accesses, identities
from spa_server.commands.offers import roles as roles_of_the_policy
from spa_server.config import Config, load_config
from spa_server.policy.model import Policy

_YEAR_9000_US: Final = 221_845_392_000_000_000  # a century's lifetime later is still a date


def _access(text: str) -> Access:
    access = Access.parse(text)
    check_together((access,))
    return access


def _address(text: str) -> Address:
    """One that a knock can come from."""
    address = ip_address(text)
    if is_plain(address):
        return address
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        raise ValueError(f"{text!r} is IPv4 written as IPv6; write {address.ipv4_mapped}")
    if isinstance(address, IPv6Address) and address.scope_id:
        raise ValueError(f"{text!r} has a scope; write {text.partition('%')[0]}")
    raise ValueError(f"{text!r} is not the address of one host")


def _lifetime(text: str) -> int:
    lifetime_s = parse_duration(text)
    if lifetime_s != int(lifetime_s) or not 1 <= lifetime_s <= MAX_LIFETIME_S:
        raise ValueError(f"{text!r} is not a number of whole seconds from 1 on")
    return int(lifetime_s)


def _moment(text: str) -> int:
    at_us = parse_moment(text, clock.now_us())
    if not 0 <= at_us < _YEAR_9000_US:
        raise ValueError(f"{text!r} is out of range; write a year from 1970 to 8999")
    return at_us


@dataclass(frozen=True, slots=True)
class _Standing:
    """What an identity comes with: its roles, whether it has a key, and when that one expires."""

    roles: frozenset[str]
    has_key: bool = True
    key_expires_at_us: int | None = None


@click.command()
@click.argument("identity", type=Parsed("identity", identity_name, identities))
@click.argument("access", type=Parsed("access", _access, accesses))
@click.option("--from", "source", type=Parsed("address", _address), required=True)
@click.option("--at", "at_us", type=Parsed("moment", _moment), help="When.  [default: now]")
@click.option(
    "--lifetime",
    type=Parsed("duration", _lifetime),
    default=0,
    help="What the knock asks for.  [default: what the policy gives]",
)
@click.option("--once", is_flag=True, help="As if for a single connection.")
@click.option("--declared", is_flag=True, help="As if the knock declares its source.")
@click.option("--touched", is_flag=True, help="As if signed by a security key that was touched.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    shell_complete=roles_of_the_policy,
    help="As if with this role, and with none of those in the registry. May be given again.",
)
@click.option(
    "--key-expires",
    "key_expires_at_us",
    type=Parsed("moment", _moment),
    help="As if with a key that expires then.  [default: the one that lives longest]",
)
@click.option("--policy", "policy_path", type=PATH, help="As if by the policy in this file.")
@json_option
@click.pass_obj
def explain(
    path: Path | None,
    identity: str,
    access: Access,
    source: Address,
    at_us: int | None,
    lifetime: int,
    once: bool,
    declared: bool,
    touched: bool,
    roles: tuple[str, ...],
    key_expires_at_us: int | None,
    policy_path: Path | None,
    as_json: bool,
) -> None:
    """Why a knock would be granted or refused, and for how long.

    Nothing is sent or opened; the policy is read from its file, and what is open already does not
    count. Where it is refused, each rule that came near is told with what failed, and the roles
    that would allow it. Exit code 1 where it is refused, unless it gets in without a knock.

    \b
    Examples:
      spa-server explain alice tcp/5432 --from 10.20.3.4
      spa-server explain alice tcp/5432 --from 10.20.3.4 --at 2026-12-24T09:00 --lifetime 8h
      spa-server explain alice tcp/22 --from 10.20.3.4 --role ops     as if she had that role
      spa-server explain alice tcp/22 --from 10.20.3.4 --policy new.toml --json
    """
    from spa_server.gatehouse import plan_observed
    from spa_server.policy.decide import Question
    from spa_server.policy.explaining import explain as explaining
    from spa_server.policy.explaining.fields import as_fields
    from spa_server.policy.explaining.words import tell
    from spa_server.policy.load import load_policy

    config = load_config(path)
    file = policy_path or config.policy
    policy = load_policy(file)
    asked_at_us = clock.now_us() if at_us is None else at_us
    standing = _as_if(roles, policy) if roles else _enrolled(config, identity, asked_at_us)
    expires_at_us = key_expires_at_us or standing.key_expires_at_us
    question = Question(
        standing.roles,
        source,
        access,
        asked_at_us,
        lifetime,
        once,
        None if expires_at_us is None else (expires_at_us - asked_at_us) / 1_000_000,
        declared=declared,
        touched=touched,
        holes=access.size,
        knocks=1,
    )
    explained = explaining.explain(
        policy,
        config.shared_sources,
        question,
        has_key=standing.has_key or key_expires_at_us is not None,
        observed=access in plan_observed(config, policy),
    )
    if as_json:
        print_json(as_fields(explained, identity, file))
    else:
        headline, *more = tell(explained, identity, file)
        say(headline)
        for sentence in more:
            say(f"  {sentence}")
    if not explained.gets_in:
        raise SystemExit(ExitCode.REFUSED)


def _as_if(roles: Sequence[str], policy: Policy) -> _Standing:
    for role in roles:
        if role not in policy.roles:
            known = ", ".join(sorted(policy.roles)) or "none"
            raise Trouble(
                f"the policy has no role {role!r}", f"known: {known}", exit_code=ExitCode.USAGE
            )
    return _Standing(frozenset(roles))


def _enrolled(config: Config, identity: str, at_us: int) -> _Standing:
    """As the registry has it. Of several keys the one that lives longest counts."""
    with open_registry(config) as registry:
        roles = registry.identities().get(identity)
        keys = registry.keys_of(identity)
    if roles is None:
        what = f"there is no identity {identity!r}"
        raise Trouble(what, "see: spa-keys list", exit_code=ExitCode.REFUSED)
    expiries = _expiries(keys, at_us)
    return _Standing(roles, bool(expiries), _latest(expiries))


def _expiries(keys: Iterable[EnrolledKey], at_us: int) -> list[int | None]:
    return [key.expires_at_us for key in keys if key.is_active(at_us)]


def _latest(expiries: Sequence[int | None]) -> int | None:
    """None is never, the latest of all."""
    ends = [at_us for at_us in expiries if at_us is not None]
    return max(ends, default=None) if len(ends) == len(expiries) else None
