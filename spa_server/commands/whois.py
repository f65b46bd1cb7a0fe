"""`spa-server whois`: who is behind a connection that is open now."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from keys.console import ExitCode, Parsed, Trouble, note, print_json, say
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_server.commands.common import PROGRAM, ask, json_option
from spa_server.config import Config, load_config


def _source(text: str) -> tuple[Address, int]:
    from spa_server.whois import parse_source

    return parse_source(text)


def _access(text: str) -> Access:
    from spa_server.whois import parse_access

    return parse_access(text)


@click.command()
@click.argument("source", metavar="IP:PORT", type=Parsed("address and port", _source))
@click.option("--to", type=Parsed("access", _access), help="The port it goes to: tcp/5432.")
@json_option
@click.pass_obj
def whois(path: Path | None, source: tuple[Address, int], to: Access | None, as_json: bool) -> None:
    """Who is behind a connection that is open now.

    The person, key, rule, since when, how much.

    IP:PORT is the end of the connection that is not this host, as 'ss' and a service's own log show
    it. Where several persons share the address, all who may be behind it are named.

    Exit code 1 where nobody is known; then it says what lets the connection in. That takes root.

    \b
    Examples:
      spa-server whois 10.20.3.4:51324
      spa-server whois '[2001:db8::9]:51324' --to tcp/5432
      spa-server whois 10.20.3.4:51324 --json
    """
    config = load_config(path)
    address, port = source
    asked = {"source": str(address), "port": port, "to": None if to is None else str(to)}
    found = ask(config, do="whois", **asked)
    if not found["connections"]:
        found["why"] = _why(config, address, port, to)
    if as_json:
        print_json(found)
    else:
        _print(found)
    if not found["connections"]:
        hint = "" if as_json else f"see: {PROGRAM} audit --source {address} --event connection"
        raise Trouble(found["why"], hint, exit_code=ExitCode.REFUSED)


def _print(found: dict[str, Any]) -> None:
    for number, connection in enumerate(found["connections"]):
        if number:
            say("")
        for name, value in _lines(connection):
            say(f"{name:<10}  {value}")
    for remark in found["remarks"]:
        note(f"{remark[:1].upper()}{remark[1:]}.")


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    source = f"[{found['source']}]" if ":" in found["source"] else found["source"]
    state = f", {found['state']}" if found["state"] else ""
    yield "from", f"{source}:{found['source_port']}"
    yield "to", f"{found['target']} {found['access']}{state}"
    if found["ambiguous"]:
        yield "identity", f"one of {found['identity']}: they share the address"
        yield "latest", f"key {found['key_id']}, rule {found['rule']}, grant {found['grant']}"
    else:
        yield "identity", found["identity"] or "nobody: no hole was held open for it"
        if found["key_id"]:
            yield "key", found["key_id"]
            yield "rule", found["rule"]
            yield "grant", str(found["grant"])
    yield "since", found["since"]
    yield "hole", f"open until {found['open_until']}" if found["open_until"] else "closed"
    for name, way in (("received", "in"), ("sent", "out")):
        octets, packets = found[f"bytes_{way}"], found[f"packets_{way}"]
        is_counted = octets is not None and packets is not None
        yield name, f"{octets:,} bytes, {packets:,} packets" if is_counted else "not counted"


def _why(config: Config, address: Address, port: int, to: Access | None) -> str:
    """Why nobody is known: looked up here, so that the daemon need not walk conntrack's table."""
    from spa_server import conntrack
    from spa_server.netlink import NetlinkError

    try:
        entries = conntrack.find(address, port)
        ours = conntrack.find(address, port, answering=True)
    except NetlinkError:
        return "no knock that is known here opened it; as root it can be said what did"
    for entry in entries:
        flow = entry.flow
        if flow is not None and (to is None or str(to) == flow.access):
            asked = {"source": str(address), "port": port, "to": flow.access}
            found = ask(config, do="whois", target=str(flow.target), **asked)
            return f"{flow.access} is connected; {found.get('why', 'ask again')}"
    if any(entry.flow is not None for entry in ours):
        return f"this host itself began the connection to {address} port {port}"
    return f"no connection from {address} port {port} is open{'' if to is None else f' to {to}'}"
