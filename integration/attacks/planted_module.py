"""Code of nobody's in the directory from which root applies a gate on trial.

The attacker may write into a directory that an operator happens to be in (/tmp, a shared checkout),
and puts modules there by the names that Python looks for first. They want them to be run as root,
and the trial not to be taken back.
"""

import time
from collections.abc import Iterator

from integration.attacks import Figure
from integration.lab import Lab, Reach
from integration.site import PROGRAMS, Site

_MODULES = (
    "spa_server/__init__.py",
    "keys/__init__.py",
    "json.py",
    "sitecustomize.py",
    "secrets.py",
)
_WITHIN_S = 20.0


def run(lab: Lab) -> Iterator[Figure]:
    """Plants, applies on trial, and waits until it should have been taken back."""
    server, client = lab.host("server"), lab.host("client")
    site = Site(lab, server)
    server.serve(22)
    planted, ran = lab.new_file("shared"), lab.new_file("ran")
    for name in _MODULES:
        module = planted / name
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f"open({str(ran)!r}, 'a').write({name!r})\nraise SystemExit\n")
    program = [PROGRAMS / "spa-server", "--config", site.config, "gate", "apply"]
    server.run(["env", "-C", planted, *program, "--confirm-within", "4s"])
    is_closed = client.reach_tcp(server.v4, 22) is Reach.SILENT
    by_s = time.monotonic() + _WITHIN_S
    while client.reach_tcp(server.v4, 22) is not Reach.OPEN and time.monotonic() < by_s:
        time.sleep(0.1)
    is_open = client.reach_tcp(server.v4, 22) is Reach.OPEN
    count = len(ran.read_text().split()) if ran.exists() else 0
    yield Figure("modules of nobody's that root ran", count, count == 0)
    yield Figure("trials taken back, of 1", int(is_closed and is_open), is_closed and is_open)
