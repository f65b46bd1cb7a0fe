"""Connections that no identity stands behind, told as comments of a suggested policy.

What was let through only because a gate observes comes without a name: whether it is to knock from
now on, or cannot, is for a person to say.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Any, Final

from keys.text import printable
from keys.tomlfile import string
from keys.when import rfc3339
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_server.policy.difference.cells import networks_of, stretches_of
from spa_server.policy.difference.spans import merged
from spa_server.policy.difference.words import listed
from spa_server.policy.model import Network, Policy, Sources
from spa_server.policy.suggest.naming import Services
from spa_server.policy.suggest.prefixes import seen_in, spans_of
from spa_server.policy.suggest.usage import Nameless, access_of, counted

_ACCESSES_TOLD: Final = 20
_NETWORKS_OFFERED: Final = 8
_SOURCES_TOLD: Final = 8


@dataclass(frozen=True)
class Unnamed:
    """Connections to one access: how many, from which addresses, and when the last one was.

    `text` is the access as the record has it; `access` is None where it is none that can be
    knocked for. `sources` have their counts, the most frequent first.
    """

    text: str
    access: Access | None
    sources: tuple[tuple[str, int], ...]
    last_us: int

    @property
    def count(self) -> int:
        """All of them."""
        return sum(count for _, count in self.sources)

    @cached_property
    def networks(self) -> list[str]:
        """The networks of the sources."""
        addresses = [a for text, _ in self.sources if (a := _address(text)) is not None]
        whole = [n for text, _ in self.sources if (n := _network(text)) is not None]
        stretches = [span for network in whole for span in stretches_of((network,))]
        spans = merged([*spans_of(seen_in(addresses, Sources())), *stretches])
        return [str(network) for network in networks_of(spans)]

    @property
    def sentence(self) -> str:
        """`300 connections from 10.9.0.5 to tcp/9100`."""
        sources = [source for source, _ in self.sources]
        where = listed(sources) if len(sources) <= _SOURCES_TOLD else f"{len(sources):,} addresses"
        return printable(f"{counted(self.count, 'connection')} from {where} to {self.text}")

    def value(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "access": self.text,
            "count": self.count,
            "last_at": rfc3339(self.last_us),
            "sources": dict(self.sources),
            "networks": self.networks,
        }


def by_access(found: Iterable[Nameless]) -> list[Unnamed]:
    """The most frequent access first. What has no access was counted beyond a limit."""
    rows: dict[str, list[Nameless]] = {}
    for row in found:
        rows.setdefault(row.access or "", []).append(row)
    told = [
        Unnamed(
            text,
            access_of(text),
            _counted(of_access),
            max(row.last_us for row in of_access),
        )
        for text, of_access in rows.items()
    ]
    return sorted(told, key=lambda each: (-each.count, each.text))


def _counted(rows: Iterable[Nameless]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for row in rows:
        source = row.source or "somewhere"
        counts[source] = counts.get(source, 0) + row.count
    return tuple(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


class Offers:
    """Comments for a policy file, with always_open rules that only need to be uncommented.

    `offered` are the accesses whose services the file is to name.
    """

    def __init__(self, policy: Policy, services: Services, unnamed: Sequence[Unnamed]) -> None:
        self._policy = policy
        self._services = services
        self._unnamed = [each for each in unnamed if each.text]
        self._beyond = sum(each.count for each in unnamed if not each.text)
        self.offered = [
            each.access for each in self._told if each.access and self._is_offered(each)
        ]

    @property
    def _told(self) -> list[Unnamed]:
        return self._unnamed[:_ACCESSES_TOLD]

    def lines(self) -> Iterator[str]:
        """For each access a question, and where it can be answered by a rule, that rule."""
        for each in self._told:
            last = f"the last {rfc3339(each.last_us)[:10]}"
            yield f"# {each.sentence} would be denied, {last}: a role, or always_open?"
            if each.access is not None and self._is_offered(each):
                yield "# [[always_open]]"
                yield f"# services = [{string(self._services.alone(each.access))}]"
                yield f"# from = [{', '.join(map(string, each.networks))}]"
            yield ""
        more = self._unnamed[_ACCESSES_TOLD:]
        if more:
            count = sum(each.count for each in more)
            connections = counted(count, "connection")
            yield f"# And {connections} to {counted(len(more), 'other port')}: see --json."
            yield ""
        if self._beyond:
            yield f"# And {self._beyond:,} more, whose ports were not kept."
            yield ""

    def _is_offered(self, each: Unnamed) -> bool:
        access = each.access
        if access is None or any(access.overlaps(cut) for cut in self._policy.cut):
            return False
        return 0 < len(each.networks) <= _NETWORKS_OFFERED


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> Network | None:
    try:
        return ip_network(text) if "/" in text else None
    except ValueError:
        return None
