"""The connections that are open through holes: whose, since when, how much, and until when."""

from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final

from keys.when import rfc3339
from spa_protocol.access import Access
from spa_protocol.layout import Address, unmapped
from spa_server import attribution, whois
from spa_server.attribution import Permitted
from spa_server.ctentry import Entry
from spa_server.ends import Ends
from spa_server.severance import IS_OVER, Severance

AT_ONCE: Final = 1000
"""How many one answer lists: to ask conntrack about each takes 10 us, and nothing else is done."""


_CONDITIONS: Final = ("identity", "key", "grant", "source", "port", "to")


class Choice:
    """Which connections are asked about; of several conditions all must hold.

    `about` has any of `identity`, `key`, `grant`, `source` (an address), `port` (of the source) and
    `to` (an access; several ports in one are fine). One that may be several people's is
    each one's. Raises ValueError or TypeError for what is none of these.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        given = {name: value for name, value in about.items() if value is not None}
        self.is_everything = given.keys().isdisjoint(_CONDITIONS)
        self._identity = given.get("identity")
        self._key = given.get("key")
        self._grant = int(given["grant"]) if "grant" in given else None
        self._source: Address | None = (
            ip_address(str(given["source"])) if "source" in given else None
        )
        self._port = int(given["port"]) if "port" in given else None
        self._to = Access.parse(str(given["to"])) if "to" in given else None

    def __contains__(self, of: Permitted) -> bool:
        return (
            self._identity in {None, of.identity, *of.ambiguous}
            and self._key in {None, of.key_id, *of.keys}
            and self._grant in {None, of.grant_id, *of.grants}
            and self._source in {None, of.flow.source}
            and self._port in {None, of.flow.source_port}
            and (self._to is None or self._to.overlaps(Access.parse(of.flow.access)))
        )


def parse_source(text: str) -> tuple[Address, int | None]:
    """An address, or one with a port: `10.0.0.9`, `[fd00::9]:5000`. Raises ValueError."""
    try:
        return unmapped(ip_address(text.strip().removeprefix("[").removesuffix("]"))), None
    except ValueError:
        return whois.parse_source(text)


def chosen(ends: Ends, choice: Choice) -> Iterator[tuple[bytes, Permitted]]:
    """The connections asked about, of each flow the latest; the oldest first."""
    latest = ((key, ends.live.at(key)[-1]) for key in ends.live)
    found = [(key, of) for key, of in latest if of in choice]
    return iter(sorted(found, key=lambda each: each[1].at_us))


def answer(
    ends: Ends,
    choice: Choice,
    severance: Severance,
) -> dict[str, Any]:
    """Those that are open and were not cut, `AT_ONCE` at most; how many more were not looked at.

    Raises NetlinkError.
    """
    tracker = ends.tracker
    found = [each for each in chosen(ends, choice) if not severance.is_severed(*each)]
    rows = []
    for key, of in found[:AT_ONCE]:
        entry = tracker.get(key) if tracker is not None else None
        if entry is not None and entry.state != IS_OVER:
            rows.append(_row(of, entry, severance))
    return {
        "sessions": rows,
        "left_off": max(0, len(found) - AT_ONCE),
        "is_complete": ends.is_complete and not ends.live.refused,
    }


def _row(of: Permitted, entry: Entry, severance: Severance) -> dict[str, Any]:
    flow = of.flow
    is_cut, until_us = severance.ends_with_hole(of), severance.held_until_us(of)
    return {
        "identity": of.identity,
        "ambiguous": list(of.ambiguous),
        "key_id": of.key_id,
        "keys": list(of.keys),
        "grant": of.grant_id,
        "grants": list(of.grants),
        "rule": of.rule,
        "source": str(flow.source),
        "source_port": flow.source_port,
        "target": str(flow.target),
        "access": flow.access,
        "since": rfc3339(of.at_us),
        "sessions": "cut" if is_cut else "keep",
        "held_until": None if until_us is None else rfc3339(until_us),
        "ends_at": rfc3339(until_us) if is_cut and until_us is not None else None,
        "state": entry.state or None,
        **attribution.figures_of(entry),
    }
