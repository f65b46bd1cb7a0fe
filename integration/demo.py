"""`make demo`: a host whose ports are all closed, and one packet that opens one of them.

Three hosts in network namespaces of their own; nothing outside them is touched. The programs are
the real ones, the packets are real, and so are the answers.
"""

import signal
import socket
import sys
import time
from contextlib import suppress

from integration.lab import Host, Lab, Reach, missing
from integration.site import PROGRAMS, Person, Site

_POLICY = """
[services]
ssh = "tcp/22"
postgres = "tcp/5432"

[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
lifetime = "6s"
"""
_WORDS = {
    Reach.OPEN: "\033[32mopen\033[0m",
    Reach.REFUSED: "\033[33mrefused\033[0m",
    Reach.SILENT: "\033[31mno answer\033[0m",
}
_PORTS = {22: "ssh", 5432: "postgres"}
_ETH_P_ALL = 3


def say(text: str = "") -> None:
    """One line of the story."""
    plain = text if sys.stdout.isatty() else _without_colour(text)
    print(plain, flush=True)


def _without_colour(text: str) -> str:
    for code in ("\033[0m", "\033[1m", "\033[31m", "\033[32m", "\033[33m", "\033[36m"):
        text = text.replace(code, "")
    return text


def chapter(text: str) -> None:
    """A heading."""
    say(f"\n\033[1m{text}\033[0m")


def typed(host: str, command: str, output: str) -> None:
    """A command as it was typed, and what it printed."""
    say(f"  \033[36m{host}$\033[0m {command}")
    for line in output.rstrip().splitlines():
        say(f"    {line}")


def probe(who: str, client: Host, server: Host, *ports: int) -> None:
    """Tries to connect, and tells what came of it."""
    for port in ports or tuple(_PORTS):
        reach = client.reach_tcp(server.v4, port)
        say(f"  {who:<8} -> db1 tcp/{port:<5} {_PORTS[port]:<9} {_WORDS[reach]}")


def _heard_knock(sniffer: socket.socket) -> bytes:
    """The first frame that carries a UDP datagram to the knock port."""
    while True:
        frame = sniffer.recv(2048)
        if frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == b"\xf2\xf9":
            return frame


def _replay(frame: bytes, eve: Host, server: Host) -> bool:
    """Sends a recorded knock from another host; whether anything answered."""
    with eve.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.settimeout(1.0)
        sending.sendto(frame[42:], (str(server.v4), 62201))
        with suppress(TimeoutError):
            sending.recv(2048)
            return True
    return False


def tell(lab: Lab) -> None:
    """The whole story."""
    server, laptop, eve = lab.host("db1"), lab.host("laptop"), lab.host("eve")
    for port in _PORTS:
        server.serve(port)
    site = Site(lab, server, policy=_POLICY)

    chapter("1. A host as they usually are: whoever reaches it reaches its ports")
    probe("eve", eve, server)

    chapter("2. Alice's key is enrolled, and the gate is put in force")
    alice = Person("alice", site, lab.new_file("alice"))
    line = alice.generate()
    typed("laptop", "spa-keys generate --no-passphrase", line)
    enrolled = site.keys("enroll", "alice", "--role", "ops", "--key", line)
    typed("db1", "spa-keys enroll alice --role ops --key 'spa-key ...'", enrolled.stdout)
    applied = site.server("gate", "apply")
    typed("db1", "spa-server gate apply", applied.stderr)
    site.start()
    say("  \033[36mdb1$\033[0m spa-server run")
    probe("eve", eve, server)
    probe("laptop", laptop, server)

    chapter("3. Alice knocks: one signed packet")
    sniffer = server.new_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    knocked = alice.knock(laptop, "tcp/22")
    frame = _heard_knock(sniffer)
    typed("laptop", "spa-client knock db1 tcp/22", knocked.stdout.replace("site", "db1"))
    probe("laptop", laptop, server)
    probe("eve", eve, server)
    typed("db1", "spa-server holes", site.server("holes").stdout)

    chapter("4. She asks for more than her role allows")
    refused = alice.knock(laptop, "tcp/5432", check=False)
    typed("laptop", "spa-client knock db1 tcp/5432", refused.stderr.replace("site", "db1"))

    chapter("5. Eve has recorded the packet, and sends it again")
    answered = _replay(frame, eve, server)
    say(f"  eve: {'an answer!' if answered else 'no answer'}")
    probe("eve", eve, server, 22)

    chapter("6. The daemon is killed with -9; the hole closes on time all the same")
    site.stop(by=signal.SIGKILL)
    deadline = time.monotonic() + 10
    while laptop.reach_tcp(server.v4, 22) is Reach.OPEN and time.monotonic() < deadline:
        time.sleep(0.2)
    probe("laptop", laptop, server, 22)
    site.start()

    chapter("7. What the record says")
    typed("db1", "spa-server audit", site.server("audit").stdout)
    say(f'\nThat was it. Next: README.md, "Install". (Programs: {PROGRAMS})')


def main() -> int:
    """Tells the story, or says what is missing."""
    if reason := missing():
        print(f"make demo: {reason}; run it as root", file=sys.stderr)
        return 4
    try:
        with Lab() as lab:
            tell(lab)
    except KeyboardInterrupt:
        print("\nstopped; the hosts are gone", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
