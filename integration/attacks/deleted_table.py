"""The gate's table is deleted, again and again, under a storm of connections from strangers.

Whoever does it has root for a moment, by a mistake (`nft flush ruleset` in somebody's script) or by
malice, and wants those outside to come in before the daemon has heard of it; or while the daemon is
stopped, when it hears of nothing. Then: who of them has got in, who still talks, and does the
record know?
"""

import os
import signal
import time
from collections.abc import Iterator

from integration.attacks import Figure
from integration.lab import Host, Lab, Reach, Running
from integration.site import Site

PORT = 22
DELETIONS = 20
_BETWEEN_S = 0.25

ANOTHER_FIREWALL = """
table inet of_the_host {
  chain input { type filter hook input priority 10; ct state established counter; }
}
"""

# Connects without end, a few hundred at a time, and keeps what it gets.
STORM = """
import errno, select, signal, socket, sys, time
address = (sys.argv[1], int(sys.argv[2]))
inside, ends = [], []
signal.signal(signal.SIGTERM, lambda *_: ends.append(1))
print("begun", flush=True)
while not ends:
    waiting = {}
    poll = select.poll()
    for _ in range(50):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(address)
        waiting[s.fileno()] = s
        poll.register(s, select.POLLOUT)
    until = time.monotonic() + 0.03
    while waiting and (left := until - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            s = waiting.pop(number)
            poll.unregister(number)
            if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and len(inside) < 900:
                inside.append(s)
            else:
                s.close()
    for s in waiting.values():
        s.close()
def talks(s):
    try:
        s.settimeout(0.5)
        s.send(b"still here")
        return s.recv(64) == b"still here"
    except OSError:
        return False
sample = inside[:: max(1, len(inside) // 100)]
still = 0
for s in sample:
    still += talks(s)
    if still == 0 and s is sample[min(9, len(sample) - 1)]:
        break
print("inside", len(inside), "sampled", len(sample), "talk", still, flush=True)
"""


def run(lab: Lab) -> Iterator[Figure]:
    """Twenty deletions, then one with the daemon stopped, then one with it killed."""
    server, stranger = lab.host("server"), lab.host("stranger")
    # As most hosts have it: some other table keeps conntrack at work while the gate is away.
    server.run(["nft", "-f", "-"], text=ANOTHER_FIREWALL)
    site = Site(lab, server)
    site.apply_gate()
    site.start()
    assert site.daemon is not None
    service = server.serve(PORT)

    before = service.connections
    talk, restored = _storm(site, stranger, DELETIONS)
    inside = service.connections - before
    yield Figure(f"connections of strangers let in by {DELETIONS} deletions", inside, inside == 0)
    yield Figure("of those sampled still talk afterwards", talk, talk == 0)
    yield Figure("restores in the record", restored, restored > 0)

    os.kill(site.daemon.pid, signal.SIGSTOP)
    open_ports = _reached_without_the_table(server, stranger, "delete table inet spa")
    yield Figure("the port, 1 s after a deletion, daemon stopped: open", open_ports, not open_ports)
    os.kill(site.daemon.pid, signal.SIGCONT)
    time.sleep(1.0)
    os.kill(site.daemon.pid, signal.SIGSTOP)
    open_ports = _reached_without_the_table(server, stranger, "flush ruleset")
    yield Figure("the same after nft flush ruleset: open", open_ports, not open_ports)
    os.kill(site.daemon.pid, signal.SIGCONT)
    time.sleep(1.0)

    site.stop(signal.SIGKILL)
    open_ports = _reached_without_the_table(server, stranger, "delete table inet spa")
    yield Figure("the port after a deletion, daemon dead: open", open_ports, not open_ports)


def _storm(site: Site, stranger: Host, deletions: int) -> tuple[int, int]:
    """How many of those who came in still talk, and how many restores were recorded."""
    storm = start_storm(stranger, site)
    for _ in range(deletions):
        site.host.run(["nft", "delete", "table", "inet", "spa"], check=False)
        time.sleep(_BETWEEN_S)
    time.sleep(1.0)
    told = end_storm(storm)
    return told["talk"], len(site.events("gate.restored"))


def start_storm(stranger: Host, site: Site) -> Running:
    """Strangers who connect to one port without end."""
    code = site.lab.new_file("storm.py")
    code.write_text(STORM)
    storm = stranger.start(["python3", str(code), str(site.host.v4), str(PORT)])
    storm.wait_for("begun")
    return storm


def end_storm(storm: Running) -> dict[str, int]:
    """How many are inside, of how many it was asked, and how many still talk."""
    storm.process.send_signal(signal.SIGTERM)
    storm.wait_for("inside", within_s=15.0)
    words = storm.output.splitlines()[-1].split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def _reached_without_the_table(server: Host, stranger: Host, command: str) -> int:
    """How many of three connections get in, a second after it is gone."""
    server.run(["nft", *command.split()])
    time.sleep(1.0)
    return sum(stranger.reach_tcp(server.v4, PORT) is Reach.OPEN for _ in range(3))
