"""An insider, with a good key and no limits set, knocks so much that nobody else is heard.

Mallory may open a range of ports, and does: 20 knocks a second from each of eight addresses, each
for 256 ports, which is what the gate lets through. Alice knocks meanwhile, once for each of her
connections, and does not try again.
"""

import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final

from integration.attacks import Figure
from integration.lab import Host, Lab
from integration.site import Site
from integration.wire import Caller, Pen
from spa_protocol.reason import Status

KNOCKS: Final = 50
_ADDRESSES: Final = 8
_A_SECOND: Final = 20
_SECONDS: Final = 8
_POLICY: Final = """
[services]
ssh = "tcp/22"
range = "tcp/10000-30000"

[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
lifetime = "3s"

[roles.dev]
[[roles.dev.allow]]
services = ["range"]
lifetime = "1m"
"""

# Each line of the file is one knock; they leave from the addresses in turn, so many a second.
_SENDER: Final = """
import socket, sys, time
target, rate, path, *sources = sys.argv[1:]
knocks = [bytes.fromhex(line) for line in open(path)]
outs = []
for source in sources:
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.bind((source, 0))
    outs.append(out)
print("ready", flush=True)
began = time.monotonic()
for number, knock in enumerate(knocks):
    time.sleep(max(0, began + number / int(rate) - time.monotonic()))
    outs[number % len(outs)].sendto(knock, (target, 62201))
"""


def run(lab: Lab) -> Iterator[Figure]:
    """Carries it out; the figures are knocks of Alice's that are answered, and what Mallory got."""
    server, insider, client = map(lab.host, ("server", "insider", "client"))
    site = Site(lab, server, policy=_POLICY)
    alice, mallory = Pen.enrolled(site, "alice", "ops"), Pen.enrolled(site, "mallory", "dev")
    site.apply_gate()
    site.start()
    caller = Caller(alice, client, IPv4Address(server.v4))
    caller.ask("tcp/22")
    sending = insider.start(_command(lab, site, insider, mallory))
    sending.wait_for("ready")
    time.sleep(1)
    heard = 0
    for _ in range(KNOCKS):
        reply = caller.ask("tcp/22", within_s=1.0)
        heard += reply is not None and reply.status is Status.GRANTED
        time.sleep(0.05)
    what = f"knocks of {KNOCKS} of others are answered within a second"
    yield Figure(what, heard, heard == KNOCKS)
    sending.process.wait(60)
    lines = len(site.audit("--identity", "mallory", "--limit", "100000"))
    yield Figure("lines about the insider in the record", lines, lines < 2000)


def _command(lab: Lab, site: Site, insider: Host, mallory: Pen) -> list[str]:
    """The knocks are written beforehand, so that the sender has nothing else to do."""
    sources = [str(insider.v4)]
    for number in range(1, _ADDRESSES):
        sources.append(str(insider.v4 + 100 + number))
        insider.add_address(f"{sources[-1]}/24")
    path = lab.new_file("knocks")
    with path.open("w") as file:
        for number in range(_ADDRESSES * _A_SECOND * _SECONDS):
            first = 10_000 + 256 * (number % 70)
            accesses = [f"tcp/{first + 32 * n}-{first + 32 * n + 31}" for n in range(8)]
            knock = mallory.write(*accesses, target=site.host.v4, reply_wanted=False)
            file.write(knock.payload.hex() + "\n")
    rate = str(_ADDRESSES * _A_SECOND)
    return ["python3", "-c", _SENDER, str(site.host.v4), rate, str(path), *sources]
