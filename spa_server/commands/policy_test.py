"""`spa-server policy test`: a policy's own tests, run before it is in force."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from keys.console import ExitCode, Trouble, note, print_json, say
from keys.when import rfc3339
from spa_server.commands.common import PATH, json_option, open_registry
from spa_server.config import Config, load_config
from spa_server.policy.model import PolicyTest
from spa_server.policy.testing import Result, RolesOf, RolesUnknown, Tested, run_tests

_LABELS: Final = {Result.PASSED: "ok     ", Result.FAILED: "FAILED ", Result.SKIPPED: "skipped"}
_HOW_TO_WRITE_ONE: Final = """\
there are no tests in {file}; write one for each thing that matters, like

[[tests]]
name = "a DBA gets in at work, from the office"
role = "dba"                          # or identity = "alice"
access = "tcp/5432"
from = "10.20.3.4"
at = 2026-11-24T09:00:00+01:00        # where a rule has a time
expect = "allow"                      # or "deny"
"""


@click.command()
@click.argument("file", type=PATH, required=False)
@click.option("--no-registry", is_flag=True, help="Skip the tests that name an identity.")
@json_option
@click.pass_obj
def test(path: Path | None, file: Path | None, no_registry: bool, as_json: bool) -> None:
    """Runs the tests that stand in a policy.

    The policy is FILE, or the one of the configuration.

    Nothing is put in force. A test of an identity goes by its roles in the registry. Exit code 1
    where one fails, 4 where the policy cannot be read.

    \b
    Examples:
      spa-server policy test
      spa-server policy test new-policy.toml
      spa-server policy test policy.toml --no-registry        where there is no registry, as in CI
    """
    from spa_server.policy.load import load_policy

    config = load_config(path)
    file = file or config.policy
    policy = load_policy(file)
    roles_of = None if no_registry else _roles_of(config)
    tested = run_tests(policy, file, config.shared_sources, roles_of)
    counts = Counter(one.result for one in tested)
    if as_json:
        print_json(_fields(file, tested, counts))
    else:
        _tell(file, tested, counts)
    if counts[Result.FAILED]:
        raise SystemExit(ExitCode.REFUSED)


def _roles_of(config: Config) -> RolesOf:
    """The registry's roles, read once. Where it cannot be read, only the tests that ask fail."""
    try:
        with open_registry(config) as registry:
            known = registry.identities()
    except Trouble as trouble:
        why = f"{trouble.message}; such tests can be skipped: --no-registry"

        def unknown(_identity: str) -> frozenset[str]:
            raise RolesUnknown(why)

        return unknown
    return lambda identity: known.get(identity, frozenset())


def _tell(file: Path, tested: Sequence[Tested], counts: Counter[Result]) -> None:
    if not tested:
        for line in _HOW_TO_WRITE_ONE.format(file=file).splitlines():
            note(line)
        return
    for one in tested:
        why = "" if one.result is Result.PASSED else f": {one.sentence}"
        say(f"{_LABELS[one.result]}  {_called(one.test)}{why}")
    parts = [f"{counts[result]} {result.value}" for result in Result if counts[result]]
    say(f"{file}: {', '.join(parts)}")


def _called(test: PolicyTest) -> str:
    named = "" if test.name == test.path else f" {test.name}"
    return f"{test.path}{named} (line {test.line})" if test.line else f"{test.path}{named}"


def _fields(file: Path, tested: Sequence[Tested], counts: Counter[Result]) -> dict[str, Any]:
    return {
        "policy": str(file),
        **{result.value: counts[result] for result in Result},
        "tests": [_test_fields(one) for one in tested],
    }


def _test_fields(one: Tested) -> dict[str, Any]:
    test, decision = one.test, one.decision
    rule = decision.rule if decision else None
    return {
        "test": test.path,
        "line": test.line or None,
        "name": test.name,
        "role": test.role,
        "identity": test.identity,
        "access": str(test.access),
        "from": str(test.source),
        "at": None if test.at_us is None else rfc3339(test.at_us),
        "expect": _word(test.is_allowed),
        "result": one.result.value,
        "came": None if decision is None else _word(decision.granted),
        "rule": rule.path if rule else None,
        "rule_line": (rule.line or None) if rule else None,
        "why": one.sentence,
    }


def _word(is_allowed: bool) -> str:
    return "allow" if is_allowed else "deny"
