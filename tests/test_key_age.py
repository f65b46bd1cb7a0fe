"""Keys that end by their age, and keys that end another's life: the rulings and the reception."""

from dataclasses import replace
from pathlib import Path

import pytest

from keys.tomlfile import FileProblem, parse
from spa_protocol.layout import MAX_MESSAGE
from spa_protocol.reason import Code, Status
from spa_server import ruling
from spa_server.addressing import Addressing
from spa_server.policy.load import parse_policy
from spa_server.policy.model import Limits, Policy
from spa_server.ruling import Owner, Terms
from tests.world import NOW_US, SECOND, datagram, knock_at

DAY = 86_400 * SECOND
POLICY = """
[services]
ssh = "tcp/22"
[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
max_lifetime = "8h"
[roles.job]
[roles.job.limits]
max_key_age = "1000d"
[[roles.job.allow]]
services = ["ssh"]
[limits]
max_key_age = "365d"
"""


def policy(text: str = POLICY) -> Policy:
    path = Path("policy.toml")
    return parse_policy(parse(text, path), path)


def ruled(owner: Owner, lifetime_s: int = 0, of: Policy | None = None) -> ruling.Ruling:
    terms = Terms(of or policy(), (), Addressing(lambda _: True))
    return ruling.rule(knock_at(lifetime_s=lifetime_s), datagram(b""), owner, terms, NOW_US)


def owner(age_days: float, *, role: str = "ops", expires_in_days: float | None = None) -> Owner:
    expires = None if expires_in_days is None else NOW_US + round(expires_in_days * DAY)
    return Owner("key", "alice", frozenset({role}), expires, NOW_US - round(age_days * DAY))


def test_the_limit_is_read() -> None:
    assert policy().limits.said == Limits(max_key_age_s=365 * 86_400)
    assert policy().ages_keys
    assert not policy().says_limits
    assert policy().limits_of(["job"]).max_key_age_s == 1000 * 86_400


@pytest.mark.parametrize("age", ['"soon"', "365", '"0s"'])
def test_what_is_no_age(age: str) -> None:
    with pytest.raises(FileProblem, match=r"limits\.max_key_age"):
        policy(POLICY.replace('"365d"', age))


@pytest.mark.parametrize(
    ("who", "status", "message"),
    [
        (owner(0), Status.GRANTED, ""),
        (owner(350), Status.GRANTED, ""),
        (owner(355), Status.GRANTED, "your key ends in 10 days; get a new one: spa-keys rotate"),
        (owner(364.5), Status.GRANTED, "your key ends in 12 h; get a new one: spa-keys rotate"),
        (
            owner(364.99),
            Status.GRANTED,
            "your key ends in less than an hour; get a new one: spa-keys rotate",
        ),
        (owner(365), Status.REFUSED, "your key is too old; get a new one: spa-keys rotate"),
        (owner(999), Status.REFUSED, "your key is too old; get a new one: spa-keys rotate"),
        (owner(400, role="job"), Status.GRANTED, ""),
        (owner(80, expires_in_days=9), Status.GRANTED, ""),
        (
            owner(85, expires_in_days=5),
            Status.GRANTED,
            "your key ends in 5 days; get a new one: spa-keys rotate",
        ),
        (replace(owner(999), enrolled_at_us=None), Status.GRANTED, ""),
    ],
)
def test_a_key_ages(who: Owner, status: Status, message: str) -> None:
    found = ruled(who)
    assert (found.status, found.message) == (status, message)
    assert len(message) <= MAX_MESSAGE
    if status is Status.REFUSED:
        assert [decision.code for _, decision in found.decisions] == [Code.EXPIRED]


def test_no_hole_outlives_its_key() -> None:
    found = ruled(owner(365 - 1 / 24), lifetime_s=8 * 3600)
    assert [decision.lifetime_s for _, decision in found.decisions] == [3600]


def test_a_refusal_goes_before_a_warning() -> None:
    found = ruled(owner(360, role="nobody"))
    assert found.status is Status.REFUSED
    assert "ends in" not in found.message


def test_without_a_limit_nothing_ages() -> None:
    of = policy(POLICY.replace('max_key_age = "365d"', "").replace('max_key_age = "1000d"', ""))
    assert not of.ages_keys
    assert ruled(owner(9999), of=of).message == ""
