"""What a decision of the policy costs: 1,000 rules, 10,000 identities, and nothing else.

python -m benchmarks.deciding [DECISIONS]

A tenth of the rules has a schedule and a requirement; a third is for anywhere, the others for eight
networks each. Printed are medians of five runs: microseconds for each decision, and what an Ed25519
verification, which every decision follows, takes in the same process.
"""

import random
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.limits import verifications_per_s
from spa_protocol.access import Access
from spa_server.policy.decide import Question, decide
from spa_server.policy.load import parse_policy
from spa_server.policy.model import Policy

RULES: Final = 1_000
IDENTITIES: Final = 10_000
_ROLES: Final = 200
_SERVICES: Final = 300
_RUNS: Final = 5
_NOON_US: Final = 1_795_518_000_000_000  # 2026-11-24 11:00 UTC, a Tuesday


def policy(chosen: random.Random, *, in_one_role: bool = False) -> Policy:
    """As many rules, in many roles or all in one."""
    services = {f"s{n}": f"tcp/{1000 + 20 * n}-{1009 + 20 * n}" for n in range(_SERVICES)}
    roles: dict[str, Any] = {}
    for n in range(RULES):
        allow: dict[str, Any] = {
            "services": [f"s{(n * 7) % _SERVICES}", f"s{(n * 7 + 1) % _SERVICES}"],
            "lifetime": f"{10 + n}s",
        }
        if n >= _SERVICES:
            allow["from"] = [f"10.{(n + 11 * k) % 250}.0.0/16" for k in range(8)]
        if n % 10 == 0:
            allow |= {"when": "Mo-Fr 08:00-18:00; PH off", "country": "DE"}
            allow |= {"timezone": "Europe/Berlin", "require": ["declared-source"]}
        name = "all" if in_one_role else f"role{chosen.randrange(_ROLES)}"
        roles.setdefault(name, {"allow": []})["allow"].append(allow)
    return parse_policy({"services": services, "roles": roles}, Path("policy.toml"))


def questions(chosen: random.Random, of: Policy, count: int) -> list[Question]:
    """Of people with one to five roles each; half ask for what a role of theirs is about."""
    names = sorted(of.roles)
    people = [
        frozenset(chosen.sample(names, min(len(names), chosen.randint(1, 5))))
        for _ in range(IDENTITIES)
    ]
    asked = []
    for n in range(count):
        roles = chosen.choice(people)
        allow = chosen.choice(of.roles[chosen.choice(sorted(roles))].allows)
        port = chosen.choice(allow.accesses).first if n % 2 else chosen.randint(1, 65_535)
        source = IPv4Address(f"10.{chosen.randrange(250)}.1.{chosen.randrange(1, 255)}")
        access = Access.parse(f"tcp/{port}")
        asked.append(Question(roles, source, access, _NOON_US + n, declared=True))
    return asked


def cost_us(of: Policy, asked: list[Question]) -> tuple[float, float]:
    """Microseconds for a decision, and the share that was granted."""
    granted = 0
    began_s = time.perf_counter()
    for question in asked:
        granted += decide(of, (), question).granted
    return (time.perf_counter() - began_s) / len(asked) * 1e6, granted / len(asked)


def main(count: int) -> None:
    """Prints the figures."""
    shapes: dict[str, Callable[[random.Random], Policy]] = {
        f"{RULES:,} rules in {_ROLES} roles": policy,
        f"{RULES:,} rules in one role": lambda chosen: policy(chosen, in_one_role=True),
    }
    for name, shape in shapes.items():
        chosen = random.Random(4)
        of = shape(chosen)
        asked = questions(chosen, of, count)
        runs = [cost_us(of, asked) for _ in range(_RUNS)]
        took_us = median(took for took, _ in runs)
        print(f"{name}, {IDENTITIES:,} identities: {took_us:.1f} us ({runs[0][1]:.0%} granted)")
    print(f"an Ed25519 verification: {1e6 / verifications_per_s(0.5):.1f} us")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
