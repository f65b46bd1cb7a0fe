"""`spa-server inspect`: it looks, and changes nothing."""

from pathlib import Path
from typing import Any

import click

from keys.console import print_json, say
from keys.when import rfc3339
from spa_server import clock, hostkey
from spa_server.commands.common import PATH, json_option, open_registry
from spa_server.config import load_config


@click.command(
    epilog="\b\nExamples:\n"
    "  tcpdump -i eth0 -w knocks.pcap udp port 62201\n"
    "  spa-server inspect knocks.pcap",
)
@click.argument("file", type=PATH)
@json_option
@click.pass_obj
def inspect(path: Path | None, file: Path, as_json: bool) -> None:
    """A dry run: what would have been said to each knock in FILE.

    FILE is a capture, pcap or pcapng.
    Nothing is opened, answered or recorded. The registry is taken as it is now.
    """
    from spa_server import inspection
    from spa_server.addressing import Addressing
    from spa_server.admission import Admission
    from spa_server.capture.file import read_capture
    from spa_server.directory import Directory
    from spa_server.policy.load import load_policy
    from spa_server.ruling import Terms

    config = load_config(path)
    # A capture may be another host's: which addresses that had is not known here.
    addressing = Addressing(
        lambda _address: True, accepts_undeclared=config.accepts_undeclared_target
    )
    terms = Terms(load_policy(config.policy), config.shared_sources, addressing)
    admission = Admission()
    with open_registry(config) as registry:
        directory = Directory(registry, hostkey.load(config), admission)
        directory.load(clock.now_us())
        datagrams = read_capture(file, config.knock_port, config.carriers)
        found = inspection.inspect(datagrams, directory, admission, terms, config.freshness_s)
        for one in found:
            _print_inspected(one, as_json)


def _print_inspected(one: Any, as_json: bool) -> None:
    datagram = one.datagram
    at = rfc3339(datagram.seen_at_us)
    if as_json:
        print_json(
            {
                "at": at,
                "source": str(datagram.source),
                "target": str(datagram.target),
                "verdict": one.verdict,
                "kind": one.kind,
                "identity": one.identity,
                "key_id": one.key_id,
                "decisions": list(one.decisions),
            },
            indent=None,
        )
        return
    who = one.identity or one.key_id or "a stranger"
    told = "; ".join(one.decisions)
    say(f"{at}  {datagram.source} -> {datagram.target}  {one.verdict:<13} {who}  {told}".rstrip())
