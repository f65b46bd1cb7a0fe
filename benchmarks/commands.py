"""What a person waits for: from starting a client to its end, and to a service's first byte.

fwknop's client only sends, so whoever uses it has to try until the port is open. It is given the
best that can be had: a new SYN each millisecond, instead of the second that a SYN waits to be sent
again.
"""

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.bench import Bench, Row
from benchmarks.measure import Figure, percentile
from benchmarks.peers import FIRST_PORT, Fwknop, Ours
from integration.lab import Address, Host, Reach, reached
from integration.site import PROGRAMS

_STEP_S: Final = 0.001
_WITHIN_S: Final = 5.0
# By chance, so as not to fall into step with a daemon that polls.
_REST_S: Final = (0.05, 0.15)


@dataclass(frozen=True, slots=True)
class Commands:
    """How long the two take, in milliseconds."""

    first_byte: Figure
    whole_client: Figure


def of_ours(bench: Bench, ours: Ours) -> Commands:
    """`spa-client connect`, as ssh runs it, and `spa-client knock`."""
    person = ours.site.enrol("alice", "crowd")
    env = {**os.environ, **person.env}
    client = str(PROGRAMS / "spa-client")
    connect = [client, "connect", "site", str(FIRST_PORT), "--quiet"]
    knock = [client, "knock", "site", f"tcp/{FIRST_PORT}"]
    host = ours.scene.client
    return Commands(
        first_byte=_timed(bench, host, lambda: _until_it_writes(connect, env)),
        whole_client=_timed(bench, host, lambda: _until_it_ends(knock, env)),
    )


def of_fwknop(bench: Bench, fwknop: Fwknop) -> Commands:
    """Its client, and a connection that is tried for until it stands."""
    host, server = fwknop.scene.client, fwknop.scene.server.v4
    # A port of its own each time: the last one's may still be open.
    ports = iter(range(FIRST_PORT, FIRST_PORT + bench.runs * _times(bench) + 1))

    def connect() -> None:
        port = next(ports)
        _until_it_ends(fwknop.client_argv(f"tcp/{port}"), fwknop.client_env)
        _first_byte(server, port)

    alone = fwknop.client_argv(f"tcp/{FIRST_PORT}")
    return Commands(
        first_byte=_timed(bench, host, connect),
        whole_client=_timed(bench, host, lambda: _until_it_ends(alone, fwknop.client_env)),
    )


def python_start(bench: Bench) -> Figure:
    """A Python that does nothing, in milliseconds: no client in Python is faster."""
    argv = [sys.executable, "-I", "-c", "pass"]
    return _figure(bench, lambda: _until_it_ends(argv, os.environ))


def rows(ours: Commands, theirs: Commands, floor: Figure) -> list[Row]:
    """The lines of the table."""
    return [
        Row(
            "starting the client to the service's first byte",
            "ms",
            "lower",
            ours.first_byte,
            theirs.first_byte,
            floor,
            aim="no longer than fwknop's",
            needed=theirs.first_byte.value,
            note="limit: a Python that does nothing; fwknop's is tried for each millisecond",
        ),
        Row(
            "the knocking client as a whole process",
            "ms",
            "lower",
            ours.whole_client,
            theirs.whole_client,
            floor,
            aim="under 100 ms",
            needed=100,
            note="ours waits for the reply, fwknop's only sends",
        ),
    ]


def _timed(bench: Bench, host: Host, act: Callable[[], None]) -> Figure:
    with host.inside():
        return _figure(bench, act)


def _times(bench: Bench) -> int:
    return bench.pick(10, 5)


def _figure(bench: Bench, act: Callable[[], None]) -> Figure:
    """The medians of several runs, in milliseconds; once before them, for the caches."""
    act()
    runs = []
    for _ in range(bench.runs):
        each_ms = []
        for _ in range(_times(bench)):
            began_s = time.perf_counter()
            act()
            each_ms.append((time.perf_counter() - began_s) * 1e3)
            time.sleep(random.uniform(*_REST_S))
        runs.append(percentile(each_ms, 0.5))
    return Figure(tuple(runs))


def _until_it_ends(argv: Sequence[str], env: Mapping[str, str]) -> None:
    subprocess.run(argv, env=env, check=True, capture_output=True)


def _until_it_writes(argv: Sequence[str], env: Mapping[str, str]) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if not process.stdout.read(1):
            raise RuntimeError(f"{argv[0]} connected to nothing: {process.stderr.read().decode()}")
        process.kill()


def _first_byte(server: Address, port: int) -> None:
    deadline_s = time.monotonic() + _WITHIN_S
    while time.monotonic() < deadline_s:
        with socket.socket() as stream:
            stream.setblocking(False)
            stream.connect_ex((str(server), port))
            if reached(stream, _STEP_S) is Reach.OPEN:
                stream.setblocking(True)
                stream.recv(1)
                return
    raise RuntimeError(f"port {port} did not open")
