"""Members of the group spa keep every place at the control socket taken, and ask without an end.

They are operators who may look and close, or somebody who has taken over such an account: they may
neither keep root from its own daemon (`gate remove`, `status`), nor the other members, nor those
who knock. Six users at a time send half a line, one byte in a second, lines without an end, ask
and never read; then they connect as fast as they can; then they have the policy read anew.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import median
from typing import Final

from integration.attacks import Figure
from integration.lab import Host, Lab, Running
from integration.site import Person, Site

_FIRST_UID: Final = 54_330
_USERS: Final = 6
_GROUP: Final = 54_322
_TRIES: Final = 5
_KNOCKS: Final = 7
# An honest knock takes some tens of milliseconds as a program; that much more may be the machine's.
_TIMES_AS_LONG: Final = 4.0

HOARD: Final = """
import socket, sys, time
HALF, DRIP, UNREAD, GIANT = b'{"do"', b"{", b'{"do": "audit", "wanted": {}}\\n', b"y" * 70000
held = {}
print("at it", flush=True)
while True:
    for number in range(40):
        says = {0: DRIP, 1: UNREAD, 2: GIANT}.get(number % 10, HALF)
        try:
            if number not in held:
                held[number] = socket.socket(socket.AF_UNIX)
                held[number].setblocking(False)
                held[number].connect(sys.argv[1])
                held[number].send(says)
            elif says is DRIP:
                held[number].send(b" ")
            elif says is not HALF or held[number].recv(1):
                raise ConnectionError("it is over; the next one")
        except BlockingIOError:
            pass
        except OSError:
            held.pop(number).close()
    time.sleep(0.02)
"""

CONNECT: Final = """
import socket, sys
print("at it", flush=True)
while True:
    with socket.socket(socket.AF_UNIX) as each:
        each.setblocking(False)
        try:
            each.connect(sys.argv[1])
        except OSError:
            pass
"""

RELOAD: Final = """
import socket, sys, threading
def ask():
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as each:
                each.settimeout(60)
                each.connect(sys.argv[1])
                each.sendall(b'{"do": "reload"}\\n')
                while each.recv(65536):
                    pass
        except OSError:
            pass
print("at it", flush=True)
for _ in range(12):
    threading.Thread(target=ask).start()
"""


def run(lab: Lab) -> Iterator[Figure]:
    """Each way for some seconds, while root, another member and an honest knock have their turn."""
    server, client = lab.host("server"), lab.host("client")
    site = Site(lab, server)
    alice = site.enrol("alice", "ops")
    site.apply_gate()
    site.start()
    os.chown(site.control, 0, _GROUP)  # as the group spa has it where there is one
    for directory in (site.directory, *site.directory.parents):
        directory.chmod(directory.stat().st_mode | 0o011)
    calm_s = _knock_s(alice, client)
    for what, code, users in (
        ("hoard", HOARD, _USERS),
        ("connect", CONNECT, 2),
        ("reload", RELOAD, 2),
    ):
        with _members(lab, server, site, [code, what], users):
            time.sleep(1.5)
            answered = _answered(site, 0)
            always = answered == _TRIES
            yield Figure(f"of {_TRIES} times root was answered: {what}", answered, always)
            answered = _answered(site, _FIRST_UID + _USERS)
            yield Figure(f"of {_TRIES} times another member was: {what}", answered, answered > 0)
            ratio = _knock_s(alice, client) / calm_s
            yield Figure(f"times as long a knock took: {what}", ratio, ratio < _TIMES_AS_LONG)
    yield Figure("the daemon lives", float(site.is_up()), site.is_up())


@contextmanager
def _members(
    lab: Lab, server: Host, site: Site, code: list[str], users: int
) -> Iterator[list[Running]]:
    """So many users, each of whom runs the program."""
    program = lab.new_file(f"{code[1]}.py")
    program.write_text(code[0])
    running = []
    try:
        for uid in range(_FIRST_UID, _FIRST_UID + users):
            argv = ["setpriv", f"--reuid={uid}", f"--regid={_GROUP}", "--clear-groups"]
            running.append(
                server.start([*argv, sys.executable, str(program), str(site.control), code[1]])
            )
        for each in running:
            each.wait_for("at it")
        yield running
    finally:
        for each in running:
            each.stop()


def _answered(site: Site, uid: int) -> int:
    """How many of so many questions of a user are answered, within the time that a program has."""
    return sum(_is_answered(site, uid) for _ in range(_TRIES))


def _is_answered(site: Site, uid: int) -> bool:
    if uid == 0:
        return site.server("status", "--json", check=False).returncode == 0
    code = (
        "import json, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(5)\n"
        "s.setblocking(True); s.connect(sys.argv[1])\n"
        's.sendall(b\'{"do": "holes"}\\n\'); print(s.makefile().readline())\n'
    )
    user = ["setpriv", f"--reuid={uid}", f"--regid={_GROUP}", "--clear-groups"]
    said = site.host.run([*user, sys.executable, "-c", code, str(site.control)], check=False).stdout
    with suppress(ValueError, TypeError):
        return bool(json.loads(said)["ok"])
    return False


def _knock_s(who: Person, at: Host) -> float:
    """How long a knock takes, as its program, until it is answered."""
    taken = []
    for _ in range(_KNOCKS):
        began_s = time.monotonic()
        who.knock(at, "tcp/22")
        taken.append(time.monotonic() - began_s)
    return median(taken)
