"""`spa-server sessions`: the connections that are open through holes, and the end of some."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from keys.console import ExitCode, Parsed, Trouble, note, print_json, say_lines, table
from keys.names import identity_name
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_server.commands import offers
from spa_server.commands.common import ACCESS, PROGRAM, ask, json_option
from spa_server.config import load_config


def _source(text: str) -> tuple[Address, int | None]:
    from spa_server.sessionlist import parse_source

    return parse_source(text)


@click.command()
@click.option(
    "--identity", type=Parsed("identity", identity_name, offers.identities), help="This identity's."
)
@click.option(
    "--key",
    metavar="KEY_ID",
    shell_complete=offers.keys,
    help="Those that this key may have begun.",
)
@click.option(
    "--grant",
    type=int,
    shell_complete=offers.grants,
    help="Those of one grant, by the number that 'holes' shows.",
)
@click.option(
    "--from", "source", metavar="IP[:PORT]", type=Parsed("address", _source), help="From there."
)
@click.option(
    "--to", type=ACCESS, shell_complete=offers.accesses, help="To this port, or these: tcp/5432."
)
@click.option("--cut", "cuts", is_flag=True, help="End them, whatever the policy says.")
@click.option("--all", "everything", is_flag=True, help="With --cut: all there are.")
@json_option
@click.pass_obj
def sessions(
    path: Path | None,
    *,
    identity: str | None,
    key: str | None,
    grant: int | None,
    source: tuple[Address, int | None] | None,
    to: Access | None,
    cuts: bool,
    everything: bool,
    as_json: bool,
) -> None:
    """The connections through holes: whose, from where, until when.

    A connection that came while several people held its hole may be any of theirs: all are named,
    and it is found by each of them. ENDS is when a connection to a service with sessions = "cut"
    ends unless somebody knocks again; other connections outlive their holes and their keys.

    --cut ends what is listed, now: sockets on this host are destroyed, other connections (to
    containers) get no packet through any more. Their holes stay open, so whoever still has one can
    connect again: 'close' closes it, 'spa-keys revoke' shuts its owner out.

    Exit code 1 where there is nothing to cut.

    \b
    Examples:
      spa-server sessions
      spa-server sessions --identity alice --to tcp/5432 --json
      spa-server sessions --cut --from 10.20.3.4:51324
      spa-keys revoke alice && spa-server sessions --cut --identity alice
    """
    about = {
        "identity": identity,
        "key": key,
        "grant": grant,
        "source": None if source is None else str(source[0]),
        "port": None if source is None else source[1],
        "to": None if to is None else str(to),
    }
    is_chosen = any(value is not None for value in about.values())
    if everything and not cuts:
        raise click.UsageError("--all goes with --cut; without it all are listed")
    if cuts and is_chosen == everything:
        raise click.UsageError(
            "say which to cut: --identity, --key, --grant, --from, --to; or --all"
        )
    config = load_config(path)
    if cuts:
        _cut(ask(config, do="cut", all=everything, **about)["cut"], as_json=as_json)
        return
    found = ask(config, do="sessions", **about)
    if as_json:
        print_json(found)
        return
    if found["sessions"]:
        header = ("IDENTITY", "FROM", "TO", "SINCE", "IN", "OUT", "GRANT", "ENDS")
        say_lines(table(header, [tuple(_row(each)) for each in found["sessions"]]))
    else:
        note(f"No {'such ' if is_chosen else ''}connection is open through a hole.")
    if found["left_off"]:
        note(f"{found['left_off']} more are not listed; narrow it down, say with --identity.")
    if not found["is_complete"]:
        note("Some may be missing: earlier ones are still being read, or there are too many.")


def _cut(count: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"cut": count})
    elif count:
        note(f"{count} cut.")
    if not count:
        raise Trouble("nothing to cut", f"see: {PROGRAM} sessions", exit_code=ExitCode.REFUSED)


def _row(found: dict[str, Any]) -> Iterator[str]:
    source = f"[{found['source']}]" if ":" in found["source"] else found["source"]
    yield found["identity"] or "?"
    yield f"{source}:{found['source_port']}"
    yield f"{found['target']} {found['access']}"
    yield found["since"]
    for way in ("in", "out"):
        octets = found[f"bytes_{way}"]
        yield "?" if octets is None else f"{octets:,}"
    grants = found["grants"] or ([] if found["grant"] is None else [found["grant"]])
    yield ", ".join(map(str, grants)) or "?"
    if found["state"] == "close":
        yield "reset"
    else:
        yield found["ends_at"] or ("now" if found["sessions"] == "cut" else "by itself")
