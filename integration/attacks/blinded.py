"""A scan of 60 ports hides behind junk, so that neither record nor anomaly watcher shows it.

The attacker wants to know which ports of a host answer, and nobody to know who asked. While one
machine scans, another sends 100 packets a second to ports without end: first from its own address,
then under a forged one for each packet, which costs no more.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from integration.attacks import Figure
from integration.lab import Host, Lab, wait_until
from integration.site import Site

PORTS: Final = 60

# For six seconds: 100 packets a second of junk, or every tenth of a second a packet of the scan.
_SENDER: Final = """
import socket, struct, sys, time
target, own, kind = sys.argv[1:]
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
def send(source, port):
    ends = source + socket.inet_aton(target)
    head = struct.pack(">BBHHHBBH8s", 69, 0, 28, 0, 0, 64, 17, 0, ends)
    out.sendto(head + struct.pack(">HHHH", 4000, port, 8, 0), (target, 0))
began = time.monotonic()
for number in range(600):
    time.sleep(max(0, began + number / 100 - time.monotonic()))
    forged = struct.pack(">I", (198 << 24 | 18 << 16) + number)
    if kind == "scan" and number % 10 == 0:
        send(socket.inet_aton(own), 1000 + number // 10)
    elif kind != "scan":
        send(forged if kind == "forged" else socket.inet_aton(own), 10_000 + number)
"""


def run(lab: Lab) -> Iterator[Figure]:
    """Carries it out twice; the figures are ports of the scan that the record names, and alarms."""
    server, junk, first, second = map(lab.host, ("server", "junk", "first", "second"))
    server.sysctl(ipv4__conf__all__rp_filter=0, ipv4__conf__lan__rp_filter=0)
    site = Site(lab, server)
    site.apply_gate()
    site.start()
    for how, scanner in (("one address", first), ("forged addresses", second)):
        beside = junk.start(_command(site, junk, how))
        time.sleep(0.5)
        _send(site, scanner, "scan")
        beside.process.wait(30)
        yield _ports(site, scanner, how)
        yield _alarms(site, scanner, how)


def _command(site: Site, host: Host, how: str) -> list[str]:
    kind = "forged" if how.startswith("forged") else "own"
    return ["python3", "-c", _SENDER, str(site.host.v4), str(host.v4), kind]


def _send(site: Site, host: Host, kind: str) -> None:
    host.run_python(_SENDER, str(site.host.v4), str(host.v4), kind, timeout=30)


def _ports(site: Site, scanner: Host, how: str) -> Figure:
    def shown() -> set[str]:
        lines = site.audit("--denied", "--source", str(scanner.v4), "--limit", "1000")
        return {line["access"] for line in lines if line["access"]}

    with suppress(TimeoutError):
        wait_until(lambda: len(shown()) >= PORTS - 1, within_s=3)
    ports = len(shown())
    # Between forged sources the first packet of a source may have no line of its own.
    what = f"ports of {PORTS} that were scanned are in the record, behind junk of {how}"
    return Figure(what, ports, ports >= PORTS - 1)


def _alarms(site: Site, scanner: Host, how: str) -> Figure:
    def alarms() -> int:
        return sum(line["source"] == str(scanner.v4) for line in site.events("anomaly"))

    with suppress(TimeoutError):
        wait_until(alarms, within_s=3)
    return Figure(f"anomalies that name the scanner, behind junk of {how}", alarms(), alarms() > 0)
