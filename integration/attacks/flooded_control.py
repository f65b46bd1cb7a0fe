"""A member of the group spa floods the control socket, and the gate is deleted meanwhile.

Each connection takes one of the daemon's descriptors. When there are none left, nothing can be
opened that a restore needs: no pipe to nft, no socket to ask for the routes. What the attacker
wants is a restore that fails once and is not tried again: a host open for good, and nobody heard.
"""

import time
from collections.abc import Iterator

from integration.attacks import Figure
from integration.lab import Lab, Reach, wait_until
from integration.site import Site

PORT = 22
_DESCRIPTORS = 128  # fewer than a host gives, so that the flood is short
_CONNECTIONS = 400

FLOOD = """
import socket, sys, time
held = []
print("flooding", flush=True)
until = time.monotonic() + float(sys.argv[3])
while time.monotonic() < until:
    for s in [s for s in held if s.fileno() < 0]:
        held.remove(s)
    if len(held) < int(sys.argv[2]):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(0.05)
        try:
            s.connect(sys.argv[1])
            s.send(b"{")
            held.append(s)
        except OSError:
            s.close()
    else:
        held.pop(0).close()
"""


def run(lab: Lab) -> Iterator[Figure]:
    """A flood of five seconds, the table deleted in its midst."""
    server, stranger = lab.host("server"), lab.host("stranger")
    site = Site(lab, server)
    site.apply_gate()
    site.start(prefix=("prlimit", f"--nofile={_DESCRIPTORS}:{_DESCRIPTORS}"))
    server.serve(PORT)
    code = lab.new_file("flood.py")
    code.write_text(FLOOD)
    flood = server.start(["python3", str(code), str(site.control), str(_CONNECTIONS), "5"])
    flood.wait_for("flooding")
    time.sleep(1.0)
    server.run(["nft", "flush", "ruleset"])
    time.sleep(2.0)
    inside = sum(stranger.reach_tcp(server.v4, PORT) is Reach.OPEN for _ in range(3))
    yield Figure("of 3 strangers got in, 2 s after the flush, in the flood", inside, inside == 0)
    flood.process.wait(10)
    listed = server.run(["nft", "list", "tables"]).stdout
    yield Figure("the gate stands", float("inet spa\n" in listed), "inet spa\n" in listed)
    time.sleep(3.0)
    inside = sum(stranger.reach_tcp(server.v4, PORT) is Reach.OPEN for _ in range(3))
    yield Figure("of 3 strangers got in, after the flood", inside, inside == 0)
    wait_until(site.is_up, within_s=10.0, what="the daemon to answer again")
    heard = len(site.events("gate.restored"))
    yield Figure("restores in the record", heard, heard > 0)
