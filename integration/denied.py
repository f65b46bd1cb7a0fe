"""A guarded host that turns many packets away, and what its record says of how many."""

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from integration.lab import Host, Lab
from integration.site import Person, Site

# Sources as IPv4 headers from a program on the host: 198.18.0.0/15 is for tests of networks.
FLOOD: Final = """
import socket, struct, sys
target, port, first, count, copies = sys.argv[1], *map(int, sys.argv[2:])
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for _ in range(copies):
    for number in range(first, first + count):
        source = struct.pack(">I", (198 << 24 | 18 << 16) + number)
        head = struct.pack(">BBHHHBBH4s4s", 69, 0, 28, 0, 0, 64, 17, 0, source,
                           socket.inet_aton(target))
        out.sendto(head + struct.pack(">HHHH", 4000, port, 8, 0), (target, 0))
"""


@dataclass
class Scene:
    """The host, two beside it, and alice, who may everything."""

    site: Site
    server: Host
    client: Host
    other: Host
    alice: Person

    @classmethod
    def new(cls, lab: Lab) -> Self:
        """One whose daemon runs."""
        server, client, other = map(lab.host, ("server", "client", "other"))
        # Nobody answers to a source that is not there.
        server.sysctl(ipv4__conf__all__rp_filter=0, ipv4__conf__lan__rp_filter=0)
        site = Site(lab, server)
        alice = site.enrol("alice", "ops")
        site.apply_gate()
        site.start()
        return cls(site, server, client, other, alice)

    def syns(self, source: Host, count: int, port: int) -> None:
        """So many SYNs of one host to one port, each from another source port."""
        with source.new_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as out:
            for number in range(count):
                syn = struct.pack(">HHIIBBHHH", 20_000 + number, port, 1, 0, 0x50, 2, 1000, 0, 0)
                out.sendto(syn, (str(self.server.v4), 0))

    def flood(self, count: int, port: int, copies: int = 1) -> None:
        """UDP packets of so many sources, each so many times."""
        flood(self.client, self.server, count, port, copies)

    def denied(self, source: Host, port: int) -> int:
        """For how many packets of one source to one TCP port the denials' lines stand."""
        wanted = (str(source.v4), f"tcp/{port}")
        lines = [line for line in self.lines() if (line["source"], line["access"]) == wanted]
        return sum(stands_for(line) for line in lines)

    def lines(self) -> list[dict[str, Any]]:
        """What `audit --denied` shows."""
        return self.site.audit("--denied", "--event", "connection.denied", "--limit", "100000")

    def total(self) -> int:
        """Of all denials that were entered, also in lines that were shed."""
        return int(json.loads(self.site.server("top", "--json").stdout)["denied"])


def flood(source: Host, target: Host, count: int, port: int, copies: int = 1) -> None:
    """UDP packets from `source` under so many forged addresses, each so many times."""
    arguments = [str(target.v4), *map(str, (port, 0, count, copies))]
    source.run_python(FLOOD, *arguments, timeout=120)


def stands_for(line: Mapping[str, Any]) -> int:
    """How many packets a line of the denials tells of."""
    detail = line["detail"]
    return int(detail.get("count", detail.get("further", 0) + ("source_port" in detail)))
