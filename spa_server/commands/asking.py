"""`spa-server explain`, `audit`, `check` and `inspect`: they look, and change nothing."""

import json
from pathlib import Path
from typing import Any

import click

from keys import schema, serverkey
from keys.console import ExitCode, Parsed, Trouble, print_json, say
from keys.names import identity_name
from keys.when import parse_duration, parse_moment, rfc3339
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_server import clock
from spa_server.commands.common import (
    ACCESS,
    ADDRESS,
    DURATION,
    PATH,
    explained,
    json_option,
    open_registry,
)
from spa_server.config import load_config


@click.command()
@click.argument("identity", type=Parsed("identity", identity_name))
@click.argument("access", type=ACCESS)
@click.option("--from", "source", type=ADDRESS, required=True, help="The client's address.")
@click.option("--lifetime", type=DURATION, default=0.0, help="What the knock would ask for.")
@click.option("--once", is_flag=True, help="As if for a single connection.")
@json_option
@click.pass_obj
def explain(
    path: Path | None,
    identity: str,
    access: Access,
    source: Address,
    lifetime: float,
    once: bool,
    as_json: bool,
) -> None:
    """Why a knock would be granted or refused. Exit code 1 where it would be refused.

    Nothing is sent or opened; the policy is read from its file.
    """
    from spa_server.policy.decide import Question, decide
    from spa_server.policy.load import load_policy

    config = load_config(path)
    policy = load_policy(config.policy)
    with open_registry(config) as registry:
        known = registry.identities()
    if identity not in known:
        what = f"there is no identity {identity!r}"
        raise Trouble(what, "see: spa-keys list", exit_code=ExitCode.REFUSED)
    roles = known[identity]
    question = Question(roles, source, access, int(lifetime), once)
    decision = decide(policy, config.shared_sources, question)
    if as_json:
        print_json(
            {
                "identity": identity,
                "roles": sorted(roles),
                "source": str(source),
                "access": str(access),
                "granted": decision.granted,
                "reason": decision.code.sentence,
                "rule": decision.rule.path if decision.rule else None,
                "lifetime_s": decision.lifetime_s,
                "once": decision.once,
                "near": [{"rule": m.rule.path, "condition": m.condition} for m in decision.near],
            }
        )
    else:
        verb = "may" if decision.granted else "may not"
        has = f"roles: {', '.join(sorted(roles))}" if roles else "has no role"
        say(f"{identity} ({has}) {verb} reach {access} from {source}: {decision.sentence}")
    if not decision.granted:
        raise SystemExit(ExitCode.REFUSED)


def _since(text: str) -> int:
    """A duration back from now, or a moment."""
    now_us = clock.now_us()
    try:
        return now_us - round(parse_duration(text) * 1_000_000)
    except ValueError:
        return parse_moment(text, now_us)


@click.command()
@click.option("--since", type=Parsed("moment", _since), help="How far back: 2h, 2026-11-24T09:00.")
@click.option("--identity", help="Only this person's.")
@click.option("--event", help="Only this event (hole.opened) or group of events (knock).")
@click.option("--source", type=ADDRESS, help="Only from this address.")
@click.option("--access", type=ACCESS, help="Only to this protocol and port.")
@click.option("--denied", is_flag=True, help="Only what was refused or denied.")
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True)
@json_option
@click.pass_obj
def audit(
    path: Path | None,
    since: int | None,
    identity: str | None,
    event: str | None,
    source: Address | None,
    access: Access | None,
    denied: bool,
    limit: int,
    as_json: bool,
) -> None:
    """The record: who asked for what, what was opened, what was refused and why.

    \b
    Examples:
      spa-server audit --since 2h
      spa-server audit --denied --identity alice
      spa-server audit --event hole --json
    """
    from spa_server.audit import asking

    config = load_config(path)
    wanted = asking.Filter(
        since_us=since,
        identity=identity,
        event=event,
        source=str(source) if source else None,
        access=str(access) if access else None,
        denied=denied,
    )
    with explained(config.database):
        connection = schema.connect(config.database, read_only=True)
        lines = asking.ask(connection, wanted, limit=limit)
        connection.close()
    if as_json:
        print_json(lines)
        return
    for line in lines:
        say(f"{line['at'][:19]}Z  {line['event']:<21} {'; '.join(asking.sentences(line))}")


@click.command()
@json_option
@click.pass_obj
def check(path: Path | None, as_json: bool) -> None:
    """Looks for what does not fit together. Exit code 1 where something is found."""
    from spa_server import check as checks
    from spa_server.firewall.kernel import Gate
    from spa_server.policy.load import load_policy

    config = load_config(path)
    policy = load_policy(config.policy)
    serverkey.load(config.key)
    with open_registry(config) as registry:
        findings = list(checks.check_people(policy, registry, clock.now_us()))
    findings += checks.check_cut(policy, checks.own_ports())
    with explained(), Gate() as kernel:
        findings += checks.check_gate(config, is_loaded=kernel.is_loaded())
    if as_json:
        print_json(
            [
                {"name": f.name, "severity": f.severity, "what": f.what, "advice": f.advice}
                for f in findings
            ]
        )
    for finding in () if as_json else findings:
        say(f"{finding.severity}: {finding.name}: {finding.what}")
        say(f"  -> {finding.advice}")
    if findings:
        raise SystemExit(ExitCode.REFUSED)
    if not as_json:
        say("nothing found: policy, registry and gate fit together")


@click.command()
@click.argument("file", type=PATH)
@json_option
@click.pass_obj
def inspect(path: Path | None, file: Path, as_json: bool) -> None:
    """A dry run over a capture (pcap, pcapng): what would have been said to each knock in FILE.

    Nothing is opened, answered or recorded. The registry is taken as it is now.
    """
    from spa_server import inspection
    from spa_server.admission import Admission
    from spa_server.capture.file import read_capture
    from spa_server.directory import Directory
    from spa_server.policy.load import load_policy
    from spa_server.ruling import Terms

    config = load_config(path)
    terms = Terms(load_policy(config.policy), config.shared_sources, lambda _address: True)
    admission = Admission()
    with open_registry(config) as registry:
        directory = Directory(registry, serverkey.load(config.key), admission)
        directory.load(clock.now_us())
        datagrams = read_capture(file, config.knock_port)
        found = inspection.inspect(datagrams, directory, admission, terms, config.freshness_s)
        for one in found:
            _print_inspected(one, as_json)


def _print_inspected(one: Any, as_json: bool) -> None:
    datagram = one.datagram
    at = rfc3339(datagram.seen_at_us)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "at": at,
                    "source": str(datagram.source),
                    "target": str(datagram.target),
                    "verdict": one.verdict,
                    "kind": one.kind,
                    "identity": one.identity,
                    "key_id": one.key_id,
                    "decisions": list(one.decisions),
                }
            )
        )
        return
    who = one.identity or one.key_id or "a stranger"
    told = "; ".join(one.decisions)
    say(f"{at}  {datagram.source} -> {datagram.target}  {one.verdict:<13} {who}  {told}".rstrip())
